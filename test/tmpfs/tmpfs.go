// Package tmpfs gives tests directories whose files are in memory. What is flushed there waits for
// no disk, so that a test of something else does not fail on a disk that others keep busy: the
// product gives its own disk half a second, and tells users when that is not enough.
package tmpfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	// mount is where Linux keeps such a file system for everybody.
	mount = "/dev/shm"
	// Directories have the first name until they are locked, and the second from then on.
	fresh, owned = "meshvakt-new-", "meshvakt-test-"

	// room is what must be free there for each directory. Spools of the size that is the product's
	// take some 150 MiB, and more while one is left behind and the next is made. Containers are
	// often given 64 MiB in all, which is of no use.
	room = 1 << 30
)

// TempDir is like that of testing.TB. Where there is no memory to be had, it is that one.
func TempDir(t testing.TB) string {
	t.Helper()
	dir, remove, err := Dir()
	if errors.Is(err, errors.ErrUnsupported) {
		t.Logf("the test depends on the speed of a disk: %v", err)
		return t.TempDir()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := remove(); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// Dir makes a directory in memory, for the caller to remove, or wraps errors.ErrUnsupported where
// there is none. It also removes those of processes that were killed before they could.
func Dir() (dir string, remove func() error, err error) {
	return makeIn(mount)
}

func makeIn(base string) (dir string, remove func() error, err error) {
	free, err := available(base)
	if err != nil {
		return "", nil, err
	}
	removeAbandoned(base)
	if free < room {
		return "", nil, fmt.Errorf("%s has %d MiB free; must have %d: %w", base, free>>20, room>>20, errors.ErrUnsupported)
	}
	outer, err := os.MkdirTemp(base, fresh)
	if err != nil {
		return "", nil, fmt.Errorf("make a directory in memory: %w", err)
	}
	lock, err := os.Open(outer)
	if err != nil {
		return "", nil, errors.Join(err, os.RemoveAll(outer))
	}
	remove = func() error { return errors.Join(os.RemoveAll(outer), lock.Close()) }
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return "", nil, errors.Join(fmt.Errorf("lock %s: %w", outer, err), remove())
	}
	// Nobody may find it by the name of those that are locked before it is.
	named := filepath.Join(base, owned+filepath.Base(outer)[len(fresh):])
	if err := os.Rename(outer, named); err != nil {
		return "", nil, errors.Join(err, remove())
	}
	outer = named
	dir = filepath.Join(outer, "dir")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", nil, errors.Join(err, remove())
	}
	return dir, remove, nil
}

// removeAbandoned removes what nobody holds a lock on. Failing to do so is nobody's problem now.
func removeAbandoned(base string) {
	left, _ := filepath.Glob(filepath.Join(base, owned+"*"))
	for _, path := range left {
		f, err := os.Open(path)
		if err != nil {
			continue
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			_ = os.RemoveAll(path)
		}
		_ = f.Close()
	}
}
