package controlplane

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const (
	tempPattern = "meshvakt-controlplane-"
	ownerLock   = "owner.lock"
)

// claimDir makes the directory of a control plane. release removes it, unless it is to
// be kept.
func claimDir(o Options) (dir string, release func() error, err error) {
	if o.Dir == "" {
		return claimTempDir(o.Keep)
	}
	if dir, err = filepath.Abs(o.Dir); err != nil {
		return "", nil, fmt.Errorf("claim directory: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", nil, fmt.Errorf("claim directory: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", nil, fmt.Errorf("claim directory: %w", err)
	}
	if len(entries) > 0 {
		return "", nil, fmt.Errorf("claim directory: %s is not empty", dir)
	}
	return dir, func() error { return removeUnless(o.Keep, dir) }, nil
}

// claimTempDir makes a temporary directory and holds a lock in it for as long as this
// process lives, by which the next control plane tells those that were left behind.
func claimTempDir(keep bool) (string, func() error, error) {
	removeAbandoned()
	dir, err := os.MkdirTemp("", tempPattern)
	if err != nil {
		return "", nil, fmt.Errorf("create directory: %w", err)
	}
	if keep {
		return dir, func() error { return nil }, nil
	}
	// Locked under another name first: nobody may find the lock free in between.
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	fresh := filepath.Join(dir, "new.lock")
	unlock, err := lockFile(ctx, fresh, io.Discard)
	if err != nil {
		return "", nil, errors.Join(err, os.RemoveAll(dir))
	}
	if err := os.Rename(fresh, filepath.Join(dir, ownerLock)); err != nil {
		unlock()
		return "", nil, errors.Join(fmt.Errorf("lock directory: %w", err), os.RemoveAll(dir))
	}
	return dir, func() error {
		defer unlock()
		return removeUnless(keep, dir)
	}, nil
}

func removeUnless(keep bool, dir string) error {
	if keep {
		return nil
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove directory: %w", err)
	}
	return nil
}

// removeAbandoned removes directories whose process was killed before it could. Failing
// to do so is nobody's problem now.
func removeAbandoned() {
	locks, _ := filepath.Glob(filepath.Join(os.TempDir(), tempPattern+"*", ownerLock))
	for _, path := range locks {
		f, err := os.Open(path)
		if err != nil {
			continue
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			os.RemoveAll(filepath.Dir(path))
		}
		f.Close()
	}
}
