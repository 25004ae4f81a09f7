package verify

import (
	"fmt"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
	"github.com/meshvakt/meshvakt/internal/evidence/volume"
)

// anew is for a log that goes on from none. The first of a replica does, and so does that of a volume which has come in the
// place of one that was lost. What that one had is missing, wherever its log is not, or ends before its process did.
func (l *ledger) anew(g *record.Genesis, before *tail) {
	period, number, err := volume.ParseShard(g.Shard)
	if err != nil {
		return // it was read without an error before
	}
	name, _, replica, _, err := volume.SplitOrigin(g.Origin)
	if err != nil {
		return
	}
	lost := volume.Origin(name, g.Cluster, replica, volume.Shard(period, number-1))
	switch n := len(l.spans); {
	case before != nil && !before.closed && n > 0 && !l.spans[n-1].stopped:
		l.spans[n-1].lost = true
		l.missing(g.Origin, fmt.Sprintf("it goes on from none, for the volume of the log before it was lost: what %s had behind its %d records is missing", before.origin, before.size))
	case number > 1 && (before == nil || before.origin != lost):
		l.missing(g.Origin, "it goes on from none, for the volume of the log before it was lost: "+lost+" is not here")
	}
}
