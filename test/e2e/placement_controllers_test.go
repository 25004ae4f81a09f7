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
		"are burstable (instance type t3.large)", `in region "us-east-1"`, "must put them on others alone [MV406]")
	t.Log(message)
	remedy := regexp.MustCompile(`required node affinity, in each of its terms: (\{.*\})`).FindStringSubmatch(message)
	if remedy == nil {
		t.Fatal("the message has no remedy that can be copied")
	}
	var requirements []corev1.NodeSelectorRequirement
	must(t, yaml.UnmarshalStrict([]byte("["+remedy[1]+"]"), &requirements))
	w.edit = edits(w.edit, terms(requirements))
	must(t, p.dev.Create(t.Context(), w.workload(namespace)))
	eventually(t, 30*time.Second, func() error { return p.runsOn(t, namespace, p.nodesThat(t, allowed)) })
}

// runsOn tells in what the nodes of the pods of a namespace are not those wanted.
func (p *placement) runsOn(t testing.TB, namespace string, want map[string]bool) error {
	t.Helper()
	got := map[string]bool{}
	for _, pod := range p.pods(t, namespace) {
		if n := pod.Spec.NodeName; n != "" {
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
	namespaces []string // with the DaemonSet old-agent in each
	job        *batchv1.Job
}

// beforeGuards creates DaemonSets that run everywhere, and a Job that can run on
// burstable nodes alone and has not begun.
func (p *placement) beforeGuards(t *testing.T) *before {
	t.Helper()
	b := &before{namespaces: []string{p.namespace(t, steered), p.namespace(t, unsteeredBy)}}
	for _, namespace := range b.namespaces {
		must(t, p.dev.Create(t.Context(), (&toPlace{name: "old-agent", kind: "DaemonSet", edit: cpus("1m")}).workload(namespace)))
	}
	job := &toPlace{name: "old-job", kind: "Job", pods: 2, edit: inPool("t3")}
	b.job, _ = job.workload(b.namespaces[0]).(*batchv1.Job)
	b.job.Spec.Suspend, b.job.Spec.BackoffLimit = new(true), new(int32(2))
	must(t, p.dev.Create(t.Context(), b.job))
	for _, namespace := range b.namespaces {
		eventually(t, 30*time.Second, func() error {
			return p.runsOn(t, namespace, p.nodesThat(t, func(*corev1.Node) bool { return true }))
		})
	}
	return b
}

// nodesThat are the nodes without taints that do.
func (p *placement) nodesThat(t testing.TB, do func(*corev1.Node) bool) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	for _, n := range p.nodes(t) {
		if len(n.Spec.Taints) == 0 && do(&n) {
			names[n.Name] = true
		}
	}
	return names
}

func allowed(n *corev1.Node) bool { return offLimits(n) == "" }

// fromBefore: what was there before the guard does not come back where it may not run,
// comes back where it may, and is not tried in a hot loop.
func (p *placement) fromBefore(t *testing.T, b *before) {
	began := time.Now()
	must(t, patch(t, p.dev, b.job, `{"spec":{"suspend":false}}`))
	for _, namespace := range b.namespaces {
		p.deletePods(t, namespace)
	}
	want := p.nodesThat(t, allowed)
	for _, namespace := range b.namespaces {
		eventually(t, watchTime, func() error { return p.runsOn(t, namespace, want) })
		t.Logf("the pods of a DaemonSet are back on the %d nodes on which they may run after %s", len(want), time.Since(began).Round(time.Millisecond))
	}
	waitUntil(t, began.Add(watchTime))
	for i, namespace := range b.namespaces {
		must(t, p.runsOn(t, namespace, want))
		pods := p.pods(t, namespace, client.MatchingLabels{"app": "old-agent"})
		creations := attempts(t, daemonSetController, "pods", "", namespace, began)
		bindings := attempts(t, schedulerName, "pods", "binding", namespace, began)
		t.Logf("%s: %d pods wait; refused in %s: %d that the DaemonSet wants, %d bindings", []string{steered, unsteeredBy}[i], len(pods)-on(pods), watchTime, creations, bindings)
		if creations > 0 || bindings > []int{0, 8}[i]*(len(pods)-on(pods)) {
			t.Errorf("tried in vain: %d creations, %d bindings", creations, bindings)
		}
		p.waitingSays(t, namespace, pods, [][]string{{"didn't match Pod's node affinity/selector"}, {"denied the request", "[MV40"}}[i])
	}
	job := attempts(t, jobController, "pods", "", b.job.Namespace, began)
	t.Logf("refused in %s: %d pods of a Job that wants 2, %d in the second half of it", watchTime, job, attempts(t, jobController, "pods", "", b.job.Namespace, began.Add(watchTime/2)))
	if job == 0 || job > 30 {
		t.Errorf("the Job's controller has tried %d times", job)
	}
	texts := p.told(t, b.job.Namespace, "old-job", "FailedCreate")
	if len(texts) == 0 || !strings.Contains(texts[0], `10 nodes such as "t3-00" are burstable (instance type t3.large)`) || !strings.Contains(texts[0], "[MV405]") {
		t.Errorf("the events of the Job say %q", texts)
	} else {
		t.Log(texts[0])
	}
	must(t, p.admin.Get(t.Context(), client.ObjectKeyFromObject(b.job), b.job))
	if s := b.job.Status; s.Failed != 0 || slices.ContainsFunc(s.Conditions, func(c batchv1.JobCondition) bool {
		return c.Type == batchv1.JobFailed && c.Status == corev1.ConditionTrue
	}) {
		t.Errorf("pods that were never created have cost the Job its backoffLimit: %+v", s)
	}
	background := client.PropagationPolicy(metav1.DeletePropagationBackground)
	must(t, p.admin.Delete(t.Context(), b.job, background))
	for _, namespace := range b.namespaces {
		must(t, p.admin.Delete(t.Context(), &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "old-agent"}}, background))
	}
}

// waitingSays demands that the events of every pod without a node say why.
func (p *placement) waitingSays(t testing.TB, namespace string, pods []corev1.Pod, why []string) {
	t.Helper()
	for i, pod := range pods {
		if pod.Spec.NodeName != "" {
			continue
		}
		texts := p.told(t, namespace, pod.Name, "FailedScheduling")
		if !slices.ContainsFunc(texts, func(text string) bool { return saysAll(text, why) }) {
			t.Errorf("the events of pod %s, for node %s, say %q; must hold %q", pod.Name, forNode(&pod), texts, why)
		} else if i == 0 {
			t.Logf("for node %s: %s", forNode(&pod), texts[0])
		}
	}
}

// forNode is the node that a DaemonSet has made a pod for.
func forNode(pod *corev1.Pod) string {
	return pod.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms[0].MatchFields[0].Values[0]
}

func saysAll(text string, parts []string) bool {
	return !slices.ContainsFunc(parts, func(part string) bool { return !strings.Contains(text, part) })
}
