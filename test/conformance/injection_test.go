package conformance

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"istio.io/istio/pilot/pkg/features"
	"istio.io/istio/pilot/pkg/model"
	istiomesh "istio.io/istio/pkg/config/mesh"
	"istio.io/istio/pkg/config/mesh/meshwatcher"
	"istio.io/istio/pkg/kube/inject"
	"istio.io/istio/pkg/log"
	"istio.io/istio/pkg/test"
	admissionv1 "k8s.io/api/admission/v1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/meshvakt/meshvakt/internal/mesh"
)

// injectionCase is a cluster with injectors, and pods that are created in it.
type injectionCase struct {
	configurations []admissionregistrationv1.MutatingWebhookConfiguration
	// configs are the texts of the injectors' configurations by revision.
	configs map[string]string
	pods    []mesh.Candidate
}

// Values are odd on purpose: what is no word that Istio knows must be taken as Istio takes it.
var (
	injectValues    = []string{"true", "true", "false", "false", "false", "True", "False", "TRUE", "0", "1", "f", "yes", "no", "", "", "", "enabled"}
	injectionValues = []string{"enabled", "enabled", "enabled", "disabled", "Enabled", "true", ""}
	revisionValues  = []string{"default", "default", "canary", "prod", "gone", ""}
	dataplaneValues = []string{"ambient", "none", "Ambient", ""}
	injectionSpaces = []string{"prod", "prod", "prod", "prod", "prod", "prod", "prod", "prod", "prod", "default", "istio-system", "kube-system", "kube-public", "kube-node-lease", "local-path-storage", "kube-systems"}
	injectorPolicy  = []string{"enabled", "enabled", "enabled", "disabled", "disabled", "Enabled", "", "bogus"}
	// A selector that cannot be read, and one that is empty, are skipped.
	injectorSelectors = []string{
		"{}", "{matchLabels: {app: a}}", "{matchLabels: {app: b, tier: x}}", "{matchExpressions: [{key: app, operator: Exists}]}",
		"{matchExpressions: [{key: app, operator: NotIn, values: [a]}]}", "{matchExpressions: [{key: tier, operator: DoesNotExist}]}",
		"{matchExpressions: [{key: app, operator: Bogus}]}", "{matchExpressions: [{key: app, operator: In}]}",
	}
)

// maybe sets a label or annotation in one of n cases.
func maybe(r *rand.Rand, n int, set map[string]string, key string, values []string) {
	if r.IntN(n) == 0 {
		set[key] = pick(r, values)
	}
}

func randomInjectionCase(r *rand.Rand) injectionCase {
	c := injectionCase{configs: map[string]string{}}
	for _, revision := range []string{"default", "canary"} {
		if r.IntN(4) == 0 {
			continue
		}
		c.configurations = append(c.configurations, chartWebhooks("istio-sidecar-injector-"+revision, revision, revision, revision == "default", r.IntN(8) == 0))
		c.configs[revision] = randomConfig(r)
		if r.IntN(3) == 0 {
			// A tag; "default" makes a revision the one that label istio-injection means.
			tag := "prod"
			if revision != "default" && c.configs["default"] == "" {
				tag = "default"
			}
			c.configurations = append(c.configurations, chartWebhooks("istio-revision-tag-"+tag+"-"+revision, revision, tag, tag == "default", false))
		}
	}
	if r.IntN(4) == 0 {
		c.configurations = append(c.configurations, otherWebhooks())
	}
	for range 20 {
		c.pods = append(c.pods, randomCandidate(r))
	}
	return c
}

func randomConfig(r *rand.Rand) string {
	var b strings.Builder
	fmt.Fprintf(&b, "policy: %q\ntemplates:\n  sidecar: |\n    metadata: {annotations: {injected: \"yes\"}}\n", pick(r, injectorPolicy))
	for _, field := range []string{"neverInjectSelector", "alwaysInjectSelector"} {
		fmt.Fprintf(&b, "%s:\n", field)
		for range r.IntN(3) {
			fmt.Fprintf(&b, "- %s\n", pick(r, injectorSelectors))
		}
	}
	return b.String()
}

func randomCandidate(r *rand.Rand) mesh.Candidate {
	c := mesh.Candidate{
		Namespace: pick(r, injectionSpaces), HostNetwork: r.IntN(12) == 0,
		NamespaceLabels: map[string]string{}, Labels: map[string]string{}, Annotations: map[string]string{},
	}
	maybe(r, 2, c.NamespaceLabels, "istio-injection", injectionValues)
	maybe(r, 3, c.NamespaceLabels, "istio.io/rev", revisionValues)
	maybe(r, 4, c.NamespaceLabels, "istio.io/dataplane-mode", dataplaneValues)
	maybe(r, 2, c.Labels, "sidecar.istio.io/inject", injectValues)
	maybe(r, 3, c.Labels, "istio.io/rev", revisionValues)
	maybe(r, 5, c.Labels, "istio.io/dataplane-mode", dataplaneValues)
	maybe(r, 2, c.Labels, "app", []string{"a", "b", ""})
	maybe(r, 3, c.Labels, "tier", []string{"x", "y"})
	maybe(r, 3, c.Annotations, "sidecar.istio.io/inject", injectValues)
	maybe(r, 6, c.Annotations, "sidecar.istio.io/status", []string{"", "{}", `{"revision":"default"}`})
	return c
}

// chartWebhooks is the configuration of a revision or tag with the entries of Istio's chart
// (istio-discovery/templates/mutatingwebhook.yaml and revision-tags-mwc.yaml).
func chartWebhooks(name, revision, tag string, isDefault, deactivated bool) admissionregistrationv1.MutatingWebhookConfiguration {
	type selector = []metav1.LabelSelectorRequirement
	is := func(key string, op metav1.LabelSelectorOperator, values ...string) metav1.LabelSelectorRequirement {
		return metav1.LabelSelectorRequirement{Key: key, Operator: op, Values: values}
	}
	const in, notIn, absent = metav1.LabelSelectorOpIn, metav1.LabelSelectorOpNotIn, metav1.LabelSelectorOpDoesNotExist
	const injection, rev, wish = "istio-injection", "istio.io/rev", "sidecar.istio.io/inject"
	m := admissionregistrationv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{rev: revision}}}
	if tag != revision {
		m.Labels["istio.io/tag"] = tag
	}
	add := func(name string, namespaces, objects selector) {
		w := admissionregistrationv1.MutatingWebhook{
			Name:              name + ".sidecar-injector.istio.io",
			NamespaceSelector: &metav1.LabelSelector{MatchExpressions: namespaces},
			ObjectSelector:    &metav1.LabelSelector{MatchExpressions: objects},
			Rules: []admissionregistrationv1.RuleWithOperations{{
				Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.Create},
				Rule:       admissionregistrationv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"pods"}},
			}},
		}
		if deactivated {
			w.NamespaceSelector.MatchLabels = map[string]string{"istio.io/deactivated": "never-match"}
		}
		m.Webhooks = append(m.Webhooks, w)
	}
	add("rev.namespace", selector{is(rev, in, tag), is(injection, absent)}, selector{is(wish, notIn, "false")})
	add("rev.object", selector{is(rev, absent), is(injection, absent)}, selector{is(wish, notIn, "false"), is(rev, in, tag)})
	if isDefault {
		add("namespace", selector{is(injection, in, "enabled")}, selector{is(wish, notIn, "false")})
		add("object", selector{is(injection, absent), is(rev, absent)}, selector{is(wish, in, "true"), is(rev, absent)})
	}
	return m
}

// otherWebhooks ask about everything, and lead to no injector, or not when a pod is created.
func otherWebhooks() admissionregistrationv1.MutatingWebhookConfiguration {
	rule := func(op admissionregistrationv1.OperationType, resource string) []admissionregistrationv1.RuleWithOperations {
		return []admissionregistrationv1.RuleWithOperations{{
			Operations: []admissionregistrationv1.OperationType{op},
			Rule:       admissionregistrationv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{resource}},
		}}
	}
	return admissionregistrationv1.MutatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: "others", Labels: map[string]string{"istio.io/rev": "default"}},
		Webhooks: []admissionregistrationv1.MutatingWebhook{
			{Name: "sidecar-injector.example.com", Rules: rule(admissionregistrationv1.Create, "pods")},
			{Name: "update.sidecar-injector.istio.io", Rules: rule(admissionregistrationv1.Update, "pods")},
			{Name: "services.sidecar-injector.istio.io", Rules: rule(admissionregistrationv1.Create, "services")},
		},
	}
}

// ourInjection reads the objects of a case as Meshvakt does.
func ourInjection(t *testing.T, c injectionCase) mesh.Injection {
	t.Helper()
	var injection mesh.Injection
	for i := range c.configurations {
		list, err := mesh.ParseInjectionWebhooks(&c.configurations[i])
		if err != nil {
			t.Fatal(err)
		}
		injection.Webhooks = append(injection.Webhooks, list...)
	}
	for revision, text := range c.configs {
		injector, err := mesh.ParseInjector("istio-sidecar-injector-"+revision, map[string]string{"istio.io/rev": revision}, map[string]string{"config": text, "values": "{}"})
		if err != nil {
			t.Fatal(err)
		}
		injection.Injectors = append(injection.Injectors, injector)
	}
	return injection
}

// injector is Istio's own webhook, asked over its HTTP handler. Its template is as small as one can be: what is
// compared is whether there is a patch, not what it does.
type injector struct {
	mux     *http.ServeMux
	handler func(*inject.Config, string) error
}

// staticWatcher hands the webhook the configurations that the test sets.
type staticWatcher struct{ i *injector }

func (w staticWatcher) SetHandler(h func(*inject.Config, string) error) { w.i.handler = h }
func (w staticWatcher) Run(<-chan struct{})                             {}
func (w staticWatcher) Get() (*inject.Config, string, error) {
	config, err := inject.UnmarshalConfig([]byte("policy: enabled\n"))
	return &config, "{}", err
}

func newInjector(t *testing.T) *injector {
	t.Helper()
	for _, scope := range log.Scopes() {
		scope.SetOutputLevel(log.NoneLevel)
	}
	test.SetForTest(t, &features.EnableNativeSidecars, features.NativeSidecarModeDisabled) // spares the nodes
	i := &injector{mux: http.NewServeMux()}
	env := model.NewEnvironment()
	env.Watcher = meshwatcher.NewTestWatcher(istiomesh.DefaultMeshConfig())
	env.Init()
	env.SetPushContext(model.NewPushContext())
	if _, err := inject.NewWebhook(inject.WebhookParameters{Watcher: staticWatcher{i}, Env: env, Mux: i.mux, Revision: "default"}); err != nil {
		t.Fatal(err)
	}
	return i
}

func (i *injector) configure(t *testing.T, text string) {
	t.Helper()
	config, err := inject.UnmarshalConfig([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if err := i.handler(&config, "{}"); err != nil {
		t.Fatal(err)
	}
}

// injects asks the webhook about the creation of the pod.
func (i *injector) injects(t *testing.T, c mesh.Candidate) bool {
	t.Helper()
	pod, err := json.Marshal(corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: c.Namespace, Labels: c.Labels, Annotations: c.Annotations},
		Spec:       corev1.PodSpec{HostNetwork: c.HostNetwork, Containers: []corev1.Container{{Name: "web", Image: "web"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	review := admissionv1.AdmissionReview{
		TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"},
		Request:  &admissionv1.AdmissionRequest{UID: "1", Namespace: c.Namespace, Operation: admissionv1.Create},
	}
	review.Request.Object.Raw = pod
	body, err := json.Marshal(review)
	if err != nil {
		t.Fatal(err)
	}
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/inject", bytes.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	w := httptest.NewRecorder()
	i.mux.ServeHTTP(w, r)
	var answer admissionv1.AdmissionReview
	if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil {
		t.Fatalf("HTTP %d %s: %v", w.Code, w.Body, err)
	}
	if answer.Response == nil || !answer.Response.Allowed {
		t.Fatalf("Istio refuses the pod: %s", w.Body)
	}
	return len(answer.Response.Patch) > 0
}

// istioInjects is the API server and Istio: every webhook that is asked, in order, by the injector of its
// revision.
func istioInjects(t *testing.T, istios map[string]*injector, c injectionCase, pod mesh.Candidate) bool {
	t.Helper()
	matches := func(s *metav1.LabelSelector, set map[string]string) bool {
		if s == nil {
			return true
		}
		selector, err := metav1.LabelSelectorAsSelector(s)
		if err != nil {
			t.Fatal(err)
		}
		return selector.Matches(labels.Set(set))
	}
	for _, m := range c.configurations {
		if m.Name == "others" {
			continue // they lead to no injector
		}
		for _, w := range m.Webhooks {
			if matches(w.NamespaceSelector, pod.NamespaceLabels) && matches(w.ObjectSelector, pod.Labels) && istios[m.Labels["istio.io/rev"]].injects(t, pod) {
				return true
			}
		}
	}
	return false
}

// newInjectors returns the injectors of the revisions that cases have.
func newInjectors(t *testing.T) map[string]*injector {
	t.Helper()
	return map[string]*injector{"default": newInjector(t), "canary": newInjector(t)}
}

// eachInjection calls f with random cases, for which the injectors are configured.
func eachInjection(t *testing.T, s uint64, n int, f func(c injectionCase, istios map[string]*injector) bool) {
	t.Helper()
	istios := newInjectors(t)
	for i := range n {
		c := randomInjectionCase(sequence(s, i))
		for revision, text := range c.configs {
			istios[revision].configure(t, text)
		}
		if !f(c, istios) {
			return
		}
	}
}

// Whether a pod gets a sidecar is what Istio's own webhook answers, where the API server asks it.
func TestInjectionDifferential(t *testing.T) {
	n, s := cases(2000), seed(t)
	begin, pods, seen := time.Now(), 0, map[mesh.InjectionCause]int{}
	eachInjection(t, s, n, func(c injectionCase, istios map[string]*injector) bool {
		injection := ourInjection(t, c)
		for _, pod := range c.pods {
			pods++
			got, want := injection.Decide(pod), istioInjects(t, istios, c, pod)
			seen[got.Cause]++
			if got.Injected() != want {
				t.Fatalf("Istio injects: %t; ours: %s\npod %+v\nconfigurations of %v\nconfigs %s", want, got.Cause, pod, names(c), c.configs)
			}
		}
		return true
	})
	t.Logf("%d pods in %d clusters in %v: %v", pods, n, time.Since(begin).Round(time.Millisecond), seen)
	for _, cause := range []mesh.InjectionCause{
		mesh.Injected, mesh.NotInjectedHostNetwork, mesh.NotInjectedIgnoredNamespace, mesh.NotInjectedLabel, mesh.NotInjectedAnnotation,
		mesh.NotInjectedNamespace, mesh.NotInjectedNamespaceDisabled, mesh.NotInjectedNamespaceRevision, mesh.NotInjectedPodRevision,
		mesh.NotInjectedNoInjector, mesh.NotInjectedSelector, mesh.NotInjectedPolicy,
	} {
		if seen[cause] < pods/500 {
			t.Errorf("only %d pods of cause %s: the generator is too tame", seen[cause], cause)
		}
	}
}

func names(c injectionCase) []string {
	var list []string
	for _, m := range c.configurations {
		list = append(list, m.Name)
	}
	return list
}

// Each mutant decides with one rule wrong; the comparison must notice it.
func TestInjectionMutantsAreDetected(t *testing.T) {
	const wish = "sidecar.istio.io/inject"
	pod := func(change func(*mesh.Candidate)) func(*mesh.Injection, *mesh.Candidate) {
		return func(_ *mesh.Injection, c *mesh.Candidate) {
			c.Labels, c.Annotations, c.NamespaceLabels = maps.Clone(c.Labels), maps.Clone(c.Annotations), maps.Clone(c.NamespaceLabels)
			change(c)
		}
	}
	injectors := func(change func(*mesh.Injector)) func(*mesh.Injection, *mesh.Candidate) {
		return func(i *mesh.Injection, _ *mesh.Candidate) {
			i.Injectors = slices.Clone(i.Injectors)
			for n := range i.Injectors {
				change(&i.Injectors[n])
			}
		}
	}
	lowered := func(set map[string]string, key string) {
		if v, ok := set[key]; ok {
			set[key] = strings.ToLower(v)
		}
	}
	for name, mutate := range map[string]func(*mesh.Injection, *mesh.Candidate){
		"hostNetwork is injected":                pod(func(c *mesh.Candidate) { c.HostNetwork = false }),
		"no namespace is ignored":                pod(func(c *mesh.Candidate) { c.Namespace = "prod" }),
		"istio-system is ignored":                pod(func(c *mesh.Candidate) { c.Namespace = strings.ReplaceAll(c.Namespace, "istio-system", "kube-system") }),
		"local-path-storage is not ignored":      pod(func(c *mesh.Candidate) { c.Namespace = strings.ReplaceAll(c.Namespace, "local-path-storage", "prod") }),
		"namespaces are ignored by their prefix": pod(func(c *mesh.Candidate) { c.Namespace = strings.ReplaceAll(c.Namespace, "kube-systems", "kube-system") }),
		"True is true as a label":                pod(func(c *mesh.Candidate) { lowered(c.Labels, wish) }),
		"False is false as an annotation":        pod(func(c *mesh.Candidate) { lowered(c.Annotations, wish) }),
		"the annotation counts for nothing":      pod(func(c *mesh.Candidate) { delete(c.Annotations, wish) }),
		"an empty label hides no annotation": pod(func(c *mesh.Candidate) {
			if c.Labels[wish] == "" {
				delete(c.Labels, wish)
			}
		}),
		"an odd label hides no annotation": pod(func(c *mesh.Candidate) {
			if v := c.Labels[wish]; v != "true" && v != "false" {
				delete(c.Labels, wish)
			}
		}),
		"an annotation is as good as a label": pod(func(c *mesh.Candidate) {
			if v, ok := c.Annotations[wish]; ok && c.Labels[wish] == "" {
				c.Labels[wish] = v
			}
		}),
		"a sidecar that is there is enough": pod(func(c *mesh.Candidate) {
			if _, ok := c.Annotations["sidecar.istio.io/status"]; ok {
				c.Labels[wish] = "false"
			}
		}),
		"ambient turns injection off": pod(func(c *mesh.Candidate) {
			if c.NamespaceLabels["istio.io/dataplane-mode"] == "ambient" {
				c.NamespaceLabels["istio-injection"] = "disabled"
			}
		}),
		"Enabled is enabled": pod(func(c *mesh.Candidate) { lowered(c.NamespaceLabels, "istio-injection") }),
		"every istio-injection is enabled": pod(func(c *mesh.Candidate) {
			if _, ok := c.NamespaceLabels["istio-injection"]; ok {
				c.NamespaceLabels["istio-injection"] = "enabled"
			}
		}),
		"the revision of a pod comes before its namespace's": pod(func(c *mesh.Candidate) {
			if v, ok := c.Labels["istio.io/rev"]; ok {
				c.NamespaceLabels["istio.io/rev"] = v
			}
		}),
		"the revision comes before istio-injection": pod(func(c *mesh.Candidate) {
			if _, ok := c.NamespaceLabels["istio.io/rev"]; ok {
				delete(c.NamespaceLabels, "istio-injection")
			}
		}),
		"neverInjectSelector counts for nothing":  injectors(func(i *mesh.Injector) { i.Never = nil }),
		"alwaysInjectSelector counts for nothing": injectors(func(i *mesh.Injector) { i.Always = nil }),
		"an empty selector matches everything":    injectors(func(i *mesh.Injector) { i.Never = append(slices.Clone(i.Never), labels.Everything()) }),
		"alwaysInjectSelector comes first": injectors(func(i *mesh.Injector) {
			if len(i.Always) > 0 {
				i.Never = nil
			}
		}),
		"every policy is enabled": injectors(func(i *mesh.Injector) { i.Policy = "enabled" }),
		"an odd policy is disabled": injectors(func(i *mesh.Injector) {
			if i.Policy != "enabled" {
				i.Policy = "disabled"
			}
		}),
		"Enabled is a policy": injectors(func(i *mesh.Injector) { i.Policy = strings.ToLower(i.Policy) }),
		"only the first webhook asks": func(i *mesh.Injection, c *mesh.Candidate) {
			n := slices.IndexFunc(i.Webhooks, func(w mesh.InjectionWebhook) bool {
				return w.NamespaceSelector.Matches(labels.Set(c.NamespaceLabels)) && w.ObjectSelector.Matches(labels.Set(c.Labels))
			})
			if n >= 0 {
				i.Webhooks = i.Webhooks[n : n+1]
			}
		},
		"tags count for nothing": func(i *mesh.Injection, _ *mesh.Candidate) {
			i.Webhooks = slices.DeleteFunc(slices.Clone(i.Webhooks), func(w mesh.InjectionWebhook) bool { return w.Tag != "" })
		},
		"the selectors of objects count for nothing": func(i *mesh.Injection, _ *mesh.Candidate) {
			i.Webhooks = slices.Clone(i.Webhooks)
			for n := range i.Webhooks {
				i.Webhooks[n].ObjectSelector = labels.Everything()
			}
		},
		"every webhook leads to the first injector": func(i *mesh.Injection, _ *mesh.Candidate) {
			i.Webhooks = slices.Clone(i.Webhooks)
			for n := range i.Webhooks {
				if len(i.Injectors) > 0 {
					i.Webhooks[n].Revision = i.Injectors[0].Revision
				}
			}
		},
		"without a webhook an injector injects": func(i *mesh.Injection, _ *mesh.Candidate) {
			if len(i.Webhooks) == 0 {
				return
			}
			i.Webhooks = append(slices.Clone(i.Webhooks), mesh.InjectionWebhook{Revision: i.Webhooks[0].Revision, NamespaceSelector: labels.Everything(), ObjectSelector: labels.Everything()})
		},
	} {
		t.Run(name, func(t *testing.T) {
			detected, tried := false, 0
			eachInjection(t, seed(t), 5000, func(c injectionCase, istios map[string]*injector) bool {
				injection := ourInjection(t, c)
				for _, pod := range c.pods {
					tried++
					i, p := injection, pod
					mutate(&i, &p)
					if got := i.Decide(p); got.Injected() != istioInjects(t, istios, c, pod) {
						detected = true
						return false
					}
				}
				return true
			})
			if !detected {
				t.Fatalf("not detected by %d pods", tried)
			}
			t.Logf("detected by pod %d", tried)
		})
	}
}
