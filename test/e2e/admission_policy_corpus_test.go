package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/policies"
	"github.com/meshvakt/meshvakt/policies/celpack"
	"github.com/meshvakt/meshvakt/policies/policytest"
	"github.com/meshvakt/meshvakt/test/controlplane"
	"github.com/meshvakt/meshvakt/test/e2e/admissionpolicy"
)

// packCase is a case of the corpus that creates a pod or template, in a namespace
// like its own under a guard like its own.
type packCase struct {
	policytest.Case
	state  string // names guard and namespace; "" where no guard that denies selects it
	labels map[string]string
	guard  *v1alpha1.MeshGuard
}

// packCases reads the corpus. Guards and namespaces that are alike are one.
func packCases(t *testing.T) (cases []packCase, states map[string]*packCase) {
	t.Helper()
	states = map[string]*packCase{}
	names := map[string]string{}
	for _, c := range policytest.Load(t, "../../policies/testdata") {
		d := c.FinalDocument(t)
		podsOrTemplates := slices.ContainsFunc(policies.MeshMembership().Matches, func(m policies.Match) bool {
			// Of Bindings an admission policy could know their labels, not the pod's.
			return m.Kind == d.Kind.Kind && m.Kind != "Binding" && m.Scope == policies.ScopeGuarded
		})
		if c.Policy != "mesh-membership" || c.Want.Operation != "CREATE" || !podsOrTemplates {
			continue
		}
		// Where an exception applies, Meshvakt binds the policy to no pods of the namespace.
		if slices.ContainsFunc(c.Want.Findings, func(f policytest.WantFinding) bool { return f.Exception != "" }) {
			continue
		}
		p := packCase{Case: c}
		review := c.Review(t)
		for _, n := range c.ClusterDocuments(t) {
			if n.Kind.Kind != "Namespace" || n.Name != d.Namespace {
				continue
			}
			var ns corev1.Namespace
			must(t, json.Unmarshal(n.JSON, &ns))
			p.labels = ns.Labels
		}
		for i := range review.Cluster.Guards {
			g := &review.Cluster.Guards[i]
			if g.MeshMembership == nil || !slices.Contains(g.MeshMembership.ValidationActions, v1alpha1.Deny) || !review.Cluster.Selects(g, d.Namespace, p.labels) {
				continue
			}
			key, err := json.Marshal([]any{g.MeshMembership, p.labels})
			must(t, err)
			if names[string(key)] == "" {
				names[string(key)] = fmt.Sprintf("state-%02d", len(names)+1)
			}
			p.state = names[string(key)]
			p.guard = &v1alpha1.MeshGuard{ObjectMeta: metav1.ObjectMeta{Name: p.state}, Spec: v1alpha1.MeshGuardSpec{
				NamespaceSelector: metav1.LabelSelector{MatchLabels: map[string]string{"state": p.state}}, MeshMembership: g.MeshMembership,
			}}
			states[p.state] = &p
		}
		cases = append(cases, p)
	}
	return cases, states
}

// object is what is created: the pod as it is after injection, or the template.
func (p *packCase) object(t *testing.T, namespace string) *unstructured.Unstructured {
	t.Helper()
	u := &unstructured.Unstructured{}
	must(t, u.UnmarshalJSON(p.FinalDocument(t).JSON))
	u.SetNamespace(namespace)
	u.SetResourceVersion("")
	u.SetUID("")
	if u.GetKind() == "Pod" && u.GetName() == "" && u.GetGenerateName() == "" {
		u.SetGenerateName("case-")
	}
	return u
}

// TestAdmissionPolicyCorpus is the admission policy as one more reader of the corpus,
// with no Meshvakt running: it lets in every pod and template that the policy in Go
// lets in, and refuses for the same reasons, where it covers them. What evaluates
// the cases without an API server, and on updates too, is the package admissionpolicy.
func TestAdmissionPolicyCorpus(t *testing.T) {
	ownPlane(t, controlplane.Options{Log: os.Stderr})
	must(t, plane.Apply(t.Context(), []byte(rolloutsAndDebugging)))
	cases, states := packCases(t)
	var guards []*v1alpha1.MeshGuard
	for _, s := range states {
		guards = append(guards, s.guard)
	}
	packAlone(t, guards...)
	namespaces := map[string]string{}
	for name, s := range states {
		labels := map[string]string{"state": name}
		for k, v := range s.labels {
			if k != corev1.LabelMetadataName {
				labels[k] = v
			}
		}
		namespaces[name] = packNamespace(t, labels)
	}
	namespaces[""] = packNamespace(t, nil)
	for _, s := range states {
		packActive(t, namespaces[s.state])
	}
	dryRun := client.NewDryRunClient(clientFor(t, controlplane.Admin))
	var open []string
	admitted, refused, invalid := 0, 0, 0
	for _, c := range cases {
		if why := admissionpolicy.Apart()[c.Name]; why != "" {
			t.Logf("%s is not compared: %s", c.Name, why)
			continue
		}
		err := dryRun.Create(t.Context(), c.object(t, namespaces[c.state]))
		switch {
		case err == nil && c.Want.Decision == policies.Deny:
			open = append(open, c.Name+": "+strings.Join(c.reasons(), ", ")+c.whyOpen())
		case err == nil:
			admitted++
		case apierrors.IsInvalid(err) && c.Want.Decision == policies.Deny:
			invalid++ // by Kubernetes itself
		case c.Want.Decision != policies.Deny:
			t.Errorf("%s: must be let in: %v", c.Name, err)
		default:
			refused++
			refusedByPack(t, err)
			if !slices.ContainsFunc(c.codes(), func(code string) bool { return strings.Contains(err.Error(), "["+code+"]") }) {
				t.Errorf("%s: must be refused by one of %q: %v", c.Name, c.codes(), err)
			}
		}
	}
	t.Logf("%d cases under %d guards: %d let in by both, %d refused by both, %d refused by Kubernetes before", len(cases), len(states), admitted, refused, invalid)
	t.Logf("%d refused by the policy in Go alone:\n%s", len(open), strings.Join(open, "\n"))
	if admitted < 30 || refused < 100 {
		t.Errorf("only %d were let in and %d refused: the policy is not in force", admitted, refused)
	}
}

func (p *packCase) reasons() []string {
	var list []string
	for _, f := range p.Want.Findings {
		list = append(list, f.Reason)
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// codes are those of the findings that refuse. What keeps a pod from being injected
// is NotInMesh to the admission policy.
func (p *packCase) codes() []string {
	var list []string
	for _, r := range policies.MeshMembership().Reasons {
		if slices.Contains(p.reasons(), r.Name) {
			list = append(list, r.Code)
			if r.Name == "NamespaceNotInjected" || r.Name == "DeadRevision" {
				list = append(list, "MV201")
			}
		}
	}
	return list
}

// whyOpen says whether the pack has no rule for the reasons at all.
func (p *packCase) whyOpen() string {
	covered := slices.ContainsFunc(celpack.Coverage(), func(c celpack.Covered) bool { return slices.Contains(p.reasons(), c.Reason.Name) })
	if covered {
		return " (by something that the object does not tell; see the gaps in package admissionpolicy)"
	}
	return " (not covered)"
}
