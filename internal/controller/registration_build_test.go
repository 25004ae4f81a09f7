package controller

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/policies"
)

func registrationOf(guards ...*v1alpha1.MeshGuard) *Registration {
	r := &Registration{
		Endpoint:       Endpoint{ServiceNamespace: "meshvakt-system", ServiceName: "meshvakt", ServicePort: 443},
		CABundle:       []byte("CA"),
		Policies:       policies.All(),
		RootNamespaces: []string{"istio-system", "mesh-b"},
		Unguardable:    []string{"kube-system", "meshvakt-system"},
		TimeoutSeconds: 5,
	}
	for _, g := range guards {
		r.Guards = append(r.Guards, *g)
	}
	return r
}

func built(t *testing.T, r *Registration) []admissionregistrationv1.ValidatingWebhook {
	t.Helper()
	list, err := webhooksOf[admissionregistrationv1.ValidatingWebhook](r.Build())
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func names(list []admissionregistrationv1.ValidatingWebhook) []string {
	out := make([]string, 0, len(list))
	for i := range list {
		out = append(out, list[i].Name)
	}
	return out
}

func entryOf(t *testing.T, list []admissionregistrationv1.ValidatingWebhook, name string) *admissionregistrationv1.ValidatingWebhook {
	t.Helper()
	i := slices.IndexFunc(list, func(w admissionregistrationv1.ValidatingWebhook) bool { return w.Name == name })
	if i < 0 {
		t.Fatalf("no entry %s among %q", name, names(list))
	}
	return &list[i]
}

func conditions(w *admissionregistrationv1.ValidatingWebhook) map[string]string {
	out := map[string]string{}
	for _, c := range w.MatchConditions {
		out[c.Name] = c.Expression
	}
	return out
}

func TestBuildEntries(t *testing.T) {
	one := guardWith("b", guardedSelector(), v1alpha1.OnMissingReject)
	two := guardWith("a", metav1.LabelSelector{}, v1alpha1.OnMissingHold)
	rootless := registrationOf(one)
	rootless.RootNamespaces = nil
	for name, c := range map[string]struct {
		registration *Registration
		want         []string
	}{
		"without guards only our own objects are asked about": {registrationOf(), []string{"own.meshvakt.io"}},
		"one entry for each guard, sorted": {registrationOf(one, two), []string{
			"own.meshvakt.io", "a.guard.meshvakt.io", "b.guard.meshvakt.io", "root.mesh.meshvakt.io", "settings.mesh.meshvakt.io", "everywhere.mesh.meshvakt.io", "namespaces.meshvakt.io",
		}},
		"without root namespaces no entry for them": {rootless, []string{
			"own.meshvakt.io", "b.guard.meshvakt.io", "settings.mesh.meshvakt.io", "everywhere.mesh.meshvakt.io", "namespaces.meshvakt.io",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := names(built(t, c.registration)); !slices.Equal(got, c.want) {
				t.Errorf("entries %q; want %q", got, c.want)
			}
		})
	}
}

// What another writer has set must not stay because we did not state it.
func TestBuildStatesEveryField(t *testing.T) {
	for _, w := range built(t, registrationOf(guardWith("default", guardedSelector(), v1alpha1.OnMissingReject))) {
		wantPolicy := admissionregistrationv1.Fail
		if w.Name == "everywhere.mesh.meshvakt.io" {
			wantPolicy = admissionregistrationv1.Ignore
		}
		if w.FailurePolicy == nil || *w.FailurePolicy != wantPolicy {
			t.Errorf("%s: failure policy %v; want %s", w.Name, w.FailurePolicy, wantPolicy)
		}
		if w.SideEffects == nil || *w.SideEffects != admissionregistrationv1.SideEffectClassNone ||
			w.MatchPolicy == nil || *w.MatchPolicy != admissionregistrationv1.Equivalent ||
			w.TimeoutSeconds == nil || *w.TimeoutSeconds != 5 ||
			w.NamespaceSelector == nil || w.ObjectSelector == nil || len(w.ObjectSelector.MatchLabels)+len(w.ObjectSelector.MatchExpressions) > 0 ||
			!slices.Equal(w.AdmissionReviewVersions, []string{"v1"}) || string(w.ClientConfig.CABundle) != "CA" {
			t.Errorf("%s: %+v", w.Name, w)
		}
		for _, r := range w.Rules {
			if r.Scope == nil {
				t.Errorf("%s: no scope in %+v", w.Name, r)
			}
		}
	}
}

// The API server asks about what the policies judge, in all versions and
// subresources, and about nothing else.
func TestBuildRulesAreTheMatchesOfThePolicies(t *testing.T) {
	list := built(t, registrationOf(guardWith("default", guardedSelector(), v1alpha1.OnMissingReject)))
	for entry, scopes := range map[string][]policies.Scope{
		"default.guard.meshvakt.io":   {policies.ScopeGuarded, policies.ScopeGuardedAndRoot},
		"root.mesh.meshvakt.io":       {policies.ScopeGuardedAndRoot},
		"everywhere.mesh.meshvakt.io": {policies.ScopeGuardedAndRoot},
		"namespaces.meshvakt.io":      {policies.ScopeNamespaces},
	} {
		t.Run(entry, func(t *testing.T) {
			w := entryOf(t, list, entry)
			want := map[string]bool{}
			for _, p := range policies.All() {
				// What the guard does not enforce is not asked about.
				if strings.HasSuffix(entry, ".guard.meshvakt.io") && p.ID != "strict-mtls" {
					continue
				}
				for _, m := range p.Matches {
					if !slices.Contains(scopes, m.Scope) {
						continue
					}
					for _, o := range m.Operations {
						for _, v := range m.Versions {
							for _, s := range append([]string{""}, m.Subresources...) {
								want[strings.TrimSuffix(fmt.Sprintf("%s %s/%s/%s/%s", o, m.Group, v, m.Resource, s), "/")] = true
							}
						}
					}
				}
			}
			got := map[string]bool{}
			for _, r := range w.Rules {
				wantScope := admissionregistrationv1.NamespacedScope
				if entry == "namespaces.meshvakt.io" {
					wantScope = admissionregistrationv1.ClusterScope
				}
				if *r.Scope != wantScope {
					t.Errorf("scope %s; want %s", *r.Scope, wantScope)
				}
				for _, o := range r.Operations {
					for _, g := range r.APIGroups {
						for _, v := range r.APIVersions {
							for _, resource := range r.Resources {
								got[fmt.Sprintf("%s %s/%s/%s", o, g, v, resource)] = true
							}
						}
					}
				}
			}
			if !reflect.DeepEqual(got, want) || len(want) == 0 {
				t.Errorf("got %v\nwant %v", got, want)
			}
		})
	}
}

// A guard's entry asks about what the guard enforces, in few conditions however many
// kinds there are.
func TestBuildAsksForWhatIsEnforced(t *testing.T) {
	only := func(strict, membership, resources, nodePools bool) *v1alpha1.MeshGuard {
		g := v1alpha1.DefaultGuard()
		if !nodePools {
			g.Spec.NodePools = nil
		}
		if !resources {
			g.Spec.SidecarResources = nil
		}
		if !strict {
			g.Spec.StrictMTLS = nil
		}
		if !membership {
			g.Spec.MeshMembership = nil
		}
		return g
	}
	const (
		podLabels = "request.operation != 'UPDATE' || request.resource.resource != 'pods' || object.?metadata.?labels != oldObject.?metadata.?labels"
		pods      = podLabels + " || object.?metadata.?annotations != oldObject.?metadata.?annotations || object.?spec != oldObject.?spec"
		templates = "request.operation != 'UPDATE' || !(request.resource.resource in ['replicationcontrollers', 'daemonsets', 'deployments', 'replicasets', 'statefulsets', 'rollouts', 'jobs'])" +
			" || object.?spec.?template != oldObject.?spec.?template"
		cronjobs = "request.operation != 'UPDATE' || request.resource.resource != 'cronjobs' || object.?spec.?jobTemplate != oldObject.?spec.?jobTemplate"
	)
	const replicas = " || object.?spec.?replicas != oldObject.?spec.?replicas || object.?spec.?parallelism != oldObject.?spec.?parallelism"
	for name, c := range map[string]struct {
		guard             *v1alpha1.MeshGuard
		asked, notAsked   string
		podsMustBeChanged string
		templates         string // what besides the templates
		configMaps        bool
	}{
		"strict-mtls alone":       {only(true, false, false, false), "peerauthentications", "deployments", podLabels, "none", false},
		"mesh-membership alone":   {only(false, true, false, false), "pods/ephemeralcontainers", "peerauthentications", pods, "", true},
		"sidecar-resources alone": {only(false, false, true, false), "pods/resize", "pods/ephemeralcontainers", pods, replicas, false},
		"node-pools alone":        {only(false, false, false, true), "pods/binding", "pods/resize", podLabels, "", false},
		"two":                     {only(true, true, false, false), "peerauthentications", "pods/resize", pods, "", true},
		"all":                     {only(true, true, true, true), "pods/resize", "none", pods, replicas, true},
	} {
		t.Run(name, func(t *testing.T) {
			list := built(t, registrationOf(c.guard))
			w := entryOf(t, list, "default.guard.meshvakt.io")
			var resources []string
			for _, r := range w.Rules {
				resources = append(resources, r.Resources...)
			}
			if !slices.Contains(resources, c.asked) || slices.Contains(resources, c.notAsked) || !slices.Contains(resources, "pods") {
				t.Errorf("asks about %q", resources)
			}
			got := conditions(w)
			if got["pods-changed"] != c.podsMustBeChanged {
				t.Errorf("pods: %s", got["pods-changed"])
			}
			if asks := got["replicationcontrollers-changed"] != ""; asks != (c.templates != "none") || len(got) > 8 ||
				asks && (got["replicationcontrollers-changed"] != templates+c.templates || got["cronjobs-changed"] != cronjobs+c.templates) {
				t.Errorf("conditions %v", got)
			}
			// Of the ConfigMaps in a namespace we are asked about two.
			if named := "request.resource.resource != 'configmaps' || request.name in ['istio-ca-crl', 'istio-ca-root-cert']"; (got["configmaps-named"] == named) != c.configMaps {
				t.Errorf("ConfigMaps: %s", got["configmaps-named"])
			}
			// Entries of no guard serve all guards there are or will be.
			if others := conditions(entryOf(t, list, "everywhere.mesh.meshvakt.io")); others["peerauthentications-changed"] == "" {
				t.Errorf("conditions everywhere: %v", others)
			}
		})
	}
}

// The settings of istiod are asked about if a policy judges them.
func TestBuildSettings(t *testing.T) {
	const entry = "settings.mesh.meshvakt.io"
	r := registrationOf(v1alpha1.DefaultGuard())
	r.IstioNamespace = "istio-system"
	if !slices.Contains(names(built(t, r)), entry) {
		t.Error("no entry")
	}
	r.Policies = []policies.Policy{{Matches: []policies.Match{{
		Resource: "configmaps", Versions: []string{"v1"}, Kind: "ConfigMap", Operations: []admissionv1.Operation{admissionv1.Update, admissionv1.Delete},
		Scope: policies.ScopeIstioSettings, OnlyIfChanged: []string{"data"},
	}}, Actions: policies.StrictMTLS().Actions}}
	w := entryOf(t, built(t, r), entry)
	if len(w.Rules) != 1 || *w.FailurePolicy != admissionregistrationv1.Fail || !slices.Equal(w.NamespaceSelector.MatchExpressions[0].Values, []string{"istio-system"}) {
		t.Errorf("entry %+v", w)
	}
	if got := conditions(w); len(got) != 3 || got["settings"] == "" || got["configmaps-changed"] == "" || got["not-namespace-cleanup"] == "" {
		t.Errorf("conditions %v", got)
	}
}

func TestBuildSelectors(t *testing.T) {
	list := built(t, registrationOf(guardWith("default", metav1.LabelSelector{
		MatchLabels:      map[string]string{"env": "prod"},
		MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "sandbox", Operator: metav1.LabelSelectorOpDoesNotExist}},
	}, v1alpha1.OnMissingReject)))
	for name, c := range map[string]struct {
		entry  string
		labels labels.Set
		want   bool
	}{
		"a guarded namespace":                        {"default.guard.meshvakt.io", labels.Set{"env": "prod", namespaceNameLabel: "x"}, true},
		"a namespace that the guard does not select": {"default.guard.meshvakt.io", labels.Set{"env": "test", namespaceNameLabel: "x"}, false},
		"a namespace that the guard takes out":       {"default.guard.meshvakt.io", labels.Set{"env": "prod", "sandbox": "", namespaceNameLabel: "x"}, false},
		"a namespace of Kubernetes, selected or not": {"default.guard.meshvakt.io", labels.Set{"env": "prod", namespaceNameLabel: "kube-system"}, false},
		"our own namespace, selected or not":         {"default.guard.meshvakt.io", labels.Set{"env": "prod", namespaceNameLabel: "meshvakt-system"}, false},
		"a root namespace":                           {"root.mesh.meshvakt.io", labels.Set{namespaceNameLabel: "mesh-b"}, true},
		"a namespace that is no root":                {"root.mesh.meshvakt.io", labels.Set{"env": "prod", namespaceNameLabel: "x"}, false},
		"policies anywhere":                          {"everywhere.mesh.meshvakt.io", labels.Set{namespaceNameLabel: "x"}, true},
		"namespaces, whose selectors are conditions": {"namespaces.meshvakt.io", labels.Set{}, true},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := metav1.LabelSelectorAsSelector(entryOf(t, list, c.entry).NamespaceSelector)
			if err != nil {
				t.Fatal(err)
			}
			if got := s.Matches(c.labels); got != c.want {
				t.Errorf("%s matches %v: %t", s, c.labels, got)
			}
		})
	}
}

func TestBuildConditions(t *testing.T) {
	list := built(t, registrationOf(guardWith("b", guardedSelector(), v1alpha1.OnMissingReject), guardWith("a", metav1.LabelSelector{}, v1alpha1.OnMissingReject)))
	const (
		label      = `(%[1]s.metadata.?labels.orValue({})[?'meshvakt.io/guarded'].orValue('') == 'true' && 'meshvakt.io/guarded' in %[1]s.metadata.?labels.orValue({}))`
		changed    = "request.operation != 'UPDATE' || request.resource.resource != 'peerauthentications' || object.?spec != oldObject.?spec || object.?metadata.?labels != oldObject.?metadata.?labels"
		notCleanup = "request.operation != 'DELETE' || request.userInfo.username != 'system:serviceaccount:kube-system:namespace-controller'"
	)
	const istio = "request.operation != 'UPDATE' || !(request.resource.resource in ['destinationrules', 'envoyfilters', 'proxyconfigs', 'serviceentries', 'sidecars', 'workloadentries', 'workloadgroups'])" +
		" || object.?spec != oldObject.?spec"
	pods := "request.operation != 'UPDATE' || request.resource.resource != 'pods' || object.?metadata.?labels != oldObject.?metadata.?labels"
	for entry, want := range map[string]map[string]string{
		"a.guard.meshvakt.io":         {"pods-changed": pods, "peerauthentications-changed": changed, "not-namespace-cleanup": notCleanup},
		"b.guard.meshvakt.io":         {"pods-changed": pods, "peerauthentications-changed": changed, "not-namespace-cleanup": notCleanup},
		"root.mesh.meshvakt.io":       {"destinationrules-changed": istio, "peerauthentications-changed": changed, "not-namespace-cleanup": notCleanup},
		"everywhere.mesh.meshvakt.io": {"destinationrules-changed": istio, "peerauthentications-changed": changed, "not-namespace-cleanup": notCleanup, "guardable": "!(request.namespace in ['kube-system', 'meshvakt-system', 'istio-system', 'mesh-b'])"},
		"namespaces.meshvakt.io": {
			"namespaces-changed": "request.operation != 'UPDATE' || request.resource.resource != 'namespaces' || object.?metadata.?labels != oldObject.?metadata.?labels",
			"guardable":          "!(object.metadata.name in ['kube-system', 'meshvakt-system'])",
			"guarded-or-root": "true || (request.operation == 'UPDATE' && true) || " +
				fmt.Sprintf(label, "object") + " || (request.operation == 'UPDATE' && " + fmt.Sprintf(label, "oldObject") + ")" +
				" || object.metadata.name in ['istio-system', 'mesh-b']",
		},
	} {
		t.Run(entry, func(t *testing.T) {
			w := entryOf(t, list, entry)
			if got := conditions(w); !reflect.DeepEqual(got, want) || len(w.MatchConditions) != len(want) {
				t.Errorf("got %q\nwant %q", got, want)
			}
		})
	}
}

func TestBuildEndpoint(t *testing.T) {
	guard := guardWith("default", guardedSelector(), v1alpha1.OnMissingReject)
	for url, want := range map[string]string{"https://127.0.0.1:10250": "https://127.0.0.1:10250/validate", "https://x/": "https://x/validate"} {
		r := registrationOf(guard)
		r.Endpoint.URL = url
		for _, w := range built(t, r) {
			if c := w.ClientConfig; c.Service != nil || c.URL == nil || *c.URL != want {
				t.Errorf("%s: %+v; want %s", w.Name, c, want)
			}
		}
	}
	for _, w := range built(t, registrationOf(guard)) {
		s := w.ClientConfig.Service
		if w.ClientConfig.URL != nil || s == nil || s.Name != "meshvakt" || s.Namespace != "meshvakt-system" || *s.Port != 443 || *s.Path != "/validate" {
			t.Errorf("%s: %+v", w.Name, w.ClientConfig)
		}
	}
}

// Writing the configuration twice must write the same, or it would be repaired
// for ever.
func TestBuildDependsOnNothingElse(t *testing.T) {
	selector := metav1.LabelSelector{MatchLabels: map[string]string{"a": "1", "b": "2", "c": "3", "d": "4"}}
	a, b := guardWith("a", selector, v1alpha1.OnMissingReject), guardWith("b", selector, v1alpha1.OnMissingReject)
	want := built(t, registrationOf(a, b))
	for range 20 {
		r := registrationOf(b, a)
		if got := built(t, r); !reflect.DeepEqual(got, want) {
			t.Fatalf("got %+v\nwant %+v", got, want)
		}
		if r.Guards[0].Name != "b" {
			t.Fatal("Build has sorted the guards of its caller")
		}
	}
}

func TestMerge(t *testing.T) {
	pods := policies.Match{Resource: "pods", Versions: []string{"v1"}, Operations: []admissionv1.Operation{admissionv1.Update}, OnlyIfChanged: []string{"spec"}, Subresources: []string{"status"}}
	with := func(edit func(*policies.Match)) policies.Match { m := pods; edit(&m); return m }
	for name, c := range map[string]struct {
		add  policies.Match
		want []policies.Match
	}{
		"the same again changes nothing": {pods, []policies.Match{pods}},
		"another resource is added": {
			policies.Match{Resource: "services"}, []policies.Match{pods, {Resource: "services"}},
		},
		"the same name in another group is another resource": {
			with(func(m *policies.Match) { m.Group = "example.com" }), []policies.Match{pods, with(func(m *policies.Match) { m.Group = "example.com" })},
		},
		"operations, subresources and what must change add up": {
			with(func(m *policies.Match) {
				m.Operations = []admissionv1.Operation{admissionv1.Delete, admissionv1.Update}
				m.Subresources, m.OnlyIfChanged = []string{"resize"}, []string{"metadata.?labels"}
			}),
			[]policies.Match{with(func(m *policies.Match) {
				m.Operations = []admissionv1.Operation{admissionv1.Update, admissionv1.Delete}
				m.Subresources, m.OnlyIfChanged = []string{"status", "resize"}, []string{"spec", "metadata.?labels"}
			})},
		},
		"where one wants every update, all are": {
			with(func(m *policies.Match) { m.OnlyIfChanged = nil }), []policies.Match{with(func(m *policies.Match) { m.OnlyIfChanged = nil })},
		},
		"one that judges no update has no say in it": {
			with(func(m *policies.Match) {
				m.Operations, m.OnlyIfChanged = []admissionv1.Operation{admissionv1.Create}, nil
			}),
			[]policies.Match{with(func(m *policies.Match) {
				m.Operations = []admissionv1.Operation{admissionv1.Update, admissionv1.Create}
			})},
		},
		"a subresource alone is something else": {
			with(func(m *policies.Match) { m.OnlySubresource = "binding" }),
			[]policies.Match{pods, with(func(m *policies.Match) { m.OnlySubresource = "binding" })},
		},
		"versions add up": {
			with(func(m *policies.Match) { m.Versions = []string{"v2"} }),
			[]policies.Match{with(func(m *policies.Match) { m.Versions = []string{"v1", "v2"} })},
		},
	} {
		t.Run(name, func(t *testing.T) {
			if got := merge(merge(nil, pods), c.add); !reflect.DeepEqual(got, c.want) {
				t.Errorf("got %+v\nwant %+v", got, c.want)
			}
			if !slices.Equal(pods.Operations, []admissionv1.Operation{admissionv1.Update}) || !slices.Equal(pods.OnlyIfChanged, []string{"spec"}) {
				t.Error("the policy's own match was changed")
			}
		})
	}
}

func TestSelectorCEL(t *testing.T) {
	const l = "o.metadata.?labels.orValue({})"
	for name, c := range map[string]struct {
		selector metav1.LabelSelector
		want     string
	}{
		"an empty selector selects all": {metav1.LabelSelector{}, "true"},
		"labels are sorted by key": {
			metav1.LabelSelector{MatchLabels: map[string]string{"b": "2", "a": ""}},
			"(" + l + "[?'a'].orValue('') == '' && 'a' in " + l + " && " + l + "[?'b'].orValue('') == '2' && 'b' in " + l + ")",
		},
		"In needs the label": {
			metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "a", Operator: metav1.LabelSelectorOpIn, Values: []string{"1", ""}}}},
			"('a' in " + l + " && " + l + "[?'a'].orValue('') in ['1', ''])",
		},
		"NotIn is true without the label": {
			metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "a", Operator: metav1.LabelSelectorOpNotIn, Values: []string{"1"}}}},
			"(!('a' in " + l + " && " + l + "[?'a'].orValue('') in ['1']))",
		},
		"Exists and DoesNotExist": {
			metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
				{Key: "a", Operator: metav1.LabelSelectorOpExists}, {Key: "b", Operator: metav1.LabelSelectorOpDoesNotExist},
			}},
			"('a' in " + l + " && !('b' in " + l + "))",
		},
	} {
		t.Run(name, func(t *testing.T) {
			if got := selectorCEL(&c.selector, "o"); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

// No value may end the string it stands in.
func TestCELString(t *testing.T) {
	for in, want := range map[string]string{
		"prod":          `'prod'`,
		"":              `''`,
		`it's`:          `'it\'s'`,
		`back\slash`:    `'back\\slash'`,
		`\'`:            `'\\\''`,
		"two\nlines\r":  `'two\nlines\r'`,
		`"double"`:      `'"double"'`,
		"x' || true //": `'x\' || true //'`,
	} {
		if got := celString(in); got != want {
			t.Errorf("%q: got %s; want %s", in, got, want)
		}
	}
	if got := celList(nil); got != "[]" {
		t.Errorf("empty list: %s", got)
	}
}

// The evidence tells of an entry that lets pass what nobody answers, unless it is meant to.
func TestFailsOpenIsWhatIsBuilt(t *testing.T) {
	guard := guardWith("a", guardedSelector(), v1alpha1.OnMissingReject)
	guard.Spec.NodePools = &v1alpha1.NodePools{ValidationActions: []v1alpha1.ValidationAction{v1alpha1.Deny}, ControlPlane: v1alpha1.ControlPlaneGuard}
	v1alpha1.SetDefaults(guard)
	list := built(t, registrationOf(guard))
	open := 0
	for i := range list {
		is := *list[i].FailurePolicy == admissionregistrationv1.Ignore
		if FailsOpen(WebhookName, list[i].Name) != is {
			t.Errorf("entry %s fails open: %v; FailsOpen says otherwise", list[i].Name, is)
		}
		if is {
			open++
		}
	}
	if open != 3 {
		t.Errorf("%d of %q fail open; must be those for the control plane, nodes and everywhere", open, names(list))
	}
	if !FailsOpen(MutatingName, "a.guard.meshvakt.io") {
		t.Error("an entry that only changes fails closed")
	}
}
