package cluster

import (
	"runtime/debug"
	"time"
)

// returnAfter is long enough for what was read to be no longer needed.
const returnAfter = 5 * time.Second

// ReturnMemory gives back to the machine, a moment later, what it takes to go through everything
// once and nobody needs any more. Otherwise a replica with little to do would keep it for minutes,
// until the garbage collector comes by itself. What comes meanwhile shares one return.
func (s *Source) ReturnMemory() {
	if !s.returning.CompareAndSwap(false, true) {
		return
	}
	time.AfterFunc(returnAfter, func() {
		s.returning.Store(false)
		debug.FreeOSMemory()
	})
}
