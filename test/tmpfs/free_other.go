//go:build !linux

package tmpfs

import (
	"errors"
	"fmt"
)

func available(dir string) (int64, error) {
	return 0, fmt.Errorf("look at %s: %w", dir, errors.ErrUnsupported)
}
