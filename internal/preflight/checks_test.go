package preflight

import (
	"bytes"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/mesh"
)

func TestNothingIsInTheWay(t *testing.T) {
	r := New(ready(t), emptyForecast(), nil)
	for _, c := range r.Checks {
		if c.Result != Pass || c.Must != "" || c.Remedy != "" || c.Found == "" {
			t.Errorf("%+v", c)
		}
	}
	if r.Summary.Result != Pass || r.verdict() != "Nothing is in the way." {
		t.Errorf("%+v: %s", r.Summary, r.verdict())
	}
}

// Each case spoils the ready cluster in one way.
func TestChecks(t *testing.T) {
	first := func(f *Facts) *admissionregistrationv1.ValidatingWebhook { return &f.Validating.Value[0].Webhooks[0] }
	add := func(name string, edit func(*admissionregistrationv1.ValidatingWebhook)) func(*Facts) {
		return func(f *Facts) {
			f.Validating.Value = append(f.Validating.Value, validating(name, name+".example.com", edit))
		}
	}
	addMutating := func(name string, edit func(*admissionregistrationv1.MutatingWebhook)) func(*Facts) {
		return func(f *Facts) {
			f.Mutating.Value = append(f.Mutating.Value, mutating(name, name+".example.com", edit))
		}
	}
	in := func(namespace, name string) admissionregistrationv1.WebhookClientConfig {
		return admissionregistrationv1.WebhookClientConfig{Service: &admissionregistrationv1.ServiceReference{Namespace: namespace, Name: name}}
	}
	except := func(names ...string) *metav1.LabelSelector {
		return &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: corev1.LabelMetadataName, Operator: metav1.LabelSelectorOpNotIn, Values: names}}}
	}
	ignore, fail := admissionregistrationv1.Ignore, admissionregistrationv1.Fail
	ifNeeded := admissionregistrationv1.IfNeededReinvocationPolicy
	for _, tc := range []struct {
		name, check string
		spoil       func(*Facts)
		want        Result
		contains    string
	}{
		{"too old", "kubernetes-version", func(f *Facts) { f.Version.Value = "v1.23.5" }, Fail, "1.24 or later"},
		{"older than the chart", "kubernetes-version", func(f *Facts) { f.Version.Value = "v1.27.3-gke.100" }, Fail, "matchConditions"},
		{"older than tested", "kubernetes-version", func(f *Facts) { f.Version.Value = "v1.31.0" }, Pass, "in-place resize"},
		{"newer than tested", "kubernetes-version", func(f *Facts) { f.Version.Value = "v1.38.0" }, Warn, "tested"},
		{"no version", "kubernetes-version", func(f *Facts) { f.Version.Value = "latest" }, Unknown, "latest"},

		{"no Istio", "istio-kinds", func(f *Facts) { f.Served.Value = nil }, Fail, "does not know"},
		{"old Istio", "istio-kinds", func(f *Facts) {
			f.Served.Value[schema.GroupResource{Group: "security.istio.io", Resource: "peerauthentications"}] = []string{"v1beta1"}
		}, Fail, "v1beta1"},
		{"no settings", "istio-control-planes", func(f *Facts) { f.ControlPlanes.Value = nil }, Fail, "--istio-namespace"},
		{"istiod elsewhere", "istio-control-planes", func(f *Facts) { f.Istiods.Value = nil }, Warn, "app=istiod"},
		{"istiod in another namespace", "istio-control-planes", func(f *Facts) { f.Istiods.Value[0].Namespace = "mesh" }, Warn, "--istio-namespace"},
		{"istiod down", "istio-control-planes", func(f *Facts) { f.Istiods.Value[0].Status.ReadyReplicas = 0 }, Warn, "describe deployment istiod"},
		{"two roots", "istio-root-namespaces", func(f *Facts) {
			f.ControlPlanes.Value = append(f.ControlPlanes.Value, mesh.ControlPlane{Revision: "canary", RootNamespace: "istio-config"})
		}, Warn, `"istio-config", "istio-system"`},
		{"no root", "istio-root-namespaces", func(f *Facts) { f.ControlPlanes.Value[0].RootNamespace = "" }, Fail, "no root namespace"},
		{"permissive mesh", "istio-mesh-mode", func(f *Facts) { f.Policies.Value = nil }, Warn, "PERMISSIVE"},
		{"permissive for one of two", "istio-mesh-mode", func(f *Facts) {
			f.ControlPlanes.Value = append(f.ControlPlanes.Value, mesh.ControlPlane{Revision: "canary", RootNamespace: "istio-config"})
		}, Warn, "PERMISSIVE"},
		{"a policy of one namespace is not the mesh's", "istio-mesh-mode", func(f *Facts) { f.Policies.Value[0].Namespace = "payments" }, Warn, "PERMISSIVE"},
		{"no automatic mutual TLS", "istio-auto-mtls", func(f *Facts) { f.ControlPlanes.Value[0].EnableAutoMTLS = false }, Warn, "default"},
		{"root not discovered", "istio-discovery", func(f *Facts) { f.ControlPlanes.Value[0].DiscoverySelectors = selectorsFor("payments") }, Fail, "root namespace"},
		{"guarded namespace not discovered", "istio-discovery", func(f *Facts) { f.ControlPlanes.Value[0].DiscoverySelectors = selectorsFor("istio-system") }, Fail, "payments"},
		{"both discovered", "istio-discovery", func(f *Facts) { f.ControlPlanes.Value[0].DiscoverySelectors = selectorsFor("istio-system", "payments") }, Pass, ""},
		{"injector fails open", "istio-injection", func(f *Facts) { f.Mutating.Value[1].Webhooks[0].FailurePolicy = &ignore }, Warn, "Ignore"},
		{"no injector", "istio-injection", func(f *Facts) { f.Mutating.Value = f.Mutating.Value[:1] }, Warn, "no webhook of an injector"},
		{"no configuration of an injector", "istio-injection", func(f *Facts) { f.Injectors.Value = nil }, Warn, "default settings"},

		{"the last word", "webhook-order", addMutating("zz", func(w *admissionregistrationv1.MutatingWebhook) { w.ReinvocationPolicy = &ifNeeded }), Warn, "zz.example.com"},
		{"once after", "webhook-order", addMutating("zz", nil), Pass, "once more"},
		{"before", "webhook-order", addMutating("aa", func(w *admissionregistrationv1.MutatingWebhook) { w.ReinvocationPolicy = &ifNeeded }), Pass, "no webhook"},
		{"after, elsewhere", "webhook-order", addMutating("zz", func(w *admissionregistrationv1.MutatingWebhook) {
			w.ReinvocationPolicy, w.NamespaceSelector = &ifNeeded, except("payments")
		}), Pass, "no webhook"},
		{"after, about Services", "webhook-order", addMutating("zz", func(w *admissionregistrationv1.MutatingWebhook) {
			w.ReinvocationPolicy, w.Rules = &ifNeeded, aboutPods("services")
		}), Pass, "no webhook"},

		{"everything", "webhook-locks", add("all", func(w *admissionregistrationv1.ValidatingWebhook) { w.Rules = aboutPods("*/*") }), Fail, "leases of nodes"},
		{"everything, but open", "webhook-locks", add("all", func(w *admissionregistrationv1.ValidatingWebhook) {
			w.Rules, w.FailurePolicy = aboutPods("*/*"), &ignore
		}), Pass, "none of"},
		{"everything, under conditions", "webhook-locks", add("all", func(w *admissionregistrationv1.ValidatingWebhook) {
			w.Rules, w.MatchConditions = aboutPods("*"), []admissionregistrationv1.MatchCondition{{Name: "x", Expression: "true"}}
		}), Warn, "unless its matchConditions"},
		{"nodes' status", "webhook-locks", add("nodes", func(w *admissionregistrationv1.ValidatingWebhook) { w.Rules = aboutPods("nodes/status") }), Fail, "about nodes"},
		{"leases elsewhere", "webhook-locks", add("leases", func(w *admissionregistrationv1.ValidatingWebhook) {
			w.Rules, w.NamespaceSelector = aboutPods("leases"), except("kube-node-lease")
		}), Pass, "none of"},
		{"its own pods", "webhook-locks", add("own", func(w *admissionregistrationv1.ValidatingWebhook) {
			w.ClientConfig, w.FailurePolicy, w.NamespaceSelector = in("policy", "policy"), &fail, except("kube-system", "meshvakt-system")
		}), Fail, `its own namespace "policy"`},
		{"not its own pods", "webhook-locks", add("own", func(w *admissionregistrationv1.ValidatingWebhook) {
			w.ClientConfig, w.NamespaceSelector = in("policy", "policy"), except("kube-system", "meshvakt-system", "policy")
		}), Pass, "none of"},
		{"kube-system", "webhook-locks", add("system", func(w *admissionregistrationv1.ValidatingWebhook) { w.NamespaceSelector = except("meshvakt-system") }), Warn, "kube-system"},
		{"Meshvakt's pods", "webhook-locks", add("ours", func(w *admissionregistrationv1.ValidatingWebhook) { w.NamespaceSelector = except("kube-system") }), Warn, "Meshvakt's pods"},
		{"Meshvakt's pods, and guarded", "webhook-locks", add("ours", func(w *admissionregistrationv1.ValidatingWebhook) {
			w.ClientConfig, w.NamespaceSelector = in("payments", "policy"), except("kube-system", "payments")
		}), Fail, "neither can start"},
		{"Meshvakt's pods, by their labels", "webhook-locks", add("ours", func(w *admissionregistrationv1.ValidatingWebhook) {
			w.ObjectSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"app.kubernetes.io/name": "meshvakt"}}
		}), Warn, "Meshvakt's pods"},
		{"Meshvakt's pods, before it is installed", "webhook-locks", func(f *Facts) {
			f.Own.Value = nil
			add("ours", func(w *admissionregistrationv1.ValidatingWebhook) {
				w.ObjectSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"sidecar.istio.io/inject": "false"}}
			})(f)
		}, Warn, "Meshvakt's pods"},
		{"pods that ask for injection", "webhook-locks", addMutating("istio-auto", func(w *admissionregistrationv1.MutatingWebhook) {
			w.Name, w.NamespaceSelector, w.ClientConfig = "auto.sidecar-injector.istio.io", except("kube-system"), in("istio-system", "istiod")
			w.ObjectSelector = &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "sidecar.istio.io/inject", Operator: metav1.LabelSelectorOpDoesNotExist}}}
		}), Pass, "none of"},
		{"a guard that selects what is never guarded", "guarded-namespaces", func(f *Facts) { f.Namespaces.Value[1].Labels[v1alpha1.GuardedLabel] = v1alpha1.GuardedValue }, Pass, `"kube-system", which is never guarded`},
		{"pods with a label", "webhook-locks", add("some", func(w *admissionregistrationv1.ValidatingWebhook) {
			w.ObjectSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"a": "b"}}
		}), Pass, "none of"},
		{"nobody answers", "webhook-locks", func(f *Facts) {
			add("gone", func(w *admissionregistrationv1.ValidatingWebhook) {
				w.ClientConfig, w.Rules = in("policy", "gone"), aboutPods("services")
			})(f)
			f.Endpoints.Value[Service{"policy", "gone"}] = 0
		}, Fail, "policy/gone has no ready endpoint"},
		{"long timeout", "webhook-timeouts", add("slow", func(w *admissionregistrationv1.ValidatingWebhook) { w.TimeoutSeconds = new(int32(30)) }), Warn, "30 s"},

		{"burstable nodes alone", "nodes", func(f *Facts) { f.Nodes.Value = []corev1.Node{node("a", "t3.large")} }, Fail, "t3.large"},
		{"some burstable nodes", "nodes", func(f *Facts) { f.Nodes.Value = append(f.Nodes.Value, node("b", "t3.large"), node("c", "")) }, Pass, "1 without an instance type"},
		{"burstable nodes under a guard that warns", "nodes", func(f *Facts) {
			f.Nodes.Value = []corev1.Node{node("a", "t3.large")}
			f.Judged[0].Spec.NodePools.ValidationActions = []v1alpha1.ValidationAction{v1alpha1.Warn}
		}, Warn, "t3.large"},
		{"nodes in no allowed region", "nodes", func(f *Facts) {
			f.Judged[0].Spec.NodePools.AllowedRegions = []string{"norwayeast"}
		}, Fail, "in an allowed region (spec.nodePools.allowedRegions"},
		{"no nodes", "nodes", func(f *Facts) { f.Nodes.Value = nil }, Warn, "no nodes"},

		{"kinds missing", "meshvakt-installation", func(f *Facts) {
			delete(f.Served.Value, schema.GroupResource{Group: v1alpha1.Group, Resource: "guardexceptions"})
		}, Fail, "guardexceptions.meshvakt.io"},
		{"no replica ready", "meshvakt-replicas", func(f *Facts) { f.Own.Value[0].Status.ReadyReplicas = 0 }, Fail, "0 of 3"},
		{"a replica missing", "meshvakt-replicas", func(f *Facts) { f.Own.Value[0].Status.ReadyReplicas = 2 }, Warn, "2 of 3"},
		{"one replica", "meshvakt-replicas", func(f *Facts) {
			f.Own.Value[0].Spec.Replicas, f.Own.Value[0].Status.ReadyReplicas = nil, 1
		}, Warn, "two or more"},
		{"replicas that keep evidence", "meshvakt-replicas", keepEvidence, Pass, "3 of 3"},
		{"their budget", "meshvakt-disruption", keepEvidence, Pass, "lets 1 go"},
		{"none of them ready", "meshvakt-replicas", func(f *Facts) {
			keepEvidence(f)
			f.OwnSets.Value[0].Status.ReadyReplicas = 0
		}, Fail, "0 of 3"},
		{"replicas on the way to where they keep evidence", "meshvakt-replicas", func(f *Facts) {
			own := f.Own.Value
			keepEvidence(f)
			f.Own.Value = own
			f.Own.Value[0].Status.ReadyReplicas, f.OwnSets.Value[0].Status.ReadyReplicas = 0, 2
		}, Warn, "2 of 6"},
		{"no replicas", "meshvakt-replicas", func(f *Facts) { f.Own.Value = nil }, Warn, "no Deployment or StatefulSet"},
		{"Meshvakt's pods that keep evidence, by their labels", "webhook-locks", func(f *Facts) {
			keepEvidence(f)
			f.OwnSets.Value[0].Spec.Template.Labels["of"] = "evidence"
			add("ours", func(w *admissionregistrationv1.ValidatingWebhook) {
				w.ObjectSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"of": "evidence"}}
			})(f)
		}, Warn, "Meshvakt's pods"},
		{"not registered", "meshvakt-webhooks", func(f *Facts) { f.Validating.Value = nil }, Fail, "nothing is enforced"},
		{"expired CA", "meshvakt-webhooks", func(f *Facts) { first(f).ClientConfig.CABundle = certificate(t, testTime().Add(-time.Second)) }, Fail, "expired"},
		{"one of two CAs expired", "meshvakt-webhooks", func(f *Facts) {
			first(f).ClientConfig.CABundle = append(certificate(t, testTime().Add(-time.Second)), first(f).ClientConfig.CABundle...)
		}, Pass, ""},
		{"no CA", "meshvakt-webhooks", func(f *Facts) { first(f).ClientConfig.CABundle = nil }, Fail, "no certificate"},
		{"fails open", "meshvakt-webhooks", func(f *Facts) { first(f).FailurePolicy = &ignore }, Fail, "Ignore"},
		{"no endpoints", "meshvakt-webhooks", func(f *Facts) { f.Endpoints.Value = map[Service]int{} }, Fail, "no ready endpoint"},
		{"changes nothing", "meshvakt-webhooks", func(f *Facts) { f.Mutating.Value = f.Mutating.Value[1:] }, Warn, "MutatingWebhookConfiguration"},
		{"reaches kube-system", "meshvakt-reach", func(f *Facts) { first(f).NamespaceSelector = nil }, Fail, `pods in "kube-system"`},
		{"a guard selects kube-system", "meshvakt-reach", func(f *Facts) {
			f.Namespaces.Value[1].Labels[v1alpha1.GuardedLabel] = v1alpha1.GuardedValue
			first(f).NamespaceSelector.MatchExpressions = except("kube-system").MatchExpressions
		}, Warn, `selects "kube-system"`},
		{"not enforced", "meshvakt-guards", func(f *Facts) { f.Guards.Value[0].Status.Conditions = nil }, Fail, "default"},
		{"not compliant", "meshvakt-guards", func(f *Facts) {
			f.Guards.Value[0].Status.Conditions = append(f.Guards.Value[0].Status.Conditions, metav1.Condition{Type: v1alpha1.ConditionCompliant, Status: metav1.ConditionFalse, Message: "1 of 2"})
		}, Warn, "1 of 2"},
		{"not enforced, with a reason", "meshvakt-guards", func(f *Facts) {
			f.Guards.Value[0].Status.Conditions[0] = metav1.Condition{Type: v1alpha1.ConditionEnforcing, Status: metav1.ConditionFalse, Reason: "NotRegistered"}
		}, Fail, "NotRegistered"},
		{"degraded", "meshvakt-guards", func(f *Facts) {
			f.Guards.Value[0].Status.Conditions = append(f.Guards.Value[0].Status.Conditions, metav1.Condition{Type: "Degraded", Status: metav1.ConditionTrue, Message: "cannot restore"})
		}, Warn, "cannot restore"},
		{"not degraded", "meshvakt-guards", func(f *Facts) {
			f.Guards.Value[0].Status.Conditions = append(f.Guards.Value[0].Status.Conditions, metav1.Condition{Type: "Degraded", Status: metav1.ConditionFalse, Message: "well"})
		}, Pass, ""},
		{"no guard", "meshvakt-guards", func(f *Facts) { f.Guards.Value = nil }, Warn, "nothing is guarded"},
		{"no budget", "meshvakt-disruption", func(f *Facts) { f.Budgets.Value[0].Spec.Selector.MatchLabels = map[string]string{"a": "b"} }, Warn, "no PodDisruptionBudget"},
		{"budget is used up", "meshvakt-disruption", func(f *Facts) { f.Budgets.Value[0].Status.DisruptionsAllowed = 0 }, Warn, "drained"},
	} {
		t.Run(tc.check+"/"+tc.name, func(t *testing.T) {
			f := ready(t)
			tc.spoil(f)
			c := checkOf(t, f, tc.check)
			text := strings.Join(append([]string{c.Found, c.Must, c.Remedy}, c.Details...), "\n")
			if c.Result != tc.want || !strings.Contains(text, tc.contains) {
				t.Errorf("%+v; want %s with %q", c, tc.want, tc.contains)
			}
			if c.Result != Pass && (c.Must == "" || c.Found == "") || c.Result == Pass && c.Must != "" {
				t.Errorf("found and must: %+v", c)
			}
			if (c.Result == Warn || c.Result == Fail) && c.Remedy == "" && tc.check != "kubernetes-version" {
				t.Errorf("no way out: %+v", c)
			}
		})
	}
}

func selectorsFor(names ...string) []labels.Selector {
	var list []labels.Selector
	for _, n := range names {
		list = append(list, labels.SelectorFromSet(labels.Set{corev1.LabelMetadataName: n}))
	}
	return list
}

// keepEvidence has the replicas be of a StatefulSet.
func keepEvidence(f *Facts) {
	d := &f.Own.Value[0]
	s := appsv1.StatefulSet{ObjectMeta: d.ObjectMeta}
	s.Spec.Replicas, s.Spec.Template, s.Status.ReadyReplicas = d.Spec.Replicas, d.Spec.Template, d.Status.ReadyReplicas
	f.Own.Value, f.OwnSets.Value = nil, []appsv1.StatefulSet{s}
}

func TestNotInstalled(t *testing.T) {
	f := ready(t)
	f.Own.Value, f.Validating.Value, f.Guards.Value = nil, nil, nil
	f.OwnSets.Err = &LackingError{Right{"list", "apps", "statefulsets", ""}}
	if c := New(f, emptyForecast(), nil).Checks; !slices.ContainsFunc(c, func(c Check) bool { return c.ID == "meshvakt-installation" && c.Result == Unknown }) {
		t.Errorf("installed or not, it is not known: %+v", c)
	}
	f.OwnSets.Err = nil
	only := func(found string, result Result) {
		t.Helper()
		for _, c := range New(f, emptyForecast(), nil).Checks {
			if strings.HasPrefix(c.ID, "meshvakt-") && (c.ID != "meshvakt-installation" || c.Result != result || !strings.HasPrefix(c.Found, found)) {
				t.Errorf("%+v", c)
			}
		}
	}
	only("not installed, but for", Pass)
	f.Served.Value = map[schema.GroupResource][]string{{Group: "security.istio.io", Resource: "peerauthentications"}: {"v1"}}
	only("not installed", Pass)
	f.Validating.Err = &LackingError{Right{"list", "", "things", ""}}
	only("not all could be looked at", Unknown)
}

// Whatever cannot be read, no check that rests on it passes.
func TestUnknownIsNoPass(t *testing.T) {
	lacking := &LackingError{Right{"list", "", "things", ""}}
	for name, tc := range map[string]struct {
		lack   func(*Facts)
		checks string
	}{
		"version":      {func(f *Facts) { f.Version.Err = lacking }, "kubernetes-version"},
		"kinds":        {func(f *Facts) { f.Served.Err = lacking }, "istio-kinds meshvakt-installation"},
		"namespaces":   {func(f *Facts) { f.Namespaces.Err = lacking }, "istio-mesh-mode istio-discovery webhook-order webhook-locks meshvakt-reach"},
		"settings":     {func(f *Facts) { f.ControlPlanes.Err = lacking }, "istio-control-planes istio-root-namespaces istio-mesh-mode istio-auto-mtls istio-discovery"},
		"injectors":    {func(f *Facts) { f.Injectors.Err = lacking }, "istio-injection"},
		"istiods":      {func(f *Facts) { f.Istiods.Err = lacking }, "istio-control-planes"},
		"policies":     {func(f *Facts) { f.Policies.Err = lacking }, "istio-mesh-mode"},
		"mutating":     {func(f *Facts) { f.Mutating.Err = lacking }, "istio-injection webhook-order webhook-locks webhook-timeouts meshvakt-webhooks"},
		"validating":   {func(f *Facts) { f.Validating.Err = lacking }, "webhook-locks webhook-timeouts meshvakt-webhooks meshvakt-reach"},
		"endpoints":    {func(f *Facts) { f.Endpoints.Err = lacking }, "webhook-locks meshvakt-webhooks"},
		"nodes":        {func(f *Facts) { f.Nodes.Err = lacking }, "nodes"},
		"guards":       {func(f *Facts) { f.Guards.Err = lacking }, "meshvakt-reach meshvakt-guards"},
		"deployments":  {func(f *Facts) { f.Own.Err = lacking }, "meshvakt-replicas meshvakt-disruption"},
		"statefulsets": {func(f *Facts) { f.OwnSets.Err = lacking }, "meshvakt-replicas meshvakt-disruption"},
		"budgets":      {func(f *Facts) { f.Budgets.Err = lacking }, "meshvakt-disruption"},
	} {
		t.Run(name, func(t *testing.T) {
			f := ready(t)
			tc.lack(f)
			var unknown []string
			r := New(f, emptyForecast(), nil)
			for _, c := range r.Checks {
				if c.Result == Unknown {
					unknown = append(unknown, c.ID)
					if !strings.Contains(c.Found, "may not list things") {
						t.Errorf("%+v", c)
					}
				}
			}
			if got := strings.Join(unknown, " "); got != tc.checks {
				t.Errorf("unknown: %s; want %s", got, tc.checks)
			}
			if r.Summary.Result != Unknown {
				t.Errorf("the whole is %s", r.Summary.Result)
			}
		})
	}
	t.Run("forecast", func(t *testing.T) {
		r := New(ready(t), nil, lacking)
		if r.Summary.Unknown != 1+len(classes()) || r.Summary.Result != Unknown {
			t.Errorf("%+v", r.Summary)
		}
		for _, err := range []error{lacking, errors.New("timeout")} {
			o := emptyForecast()
			o.unread = []unread{{"", err}}
			if r := New(ready(t), o, nil); r.Summary.Unknown != len(classes()) {
				t.Errorf("%v: %+v", err, r.Summary)
			}
			o.unread = []unread{{classPods, err}}
			if r := New(ready(t), o, nil); r.Summary.Unknown != 1 {
				t.Errorf("%v: %+v", err, r.Summary)
			}
		}
	})
}

func TestTable(t *testing.T) {
	f := ready(t)
	f.Lacking = []Right{{"list", "apps", "deployments", "payments"}}
	f.Nodes.Err = &LackingError{Right{"list", "", "nodes", ""}}
	f.Policies.Value = nil
	long := strings.Repeat("x", 300)
	o := emptyForecast()
	o.Kinds = []KindCount{{Kind: "Pod", Judged: 3, Refused: 2}}
	o.Findings = []FindingCount{
		{"strict-mtls", "MV101", "NamespaceNotStrict", "Pod", v1alpha1.Deny, 2, 1, []Example{{"payments/" + long, "metadata.namespace", "found; must be STRICT", "set it"}, {Object: "payments/b"}}},
		{"node-pools", "MV401", "Elsewhere", "Pod", v1alpha1.Warn, 1, 0, []Example{{Object: "payments/c", Message: "left out"}}},
	}
	o.Namespaces.Refused = 1
	o.Worst, o.Notes = []NamespaceCount{{"payments", 2}}, []string{"something"}
	r := New(f, o, nil)
	var plain, coloured bytes.Buffer
	for buffer, colour := range map[*bytes.Buffer]bool{&plain: false, &coloured: true} {
		if err := r.WriteTable(buffer, colour); err != nil {
			t.Fatal(err)
		}
	}
	for line := range strings.Lines(plain.String()) {
		if n := len([]rune(strings.TrimRight(line, "\n"))); n > tableWidth {
			t.Errorf("%d columns: %s", n, line)
		}
	}
	var uncoloured strings.Builder
	for i, part := range strings.Split(coloured.String(), "\x1b[") {
		if i > 0 {
			_, part, _ = strings.Cut(part, "m")
		}
		uncoloured.WriteString(part)
	}
	if uncoloured.String() != plain.String() || coloured.String() == plain.String() {
		t.Error("colours change more than colours")
	}
	for _, want := range []string{
		`list deployments.apps in namespace "payments"`, "UNKNOWN  nodes", "WARN     istio-mesh-mode", "FAIL     forecast-pods",
		"e.g. payments/xxx", "must be STRICT", "fix: set it", "also payments/b", "Refusals by namespace: payments 2", "note: something",
		"1 only outdated", "Enforcing now would break running work: it would refuse 2 objects of 1 namespace;",
	} {
		if !strings.Contains(strings.Join(strings.Fields(plain.String()), " "), strings.Join(strings.Fields(want), " ")) {
			t.Errorf("the table lacks %q:\n%s", want, plain.String())
		}
	}
	if strings.Contains(plain.String(), "left out") {
		t.Error("a warning is explained beside refusals")
	}
	var out bytes.Buffer
	if err := r.WriteJSON(&out); err != nil {
		t.Fatal(err)
	}
	var back Report
	if err := json.Unmarshal(out.Bytes(), &back); err != nil || len(back.Checks) != len(r.Checks) || back.Summary != r.Summary {
		t.Errorf("%v: %+v", err, back.Summary)
	}
}

func TestRole(t *testing.T) {
	var out bytes.Buffer
	names := Names{Namespace: "meshvakt-system", IstioNamespace: "istio-system"}
	if err := WriteRoles(&out, names); err != nil {
		t.Fatal(err)
	}
	for _, r := range append(ClusterRights(names), NamespacedRights(nil)...) {
		if r.Verb != "list" || r.Resource == "secrets" {
			t.Errorf("%+v", r)
		}
		if !strings.Contains(out.String(), r.Resource) || !strings.Contains(out.String(), `"`+r.Group+`"`) {
			t.Errorf("the role lacks %s", r)
		}
	}
}
