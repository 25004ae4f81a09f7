package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/objects"
	"github.com/meshvakt/meshvakt/test/controlplane"
)

// governed is a guarded namespace with a guard that takes exceptions, and two replicas
// that answer in turn.
type governed struct {
	namespace            string
	dev, platform, admin client.Client
}

func newGoverned(t *testing.T) *governed {
	t.Helper()
	balanced(t)
	guard(t, defaultGuard(v1alpha1.OnMissingReject))
	enforcing(t, "default")
	must(t, plane.Apply(t.Context(), []byte(writings)))
	g := &governed{
		namespace: unique("governed"),
		dev:       clientFor(t, controlplane.Developer), platform: clientFor(t, controlplane.Platform), admin: clientFor(t, controlplane.Admin),
	}
	create(t, g.dev, namespace(g.namespace, false), policy(g.namespace, "default", "STRICT"))
	must(t, relabel(t.Context(), g.dev, namespace(g.namespace, false), v1alpha1.GuardedLabel, "true"))
	serviceAccount(t, g.namespace)
	return g
}

// legacy is an exception of strict-mtls for the pods app=legacy.
func (g *governed) legacy(name string, ends time.Time) *v1alpha1.GuardException {
	return &v1alpha1.GuardException{
		ObjectMeta: metav1.ObjectMeta{Namespace: g.namespace, Name: name},
		Spec: v1alpha1.GuardExceptionSpec{
			Policies:       []v1alpha1.ExceptedPolicy{{Name: "strict-mtls"}},
			ObjectSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": "legacy"}},
			Reason:         "The old client cannot do mutual TLS.",
			Reference:      "SEC-1234",
			ExpiresAt:      metav1.NewTime(ends.UTC().Truncate(time.Second)),
		},
	}
}

// weak is what the exception lets pass.
func (g *governed) weak() *objects.PeerAuthentication {
	weak := policy(g.namespace, "legacy", "PERMISSIVE")
	weak.Spec.Selector = &objects.WorkloadSelector{MatchLabels: map[string]string{"app": "legacy"}}
	return weak
}

// tryWeak asks whether it would be let pass.
func (g *governed) tryWeak(ctx context.Context) error {
	return g.dev.Create(ctx, g.weak(), client.DryRunAll)
}

// approve is what an approver does.
func approve(ctx context.Context, c client.Client, e *v1alpha1.GuardException) error {
	return c.Patch(ctx, e, mergePatch(`{"spec":{"approved":true}}`))
}

// refusedOwn demands that the rules of Meshvakt itself refuse the request.
func refusedOwn(t testing.TB, err error, contains ...string) {
	t.Helper()
	var status apierrors.APIStatus
	if !errors.As(err, &status) || status.Status().Code != http.StatusForbidden || !strings.Contains(err.Error(), `own.meshvakt.io" denied the request: violates the rules of Meshvakt itself`) {
		t.Fatalf("got %v; want a refusal by the rules of Meshvakt itself", err)
	}
	for _, c := range contains {
		if !strings.Contains(err.Error(), c) {
			t.Errorf("the message lacks %q:\n%s", c, err)
		}
	}
}

// TestException plays a request, an approval that is not one, the approval, the use and
// the end of exceptions, with the users that have a part in it.
func TestException(t *testing.T) {
	g := newGoverned(t)
	t.Run("approval and use", g.approval)
	t.Run("what is approved stands", g.standing)
	t.Run("revoked", g.revoked)
	t.Run("deleted", g.deleted)
	t.Run("ends at its second", g.ends)
	t.Run("a guard that wants no approval", g.withoutApproval)
}

func (g *governed) approval(t *testing.T) {
	const manifest = `
apiVersion: meshvakt.io/v1alpha1
kind: GuardException
metadata: {name: legacy}
spec:
  policies: [{name: strict-mtls}]
  objectSelector: {matchLabels: {app: legacy}}
  reason: The old client cannot do mutual TLS.
  reference: SEC-1234
  expiresAt: %q
`
	text := fmt.Sprintf(manifest, time.Now().Add(time.Hour).UTC().Format(time.RFC3339))
	refused(t, g.tryWeak(t.Context()), "MV103")
	misspelt := g.legacy("misspelt", time.Now().Add(time.Hour))
	misspelt.Spec.ObjectSelector = metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "app", Operator: "in", Values: []string{"legacy"}}}}
	if err := g.dev.Create(t.Context(), misspelt); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "spec.objectSelector: Invalid value") || !strings.Contains(err.Error(), "operator must be In, NotIn") {
		t.Errorf("a selector that selects nothing: %v", err)
	}
	apply := func(user controlplane.User) (string, error) {
		stdout, stderr, err := plane.Kubectl(t.Context(), user, text, "-n", g.namespace, "apply", "-f", "-")
		return stdout + stderr, err
	}
	if out, err := apply(controlplane.Developer); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	e := g.legacy("legacy", time.Now())
	must(t, g.dev.Get(t.Context(), client.ObjectKeyFromObject(e), e))
	if e.Spec.Requester != "developer" || e.Spec.Approver != "" || e.Spec.Approved {
		t.Errorf("after the request: requester %q, approver %q, approved %t", e.Spec.Requester, e.Spec.Approver, e.Spec.Approved)
	}
	refused(t, g.tryWeak(t.Context()), "MV103") // nobody has approved it

	refusedOwn(t, approve(t.Context(), g.dev, e.DeepCopy()), "MV504", "MV506")
	own := g.legacy("own", time.Now().Add(time.Hour))
	create(t, g.platform, own)
	refusedOwn(t, approve(t.Context(), g.platform, own.DeepCopy()), "MV504", `"platform"`)
	refusedOwn(t, approve(t.Context(), g.dev, own.DeepCopy()), "MV506", "meshvakt-approve")
	forged := mergePatch(`{"spec":{"approved":true,"approver":"platform"}}`)
	refusedOwn(t, g.dev.Patch(t.Context(), e.DeepCopy(), forged), "MV504", "MV506") // the approver is overwritten
	refusedOwn(t, g.platform.Patch(t.Context(), e.DeepCopy(), mergePatch(`{"spec":{"approved":true,"objectSelector":{"matchLabels":null}}}`)), "MV505")
	must(t, g.admin.Delete(t.Context(), own))

	must(t, approve(t.Context(), g.platform, e))
	if e.Spec.Approver != "platform" || e.Spec.Requester != "developer" {
		t.Errorf("after the approval: requester %q, approver %q", e.Spec.Requester, e.Spec.Approver)
	}
	w := &witness{}
	if err := w.client(t, controlplane.Developer).Create(t.Context(), g.weak()); err != nil {
		t.Fatalf("right after the approval: %v", err)
	}
	want := "let pass until " + e.Spec.ExpiresAt.UTC().Format(time.RFC3339) + " by GuardException legacy"
	if len(w.warnings) != 1 || !strings.Contains(w.warnings[0], want) {
		t.Errorf("warnings %q; want one with %q", w.warnings, want)
	}
	g.audited(t, w.auditID, "MV103 by "+g.namespace+"/legacy")
	must(t, g.dev.Create(t.Context(), pod(g.namespace, map[string]string{"app": "legacy"})))
	must(t, g.dev.Create(t.Context(), pod(g.namespace, map[string]string{"app": "web"})))
	other := g.weak()
	other.Name, other.Spec.Selector.MatchLabels = "other", map[string]string{"app": "web"}
	refused(t, g.dev.Create(t.Context(), other), "MV103")
	// Who has asked applies the same again, as a pipeline does.
	if out, err := apply(controlplane.Developer); err != nil || !strings.Contains(out, "unchanged") {
		t.Errorf("the manifest again: %v\n%s", err, out)
	}
}

// audited demands the annotation in the audit log.
func (g *governed) audited(t *testing.T, auditID, excepted string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	found := ""
	_, err := plane.WaitAudit(ctx, func(e controlplane.AuditEvent) bool {
		if e.AuditID != auditID || e.ResponseStatus.Code == 0 {
			return false
		}
		for key, value := range e.Annotations {
			if strings.HasSuffix(key, "meshvakt.io/excepted") {
				found = value
			}
		}
		return true
	})
	if err != nil || found != excepted {
		t.Errorf("audit annotation excepted %q (%v); must be %q", found, err, excepted)
	}
}

func (g *governed) standing(t *testing.T) {
	e := g.legacy("legacy", time.Now())
	must(t, g.dev.Get(t.Context(), client.ObjectKeyFromObject(e), e))
	for name, patch := range map[string]string{
		"selector": `{"spec":{"objectSelector":{"matchLabels":null}}}`,
		"policies": `{"spec":{"policies":[{"name":"strict-mtls"},{"name":"node-pools"}]}}`,
		"reason":   `{"spec":{"reason":"Another one."}}`,
		"later":    fmt.Sprintf(`{"spec":{"expiresAt":%q}}`, time.Now().Add(2*time.Hour).UTC().Format(time.RFC3339)),
		"approval": `{"spec":{"approved":false}}`,
	} {
		for _, c := range []client.Client{g.dev, g.platform, g.admin} {
			err := c.Patch(t.Context(), e.DeepCopy(), mergePatch(patch))
			if err == nil {
				t.Errorf("%s can be changed after the approval", name)
				continue
			}
			refusedOwn(t, err, "MV507")
		}
	}
	must(t, g.dev.Patch(t.Context(), e, mergePatch(fmt.Sprintf(`{"spec":{"expiresAt":%q}}`, time.Now().Add(50*time.Minute).UTC().Format(time.RFC3339)))))
	must(t, g.tryOther(t))
}

// tryOther asks for a change of what the exception has let pass.
func (g *governed) tryOther(t *testing.T) error {
	t.Helper()
	weak := g.weak()
	return g.dev.Patch(t.Context(), weak, mergePatch(`{"spec":{"portLevelMtls":{"8080":{"mode":"DISABLE"}}}}`), client.DryRunAll)
}

func (g *governed) revoked(t *testing.T) {
	e := g.legacy("legacy", time.Now())
	must(t, g.tryOther(t))
	must(t, g.dev.Patch(t.Context(), e, mergePatch(`{"spec":{"revoked":true}}`)))
	for range 4 { // each replica twice
		refused(t, g.tryOther(t), "MV103")
	}
	refusedOwn(t, g.platform.Patch(t.Context(), e.DeepCopy(), mergePatch(`{"spec":{"revoked":false}}`)), "MV507")
	must(t, g.admin.Delete(t.Context(), g.weak()))
}

func (g *governed) deleted(t *testing.T) {
	e := g.legacy("deleted", time.Now().Add(time.Hour))
	create(t, g.dev, e)
	must(t, approve(t.Context(), g.platform, e))
	for range 4 {
		must(t, g.tryWeak(t.Context()))
	}
	must(t, g.dev.Delete(t.Context(), e))
	for range 4 {
		refused(t, g.tryWeak(t.Context()), "MV103")
	}
}

// ends asks all the time, and demands that an answer is that of before the end if it was
// given before, and that of after the end if it was asked for after.
func (g *governed) ends(t *testing.T) {
	e := g.legacy("ends", time.Now().Add(8*time.Second))
	create(t, g.dev, e)
	must(t, approve(t.Context(), g.platform, e))
	end := e.Spec.ExpiresAt.Time
	var lastPass, firstRefusal time.Duration
	passed, refusals := 0, 0
	for refusals < 20 {
		asked := time.Now()
		err := g.tryWeak(t.Context())
		answered := time.Now()
		switch {
		case err == nil:
			passed++
			lastPass = asked.Sub(end)
			if !asked.Before(end) {
				t.Fatalf("let pass %s after the end", asked.Sub(end))
			}
		default:
			refused(t, err, "MV103")
			if refusals++; refusals == 1 {
				firstRefusal = answered.Sub(end)
			}
			if answered.Before(end) {
				t.Fatalf("refused %s before the end", end.Sub(answered))
			}
		}
	}
	t.Logf("%d requests let pass, the last one asked at %s; the first refusal answered at %s, counted from the end", passed, lastPass, firstRefusal)
	if passed < 10 {
		t.Errorf("only %d requests were let pass; the end was not met", passed)
	}
	refusedOwn(t, g.dev.Create(t.Context(), g.legacy("past", time.Now().Add(-time.Second))), "MV502")
	refusedOwn(t, g.dev.Create(t.Context(), g.legacy("long", time.Now().Add(721*time.Hour))), "MV502", "must not be later than")
}

func (g *governed) withoutApproval(t *testing.T) {
	var have v1alpha1.MeshGuard
	must(t, g.admin.Get(t.Context(), client.ObjectKey{Name: "default"}, &have))
	loosen := `{"metadata":{"annotations":{"meshvakt.io/change-reason":%s}},"spec":{"exceptions":{"approval":"None"}}}`
	refusedOwn(t, g.platform.Patch(t.Context(), have.DeepCopy(), mergePatch(fmt.Sprintf(loosen, "null"))), "MV512", "spec.exceptions.approval")
	must(t, g.platform.Patch(t.Context(), have.DeepCopy(), mergePatch(fmt.Sprintf(loosen, `"CHG-1"`))))
	e := g.legacy("alone", time.Now().Add(time.Hour))
	create(t, g.dev, e)
	must(t, g.tryWeak(t.Context()))
	must(t, g.platform.Patch(t.Context(), have.DeepCopy(), mergePatch(`{"spec":{"exceptions":{"approval":"TwoPerson"}}}`)))
	refused(t, g.tryWeak(t.Context()), "MV103")
}

// TestGuardsAreHeld: who may write guards cannot take demands out of them.
func TestGuardsAreHeld(t *testing.T) {
	g := newGoverned(t)
	writer := g.dev
	have := func() *v1alpha1.MeshGuard {
		var now v1alpha1.MeshGuard
		must(t, g.admin.Get(t.Context(), client.ObjectKey{Name: "default"}, &now))
		return &now
	}
	change := func(c client.Client, reason string, edit func(*v1alpha1.MeshGuard)) error {
		for {
			now := have()
			edit(now)
			if reason != "" {
				metav1.SetMetaDataAnnotation(&now.ObjectMeta, v1alpha1.ChangeReasonAnnotation, reason)
			}
			// The leader writes the status meanwhile.
			if err := c.Update(t.Context(), now, client.DryRunAll); !apierrors.IsConflict(err) {
				return err
			}
		}
	}
	warn := func(m *v1alpha1.MeshGuard) {
		m.Spec.StrictMTLS.ValidationActions = []v1alpha1.ValidationAction{v1alpha1.Warn}
	}
	narrow := func(m *v1alpha1.MeshGuard) {
		m.Spec.NamespaceSelector.MatchExpressions = []metav1.LabelSelectorRequirement{{Key: "kubernetes.io/metadata.name", Operator: "NotIn", Values: []string{g.namespace}}}
	}
	refusedOwn(t, change(writer, "CHG-1", warn), "MV511", "spec.strictMTLS.validationActions", "unguard")
	refusedOwn(t, change(writer, "CHG-1", narrow), "MV511", "spec.namespaceSelector", g.namespace)
	refusedOwn(t, g.dev.Delete(t.Context(), have()), "MV511", "MV512", g.namespace)
	refusedOwn(t, change(g.platform, "", warn), "MV512")
	refusedOwn(t, change(g.admin, "", narrow), "MV512")
	refusedOwn(t, g.admin.Delete(t.Context(), have()), "MV512", "kubectl annotate")
	must(t, change(g.platform, "CHG-1", warn))
	must(t, change(writer, "", func(m *v1alpha1.MeshGuard) { m.Spec.Exceptions = nil })) // demands more
	// The same reason serves once.
	must(t, g.admin.Patch(t.Context(), have(), mergePatch(`{"metadata":{"annotations":{"`+v1alpha1.ChangeReasonAnnotation+`":"CHG-1"}}}`)))
	refusedOwn(t, change(g.platform, "CHG-1", warn), "MV512", `"CHG-1"`)
	must(t, change(g.platform, "CHG-2", warn))
	must(t, g.platform.Delete(t.Context(), have(), client.DryRunAll))
	if err := g.tryWeak(t.Context()); err == nil {
		t.Error("the guard no longer holds")
	}
}

// TestGovernanceWithoutGuards: the rules of Meshvakt itself hold without any guard.
func TestGovernanceWithoutGuards(t *testing.T) {
	start(t)
	must(t, plane.Apply(t.Context(), []byte(writings)))
	dev := clientFor(t, controlplane.Developer)
	name := unique("unguarded")
	create(t, dev, namespace(name, false))
	g := &governed{namespace: name}
	forged := g.legacy("forged", time.Now().Add(time.Hour))
	forged.Spec.Approved, forged.Spec.Requester, forged.Spec.Approver = true, "developer", "platform"
	eventually(t, 10*time.Second, func() error {
		err := dev.Create(t.Context(), forged.DeepCopy(), client.DryRunAll)
		if err == nil {
			return errors.New("an exception that approves itself is let in")
		}
		refusedOwn(t, err, "MV505")
		return nil
	})
	w := &witness{}
	must(t, w.client(t, controlplane.Developer).Create(t.Context(), g.legacy("asked", time.Now().Add(time.Hour))))
	if len(w.warnings) != 1 || !strings.Contains(w.warnings[0], "MV503") {
		t.Errorf("warnings %q; want MV503", w.warnings)
	}
}

// TestExceptionFromAdmissionPolicy: the API server's own policy lets go of a namespace in
// which an exception applies, and comes back by itself.
func TestExceptionFromAdmissionPolicy(t *testing.T) {
	start(t)
	must(t, plane.Apply(t.Context(), []byte(writings)))
	dev, platform := clientFor(t, controlplane.Developer), clientFor(t, controlplane.Platform)
	name := unique("agents")
	create(t, dev, namespace(name, true))
	serviceAccount(t, name)
	members := v1alpha1.DefaultGuard()
	members.Spec.StrictMTLS, members.Spec.SidecarResources, members.Spec.NodePools = nil, nil, nil
	guard(t, members)
	enforcing(t, members.Name)
	agent := func(app string) *corev1.Pod {
		p := pod(name, map[string]string{"app": app})
		p.Spec.HostNetwork = true
		return p
	}
	byPack := func() error { return notByPack(dev.Create(t.Context(), agent("agent"), client.DryRunAll), "MV205") }
	eventually(t, 30*time.Second, byPack)

	e := (&governed{namespace: name}).legacy("agent", time.Now().Add(30*time.Second)) // an API server compiles the policy anew, which may take seconds
	e.Spec.Policies[0].Name, e.Spec.ObjectSelector.MatchLabels["app"] = "mesh-membership", "agent"
	create(t, dev, e)
	must(t, approve(t.Context(), platform, e))
	approved := time.Now()
	eventually(t, time.Until(e.Spec.ExpiresAt.Time), func() error { return dev.Create(t.Context(), agent("agent"), client.DryRunAll) })
	t.Logf("the admission policy let go %s after the approval", time.Since(approved).Round(time.Millisecond))
	refused(t, dev.Create(t.Context(), agent("other"), client.DryRunAll), "MV205")
	eventually(t, time.Until(e.Spec.ExpiresAt.Time)+20*time.Second, byPack)
	t.Logf("the admission policy holds again %s after the end", time.Since(e.Spec.ExpiresAt.Time).Round(time.Millisecond))
}
