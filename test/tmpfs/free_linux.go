package tmpfs

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// available is how many bytes are free in a file system in memory.
func available(dir string) (int64, error) {
	var is unix.Statfs_t
	if err := unix.Statfs(dir, &is); err != nil {
		return 0, fmt.Errorf("look at %s: %w: %w", dir, err, errors.ErrUnsupported)
	}
	if is.Type != unix.TMPFS_MAGIC {
		return 0, fmt.Errorf("%s is no file system in memory: %w", dir, errors.ErrUnsupported)
	}
	return int64(is.Bavail) * is.Bsize, nil //nolint:gosec // no machine has so much
}
