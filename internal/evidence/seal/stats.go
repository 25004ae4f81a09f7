package seal

import (
	"sync"
	"time"
)

// stats is for metrics and health; the goroutines of a Sealer and those of HTTP share it.
type stats struct {
	mu sync.Mutex

	started   time.Time
	pass      time.Time // end of the last pass, whatever came of it
	sealed    uint64    // last line in a checkpoint, with all before it
	witnessed uint64    // last line in a witnessed one
	last      uint64    // last line in the spool
	allSealed time.Time // when all lines were sealed last; zero before
	signed    time.Time // when sealed grew last
	seen      time.Time // when all lines that are sealed were witnessed last; zero before

	records, failures, witnessFailures, mirrorFailures uint64
	mirrored                                           time.Time // when the mirror had all last
}

// Stats is what there is to know of a Sealer.
type Stats struct {
	Sealed, Witnessed, Last                            uint64
	Records, Failures, WitnessFailures, MirrorFailures uint64
	Started, Pass, AllSealed, Signed, Seen, Mirrored   time.Time
}

// Stats may be asked at any time.
func (s *Sealer) Stats() Stats {
	t := &s.stats
	t.mu.Lock()
	defer t.mu.Unlock()
	return Stats{
		Sealed: t.sealed, Witnessed: t.witnessed, Last: t.last,
		Records: t.records, Failures: t.failures, WitnessFailures: t.witnessFailures, MirrorFailures: t.mirrorFailures,
		Started: t.started, Pass: t.pass, AllSealed: t.allSealed, Signed: t.signed, Seen: t.seen, Mirrored: t.mirrored,
	}
}

func (t *stats) passed(now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.pass = now
}

func (t *stats) failed() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.failures++
}

func (t *stats) added(n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.records += uint64(n)
}

func (t *stats) unwitnessed() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.witnessFailures++
}

func (t *stats) mirror(now time.Time, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err != nil {
		t.mirrorFailures++
		return
	}
	t.mirrored = now
}

// covered reports whether file sealed is to be written: where more is sealed, or all is. A time
// that was written while lines wait would hide how long they do.
func (t *stats) covered(now time.Time, sealed, witnessed, last uint64, published bool) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	more := sealed > t.sealed
	if more {
		t.signed = now
	}
	t.sealed, t.witnessed, t.last = sealed, witnessed, last
	if sealed >= last {
		t.allSealed = now
	}
	if witnessed >= sealed && published { // what witnesses hold back is not sealed either
		t.seen = now
	}
	return more || sealed >= last
}
