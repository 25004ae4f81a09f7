package spool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshvakt/meshvakt/test/tmpfs"
)

// mount gives a small file system of its own, or skips and says why. again takes it down,
// repairs and mounts it.
func mount(t *testing.T, kind string) (dir string, again func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting a file system takes root")
	}
	dir = filepath.Join(t.TempDir(), "mount")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	args := []string{"-t", "tmpfs", "-o", "size=8m", "spool", dir}
	image := filepath.Join(tmpfs.TempDir(t), "image")
	if kind != "tmpfs" {
		if err := os.WriteFile(image, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(image, 32<<20); err != nil {
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
	return dir, func() {
		t.Helper()
		if err := unix.Unmount(dir, 0); err != nil {
			t.Fatalf("unmount: %v", err)
		}
		// Its exit status is not 0 when it has repaired something.
		out, _ := exec.CommandContext(t.Context(), "fsck."+kind, "-y", image).CombinedOutput()
		t.Logf("%s", out)
		if out, err := exec.CommandContext(t.Context(), "mount", args...).CombinedOutput(); err != nil {
			t.Fatalf("mount: %v %s", err, out)
		}
	}
}

func realOptions() Options {
	return Options{SegmentSize: 1 << 20, ReserveSize: 1 << 20, Budget: 10 * time.Second, Retry: 20 * time.Millisecond}
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

// wide is a line that fills a disk in a moment.
func wide(id string) Make {
	return func(seq uint64, prev [32]byte) ([]byte, error) {
		return fmt.Appendf(nil, "%d %x %s %08000d", seq, prev, id, 0), nil
	}
}

func checkDirectory(t *testing.T, l *told, dir string, from uint64) map[string]point {
	t.Helper()
	d, err := openDirectory(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	return l.check(t, d, from)
}

func TestAFileSystemThatIsFull(t *testing.T) {
	for _, kind := range []string{"tmpfs", "ext4"} {
		t.Run(kind, func(t *testing.T) {
			dir, _ := mount(t, kind)
			s, err := Open(dir, realOptions())
			if err != nil {
				t.Fatal(err)
			}
			l := newTold()
			var all sync.WaitGroup
			for a := range 8 {
				all.Go(func() {
					for i := range 2000 {
						id := fmt.Sprintf("%d.%d", a, i)
						seq, hash, err := s.Append(context.Background(), wide(id))
						l.note(t, id, point{seq, hash}, err)
						if err != nil {
							return
						}
					}
				})
			}
			all.Wait()
			if st := s.State(); st.Healthy || !errors.Is(st.Cause, unix.ENOSPC) || len(l.refused) != 8 || len(l.unsettled) != 0 {
				t.Errorf("state %+v, %d refused, %d unsettled; must be full, with 8 refused", st, len(l.refused), len(l.unsettled))
			}
			for i := range 10 {
				id := fmt.Sprintf("vital%d", i)
				seq, hash, err := s.AppendVital(t.Context(), named(id))
				l.note(t, id, point{seq, hash}, err)
				if err != nil {
					t.Errorf("a vital line on a full file system: %v", err)
				}
			}
			in := checkDirectory(t, l, dir, 1)
			t.Logf("full after %d lines", len(in))

			r, err := OpenReader(dir, 1)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			if err := r.Release(uint64(len(in))); err != nil {
				t.Fatal(err)
			}
			until(t, "recovery", func() bool { return s.State().Healthy })
			l = newTold()
			seq, hash, err := s.Append(t.Context(), named("after"))
			l.note(t, "after", point{seq, hash}, err)
			if seq != uint64(len(in)+1) {
				t.Errorf("the first line with space again: %d, %v; must be %d", seq, err, len(in)+1)
			}
			if st := s.State(); st.Open != 0 || st.Asked != st.Written+st.Refused || st.Written != seq {
				t.Errorf("state is %+v", st)
			}
			mustClose(t, s)
			checkDirectory(t, l, dir, seq)
		})
	}
}

func TestAFileSystemThatIsReadOnly(t *testing.T) {
	for _, kind := range []string{"tmpfs", "ext4"} {
		t.Run(kind, func(t *testing.T) {
			dir, _ := mount(t, kind)
			l := newTold()
			remount := func(flags uintptr, data string) {
				t.Helper()
				if err := unix.Mount("", dir, "", unix.MS_REMOUNT|flags, data); err != nil {
					t.Fatalf("remount: %v", err)
				}
			}
			s, err := Open(dir, realOptions())
			if err != nil {
				t.Fatal(err)
			}
			l.append(t, s, "before")
			mustClose(t, s)

			remount(unix.MS_RDONLY, "")
			s, err = Open(dir, realOptions())
			if err != nil {
				t.Fatalf("open on a read-only file system: %v; must be there and fail appends", err)
			}
			l.append(t, s, "during")
			if st := s.State(); st.Healthy || !errors.Is(st.Cause, unix.EROFS) || l.refused["during"] == nil {
				t.Errorf("state %+v, append %v; must be refused with EROFS", st, l.refused["during"])
			}
			remount(0, "")
			until(t, "recovery", func() bool { return s.State().Healthy })
			l.append(t, s, "after")
			mustClose(t, s)
			if in := checkDirectory(t, l, dir, 1); len(in) != 2 {
				t.Errorf("%d lines in the log; must be 2", len(in))
			}
		})
	}
}

// A file system that gives up while files are open for writing, as ext4 does after an error
// of its disk: nothing can be stored until somebody has mounted it anew.
func TestAFileSystemThatAborts(t *testing.T) {
	dir, again := mount(t, "ext4")
	l := newTold()
	o := realOptions()
	o.Budget = time.Second // which those wait for whose lines the disk has
	s, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for a := range 8 {
		all.Go(func() {
			for i := range 1000 {
				if a == 0 && i == 20 {
					if err := unix.Mount("", dir, "", unix.MS_REMOUNT, "abort"); err != nil {
						t.Errorf("abort: %v", err)
					}
				}
				id := fmt.Sprintf("%d.%d", a, i)
				seq, hash, err := s.Append(context.Background(), named(id))
				l.note(t, id, point{seq, hash}, err)
				if err != nil && (a != 0 || i >= 20) { // the first of them has an end to make, even of a disk that is slow
					return
				}
			}
		})
	}
	all.Wait()
	if st := s.State(); st.Healthy || st.Cause == nil {
		t.Errorf("state is %+v; must be failing", st)
	}
	if err := s.Close(t.Context()); err == nil {
		t.Error("Close says that all is stored")
	}
	t.Logf("%d acknowledged, %d refused, %d unsettled; %v", len(l.acked), len(l.refused), len(l.unsettled), s.State().Cause)
	l.settle(t)
	again()
	s, err = Open(dir, realOptions())
	if err != nil {
		t.Fatal(err)
	}
	if r := s.Recovery(); r.Clean || r.LastSeq < uint64(len(l.acked)) {
		t.Errorf("resumes with %+v; %d were acknowledged", r, len(l.acked))
	}
	l.append(t, s, "after")
	mustClose(t, s)
	checkDirectory(t, l, dir, 1)
}

// What is put in the place of our files is not written to, and not read.
func TestLinksAreNotFollowed(t *testing.T) {
	for _, name := range []string{markName, spareName, reserveName, temporaryName} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			target := filepath.Join(t.TempDir(), "target")
			if err := os.WriteFile(target, []byte("others' data"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
			if s, err := Open(dir, killOptions()); err == nil {
				newTold().append(t, s, "a")
				_ = s.Close(t.Context()) // fails for the mark
			}
			if b, err := os.ReadFile(target); err != nil || string(b) != "others' data" {
				t.Errorf("the target of the link holds %q, %v", b, err)
			}
		})
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(t.TempDir(), link); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(link, killOptions()); err == nil {
		t.Error("a directory was opened through a link")
	}
}

func TestFilesAreNobodyElses(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir, killOptions())
	if err != nil {
		t.Fatal(err)
	}
	newTold().append(t, s, "a")
	mustClose(t, s)
	list, err := os.ReadDir(dir)
	if err != nil || len(list) < 3 { // a segment, mark and reserve; perhaps the spare
		t.Fatalf("%d files, %v", len(list), err)
	}
	for _, e := range list {
		if info, err := e.Info(); err != nil || info.Mode() != 0o600 {
			t.Errorf("%s has mode %v, %v; must be 0600", e.Name(), info.Mode(), err)
		}
	}
}
