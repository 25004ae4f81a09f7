package record

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Row is how one guarded namespace stands: what a claim about it is answered from.
type Row struct {
	Namespace string
	UID       string
	// Guards are the names of the guards that select it, at most 8; GuardsN counts all.
	Guards  []string
	GuardsN uint64
	// Mode is what Istio applies where nothing says otherwise, and Least the weakest that it applies to any workload
	// and port. A claim that the namespace takes mutual TLS alone needs Least to be STRICT and Outside to be 0.
	// UNKNOWN is for settings of the mesh that could not be read.
	Mode  string
	Least string
	// Weak are the places where it applies something weaker than Mode, at most 16; WeakN counts all.
	Weak  []Weak
	WeakN uint64
	// Unexcused is the weakest mode that applies to any workload that no exception is for, and Excused what applies to
	// others, at most 8. Whether an exception is in force depends on the time, and is told by its own records.
	Unexcused string
	Excused   []Excuse
	// Outside counts pods that have not ended and are not in the mesh, to which no mode applies.
	Outside uint64
	// Authorization is deny where what no policy allows is refused, some where there are policies, none, or unknown.
	Authorization string
	// Inputs are the objects from which all this was computed, at most 12. InputsN counts all, and InputsHash is
	// over all (see HashInputs), so that nothing can change unseen in a namespace with more than are listed. Where
	// both are the same before and after a hole in the log, what was computed from them was most likely the same in it.
	Inputs     []Input
	InputsN    uint64
	InputsHash Hash
}

// Weak is a policy of a workload by which some port takes more than the namespace does.
type Weak struct {
	// Policy is its pseudonym.
	Policy string
	// Port is 0 for all ports that have none of their own.
	Port uint64
	Mode string
}

// Excuse is the weakest mode that applies to some workloads for all of which there are the same exceptions.
type Excuse struct {
	Mode string
	// Exceptions are the UIDs of GuardExceptions, from 1 to 4. Any one of them that is in force excuses.
	Exceptions []string
}

func (e *Excuse) key() string { return strings.Join(e.Exceptions, " ") }

// Input is an object that was read. ResourceVersion tells two states of it apart that have the same digest.
type Input struct {
	Object          Object
	ResourceVersion string
}

func (in *Input) fields(c *codec) {
	c.object("obj", in.Object.fields)
	c.text("rv", &in.ResourceVersion, token(32))
}

func compareInputs(a, b Input) int {
	return cmp.Or(cmp.Compare(a.Object.GVK, b.Object.GVK), cmp.Compare(a.Object.Namespace, b.Object.Namespace),
		cmp.Compare(a.Object.Name, b.Object.Name), cmp.Compare(a.Object.UID, b.Object.UID))
}

func mode() rule { return oneOf("STRICT", "PERMISSIVE", "DISABLE", "UNKNOWN") }

func (r *Row) fields(c *codec) {
	c.text("ns", &r.Namespace, namespace())
	c.text("uid", &r.UID, token(64))
	list(c, "guards", 8, &r.Guards, cmp.Compare[string], func(c *codec, s *string) { c.text("", s, name()) })
	counted(c, "guardsN", &r.GuardsN, len(r.Guards))
	c.text("mode", &r.Mode, mode())
	c.text("least", &r.Least, mode())
	list(c, "weak", 16, &r.Weak, func(a, b Weak) int {
		return cmp.Or(cmp.Compare(a.Policy, b.Policy), cmp.Compare(a.Port, b.Port))
	}, func(c *codec, w *Weak) {
		c.object("", func(c *codec) {
			c.text("policy", &w.Policy, digest())
			c.numberTo("port", &w.Port, 65535)
			c.text("mode", &w.Mode, mode())
		})
	})
	counted(c, "weakN", &r.WeakN, len(r.Weak))
	c.text("unexcused", &r.Unexcused, mode())
	list(c, "excused", 8, &r.Excused, func(a, b Excuse) int { return cmp.Compare(a.key(), b.key()) }, func(c *codec, e *Excuse) {
		c.object("", func(c *codec) {
			c.text("mode", &e.Mode, mode())
			list(c, "exceptions", 4, &e.Exceptions, cmp.Compare[string], func(c *codec, s *string) { c.text("", s, token(64)) })
			c.require(len(e.Exceptions) > 0, "exceptions", "name at least one")
		})
	})
	c.number("outside", &r.Outside)
	c.text("authz", &r.Authorization, oneOf("deny", "some", "none", "unknown"))
	list(c, "inputs", 12, &r.Inputs, compareInputs, func(c *codec, in *Input) { c.object("", in.fields) })
	counted(c, "inputsN", &r.InputsN, len(r.Inputs))
	c.binary("inputsHash", r.InputsHash[:])
}

// HashInputs is for Row.InputsHash: SHA-256 over the inputs as they would be listed, sorted, each with a newline behind.
func HashInputs(inputs []Input) (Hash, error) {
	h := sha256.New()
	for i := range inputs {
		if i > 0 && compareInputs(inputs[i-1], inputs[i]) >= 0 {
			return Hash{}, fmt.Errorf("hash inputs: number %d is out of order", i)
		}
		c := &codec{}
		c.braces(inputs[i].fields)
		if c.err != nil {
			return Hash{}, fmt.Errorf("hash inputs: %w", c.err)
		}
		h.Write(append(c.buf, '\n'))
	}
	return Hash(h.Sum(nil)), nil
}

// HashRow is the SHA-256 of a row as it stands in a record.
func HashRow(r Row) (Hash, error) {
	line, err := encodeRow(&r)
	if err != nil {
		return Hash{}, fmt.Errorf("hash row: %w", err)
	}
	return HashOf(line), nil
}

func encodeRow(r *Row) ([]byte, error) {
	c := &codec{}
	c.braces(r.fields)
	return c.buf, c.err
}

// HashTable is the hash of a table: SHA-256 over the hashes of its rows, in the order of the namespaces' names.
// Whoever keeps a table needs to keep 32 bytes of each namespace for it.
func HashTable(rows []Hash) Hash {
	h := sha256.New()
	for _, r := range rows {
		h.Write(r[:])
	}
	return Hash(h.Sum(nil))
}

// State is one namespace whose row has changed. It is written before the next Beat, whose Table has it in.
type State struct {
	// What is set, for a row that is new or replaces one; or gone or unguarded for the last row of a namespace
	// that leaves the table because there is none of the name any more or no guard selects it.
	What string
	// After is when the row before was last known to hold. From then until the time of this record, the namespace
	// may have stood either way: a watch tells what has changed, and not when.
	After time.Time
	Row   Row
}

// Kind is that of a State.
func (*State) Kind() Kind { return KindState }

func (s *State) fields(c *codec) {
	c.text("what", &s.What, oneOf("set", "gone", "unguarded"))
	c.instant("after", &s.After)
	c.object("row", s.Row.fields)
}

// Snapshot is a whole table, in as many records as it takes. Between its parts there is no State and no other
// Snapshot; a part that is missing makes all of it void.
type Snapshot struct {
	// Why is boot, shard, relist where a watch had to begin anew, periodic, or changed where so many rows have
	// changed at once, by a policy of the whole mesh, that as many State records would say it with more words, or
	// where a Gap of observation is before it.
	Why string
	// After is as in State, for all rows that differ from the table before; in the first, of all of them.
	After time.Time
	// Part is from 1 to Of.
	Part uint64
	Of   uint64
	// Table and RowsN are of the whole table.
	Table Hash
	RowsN uint64
	// Rows is sorted, and goes on in the next part.
	Rows []Row
}

// Kind is that of a Snapshot.
func (*Snapshot) Kind() Kind { return KindSnapshot }

func (s *Snapshot) fields(c *codec) {
	c.text("why", &s.Why, oneOf("boot", "shard", "relist", "periodic", "changed"))
	c.instant("after", &s.After)
	c.number("part", &s.Part)
	c.number("of", &s.Of)
	c.require(s.Part >= 1 && s.Part <= s.Of, "part", "be from 1 to of")
	c.binary("table", s.Table[:])
	c.number("rowsN", &s.RowsN)
	list(c, "rows", maxRows, &s.Rows, func(a, b Row) int { return cmp.Compare(a.Namespace, b.Namespace) },
		func(c *codec, r *Row) { c.object("", r.fields) })
	c.require(s.RowsN >= uint64(len(s.Rows)), "rowsN", "count at least what is listed")
}

const (
	maxRows = 64
	// snapshotHead is room for all of a Snapshot but its rows.
	snapshotHead = 1 << 10
)

// Snapshots puts a table into as many records as it takes, one for an empty table. The rows may be in any order.
func Snapshots(why string, after time.Time, rows []Row) ([]*Snapshot, error) {
	rows = slices.SortedFunc(slices.Values(rows), func(a, b Row) int { return cmp.Compare(a.Namespace, b.Namespace) })
	var parts []*Snapshot
	hashes := make([]Hash, 0, len(rows))
	room := 0
	for i := range rows {
		if i > 0 && rows[i-1].Namespace == rows[i].Namespace {
			return nil, fmt.Errorf("make a snapshot: two rows for one namespace")
		}
		line, err := encodeRow(&rows[i])
		if err != nil {
			return nil, fmt.Errorf("make a snapshot: %w", err)
		}
		hashes = append(hashes, HashOf(line))
		if last := len(parts) - 1; last < 0 || room < len(line)+1 || len(parts[last].Rows) == maxRows {
			parts = append(parts, &Snapshot{Why: why, After: after})
			room = MaxLine - snapshotHead
		}
		last := parts[len(parts)-1]
		last.Rows = append(last.Rows, rows[i])
		room -= len(line) + 1
	}
	if len(parts) == 0 {
		parts = append(parts, &Snapshot{Why: why, After: after})
	}
	for i, p := range parts {
		p.Part, p.Of, p.Table, p.RowsN = uint64(i)+1, uint64(len(parts)), HashTable(hashes), uint64(len(rows))
	}
	return parts, nil
}
