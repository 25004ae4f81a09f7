package spool

import "io"

// directory is the one directory that a spool lives in. Names are plain: no operation
// leaves the directory or follows a symbolic link.
type directory interface {
	List() ([]string, error)
	Create(name string) (file, error) // fails where the name is taken
	Open(name string, write bool) (file, error)
	Rename(from, to string) error // fails where the name is taken
	Remove(name string) error
	// Sync makes what was created, renamed and removed last.
	Sync() error
	// Lock shuts out every other holder, in this process too, until Close.
	Lock() error
	Close() error
}

type file interface {
	io.ReaderAt
	io.WriterAt
	Size() (int64, error)
	// Allocate takes the space for a file of this size, or none and fails.
	Allocate(size int64) error
	Truncate(size int64) error
	// Sync makes the content last: fdatasync.
	Sync() error
	Close() error
}
