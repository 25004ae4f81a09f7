package admissionpolicy

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apiserver/pkg/admission"

	"encoding/json"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/check"
	"github.com/meshvakt/meshvakt/policies"
	"github.com/meshvakt/meshvakt/policies/celpack"
	"github.com/meshvakt/meshvakt/policies/facts"
	"github.com/meshvakt/meshvakt/policies/policytest"
)

func decode[T any](t testing.TB, d check.Document) *T {
	t.Helper()
	o := new(T)
	if err := json.Unmarshal(d.JSON, o); err != nil {
		t.Fatalf("%s: %v", d.Origin, err)
	}
	return o
}

func unstructuredOf(t testing.TB, d check.Document) *unstructured.Unstructured {
	t.Helper()
	u := &unstructured.Unstructured{}
	if err := u.UnmarshalJSON(d.JSON); err != nil {
		t.Fatalf("%s: %v", d.Origin, err)
	}
	return u
}

// requests are what the case asks under each guard that enforces mesh-membership
// in the namespace.
func requests(t testing.TB, c *policytest.Case) []*request {
	t.Helper()
	final := c.FinalDocument(t)
	if final.Namespace == "" || final.Kind.Kind == "ConfigMap" {
		return nil
	}
	base := request{object: unstructuredOf(t, final), operation: admission.Operation(c.Want.Operation), subresource: c.Want.Subresource, user: "developer"}
	if c.Want.Operation == "UPDATE" {
		old, ok := c.OldDocument(t)
		if !ok {
			t.Fatalf("%s: no old object", c.Name)
		}
		base.old = unstructuredOf(t, old)
	}
	var guards []*v1alpha1.MeshGuard
	for _, d := range c.ClusterDocuments(t) {
		switch d.Kind.Kind {
		case "MeshGuard":
			guards = append(guards, decode[v1alpha1.MeshGuard](t, d))
		case "Namespace":
			if d.Name == final.Namespace {
				base.namespace = decode[corev1.Namespace](t, d)
			}
		}
	}
	if len(guards) == 0 {
		guards = append(guards, v1alpha1.DefaultGuard())
	}
	review := c.Review(t)
	var list []*request
	for _, g := range guards {
		i := slices.IndexFunc(review.Cluster.Guards, func(f facts.Guard) bool { return f.Name == g.Name })
		if i < 0 || !review.Cluster.Selects(&review.Cluster.Guards[i], final.Namespace, base.namespace.Labels) || g.Spec.MeshMembership == nil {
			continue
		}
		one := base
		one.guard = g.DeepCopy()
		one.guard.Spec.MeshMembership = review.Cluster.Guards[i].MeshMembership // with defaults
		list = append(list, &one)
	}
	return list
}

// covered tells whether the pack has a rule for the reason that judges the object.
func covered(reason string, pod bool) bool {
	return slices.ContainsFunc(celpack.Coverage(), func(c celpack.Covered) bool {
		return c.Reason.Name == reason && (pod || c.Templates)
	})
}

// TestCorpus runs all cases about pods and templates: what the policy in Go lets
// pass is never refused; what it refuses for a reason that is covered is.
func TestCorpus(t *testing.T) {
	for _, lazy := range []bool{false, true} {
		name := "converted"
		if lazy {
			name = "lazy"
		}
		t.Run(name, func(t *testing.T) {
			e := newEvaluator(t, lazy)
			judged, refused := 0, 0
			for _, c := range policytest.Load(t, "../../../policies/testdata") {
				if c.Policy != "mesh-membership" {
					continue
				}
				for _, r := range requests(t, &c) {
					v, err := e.evaluate(t.Context(), r)
					if err != nil {
						t.Errorf("%s: %v", c.Name, err)
						continue
					}
					judged++
					if v.denied() {
						refused++
					}
					compare(t, &c, r, &v)
				}
			}
			t.Logf("%d judged, %d refused", judged, refused)
		})
	}
}

func compare(t *testing.T, c *policytest.Case, r *request, v *verdict) {
	t.Helper()
	var want []policies.Finding
	breaches := false
	for _, f := range c.Want.Findings {
		if f.Policy != "mesh-membership" || f.Reason == "StillOutOfMesh" {
			continue
		}
		reason := policies.Reason{}
		for _, m := range policies.MeshMembership().Reasons {
			if m.Name == f.Reason {
				reason = m
			}
		}
		breaches = true
		want = append(want, policies.Finding{Reason: reason, Field: f.Field, Message: f.Message, Remedy: f.Remedy})
	}
	if v.denied() && (c.Want.Decision != policies.Deny && !breaches || len(want) == 0) {
		t.Errorf("%s (%s): false alarm: %s", c.Name, c.Want.Decision, v.message)
		return
	}
	pod := r.object.GetKind() == "Pod"
	for _, f := range want {
		if covered(f.Reason.Name, pod) && !strings.Contains(v.message, "["+f.Reason.Code+"]") && c.Want.Decision == policies.Deny {
			t.Logf("%s: GAP %s", c.Name, f.Text())
		}
		if !covered(f.Reason.Name, pod) && c.Want.Decision == policies.Deny && !v.denied() {
			t.Logf("%s: NOT COVERED %s", c.Name, f.Reason.Name)
		}
	}
	for _, text := range v.findings {
		if !slices.ContainsFunc(want, func(f policies.Finding) bool { return f.Text() == text }) {
			t.Logf("%s: OTHER WORDS\n  %s\n  %s", c.Name, text, want[0].Text())
		}
	}
}

