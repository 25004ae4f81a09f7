package check_test

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/check"
	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/policies"
	"github.com/meshvakt/meshvakt/policies/policytest"
)

// TestApplyAgreesWithRequests: a manifest that is applied to a cluster gets the answer that
// the request gets by which it is applied, in every case of the corpus of which that can
// be said: not where something is deleted, a subresource is changed, the user matters, or
// applying a manifest does not take away what an update would.
func TestApplyAgreesWithRequests(t *testing.T) {
	judged := 0
	for _, c := range policytest.Load(t, "../../policies/testdata") {
		if c.Want.Operation == "DELETE" || c.Want.Subresource != "" || c.Want.User != "" || c.Want.MayApprove {
			continue
		}
		object := c.FinalDocument(t)
		if object.Kind.Kind == "Binding" || object.Kind.Kind == "GuardException" {
			continue
		}
		t.Run(c.Policy+"/"+c.Name, func(t *testing.T) {
			cluster := clusterOf(t, &c)
			if object.Kind.Kind == "Namespace" && leavesOut(t, &c, object) {
				t.Skip("a label or annotation is left out")
			}
			result, err := check.Apply(check.Change{
				Manifests: []check.Document{object}, Cluster: cluster, MayUnguard: c.Want.MayUnguard, Final: true, Now: policytest.Now(),
			})
			if err != nil {
				t.Fatal(err)
			}
			want := c.Want.Answer
			if want.Decision == policytest.NotApplicable {
				if result.Summary.Warned+result.Summary.Denied > 0 {
					t.Errorf("nobody judges this, yet: %+v", result.Results)
				}
				return
			}
			if len(result.Results) == 0 && want.Decision == policies.Allow {
				return
			}
			if len(result.Results) != 1 || result.Results[0].Decision != want.Decision {
				t.Fatalf("got %+v; want %s", result.Results, want.Decision)
			}
			var got []policytest.WantFinding
			for _, f := range result.Results[0].Findings {
				got = append(got, policytest.WantFinding{
					Policy: f.Policy, Reason: f.Reason, Action: f.Action, Field: f.Field, Message: f.Message, Remedy: f.Remedy, Exception: f.Exception,
				})
			}
			for _, list := range [][]policytest.WantFinding{got, want.Findings} {
				for i := range list { // some cases name the image, for others it is not known
					list[i].Message = strings.ReplaceAll(list[i].Message, "registry.istio.io/testing/proxyv2:latest", "what the injector renders")
				}
			}
			if !reflect.DeepEqual(got, want.Findings) {
				t.Errorf("findings differ\n got: %+v\nwant: %+v", got, want.Findings)
			}
			judged++
		})
	}
	if judged < 800 {
		t.Errorf("only %d cases were judged; must be 800 at least", judged)
	}
}

// clusterOf is the state of a case as a cluster would be read, with what cases take for
// granted.
func clusterOf(t *testing.T, c *policytest.Case) check.Cluster {
	t.Helper()
	docs := c.ClusterDocuments(t)
	if c.Old != nil {
		old, _ := c.OldDocument(t)
		docs = slices.DeleteFunc(docs, func(d check.Document) bool {
			return d.Kind.GroupKind() == old.Kind.GroupKind() && d.Namespace == old.Namespace && d.Name == old.Name
		})
		docs = append(docs, old)
	}
	has := func(kind, name string) bool {
		return slices.ContainsFunc(docs, func(d check.Document) bool { return d.Kind.Kind == kind && (name == "" || d.Name == name) })
	}
	review := c.Review(t)
	var more []any
	if !has("MeshGuard", "") {
		g := v1alpha1.DefaultGuard()
		g.TypeMeta = metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion().String(), Kind: "MeshGuard"}
		more = append(more, g)
	}
	// Namespaces that are there whether a case says so or not.
	for _, name := range append(review.Cluster.RootNamespaces(), "kube-system", "kube-public", "kube-node-lease") {
		if !has("Namespace", name) {
			more = append(more, &corev1.Namespace{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"}, ObjectMeta: metav1.ObjectMeta{Name: name}})
		}
	}
	cluster := check.Cluster{}
	if !has("Node", "") {
		cluster.Unread = []string{"nodes"}
	}
	injector, webhooks := slices.ContainsFunc(docs, isInjector), slices.ContainsFunc(docs, isInjection)
	planes := slices.CompactFunc(slices.Clone(review.Cluster.ControlPlanes), func(a, b mesh.ControlPlane) bool { return a.Revision == b.Revision })
	for _, plane := range planes {
		if !injector {
			more = append(more, injectorOf(plane.Revision))
		}
		if !webhooks {
			more = append(more, webhooksOf(t, plane.Revision))
		}
	}
	for _, o := range more {
		text, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		docs = append(docs, parse(t, string(text))...)
	}
	for i := range docs {
		docs[i].Stored = true
	}
	cluster.Documents = docs
	return cluster
}

func isInjector(d check.Document) bool {
	var m corev1.ConfigMap
	return d.Kind.Kind == "ConfigMap" && json.Unmarshal(d.JSON, &m) == nil && mesh.IsInjector(m.Name, m.Data)
}

func isInjection(d check.Document) bool {
	var m admissionregistrationv1.MutatingWebhookConfiguration
	if d.Kind.Kind != "MutatingWebhookConfiguration" || json.Unmarshal(d.JSON, &m) != nil {
		return false
	}
	list, err := mesh.ParseInjectionWebhooks(&m)
	return err == nil && len(list) > 0
}

// injectorOf is the configuration by which Istio injects with its default values.
func injectorOf(revision string) *corev1.ConfigMap {
	return &corev1.ConfigMap{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"},
		ObjectMeta: metav1.ObjectMeta{Name: "istio-sidecar-injector-" + revision, Namespace: "istio-system", Labels: map[string]string{"istio.io/rev": revision}},
		Data: map[string]string{
			"config": "policy: enabled",
			"values": `{"global": {"hub": "registry.istio.io/testing", "tag": "latest", "proxy": {"image": "proxyv2", "statusPort": 15020, "includeInboundPorts": "*", "includeIPRanges": "*", "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"cpu": "2000m", "memory": "1024Mi"}}}, "proxy_init": {"image": "proxyv2"}}}`,
		},
	}
}

func webhooksOf(t *testing.T, revision string) *admissionregistrationv1.MutatingWebhookConfiguration {
	t.Helper()
	config := &admissionregistrationv1.MutatingWebhookConfiguration{
		TypeMeta:   metav1.TypeMeta{APIVersion: "admissionregistration.k8s.io/v1", Kind: "MutatingWebhookConfiguration"},
		ObjectMeta: metav1.ObjectMeta{Name: "istio-sidecar-injector-" + revision, Labels: map[string]string{"istio.io/rev": revision}},
	}
	for _, w := range mesh.DefaultInjection(revision).Webhooks {
		namespaces, err := metav1.ParseToLabelSelector(w.NamespaceSelector.String())
		if err != nil {
			t.Fatal(err)
		}
		objects, err := metav1.ParseToLabelSelector(w.ObjectSelector.String())
		if err != nil {
			t.Fatal(err)
		}
		config.Webhooks = append(config.Webhooks, admissionregistrationv1.MutatingWebhook{
			Name: w.Name, NamespaceSelector: namespaces, ObjectSelector: objects,
			Rules: []admissionregistrationv1.RuleWithOperations{{
				Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.Create},
				Rule:       admissionregistrationv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"pods"}},
			}},
		})
	}
	return config
}

// leavesOut reports whether the old object has a label or annotation that the new one has
// not: applying a manifest leaves it there.
func leavesOut(t *testing.T, c *policytest.Case, object check.Document) bool {
	t.Helper()
	old, ok := c.OldDocument(t)
	if !ok {
		return false
	}
	var before, after corev1.Namespace
	if err := json.Unmarshal(old.JSON, &before); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(object.JSON, &after); err != nil {
		t.Fatal(err)
	}
	for key := range before.Labels {
		if _, has := after.Labels[key]; !has {
			return true
		}
	}
	return len(before.Annotations) > len(after.Annotations)
}
