package spool

import "sync/atomic"

// The phases of an append. Caller and writer both move it by compare-and-swap: so either the
// caller leaves before the writer takes it, and it is not in the log, or it is the disk's.
const (
	waiting   = iota
	taken     // by the writer
	left      // by its caller while waiting
	abandoned // by its caller when taken
	over
)

type entry struct {
	line  Make
	vital bool
	phase atomic.Int32

	settled chan struct{}
	at      point // set, as is err, before settled is closed
	err     error
}

func (e *entry) result() (uint64, [32]byte, error) { return e.at.seq, e.at.hash, e.err }

func (e *entry) settle(at point, err error) {
	e.at, e.err = at, err
	e.phase.Store(over)
	close(e.settled)
}
