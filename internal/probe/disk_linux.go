package probe

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	syncWrites = 500
	writeSize  = 2300 // what etcd's own advice for fio uses
	fileSize   = 64 << 20
	fillSize   = 1 << 20
	readSize   = 4 << 10
	readsMost  = 2000
	diskTime   = 10 * time.Second // for each of the two
)

// cpuTime is what the process has used so far.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// syncs writes one small record after the other and has each stored.
func syncs(ctx context.Context, dir string) ([]time.Duration, error) {
	f, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // nothing in it is of use any more
	record := make([]byte, writeSize)
	times := make([]time.Duration, 0, syncWrites)
	for end := time.Now().Add(diskTime); len(times) < syncWrites && time.Now().Before(end) && ctx.Err() == nil; {
		if _, err := f.Write(record); err != nil {
			return times, err
		}
		before := time.Now()
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			return times, fmt.Errorf("fdatasync: %w", err)
		}
		times = append(times, time.Since(before))
	}
	return times, nil
}

// reads returns how many blocks a second are read from anywhere in a file. Neither that
// nor the making of the file goes through the page cache, for it is the disk that is
// asked, and the cache is others'. It errs on file systems that cannot do without. The
// file loses its name before it is filled: a process that is killed leaves nothing of its
// size behind.
func reads(ctx context.Context, dir string) (float64, error) {
	path := filepath.Join(dir, "data")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_DIRECT, 0o600)
	if err != nil {
		return 0, fmt.Errorf("open past the page cache: %w", err)
	}
	defer func() { _ = f.Close() }() // nothing in it is of use any more
	if err := os.Remove(path); err != nil {
		return 0, err
	}
	// What goes past the cache comes from memory at the boundary of a page.
	memory, err := unix.Mmap(-1, 0, fillSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return 0, fmt.Errorf("map memory: %w", err)
	}
	defer func() { _ = unix.Munmap(memory) }() // which fails for none of ours
	if err := fill(ctx, f, memory); err != nil {
		return 0, err
	}
	n := 0
	before := time.Now()
	for end := before.Add(diskTime); n < readsMost && time.Now().Before(end) && ctx.Err() == nil; n++ {
		at := rand.Int64N(fileSize/readSize) * readSize //nolint:gosec // a place, not a secret
		if _, err := f.ReadAt(memory[:readSize], at); err != nil {
			return 0, err
		}
	}
	return float64(n) / time.Since(before).Seconds(), nil
}

// fill writes what no disk can compress, block by block.
func fill(ctx context.Context, f *os.File, block []byte) error {
	for i := range block {
		block[i] = byte(rand.Uint32()) //nolint:gosec // noise, not a secret
	}
	for range fileSize / len(block) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := f.Write(block); err != nil {
			return err
		}
	}
	return f.Sync()
}
