package verify

import (
	"cmp"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
)

// changeKey is the same in what all replicas tell of one change: no two versions of an object are the same.
type changeKey struct {
	gvk, namespace, name, uid, version string
	deleted                            bool
	log                                string // where the version is not known: each tells of its own
	seq                                int64
}

// change merges what replicas tell of one. Who has put an object back knows that, the others see that it has changed.
func (c *cluster) change(g *record.ConfigChanged, told Change) {
	key := changeKey{gvk: g.GVK, namespace: g.Namespace, name: g.Name, uid: g.UID, version: g.ResourceVersion, deleted: g.What == "deleted"}
	if g.ResourceVersion == "" {
		key.log, key.seq = told.Log, told.Seq
	}
	known, is := c.changes[key]
	if !is {
		c.changes[key] = told
		return
	}
	a, b := known, told
	if cmp.Or(b.At.Compare(a.At), cmp.Compare(b.Log, a.Log), cmp.Compare(b.Seq, a.Seq)) < 0 {
		a, b = b, a
	}
	if b.What == "repaired" {
		a.What = b.What
	}
	a.By, a.Request, a.Reason = cmp.Or(a.By, b.By), cmp.Or(a.Request, b.Request), cmp.Or(a.Reason, b.Reason)
	a.Weaker, a.Seen = a.Weaker || b.Weaker, a.Seen+b.Seen
	c.changes[key] = a
}
