package verify

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
)

// exceptionIn is an exception of payments that ola has asked for and kari has granted.
func (b *book) exceptionIn(at time.Duration, until time.Time) record.Object {
	o := record.Object{GVK: "meshvakt.io/v1alpha1/GuardException", Namespace: "payments", Name: b.pseudonyms.Object("e", "payments", "e"), UID: "e", Generation: 1}
	b.add(at, &record.ExceptionRequested{Object: o, By: b.pseudonyms.Subject("ola"), Selector: b.pseudonyms.Digest(nil), Approval: "TwoPerson", Reason: "r", Reference: "CHG-1", Until: until})
	b.add(at, &record.ExceptionGranted{Object: o, By: b.pseudonyms.Subject("kari"), For: b.pseudonyms.Subject("ola"), Until: until})
	return o
}

// use is an allowed request for an object that rests on the exception.
func (b *book) use(at time.Duration, who, object string) {
	b.counts.In++
	b.counts.Written++
	b.add(at, &record.Decision{Request: "r", Operation: "CREATE", By: b.pseudonyms.Subject(who), Guards: b.pseudonyms.Digest(nil), Verdict: "allow", Exceptions: []string{"e"}, ExceptionsN: 1,
		Object: record.Object{GVK: "v1/Pod", Namespace: "payments", UID: object, Digest: b.pseudonyms.Digest([]byte("pod"))}})
}

func TestUsesOfExceptions(t *testing.T) {
	until := epoch().Add(time.Hour)
	const sa = "system:serviceaccount:kube-system:replicaset-controller"
	a, other := quiet("meshvakt-0", 0), quiet("meshvakt-1", 0)
	object := a.exceptionIn(seconds(1), until)
	a.use(seconds(5), sa, "pod-1")
	a.use(seconds(5), sa, "pod-1") // the other entry of the webhook
	other.exceptionIn(seconds(2), until)
	other.use(seconds(6), sa, "pod-1") // and the third, which another replica was asked by
	other.use(seconds(40), sa, "pod-1")
	a.use(seconds(7), sa, "pod-2")
	a.use(seconds(8), "ola", "pod-3")
	a.add(seconds(9), &record.ExceptionUsed{Object: object, How: "standing", From: epoch().Add(seconds(3)), To: epoch().Add(seconds(8)), N: 2})
	other.add(seconds(41), &record.ExceptionUsed{Object: object, How: "standing", From: epoch().Add(seconds(30)), To: epoch().Add(seconds(40)), N: 1})
	a.add(seconds(10), &record.ExceptionUsed{Object: object, How: "admission", From: epoch(), To: epoch(), N: 100}) // has decisions
	a.counts.In++
	a.counts.Written++
	a.add(seconds(11), &record.Decision{Request: "r", Operation: "CREATE", By: a.pseudonyms.Subject("ola"), Guards: a.pseudonyms.Digest(nil), Verdict: "deny", Exceptions: []string{"e"}, ExceptionsN: 1,
		Object: record.Object{GVK: "v1/Pod", Namespace: "payments", UID: "pod-4"}})
	a.beat(seconds(60))
	other.beat(seconds(60))
	r := verifyAll(t, Options{}, append(a.sources(), other.sources()...)...)
	if len(r.Exceptions) != 1 || len(r.Findings) > 0 {
		t.Fatalf("exceptions %+v, findings %+v", r.Exceptions, r.Findings)
	}
	e := r.Exceptions[0]
	// pod-1 twice, for after 34 seconds it is another request, pod-2, pod-3.
	if e.Used != 4 || !e.FirstUsed.Equal(epoch().Add(seconds(5))) || !e.LastUsed.Equal(epoch().Add(seconds(40))) {
		t.Errorf("used %d, %s to %s", e.Used, e.FirstUsed, e.LastUsed)
	}
	if e.Standing != 2 || !e.StandingFrom.Equal(epoch().Add(seconds(3))) || !e.StandingTo.Equal(epoch().Add(seconds(40))) {
		t.Errorf("standing %d, %s to %s", e.Standing, e.StandingFrom, e.StandingTo)
	}
	if e.UsesN != 2 || e.Uses[0].By != sa || e.Uses[0].N != 3 || e.Uses[0].Log != a.now().origin || e.Uses[1].N != 1 || e.Uses[1].By != a.pseudonyms.Subject("ola").ID || e.Uses[1].GVK != "v1/Pod" {
		t.Errorf("uses %+v", e.Uses)
	}
	var text strings.Builder
	if err := r.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"exception e, namespace payments: asked for by p1:", `"CHG-1"`, "used by 4 requests", "at most 2 objects stood by it", "3 requests about v1/Pod by " + sa} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("%q is not said in\n%s", want, text.String())
		}
	}
}

func TestUseOfWhatIsNotInForce(t *testing.T) {
	for name, c := range map[string]struct {
		happens func(b *book)
		want    []string
	}{
		"never granted":                     {func(b *book) { b.use(seconds(5), "ola", "p") }, []string{FindingNotInForce}},
		"granted":                           {func(b *book) { b.exceptionIn(seconds(1), epoch().Add(time.Hour)); b.use(seconds(5), "ola", "p") }, nil},
		"a moment before the grant is told": {func(b *book) { b.use(seconds(1), "ola", "p"); b.exceptionIn(seconds(2), epoch().Add(time.Hour)) }, nil},
		"while the end is being told":       {func(b *book) { b.exceptionIn(seconds(1), epoch().Add(seconds(3))); b.use(seconds(50), "ola", "p") }, nil},
		"after the end":                     {func(b *book) { b.exceptionIn(seconds(1), epoch().Add(seconds(3))); b.use(seconds(64), "ola", "p") }, []string{FindingNotInForce}},
		"granted anew after the end": {func(b *book) {
			object := b.exceptionIn(seconds(1), epoch().Add(time.Hour))
			b.add(seconds(3), &record.ExceptionRevoked{Object: object, By: record.Subject{Kind: record.Unknown}, How: "revoked", Until: epoch().Add(seconds(3))})
			b.exceptionIn(seconds(4), epoch().Add(time.Hour))
			b.use(seconds(64), "ola", "p")
		}, nil},
	} {
		b := quiet("meshvakt-0", 0)
		c.happens(b)
		b.beat(seconds(65))
		if r := verifyAll(t, Options{}, b.sources()...); len(r.Problems) > 0 || !slices.Equal(codes(r), c.want) {
			t.Errorf("%s: findings %+v, problems %v; must be %v", name, r.Findings, r.Problems, c.want)
		}
	}
}
