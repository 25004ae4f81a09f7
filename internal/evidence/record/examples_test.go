package record

import (
	"bytes"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"
)

const (
	uid      = "9a7ab2d8-1bb9-4f4c-9a3e-0f4c4b1d2e3f"
	firstRun = "0123456789abcdef0123456789abcdef"
	nextRun  = "fedcba9876543210fedcba9876543210"
)

func clock() time.Time { return time.Date(2026, 7, 1, 8, 30, 0, 123456789, time.UTC) }

// randomness is the same in every run, so that salts in testdata are.
func randomness() *rand.ChaCha8 { return rand.NewChaCha8([32]byte{1}) }

func testKey() Key {
	k, err := NewKey(bytes.NewReader([]byte(strings.Repeat("k", 32))))
	if err != nil {
		panic(err)
	}
	return k
}

func testNames() Pseudonymiser { return NewPseudonymiser(testKey()) }

func exampleObject() Object {
	p := testNames()
	return Object{
		GVK: "security.istio.io/v1/PeerAuthentication", Namespace: "payments",
		Name: p.Object("security.istio.io/v1/PeerAuthentication", "payments", "default"),
		UID:  uid, Generation: 7, Digest: p.Digest([]byte(`{"mtls":"STRICT"}`)),
	}
}

func exampleRow(namespace string) Row {
	in := []Input{{exampleObject(), "9912345"}}
	sum, err := HashInputs(in)
	if err != nil {
		panic(err)
	}
	return Row{
		Namespace: namespace, UID: uid, Guards: []string{"default"}, GuardsN: 1, Mode: "STRICT", Least: "PERMISSIVE",
		Unexcused: "STRICT",
		Excused:   []Excuse{{"DISABLE", []string{"7f0f0c5e-3b7e-4c58-8b56-7d1f6cb34c11"}}},
		Weak:      []Weak{{testNames().Object("security.istio.io/v1/PeerAuthentication", "payments", "legacy"), 8080, "PERMISSIVE"}},
		WeakN:     1, Authorization: "some", Inputs: in, InputsN: 1, InputsHash: sum,
	}
}

// examples are one of each kind, in an order in which they may follow each other.
func examples() []Body {
	p := testNames()
	counts := Counters{In: 90211, Written: 211, Admitted: 89990, Unlogged: 10}
	snapshot, err := Snapshots("boot", clock(), []Row{exampleRow("shop"), exampleRow("payments")})
	if err != nil {
		panic(err)
	}
	all := []Body{
		&Genesis{Origin: "evidence.example.org/" + uid + "/meshvakt-0/2026q3", Cluster: uid, Replica: "meshvakt-0", Shard: "2026q3",
			Keys: []string{"evidence.example.org+a1b2c3d4+AQIDBA=="}, Pseudonyms: testKey().ID()},
		&Boot{Why: BootStart, Pod: uid, Node: "node-a.example.org", Version: "v0.2.0", Binary: HashOf([]byte("binary")),
			Policies: HashOf([]byte("policies")), Durability: "spool", Mode: "bestEffort", BeatSeconds: 60, Torn: 17},
		snapshot[0],
		&Beat{Table: snapshot[0].Table, RowsN: 2, Guards: p.Digest([]byte("guards")),
			Watches: []Watch{{"security.istio.io/v1/PeerAuthentication", "9912345", 3, true, 1200}, {"v1/Namespace", "9912346", 1, true, 40}},
			Hooks: []Hook{{"admissionregistration.k8s.io/v1/ValidatingWebhookConfiguration", "meshvakt", uid, "881",
				p.Digest([]byte("hook")), "Fail"}},
			Enforcing: true, CanaryMillis: 8300,
			Ready: []Replica{{"meshvakt-0", firstRun}, {"meshvakt-1", ""}}, ReadyN: 2,
			Counts: counts, Unsealed: 12, LagMillis: 140, Clock: Clock{MaxErrorMicros: 1800}},
		&Decision{Request: uid, Operation: "UPDATE", Object: exampleObject(), By: p.Subject("ola@example.org"),
			Groups: []string{p.Group("platform"), "system:authenticated"}, GroupsN: 2,
			Rules:  []Rule{{"MV103", "deny", 1}, {"MV106", "warn", 2}},
			RulesN: 3, Guards: p.Digest([]byte("guards")), Verdict: "deny",
			Exceptions: []string{uid}, ExceptionsN: 1, Micros: 740},
		&Admitted{Namespace: "payments", OwnerGVK: "apps/v1/ReplicaSet", Owner: p.Object("apps/v1/ReplicaSet", "payments", "api-7d9"),
			Template: p.Digest([]byte("template")), Guards: p.Digest([]byte("guards")), From: clock(), To: clock().Add(time.Minute), N: 12},
		&State{What: "set", After: clock(), Row: exampleRow("payments")},
		&Gap{Of: "decisions", Cause: "full", From: clock(), To: clock().Add(3 * time.Second), Exact: true,
			Counts: []GapCount{{"allow", "v1/Pod", 41}, {"deny", "v1/Namespace", 2}}, Others: 1},
		&Remediation{What: "restored", Object: exampleObject(), Outcome: "done", Tries: 1,
			After: clock(), Found: clock().Add(time.Second), Done: clock().Add(2 * time.Second)},
	}
	all = append(all, moreExamples()...)
	all = append(all, &Stop{Why: "terminated", Counts: counts})
	return append(all, &Close{Why: "period", Next: "evidence.example.org/" + uid + "/meshvakt-0/2026q4"})
}

// chained are the bodies as the lines of one shard, a second and a half apart.
func chained(bodies []Body) []Link {
	random, c := randomness(), Begin(Hash{})
	links := make([]Link, 0, len(bodies))
	for i, b := range bodies {
		at := time.Duration(i) * 1500 * time.Millisecond
		l, next, err := c.Next(b, firstRun, clock().Add(at), at, random)
		if err != nil {
			panic(string(b.Kind()) + ": " + err.Error())
		}
		links, c = append(links, l), next
	}
	return links
}

func many[T any](n int, make func(i int) T) []T {
	list := []T{}
	for i := range n {
		list = append(list, make(i))
	}
	return list
}

// long is a word of n letters that sorts by i.
func long(i, n int) string {
	s := strconv.Itoa(100 + i)
	return s + strings.Repeat("x", n-len(s))
}

func exampleException() Object {
	p := testNames()
	const gvk = "meshvakt.io/v1alpha1/GuardException"
	return Object{GVK: gvk, Namespace: "legacy", Name: p.Object(gvk, "legacy", "vendor"), UID: uid, Generation: 1,
		Digest: p.Digest([]byte("exception"))}
}

// moreExamples are those about exceptions and about the control itself.
func moreExamples() []Body {
	p := testNames()
	until := time.Date(2026, 8, 1, 0, 0, 0, 0, time.UTC)
	ola, kari := p.Subject("ola@example.org"), p.Subject("kari@example.org")
	const origin = "evidence.example.org/" + uid + "/meshvakt-0/2025q2"
	return []Body{
		&ExceptionRequested{Object: exampleException(), By: ola, Rules: []string{"mesh-membership/HostNetwork", "strict-mtls"}, RulesN: 2,
			Selector: p.Digest([]byte("app=vendor")), Approval: "TwoPerson", Reason: "vendor's \"appliance\"\nuntil the upgrade",
			Reference: "CHG-8841", Until: until},
		&ExceptionGranted{Object: exampleException(), By: kari, For: ola, Until: until},
		&ExceptionUsed{Object: exampleException(), How: "admission", From: clock(), To: clock().Add(time.Minute), N: 3},
		&ExceptionRevoked{Object: exampleException(), By: kari, How: "shortened", Until: clock().Add(time.Hour)},
		&ExceptionExpired{Object: exampleException(), Until: clock().Add(time.Hour)},
		&ConfigChanged{GVK: "admissionregistration.k8s.io/v1/ValidatingWebhookConfiguration", Name: "meshvakt", UID: uid,
			ResourceVersion: "882", What: "changed", Before: p.Digest([]byte("hook")), After: p.Digest([]byte("other")), Found: clock(), Weaker: true,
			By: Subject{Kind: Unknown}},
		&KeyCreated{For: "log", VerifierKey: "evidence.example.org+0a1b2c3d+AQUGBw=="},
		&KeyDestroyed{ID: testKey().ID(), Origin: origin, Why: "retention", By: p.Subject("system:serviceaccount:meshvakt-system:evidence")},
		&KeyUsed{ID: testKey().ID(), Origin: origin, By: kari, Reason: "access request 12/2026", N: 4},
		&ClockDeclared{Source: "chrony on the node", MaxErrorMicros: 500_000},
	}
}
