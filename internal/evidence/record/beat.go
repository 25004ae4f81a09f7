package record

import (
	"cmp"
	"slices"
	"time"
)

// Beat says that the replica was there and what it knew. From one to the next, time counts as observed; so it has
// all that a verifier needs to tell that nothing before it was dropped or made up, and that no replica is left out.
type Beat struct {
	// Table and RowsN are of the table after all State records before: replaying them must give the same.
	Table Hash
	RowsN uint64
	// Guards is the digest of the guards in force, as in Decision.
	Guards string
	// Watches are those that the table is computed from, at most 32, sorted.
	Watches []Watch
	// Hooks are Meshvakt's own webhook configurations and bindings of admission policies as they stand in the API
	// server, at most 8, sorted. One that is missing here is not there.
	Hooks []Hook
	// CanaryMillis is how long ago the API server was last seen to ask this installation. Enforcing: that was within
	// a minute. A webhook configuration that looks right proves nothing while the API server does not reach it. A
	// replica that does not know, as any but the leader, says false and 0.
	Enforcing    bool
	CanaryMillis uint64
	// Ready are the replicas that the Service leads to, at most 32; ReadyN counts all. Each of them must have a log.
	Ready  []Replica
	ReadyN uint64
	Counts Counters
	// Unsealed counts records that were not yet in the log when this was written, and LagMillis is the age of the oldest.
	Unsealed  uint64
	LagMillis uint64
	Clock     Clock
	// Made is when what is said of watches and canary was so, by the clock of the process that only goes on. It is not
	// written; see Stored.
	Made time.Duration
}

// Stored is the beat as it is written at a later time of the same clock. A verifier reckons from the time of the record, and
// what was not heard by the time the beat was made was not heard by then either, however long a machine stood still between.
func (b *Beat) Stored(at time.Duration) *Beat {
	by := uint64((max(at-b.Made, 0) + time.Millisecond - 1).Milliseconds()) // rounded to the side that claims less
	stored := *b
	stored.Watches = slices.Clone(b.Watches)
	for i := range stored.Watches {
		stored.Watches[i].QuietMillis += by
	}
	if b.Enforcing || b.CanaryMillis > 0 {
		stored.CanaryMillis += by
	}
	return &stored
}

// Watch is on one kind of object.
type Watch struct {
	GVK             string
	ResourceVersion string // of the last event, or bookmark
	// Epoch counts the lists from anew: between two epochs something may have come and gone unseen.
	Epoch uint64
	// Healthy: it is open, and has said something within the bound that readiness goes by.
	Healthy bool
	// QuietMillis is how long it has said nothing.
	QuietMillis uint64
}

// Hook is one object by which the API server asks.
type Hook struct {
	GVK             string
	Name            string // in clear; it is Meshvakt's own
	UID             string
	ResourceVersion string
	Digest          string
	// Failure is Ignore where it lets pass what nobody answers and is not meant to: entries that fail open by design
	// do not count.
	Failure string
}

// Replica is one pod behind the Service. Boot is empty while it is not known.
type Replica struct {
	Pod  string
	Boot string
}

// Clock is what the kernel says about its own.
type Clock struct {
	MaxErrorMicros uint64
	Unsynchronised bool
}

// Kind is that of a Beat.
func (*Beat) Kind() Kind { return KindBeat }

func (b *Beat) fields(c *codec) {
	c.binary("table", b.Table[:])
	c.number("rowsN", &b.RowsN)
	c.text("guards", &b.Guards, digest())
	list(c, "watches", 32, &b.Watches, func(a, b Watch) int { return cmp.Compare(a.GVK, b.GVK) },
		func(c *codec, w *Watch) { c.object("", w.fields) })
	list(c, "hooks", 8, &b.Hooks, func(a, b Hook) int {
		return cmp.Or(cmp.Compare(a.GVK, b.GVK), cmp.Compare(a.Name, b.Name))
	}, func(c *codec, h *Hook) { c.object("", h.fields) })
	c.flag("enforcing", &b.Enforcing)
	c.number("canaryMs", &b.CanaryMillis)
	list(c, "ready", 32, &b.Ready, func(a, b Replica) int { return cmp.Compare(a.Pod, b.Pod) },
		func(c *codec, r *Replica) {
			c.object("", func(c *codec) {
				c.text("pod", &r.Pod, token(64))
				c.text("boot", &r.Boot, bootID().orEmpty())
			})
		})
	counted(c, "readyN", &b.ReadyN, len(b.Ready))
	c.object("counts", b.Counts.fields)
	c.number("unsealed", &b.Unsealed)
	c.number("lagMs", &b.LagMillis)
	c.object("clock", func(c *codec) {
		c.number("maxErrUs", &b.Clock.MaxErrorMicros)
		c.flag("unsync", &b.Clock.Unsynchronised)
	})
}

func (w *Watch) fields(c *codec) {
	c.text("gvk", &w.GVK, path(ownGVK))
	c.text("rv", &w.ResourceVersion, token(32).orEmpty())
	c.number("epoch", &w.Epoch)
	c.flag("healthy", &w.Healthy)
	c.number("quietMs", &w.QuietMillis)
}

func (h *Hook) fields(c *codec) {
	c.text("gvk", &h.GVK, path(ownGVK))
	c.text("name", &h.Name, name())
	c.text("uid", &h.UID, token(64))
	c.text("rv", &h.ResourceVersion, token(32))
	c.text("digest", &h.Digest, digest())
	c.text("failure", &h.Failure, oneOf("Fail", "Ignore"))
}

// ClockDeclared is what the operator says about the clock, from here on in this start of the process and this shard: for
// kernels that do not know who disciplines theirs. It is no measurement. Beats go on to have what the kernel says.
type ClockDeclared struct {
	// Source is what keeps the clock, in the operator's words.
	Source         string
	MaxErrorMicros uint64
}

// Kind is that of a ClockDeclared.
func (*ClockDeclared) Kind() Kind { return KindClockDeclared }

func (d *ClockDeclared) fields(c *codec) {
	c.text("source", &d.Source, visible(128))
	c.number("maxErrUs", &d.MaxErrorMicros)
	c.require(d.MaxErrorMicros > 0, "maxErrUs", "be at least 1")
}
