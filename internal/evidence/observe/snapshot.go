package observe

import (
	"context"
	"fmt"
	"slices"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
)

// snapshotRows is how many rows are made at a time. A row takes a kilobyte, and there may be ten thousand.
const snapshotRows = 256

// snapshot tells all rows. Until all parts are stored, the table is what it was.
//
// It goes through them twice: how many parts there are, and the hash of the whole table, stand in the first of them.
func (o *Observer) snapshot(ctx context.Context, why string) error {
	o.mu.Lock()
	o.all = false
	clear(o.dirty)
	o.mu.Unlock()
	epochs := map[string]uint64{}
	for _, w := range o.watches() {
		epochs[w.Kind] = w.Epoch
	}
	standings, err := o.standings()
	if err != nil {
		return err
	}
	next, of := newTable(), uint64(0)
	if err := o.parts(why, standings, func(part *record.Snapshot, hashes []record.Hash) error {
		of++
		for i := range part.Rows {
			s := standings[len(next.rows)]
			next.rows[s.namespace] = told{s, hashes[i]}
		}
		return nil
	}); err != nil {
		return err
	}
	hash, n := next.hash(), uint64(0)
	if err := o.parts(why, standings, func(part *record.Snapshot, _ []record.Hash) error {
		n++
		part.Part, part.Of, part.Table, part.RowsN = n, of, hash, uint64(len(standings))
		return o.write(ctx, part)
	}); err != nil {
		return err
	}
	o.config.Source.ReturnMemory()
	o.table, o.epochs, o.snapshotAt = next, epochs, o.config.Since()
	o.passed = o.snapshotAt
	return nil
}

// standings are those of all guarded namespaces, sorted by name.
func (o *Observer) standings() ([]*standing, error) {
	names := o.config.Source.Namespaces()
	slices.Sort(names)
	var standings []*standing
	for _, name := range names {
		d, err := o.look(name)
		if err != nil {
			return nil, err
		}
		if d.now != nil {
			standings = append(standings, d.now)
		}
	}
	return standings, nil
}

// parts makes the parts of a snapshot, which lack what only the whole has, and gives each to take with the hashes of
// its rows. There is one for an empty table.
func (o *Observer) parts(why string, standings []*standing, take func(*record.Snapshot, []record.Hash) error) error {
	for chunk := range chunksOf(standings) {
		w := newWriter(o.pseudonyms)
		rows := make([]record.Row, 0, len(chunk))
		for _, s := range chunk {
			row, err := w.row(s)
			if err != nil {
				return err
			}
			rows = append(rows, row)
		}
		parts, err := record.Snapshots(why, o.known.at, rows)
		if err != nil {
			return err
		}
		for _, part := range parts {
			hashes := make([]record.Hash, 0, len(part.Rows))
			for i := range part.Rows {
				hash, err := record.HashRow(part.Rows[i])
				if err != nil {
					return fmt.Errorf("row of namespace %q: %w", part.Rows[i].Namespace, err)
				}
				hashes = append(hashes, hash)
			}
			if err := take(part, hashes); err != nil {
				return err
			}
		}
	}
	return nil
}

// chunksOf is slices.Chunk with one chunk for nothing.
func chunksOf(standings []*standing) func(func([]*standing) bool) {
	if len(standings) == 0 {
		return func(yield func([]*standing) bool) { yield(nil) }
	}
	return slices.Chunk(standings, snapshotRows)
}
