package journal

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
	"github.com/meshvakt/meshvakt/policies"
	"github.com/meshvakt/meshvakt/policies/facts"
	"github.com/meshvakt/meshvakt/test/tmpfs"
)

// row is one of the table in the package's documentation.
type row struct {
	name     string
	review   func(name string) *facts.Review
	decision policies.Decision
	// What is answered, and counted, while nothing can be written.
	refused  bool
	required bool // refused in mode required too
	verdict  string
}

func rows() []row {
	return []row{
		{"denied", func(n string) *facts.Review { return peerAuthentication(n) }, deny(), false, false, "deny"},
		{"denied pod", func(n string) *facts.Review { return pod(n, "web") }, deny(), false, false, "deny"},
		{"excepted pod", func(n string) *facts.Review { return pod(n, "web") }, excepted(), true, true, "deny"},
		{"excepted pod, by the break-glass group", func(n string) *facts.Review {
			r := pod(n, "web")
			r.User.Groups = []string{"breakers"}
			return r
		}, excepted(), true, true, "deny"},
		{"mesh", func(n string) *facts.Review { return peerAuthentication(n) }, allow(), true, true, "deny"},
		{"mesh, by the break-glass group", func(n string) *facts.Review { return peerAuthentication(n, "breakers") }, allow(), false, false, "allow"},
		{"mesh, by Meshvakt itself", func(n string) *facts.Review {
			r := peerAuthentication(n)
			r.User.Username = "system:serviceaccount:meshvakt-system:meshvakt"
			return r
		}, allow(), false, false, "allow"},
		{"pod", func(n string) *facts.Review { return pod(n, "web") }, allow(), false, true, "allow"},
	}
}

// fault breaks the disk below a log, and mends it.
type fault struct {
	name, cause string
	fs          string
	// budget is how long the disk is waited for. One that hangs is waited for in vain; it must be long enough for a machine that
	// is busy, once the disk goes on. With one that fails nobody waits, and what is slow must not be taken for the fault.
	budget time.Duration
	breaks func(t *testing.T, dir string)
	mends  func(t *testing.T, dir string)
}

// hangs is the budget for a disk that hangs.
const hangs = 2 * time.Second

func faults() []fault {
	filler := func(dir string) string { return filepath.Join(dir, "filler") }
	return []fault{
		{"full", "full", "tmpfs", time.Minute, func(t *testing.T, dir string) {
			f, err := os.Create(filler(dir))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			for block := make([]byte, 4096); err == nil; {
				_, err = f.Write(block)
			}
			if !errors.Is(err, unix.ENOSPC) {
				t.Fatal(err)
			}
		}, func(t *testing.T, dir string) {
			if err := os.Remove(filler(dir)); err != nil {
				t.Fatal(err)
			}
		}},
		{"stalled", "slow", "ext4", hangs, func(t *testing.T, dir string) { freeze(t, dir, true) }, func(t *testing.T, dir string) { freeze(t, dir, false) }},
		{"shut down", "io", "ext4", time.Minute, func(t *testing.T, dir string) {
			const shutdown = 0x8004587d // EXT4_IOC_SHUTDOWN
			f, err := os.Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if err := unix.IoctlSetPointerInt(int(f.Fd()), shutdown, 1); err != nil {
				t.Skipf("shut the file system down: %v", err)
			}
		}, nil},
	}
}

// freeze suspends all writing to a file system, as a volume does that has lost its server.
func freeze(t *testing.T, dir string, is bool) {
	t.Helper()
	const fifreeze, fithaw = 0xc0045877, 0xc0045878
	request := uint(fithaw)
	if is {
		request = fifreeze
	}
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.IoctlSetInt(int(f.Fd()), request, 0); err != nil && (is || !errors.Is(err, unix.EINVAL)) {
		t.Fatalf("freeze %v: %v", is, err)
	}
}

// mount gives a small file system of its own, or skips and says why.
func mount(t *testing.T, kind string) string {
	t.Helper()
	if os.Geteuid() != 0 || runtime.GOOS != "linux" {
		t.Skip("mounting a file system takes root, and Linux")
	}
	dir := filepath.Join(t.TempDir(), "mount")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	args := []string{"-t", "tmpfs", "-o", "size=4m", "evidence", dir}
	if kind != "tmpfs" {
		image := filepath.Join(tmpfs.TempDir(t), "image")
		if err := os.WriteFile(image, make([]byte, 32<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.CommandContext(t.Context(), "mkfs."+kind, "-q", image).CombinedOutput(); err != nil {
			t.Skipf("mkfs.%s: %v %s", kind, err, out)
		}
		args = []string{"-o", "loop", image, dir}
	}
	if out, err := exec.CommandContext(t.Context(), "mount", args...).CombinedOutput(); err != nil {
		t.Skipf("mount %s: %v %s", kind, err, out)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
			_ = unix.Unmount(dir, unix.MNT_DETACH)
		}
	})
	return dir
}

func remount(t *testing.T, dir string, flags uintptr) {
	t.Helper()
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|flags, "size=4m"); err != nil {
		t.Fatalf("remount: %v", err)
	}
}

// until asks again and again: what heals does so at a time of its own.
func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(30 * time.Second); !is(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 30 s", what)
		}
	}
}

// play asks for each row and holds the answers against the table. Nobody waits longer than the
// budget of the disk, give or take what a busy machine adds.
func play(t *testing.T, j *Journal, required bool) {
	t.Helper()
	for _, row := range rows() {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		receipt, err := j.Decided(ctx, row.review("x"), row.decision, 0)
		if ctx.Err() != nil {
			t.Errorf("%s: no answer within 20 s", row.name)
		}
		cancel()
		var refused *RefusedError
		if is := errors.As(err, &refused); is != (row.refused || required && row.required) || (err != nil) != is {
			t.Errorf("%s: refused %v, %v; must be %v", row.name, is, err, row.refused || required && row.required)
		}
		if receipt != Missing {
			t.Errorf("%s: the receipt is %q; must be %q", row.name, receipt, Missing)
		}
	}
}

func TestTheTableWhileNoRecordCanBeWritten(t *testing.T) {
	for _, required := range []bool{false, true} {
		mode := fmt.Sprintf("required=%v", required)
		t.Run("not open/"+mode, func(t *testing.T) {
			r := newReplica(t.TempDir())
			r.edit = func(c *Config) { c.Required = required }
			r.keeper.err = errors.New("connection refused")
			j := r.journal(t)
			j.Tend(t.Context())
			play(t, j, required)
			r.keeper.err = nil
			checkGap(t, r, j, "notOpen", required)
		})
		t.Run("read-only/"+mode, func(t *testing.T) {
			dir := mount(t, "tmpfs")
			remount(t, dir, unix.MS_RDONLY)
			r := newReplica(dir)
			r.edit = func(c *Config) { c.Required = required }
			j := r.journal(t)
			j.Tend(t.Context())
			play(t, j, required)
			remount(t, dir, 0)
			checkGap(t, r, j, "readOnly", required)
		})
		for _, f := range faults() {
			t.Run(f.name+"/"+mode, func(t *testing.T) {
				dir := mount(t, f.fs)
				r := newReplica(dir)
				r.edit = func(c *Config) { c.Required, c.Spool.Budget = required, f.budget }
				j := r.opened(t)
				f.breaks(t, dir)
				if f.mends != nil {
					t.Cleanup(func() { freezeOff(dir) })
				}
				// The first that finds the disk broken may be answered before anybody knows.
				_, _ = j.Decided(t.Context(), peerAuthentication("first"), deny(), 0)
				until(t, "the log is known to be unavailable", func() bool {
					if j.health() != nil {
						return true
					}
					_, _ = j.Decided(t.Context(), peerAuthentication("more"), deny(), 0)
					return false
				})
				if s := j.State(); s.Available || s.Cause != f.cause {
					t.Errorf("the state is %+v; must be unavailable by %s", s, f.cause)
				}
				play(t, j, required)
				if f.mends == nil {
					_ = j.open.log.spool.Close(t.Context()) // which cannot end in order
					return
				}
				f.mends(t, dir)
				checkGap(t, r, j, f.cause, required)
			})
		}
	}
}

// A process that starts on a full disk, and ends while it is still full, tells of what it has answered: there is a reserve
// for that.
func TestALifeOnAFullDisk(t *testing.T) {
	dir := mount(t, "tmpfs")
	full := faults()[0]
	r := newReplica(dir)
	r.stop(t, r.opened(t))
	if err := os.RemoveAll(filepath.Join(r.dir.Spool(), "spare")); err != nil { // as where the disk has been full for long
		t.Fatal(err)
	}
	full.breaks(t, dir)
	j := r.journal(t)
	until(t, "the log is open", func() bool {
		j.Tend(t.Context())
		return j.Shard() != ""
	})
	if s := j.State(); s.Available || s.Cause != "full" {
		t.Errorf("the state is %+v; must be unavailable by full", s)
	}
	play(t, j, false)
	if err := j.stop(t.Context()); err != nil {
		t.Errorf("the end is not in order: %v", err)
	}
	full.mends(t, dir)
	r.stop(t, r.opened(t))
	list := r.records(t)
	if got, want := kinds(list), "genesis boot key.created stop boot gap stop boot stop"; got != want {
		t.Fatalf("records are %s; must be %s", got, want)
	}
	told := uint64(0)
	for _, c := range all[*record.Gap](list)[0].Counts {
		told += c.N
	}
	if want := uint64(len(rows())); told != want {
		t.Errorf("the gap tells of %d; must be %d", told, want)
	}
}

// A disk that hangs as a quarter ends keeps nobody waiting who asks meanwhile.
func TestADiskThatHangsAtTheEndOfAQuarter(t *testing.T) {
	for _, keyed := range []bool{false, true} { // whether an earlier attempt has come as far as the key of the next log
		t.Run(fmt.Sprintf("keyed=%v", keyed), func(t *testing.T) {
			dir := mount(t, "ext4")
			r := newReplica(dir)
			r.edit = func(c *Config) { c.Spool.Budget = hangs }
			j := r.opened(t)
			if keyed {
				if _, err := r.dir.LogKey("2027q1", "evidence.example.org/cluster-uid/meshvakt-0/2027q1", rand.Reader); err != nil {
					t.Fatal(err)
				}
			}
			t.Cleanup(func() { freezeOff(dir) })
			freeze(t, dir, true)
			r.clock.set("2027-01-01T00:00:00Z")
			tended, answered := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(tended)
				j.Tend(t.Context())
			}()
			if keyed {
				until(t, "the shard is being changed", func() bool {
					if !j.mu.TryRLock() {
						return true
					}
					defer j.mu.RUnlock()
					return j.open == nil
				})
			}
			go func() {
				defer close(answered)
				play(t, j, false)
			}()
			select {
			case <-answered:
				// Tend waits for the disk, the one without and the other with an end to it.
			case <-tended:
				t.Error("nobody was answered before the disk, or the patience with it, had come to an end")
			case <-time.After(20 * time.Second):
				t.Error("no answer within 20 s")
			}
			freezeOff(dir)
			<-answered
			<-tended
			until(t, "the log is available again", func() bool {
				j.Tend(t.Context())
				return j.health() == nil && !j.gap.pending.Load()
			})
			r.stop(t, j)
			if g := all[*record.Genesis](r.records(t)); len(g) != 2 || g[1].Shard != "2027q1" {
				t.Errorf("shards are %+v", g)
			}
		})
	}
}

// freezeOff is for a test that has failed while the file system was frozen, which could not be
// unmounted otherwise.
func freezeOff(dir string) {
	if f, err := os.Open(dir); err == nil {
		_ = unix.IoctlSetInt(int(f.Fd()), 0xc0045878, 0)
		_ = f.Close()
	}
}

// checkGap goes on when the log can be written again: the first record afterwards tells of all
// that is missing.
func checkGap(t *testing.T, r *replica, j *Journal, why string, required bool) {
	t.Helper()
	missing := j.Counts().Unlogged
	until(t, "the log is available again", func() bool {
		j.Tend(t.Context())
		return j.health() == nil && !j.gap.pending.Load()
	})
	var group sync.WaitGroup
	for i := range 16 { // what comes at once does not make the next gap
		group.Go(func() {
			if _, err := j.Decided(t.Context(), peerAuthentication(fmt.Sprint("after", i)), allow(), 0); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	r.stop(t, j)
	list := r.records(t)
	var counts record.Counters
	told := uint64(0)
	verdicts := map[string]uint64{}
	for _, g := range all[*record.Gap](list) {
		if g.Cause != why {
			t.Errorf("the cause is %s; must be %s", g.Cause, why)
		}
		for _, c := range g.Counts {
			told += c.N
			verdicts[c.Verdict] += c.N
		}
		told += g.Others
	}
	counts = all[*record.Stop](list)[0].Counts
	if told != missing || counts.Unlogged != missing || counts.In != counts.Written+counts.Admitted+counts.Unlogged {
		t.Errorf("%d are missing, gaps tell of %d, the counts at the end are %+v", missing, told, counts)
	}
	want := uint64(0)
	for _, row := range rows() {
		if row.verdict == "allow" && !(required && row.required) {
			want++
		}
	}
	if verdicts["allow"] != want {
		t.Errorf("gaps tell of %d that were let in; must be %d", verdicts["allow"], want)
	}
	broken, gaps := 0, 0
	for _, rec := range list {
		switch b := rec.Body.(type) {
		case *record.Gap:
			gaps++
		case *record.Decision:
			if b.BreakGlass {
				broken++
			}
			if gaps == 0 && b.Request != "request-first" && b.Request != "request-more" {
				t.Errorf("the record of %s stands before the gap", b.Request)
			}
		}
	}
	if broken != 1 {
		t.Errorf("%d records of changes by the break-glass group; must be 1", broken)
	}
}

// Many at once while the disk comes back, which may take as long over the gap as over any record: nobody makes a second gap
// by not waiting for the first.
func TestOneGapForAllWhoWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReplica(t.TempDir())
		j := r.opened(t)
		now := r.clock.Now()
		j.gap.note("allow", "v1/Pod", "slow", true, 3, now, now)
		j.gap.telling <- struct{}{} // as one has who is about to tell it
		var group sync.WaitGroup
		for i := range 64 {
			group.Go(func() {
				if _, err := j.Decided(t.Context(), peerAuthentication(fmt.Sprint(i)), allow(), 0); err != nil {
					t.Error(err)
				}
			})
		}
		time.Sleep(time.Minute - time.Second) // of a budget of a minute
		<-j.gap.telling
		group.Wait()
		r.stop(t, j)
		gaps := all[*record.Gap](r.records(t))
		if len(gaps) != 1 || gaps[0].Counts[0].N != 3 {
			t.Errorf("gaps are %+v; must be one", gaps)
		}
	})
}
