package verify

import (
	"cmp"
	"crypto/sha256"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
)

// standing is how a namespace stands by one row, as far as a claim about it goes. The zero one
// is of a namespace that is not guarded.
type standing struct {
	guarded bool
	least   string
	outside bool
	// unexcused is the weakest mode that no exception is for. Excused has the modes that some are for, as in
	// excusesOf.
	unexcused, excused string
	inputs             inputs
}

// inputs tell whether a row was computed from the same objects as another.
type inputs struct {
	hash record.Hash
	n    uint64
	// key is what the digests in hash are made with. Those of different keys cannot be compared.
	key string
	// plain is over what needs no key, and is there only if all inputs are listed.
	plain    record.Hash
	complete bool
}

func (i inputs) same(other inputs) bool {
	if i.n != other.n {
		return false
	}
	if i.key == other.key {
		return i.hash == other.hash
	}
	return i.complete && other.complete && i.plain == other.plain
}

func standingOf(r *record.Row, key string) standing {
	s := standing{guarded: true, least: r.Least, outside: r.Outside > 0, unexcused: r.Unexcused, excused: excusesText(r.Excused),
		inputs: inputs{hash: r.InputsHash, n: r.InputsN, key: key, complete: r.InputsN == uint64(len(r.Inputs))}}
	if weaker(r.Mode, r.Least) {
		s.least = r.Mode
	}
	list := slices.SortedFunc(slices.Values(r.Inputs), func(a, b record.Input) int { return cmp.Compare(a.Object.UID, b.Object.UID) })
	h := sha256.New()
	for _, in := range list {
		h.Write([]byte(in.Object.GVK + "\x00" + in.Object.Namespace + "\x00" + in.Object.UID + "\x00" + in.ResourceVersion + "\n"))
	}
	s.inputs.plain = record.Hash(h.Sum(nil))
	return s
}

// excusesText is as a standing keeps it: standings must be comparable.
func excusesText(list []record.Excuse) string {
	var b strings.Builder
	for _, e := range list {
		b.WriteString(e.Mode + " " + strings.Join(e.Exceptions, " ") + "\n")
	}
	return b.String()
}

// uncovered is the weakest mode that no exception in force is for, and which are for the others. Covers says whether
// one is in force.
func (s *standing) uncovered(covers func(uid string) bool) (mode string, uids []string) {
	mode = s.unexcused
	for line := range strings.Lines(s.excused) {
		words := strings.Fields(line)
		var in []string
		for _, uid := range words[1:] {
			if covers(uid) {
				in = append(in, uid)
			}
		}
		if len(in) == 0 && weaker(words[0], mode) {
			mode = words[0]
		}
		uids = append(uids, in...)
	}
	return mode, uids
}

// strength orders modes. What is not known is worst, for it may be anything.
func strength(mode string) int {
	return slices.Index([]string{"UNKNOWN", "DISABLE", "PERMISSIVE", "STRICT"}, mode)
}

func weaker(a, b string) bool { return strength(a) < strength(b) }

// looks are the parts of a standing that are told.
func (s standing) looks() standing {
	s.inputs = inputs{}
	return s
}

// An instant is in nanoseconds since 1970. What a record says beyond the years that this can
// count is held for the end of them.
func instant(t time.Time) int64 {
	if t.Year() > 2261 {
		return math.MaxInt64 / 2
	}
	return t.UnixNano()
}

func timeOf(at int64) time.Time { return time.Unix(0, at).UTC() }

// span is from its first instant to before its last.
type span struct{ from, to int64 }

func (s span) has(at int64) bool { return s.from <= at && at < s.to }

// union sorts spans and joins those that touch.
func union(list []span) []span {
	slices.SortFunc(list, func(a, b span) int { return cmp.Or(cmp.Compare(a.from, b.from), cmp.Compare(a.to, b.to)) })
	var joined []span
	for _, s := range list {
		if s.from >= s.to {
			continue
		}
		if n := len(joined); n > 0 && s.from <= joined[n-1].to {
			joined[n-1].to = max(joined[n-1].to, s.to)
			continue
		}
		joined = append(joined, s)
	}
	return joined
}

// without takes cuts, which are a union, out of s.
func (s span) without(cuts []span) []span {
	var left []span
	for _, c := range cuts {
		if c.to <= s.from || c.from >= s.to {
			continue
		}
		if c.from > s.from {
			left = append(left, span{s.from, c.from})
		}
		s.from = c.to
	}
	if s.from < s.to {
		left = append(left, s)
	}
	return left
}
