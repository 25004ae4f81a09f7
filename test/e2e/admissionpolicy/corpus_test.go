package admissionpolicy

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apiserver/pkg/admission"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/check"
	"github.com/meshvakt/meshvakt/policies"
	"github.com/meshvakt/meshvakt/policies/celpack"
	"github.com/meshvakt/meshvakt/policies/facts"
	"github.com/meshvakt/meshvakt/policies/policytest"
)

const corpus = "../../../policies/testdata"

// trial is a request under one guard, and what the policy in Go finds.
type trial struct {
	name string
	request
	breaches []policies.Finding
}

// trials are the requests of a case under each guard that denies by mesh-membership
// in the namespace; none if the case is not about a pod or template.
func trials(t testing.TB, c *policytest.Case) []*trial {
	t.Helper()
	final := c.FinalDocument(t)
	if !slices.ContainsFunc(policies.MeshMembership().Matches, func(m policies.Match) bool {
		return m.Kind == final.Kind.Kind && m.Scope == policies.ScopeGuarded
	}) {
		return nil
	}
	r := request{object: untypedOf(t, final), operation: admission.Operation(c.Want.Operation), subresource: c.Want.Subresource, user: "developer"}
	if c.Want.Operation == "UPDATE" {
		old, ok := c.OldDocument(t)
		if !ok {
			t.Fatalf("%s: no old object", c.Name)
		}
		r.old = untypedOf(t, old)
	}
	for _, d := range c.ClusterDocuments(t) {
		if d.Kind.Kind == "Namespace" && d.Name == final.Namespace {
			r.namespace = &corev1.Namespace{}
			if err := json.Unmarshal(d.JSON, r.namespace); err != nil {
				t.Fatal(err)
			}
		}
	}
	return under(t, c.Name, c.Review(t), &r)
}

// under are trials of the request under the guards of the review.
func under(t testing.TB, name string, review *facts.Review, r *request) []*trial {
	t.Helper()
	var list []*trial
	for i := range review.Cluster.Guards {
		g := &review.Cluster.Guards[i]
		if g.MeshMembership == nil || !slices.Contains(g.MeshMembership.ValidationActions, v1alpha1.Deny) || !review.Cluster.Selects(g, review.Namespace, r.namespace.Labels) {
			continue
		}
		one := &trial{name: name, request: *r}
		one.guard = &v1alpha1.MeshGuard{Spec: v1alpha1.MeshGuardSpec{MeshMembership: g.MeshMembership}}
		one.guard.Name = g.Name
		found, err := policies.MeshMembership().Judge(review, g)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		one.breaches = slices.DeleteFunc(found, func(f policies.Finding) bool { return f.Severity != policies.Breach })
		list = append(list, one)
	}
	return list
}

func untypedOf(t testing.TB, d check.Document) *unstructured.Unstructured {
	t.Helper()
	u := &unstructured.Unstructured{}
	if err := u.UnmarshalJSON(d.JSON); err != nil {
		t.Fatalf("%s: %v", d.Origin, err)
	}
	return u
}

// meshMembership are the cases of the corpus about the policy.
func meshMembership(t testing.TB) []policytest.Case {
	t.Helper()
	return slices.DeleteFunc(policytest.Load(t, corpus), func(c policytest.Case) bool { return c.Policy != "mesh-membership" })
}

// covers tells whether the pack has a rule for the reason that judges the object.
func covers(reason string, pod bool) bool {
	return slices.ContainsFunc(celpack.Coverage(), func(c celpack.Covered) bool { return c.Reason.Name == reason && (pod || c.Templates) })
}

// gaps are cases with a reason that the pack covers, but not by what they do, with why
// not.
func gaps() map[string]string {
	const (
		unread   = "needs to read the JSON or YAML of an annotation"
		settings = "hangs on the settings of the mesh"
		arranged = "hangs on how the arguments are put together"
		injected = "whether a template is injected, or in ambient, is not known"
		webhook  = "is left to the webhook, which knows more of the proxy"
	)
	return map[string]string{
		"deny-deployment-ambient-bypass":                injected,
		"deny-deployment-config-interception-unknown":   unread,
		"deny-pod-config-interception-unknown":          unread,
		"deny-deployment-overrides-unreadable":          unread,
		"deny-deployment-user-volume-unreadable":        unread,
		"deny-deployment-proxy-mount-in-place":          injected,
		"deny-pod-authority":                            settings,
		"deny-pod-capture-excluded":                     settings,
		"deny-pod-capture-ports-outbound":               settings,
		"deny-pod-capture-ranges":                       settings,
		"deny-pod-capture-ranges-excluded":              settings,
		"deny-pod-cert-provider":                        settings,
		"deny-pod-cni-init":                             settings,
		"deny-pod-environment-field":                    settings,
		"deny-pod-init-wrong-group":                     settings,
		"deny-pod-init-wrong-port":                      settings,
		"deny-pod-init-wrong-user":                      settings,
		"deny-pod-podinfo":                              settings,
		"deny-pod-proxy-environment":                    settings,
		"deny-pod-roots":                                settings,
		"deny-pod-roots-by-items":                       settings,
		"deny-pod-roots-by-items-recorded":              settings,
		"deny-pod-roots-projected":                      settings,
		"deny-pod-volume-kind":                          settings,
		"deny-pod-init-argument-open":                   arranged,
		"deny-pod-init-argument-twice":                  arranged,
		"deny-deployment-config-service-cluster":        webhook,
		"deny-deployment-credential-socket":             webhook,
		"deny-deployment-exclude-outbound-address":      webhook,
		"deny-deployment-hook-rewrite":                  webhook,
		"deny-deployment-hooks-rewrite":                 webhook,
		"deny-deployment-metadata-not-a-pattern":        webhook,
		"deny-deployment-overrides-mount":               webhook,
		"deny-deployment-overrides-root":                webhook,
		"deny-deployment-proxy-mount-certs":             webhook,
		"deny-deployment-proxy-mount-mesh-certificates": webhook,
		"deny-deployment-proxy-mount-preload":           webhook,
		"deny-deployment-proxy-workdir":                 webhook,
		"deny-deployment-stats-prefix":                  webhook,
		"deny-deployment-stats-values":                  webhook,
		"deny-deployment-status-port-moved-by-mesh":     webhook,
		"deny-deployment-user-volume-mounts-system":     webhook,
		"deny-deployment-volume-crl":                    webhook,
		"deny-pod-argument-domain":                      webhook,
		"deny-pod-authority-name":                       webhook,
		"deny-pod-authority-namespace":                  webhook,
		"deny-pod-bootstrap-by-variable":                webhook,
		"deny-pod-cert-provider-mount":                  webhook,
		"deny-pod-certificates-driver":                  webhook,
		"deny-pod-config-service-cluster":               webhook,
		"deny-pod-crl-items":                            webhook,
		"deny-pod-environment-literal":                  webhook,
		"deny-pod-hook-rewrite":                         webhook,
		"deny-pod-init-inbound-port-of-user":            webhook,
		"deny-pod-init-variable-of-proxy":               webhook,
		"deny-pod-init-wrong-outbound-port":             webhook,
		"deny-pod-listen-ports-of-other-revision":       webhook,
		"deny-pod-mesh-certificates":                    webhook,
		"deny-pod-mesh-certificates-other":              webhook,
		"deny-pod-overrides-root":                       webhook,
		"deny-pod-podinfo-labels":                       webhook,
		"deny-pod-podinfo-resource":                     webhook,
		"deny-pod-probers-environment":                  webhook,
		"deny-pod-proxy-mount-certs":                    webhook,
		"deny-pod-proxy-mount-preload":                  webhook,
		"deny-pod-proxy-workdir":                        webhook,
		"deny-pod-roots-spelt":                          webhook,
		"deny-pod-stats-prefix":                         webhook,
		"deny-pod-volume-crl":                           webhook,
		"deny-pod-volume-kinds":                         webhook,
		"deny-pod-volume-kinds-spelt":                   webhook,
		"deny-update-pod-leaves-ambient-late":           webhook,
	}
}

// TestCorpus runs all cases about pods and templates: what the policy in Go lets
// pass is never refused, no expression fails, and what is refused for a reason that is
// covered is refused here.
func TestCorpus(t *testing.T) {
	for name, lazy := range map[string]bool{"objects converted": false, "objects as they are": true} {
		t.Run(name, func(t *testing.T) {
			e := newEvaluator(t, lazy)
			judged, refused, asGo := 0, 0, 0
			var most int64
			var open []string
			known := gaps()
			for _, c := range meshMembership(t) {
				if why := Apart()[c.Name]; why != "" {
					t.Logf("%s is not compared: %s", c.Name, why)
					continue
				}
				for _, one := range trials(t, &c) {
					v := e.try(t, one)
					judged++
					most = max(most, v.cost)
					if v.denied() {
						refused++
					}
					if why := missed(t, one, &v); why != "" {
						open = append(open, why)
						if _, is := known[c.Name]; !is && !strings.Contains(why, "not covered") {
							t.Errorf("%s: %s", c.Name, why)
						}
						delete(known, c.Name)
					}
					foreign(t, one, &v)
					asGo += sameWords(one, &v)
				}
			}
			for name := range known {
				t.Errorf("%s: is not let pass; must not be listed as a gap", name)
			}
			t.Logf("%d requests judged, %d refused, %d findings in the words of the policy in Go; most expensive %d of %d", judged, refused, asGo, most, 10_000_000)
			t.Logf("let pass:\n%s", strings.Join(open, "\n"))
		})
	}
}

// try evaluates the trial and demands what holds for all: no expression fails, and
// nothing is refused that the policy in Go lets pass.
func (e *evaluator) try(t testing.TB, one *trial) verdict {
	t.Helper()
	v, err := e.evaluate(t.Context(), &one.request)
	if err != nil {
		t.Errorf("%s: %v", one.name, err)
	}
	if v.denied() && len(one.breaches) == 0 {
		t.Errorf("%s: false alarm: %s", one.name, v.message)
	}
	return v
}

// missed says what of the breaches the policy does not refuse, "" if it refuses.
func missed(t testing.TB, one *trial, v *verdict) string {
	t.Helper()
	if len(one.breaches) == 0 || v.denied() && !slices.ContainsFunc(one.breaches, func(f policies.Finding) bool {
		return covers(f.Reason.Name, one.object.GetKind() == "Pod") && !strings.Contains(v.message, "["+f.Reason.Code+"]")
	}) {
		return ""
	}
	var reasons []string
	covered := false
	for _, f := range one.breaches {
		reasons = append(reasons, f.Reason.Name)
		covered = covered || covers(f.Reason.Name, one.object.GetKind() == "Pod")
	}
	slices.Sort(reasons)
	text := one.name + ": " + strings.Join(slices.Compact(reasons), ", ")
	switch {
	case v.denied():
		return "" // for another of its reasons
	case covered:
		return text + " (" + gaps()[one.name] + ")"
	}
	return text + " (not covered)"
}

// foreign demands that whatever is found is found by the policy in Go for the same
// reason. What keeps a pod from being injected is NotInMesh here.
func foreign(t *testing.T, one *trial, v *verdict) {
	t.Helper()
	for _, text := range v.findings {
		if !slices.ContainsFunc(one.breaches, func(f policies.Finding) bool {
			notInjected := slices.Contains([]string{"NamespaceNotInjected", "DeadRevision"}, f.Reason.Name) && strings.Contains(text, "[MV201]")
			return notInjected || strings.Contains(text, "["+f.Reason.Code+"]")
		}) {
			t.Errorf("%s: for another reason: %s", one.name, text)
		}
	}
}

// sameWords counts the findings that the policy in Go has, to the letter.
func sameWords(one *trial, v *verdict) int {
	n := 0
	for _, text := range v.findings {
		if slices.ContainsFunc(one.breaches, func(f policies.Finding) bool { return f.Text() == text }) {
			n++
		}
	}
	return n
}

// TestMixtures puts labels, annotations and containers of cases together at random,
// and into the clusters of others: nothing is refused that the policy in Go lets pass.
func TestMixtures(t *testing.T) {
	e := newEvaluator(t, false)
	var cases []policytest.Case
	for _, c := range meshMembership(t) {
		if d := c.FinalDocument(t); c.Want.Operation == "CREATE" && (d.Kind.Kind == "Pod" || d.Kind.Kind == "Deployment") {
			cases = append(cases, c)
		}
	}
	random := rand.New(rand.NewPCG(1, 2))
	refused, passed := 0, 0
	for n := range 500 {
		base := &cases[random.IntN(len(cases))]
		o := untypedOf(t, base.FinalDocument(t))
		name := fmt.Sprintf("mixture %d of %s", n, base.Name)
		for range random.IntN(3) {
			other := &cases[random.IntN(len(cases))]
			mix(o, untypedOf(t, other.FinalDocument(t)), random)
			name += ", " + other.Name
		}
		if doubled(o) {
			continue // the API server refuses it
		}
		home := &cases[random.IntN(len(cases))]
		name += " in the cluster of " + home.Name
		for _, one := range settled(t, name, o, home) {
			v := e.try(t, one)
			if v.denied() {
				refused++
			} else if len(one.breaches) == 0 {
				passed++
			}
		}
	}
	t.Logf("%d refused, %d let pass by both", refused, passed)
	if refused < 50 || passed < 20 {
		t.Errorf("%d refused, %d let pass: the mixtures try too little", refused, passed)
	}
}

// part is where the pod, or the template of one, is.
func part(o *unstructured.Unstructured, fields ...string) []string {
	if o.GetKind() == "Deployment" {
		return append([]string{"spec", "template"}, fields...)
	}
	return fields
}

// mix takes one thing of another object over.
func mix(into, from *unstructured.Unstructured, random *rand.Rand) {
	place := [][]string{{"metadata", "annotations"}, {"metadata", "labels"}, {"spec", "containers"}, {"spec", "initContainers"}, {"spec", "securityContext"}, {"spec", "volumes"}}[random.IntN(6)]
	value, found, err := unstructured.NestedFieldCopy(from.Object, part(from, place...)...)
	if !found || err != nil {
		return
	}
	if m, is := value.(map[string]any); is {
		if have, found, err := unstructured.NestedMap(into.Object, part(into, place...)...); found && err == nil {
			maps.Copy(have, m)
			value = have
		}
	}
	_ = unstructured.SetNestedField(into.Object, value, part(into, place...)...)
}

// doubled tells whether two containers have one name.
func doubled(o *unstructured.Unstructured) bool {
	seen := map[any]bool{}
	for _, field := range []string{"initContainers", "containers"} {
		list, _, _ := unstructured.NestedSlice(o.Object, part(o, "spec", field)...)
		for _, c := range list {
			name := c.(map[string]any)["name"]
			if seen[name] {
				return true
			}
			seen[name] = true
		}
	}
	return false
}

// settled are the trials of the object in the cluster of a case.
func settled(t *testing.T, name string, o *unstructured.Unstructured, home *policytest.Case) []*trial {
	t.Helper()
	namespace := home.FinalDocument(t).Namespace
	o.SetNamespace(namespace)
	text, err := o.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	docs, err := check.Parse(name, text)
	if err != nil {
		t.Fatal(err)
	}
	state, err := check.NewState(home.ClusterDocuments(t))
	if err != nil {
		t.Fatal(err)
	}
	review, err := state.Review(check.Request{Object: docs[0], Operation: "CREATE", Final: true})
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	r := request{object: o, operation: admission.Create, user: "developer"}
	for _, d := range home.ClusterDocuments(t) {
		if d.Kind.Kind == "Namespace" && d.Name == namespace {
			r.namespace = &corev1.Namespace{}
			if err := json.Unmarshal(d.JSON, r.namespace); err != nil {
				t.Fatal(err)
			}
		}
	}
	return under(t, name, review, &r)
}

// BenchmarkPolicy is what a harmless pod with its sidecar costs the API server.
func BenchmarkPolicy(b *testing.B) {
	e := newEvaluator(b, true)
	for _, c := range meshMembership(b) {
		if c.Name != "pass-pod" {
			continue
		}
		one := trials(b, &c)[0]
		for b.Loop() {
			if _, err := e.evaluate(b.Context(), &one.request); err != nil {
				b.Fatal(err)
			}
		}
	}
}
