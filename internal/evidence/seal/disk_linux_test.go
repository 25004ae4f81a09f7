package seal

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/meshvakt/meshvakt/internal/evidence/volume"
)

// mount gives the logs a small file system of their own, or skips and says why.
func mount(t *testing.T, b *book) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting a file system takes root")
	}
	dir := b.dir.Logs()
	if out, err := exec.CommandContext(t.Context(), "mount", "-t", "tmpfs", "-o", "size=4m", "seal", dir).CombinedOutput(); err != nil {
		t.Skipf("mount tmpfs: %v %s", err, out)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// On a full disk nothing is sealed, nothing is lost, nothing comes out of order, and no
// unfinished files stay behind.
func TestAFullDisk(t *testing.T) {
	b := newBook(t, t.TempDir())
	dir := mount(t, b)
	c := b.config()
	c.Batch = 100
	s := openSealer(t, c)
	b.begin(t, "2026q4")
	b.fill(t, 300)
	mustPass(t, s)
	b.fill(t, 700)
	ballast := filepath.Join(dir, "ballast")
	for size := int64(4 << 20); ; size -= 8 << 10 {
		if err := fill(ballast, size); err == nil {
			break
		}
	}
	for range 5 {
		if err := s.Pass(t.Context()); !errors.Is(err, unix.ENOSPC) && (err == nil || !strings.Contains(err.Error(), "no space left")) {
			t.Fatalf("pass on a full disk: %v", err)
		}
	}
	if _, entries, err := verifyLog(logOf(t, b.dir, "2026q4"), b.verifier(t, "2026q4")); err != nil || len(entries) > len(b.lines["2026q4"]) {
		t.Errorf("on a full disk the log has %d records, %v", len(entries), err)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	mustPass(t, s)
	b.mustBeSealed(t)
	if n, err := (files{b.dir.Log("2026q4")}).removeStale(); n != 0 || err != nil {
		t.Errorf("%d unfinished files are there, %v", n, err)
	}
}

func fill(name string, size int64) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	_, err = f.Write(make([]byte, size))
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(name))
	}
	return nil
}

// TestReadOnlyChild is no test: on a read-only disk Tessera may end the process.
func TestReadOnlyChild(t *testing.T) {
	dir := os.Getenv(readOnlyDirectory)
	if dir == "" {
		t.Skip("runs in a process of its own, under TestAReadOnlyDisk")
	}
	b := &book{dir: volume.Dir(dir)}
	if err := openSealer(t, b.config()).Pass(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// On a read-only disk the sealer fails or dies, which is what its process is its own for; when it
// is started again on a disk in order, nothing is missing.
func TestAReadOnlyDisk(t *testing.T) {
	b := newBook(t, t.TempDir())
	dir := mount(t, b)
	remount := func(flags uintptr) {
		t.Helper()
		if err := unix.Mount("", dir, "", unix.MS_REMOUNT|flags, "size=4m"); err != nil {
			t.Fatal(err)
		}
	}
	life := func() error {
		child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestReadOnlyChild$")
		child.Env = append(os.Environ(), readOnlyDirectory+"="+string(b.dir))
		return child.Run()
	}
	b.begin(t, "2026q4")
	b.fill(t, 300)
	if err := life(); err != nil {
		t.Fatal(err)
	}
	b.fill(t, 300)
	remount(unix.MS_RDONLY)
	if err := life(); err == nil {
		t.Error("sealing on a read-only disk succeeds")
	}
	remount(0)
	if err := life(); err != nil {
		t.Fatal(err)
	}
	b.mustBeSealed(t)
}

const readOnlyDirectory = "MESHVAKT_TEST_SEAL_READONLY"
