package preflight

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/check"
)

// documents parses manifests as if a cluster had them.
func documents(t testing.TB, manifests string) []check.Document {
	t.Helper()
	docs, err := check.Parse("test", []byte(manifests))
	if err != nil {
		t.Fatal(err)
	}
	for i := range docs {
		docs[i].Stored = true
	}
	return docs
}

const clusterState = `
apiVersion: v1
kind: Namespace
metadata: {name: istio-system}
---
apiVersion: v1
kind: Namespace
metadata: {name: kube-system, labels: {meshvakt.io/guarded: "true"}}
---
apiVersion: v1
kind: Namespace
metadata: {name: other}
---
apiVersion: v1
kind: Namespace
metadata: {name: payments, labels: {meshvakt.io/guarded: "true", istio-injection: enabled}}
---
apiVersion: v1
kind: Namespace
metadata: {name: legacy, labels: {meshvakt.io/guarded: "true", istio-injection: enabled}}
---
apiVersion: v1
kind: Node
metadata: {name: node-1, labels: {node.kubernetes.io/instance-type: m5.large}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: open, namespace: legacy}
spec: {mtls: {mode: PERMISSIVE}}
---
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
metadata: {name: istio-sidecar-injector}
webhooks:
- name: namespace.sidecar-injector.istio.io
  rules: [{apiGroups: [""], apiVersions: [v1], resources: [pods], operations: [CREATE]}]
  namespaceSelector: {matchLabels: {istio-injection: enabled}}
---
apiVersion: meshvakt.io/v1alpha1
kind: GuardException
metadata: {name: let-pass, namespace: payments}
spec:
  policies: [{name: mesh-membership}]
  objectSelector: {matchLabels: {app: let-pass}}
  reason: is moved next week
  reference: TICKET-1
  expiresAt: "2026-11-27T12:00:00Z"
  approved: true
  requester: anna
  approver: bert
`

// deploymentOf is a Deployment, its ReplicaSet and a pod of that, none injected.
func deploymentOf(namespace, app, annotations string) string {
	return fmt.Sprintf(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: %[2]s, namespace: %[1]s}
spec: {replicas: 1, template: &t {metadata: {labels: {app: %[2]s}, annotations: {%[3]s}}, spec: {containers: [{name: app, image: x}]}}}
---
apiVersion: apps/v1
kind: ReplicaSet
metadata:
  name: %[2]s-1
  namespace: %[1]s
  ownerReferences: [{apiVersion: apps/v1, kind: Deployment, name: %[2]s, uid: "1", controller: true}]
spec: {replicas: 1, template: {metadata: {labels: {app: %[2]s}, annotations: {%[3]s}}, spec: {containers: [{name: app, image: x}]}}}
---
`, namespace, app, annotations) + podOf(namespace, app, annotations, "ReplicaSet "+app+"-1", "Running")
}

func podOf(namespace, app, annotations, owner, phase string) string {
	references := ""
	if kind, name, ok := strings.Cut(owner, " "); ok {
		references = fmt.Sprintf(`{apiVersion: x/v1, kind: %s, name: %s, uid: "1", controller: true}`, kind, name)
	}
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %[2]s-pod, namespace: %[1]s, labels: {app: %[2]s}, annotations: {%[3]s}, ownerReferences: [%[4]s]}
spec: {nodeName: node-1, containers: [{name: app, image: x}]}
status: {phase: %[5]s}
`, namespace, app, annotations, references, phase)
}

// forecastOf judges manifests in the state, kind by kind as a survey does.
func forecastOf(t testing.TB, guards []v1alpha1.MeshGuard, state, manifests string) *Forecast {
	t.Helper()
	f, err := NewForecaster(check.Cluster{Documents: documents(t, state)}, guards, "meshvakt-system", "a test", testTime())
	if err != nil {
		t.Fatal(err)
	}
	f.JudgeState(nil)
	docs := documents(t, manifests)
	for _, w := range Workloads() {
		for i := range docs {
			if d := &docs[i]; d.Kind.GroupKind() == w.GroupKind && f.Wants(&w, d.Namespace) {
				f.Judge(d)
			}
		}
	}
	return f.Forecast()
}

func kindOf(f *Forecast, kind string) KindCount {
	for _, k := range f.Kinds {
		if k.Kind == kind {
			k.Kind = ""
			return k
		}
	}
	return KindCount{}
}

func defaultGuards() []v1alpha1.MeshGuard { return []v1alpha1.MeshGuard{*v1alpha1.DefaultGuard()} }

const optOut = `sidecar.istio.io/inject: "false"`

func TestForecast(t *testing.T) {
	for _, tc := range []struct {
		name, objects   string
		templates, pods KindCount
	}{
		{"outdated", deploymentOf("payments", "api", ""), KindCount{Judged: 1}, KindCount{Judged: 1, Refused: 1, Outdated: 1}},
		{"out for good", deploymentOf("payments", "api", optOut), KindCount{Judged: 1, Refused: 1}, KindCount{Judged: 1, Refused: 1}},
		{"let pass", deploymentOf("payments", "let-pass", optOut), KindCount{Judged: 1, Excepted: 1}, KindCount{Judged: 1, Excepted: 1}},
		{"not STRICT", deploymentOf("legacy", "web", ""), KindCount{Judged: 1}, KindCount{Judged: 1, Refused: 1}},
		{"not guarded", deploymentOf("other", "api", optOut), KindCount{}, KindCount{}},
		{"never guarded", deploymentOf("kube-system", "dns", optOut), KindCount{}, KindCount{}},
		{"made by nobody", podOf("payments", "bare", "", "", "Running"), KindCount{}, KindCount{Judged: 1, Refused: 1}},
		{"made by something unknown", podOf("payments", "odd", "", "Database db", "Running"), KindCount{}, KindCount{Judged: 1, Refused: 1, Outdated: 1}},
		{"made by something unknown, out for good", podOf("payments", "odd", optOut, "Database db", "Running"), KindCount{}, KindCount{Judged: 1, Refused: 1}},
		{"ended", podOf("payments", "job", optOut, "Job job", "Succeeded") + "---\n" + podOf("payments", "failed", optOut, "Job job", "Failed"), KindCount{}, KindCount{}},
		{"an earlier revision", strings.ReplaceAll(deploymentOf("payments", "api", ""), "spec: {replicas: 1, template: {metadata: {labels: {app: api}, annotations: {}}", "spec: {replicas: 0, template: {metadata: {labels: {app: api}, annotations: {"+optOut+"}}"),
			KindCount{Judged: 1}, KindCount{Judged: 1, Refused: 1, Outdated: 1}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := forecastOf(t, defaultGuards(), clusterState, tc.objects)
			if got := kindOf(f, "Deployment"); got != tc.templates {
				t.Errorf("templates %+v; want %+v", got, tc.templates)
			}
			if got := kindOf(f, "Pod"); got != tc.pods {
				t.Errorf("pods %+v; want %+v", got, tc.pods)
			}
			if got, want := kindOf(f, "Namespace"), (KindCount{Judged: 2, Refused: 1}); got != want {
				t.Errorf("namespaces %+v; want %+v", got, want)
			}
			if got, want := kindOf(f, "PeerAuthentication"), (KindCount{Judged: 2, Refused: 1, Warned: 1}); got != want {
				t.Errorf("policies %+v; want %+v", got, want)
			}
			for _, c := range f.Findings {
				if c.Kind == "Pod" && c.Outdated > tc.pods.Outdated {
					t.Errorf("%d of %s are outdated", c.Outdated, c.Code)
				}
			}
			if n := f.Namespaces; n.All != 5 || n.Guarded != 2 || n.NotStrict != 1 || n.Open[0] != "legacy" {
				t.Errorf("%+v", n)
			}
			text, err := json.Marshal(f)
			if err != nil || strings.Contains(string(text), "anna") || strings.Contains(string(text), "bert") {
				t.Errorf("names of users, %v: %s", err, text)
			}
		})
	}
}

func TestForecastOfJobs(t *testing.T) {
	const job = `
apiVersion: batch/v1
kind: Job
metadata: {name: %s, namespace: payments}
spec: {template: {metadata: {annotations: {sidecar.istio.io/inject: "false"}}, spec: {containers: [{name: app, image: x}]}}}
status: {conditions: [{type: %s, status: "True"}]}
`
	f := forecastOf(t, defaultGuards(), clusterState, fmt.Sprintf(job, "done", "Complete")+"---"+fmt.Sprintf(job, "failed", "Failed")+"---"+fmt.Sprintf(job, "runs", "Suspended"))
	if got, want := kindOf(f, "Job"), (KindCount{Judged: 1, Refused: 1}); got != want {
		t.Errorf("%+v; want %+v", got, want)
	}
}

// A guard that does not deny refuses nothing, and all of it as if it did.
func TestForecastByActions(t *testing.T) {
	warning := defaultGuards()
	for _, actions := range []*[]v1alpha1.ValidationAction{
		&warning[0].Spec.StrictMTLS.ValidationActions, &warning[0].Spec.MeshMembership.ValidationActions,
		&warning[0].Spec.SidecarResources.ValidationActions, &warning[0].Spec.NodePools.ValidationActions,
	} {
		*actions = []v1alpha1.ValidationAction{v1alpha1.Warn}
	}
	objects := deploymentOf("payments", "api", optOut) + "---" + deploymentOf("legacy", "web", "")
	warned, denied := forecastOf(t, warning, clusterState, objects), forecastOf(t, Denying(warning), clusterState, objects)
	if got, want := kindOf(warned, "Pod"), (KindCount{Judged: 2, Warned: 2}); got != want {
		t.Errorf("%+v; want %+v", got, want)
	}
	if got, want := kindOf(denied, "Pod"), (KindCount{Judged: 2, Refused: 2}); got != want {
		t.Errorf("%+v; want %+v", got, want)
	}
	if len(warned.Worst) != 0 || len(denied.Worst) != 2 {
		t.Errorf("worst %+v, %+v", warned.Worst, denied.Worst)
	}
	if warning[0].Spec.StrictMTLS.ValidationActions[0] != v1alpha1.Warn {
		t.Error("the guards have been changed")
	}
}

// What Meshvakt creates itself is judged as if it were there.
func TestForecastProvides(t *testing.T) {
	guards := defaultGuards()
	guards[0].Spec.StrictMTLS.OnMissing = v1alpha1.OnMissingProvision
	state := strings.Replace(clusterState, "spec: {mtls: {mode: STRICT}}", "spec: {mtls: {mode: PERMISSIVE}}", 1)
	f := forecastOf(t, guards, state, "")
	if f.Namespaces.NotStrict != 1 || f.Namespaces.Open[0] != "legacy" || len(f.Notes) != 1 || !strings.Contains(f.Notes[0], "1 namespace ") {
		t.Errorf("%+v %q", f.Namespaces, f.Notes)
	}
}

// Wherever Meshvakt runs, that namespace is not guarded.
func TestForecastLeavesMeshvaktOut(t *testing.T) {
	f, err := NewForecaster(check.Cluster{Documents: documents(t, clusterState)}, defaultGuards(), "payments", "a test", testTime())
	if err != nil {
		t.Fatal(err)
	}
	if n := f.Forecast().Namespaces.Guarded; n != 1 {
		t.Errorf("%d namespaces are guarded; want legacy alone", n)
	}
}

// However many objects there are, what is listed is bounded.
func TestForecastIsBounded(t *testing.T) {
	var state, objects strings.Builder
	state.WriteString(clusterState)
	for i := range 2 * worstAtMost {
		fmt.Fprintf(&state, "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: ns-%02d, labels: {meshvakt.io/guarded: \"true\"}}\n", i)
		for j := range i + 1 {
			fmt.Fprintf(&objects, "---%s", podOf(fmt.Sprintf("ns-%02d", i), fmt.Sprintf("app-%d", j), optOut, "", "Running"))
		}
	}
	f := forecastOf(t, defaultGuards(), state.String(), objects.String())
	if len(f.Worst) != worstAtMost || f.Worst[0] != (NamespaceCount{"ns-19", 20}) {
		t.Errorf("worst %+v", f.Worst)
	}
	for _, c := range f.Findings {
		if len(c.Examples) > examplesAtMost || c.Objects < len(c.Examples) {
			t.Errorf("%s: %d examples of %d", c.Code, len(c.Examples), c.Objects)
		}
	}
	if n := kindOf(f, "Pod").Refused; n != 210 {
		t.Errorf("%d pods refused; want 210", n)
	}
}

// An object that cannot be judged keeps its check from passing, and no other.
func TestForecastOfTheUnreadable(t *testing.T) {
	f, err := NewForecaster(check.Cluster{Documents: documents(t, clusterState)}, defaultGuards(), "meshvakt-system", "a test", testTime())
	if err != nil {
		t.Fatal(err)
	}
	pod := check.Document{Namespace: "payments", Name: "p", JSON: []byte(`{"metadata": 1}`), Stored: true}
	pod.Kind.Version, pod.Kind.Kind = "v1", "Pod"
	for range 100 {
		f.Judge(&pod)
	}
	o := f.Forecast()
	if len(o.unread) == 0 || len(o.unread) > 20 {
		t.Errorf("%d notes of what could not be judged", len(o.unread))
	}
	if c := forecastCheck(classPods, o, nil); c.Result != Unknown || !strings.Contains(c.Found, "decode") && !strings.Contains(c.Found, "read") {
		t.Errorf("%+v", c)
	}
	if c := forecastCheck(classIstio, o, nil); c.Result != Pass {
		t.Errorf("%+v", c)
	}
}

func TestWorkloads(t *testing.T) {
	list := Workloads()
	if last := list[len(list)-1]; last.Kind != "Pod" {
		t.Errorf("the last is %s; what pods come from must be judged before them", last.Kind)
	}
	seen := map[string]bool{}
	for _, w := range list {
		if seen[w.Kind] {
			t.Errorf("%s twice", w.Kind)
		}
		seen[w.Kind] = true
	}
	for _, kind := range []string{"Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job", "CronJob", "ReplicationController", "Rollout", "DestinationRule", "EnvoyFilter"} {
		if !seen[kind] {
			t.Errorf("no %s", kind)
		}
	}
	for _, kind := range []string{"Namespace", "Node", "Binding", "PeerAuthentication", "MeshGuard", "GuardException", "ConfigMap"} {
		if seen[kind] {
			t.Errorf("%s is not judged object by object", kind)
		}
	}
}
