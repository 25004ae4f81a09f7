package e2e

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
	"github.com/meshvakt/meshvakt/internal/evidence/verify"
	"github.com/meshvakt/meshvakt/internal/objects"
)

// TestEvidenceQuarter lives through a quarter, in a few minutes, with two replicas: exceptions, changes past the
// webhook, deletions that race, an outage, volumes that fail, clocks that are set. What the verifier says of it, from the
// signed logs alone, must be what an oracle says that knows what was done, and nothing else.
//
// Simulated is the time, of replicas and sealers: they are built with the tag simulatedtime and take it from a file. It
// stands still while something is done and jumps between. Real are the rest of the binary, API server, etcd, watches,
// requests and users, the disk, the logs and their keys, and the verifier, which is of the ordinary build. By the
// machine's clock go certificates, the election of the leader, and how often the API server is asked (the canary).
// Beats are two hours apart and not a minute.
func TestEvidenceQuarter(t *testing.T) {
	q := newQuarter(t)
	for _, scene := range script() {
		scene.play(q, scene.day, scene.hour)
	}
	q.finish()
	q.verify()
}

// scene is a line of the script: what is done, from when on.
type scene struct {
	day, hour int // counted from the beginning, which is that of the quarter and half an hour
	play      func(q *quarter, day, hour int)
}

// script is what happens in the quarter. Day 92 begins the next one.
func script() []scene {
	return []scene{
		{0, 0, (*quarter).opens},
		{2, 4, (*quarter).properChanges},
		{5, 10, (*quarter).exceptionIsUsed},
		{9, 14, (*quarter).changePastTheWebhook},
		{14, 2, (*quarter).replicaIsDown},
		{20, 12, (*quarter).deletionsRace},
		{25, 0, (*quarter).sealerIsDown},
		{30, 22, (*quarter).exceptionIsRevoked},
		{37, 4, (*quarter).webhookIsOut},
		{45, 16, (*quarter).restored},
		{50, 8, (*quarter).clockIsSet},
		{58, 14, (*quarter).changeWhileNobodyLooks},
		{66, 2, (*quarter).volumesFail},
		{75, 6, (*quarter).unguardedAgain},
		// Before the end by the dozen beats that it may take until all is heard: beats of the next quarter go by when it
		// began for the replicas, and come before what is said to them then.
		{91, 0, (*quarter).quarterEnds},
	}
}

// did notes a deed of now.
func (q *quarter) did(d deed) {
	d.at = q.time()
	if d.namespace != "" {
		d.namespace = q.names[d.namespace]
	} else if d.replica < 0 {
		q.t.Fatalf("a deed is about nothing: %+v", d)
	}
	q.deeds = append(q.deeds, d)
}

// deedOf is about a namespace, and no replica.
func (q *quarter) deedOf(w what, namespace, mode string) {
	q.did(deed{what: w, namespace: namespace, mode: mode, replica: -1})
}

func (q *quarter) start(replicas ...int) {
	q.t.Helper()
	begun := q.time()
	for _, i := range replicas {
		q.watchers[i].begin()
		q.did(deed{what: watches, replica: i})
	}
	q.finds(verify.FindingClock, "", begun, len(replicas), len(replicas)) // each start says that its times are made up
	q.present()
	q.asked()
}

func (q *quarter) down(kill bool, replicas ...int) {
	q.t.Helper()
	for _, i := range replicas {
		q.watchers[i].end(kill)
		q.did(deed{what: ceases, replica: i})
	}
	q.present()
}

func (q *quarter) opens(_, _ int) {
	t := q.t
	q.start(0, 1)
	q.quiet()
	enforcing(t, "quarter-watched")
	enforcing(t, "quarter-restored")
	for name, value := range map[string]string{"quiet": "watched", "proper": "watched", "excepted": "watched", "past": "watched", "raced": "watched", "revoked": "watched", "dark": "watched", "leaves": "watched", "restored": "restored"} {
		q.names[name] = unique(name)
		ns := namespace(q.names[name], false)
		create(t, q.admin, ns, policy(q.names[name], "default", "STRICT"))
		must(t, relabel(t.Context(), q.admin, ns, "quarter", value))
		q.deedOf(entersGuard, name, "")
		q.deedOf(standsAt, name, "STRICT")
		q.observed(name, "STRICT")
	}
	for _, w := range q.watchers {
		w.seal()
	}
	q.advance(beatOfQuarter)
	q.finds(verify.FindingNotAsked, "", beginning(), 0, anyNumber) // the first beat was before the first question
	q.finds(verify.FindingHook, "", beginning(), 0, anyNumber)     // and before the registration
}

// workloadPolicy is STRICT for some workloads.
func workloadPolicy(namespace, name string) *objects.PeerAuthentication {
	p := policy(namespace, name, "STRICT")
	p.Spec.Selector = &objects.WorkloadSelector{MatchLabels: map[string]string{"app": name}}
	return p
}

// setMode is a patch of a policy.
func setMode(mode string) client.Patch {
	return mergePatch(`{"spec":{"mtls":{"mode":"` + mode + `"}}}`)
}

func (q *quarter) properChanges(day, hour int) {
	t, ns := q.t, q.names["proper"]
	q.at(day, hour)
	must(t, q.dev.Create(t.Context(), workloadPolicy(ns, "more")))
	q.deedOf(altered, "proper", "")
	q.at(day+1, hour)
	refused(t, q.dev.Create(t.Context(), weakPolicy(ns, "weak")), "MV103")
	refused(t, q.dev.Patch(t.Context(), policy(ns, "default", ""), setMode("PERMISSIVE")))
	q.at(day+2, hour)
	must(t, q.dev.Delete(t.Context(), workloadPolicy(ns, "more")))
	q.deedOf(altered, "proper", "")
}

// grant asks for an exception and has it approved.
func (q *quarter) grant(name string, lasts time.Duration) {
	t := q.t
	t.Helper()
	e := (&governed{namespace: q.names[name]}).legacy("legacy", q.time().Add(lasts))
	create(t, q.dev, e)
	must(t, approve(t.Context(), q.platform, e))
	eventually(t, 20*time.Second, func() error { return q.dev.Create(t.Context(), weakPolicy(q.names[name], "legacy")) })
	q.observed(name, "PERMISSIVE")
	q.told("the grant", func(r record.Record) bool {
		b, is := r.Body.(*record.ExceptionGranted)
		return is && b.Object.Namespace == q.names[name]
	})
	q.did(deed{what: excepted, namespace: name, until: e.Spec.ExpiresAt.Time, replica: -1})
	q.deedOf(standsAt, name, "PERMISSIVE")
}

// exceptionIsUsed, and ends by itself, while what it let in is there for six hours more.
func (q *quarter) exceptionIsUsed(day, hour int) {
	q.at(day, hour)
	q.grant("excepted", 51*time.Hour+17*time.Minute)
	q.at(day+2, hour+10)
	must(q.t, q.dev.Delete(q.t.Context(), weakPolicy(q.names["excepted"], "legacy")))
	q.observed("excepted", "STRICT")
	q.deedOf(standsAt, "excepted", "STRICT")
}

// changePastTheWebhook is by an admin who has taken the registration away; it lasts for two days.
func (q *quarter) changePastTheWebhook(day, hour int) {
	t, weak := q.t, policy(q.names["past"], "default", "")
	q.at(day, hour)
	q.past(func(ctx context.Context) error { return q.admin.Patch(ctx, weak, setMode("PERMISSIVE")) })
	q.observed("past", "PERMISSIVE")
	q.deedOf(standsAt, "past", "PERMISSIVE")
	q.finds(verify.FindingUnexplained, "past", q.time(), 1, 1)
	q.weakened()
	q.asked()
	enforcing(t, "quarter-watched")
	q.at(day+2, hour)
	must(t, q.dev.Patch(t.Context(), weak, setMode("STRICT")))
	q.observed("past", "STRICT")
	q.deedOf(standsAt, "past", "STRICT")
}

// replicaIsDown for three days; the other one sees what a developer does.
func (q *quarter) replicaIsDown(day, hour int) {
	t := q.t
	q.at(day, hour)
	q.down(true, 1)
	q.asked()
	q.at(day+1, hour)
	must(t, q.dev.Create(t.Context(), workloadPolicy(q.names["proper"], "third")))
	q.deedOf(altered, "proper", "")
	q.advance(time.Duration(24*(day+3)+hour) * time.Hour)
	q.start(1)
}

// deletionsRace: each of two policies may go while the other is there, and each replica is asked about one.
func (q *quarter) deletionsRace(day, hour int) {
	t, ns := q.t, q.names["raced"]
	q.at(day, hour)
	must(t, q.dev.Create(t.Context(), policy(ns, "other", "STRICT")))
	q.deedOf(altered, "raced", "")
	q.at(day+1, hour)
	q.meet(ns, 4) // two entries of the webhook ask about each
	var group sync.WaitGroup
	for _, name := range []string{"default", "other"} {
		group.Go(func() {
			if err := q.dev.Delete(t.Context(), policy(ns, name, "")); err != nil {
				t.Errorf("delete %s: %v", name, err)
			}
		})
	}
	group.Wait()
	q.meet(ns, 0)
	q.observed("raced", "PERMISSIVE")
	q.deedOf(standsAt, "raced", "PERMISSIVE")
	q.at(day+1, hour+6)
	must(t, q.dev.Create(t.Context(), policy(ns, "again", "STRICT")))
	q.observed("raced", "STRICT")
	q.deedOf(standsAt, "raced", "STRICT")
}

func (q *quarter) sealerIsDown(day, hour int) {
	q.advance(time.Duration(24*day+hour) * time.Hour)
	q.watchers[0].unseal()
	q.advance(time.Duration(24*(day+1)+hour) * time.Hour)
	q.watchers[0].seal()
}

// exceptionIsRevoked after three days, and what it let in goes four hours later.
func (q *quarter) exceptionIsRevoked(day, hour int) {
	t, ns := q.t, q.names["revoked"]
	q.at(day, hour)
	q.grant("revoked", 20*24*time.Hour)
	q.at(day+3, hour)
	e := (&governed{namespace: ns}).legacy("legacy", time.Time{})
	must(t, q.dev.Patch(t.Context(), e, mergePatch(`{"spec":{"revoked":true}}`)))
	q.told("the revocation", func(r record.Record) bool {
		b, is := r.Body.(*record.ExceptionRevoked)
		return is && b.Object.Namespace == ns
	})
	q.deedOf(ended, "revoked", "")
	q.at(day+3, hour+4)
	must(t, q.dev.Delete(t.Context(), weakPolicy(ns, "legacy")))
	q.observed("revoked", "STRICT")
	q.deedOf(standsAt, "revoked", "STRICT")
}

// webhookIsOut: both replicas are killed, for six hours.
func (q *quarter) webhookIsOut(day, hour int) {
	t := q.t
	q.at(day, hour)
	q.down(true, 0, 1)
	if err := q.dev.Create(t.Context(), workloadPolicy(q.names["proper"], "fourth")); !apierrors.IsInternalError(err) {
		t.Errorf("with nobody to answer: %v; must be refused", err)
	}
	out := q.time()
	q.later(6 * time.Hour)
	q.start(0, 1)
	q.advance(q.now + beatOfQuarter)
	q.finds(verify.FindingNotAsked, "", out, 1, anyNumber)
}

// restored: a change past the webhook in a namespace that Meshvakt makes STRICT again.
func (q *quarter) restored(day, hour int) {
	q.at(day, hour)
	weak := policy(q.names["restored"], "default", "")
	q.past(func(ctx context.Context) error { return q.admin.Patch(ctx, weak, setMode("PERMISSIVE")) })
	q.deedOf(flickered, "restored", "")
	q.asked()
	isStrict(q.t, 60*time.Second, q.names["restored"])
	q.observed("restored", "STRICT")
	q.finds(verify.FindingUnexplained, "restored", q.time(), 1, 1)
	q.weakened()
	enforcing(q.t, "quarter-restored")
}

// clockIsSet on one replica, by an hour, and back; days later by ten minutes to the past, and right again.
func (q *quarter) clockIsSet(day, hour int) {
	for i, by := range []time.Duration{time.Hour, -10 * time.Minute} {
		q.at(day+2*i, hour)
		set := q.time()
		q.watchers[1].ahead = by
		q.did(deed{what: blind, replica: 1})
		q.advance(q.now + time.Second)
		q.at(day+2*i, hour+8)
		q.watchers[1].ahead = 0
		q.advance(q.now + time.Second)
		q.advance(q.now + beatOfQuarter - doneAfter - time.Second)
		q.did(deed{what: sees, replica: 1})
		q.finds(verify.FindingClock, "", set.Add(-2*beatOfQuarter), 2, 2)
	}
}

// changeWhileNobodyLooks: the replicas stop, and somebody takes the registration away.
func (q *quarter) changeWhileNobodyLooks(day, hour int) {
	t, weak := q.t, policy(q.names["dark"], "default", "")
	q.at(day, hour)
	q.down(false, 0, 1)
	out := q.time()
	unregister(t)
	q.later(2 * time.Hour)
	q.unasked(func(ctx context.Context) error { return q.admin.Patch(ctx, weak, setMode("DISABLE")) })
	q.deedOf(standsAt, "dark", "DISABLE")
	q.advance(q.now + 4*time.Hour)
	q.start(0, 1)
	enforcing(t, "quarter-watched")
	q.finds(verify.FindingUnexplained, "dark", out, 1, 1)
	q.at(day, hour+10)
	q.finds(verify.FindingNotAsked, "", out, 1, anyNumber)
	q.finds(verify.FindingHook, "", out, 1, anyNumber) // it is gone, or another, when there is somebody to see it
	must(t, q.dev.Patch(t.Context(), weak, setMode("STRICT")))
	q.observed("dark", "STRICT")
	q.deedOf(standsAt, "dark", "STRICT")
}

// volumesFail: one replica is down, and the volume of the other takes nothing for six hours.
func (q *quarter) volumesFail(day, hour int) {
	t, ns := q.t, q.names["proper"]
	q.at(day, hour)
	q.down(false, 1)
	q.asked()
	q.at(day, hour+2)
	out := q.time()
	q.watchers[0].silence(true)
	q.did(deed{what: blind, replica: 0})
	err := q.dev.Create(t.Context(), workloadPolicy(ns, "fourth"))
	var status apierrors.APIStatus
	if !errors.As(err, &status) || status.Status().Code != 503 {
		t.Errorf("a change without a record: %v; must be refused, to be tried again", err)
	}
	refused(t, q.dev.Create(t.Context(), weakPolicy(ns, "weak")), "MV103")
	q.unlogged = 2 // two requests; about each, two entries of the webhook may have asked
	q.later(6 * time.Hour)
	q.watchers[0].silence(false)
	q.did(deed{what: sees, replica: 0})
	q.at(day, hour+10)
	q.finds(verify.FindingNotAsked, "", out, 1, anyNumber)
	must(t, q.dev.Create(t.Context(), workloadPolicy(ns, "fourth")))
	q.deedOf(altered, "proper", "")
	q.later(4 * time.Hour)
	q.start(1)
}

// unguardedAgain: a namespace leaves its guard, by somebody who may let it, and is weak then, which is nobody's business.
func (q *quarter) unguardedAgain(day, hour int) {
	t, ns := q.t, q.names["leaves"]
	q.at(day, hour)
	must(t, relabel(t.Context(), q.admin, namespace(ns, false), "quarter", ""))
	q.deedOf(leavesGuard, "leaves", "")
	q.observed("leaves", "")
	must(t, q.dev.Patch(t.Context(), policy(ns, "default", ""), setMode("PERMISSIVE")))
	q.deedOf(standsAt, "leaves", "PERMISSIVE")
}

// quarterEnds: before and behind it something is done.
func (q *quarter) quarterEnds(day, hour int) {
	t := q.t
	q.at(day, hour)
	must(t, q.dev.Create(t.Context(), workloadPolicy(q.names["quiet"], "before")))
	q.deedOf(altered, "quiet", "")
	q.advance(endOfQuarter().Sub(beginning()))
	q.just(endOfQuarter().Sub(beginning()) + 8*time.Hour)
	must(t, q.dev.Delete(t.Context(), workloadPolicy(q.names["quiet"], "before")))
	q.deedOf(altered, "quiet", "")
	q.just(endOfQuarter().Sub(beginning()) + 16*time.Hour)
}

// finish ends all in order.
func (q *quarter) finish() {
	q.down(false, 0, 1)
	unregister(q.t)
	for _, w := range q.watchers {
		w.unseal()
	}
}
