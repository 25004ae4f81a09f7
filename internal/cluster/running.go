package cluster

import (
	"context"
	"fmt"
	"iter"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/policies/facts"
)

// Running is a pod, or the template of a controller. One of Pod and Workload is nil. It
// is only good until the next.
type Running struct {
	Kind     schema.GroupVersionKind
	Pod      *corev1.Pod
	Workload *facts.Workload
}

// Namespace is where it is.
func (r *Running) Namespace() string { return r.object().GetNamespace() }

func (r *Running) object() metav1.Object {
	if r.Pod != nil {
		return r.Pod
	}
	return r.Workload
}

// Running gives the pods of a namespace, or of all for "", and the templates of the
// controllers that people make, namespace by namespace. It reads one page of each kind
// at a time, whatever their number, and lists a cluster's in some hundred requests. An
// error ends it.
//
// Left out are the templates of ReplicaSets and Jobs: they come from others that are
// read, or have become pods.
func (s *Source) Running(ctx context.Context, namespace string) iter.Seq2[Running, error] {
	return func(yield func(Running, error) bool) {
		var heads []*head
		defer func() {
			for _, h := range heads {
				h.stop()
			}
		}()
		for _, read := range s.running(ctx, namespace) {
			h := &head{}
			h.next, h.stop = iter.Pull2(read)
			heads = append(heads, h)
			h.pull()
		}
		last := ""
		for {
			var first *head
			for _, h := range heads {
				if h.err != nil {
					yield(Running{}, h.err)
					return
				}
				if h.ok && (first == nil || before(h.item.Namespace(), first.item.Namespace())) {
					first = h
				}
			}
			if first == nil {
				return
			}
			if at := first.item.Namespace(); before(at, last) {
				yield(Running{}, fmt.Errorf("list %s: namespace %q comes after %q; must be in the order of keys", first.item.Kind.Kind, at, last))
				return
			}
			last = first.item.Namespace()
			if !yield(first.item, nil) {
				return
			}
			first.pull()
		}
	}
}

// before is the order of keys in the API server's store, in which a namespace's name
// ends with a slash.
func before(a, b string) bool { return b != "" && strings.Compare(a+"/", b+"/") < 0 }

// head is the next of the objects of one kind.
type head struct {
	next func() (Running, error, bool)
	stop func()
	item Running
	err  error
	ok   bool
}

func (h *head) pull() { h.item, h.err, h.ok = h.next() }

// running are the sequences that Running merges.
func (s *Source) running(ctx context.Context, namespace string) []iter.Seq2[Running, error] {
	apps, batch := appsv1.SchemeGroupVersion, batchv1.SchemeGroupVersion
	pods, deployments, statefulSets, daemonSets, cronJobs := &corev1.PodList{}, &appsv1.DeploymentList{}, &appsv1.StatefulSetList{}, &appsv1.DaemonSetList{}, &batchv1.CronJobList{}
	const template = "spec.template"
	return []iter.Seq2[Running, error]{
		items(ctx, s.cfg.Live, namespace, pods, func() int { return len(pods.Items) }, func(i int) Running {
			return Running{Kind: corev1.SchemeGroupVersion.WithKind("Pod"), Pod: &pods.Items[i]}
		}),
		items(ctx, s.cfg.Live, namespace, deployments, func() int { return len(deployments.Items) }, func(i int) Running {
			o := &deployments.Items[i]
			return Running{Kind: apps.WithKind("Deployment"), Workload: workloadOf(&o.ObjectMeta, &o.Spec.Template, template, o.Spec.Replicas)}
		}),
		items(ctx, s.cfg.Live, namespace, statefulSets, func() int { return len(statefulSets.Items) }, func(i int) Running {
			o := &statefulSets.Items[i]
			return Running{Kind: apps.WithKind("StatefulSet"), Workload: workloadOf(&o.ObjectMeta, &o.Spec.Template, template, o.Spec.Replicas)}
		}),
		items(ctx, s.cfg.Live, namespace, daemonSets, func() int { return len(daemonSets.Items) }, func(i int) Running {
			o := &daemonSets.Items[i]
			return Running{Kind: apps.WithKind("DaemonSet"), Workload: workloadOf(&o.ObjectMeta, &o.Spec.Template, template, nil)}
		}),
		items(ctx, s.cfg.Live, namespace, cronJobs, func() int { return len(cronJobs.Items) }, func(i int) Running {
			o := &cronJobs.Items[i]
			job := &o.Spec.JobTemplate.Spec
			return Running{Kind: batch.WithKind("CronJob"), Workload: workloadOf(&o.ObjectMeta, &job.Template, "spec.jobTemplate.spec.template", job.Parallelism)}
		}),
	}
}

func workloadOf(m *metav1.ObjectMeta, template *corev1.PodTemplateSpec, path string, pods *int32) *facts.Workload {
	w := &facts.Workload{ObjectMeta: *m, Template: template, Path: path, Pods: 1}
	if pods != nil {
		w.Pods = *pods
	}
	return w
}

// items lists objects page by page. The list is reused.
func items(ctx context.Context, reader client.Reader, namespace string, list client.ObjectList, count func() int, at func(int) Running) iter.Seq2[Running, error] {
	return func(yield func(Running, error) bool) {
		for next := ""; ; {
			if err := reader.List(ctx, list, client.InNamespace(namespace), client.Limit(pageSize), client.Continue(next)); err != nil {
				yield(Running{}, fmt.Errorf("list %T: %w", list, err))
				return
			}
			for i := range count() {
				if !yield(at(i), nil) {
					return
				}
			}
			if next = list.GetContinue(); next == "" {
				return
			}
		}
	}
}
