package verify

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
)

func codes(r *Result) []string {
	var list []string
	for _, f := range r.Findings {
		list = append(list, f.Code)
	}
	slices.Sort(list)
	return slices.Compact(list)
}

func TestFindings(t *testing.T) {
	exception := func(b *book) record.Object {
		return record.Object{GVK: "meshvakt.io/v1alpha1/GuardException", Namespace: "payments", Name: b.pseudonyms.Object("e", "payments", "e"), UID: "e", Generation: 1}
	}
	until := epoch().Add(time.Hour)
	for name, c := range map[string]struct {
		happens func(b *book)
		want    []string
	}{
		"nothing": {func(*book) {}, nil},
		"a change that a request explains": {func(b *book) {
			b.decide(seconds(1), "payments", 2)
			b.state(seconds(2), seconds(1), b.row("payments", "STRICT", 0, 2))
		}, nil},
		"a change past the webhook": {func(b *book) { b.state(seconds(2), seconds(1), b.row("payments", "STRICT", 0, 2)) }, []string{FindingUnexplained}},
		"a change that another request was for": {func(b *book) {
			b.decide(seconds(1), "payments", 3)
			b.state(seconds(2), seconds(1), b.row("payments", "STRICT", 0, 2))
		}, []string{FindingUnexplained}},
		"a change that Meshvakt has made to put it right": {func(b *book) {
			b.add(seconds(2), &record.Remediation{What: "restored", Object: b.policy("payments", 2), Outcome: "done", Tries: 1, After: epoch(), Found: epoch(), Done: epoch().Add(seconds(1))})
			b.state(seconds(3), seconds(1), b.row("payments", "STRICT", 0, 2))
		}, nil},
		"a change that Meshvakt could not make": {func(b *book) {
			b.add(seconds(2), &record.Remediation{What: "restored", Object: b.policy("payments", 2), Outcome: "failed", Tries: 1, After: epoch(), Found: epoch(), Done: epoch().Add(seconds(1))})
			b.state(seconds(3), seconds(1), b.row("payments", "STRICT", 0, 2))
		}, []string{FindingUnexplained}},
		"the same change again, past the webhook": {func(b *book) {
			b.decide(seconds(1), "payments", 2)
			b.state(seconds(2), seconds(1), b.row("payments", "STRICT", 0, 2))
			b.decide(seconds(10), "payments", 1)
			b.state(seconds(11), seconds(10), b.row("payments", "STRICT", 0, 1))
			for m := range 10 {
				b.beat(seconds(60*m + 12))
			}
			b.state(seconds(602), seconds(601), b.row("payments", "STRICT", 0, 2))
		}, []string{FindingUnexplained}},
		"a policy that is gone": {func(b *book) {
			row := b.row("payments", "STRICT", 0, 1)
			row.Inputs, row.InputsN, row.InputsHash = nil, 0, must(record.HashInputs(nil))
			b.state(seconds(2), seconds(1), row)
		}, []string{FindingUnexplained}},
		"a namespace that is guarded no longer past the webhook": {func(b *book) {
			b.leave(seconds(2), seconds(1), "unguarded", "payments")
		}, []string{FindingUnexplained}},
		"a namespace that a request takes from its guard": {func(b *book) {
			b.allow(seconds(1), "UPDATE", record.Object{GVK: "v1/Namespace", Namespace: "payments", Name: b.pseudonyms.Object("v1/Namespace", "payments", "payments"), UID: "uid-payments"})
			b.leave(seconds(2), seconds(1), "unguarded", "payments")
		}, nil},
		"a request for another namespace": {func(b *book) {
			b.allow(seconds(1), "UPDATE", record.Object{GVK: "v1/Namespace", Namespace: "journal", Name: b.pseudonyms.Object("v1/Namespace", "journal", "journal"), UID: "uid-journal"})
			b.leave(seconds(2), seconds(1), "unguarded", "payments")
		}, []string{FindingUnexplained}},
		"a guard that lets go of a namespace": {func(b *book) {
			b.allow(seconds(1), "UPDATE", record.Object{GVK: "meshvakt.io/v1alpha1/MeshGuard", Name: b.pseudonyms.Object("g", "", "default"), UID: "g"})
			b.leave(seconds(2), seconds(1), "unguarded", "payments")
		}, nil},
		"a guard that was changed long before": {func(b *book) {
			b.allow(seconds(1), "UPDATE", record.Object{GVK: "meshvakt.io/v1alpha1/MeshGuard", Name: b.pseudonyms.Object("g", "", "default"), UID: "g"})
			for m := range 6 {
				b.beat(seconds(60*m + 3))
			}
			b.leave(seconds(313), seconds(312), "unguarded", "payments")
		}, []string{FindingUnexplained}},
		"a policy that goes with its namespace": {func(b *book) {
			row := b.row("payments", "PERMISSIVE", 0, 1)
			row.Inputs, row.InputsN, row.InputsHash = nil, 0, must(record.HashInputs(nil))
			b.state(seconds(2), seconds(1), row)
			b.leave(seconds(40), seconds(39), "gone", "payments")
		}, nil},
		"a policy that goes before its namespace is guarded no more": {func(b *book) {
			row := b.row("payments", "PERMISSIVE", 0, 1)
			row.Inputs, row.InputsN, row.InputsHash = nil, 0, must(record.HashInputs(nil))
			b.state(seconds(2), seconds(1), row)
			b.allow(seconds(39), "UPDATE", record.Object{GVK: "v1/Namespace", Namespace: "payments", Name: b.pseudonyms.Object("v1/Namespace", "payments", "payments"), UID: "uid-payments"})
			b.leave(seconds(40), seconds(39), "unguarded", "payments")
		}, []string{FindingUnexplained}},
		"a policy that goes long before its namespace": {func(b *book) {
			row := b.row("payments", "PERMISSIVE", 0, 1)
			row.Inputs, row.InputsN, row.InputsHash = nil, 0, must(record.HashInputs(nil))
			b.state(seconds(2), seconds(1), row)
			for m := range 15 {
				b.beat(seconds(60*m + 3))
			}
			b.leave(seconds(903), seconds(902), "gone", "payments")
		}, []string{FindingUnexplained}},
		"a policy that changes before its namespace goes": {func(b *book) {
			b.state(seconds(2), seconds(1), b.row("payments", "STRICT", 0, 2))
			b.leave(seconds(40), seconds(39), "gone", "payments")
		}, []string{FindingUnexplained}},
		"who asks approves": {func(b *book) {
			who := b.pseudonyms.Subject("ola")
			b.add(seconds(1), &record.ExceptionRequested{Object: exception(b), By: who, Selector: b.pseudonyms.Digest(nil), Approval: "TwoPerson", Reason: "r", Reference: "t", Until: until})
			b.add(seconds(2), &record.ExceptionGranted{Object: exception(b), By: who, For: who, Until: until})
		}, []string{FindingSelfApproved}},
		"nobody has asked": {func(b *book) {
			b.add(seconds(2), &record.ExceptionGranted{Object: exception(b), By: b.pseudonyms.Subject("kari"), For: b.pseudonyms.Subject("ola"), Until: until})
		}, []string{FindingNoPrevious}},
		"more was counted than is here": {func(b *book) { b.counts.In, b.counts.Written = 1, 1 }, []string{FindingCounters}},
		"less was counted than is here": {func(b *book) {
			b.decide(seconds(1), "payments", 1)
			b.stop(seconds(2), record.Counters{})
		}, []string{FindingCounters}},
		"what was not stored in time, and was all the same": {func(b *book) {
			b.decide(seconds(1), "payments", 1)
			b.add(seconds(2), &record.Gap{Of: "decisions", Cause: "slow", From: epoch(), To: epoch().Add(seconds(1)), Counts: []record.GapCount{{Verdict: "allow", GVK: paGVK, N: 1}}})
			b.stop(seconds(3), record.Counters{In: 1, Unlogged: 1})
		}, nil},
		"more than that": {func(b *book) {
			b.decide(seconds(1), "payments", 1)
			b.decide(seconds(1), "payments", 1)
			b.add(seconds(2), &record.Gap{Of: "decisions", Cause: "slow", From: epoch(), To: epoch().Add(seconds(1)), Counts: []record.GapCount{{Verdict: "allow", GVK: paGVK, N: 1}}})
			b.stop(seconds(3), record.Counters{In: 1, Unlogged: 1})
		}, []string{FindingCounters}},
		"exactly what was not stored": {func(b *book) {
			b.decide(seconds(1), "payments", 1)
			b.add(seconds(2), &record.Gap{Of: "decisions", Cause: "full", From: epoch(), To: epoch().Add(seconds(1)), Exact: true, Counts: []record.GapCount{{Verdict: "allow", GVK: paGVK, N: 1}}})
			b.stop(seconds(3), record.Counters{In: 1, Unlogged: 1})
		}, []string{FindingCounters}},
		"nobody asks the webhook": {func(b *book) {
			b.beat(seconds(3), func(x *record.Beat) { x.Enforcing, x.CanaryMillis = false, 61_000 })
		}, []string{FindingNotAsked}},
		"a replica that does not lead knows nothing of that": {func(b *book) {
			b.beat(seconds(3), func(x *record.Beat) { x.Enforcing = false })
		}, nil},
		"nobody knows whether anybody asks": {func(b *book) {
			for m := range 10 {
				b.beat(seconds(60*m), func(x *record.Beat) { x.Enforcing = false })
			}
		}, []string{FindingNotAsked}},
		"the webhook configuration is gone": {func(b *book) {
			b.beat(seconds(3), func(x *record.Beat) { x.Hooks = nil })
		}, []string{FindingHook}},
		"the webhook configuration is another": {func(b *book) {
			b.beat(seconds(3), func(x *record.Beat) {
				x.Hooks[0].Digest, x.Hooks[0].ResourceVersion = b.pseudonyms.Digest([]byte("other")), "2"
			})
		}, []string{FindingHook}},
		"the control is weakened": {func(b *book) {
			b.add(seconds(3), &record.ConfigChanged{GVK: "meshvakt.io/v1alpha1/MeshGuard", Name: "default", UID: "g", ResourceVersion: "3", What: "changed", Found: epoch(), Weaker: true, By: record.Subject{Kind: record.Unknown}})
		}, []string{FindingWeakened}},
		"the clock is set": {func(b *book) { b.wall = 30 * time.Second }, []string{FindingClock}},
		"times that are made up": {func(b *book) {
			b.boot = must(record.NewBoot(b.random))
			boot := b.bootRecord(record.BootStart)
			boot.Version = "meshvakt " + record.SimulatedTime
			b.add(seconds(1), boot)
			b.snapshot(seconds(2), "boot", seconds(2))
		}, []string{FindingClock}},
		"break-glass": {func(b *book) {
			b.counts.In++
			b.counts.Written++
			b.add(seconds(3), &record.Decision{Request: "r", Operation: "UPDATE", Object: b.policy("payments", 9), By: b.pseudonyms.Subject("ola"), Guards: b.pseudonyms.Digest(nil), Verdict: "allow", BreakGlass: true})
		}, []string{FindingBreakGlass}},
		"a replica that has no log": {func(b *book) { b.ready = []record.Replica{{Pod: "meshvakt-7"}} }, []string{FindingMissingLog}},
	} {
		b := quiet("meshvakt-0", 0)
		c.happens(b)
		b.beat(max(seconds(60), b.at+seconds(1)))
		r := verifyAll(t, Options{}, b.sources()...)
		got := codes(r)
		if len(r.Problems) > 0 || !slices.Equal(got, c.want) {
			t.Errorf("%s: findings %v, problems %v; must be %v", name, r.Findings, r.Problems, c.want)
		}
	}
}

func TestAClaimAcrossAHole(t *testing.T) {
	for name, c := range map[string]struct {
		version uint64
		want    Verdict
	}{"nothing changed": {1, Holds}, "a policy changed": {2, NotProvable}} {
		b := quiet("meshvakt-0", 2)
		b.rows["payments"] = b.row("payments", "STRICT", 0, c.version)
		b.start(seconds(300))
		b.snapshot(seconds(300), "boot", seconds(300))
		for m := range 3 {
			b.beat(seconds(300 + 60*m))
		}
		claim := claimOf(t, "mtls=STRICT,namespace=payments", 10, 400)
		claim.AcceptInferred = true
		strict := claimOf(t, "mtls=STRICT,namespace=payments", 10, 400)
		r := verifyAll(t, Options{Claims: []Claim{claim, strict}}, b.sources()...)
		if r.Claims[0].Verdict != c.want || r.Claims[1].Verdict != NotProvable || r.ExitCode() != 2 {
			t.Errorf("%s: %s with --accept-inferred, %s without; must be %s", name, r.Claims[0].Verdict, r.Claims[1].Verdict, c.want)
		}
	}
}

func TestClaims(t *testing.T) {
	b := newBook("meshvakt-0", 1)
	b.rows["payments"] = b.row("payments", "STRICT", 0, 1)
	b.rows["legacy"] = b.row("legacy", "PERMISSIVE", 0, 1)
	b.start(0)
	b.snapshot(0, "boot", 0)
	for m := range 5 {
		b.beat(seconds(60 * m))
	}
	for text, want := range map[string]Verdict{
		"mtls=STRICT,namespace=payments":                              Holds,
		"mtls=STRICT,namespace=legacy":                                IsViolated,
		"mtls=STRICT,namespace=*":                                     IsViolated,
		"mtls=STRICT,namespace=payments,namespace=legacy":             IsViolated,
		"mtls=STRICT,namespace=elsewhere":                             NotProvable,
		"mtls=STRICT,namespace=payments,cluster=" + testCluster:       Holds,
		"mtls=STRICT,namespace=payments,cluster=another":              NotProvable,
		"mtls=STRICT,namespace=payments,namespace=elsewhere,cluster=": "",
	} {
		c, err := ParseClaim(text, epoch(), epoch().Add(seconds(240)), false)
		if (err != nil) != (want == "") {
			t.Errorf("%s: %v", text, err)
		}
		if err != nil {
			continue
		}
		if r := verifyAll(t, Options{Claims: []Claim{c}}, b.sources()...); r.Claims[0].Verdict != want {
			t.Errorf("%s: %s; must be %s", text, r.Claims[0].Verdict, want)
		}
	}
	c := claimOf(t, "mtls=STRICT,namespace=payments", 0, 240)
	if r := verifyAll(t, Options{Trust: must(NewTrust(nil, nil, false)), Claims: []Claim{c}}, b.sources()...); r.Claims[0].Verdict != NotProvable || !strings.Contains(r.Claims[0].Why, "--trust-log-key") {
		t.Errorf("by the log's own key: %+v; must not be provable without --trust-log-key", r.Claims[0])
	}
	c = claimOf(t, "mtls=STRICT,namespace=payments", 0, 241)
	if r := verifyAll(t, Options{Claims: []Claim{c}}, b.sources()...); r.Claims[0].Verdict != NotProvable {
		t.Errorf("a second longer than the log: %s; must not be provable", r.Claims[0].Verdict)
	}
}

// One call, two clusters, each with a namespace of the same name.
func TestClaimsAboutManyClusters(t *testing.T) {
	const other = "11111111-1bb9-4f4c-9a3e-0f4c4b1d2e3f"
	var sources []*Source
	for cluster, least := range map[string]string{testCluster: "STRICT", other: "PERMISSIVE"} {
		b := newBook("meshvakt-0", 1)
		b.cluster = cluster
		b.rows["payments"] = b.row("payments", least, 0, 1)
		b.start(0)
		b.snapshot(0, "boot", 0)
		for m := range 5 {
			b.beat(seconds(60 * m))
		}
		sources = append(sources, b.sources()...)
	}
	claims := []Claim{
		claimOf(t, "mtls=STRICT,namespace=payments", 0, 240),
		claimOf(t, "mtls=STRICT,namespace=payments,cluster="+testCluster, 0, 240),
		claimOf(t, "mtls=STRICT,namespace=payments,cluster="+other, 0, 240),
	}
	r := verifyAll(t, Options{Claims: claims}, sources...)
	var text bytes.Buffer
	if err := r.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"  2 clusters: 1 violated, 1 holds\n", "  cluster " + other + ": VIOLATED, 1 of 1 namespace\n    namespace payments", "  cluster " + testCluster + ": HOLDS, 1 namespace\nclaim"} {
		if !strings.Contains(text.String(), line) {
			t.Errorf("the text lacks %q:\n%s", line, text.String())
		}
	}
	for i, want := range []Verdict{IsViolated, Holds, IsViolated} {
		if r.Claims[i].Verdict != want || len(r.Claims[i].Namespaces) != []int{2, 1, 1}[i] {
			t.Errorf("%s: %+v; must be %s", claims[i].Text, r.Claims[i], want)
		}
	}
}

// A cluster whose logs are named by who verifies, and not given, is not left out of the answer.
func TestAClusterThatIsMissing(t *testing.T) {
	b := quiet("meshvakt-0", 4)
	origin := func(cluster, replica, shard string) string {
		return strings.Join([]string{testName, cluster, replica, shard}, "/")
	}
	var own []string
	for _, s := range b.shards {
		own = append(own, s.key.public)
	}
	for name, c := range map[string]struct {
		origin   string
		claim    string
		verdict  Verdict
		findings int
	}{
		"of this quarter":           {origin("c", "meshvakt-0", "2026q4"), "namespace=payments", NotProvable, 1},
		"all guarded namespaces":    {origin("c", "meshvakt-0", "2026q4"), "namespace=*", NotProvable, 1},
		"the claim is of another":   {origin("c", "meshvakt-0", "2026q4"), "namespace=payments,cluster=" + testCluster, Holds, 1},
		"of another quarter":        {origin("c", "meshvakt-0", "2026q1"), "namespace=payments", Holds, 0},
		"a replica of this cluster": {origin(testCluster, "meshvakt-1", "2026q4"), "namespace=payments", Holds, 1},
		"no log of evidence":        {"sum.golang.org", "namespace=payments", Holds, 0},
	} {
		t.Run(name, func(t *testing.T) {
			trust := must(NewTrust(nil, append([]string{newSigner(c.origin, 9).public}, own...), false))
			r := verifyAll(t, Options{Trust: trust, Claims: []Claim{claimOf(t, "mtls=STRICT,"+c.claim, 0, 240)}}, b.sources()...)
			a := r.Claims[0]
			if a.Verdict != c.verdict || len(r.Findings) != c.findings {
				t.Errorf("%+v, findings %+v; must be %s with %d findings", a, r.Findings, c.verdict, c.findings)
			}
			if c.verdict != Holds && !strings.Contains(a.Why, "logs of cluster c, and none of them is given") {
				t.Errorf("why: %q", a.Why)
			}
			if c.findings == 1 && (r.Findings[0].Code != FindingMissingLog || r.Findings[0].Log != c.origin) {
				t.Errorf("finding %+v", r.Findings[0])
			}
		})
	}
}

// The same logs give the same bytes, however they are given.
func TestTheResultDoesNotDependOnTheOrderOfTheLogs(t *testing.T) {
	books := pair()
	o := pairOptions(t, books)
	var want []byte
	for i := range 4 {
		sources := allSources(books)
		sources[0], sources[i] = sources[i], sources[0]
		got := must(json.Marshal(verifyAll(t, o, sources...)))
		if want == nil {
			want = got
		}
		if !bytes.Equal(got, want) {
			t.Errorf("another result with log %d first", i)
		}
	}
	if bytes.Contains(want, []byte(":null")) {
		t.Errorf("a list is null: %s", want)
	}
}

func TestTextOfPeopleMovesNoCursor(t *testing.T) {
	for in, want := range map[string]string{
		"payments":           "payments",
		"":                   `""`,
		"a b":                `"a b"`,
		"\x1b[2Jx":           `"\x1b[2Jx"`,
		"a\u202eb":           `"a\u202eb"`,
		"p\u00e5 gr\u00f8nn": "\"p\u00e5 gr\u00f8nn\"",
		"\u009bx":            `"\u009bx"`,
	} {
		if got := Safe(in); got != want {
			t.Errorf("%q is shown as %s; must be %s", in, got, want)
		}
	}
}

// A change is one, however many replicas tell of it, and whenever; the same change made again is another.
func TestUnexplainedChangesAreCounted(t *testing.T) {
	for name, c := range map[string]struct {
		asked bool // about the first change
		again bool // it is put back, by a request, and made once more past the webhook
		late  bool // the second replica is down meanwhile, and finds it when it starts
		want  int
	}{
		"past the webhook":            {want: 1},
		"past the webhook, twice":     {again: true, want: 2},
		"asked, and then not":         {asked: true, again: true, want: 1},
		"asked":                       {asked: true},
		"past it, found late as well": {late: true, want: 1},
		"asked, found late as well":   {asked: true, late: true},
	} {
		a, b := quiet("meshvakt-0", 2), quiet("meshvakt-1", 2)
		change := func(at, version int, asked bool) {
			if asked {
				a.decide(seconds(at), "payments", uint64(version))
			}
			for i, w := range []*book{a, b} {
				row := w.row("payments", "STRICT", 0, uint64(version))
				if w == b && c.late {
					w.rows["payments"] = row
					continue
				}
				w.state(seconds(at+1+i), seconds(at), row)
			}
		}
		change(130, 2, c.asked)
		if c.again {
			change(700, 1, true)
			change(1300, 2, false)
		}
		a.beat(seconds(2000))
		if c.late {
			b.start(seconds(2000))
			b.snapshot(seconds(2000), "boot", seconds(2000))
		}
		b.beat(seconds(2001))
		r := verifyAll(t, Options{}, append(a.sources(), b.sources()...)...)
		n := 0
		for _, f := range r.Findings {
			if f.Code == FindingUnexplained {
				n++
			}
		}
		if len(r.Problems) > 0 || n != c.want {
			t.Errorf("%s: %d unexplained changes, must be %d: %+v %v", name, n, c.want, r.Findings, r.Problems)
		}
	}
}
