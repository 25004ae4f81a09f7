package cluster

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/policies/facts"
)

func injectorMap(name, hub, version string) *corev1.ConfigMap {
	return &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: name, ResourceVersion: version},
		Data: map[string]string{
			"config": "policy: enabled\ntemplates:\n  sidecar: " + strings.Repeat("x", 1000) + "\n",
			"values": fmt.Sprintf(`{"global":{"hub":%q,"tag":"1","proxy":{"image":"proxyv2"}},"large":%q}`, hub, strings.Repeat("x", 1000)),
		},
	}
}

func injectorWebhooks(name, revision, version string) *admissionregistrationv1.MutatingWebhookConfiguration {
	entry := func(name string) admissionregistrationv1.MutatingWebhook {
		return admissionregistrationv1.MutatingWebhook{
			Name:         name,
			ClientConfig: admissionregistrationv1.WebhookClientConfig{CABundle: []byte("large")},
			Rules: []admissionregistrationv1.RuleWithOperations{{
				Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.Create},
				Rule:       admissionregistrationv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"pods"}},
			}},
			NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"istio-injection": "enabled"}},
		}
	}
	return &admissionregistrationv1.MutatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: name, ResourceVersion: version, Labels: map[string]string{"istio.io/rev": revision}, Annotations: map[string]string{"a": "b"}},
		Webhooks:   []admissionregistrationv1.MutatingWebhook{entry("namespace.sidecar-injector.istio.io"), entry("other.example.com")},
	}
}

// otherWebhooks leads to no injector.
func otherWebhooks(name, version string) *admissionregistrationv1.MutatingWebhookConfiguration {
	c := injectorWebhooks(name, "default", version)
	c.Webhooks = c.Webhooks[1:]
	return c
}

// told is the injection in a line: the webhooks, and the images of the injectors.
func told(i mesh.Injection) string {
	var parts []string
	for _, w := range i.Webhooks {
		parts = append(parts, w.Configuration+"="+w.Revision)
	}
	for _, j := range i.Injectors {
		parts = append(parts, j.Revision+":"+strings.Join(j.Images, ","))
	}
	return strings.Join(parts, " ")
}

func TestInjectionEvents(t *testing.T) {
	both := func(s *Source) {
		s.onConfigMap().OnAdd(injectorMap("istio-sidecar-injector", "a", "3"), false)
		s.onWebhooks().OnAdd(injectorWebhooks("istio-sidecar-injector", "default", "4"), false)
	}
	for name, c := range map[string]struct {
		event func(*Source)
		heard int // changes that concern all, after both are there
		want  string
	}{
		"both are there": {func(*Source) {}, 0, "istio-sidecar-injector=default default:a/proxyv2:1"},
		"configurations are in the order of their names": {
			func(s *Source) { s.onWebhooks().OnAdd(injectorWebhooks("a-tag", "canary", "5"), false) },
			1, "a-tag=canary istio-sidecar-injector=default default:a/proxyv2:1",
		},
		"a webhook that leads to no injector is nobody's business": {
			func(s *Source) {
				s.onWebhooks().OnAdd(otherWebhooks("cert-manager", "5"), false)
				s.onWebhooks().OnDelete(otherWebhooks("cert-manager", "6"))
			}, 0, "istio-sidecar-injector=default default:a/proxyv2:1",
		},
		"the entries of an injector are taken out": {
			func(s *Source) { s.onWebhooks().OnUpdate(nil, otherWebhooks("istio-sidecar-injector", "5")) }, 1, "default:a/proxyv2:1",
		},
		"the configuration is deleted": {
			func(s *Source) {
				s.onWebhooks().OnDelete(toolscache.DeletedFinalStateUnknown{Obj: injectorWebhooks("istio-sidecar-injector", "default", "4")})
			}, 1, "default:a/proxyv2:1",
		},
		"an injector changes": {
			func(s *Source) {
				s.onConfigMap().OnUpdate(nil, injectorMap("istio-sidecar-injector", "b", "5"))
			}, 1, "istio-sidecar-injector=default default:b/proxyv2:1",
		},
		"an injector becomes unreadable": {
			func(s *Source) {
				broken := injectorMap("istio-sidecar-injector", "b", "5")
				broken.Data["values"] = "{"
				s.onConfigMap().OnUpdate(nil, broken)
			}, 1, "istio-sidecar-injector=default default:a/proxyv2:1",
		},
		"an injector loses its configuration": {
			func(s *Source) {
				empty := injectorMap("istio-sidecar-injector", "b", "5")
				delete(empty.Data, "values")
				s.onConfigMap().OnUpdate(nil, empty)
			}, 1, "istio-sidecar-injector=default",
		},
		"an injector goes": {
			func(s *Source) { s.onConfigMap().OnDelete(injectorMap("istio-sidecar-injector", "a", "5")) }, 1, "istio-sidecar-injector=default",
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, _ := reading(t, "20")
			both(s)
			heard := 0
			s.OnChange(func(string) { heard++ })
			c.event(s)
			got, err := s.Snapshot()
			if err != nil || told(got.Injection) != c.want || heard != c.heard {
				t.Errorf("%q after %d changes, %v; want %q after %d", told(got.Injection), heard, err, c.want, c.heard)
			}
			if part, err := s.Cached("prod"); err != nil || !reflect.DeepEqual(part.Injection, got.Injection) {
				t.Errorf("around a namespace it is %q, %v", told(part.Injection), err)
			}
		})
	}
}

// A live read tells what the API server says now. It neither puts back into the
// cache what the watch knows to be over, nor sets off what follows a change.
func TestReadLiveOfInjection(t *testing.T) {
	for name, c := range map[string]struct {
		stored []client.Object
		cached func(*Source)
		live   string
		cache  string // afterwards
	}{
		"what no watch has told yet is in the answer and in the cache": {
			[]client.Object{injectorMap("istio-sidecar-injector", "a", "7"), injectorWebhooks("istio-sidecar-injector", "default", "8")}, func(*Source) {},
			"istio-sidecar-injector=default default:a/proxyv2:1", "istio-sidecar-injector=default default:a/proxyv2:1",
		},
		"what is gone is not in the answer": {
			nil, func(s *Source) {
				s.onConfigMap().OnAdd(injectorMap("istio-sidecar-injector", "a", "3"), false)
				s.onWebhooks().OnAdd(injectorWebhooks("istio-sidecar-injector", "default", "4"), false)
			}, "", "istio-sidecar-injector=default default:a/proxyv2:1", // until the watch tells
		},
		"a revision that has just been installed": {
			[]client.Object{injectorMap("istio-sidecar-injector-canary", "c", "7"), injectorWebhooks("istio-sidecar-injector-canary", "canary", "8")}, func(*Source) {},
			"istio-sidecar-injector-canary=canary canary:c/proxyv2:1", "istio-sidecar-injector-canary=canary canary:c/proxyv2:1",
		},
		"an answer that the watch has overtaken": {
			[]client.Object{injectorMap("istio-sidecar-injector", "old", "7"), injectorWebhooks("istio-sidecar-injector", "old", "7")}, func(s *Source) {
				s.onConfigMap().OnAdd(injectorMap("istio-sidecar-injector", "new", "9"), false)
				s.onWebhooks().OnAdd(injectorWebhooks("istio-sidecar-injector", "default", "9"), false)
			}, "istio-sidecar-injector=default default:new/proxyv2:1", "istio-sidecar-injector=default default:new/proxyv2:1",
		},
		"an answer about what has gone in the meantime": {
			[]client.Object{injectorMap("istio-sidecar-injector", "a", "7"), injectorWebhooks("istio-sidecar-injector", "default", "7")}, func(s *Source) {
				s.onConfigMap().OnAdd(injectorMap("istio-sidecar-injector", "a", "7"), false)
				s.onConfigMap().OnDelete(injectorMap("istio-sidecar-injector", "a", "9"))
				s.onWebhooks().OnAdd(injectorWebhooks("istio-sidecar-injector", "default", "7"), false)
				s.onWebhooks().OnDelete(injectorWebhooks("istio-sidecar-injector", "default", "9"))
			}, "", "",
		},
		"an injector that cannot be read any more": {
			[]client.Object{unreadable(injectorMap("istio-sidecar-injector", "a", "7"))}, func(s *Source) {
				s.onConfigMap().OnAdd(injectorMap("istio-sidecar-injector", "a", "3"), false)
			}, "default:a/proxyv2:1", "default:a/proxyv2:1",
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, _ := reading(t, "20", append(c.stored, storedNamespace("prod", guardedLabels(), "10"), v1alpha1.DefaultGuard())...)
			c.cached(s)
			heard := 0
			s.OnChange(func(string) { heard++ })
			got, err := s.ReadLive(t.Context(), about("Pod", "prod", "web"))
			if err != nil || told(got.Injection) != c.live {
				t.Errorf("read %q, %v; want %q", told(got.Injection), err, c.live)
			}
			if cached, err := s.Cached("prod"); err != nil || told(cached.Injection) != c.cache {
				t.Errorf("the cache has %q, %v; want %q", told(cached.Injection), err, c.cache)
			}
			if heard > 0 {
				t.Errorf("%d changes are told of by a read", heard)
			}
		})
	}
}

func unreadable(cm *corev1.ConfigMap) *corev1.ConfigMap {
	cm.Data["values"] = "{"
	return cm
}

// Where nobody can say what an injector renders, pods cannot be judged; guards that
// do not ask for that are no worse off.
func TestInjectorThatWasNeverReadable(t *testing.T) {
	membership, err := facts.NewGuard(v1alpha1.DefaultGuard())
	if err != nil {
		t.Fatal(err)
	}
	strictOnly := v1alpha1.DefaultGuard()
	strictOnly.Spec.MeshMembership, strictOnly.Spec.SidecarResources, strictOnly.Spec.NodePools = nil, nil, nil
	for name, c := range map[string]struct {
		stored *v1alpha1.MeshGuard
		cached []facts.Guard
		fails  bool
	}{
		"under a guard of mesh membership": {v1alpha1.DefaultGuard(), []facts.Guard{membership}, true},
		"under one of strict-mtls alone":   {strictOnly, defaultGuards(t), false},
	} {
		t.Run(name, func(t *testing.T) {
			broken := unreadable(injectorMap("istio-sidecar-injector", "a", "7"))
			s, _ := reading(t, "20", broken, storedNamespace("prod", guardedLabels(), "10"), c.stored)
			s.index.setGuards(c.cached, 1)
			if got, err := s.ReadLive(t.Context(), about("Pod", "prod", "web")); (err != nil) != c.fails {
				t.Errorf("live: %+v, %v", got, err)
			}
			s.onConfigMap().OnAdd(broken, false)
			if got, err := s.Cached("prod"); (err != nil) != c.fails {
				t.Errorf("cached: %+v, %v", got, err)
			}
		})
	}
}

// Pods are read where a namespace is judged together with them, and nowhere else.
func TestReadLiveOfPods(t *testing.T) {
	const n = 8*podPageSize + 1
	stored := []client.Object{storedNamespace("prod", nil, "10"), v1alpha1.DefaultGuard()}
	pod := func(name string, edit func(*corev1.Pod)) {
		p := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "prod", Name: name, Labels: map[string]string{"app": "web"}, Annotations: map[string]string{"a": "b"},
				OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "web", UID: "u"}}},
			Spec:   corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "web:1"}}},
			Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "10.0.0.1"},
		}
		edit(p)
		stored = append(stored, p)
	}
	for i := range n {
		pod(fmt.Sprintf("web-%04d", i), func(*corev1.Pod) {})
	}
	pod("failed", func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed })
	pod("mirror", func(p *corev1.Pod) { p.Annotations[corev1.MirrorPodAnnotationKey] = "x" })
	pod("succeeded", func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded })
	pod("elsewhere", func(p *corev1.Pod) { p.Namespace = "stage" })
	s, server := reading(t, "20", stored...)

	update := about("Namespace", "", "prod")
	update.Operation, update.Object = admissionv1.Update, storedNamespace("prod", guardedLabels(), "11")
	got, err := s.ReadLive(t.Context(), update)
	if err != nil {
		t.Fatal(err)
	}
	pods := slices.Collect(got.Namespaces["prod"].Pods.All())
	if again := slices.Collect(got.Namespaces["prod"].Pods.All()); !reflect.DeepEqual(again, pods) {
		t.Error("the second time pods are others")
	}
	if len(pods) != n || pods[0].Name != "web-0000" || pods[n-1].Name != fmt.Sprintf("web-%04d", n-1) {
		t.Fatalf("%d pods; want %d in order", len(pods), n)
	}
	want := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "prod", Name: "web-0700", Labels: map[string]string{"app": "web"}, Annotations: map[string]string{"a": "b"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "web:1"}}},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning},
	}
	if !reflect.DeepEqual(pods[700], want) {
		t.Errorf("a pod is %+v", pods[700])
	}

	out := *update
	out.Object = storedNamespace("prod", nil, "11")
	create := *update
	create.Operation = admissionv1.Create
	same := *update
	same.OldObject = storedNamespace("prod", guardedLabels(), "10")
	for name, r := range map[string]*facts.Review{
		"a namespace that stays outside of guards": &out, "a new namespace": &create, "a namespace whose labels stay": &same,
		"a pod": about("Pod", "prod", "web"), "a policy": about("PeerAuthentication", "prod", "default"),
	} {
		server.reads = nil
		if got, err := s.ReadLive(t.Context(), r); err != nil || got.Namespaces["prod"].Pods != nil {
			t.Errorf("%s: %v", name, err)
		}
		if slices.ContainsFunc(server.reads, func(read string) bool { return strings.Contains(read, "PodList") }) {
			t.Errorf("%s: pods are read", name)
		}
	}
	down := errors.New("down")
	server.fail = func(_ string, o any) error {
		if _, is := o.(*corev1.PodList); is {
			return down
		}
		return nil
	}
	if _, err := s.ReadLive(t.Context(), update); !errors.Is(err, down) {
		t.Errorf("got %v; a list that cannot be read must fail", err)
	}
}

func TestSlimInjection(t *testing.T) {
	c := injectorWebhooks("istio-sidecar-injector", "default", "1")
	before, err := mesh.ParseInjectionWebhooks(c)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := slimWebhooks(c); err != nil || len(c.Webhooks) != 1 || c.Webhooks[0].ClientConfig.CABundle != nil || c.Annotations != nil {
		t.Errorf("kept %+v, %v", c, err)
	}
	if after, err := mesh.ParseInjectionWebhooks(c); err != nil || !reflect.DeepEqual(after, before) {
		t.Errorf("reads as %+v, %v; want %+v", after, err, before)
	}

	cm := injectorMap("istio-sidecar-injector", "a", "1")
	whole, err := mesh.ParseInjector(cm.Name, cm.Labels, cm.Data)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := slimConfigMap(cm); err != nil || len(cm.Data["config"])+len(cm.Data["values"]) > 1000 {
		t.Errorf("kept %d bytes, %v", len(cm.Data["config"])+len(cm.Data["values"]), err)
	}
	if slim, err := mesh.ParseInjector(cm.Name, cm.Labels, cm.Data); err != nil || !reflect.DeepEqual(slim, whole) {
		t.Errorf("reads as %+v, %v; want %+v", slim, err, whole)
	}

	const uidRange = "openshift.io/sa.scc.uid-range"
	ns := namespaceMeta()
	ns.Annotations = map[string]string{uidRange: "1000/10", "large": "x"}
	if _, err := slimNamespace(ns); err != nil || len(ns.Annotations) != 1 || mesh.ProxyUID(ns.Annotations) != 1009 {
		t.Errorf("kept %v, %v", ns.Annotations, err)
	}
	s, _ := reading(t, "20")
	s.onNamespace().OnAdd(ns, false)
	if got, err := s.Snapshot(); err != nil || got.Namespaces[ns.Name].ProxyUID != 1009 {
		t.Errorf("the proxies' user is not known: %+v, %v", got.Namespaces[ns.Name], err)
	}
}

// labelled is a guarded namespace with further labels.
func labelled(name string, pairs ...string) *facts.Namespace {
	ns := &facts.Namespace{Name: name, Labels: map[string]string{v1alpha1.GuardedLabel: v1alpha1.GuardedValue}}
	for i := 0; i < len(pairs); i += 2 {
		ns.Labels[pairs[i]] = pairs[i+1]
	}
	return ns
}

func TestWithoutInjection(t *testing.T) {
	guard, err := facts.NewGuard(v1alpha1.DefaultGuard())
	if err != nil {
		t.Fatal(err)
	}
	disabled := mesh.DefaultInjection("default")
	disabled.Injectors[0].Policy = "disabled"
	leaving := labelled("prod")
	leaving.Terminating = true
	for name, c := range map[string]struct {
		injection  mesh.Injection
		dataPlanes []v1alpha1.DataPlane
		namespace  *facts.Namespace
		want       string // part of what is listed; empty: nothing is
	}{
		"injection is on":                      {mesh.DefaultInjection("default"), nil, labelled("prod", "istio-injection", "enabled"), ""},
		"a revision is there":                  {mesh.DefaultInjection("canary"), nil, labelled("prod", "istio.io/rev", "canary"), ""},
		"a revision is not there":              {mesh.DefaultInjection("default"), nil, labelled("prod", "istio.io/rev", "canary"), "prod (label istio.io/rev names"},
		"nothing turns it on":                  {mesh.DefaultInjection("default"), nil, labelled("prod"), "prod (no label of the namespace"},
		"it is turned off":                     {mesh.DefaultInjection("default"), nil, labelled("prod", "istio-injection", "disabled"), "prod (label istio-injection turns"},
		"there is no injector":                 {mesh.Injection{}, nil, labelled("prod", "istio-injection", "enabled"), "prod (no MutatingWebhookConfiguration"},
		"the injector injects nothing":         {disabled, nil, labelled("prod", "istio-injection", "enabled"), "prod (the injector's configuration"},
		"an injector of unknown configuration": {mesh.Injection{Webhooks: mesh.DefaultInjection("default").Webhooks}, nil, labelled("prod", "istio-injection", "enabled"), ""},
		"ambient, and accepted":                {mesh.Injection{}, []v1alpha1.DataPlane{v1alpha1.DataPlaneAmbient}, labelled("prod", "istio.io/dataplane-mode", "ambient"), ""},
		"ambient, and not accepted":            {mesh.Injection{}, []v1alpha1.DataPlane{v1alpha1.DataPlaneSidecar}, labelled("prod", "istio.io/dataplane-mode", "ambient"), "prod ("},
		"an injector would leave it out":       {mesh.DefaultInjection("default"), nil, labelled("local-path-storage", "istio-injection", "enabled"), "local-path-storage (injectors leave"},
		"it is going away":                     {mesh.Injection{}, nil, leaving, ""},
		"no guard selects it":                  {mesh.Injection{}, nil, &facts.Namespace{Name: "dev"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			g := guard
			parameters := *guard.MeshMembership
			if c.dataPlanes != nil {
				parameters.DataPlanes = c.dataPlanes
			}
			g.MeshMembership = &parameters
			got := WithoutInjection(&facts.Cluster{Injection: c.injection, Namespaces: map[string]*facts.Namespace{c.namespace.Name: c.namespace}}, &g)
			if len(got) > 1 || (len(got) == 1) != (c.want != "") || !strings.HasPrefix(strings.Join(got, ""), c.want) {
				t.Errorf("got %q; want %q", got, c.want)
			}
		})
	}
}
