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

// claimDir makes the directory of a control plane: the given one, which must be empty,
// or a temporary one.
func claimDir(given string) (dir string, remove func() error, err error) {
	if given == "" {
		return claimTempDir()
	}
	if dir, err = filepath.Abs(given); err != nil {
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
	return dir, func() error { return removeAll(dir) }, nil
}

// claimTempDir makes a temporary directory and holds a lock in it, by which the next
// control plane tells the directories that were left behind. Only remove gives the lock
// up: a directory whose logs are still of interest is safe while this process lives.
func claimTempDir() (dir string, remove func() error, err error) {
	removeAbandoned()
	if dir, err = os.MkdirTemp("", tempPattern); err != nil {
		return "", nil, fmt.Errorf("create directory: %w", err)
	}
	// Locked under another name first: nobody may find the lock free in between.
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	fresh := filepath.Join(dir, "new.lock")
	unlock, err := lockFile(ctx, fresh, io.Discard)
	if err != nil {
		return "", nil, errors.Join(err, removeAll(dir))
	}
	if err := os.Rename(fresh, filepath.Join(dir, ownerLock)); err != nil {
		unlock()
		return "", nil, errors.Join(fmt.Errorf("lock directory: %w", err), removeAll(dir))
	}
	return dir, func() error {
		defer unlock()
		return removeAll(dir)
	}, nil
}

func removeAll(dir string) error {
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
