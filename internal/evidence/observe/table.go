package observe

import (
	"maps"
	"slices"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
)

// table is what the log has been told: the rows as of the last record, and nothing that it does not know.
type table struct {
	rows map[string]told
}

// told is a standing and the hash of its row.
type told struct {
	standing *standing
	hash     record.Hash
}

func newTable() *table { return &table{rows: map[string]told{}} }

// hash is that of the table, as a beat has it.
func (t *table) hash() record.Hash {
	hashes := make([]record.Hash, 0, len(t.rows))
	for _, name := range slices.Sorted(maps.Keys(t.rows)) {
		hashes = append(hashes, t.rows[name].hash)
	}
	return record.HashTable(hashes)
}

// difference is a row to be told: that it is so now, or, where now is nil, that it is no more.
type difference struct {
	namespace string
	now       *standing
	// exists: the namespace is there, so that a row that is no more is of one that is guarded no longer.
	exists bool
}

// differs reports whether a namespace stands otherwise than was told.
func (t *table) differs(d *difference) bool {
	was, known := t.rows[d.namespace]
	switch {
	case d.now == nil:
		return known
	case !known:
		return true
	}
	return !was.standing.same(d.now)
}
