package e2e

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/meshvakt/meshvakt/test/controlplane"
)

const (
	daemonSetController = "system:serviceaccount:kube-system:daemon-set-controller"
	jobController       = "system:serviceaccount:kube-system:job-controller"
)

// daemonSets: one that goes everywhere is refused, and what the refusal says to do
// about it can be done.
func (p *placement) daemonSets(t *testing.T) {
	namespace := p.namespace(t, steered)
	w := &toPlace{name: "agent", kind: "DaemonSet", edit: cpus("1m")}
	message := refused(t, p.dev.Create(t.Context(), w.workload(namespace)),
		`spec.template.spec.affinity: the DaemonSet puts pods on nodes on which they may not run by MeshGuard "steered": `,
		"are burstable (instance type t3.large)", `in region "us-east-1"`, "of unknown class", "must leave them out [MV406]")
	t.Log(message)
	remedy := regexp.MustCompile(`required node affinity: (\{.*\})`).FindStringSubmatch(message)
	if remedy == nil {
		t.Fatal("the message has no remedy that can be copied")
	}
	var requirements []corev1.NodeSelectorRequirement
	must(t, yaml.UnmarshalStrict([]byte("["+remedy[1]+"]"), &requirements))
	w.edit = edits(w.edit, terms(requirements))
	must(t, p.dev.Create(t.Context(), w.workload(namespace)))
	want := map[string]bool{}
	for _, n := range p.nodes(t) {
		if pool := n.Labels["pool"]; offLimits(&n) == "" && len(n.Spec.Taints) == 0 && pool != "lone" && pool != "fresh" {
			want[n.Name] = true
		}
	}
	eventually(t, 30*time.Second, func() error { return p.runsOn(t, namespace, want) })
}

// runsOn tells in what the nodes of the pods of a namespace are not those wanted. Nodes
// of other tests come and go.
func (p *placement) runsOn(t testing.TB, namespace string, want map[string]bool) error {
	t.Helper()
	got := map[string]bool{}
	for _, pod := range p.pods(t, namespace) {
		if n := pod.Spec.NodeName; n != "" && !strings.HasPrefix(n, "lone-") && !strings.HasPrefix(n, "fresh-") {
			got[n] = true
		}
	}
	if !maps.Equal(got, want) {
		return fmt.Errorf("pods run on %d nodes, %q; must on %d, %q", len(got), slices.Sorted(maps.Keys(got)), len(want), slices.Sorted(maps.Keys(want)))
	}
	return nil
}

// before is what was there before any guard was.
type before struct {
	namespace string
	daemonSet *appsv1.DaemonSet
	job       *batchv1.Job
}

// beforeGuards creates a DaemonSet that runs everywhere, and a Job that can run on
// burstable nodes alone and has not begun.
func (p *placement) beforeGuards(t *testing.T) *before {
	t.Helper()
	b := &before{namespace: p.namespace(t, steered)}
	daemonSet := &toPlace{name: "old-agent", kind: "DaemonSet", edit: cpus("1m")}
	b.daemonSet, _ = daemonSet.workload(b.namespace).(*appsv1.DaemonSet)
	must(t, p.dev.Create(t.Context(), b.daemonSet))
	job := &toPlace{name: "old-job", kind: "Job", pods: 2, edit: inPool("t3")}
	b.job, _ = job.workload(b.namespace).(*batchv1.Job)
	b.job.Spec.Suspend, b.job.Spec.BackoffLimit = new(true), new(int32(2))
	must(t, p.dev.Create(t.Context(), b.job))
	want := map[string]bool{}
	for _, n := range p.nodes(t) {
		want[n.Name] = len(n.Spec.Taints) == 0
		if !want[n.Name] {
			delete(want, n.Name)
		}
	}
	eventually(t, 30*time.Second, func() error { return p.runsOn(t, b.namespace, want) })
	return b
}

// fromBefore: what was there before the guard does not come back where it may not run,
// and the controllers that want it to do not try in a hot loop.
func (p *placement) fromBefore(t *testing.T, b *before) {
	began := time.Now()
	_, warning, err := plane.Kubectl(t.Context(), controlplane.Developer, "", "-n", b.namespace, "patch", "job", "old-job", "-p", `{"spec":{"suspend":false}}`)
	must(t, err)
	if !strings.Contains(warning, "[MV410]") {
		t.Errorf("the author of the Job is told %q; must be of MV410", warning)
	}
	p.deletePods(t, b.namespace)
	want := map[string]bool{}
	for _, n := range p.nodes(t) {
		if pool := n.Labels["pool"]; offLimits(&n) == "" && len(n.Spec.Taints) == 0 && pool != "lone" && pool != "fresh" {
			want[n.Name] = true
		}
	}
	eventually(t, watchTime, func() error { return p.runsOn(t, b.namespace, want) })
	t.Logf("the DaemonSet's pods are back on the %d nodes on which they may run after %s", len(want), time.Since(began).Round(time.Millisecond))
	waitUntil(t, began.Add(watchTime))
	must(t, p.runsOn(t, b.namespace, want))

	daemonSet := attempts(t, daemonSetController, "pods", "", b.namespace, began)
	job := attempts(t, jobController, "pods", "", b.namespace, began)
	late := began.Add(watchTime / 2)
	t.Logf("in %s the controllers tried in vain to create %d pods of the DaemonSet, for 28 nodes, and %d of the Job, which wants 2; in the second half %d and %d",
		watchTime, daemonSet, job, attempts(t, daemonSetController, "pods", "", b.namespace, late), attempts(t, jobController, "pods", "", b.namespace, late))
	if daemonSet == 0 || daemonSet > 200 || job == 0 || job > 30 {
		t.Errorf("%d attempts of the DaemonSet, %d of the Job", daemonSet, job)
	}
	for name, code := range map[string]string{"old-agent": "[MV40", "old-job": "[MV405]"} {
		texts := p.told(t, b.namespace, name, "FailedCreate")
		if len(texts) == 0 || !strings.Contains(texts[0], code) || !strings.Contains(texts[0], "is burstable") && !strings.Contains(texts[0], "are burstable") && !strings.Contains(texts[0], "in region") && !strings.Contains(texts[0], "unknown class") {
			t.Errorf("the events of %s say %q", name, texts)
			continue
		}
		t.Logf("%s: %s", name, texts[0])
	}
	must(t, p.admin.Get(t.Context(), client.ObjectKeyFromObject(b.job), b.job))
	if s := b.job.Status; s.Failed != 0 || slices.ContainsFunc(s.Conditions, func(c batchv1.JobCondition) bool {
		return c.Type == batchv1.JobFailed && c.Status == corev1.ConditionTrue
	}) {
		t.Errorf("pods that were never created have cost the Job its backoffLimit: %+v", s)
	}
	must(t, p.admin.Delete(t.Context(), b.job, client.PropagationPolicy(metav1.DeletePropagationBackground)))
	must(t, p.admin.Delete(t.Context(), b.daemonSet, client.PropagationPolicy(metav1.DeletePropagationBackground)))
}
