package spool

import (
	"errors"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

const sector = 512

var errDead = errors.New("the process has ended")

// memDisk is a disk with a page cache. What is not synced may be lost in a crash, sector by
// sector; changes of the directory are lost from some point on. As in Linux, a failed sync
// leaves pages that look stored and may not be.
type memDisk struct {
	mu       sync.Mutex
	rng      *rand.Rand
	names    map[string]*memFile
	stored   map[string]*memFile
	journal  []func(map[string]*memFile)
	locked   bool
	dead     bool  // its process has ended: nothing that is still called has an effect
	capacity int64 // 0: without end
	calls    int
	// fault is asked before every call that changes something. A write that fails has
	// written part of its bytes, a sync that fails has stored some of its sectors.
	fault func(call int, op, name string) error
}

type memFile struct {
	cache, stored []byte
	dirty         map[int]bool
	allocated     int64
}

func newMemDisk(seed uint64) *memDisk {
	return &memDisk{rng: rand.New(rand.NewPCG(seed, 1)), names: map[string]*memFile{}, stored: map[string]*memFile{}}
}

// kill is the end of the process: the page cache stays.
func (d *memDisk) kill() *memDisk {
	d.mu.Lock()
	defer d.mu.Unlock()
	next := &memDisk{rng: d.rng, names: d.names, stored: d.stored, journal: d.journal}
	d.dead = true
	return next
}

// crash is the loss of power.
func (d *memDisk) crash() *memDisk {
	d.mu.Lock()
	defer d.mu.Unlock()
	names := maps.Clone(d.stored)
	for _, change := range d.journal[:d.rng.IntN(len(d.journal)+1)] {
		change(names)
	}
	next := newMemDisk(d.rng.Uint64())
	for name, f := range names {
		b := slices.Clone(f.stored)
		for _, s := range slices.Sorted(maps.Keys(f.dirty)) {
			if d.rng.IntN(2) == 0 {
				b = f.persist(b, s)
			}
		}
		g := &memFile{cache: b, stored: slices.Clone(b), dirty: map[int]bool{}}
		next.names[name], next.stored[name] = g, g
	}
	d.dead = true
	return next
}

func (f *memFile) persist(b []byte, s int) []byte {
	from, to := s*sector, min((s+1)*sector, len(f.cache))
	if from >= to {
		return b
	}
	if len(b) < to {
		b = append(b, make([]byte, to-len(b))...)
	}
	copy(b[from:to], f.cache[from:to])
	return b
}

func (d *memDisk) before(op, name string) error {
	if d.dead {
		return errDead
	}
	d.calls++
	if d.fault == nil {
		return nil
	}
	return d.fault(d.calls, op, name)
}

func (d *memDisk) change(f func(map[string]*memFile)) {
	f(d.names)
	d.journal = append(d.journal, f)
}

func (d *memDisk) used() int64 {
	var n int64
	for _, f := range d.names {
		n += max(f.allocated, int64(len(f.cache)))
	}
	return n
}

func (d *memDisk) List() ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Collect(maps.Keys(d.names)), nil
}

func (d *memDisk) Create(name string) (file, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.before("create", name); err != nil {
		return nil, err
	}
	if d.names[name] != nil {
		return nil, unix.EEXIST
	}
	f := &memFile{dirty: map[int]bool{}}
	d.change(func(m map[string]*memFile) { m[name] = f })
	return &memHandle{d, f, name}, nil
}

func (d *memDisk) Open(name string, _ bool) (file, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f := d.names[name]
	if f == nil {
		return nil, fs.ErrNotExist
	}
	return &memHandle{d, f, name}, nil
}

func (d *memDisk) Rename(from, to string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.before("rename", from); err != nil {
		return err
	}
	if d.names[to] != nil {
		return unix.EEXIST
	}
	d.change(func(m map[string]*memFile) {
		m[to] = m[from]
		delete(m, from)
	})
	return nil
}

func (d *memDisk) Remove(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.names[name] == nil {
		return fs.ErrNotExist
	}
	if err := d.before("remove", name); err != nil {
		return err
	}
	d.change(func(m map[string]*memFile) { delete(m, name) })
	return nil
}

func (d *memDisk) Sync() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.before("syncdir", "."); err != nil {
		return err
	}
	d.stored, d.journal = maps.Clone(d.names), nil
	return nil
}

func (d *memDisk) Lock() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.locked {
		return ErrLocked
	}
	d.locked = true
	return nil
}

func (d *memDisk) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.locked = false
	return nil
}

type memHandle struct {
	disk *memDisk
	file *memFile
	name string
}

func (h *memHandle) ReadAt(b []byte, at int64) (int, error) {
	h.disk.mu.Lock()
	defer h.disk.mu.Unlock()
	if at >= int64(len(h.file.cache)) {
		return 0, io.EOF
	}
	n := copy(b, h.file.cache[at:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (h *memHandle) WriteAt(b []byte, at int64) (int, error) {
	h.disk.mu.Lock()
	defer h.disk.mu.Unlock()
	err := h.disk.before("write", h.name)
	if errors.Is(err, errDead) {
		return 0, err
	}
	if err != nil {
		b = b[:h.disk.rng.IntN(len(b)+1)]
	}
	if grow := at + int64(len(b)) - max(h.file.allocated, int64(len(h.file.cache))); err == nil && h.disk.capacity > 0 && grow > 0 && h.disk.used()+grow > h.disk.capacity {
		b, err = b[:max(0, int64(len(b))-grow)], unix.ENOSPC
	}
	if len(b) == 0 {
		return 0, err
	}
	if end := int(at) + len(b); len(h.file.cache) < end {
		h.file.cache = append(h.file.cache, make([]byte, end-len(h.file.cache))...)
	}
	copy(h.file.cache[at:], b)
	for s := int(at) / sector; s <= (int(at)+len(b)-1)/sector; s++ {
		h.file.dirty[s] = true
	}
	return len(b), err
}

func (h *memHandle) Size() (int64, error) {
	h.disk.mu.Lock()
	defer h.disk.mu.Unlock()
	return int64(len(h.file.cache)), nil
}

func (h *memHandle) Allocate(size int64) error {
	h.disk.mu.Lock()
	defer h.disk.mu.Unlock()
	if err := h.disk.before("allocate", h.name); err != nil {
		return err
	}
	if h.disk.capacity > 0 && h.disk.used()+size > h.disk.capacity {
		return unix.ENOSPC
	}
	h.file.allocated = size
	h.file.cache = make([]byte, size)
	h.file.stored = make([]byte, size)
	return nil
}

func (h *memHandle) Truncate(size int64) error {
	h.disk.mu.Lock()
	defer h.disk.mu.Unlock()
	if err := h.disk.before("truncate", h.name); err != nil {
		return err
	}
	// Whether a truncation that is not synced has happened matters to no line that counts,
	// so that here it lasts at once.
	h.file.cache = h.file.cache[:min(int(size), len(h.file.cache))]
	h.file.stored = h.file.stored[:min(int(size), len(h.file.stored))]
	return nil
}

func (h *memHandle) Sync() error {
	h.disk.mu.Lock()
	defer h.disk.mu.Unlock()
	err := h.disk.before("sync", h.name)
	if errors.Is(err, errDead) {
		return err
	}
	for _, s := range slices.Sorted(maps.Keys(h.file.dirty)) {
		if err == nil || h.disk.rng.IntN(2) == 0 {
			h.file.stored = h.file.persist(h.file.stored, s)
		}
		delete(h.file.dirty, s)
	}
	return err
}

func (h *memHandle) Close() error { return nil }
