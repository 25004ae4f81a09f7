package verify

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
)

// TestDeclaredClock has a kernel that does not vouch for its clock, and an operator who does.
func TestDeclaredClock(t *testing.T) {
	declare := func(b *book, source string, most time.Duration) {
		b.add(b.at, &record.ClockDeclared{Source: source, MaxErrorMicros: uint64(most.Microseconds())})
	}
	hour := func(b *book, from int) {
		for m := range 60 {
			b.beat(seconds(from + 60*(m+1)))
		}
	}
	for name, c := range map[string]struct {
		unsync   bool
		kernel   time.Duration
		options  Options
		happens  func(b *book)
		verdict  Verdict
		declared uint64
		worst    time.Duration
		codes    []string
	}{
		"nobody says anything":         {true, 16 * time.Second, Options{}, func(b *book) { hour(b, 0) }, NotProvable, 0, 16 * time.Second, nil},
		"the operator does":            {true, 16 * time.Second, Options{}, func(b *book) { declare(b, "chrony on the node", 500*time.Millisecond); hour(b, 0) }, Holds, 60, 16 * time.Second, nil},
		"and is not believed":          {true, 16 * time.Second, Options{RefuseDeclared: true}, func(b *book) { declare(b, "chrony on the node", 500*time.Millisecond); hour(b, 0) }, NotProvable, 0, 16 * time.Second, nil},
		"and says too much":            {true, 16 * time.Second, Options{}, func(b *book) { declare(b, "a sundial", 2*time.Second); hour(b, 0) }, NotProvable, 60, 16 * time.Second, nil},
		"the kernel's word goes first": {false, 1500 * time.Millisecond, Options{}, func(b *book) { declare(b, "chrony on the node", time.Microsecond); hour(b, 0) }, NotProvable, 0, 1500 * time.Millisecond, nil},
		"the clock is set": {true, 16 * time.Second, Options{}, func(b *book) {
			declare(b, "chrony on the node", 500*time.Millisecond)
			b.beat(seconds(60))
			b.wall = 3 * time.Second // less than the kernel's 16 s would let pass
			hour(b, 60)
		}, NotProvable, 2, 16 * time.Second, []string{FindingClock}},
		"the process is held up between the two clocks": {true, 16 * time.Second, Options{}, func(b *book) {
			declare(b, "chrony on the node", 500*time.Millisecond)
			b.beat(seconds(60))
			b.wall = -3 * time.Second
			b.beat(seconds(120))
			b.wall = 0
			hour(b, 120)
		}, Holds, 62, 16 * time.Second, []string{FindingClock}},
		"another start of the process": {true, 16 * time.Second, Options{}, func(b *book) {
			declare(b, "chrony on the node", 500*time.Millisecond)
			b.beat(seconds(60))
			b.add(seconds(61), &record.Stop{Why: "terminated", Counts: b.counts})
			b.start(seconds(62))
			b.snapshot(seconds(62), "boot", seconds(62))
			hour(b, 62)
		}, NotProvable, 1, 16 * time.Second, nil},
	} {
		b := newBook("meshvakt-0", 1)
		b.rows["payments"] = b.row("payments", "STRICT", 0, 1)
		b.clock = record.Clock{MaxErrorMicros: uint64(c.kernel.Microseconds()), Unsynchronised: c.unsync}
		b.start(0)
		b.snapshot(0, "boot", 0)
		b.beat(0)
		c.happens(b)
		c.options.Claims = []Claim{claimOf(t, "mtls=STRICT,namespace=payments", 600, 3000)}
		r := verifyAll(t, c.options, b.sources()...)
		if len(r.Problems) > 0 || !slices.Equal(codes(r), c.codes) {
			t.Errorf("%s: problems %+v, findings %+v", name, r.Problems, r.Findings)
		}
		k := r.Logs[0].Clock
		if r.Claims[0].Verdict != c.verdict || k.Declared != c.declared || k.MaxError != c.worst || c.unsync != (k.Unsynchronised == k.Beats) {
			t.Errorf("%s: the claim is %s, the clock %+v; must be %s, with %d beats by the declaration, %s at worst", name, r.Claims[0].Verdict, k, c.verdict, c.declared, c.worst)
		}
		var text strings.Builder
		if err := r.WriteText(&text); err != nil {
			t.Fatal(err)
		}
		if said := strings.Contains(text.String(), "the operator declares at most"); said != (c.declared > 0) {
			t.Errorf("%s: that the operator has declared it is said: %t\n%s", name, said, text.String())
		}
	}
}

// TestAClockThatIsSetInSmallSteps: a busy replica has a record a second. What its clock is set by from one to the next is as
// little as a process may be held up, and from one beat to the next makes a minute.
func TestAClockThatIsSetInSmallSteps(t *testing.T) {
	for name, c := range map[string]struct {
		step    time.Duration
		back    bool // each step is undone by the next
		verdict Verdict
		codes   []string
	}{
		"by nothing":            {0, false, Holds, nil},
		"forward":               {900 * time.Millisecond, false, NotProvable, []string{FindingClock}},
		"back":                  {-900 * time.Millisecond, false, NotProvable, []string{FindingClock}},
		"by a second in all":    {time.Second / 60, false, Holds, nil},
		"held up now and then":  {900 * time.Millisecond, true, Holds, nil},
		"held up the other way": {-900 * time.Millisecond, true, Holds, nil},
	} {
		b := quiet("meshvakt-0", 2)
		for i := range 59 {
			b.wall += c.step
			if c.back && i%2 == 1 {
				b.wall = 0
			}
			b.counts.In++
			b.counts.Admitted++
			b.add(seconds(121+i), &record.Admitted{Namespace: "payments", OwnerGVK: "v1/Pod", Guards: b.pseudonyms.Digest(nil), From: epoch(), To: epoch(), N: 1})
		}
		if c.back {
			b.wall = 0
		}
		b.beat(seconds(180))
		b.beat(seconds(240))
		r := verifyAll(t, Options{Claims: []Claim{claimOf(t, "mtls=STRICT,namespace=payments", 10, 185)}}, b.sources()...)
		if len(r.Problems) > 0 || r.Claims[0].Verdict != c.verdict || !slices.Equal(codes(r), c.codes) {
			t.Errorf("%s: %s, must be %s with %v; problems %v, findings %+v", name, r.Claims[0].Verdict, c.verdict, c.codes, r.Problems, r.Findings)
		}
	}
}

// TestALogThatWasWrittenInAdvance: whoever has the key of a log can write today what is to be seen tomorrow. But a witness
// says when it has signed it.
func TestALogThatWasWrittenInAdvance(t *testing.T) {
	b := quiet("meshvakt-0", 20)
	s := b.shards[0]
	w := witnessAt(0)
	policy := fmt.Sprintf("log %s\nwitness w %s\nquorum w\n", s.key.public, w.Verifier())
	for name, c := range map[string]struct {
		signed   int // in seconds
		from, to int
		want     Verdict
		codes    []string
	}{
		"signed as it ended":               {1201, 10, 1190, Holds, nil},
		"by a clock that is a little slow": {1145, 10, 1190, Holds, nil},
		"signed before it ended":           {600, 10, 1190, NotProvable, []string{FindingClock}},
		"the time before it was signed":    {600, 10, 600, Holds, []string{FindingClock}},
		"the time behind":                  {600, 720, 1190, NotProvable, []string{FindingClock}},
		"signed before it began":           {-3600, 10, 60, NotProvable, []string{FindingClock}},
	} {
		files := logFiles(s.origin, s.key, s.lines)
		files["checkpoint"] = &fstest.MapFile{Data: cosign(files["checkpoint"].Data, s.key, witnessAt(seconds(c.signed)))}
		o := Options{Trust: must(NewTrust([]byte(policy), nil, false)), Claims: []Claim{claimOf(t, "mtls=STRICT,namespace=payments", c.from, c.to)}}
		r := verifyAll(t, o, sourceOf("witnessed", files))
		if len(r.Problems) > 0 || r.Claims[0].Verdict != c.want || !slices.Equal(codes(r), c.codes) {
			t.Errorf("%s: %s, must be %s with %v; problems %v, findings %+v", name, r.Claims[0].Verdict, c.want, c.codes, r.Problems, r.Findings)
		}
	}
}
