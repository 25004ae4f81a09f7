package scan

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/internal/nodes"
	"github.com/meshvakt/meshvakt/policies"
	"github.com/meshvakt/meshvakt/policies/facts"
	"github.com/meshvakt/meshvakt/policies/policytest"
)

func noon() time.Time { return time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC) }

// injected is a pod of Deployment "web" as istiod makes it.
func injected(t testing.TB, name string) *corev1.Pod {
	t.Helper()
	raw, err := policytest.Injected("../../policies/testdata", "native")
	if err != nil {
		t.Fatal(err)
	}
	pod := &corev1.Pod{}
	if err := json.Unmarshal(raw, pod); err != nil {
		t.Fatal(err)
	}
	pod.Name, pod.GenerateName, pod.Namespace, pod.UID = name, "", "prod", types.UID("uid-"+name)
	pod.Labels = map[string]string{"app": "web", "pod-template-hash": "5d4f"}
	controlled := true
	pod.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "web-5d4f", UID: "uid-rs", Controller: &controlled}}
	return pod
}

// plain is the same pod without a proxy.
func plain(t testing.TB, name string) *corev1.Pod {
	pod := injected(t, name)
	pod.Annotations = nil
	notProxy := func(c corev1.Container) bool { return strings.HasPrefix(c.Name, "istio-") }
	pod.Spec.InitContainers = slices.DeleteFunc(pod.Spec.InitContainers, notProxy)
	pod.Spec.Containers = slices.DeleteFunc(pod.Spec.Containers, notProxy)
	return pod
}

func state(t testing.TB, mode mesh.Mode, exceptions ...*v1alpha1.GuardException) facts.Cluster {
	t.Helper()
	object := v1alpha1.DefaultGuard()
	object.Spec.Exceptions = &v1alpha1.Exceptions{MaxDuration: metav1.Duration{Duration: 720 * time.Hour}, Approval: v1alpha1.ApprovalNone}
	guard, err := facts.NewGuard(object)
	if err != nil {
		t.Fatal(err)
	}
	ns := &facts.Namespace{
		Name:                "prod",
		Labels:              map[string]string{corev1.LabelMetadataName: "prod", v1alpha1.GuardedLabel: v1alpha1.GuardedValue, "istio-injection": "enabled"},
		PeerAuthentications: []*mesh.PeerAuthentication{{Namespace: "prod", Name: "default", Created: noon(), Mode: mode}},
	}
	for _, e := range exceptions {
		x, err := facts.NewException(e)
		if err != nil {
			t.Fatal(err)
		}
		ns.Exceptions = append(ns.Exceptions, x)
	}
	return facts.Cluster{
		ControlPlanes: []mesh.ControlPlane{mesh.DefaultControlPlane()}, Guards: []facts.Guard{guard},
		Injection:  mesh.DefaultInjection(mesh.DefaultControlPlane().Revision),
		Namespaces: map[string]*facts.Namespace{"prod": ns},
		NodeFacts:  facts.NodeFacts{Nodes: nodes.NewInventory(nil)},
	}
}

func exception(ends time.Time, policy string) *v1alpha1.GuardException {
	return &v1alpha1.GuardException{
		ObjectMeta: metav1.ObjectMeta{Namespace: "prod", Name: "migration", CreationTimestamp: metav1.Time{Time: noon().Add(-time.Hour)}},
		Spec:       v1alpha1.GuardExceptionSpec{Policies: []v1alpha1.ExceptedPolicy{{Name: policy}}, ExpiresAt: metav1.Time{Time: ends}},
	}
}

func examine(t testing.TB, c facts.Cluster, now time.Time, pods ...*corev1.Pod) *Standing {
	t.Helper()
	e := Begin(policies.All(), c, "prod", now, now)
	for _, p := range pods {
		e.Pod(p)
	}
	s, err := e.Finish()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func counts(s *Standing) string {
	var parts []string
	for _, c := range s.Counts {
		parts = append(parts, fmt.Sprintf("%s %s %s %d/%d", c.Guard, c.Policy, c.Reason, c.Found, c.Excepted))
	}
	return strings.Join(parts, "; ")
}

func TestWhatIsInOrderIsNoFinding(t *testing.T) {
	s := examine(t, state(t, mesh.ModeStrict), noon(), injected(t, "web-1"), injected(t, "web-2"))
	if got := counts(s); got != "" || !s.Strict || s.Pods != 2 || s.Stale != 0 || !slices.Equal(s.Guards, []string{"default"}) {
		t.Errorf("%+v, counts %q; want two pods and nothing found", s, got)
	}
}

func TestFindingsAreThoseOfAdmission(t *testing.T) {
	s := examine(t, state(t, mesh.ModePermissive), noon(), plain(t, "web-1"), plain(t, "web-2"))
	// That the namespace is not STRICT is one finding, whatever the number of its pods.
	if got, want := counts(s), "default mesh-membership NotInMesh 2/0; default strict-mtls NamespaceNotStrict 1/0"; got != want {
		t.Errorf("counts %q, want %q", got, want)
	}
	if s.Strict || s.Found("default") != 3 || s.Found("other") != 0 || !slices.Equal(s.Reasons(""), []string{"NotInMesh", "NamespaceNotStrict"}) {
		t.Errorf("%+v, reasons %q", s, s.Reasons(""))
	}
}

// Admission lets such a namespace come in first; it stands as a breach all the same.
func TestHeldNamespaceIsAFinding(t *testing.T) {
	c := state(t, mesh.ModePermissive)
	c.Guards[0].StrictMTLS = &v1alpha1.StrictMTLS{ValidationActions: []v1alpha1.ValidationAction{v1alpha1.Deny}, OnMissing: v1alpha1.OnMissingHold}
	if got := counts(examine(t, c, noon())); got != "default strict-mtls NamespaceNotStrict 1/0" {
		t.Errorf("counts %q", got)
	}
}

func TestActionsDoNotChangeCounts(t *testing.T) {
	for _, actions := range [][]v1alpha1.ValidationAction{{v1alpha1.Audit}, {v1alpha1.Warn}, {v1alpha1.Deny}, {v1alpha1.Deny, v1alpha1.Audit}} {
		c := state(t, mesh.ModeStrict)
		membership := *c.Guards[0].MeshMembership
		membership.ValidationActions = actions
		c.Guards[0].MeshMembership = &membership
		s := examine(t, c, noon(), plain(t, "web-1"))
		if got := counts(s); got != "default mesh-membership NotInMesh 1/0" || len(s.Results) != 1 || s.Results[0].Objects != 1 || len(s.Results[0].Actions) != len(actions) {
			t.Errorf("%q: counts %q, results %+v", actions, got, s.Results)
		}
	}
}

func TestResultsAreByOwner(t *testing.T) {
	c := state(t, mesh.ModeStrict)
	e := Begin(policies.All(), c, "prod", noon(), noon())
	kind := appsv1.SchemeGroupVersion.WithKind("Deployment")
	e.Pod(plain(t, "web-1"))
	e.Pod(plain(t, "web-2"))
	e.Workload(kind, &facts.Workload{ObjectMeta: metav1.ObjectMeta{Name: "web", UID: "uid-web"}, Path: "spec.template", Template: &corev1.PodTemplateSpec{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "app"}}}}})
	s, err := e.Finish()
	if err != nil || len(s.Results) != 1 {
		t.Fatalf("%+v, %v; want one result", s.Results, err)
	}
	r := s.Results[0]
	if r.Owner != (Object{kind, "web", "uid-web"}) || r.Objects != 2 || r.First.Name != "web-1" || r.Reason.Code == "" || !strings.Contains(r.Text, "istio-proxy") {
		t.Errorf("%+v", r)
	}
}

func TestResultsAreBounded(t *testing.T) {
	e := Begin(policies.All(), state(t, mesh.ModeStrict), "prod", noon(), noon())
	for i := range MaxResults + 5 {
		pod := plain(t, fmt.Sprintf("pod-%d", i))
		pod.OwnerReferences = nil
		e.Pod(pod)
	}
	s, err := e.Finish()
	if err != nil || len(s.Results) != MaxResults || s.LeftOut != 5 || s.Found("") != MaxResults+5 {
		t.Errorf("%d results, %d left out, %d found, %v", len(s.Results), s.LeftOut, s.Found(""), err)
	}
}

// An exception ends by the clock alone, to the second, and what rested on it becomes a
// finding.
func TestExceptionEnds(t *testing.T) {
	ends := noon().Add(time.Hour)
	c := state(t, mesh.ModeStrict, exception(ends, "mesh-membership"))
	for _, at := range []struct {
		now         time.Time
		counts      string
		ended       bool
		changes     time.Time
		isException string
	}{
		{ends.Add(-time.Nanosecond), "default mesh-membership NotInMesh 0/1", false, ends, "migration"},
		{ends, "default mesh-membership NotInMesh 1/0", true, time.Time{}, ""},
	} {
		s := examine(t, c, at.now, plain(t, "web-1"))
		if got := counts(s); got != at.counts || !slices.Equal(s.Exceptions, []Exception{{"default", "migration", ends, at.ended}}) || !s.Changes.Equal(at.changes) || s.Results[0].Exception != at.isException {
			t.Errorf("at %s: counts %q, exceptions %+v, changes %s, results %+v", at.now, got, s.Exceptions, s.Changes, s.Results)
		}
	}
}

// An exception for the pods that may take plaintext lets their policy in, and speaks for the
// namespace as well, however its guard lets it come in.
func TestNamespaceStandsByWhatSpeaksForItsPods(t *testing.T) {
	of := func(app string) map[string]string { return map[string]string{"app": app} }
	weak := func(app string) *mesh.PeerAuthentication {
		return &mesh.PeerAuthentication{Namespace: "prod", Name: app, Created: noon(), Mode: mesh.ModePermissive, Selector: of(app)}
	}
	for name, c := range map[string]struct {
		mode      mesh.Mode
		weak      []*mesh.PeerAuthentication
		selector  map[string]string
		onMissing v1alpha1.OnMissing
		now       time.Time
		want      string
	}{
		"these pods":                       {mesh.ModeStrict, []*mesh.PeerAuthentication{weak("legacy")}, of("legacy"), v1alpha1.OnMissingReject, noon(), "0/1"},
		"these pods, when it has ended":    {mesh.ModeStrict, []*mesh.PeerAuthentication{weak("legacy")}, of("legacy"), v1alpha1.OnMissingReject, noon().Add(time.Hour), "1/0"},
		"other pods":                       {mesh.ModeStrict, []*mesh.PeerAuthentication{weak("legacy")}, of("web"), v1alpha1.OnMissingReject, noon(), "1/0"},
		"some of the pods":                 {mesh.ModeStrict, []*mesh.PeerAuthentication{weak("legacy"), weak("batch")}, of("legacy"), v1alpha1.OnMissingReject, noon(), "2/0"},
		"some of a namespace":              {mesh.ModePermissive, nil, of("legacy"), v1alpha1.OnMissingReject, noon(), "1/0"},
		"the namespace":                    {mesh.ModePermissive, nil, nil, v1alpha1.OnMissingReject, noon(), "0/1"},
		"the namespace, which may come in": {mesh.ModePermissive, nil, nil, v1alpha1.OnMissingHold, noon(), "0/1"},
		"nothing, which may come in":       {mesh.ModePermissive, nil, of("legacy"), v1alpha1.OnMissingHold, noon(), "1/0"},
	} {
		t.Run(name, func(t *testing.T) {
			e := exception(noon().Add(time.Hour), "strict-mtls")
			e.Spec.ObjectSelector.MatchLabels, e.UID = c.selector, "uid-migration"
			cluster := state(t, c.mode, e)
			cluster.Guards[0].StrictMTLS.OnMissing = c.onMissing
			ns := cluster.Namespaces["prod"]
			ns.PeerAuthentications = append(ns.PeerAuthentications, c.weak...)
			// Another guard takes no exceptions, and minds.
			other := cluster.Guards[0]
			other.Name, other.Exceptions = "other", nil
			s := examine(t, cluster, c.now)
			if got := counts(s); got != "default strict-mtls NamespaceNotStrict "+c.want {
				t.Errorf("counts %q; want %s", got, c.want)
			}
			excepted := strings.HasSuffix(c.want, "/1")
			if (s.Results[0].Exception == "migration") != excepted || (s.Found("default") == 0) != excepted {
				t.Errorf("%+v", s)
			}
			// What is admitted by it itself stands by it; what rests on its pods does not.
			if n := s.Relied["uid-migration"]; (n == 1) != (name == "the namespace") {
				t.Errorf("%d objects stand by the exception", n)
			}
			cluster.Guards = append(cluster.Guards, other)
			if s := examine(t, cluster, c.now); s.Found("other") == 0 || (s.Found("default") == 0) != excepted {
				t.Errorf("under two guards: %q", counts(s))
			}
		})
	}
}

func TestPodsThatAreLetAlone(t *testing.T) {
	for name, edit := range map[string]func(*corev1.Pod){
		"one that has ended":        func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed },
		"one that is being deleted": func(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{Time: noon().Add(30 * time.Second)} },
		"a mirror pod":              func(p *corev1.Pod) { p.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "x"} },
	} {
		pod := plain(t, "web-1")
		edit(pod)
		if s := examine(t, state(t, mesh.ModeStrict), noon(), pod); s.Pods != 0 || s.Found("") != 0 {
			t.Errorf("%s: %+v", name, s)
		}
	}
	forYears := plain(t, "web-1")
	forYears.DeletionTimestamp = &metav1.Time{Time: noon().Add(1000 * time.Hour)}
	if s := examine(t, state(t, mesh.ModeStrict), noon(), forYears); s.Found("") != 1 {
		t.Errorf("a pod with a grace period of weeks: %+v; it goes on running", s)
	}
}

// A node that is gone takes its pods along, without a finding.
func TestNodeThatIsGone(t *testing.T) {
	pod := injected(t, "web-1")
	pod.Spec.NodeName = "gone"
	if s := examine(t, state(t, mesh.ModeStrict), noon(), pod); s.Found("") != 0 || s.Unjudged != 0 {
		t.Errorf("%+v", s)
	}
}

// What istio-cni writes on running pods is not their author's.
func TestAmbientPod(t *testing.T) {
	c := state(t, mesh.ModeStrict)
	membership := *c.Guards[0].MeshMembership
	membership.DataPlanes = []v1alpha1.DataPlane{v1alpha1.DataPlaneAmbient}
	c.Guards[0].MeshMembership = &membership
	ns := *c.Namespaces["prod"]
	ns.Labels = maps.Clone(ns.Labels)
	delete(ns.Labels, "istio-injection")
	ns.Labels["istio.io/dataplane-mode"] = "ambient"
	c.Namespaces = map[string]*facts.Namespace{"prod": &ns}
	pod := plain(t, "web-1")
	pod.Annotations = map[string]string{redirection: "enabled"}
	if s := examine(t, c, noon(), pod); s.Found("") != 0 {
		t.Errorf("counts %q", counts(s))
	}
}

func TestStale(t *testing.T) {
	for name, c := range map[string]struct {
		edit  func(*corev1.Pod)
		state func(*facts.Cluster)
		want  int
	}{
		"as it would be injected now": {func(*corev1.Pod) {}, nil, 0},
		"of another revision": {func(p *corev1.Pod) {
			p.Annotations["sidecar.istio.io/status"] = `{"revision":"1-20"}`
		}, nil, 1},
		"of an image that is not used any more": {func(*corev1.Pod) {}, func(c *facts.Cluster) {
			i := c.Injection.Injectors[0]
			i.Images = []string{"registry.example.com/proxyv2:2"}
			c.Injection.Injectors = []mesh.Injector{i}
		}, 1},
		"without a proxy": {func(p *corev1.Pod) { *p = *plain(t, "web-1") }, nil, 0},
	} {
		pod, s := injected(t, "web-1"), state(t, mesh.ModeStrict)
		c.edit(pod)
		if c.state != nil {
			c.state(&s)
		}
		if got := examine(t, s, noon(), pod); got.Stale != c.want {
			t.Errorf("%s: %d stale, want %d", name, got.Stale, c.want)
		}
	}
}

// A policy that cannot judge one object neither hides that nor hides the others.
func TestUnjudged(t *testing.T) {
	list := policies.All()
	for i := range list {
		if list[i].ID == "sidecar-resources" {
			list[i].Judge = func(r *facts.Review, _ *facts.Guard) ([]policies.Finding, error) {
				if r.Name == "web-1" {
					panic("boom")
				}
				return nil, nil
			}
		}
	}
	e := Begin(list, state(t, mesh.ModeStrict), "prod", noon(), noon())
	e.Pod(injected(t, "web-1"))
	e.Pod(plain(t, "web-2"))
	s, err := e.Finish()
	if err == nil || s.Unjudged != 1 || s.Found("") != 1 {
		t.Errorf("%+v, %v", s, err)
	}
}

// Each object counts once for an exception, however much of it rests on that.
func TestWhatStandsByAnException(t *testing.T) {
	e := exception(noon().Add(time.Hour), "mesh-membership")
	e.UID = "uid-migration"
	c := state(t, mesh.ModeStrict, e)
	host := plain(t, "host")
	host.Spec.HostNetwork = true // breaks two rules
	if s := examine(t, c, noon(), plain(t, "web-1"), host, injected(t, "web-2")); len(s.Relied) != 1 || s.Relied["uid-migration"] != 2 {
		t.Errorf("%v stands by exceptions; must be two pods; counts %q", s.Relied, counts(s))
	}
	if s := examine(t, c, noon().Add(time.Hour), plain(t, "web-1")); len(s.Relied) != 0 {
		t.Errorf("%v stands by an exception that has ended", s.Relied)
	}
	l := NewLedger()
	l.Put(examine(t, c, noon(), plain(t, "web-1")))
	for _, kept := range l.namespaces {
		if kept.Relied != nil {
			t.Error("the ledger keeps what is handed on alone")
		}
	}
}
