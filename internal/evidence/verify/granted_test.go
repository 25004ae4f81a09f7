package verify

import (
	"testing"
	"time"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
)

// courseOf writes what becomes of an exception, e of payments, and a beat a minute.
type courseOf struct {
	*book
	object record.Object
}

func (c courseOf) reach(at int) {
	for next := (int(c.at/time.Second)/60 + 1) * 60; next < at; next += 60 {
		c.beat(seconds(next))
	}
}

func (c courseOf) ask(at, until int, rules ...string) {
	c.reach(at)
	c.add(seconds(at), &record.ExceptionRequested{Object: c.object, By: c.pseudonyms.Subject("ola"), Rules: rules, RulesN: uint64(len(rules)), Selector: c.pseudonyms.Digest(nil),
		Approval: "TwoPerson", Reason: "r", Reference: "CHG-1", Until: epoch().Add(seconds(until))})
}

func (c courseOf) grant(at, until int) {
	c.reach(at)
	c.add(seconds(at), &record.ExceptionGranted{Object: c.object, By: c.pseudonyms.Subject("kari"), For: c.pseudonyms.Subject("ola"), Until: epoch().Add(seconds(until))})
}

func (c courseOf) revoke(at int) {
	c.reach(at)
	c.add(seconds(at), &record.ExceptionRevoked{Object: c.object, By: record.Subject{Kind: record.Unknown}, How: "revoked", Until: epoch().Add(seconds(at))})
}

func (c courseOf) expire(at int) {
	c.reach(at)
	c.add(seconds(at), &record.ExceptionExpired{Object: c.object, Until: epoch().Add(seconds(at))})
}

// TestWhenAnExceptionIsInForce has a namespace that takes plaintext all the time, and looks at single instants.
func TestWhenAnExceptionIsInForce(t *testing.T) {
	const strict, member = "strict-mtls", "mesh-membership"
	type grades map[int]Grade
	for name, c := range map[string]struct {
		happens func(c courseOf)
		other   func(c courseOf) // what a second replica tells
		want    grades
		ended   string
		end     int
	}{
		"granted": {func(c courseOf) { c.ask(70, 2000, strict); c.grant(130, 2000) }, nil,
			grades{100: Violated, 200: Excepted, 1100: Excepted}, "", 2000},
		"of another rule": {func(c courseOf) { c.ask(70, 2000, member); c.grant(130, 2000) }, nil,
			grades{200: Violated}, "", 2000},
		"expired": {func(c courseOf) { c.ask(70, 600, strict); c.grant(130, 600); c.expire(600) }, nil,
			grades{300: Excepted, 700: Violated}, "expired", 600},
		"its end was set later before it was approved": {func(c courseOf) { c.ask(70, 300, strict); c.ask(80, 2000, strict); c.grant(130, 2000) }, nil,
			grades{200: Excepted, 700: Excepted}, "", 2000},
		"it expired before it was approved, and was asked for again": {func(c courseOf) {
			c.ask(70, 300, strict)
			c.expire(300)
			c.ask(310, 2000, strict)
			c.grant(320, 2000)
		}, nil, grades{200: Violated, 700: Excepted}, "", 2000},
		"its rules were others before it was approved": {func(c courseOf) { c.ask(70, 2000, strict); c.ask(80, 2000, member); c.grant(130, 2000) }, nil,
			grades{700: Violated}, "", 2000},
		"its rule came before it was approved": {func(c courseOf) { c.ask(70, 2000, member); c.ask(80, 2000, strict); c.grant(130, 2000) }, nil,
			grades{700: Excepted}, "", 2000},
		"its rules became others, past the webhook, after it was approved": {func(c courseOf) {
			c.ask(70, 2000, member)
			c.grant(130, 2000)
			c.ask(500, 3000, strict) // as another start of the process tells it
			c.grant(500, 3000)
		}, nil, grades{200: Violated, 700: Violated}, "", 2000},
		"and the first replica to be read was down when it was": {
			func(c courseOf) { c.ask(70, 2000, member); c.ask(500, 3000, strict); c.grant(500, 3000) },
			func(c courseOf) { c.ask(71, 2000, member); c.grant(131, 2000) },
			grades{200: Violated, 700: Violated}, "", 2000},
		"revoked": {func(c courseOf) { c.ask(70, 2000, strict); c.grant(130, 2000); c.revoke(400) }, nil,
			grades{300: Excepted, 500: Violated, 1100: Violated}, "revoked", 400},
		"a guard does not take it for a while": {func(c courseOf) { c.ask(70, 2000, strict); c.grant(130, 2000); c.revoke(400); c.grant(640, 2000) }, nil,
			grades{300: Excepted, 500: Violated, 700: Excepted, 1100: Excepted}, "", 2000},
		"and then not any more": {func(c courseOf) {
			c.ask(70, 2000, strict)
			c.grant(130, 2000)
			c.revoke(400)
			c.grant(640, 2000)
			c.revoke(900)
		}, nil, grades{300: Excepted, 500: Violated, 700: Excepted, 1100: Violated}, "revoked", 900},
		"two replicas tell of that": {
			func(c courseOf) { c.ask(70, 2000, strict); c.grant(130, 2000); c.revoke(400); c.grant(640, 2000) },
			func(c courseOf) { c.ask(71, 2000, strict); c.grant(131, 2000); c.revoke(402); c.grant(641, 2000) },
			grades{300: Excepted, 500: Violated, 700: Excepted}, "", 2000},
		"one of them has ended before the guard takes it again": {
			func(c courseOf) { c.ask(70, 2000, strict); c.grant(130, 2000); c.revoke(400); c.grant(640, 2000) },
			func(c courseOf) { c.ask(71, 2000, strict); c.grant(131, 2000); c.revoke(402) },
			grades{300: Excepted, 500: Violated, 700: Excepted}, "", 2000},
		"one of them has not seen yet that it was revoked": {
			func(c courseOf) { c.ask(70, 2000, strict); c.grant(130, 2000); c.revoke(400) },
			func(c courseOf) {
				c.ask(71, 2000, strict)
				c.grant(131, 2000)
				c.ask(401, 2000, strict)
				c.grant(401, 2000)
			},
			grades{300: Excepted, 500: Violated, 700: Violated}, "revoked", 400},
	} {
		var sources []*Source
		for i, happens := range []func(courseOf){c.happens, c.other} {
			if happens == nil {
				continue
			}
			b := newBook([]string{"meshvakt-0", "meshvakt-1"}[i], byte(i+1))
			row := b.row("payments", "PERMISSIVE", 0, 1)
			row.Excused[0].Exceptions = []string{"e"}
			b.rows["payments"] = row
			b.start(0)
			b.snapshot(0, "boot", 0)
			course := courseOf{b, record.Object{GVK: "meshvakt.io/v1alpha1/GuardException", Namespace: "payments", Name: b.pseudonyms.Object("e", "payments", "e"), UID: "e", Generation: 1}}
			b.beat(0)
			happens(course)
			if i == 0 {
				course.reach(1260)
			}
			sources = append(sources, b.sources()...)
		}
		r := verifyAll(t, Options{}, sources...)
		for at, want := range c.want {
			if got := intervalAt(r, at); got.Grade != want {
				t.Errorf("%s: at %d it is %+v; must be %s", name, at, got, want)
			}
		}
		if e := r.Exceptions[0]; len(r.Problems) > 0 || len(r.Exceptions) != 1 || e.Ended != c.ended || !e.End.Equal(epoch().Add(time.Duration(c.end)*time.Second)) {
			t.Errorf("%s: it ends %q at %s; must be %q at %d; problems %v", name, e.Ended, e.End, c.ended, c.end, r.Problems)
		}
	}
}
