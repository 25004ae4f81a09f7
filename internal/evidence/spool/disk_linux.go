package spool

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// disk holds the directory by its descriptor, so that nobody who renames it, or puts
// another one in its place, moves what is written.
type disk struct {
	fd   int
	path string
}

func openDirectory(path string) (directory, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open directory %q: %w", path, err)
	}
	return &disk{fd: fd, path: path}, nil
}

// Lock is held on the directory itself: there is no lock file that somebody could remove
// and that a second appender would then make anew. flock belongs to the descriptor, unlike
// the locks of fcntl, which never conflict within one process.
func (d *disk) Lock() error {
	err := unix.Flock(d.fd, unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return ErrLocked
	}
	return d.wrap("lock", ".", err)
}

func (d *disk) List() ([]string, error) {
	// A descriptor of its own, for the place in a listing belongs to the descriptor.
	fd, err := unix.Openat(d.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, d.wrap("list", ".", err)
	}
	f := os.NewFile(uintptr(fd), d.path)
	names, err := f.Readdirnames(-1)
	return names, errors.Join(err, f.Close())
}

func (d *disk) Create(name string) (file, error) {
	return d.open(name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL)
}

func (d *disk) Open(name string, write bool) (file, error) {
	if write {
		return d.open(name, unix.O_RDWR)
	}
	return d.open(name, unix.O_RDONLY)
}

func (d *disk) open(name string, flags int) (file, error) {
	fd, err := unix.Openat(d.fd, name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, d.wrap("open", name, err)
	}
	return &diskFile{File: os.NewFile(uintptr(fd), name)}, nil
}

func (d *disk) Rename(from, to string) error {
	err := unix.Renameat2(d.fd, from, d.fd, to, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		// A file system without RENAME_NOREPLACE; the lock is guard enough.
		err = unix.Renameat(d.fd, from, d.fd, to)
	}
	return d.wrap("rename", from, err)
}

func (d *disk) Remove(name string) error { return d.wrap("remove", name, unix.Unlinkat(d.fd, name, 0)) }

func (d *disk) Sync() error { return d.wrap("sync directory", ".", unix.Fsync(d.fd)) }

func (d *disk) Close() error { return unix.Close(d.fd) }

func (d *disk) wrap(what, name string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s %q: %w", what, name, err)
}

type diskFile struct{ *os.File }

func (f *diskFile) Size() (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if !info.Mode().IsRegular() {
		return 0, fmt.Errorf("%q is not a regular file", f.Name())
	}
	return info.Size(), nil
}

func (f *diskFile) Allocate(size int64) error {
	err := unix.Fallocate(int(f.Fd()), 0, 0, size)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return zero(f, size, nil)
	}
	return err
}

func (f *diskFile) Sync() error {
	for {
		if err := unix.Fdatasync(int(f.Fd())); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func outOfSpace(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}
