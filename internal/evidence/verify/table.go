package verify

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
)

// table is the state of a cluster as the records so far tell it.
type table struct {
	// known: since the start of the process or of the shard there was a snapshot.
	known bool
	rows  map[string]tableRow
	hash  record.Hash
	valid bool // hash is of rows
	parts []*record.Snapshot
}

type tableRow struct {
	hash   record.Hash
	inputs []record.Input
	key    string
}

func (t *table) digest() record.Hash {
	if !t.valid {
		hashes := make([]record.Hash, 0, len(t.rows))
		for _, ns := range slices.Sorted(maps.Keys(t.rows)) {
			hashes = append(hashes, t.rows[ns].hash)
		}
		t.hash, t.valid = record.HashTable(hashes), true
	}
	return t.hash
}

// snapshot takes a part, and replaces the table with the last one.
func (l *ledger) snapshot(s *record.Snapshot) error {
	if s.Part == 1 {
		l.table.parts = nil // what was begun before is void
	}
	parts := l.table.parts
	if uint64(len(parts))+1 != s.Part {
		return fmt.Errorf("part %d of %d of a snapshot follows part %d", s.Part, s.Of, len(parts))
	}
	if len(parts) > 0 {
		if p := parts[0]; p.Of != s.Of || p.Table != s.Table || p.RowsN != s.RowsN || p.Why != s.Why {
			return fmt.Errorf("part %d of a snapshot belongs to another one", s.Part)
		}
	}
	l.table.parts = append(l.table.parts, s)
	if s.Part < s.Of {
		return nil
	}
	parts, l.table.parts = l.table.parts, nil
	next := table{known: true, rows: map[string]tableRow{}}
	rows := map[string]*record.Row{}
	last := ""
	for _, p := range parts {
		for i := range p.Rows {
			row := &p.Rows[i]
			if row.Namespace <= last && last != "" {
				return fmt.Errorf("a snapshot has the rows of %q and %q out of order", last, row.Namespace)
			}
			last = row.Namespace
			h, err := record.HashRow(*row)
			if err != nil {
				return err
			}
			next.rows[row.Namespace], rows[row.Namespace] = tableRow{h, row.Inputs, l.pseudonyms}, row
		}
	}
	if uint64(len(next.rows)) != s.RowsN || next.digest() != s.Table {
		return fmt.Errorf("a snapshot has another table than it says: %d rows, %s", len(next.rows), next.hash)
	}
	for _, ns := range slices.Sorted(maps.Keys(l.table.rows)) {
		if _, stays := next.rows[ns]; !stays {
			l.step(ns, s.After, standing{})
			l.explain(ns, l.table.rows[ns], tableRow{key: l.pseudonyms}, s.After, false)
		}
	}
	for _, ns := range slices.Sorted(maps.Keys(next.rows)) {
		was, old := l.table.rows[ns]
		if old && was.hash == next.rows[ns].hash {
			continue
		}
		l.step(ns, s.After, standingOf(rows[ns], l.pseudonyms))
		if old {
			l.explain(ns, was, next.rows[ns], s.After, true)
		}
	}
	l.table = next
	if s.Why == "relist" {
		l.relisted = &place{l.order, l.head.Time}
	}
	return nil
}

func (l *ledger) state(s *record.State) error {
	if !l.table.known {
		return fmt.Errorf("a state of %q has no snapshot before it", s.Row.Namespace)
	}
	l.table.parts = nil
	ns := s.Row.Namespace
	was, old := l.table.rows[ns]
	if s.What != "set" {
		if !old {
			return fmt.Errorf("namespace %q leaves a table that it is not in", ns)
		}
		if s.What == "gone" {
			l.cluster.gone[ns] = append(l.cluster.gone[ns], instant(l.head.Time))
		} else {
			l.unguarded(&s.Row, s.After)
		}
		l.step(ns, s.After, standing{})
		delete(l.table.rows, ns)
		l.table.valid = false
		return nil
	}
	h, err := record.HashRow(s.Row)
	if err != nil {
		return err
	}
	next := tableRow{h, s.Row.Inputs, l.pseudonyms}
	l.step(ns, s.After, standingOf(&s.Row, l.pseudonyms))
	if old {
		l.explain(ns, was, next, s.After, true)
	}
	l.table.rows[ns], l.table.valid = next, false
	return nil
}

// step adds to the history of a namespace.
func (l *ledger) step(ns string, after time.Time, s standing) {
	history := l.history[ns]
	narrow := step{from: min(instant(after), instant(l.head.Time)), certain: instant(l.head.Time), standing: s}
	l.history[ns] = append(history, told{l.order, narrow.widened(l.errors)})
	l.pending = append(l.pending, pendingStep{ns, len(history), narrow})
}

func (s step) widened(by time.Duration) step {
	s.from, s.certain, s.error = s.from-int64(by), s.certain+int64(by), s.error+int64(by)
	return s
}

// beat checks the table, and counts the time since the one before as seen if it was.
func (l *ledger) beat(b *record.Beat) error {
	if !l.table.known {
		return fmt.Errorf("a beat has no snapshot before it")
	}
	l.table.parts = nil
	if uint64(len(l.table.rows)) != b.RowsN || l.table.digest() != b.Table {
		return fmt.Errorf("the states so far do not make the table of the beat: %d rows, %s; the beat says %d rows, %s", len(l.table.rows), l.table.digest(), b.RowsN, b.Table)
	}
	here := &lastBeat{time: l.head.Time, mono: l.head.Mono, boot: l.head.Boot, watches: map[string]uint64{}, good: len(b.Watches) > 0}
	for _, w := range b.Watches {
		here.quiet = max(here.quiet, time.Duration(min(w.QuietMillis, 1<<40))*time.Millisecond)
	}
	here.err = l.clockError(b)
	l.log.Clock.Beats++
	l.log.Clock.MaxError = max(l.log.Clock.MaxError, here.err)
	for _, w := range b.Watches {
		here.watches[w.GVK] = w.Epoch
		here.good = here.good && w.Healthy
	}
	here.good = here.good && here.err <= l.options.MaxClockError && !l.foretold()
	l.widen(here)
	l.see(here)
	l.names(b)
	l.count(b)
	l.last, l.broken, l.relisted, l.crept = here, false, nil, 0
	return nil
}

// widen lets what was told since the last beat be as uncertain as the clock at either was.
func (l *ledger) widen(here *lastBeat) {
	l.errors = here.err
	e := here.err
	if l.last != nil {
		e = max(e, l.last.err)
	}
	for _, p := range l.pending {
		l.history[p.namespace][p.index].step = p.narrow.widened(e)
	}
	l.pending = nil
}

func (l *ledger) see(here *lastBeat) {
	last := l.last
	unbroken := last != nil && last.good && here.good && !l.broken && last.boot == here.boot &&
		here.mono-last.mono <= l.patience() && here.time.After(last.time)
	same := unbroken && maps.Equal(last.watches, here.watches)
	at, e := instant(here.time), int64(here.err)
	// What came after the API server was last heard has not been seen yet; it will have been, if a later beat heard more.
	heard := at - e - int64(here.quiet)
	switch {
	case same && l.seen != nil:
		l.seen.to = max(l.seen.to, heard)
	default:
		l.close()
		if !here.good {
			return
		}
		from := e
		if last != nil {
			from = max(e, int64(last.err)) // what was told before may be uncertain for so long
		}
		l.seen = &sight{span: span{at + from, heard}, begin: l.order}
		// Since the snapshot after the watches began anew, all was seen again.
		if r := l.relisted; unbroken && r != nil {
			l.seen.from, l.seen.begin = instant(r.at)+max(e, int64(last.err)), r.order
		}
	}
}

// patience is how long after a beat the next one may come.
func (l *ledger) patience() time.Duration {
	return time.Duration(min(l.boot.BeatSeconds, 1<<20)) * time.Second * 5 / 2
}
