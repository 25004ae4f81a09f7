package tmpfs

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// inMemory is a place of its own for directories, since others use the one for everybody.
func inMemory(t *testing.T) string {
	t.Helper()
	if free, err := available(mount); err != nil || free < room {
		t.Skipf("%d MiB free in memory, %v", free>>20, err)
	}
	base, err := os.MkdirTemp(mount, "meshvakt-memory-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(base); err != nil {
			t.Error(err)
		}
	})
	return base
}

// TestAbandoned leaves one directory in use and one whose owner is gone.
func TestAbandoned(t *testing.T) {
	base := inMemory(t)
	used, remove, err := makeIn(base)
	if err != nil {
		t.Fatal(err)
	}
	left := filepath.Join(base, owned+"1")
	if err := os.MkdirAll(filepath.Join(left, "dir"), 0o700); err != nil {
		t.Fatal(err)
	}
	_, removeOther, err := makeIn(base)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what nobody holds is still there: %v", err)
	}
	if _, err := os.Stat(used); err != nil {
		t.Errorf("what is in use is gone: %v", err)
	}
	if err := errors.Join(remove(), removeOther()); err != nil {
		t.Error(err)
	}
	if rest, err := os.ReadDir(base); err != nil || len(rest) > 0 {
		t.Errorf("%v is left, %v", rest, err)
	}
}

func TestNoMemory(t *testing.T) {
	for _, base := range []string{filepath.Join(t.TempDir(), "absent"), "/proc"} {
		if dir, _, err := makeIn(base); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%q, %v in %s; must be unsupported", dir, err, base)
		}
	}
}
