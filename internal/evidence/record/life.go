package record

import (
	"cmp"
	"time"
)

// Genesis begins a shard: the log of one replica for a quarter.
//
// It binds the shard before by the hash of its last record (Prev of the head) and its length, and not by the root of
// its tree: the root is known only once the sealer has come to the end, and the webhook must not wait for that. The
// last record commits to all before it, so nothing is lost.
type Genesis struct {
	// Origin is the name of the log, as in its checkpoints.
	Origin string
	// Cluster is the UID of namespace kube-system.
	Cluster string
	// Replica is the name of the pod, which is the same for all shards of a replica.
	Replica string
	Shard   string
	// PrevOrigin and PrevSize are of the shard before; empty and 0 in the first.
	PrevOrigin string
	PrevSize   uint64
	// Keys are the verifier keys of signed notes that sign this shard, at most 8.
	Keys []string
	// Pseudonyms is the ID of the key of this shard's pseudonyms. Digests made under different keys cannot be
	// compared: around a change of shards, objects are known again by UID and generation.
	Pseudonyms string
}

// Kind is that of a Genesis.
func (*Genesis) Kind() Kind { return KindGenesis }

func (g *Genesis) fields(c *codec) {
	c.text("origin", &g.Origin, path(255))
	c.text("cluster", &g.Cluster, token(64))
	c.text("replica", &g.Replica, name())
	c.text("shard", &g.Shard, token(32))
	c.text("prevOrigin", &g.PrevOrigin, path(255).orEmpty())
	c.number("prevSize", &g.PrevSize)
	c.require((g.PrevOrigin == "") == (g.PrevSize == 0), "prevSize", "be 0 if, and only if, there is no shard before")
	list(c, "keys", 8, &g.Keys, cmp.Compare[string], func(c *codec, s *string) { c.text("", s, visible(512)) })
	c.text("pseudonyms", &g.Pseudonyms, keyID())
}

// SimulatedTime is in the version of a build that takes the time from a test.
const SimulatedTime = "SIMULATED TIME"

// Boot says what is running. It is the first record of each start of the process and stands behind each Genesis, so
// that a shard can be read without the one before. What it says may change from one start to the next within a
// shard, and so cannot stand in Genesis.
type Boot struct {
	// Why is start, or shard where the process goes on.
	Why  string
	Pod  string // its UID
	Node string
	// Version is what the binary says of itself, Binary the hash of its file.
	Version string
	Binary  Hash
	// Policies is the hash of the policies with their rules: what decided.
	Policies Hash
	// Durability is spool where a record is on disk before the answer, or memory, after which nothing is proven
	// beyond what has been sealed.
	Durability string
	// Mode is required where nothing is admitted without a record, or bestEffort where a compliant workload may be,
	// and is counted in a Gap.
	Mode string
	// BeatSeconds is the time from one Beat to the next. Without it a verifier could not tell a missing one.
	BeatSeconds uint64
	// Torn is how many bytes of an unfinished record, which nobody had been told of, were cut off the end of the spool.
	Torn uint64
}

// Kind is that of a Boot.
func (*Boot) Kind() Kind { return KindBoot }

// The reasons for a Boot.
const (
	BootStart = "start"
	BootShard = "shard"
)

func (b *Boot) fields(c *codec) {
	c.text("why", &b.Why, oneOf(BootStart, BootShard))
	c.text("pod", &b.Pod, token(64))
	c.text("node", &b.Node, name())
	c.text("version", &b.Version, visible(128))
	c.binary("binary", b.Binary[:])
	c.binary("policies", b.Policies[:])
	c.text("durability", &b.Durability, oneOf("spool", "memory"))
	c.text("mode", &b.Mode, oneOf("required", "bestEffort"))
	c.number("beatSeconds", &b.BeatSeconds)
	c.require(b.BeatSeconds > 0, "beatSeconds", "be at least 1")
	c.number("torn", &b.Torn)
}

// Counters count since the start of the process, and never go back within it. In is Written, Admitted and Unlogged
// together, plus what is under way, so nothing can be left out unnoticed between two beats.
type Counters struct {
	In       uint64 // requests that were to be answered, dry runs excepted
	Written  uint64 // of these with a Decision
	Admitted uint64 // of these counted in an Admitted
	Unlogged uint64 // of these without a record, to be told in a Gap
}

func (n *Counters) fields(c *codec) {
	c.number("in", &n.In)
	c.number("written", &n.Written)
	c.number("admitted", &n.Admitted)
	c.number("unlogged", &n.Unlogged)
}

// Stop is the last record of a process that has ended in order. A Boot that is not behind a Stop tells of a crash:
// what Admitted records had not been written by then is lost from the count, never from the decisions.
type Stop struct {
	// Why is terminated, or failed where the process gave up by itself.
	Why    string
	Counts Counters
}

// Kind is that of a Stop.
func (*Stop) Kind() Kind { return KindStop }

func (s *Stop) fields(c *codec) {
	c.text("why", &s.Why, oneOf("terminated", "failed"))
	c.object("counts", s.Counts.fields)
}

// Gap is a time of which the log does not tell everything. It is the first record after it.
type Gap struct {
	// Of is decisions, where answers were given without a record; observation, where the state was not seen; or
	// clock, where times are not to be relied on.
	Of    string
	Cause string
	// To lies before From where the clock was set back in between.
	From time.Time
	To   time.Time
	// Exact: the counts are complete. Otherwise there may have been more.
	Exact bool
	// Counts has at most 32 entries; Others counts what had no room.
	Counts []GapCount
	Others uint64
}

// GapCount counts requests that were answered without a record.
type GapCount struct {
	Verdict string
	GVK     string
	N       uint64
}

// Kind is that of a Gap.
func (*Gap) Kind() Kind { return KindGap }

func (g *Gap) fields(c *codec) {
	c.text("of", &g.Of, oneOf("decisions", "observation", "clock"))
	c.text("cause", &g.Cause, oneOf("full", "readOnly", "io", "slow", "notOpen", "crash", "watch", "clock"))
	c.instant("from", &g.From)
	c.instant("to", &g.To)
	c.flag("exact", &g.Exact)
	list(c, "counts", 32, &g.Counts, func(a, b GapCount) int {
		return cmp.Or(cmp.Compare(a.Verdict, b.Verdict), cmp.Compare(a.GVK, b.GVK))
	}, func(c *codec, n *GapCount) {
		c.object("", func(c *codec) {
			c.text("verdict", &n.Verdict, verdict())
			c.text("gvk", &n.GVK, path(maxGVK))
			c.number("n", &n.N)
		})
	})
	c.number("others", &g.Others)
}

// Close is the last record of a shard. A shard without it was cut off, or goes on.
//
// It has no counts but the sequence number in its head. Whoever writes it may have been started after what came
// before was sealed and removed from its disk, and could not stand by any other.
type Close struct {
	// Why is period where its time was over, size where it had grown too large, moved where cluster, replica or the name
	// of the evidence is another now, key where that of pseudonyms is, or end where evidence is no longer kept.
	Why string
	// Next is the origin of the shard that follows; empty at the end.
	Next string
}

// Kind is that of a Close.
func (*Close) Kind() Kind { return KindClose }

func (cl *Close) fields(c *codec) {
	c.text("why", &cl.Why, oneOf("period", "size", "moved", "key", "end"))
	c.text("next", &cl.Next, path(255).orEmpty())
	c.require((cl.Next == "") == (cl.Why == "end"), "next", "be empty at the end, and then alone")
}
