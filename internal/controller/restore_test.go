package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/objects"
	"github.com/meshvakt/meshvakt/internal/scan"
)

type remediated map[string]int

func (r remediated) Remediated(outcome string) { r[outcome]++ }

type remedied []Remedy

func (r *remedied) Remedied(m Remedy) { *r = append(*r, m) }

// restoring is a Restorer, whose clock stands, over a cluster with a guard that restores.
type restoring struct {
	*setting
	*Restorer
	recorder *events.FakeRecorder
	outcomes remediated
	remedies remedied
	now      time.Time
}

func newRestoring(t *testing.T, funcs interceptor.Funcs, stored ...client.Object) *restoring {
	t.Helper()
	guard := guardWith("default", guardedSelector(), v1alpha1.OnMissingReject)
	guard.Spec.Remediation = v1alpha1.RemediationRestore
	r := &restoring{
		setting:  newSetting(t, funcs, append([]client.Object{guard, namespaceOf("prod", true)}, stored...)...),
		recorder: events.NewFakeRecorder(100), outcomes: remediated{}, now: time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC),
	}
	r.Restorer = r.lead()
	return r
}

// lead makes the Restorer of another leader.
func (r *restoring) lead() *Restorer {
	now := func() time.Time { return r.now }
	log := slog.New(slog.DiscardHandler)
	return &Restorer{
		Client: r.client, Source: r.source, Events: r.recorder, Recorder: r.outcomes, Remedies: &r.remedies, Log: log, Now: now,
		Memory: &Memory{Client: r.client, Live: r.client, Namespace: "meshvakt-system", Healthy: func() error { return nil }, Log: log, Now: now},
	}
}

func (r *restoring) look(t *testing.T) time.Duration {
	t.Helper()
	result, err := r.Reconcile(t.Context(), request("prod"))
	if err != nil {
		t.Fatal(err)
	}
	return result.RequeueAfter
}

// remove takes a policy away behind everybody's back; put brings one in.
func (r *restoring) remove(t *testing.T, p *objects.PeerAuthentication) {
	t.Helper()
	if err := r.client.Delete(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	r.cache.forget(p)
}

// policies are those of the namespace; the cache hears of them.
func (r *restoring) policies(t *testing.T) string {
	t.Helper()
	var list objects.PeerAuthenticationList
	if err := r.client.List(t.Context(), &list, client.InNamespace("prod")); err != nil {
		t.Fatal(err)
	}
	var texts []string
	for i := range list.Items {
		p := &list.Items[i]
		r.cache.tell(p)
		texts = append(texts, fmt.Sprintf("%s %s", p.Name, p.Spec.MTLS.Mode))
	}
	return strings.Join(texts, ", ")
}

func (r *restoring) told() string {
	var reasons []string
	for len(r.recorder.Events) > 0 {
		reasons = append(reasons, strings.Fields(<-r.recorder.Events)[1])
	}
	return strings.Join(reasons, " ")
}

func TestRestorer(t *testing.T) {
	strict := policyOf("prod", "mine", "STRICT")
	r := newRestoring(t, interceptor.Funcs{}, strict)
	r.look(t)
	if told := r.told(); told != "" || r.policies(t) != "mine STRICT" {
		t.Fatalf("told %q of what is in order", told)
	}
	r.Memory.due()
	r.now = r.now.Add(7 * time.Second)
	r.remove(t, strict)
	r.look(t)
	if got := r.policies(t); got != "default STRICT" || r.outcomes["restored"] != 1 {
		t.Fatalf("policies %q, %v", got, r.outcomes)
	}
	if told := r.told(); told != "StrictLost StrictRestored" {
		t.Errorf("told %q", told)
	}
	if m := r.remedies; len(m) != 1 || m[0].Outcome != RemedyDone || m[0].Provisioned || m[0].Object.GetName() != "default" || !m[0].Found.Equal(r.now) || !m[0].After.Equal(r.now.Add(-12*time.Second)) || !m[0].At.Equal(r.now) {
		t.Errorf("remedies %+v", m)
	}
	r.now = r.now.Add(time.Second)
	r.look(t)
	r.look(t)
	// After is what was sure when it was found, five seconds before the last look.
	if got := <-r.recorder.Events; !strings.Contains(got, "StrictGap the namespace took plaintext from some moment after 2026-06-01T11:59:55.000Z, found at 2026-06-01T12:00:07.000Z, until 2026-06-01T12:00:08.000Z") || len(r.recorder.Events) > 0 {
		t.Errorf("told %q, and %d more", got, len(r.recorder.Events))
	}
}

func TestRestorerLeavesAlone(t *testing.T) {
	for name, c := range map[string]struct {
		guard  func(*v1alpha1.MeshGuard)
		stored []client.Object
		strict bool // once
		told   string
	}{
		"what was never STRICT":         {func(*v1alpha1.MeshGuard) {}, nil, false, ""},
		"what a guard leaves to people": {func(g *v1alpha1.MeshGuard) { g.Spec.Remediation = v1alpha1.RemediationNone }, nil, true, "StrictLost"},
		"what a guard only warns of": {func(g *v1alpha1.MeshGuard) {
			g.Spec.StrictMTLS.ValidationActions = []v1alpha1.ValidationAction{v1alpha1.Warn}
		}, nil, true, "StrictLost"},
		"what an exception speaks for":    {func(*v1alpha1.MeshGuard) {}, []client.Object{exceptionFrom("strict-mtls")}, true, ""},
		"what an exception does not name": {func(*v1alpha1.MeshGuard) {}, []client.Object{exceptionFrom("node-pools")}, true, "StrictLost StrictRestored"},
	} {
		t.Run(name, func(t *testing.T) {
			guard := guardWith("default", guardedSelector(), v1alpha1.OnMissingReject)
			guard.Spec.Remediation = v1alpha1.RemediationRestore
			guard.Spec.Exceptions = &v1alpha1.Exceptions{MaxDuration: metav1.Duration{Duration: 24 * time.Hour}, Approval: v1alpha1.ApprovalNone}
			c.guard(guard)
			r := &restoring{recorder: events.NewFakeRecorder(100), outcomes: remediated{}, now: time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)}
			strict := policyOf("prod", "mine", "STRICT")
			r.setting = newSetting(t, interceptor.Funcs{}, append([]client.Object{guard, namespaceOf("prod", true), strict}, c.stored...)...)
			r.Restorer = r.lead()
			if c.strict {
				r.look(t)
			}
			r.remove(t, strict)
			r.look(t)
			if told := r.told(); told != c.told || (r.policies(t) != "") != strings.Contains(c.told, "Restored") {
				t.Errorf("told %q, policies %q; want %q", told, r.policies(t), c.told)
			}
		})
	}
}

// A gap that ends because an exception has come has not ended by STRICT, and says so. When the
// exception ends, there is another one.
func TestRestorerTellsOfAGapThatAnExceptionEnds(t *testing.T) {
	guard := guardWith("default", guardedSelector(), v1alpha1.OnMissingReject)
	guard.Spec.Exceptions = &v1alpha1.Exceptions{MaxDuration: metav1.Duration{Duration: 24 * time.Hour}, Approval: v1alpha1.ApprovalNone}
	r := &restoring{recorder: events.NewFakeRecorder(100), outcomes: remediated{}, now: time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)}
	strict := policyOf("prod", "mine", "STRICT")
	r.setting = newSetting(t, interceptor.Funcs{}, guard, namespaceOf("prod", true), strict)
	r.Restorer = r.lead()
	r.look(t)
	r.remove(t, strict)
	r.look(t)
	if told := r.told(); told != "StrictLost" {
		t.Fatalf("told %q", told)
	}
	r.now = r.now.Add(time.Minute)
	exception := exceptionFrom("strict-mtls") // until one o'clock
	if err := r.client.Create(t.Context(), exception); err != nil {
		t.Fatal(err)
	}
	r.cache.tell(exception)
	if again := r.look(t); again != 59*time.Minute {
		t.Errorf("looks again after %s; want it when the exception ends", again)
	}
	if got := <-r.recorder.Events; !strings.HasSuffix(got, "until 2026-06-01T12:01:00.000Z, and takes it from then on by a GuardException") {
		t.Errorf("told %q", got)
	}
	r.now = r.now.Add(59 * time.Minute)
	r.look(t)
	if told := r.told(); told != "StrictLost" {
		t.Errorf("told %q when the exception has ended", told)
	}
}

func exceptionFrom(policy string) *v1alpha1.GuardException {
	return &v1alpha1.GuardException{
		ObjectMeta: metav1.ObjectMeta{Namespace: "prod", Name: "x", CreationTimestamp: metav1.Time{Time: time.Date(2026, 6, 1, 11, 0, 0, 0, time.UTC)}},
		Spec:       v1alpha1.GuardExceptionSpec{Policies: []v1alpha1.ExceptedPolicy{{Name: policy}}, ExpiresAt: metav1.Time{Time: time.Date(2026, 6, 1, 13, 0, 0, 0, time.UTC)}},
	}
}

// The leader dies between writing down a gap and closing it, or right after closing it.
func TestRestorerOutlivesItsLeader(t *testing.T) {
	for name, closes := range map[string]bool{"before it is closed": false, "after": true} {
		t.Run(name, func(t *testing.T) {
			broken := !closes
			strict := policyOf("prod", "mine", "STRICT")
			r := newRestoring(t, interceptor.Funcs{Create: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.CreateOption) error {
				if _, is := o.(*objects.PeerAuthentication); is && broken {
					return errors.New("boom")
				}
				return c.Create(ctx, o, opts...)
			}}, strict)
			r.look(t)
			r.remove(t, strict)
			found := r.now
			for range 2 * scan.TriesAtOnce { // which fail, and are not undone by anybody
				if _, err := r.Reconcile(t.Context(), request("prod")); (err != nil) != broken {
					t.Fatalf("%v, %v", err, r.outcomes)
				}
			}
			if err := r.Memory.save(t.Context()); err != nil {
				t.Fatal(err)
			}
			broken = false
			r.now = r.now.Add(20 * time.Second)
			r.Restorer = r.lead()
			r.policies(t)
			r.look(t)
			r.policies(t)
			r.look(t)
			var gaps []string
			for len(r.recorder.Events) > 0 {
				if event := <-r.recorder.Events; strings.Contains(event, "StrictGap") {
					gaps = append(gaps, event)
				}
			}
			if len(gaps) != 1 || !strings.Contains(gaps[0], "found at "+moment(found)+", until "+moment(r.now)) {
				t.Errorf("gaps %q; want one from %s to %s", gaps, found, r.now)
			}
		})
	}
}

// A gap that cannot be written down is neither closed nor told of before it can, and then
// has the bounds with which it was found at first.
func TestRestorerWritesDownFirst(t *testing.T) {
	broken := false
	strict := policyOf("prod", "mine", "STRICT")
	r := newRestoring(t, interceptor.Funcs{Create: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.CreateOption) error {
		if _, is := o.(*corev1.ConfigMap); is && broken {
			return errors.New("boom")
		}
		return c.Create(ctx, o, opts...)
	}}, strict)
	r.look(t)
	r.remove(t, strict)
	broken = true
	found := r.now
	for range 2 {
		if _, err := r.Reconcile(t.Context(), request("prod")); err == nil || r.policies(t) != "" || r.told() != "" {
			t.Fatalf("%v; policies %q, told %q", err, r.policies(t), r.told())
		}
		r.now = r.now.Add(time.Second)
	}
	broken = false
	r.look(t)
	if told := r.told(); told != "StrictLost StrictRestored" || r.policies(t) != "default STRICT" {
		t.Errorf("told %q, policies %q", told, r.policies(t))
	}
	r.look(t)
	if got := <-r.recorder.Events; !strings.Contains(got, "StrictGap") || !strings.Contains(got, "found at "+moment(found)+", until "+moment(r.now)) {
		t.Errorf("told %q", got)
	}
}

// Somebody, GitOps perhaps, takes away over and over what is restored.
func TestRestorerDoesNotFight(t *testing.T) {
	strict := policyOf("prod", "mine", "STRICT")
	r := newRestoring(t, interceptor.Funcs{}, strict)
	r.look(t)
	r.remove(t, strict)
	restored := 0
	for range 600 { // ten minutes
		again := r.look(t)
		if r.policies(t) != "" {
			restored++
			r.look(t)
			r.remove(t, policyOf("prod", "default", ""))
		} else if again <= 0 {
			t.Fatal("nobody looks at the namespace again")
		}
		r.now = r.now.Add(time.Second)
	}
	// At once three times, then after 1, 2 and 4 minutes.
	if restored != 6 || r.outcomes["restored"] != restored {
		t.Errorf("restored %d times in ten minutes, counted %v", restored, r.outcomes)
	}
	if got := r.Undone("default"); len(got) != 1 || got[0] != "prod" || len(r.Undone("other")) > 0 {
		t.Errorf("undone %q", got)
	}
	var guard v1alpha1.MeshGuard
	if err := r.client.Get(t.Context(), client.ObjectKey{Name: "default"}, &guard); err != nil {
		t.Fatal(err)
	}
	s := &Standing{Ledger: scan.NewLedger(), Undone: r.Undone, Now: r.Restorer.Now}
	s.fillScan(&guard, guard.Status.DeepCopy())
	if c := guard.Status.Conditions; len(c) != 1 || c[0].Type != v1alpha1.ConditionDegraded || c[0].Status != metav1.ConditionTrue || !strings.Contains(c[0].Message, "1 namespace: prod") {
		t.Errorf("conditions %+v", c)
	}
}

func TestRestorerSaysOnceThatItCannot(t *testing.T) {
	// A mesh root namespace that is guarded: its policy is the whole mesh's.
	strict := policyOf("istio-system", "default", "STRICT")
	r := newRestoring(t, interceptor.Funcs{}, namespaceOf("istio-system", true), strict)
	look := func() {
		if _, err := r.Reconcile(t.Context(), request("istio-system")); err != nil {
			t.Fatal(err)
		}
	}
	look()
	r.remove(t, strict)
	look()
	look()
	if told := r.told(); told != "StrictLost StrictNotRestored" || r.outcomes["impossible"] != 1 {
		t.Errorf("told %q, %v", told, r.outcomes)
	}
	if m := r.remedies; len(m) != 1 || m[0].Outcome != RemedyGivenUp || m[0].Object.GetName() != "istio-system" || m[0].Object.GetNamespace() != "" || !m[0].Found.Equal(r.now) {
		t.Errorf("remedies %+v", m)
	}
}

func TestMemoryBeginsAnew(t *testing.T) {
	broken := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "meshvakt-system", Name: memoryName}, Data: map[string]string{"record": "{"}}
	r := newRestoring(t, interceptor.Funcs{}, broken, policyOf("prod", "mine", "STRICT"))
	r.look(t)
	if err := r.Memory.save(t.Context()); err != nil {
		t.Fatal(err)
	}
	next := r.lead()
	if err := next.Memory.load(t.Context()); err != nil || !next.Memory.wasStrict("prod") {
		t.Errorf("%v; what is written over a broken record cannot be read", err)
	}
}
