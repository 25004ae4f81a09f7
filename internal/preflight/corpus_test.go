package preflight

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/check"
	"github.com/meshvakt/meshvakt/policies"
	"github.com/meshvakt/meshvakt/policies/policytest"
)

// otherwise are the cases that are forecast otherwise, each with its reason.
func otherwise() map[string]string {
	return map[string]string{
		"node-pools/deny-replicaset-of-deployment": "it is its Deployment that counts",
		"strict-mtls/deny-pod-before-provision":    "by the time that anybody creates the pod, Meshvakt has created the policy",
	}
}

// What stands in a cluster is forecast as the webhook would answer if it were created.
func TestForecastOfTheCorpus(t *testing.T) {
	n := 0
	for _, c := range policytest.Load(t, "../../policies/testdata") {
		if c.Want.Operation != admissionv1.Create || c.Want.Subresource != "" {
			continue
		}
		d := c.FinalDocument(t)
		at := slices.IndexFunc(Workloads(), func(w Workload) bool { return w.GroupKind == d.Kind.GroupKind() })
		if at < 0 || otherwise()[c.Policy+"/"+c.Name] != "" {
			continue
		}
		n++
		t.Run(c.Policy+"/"+c.Name, func(t *testing.T) {
			var guards []v1alpha1.MeshGuard
			// Istio's settings are its default ones where a case has none.
			state := check.Cluster{Unread: []string{"mutatingwebhookconfigurations"}}
			for _, in := range c.ClusterDocuments(t) {
				if in.Kind.Kind == "MeshGuard" {
					var g v1alpha1.MeshGuard
					if err := json.Unmarshal(in.JSON, &g); err != nil {
						t.Fatal(err)
					}
					v1alpha1.SetDefaults(&g)
					guards = append(guards, g)
				} else {
					state.Documents = append(state.Documents, in)
				}
			}
			if len(guards) == 0 {
				guards = defaultGuards()
			}
			f, err := NewForecaster(state, guards, "meshvakt-system", "a test", policytest.Now())
			if err != nil {
				t.Fatal(err)
			}
			d.Stored = true
			if f.Wants(&Workloads()[at], d.Namespace) {
				f.Judge(&d)
			}
			o := f.Forecast()
			if len(o.unread) > 0 {
				t.Fatal(o.unread[0].err)
			}
			if refused := kindOf(o, d.Kind.Kind).Refused == 1; refused != (c.Want.Decision == policies.Deny) {
				t.Errorf("refused %t; the webhook answers %s", refused, c.Want.Decision)
			}
			var want, got []string
			for _, found := range c.Want.Findings {
				want = append(want, found.Reason+" "+string(found.Action))
			}
			for _, found := range o.Findings {
				got = append(got, found.Reason+" "+string(found.Action))
			}
			slices.Sort(want)
			slices.Sort(got)
			if want = slices.Compact(want); !slices.Equal(got, want) {
				t.Errorf("finds %s; the webhook %s", strings.Join(got, ", "), strings.Join(want, ", "))
			}
		})
	}
	if n < 500 {
		t.Errorf("only %d cases", n)
	}
}
