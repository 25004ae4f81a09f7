package verify

import (
	"slices"
	"time"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
)

// clockError is how wrong the clock may have been at a beat. The kernel's word goes first; the operator's is for kernels
// that do not know.
func (l *ledger) clockError(b *record.Beat) time.Duration {
	c := &l.log.Clock
	kernel := microseconds(b.Clock.MaxErrorMicros)
	if !b.Clock.Unsynchronised {
		return kernel
	}
	c.Unsynchronised++
	if l.declared == nil || l.options.RefuseDeclared {
		return max(kernel, unsynchronisedError)
	}
	c.Declared++
	return l.declared.MaxError
}

// declare takes what the operator says. It holds for this start of the process in this shard.
func (l *ledger) declare(d *record.ClockDeclared) {
	l.declared = &Declaration{Source: d.Source, MaxError: microseconds(d.MaxErrorMicros)}
	if c := &l.log.Clock; !slices.Contains(c.Declarations, *l.declared) {
		c.Declarations = append(c.Declarations, *l.declared)
	}
}

func microseconds(n uint64) time.Duration { return time.Duration(min(n, 1<<40)) * time.Microsecond }

// parted judges what the record before has shown: where this one shows the opposite, the process was held up between looking
// at the one clock and at the other, and both are back where they were. Otherwise the clock was set, and what the operator
// says of it is not believed any more. It reports whether the clocks are back.
func (l *ledger) parted(apart, allowed time.Duration) (back bool) {
	suspect := l.suspect
	l.suspect = 0
	switch {
	case suspect == 0:
		return false
	case (suspect + apart).Abs() <= allowed:
		l.broken = true
		return true
	case l.declared != nil:
		l.declared = nil
		l.finding(FindingClock, "", l.head.Time, l.head.Time, "the clock was set, so what the operator says of its error is not believed any more in this start of the process")
	}
	return false
}
