package verify

import (
	"fmt"
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

// foretold reports whether a witness had signed the record in hand well before the time that it says it is of: it was made
// up, or one of the two clocks is wrong. All that a witness has signed was there by then.
func (l *ledger) foretold() bool {
	for _, c := range l.log.Cosignatures {
		if c.At.Unix() == 0 || !l.head.Time.After(c.At.Add(explainAfter)) { // at 0, it says nothing of the time
			continue
		}
		if l.foretoldIn != l.log {
			l.foretoldIn = l.log
			l.finding(FindingClock, "", c.At, l.head.Time, fmt.Sprintf("witness %s had signed this record by %s, and it says that it is of a later time", c.Witness, stamp(c.At)))
		}
		return true
	}
	return false
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
