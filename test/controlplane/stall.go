package controlplane

import (
	"math/rand/v2"
	"os"
	"syscall"
	"time"
)

// StallVariable is the environment variable that says for how long, at most, processes under test stand still now and
// then, as a duration. Tests that hold on a quiet machine and fail with it depend on luck.
const StallVariable = "E2E_STALL"

// stallEvery is how long a process runs between two times at which it stands still, on average.
const stallEvery = 3 * time.Second

// Stall lets a process stand still at random, as one that gets no processor, until done is closed; it returns at once. It
// does nothing unless StallVariable asks for it.
func Stall(p *os.Process, done <-chan struct{}) {
	longest, err := time.ParseDuration(os.Getenv(StallVariable))
	if err != nil || longest <= 0 {
		return
	}
	go func() {
		for {
			if !until(done, rand.N(2*stallEvery)) || p.Signal(syscall.SIGSTOP) != nil {
				return
			}
			until(done, rand.N(longest))
			if p.Signal(syscall.SIGCONT) != nil {
				return
			}
		}
	}()
}

// until waits, and reports whether done was not closed meanwhile.
func until(done <-chan struct{}, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-done:
		return false
	case <-timer.C:
		return true
	}
}
