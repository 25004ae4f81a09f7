package cluster

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	apiwatch "k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// paged answers lists page by page, as an API server does.
type paged struct {
	client.Reader // what is not overridden must not be called
	pods          []corev1.Pod
	deployments   []appsv1.Deployment
	cronJobs      []batchv1.CronJob
	requests      int
}

func (p *paged) List(_ context.Context, list client.ObjectList, opts ...client.ListOption) error {
	p.requests++
	o := (&client.ListOptions{}).ApplyOptions(opts)
	switch l := list.(type) {
	case *corev1.PodList:
		l.Items, l.Continue = page(p.pods, func(x *corev1.Pod) string { return x.Namespace }, o)
	case *appsv1.DeploymentList:
		l.Items, l.Continue = page(p.deployments, func(x *appsv1.Deployment) string { return x.Namespace }, o)
	case *batchv1.CronJobList:
		l.Items, l.Continue = page(p.cronJobs, func(x *batchv1.CronJob) string { return x.Namespace }, o)
	}
	return nil
}

func page[T any](all []T, namespace func(*T) string, o *client.ListOptions) ([]T, string) {
	if o.Namespace != "" {
		all = slices.DeleteFunc(slices.Clone(all), func(x T) bool { return namespace(&x) != o.Namespace })
	}
	at, _ := strconv.Atoi(o.Continue)
	end := min(at+int(o.Limit), len(all))
	if end == len(all) {
		return all[at:], ""
	}
	return all[at:end], strconv.Itoa(end)
}

func TestRunning(t *testing.T) {
	reader := &paged{}
	meta := func(namespace, name string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Namespace: namespace, Name: name}
	}
	// The order of keys: a dash comes before a slash.
	for _, namespace := range []string{"a-b", "a", "b"} {
		for i := range 400 {
			reader.pods = append(reader.pods, corev1.Pod{ObjectMeta: meta(namespace, fmt.Sprint(i))})
		}
	}
	reader.deployments = []appsv1.Deployment{{ObjectMeta: meta("a", "web"), Spec: appsv1.DeploymentSpec{Replicas: new(int32(3))}}}
	reader.cronJobs = []batchv1.CronJob{{ObjectMeta: meta("0", "night")}, {ObjectMeta: meta("c", "night")}}
	s := New(Config{Live: reader, Log: slog.New(slog.DiscardHandler)})
	seen := func(namespace string) string {
		t.Helper()
		var texts []string
		last := ""
		n := 0
		flush := func() {
			if n > 0 {
				texts = append(texts, fmt.Sprintf("%s %d", last, n))
			}
		}
		for o, err := range s.Running(t.Context(), namespace) {
			if err != nil {
				t.Fatal(err)
			}
			if at := o.Namespace() + "/" + o.Kind.Kind; at != last {
				flush()
				last, n = at, 0
			}
			n++
			if o.Workload != nil && (o.Workload.Template == nil || o.Workload.Name == "web" && o.Workload.Pods != 3 || !strings.HasSuffix(o.Workload.Path, "spec.template")) {
				t.Errorf("workload %+v", o.Workload)
			}
		}
		flush()
		return strings.Join(texts, ", ")
	}
	if got, want := seen(""), "0/CronJob 1, a-b/Pod 400, a/Pod 400, a/Deployment 1, b/Pod 400, c/CronJob 1"; got != want {
		t.Errorf("got %s; want %s", got, want)
	}
	// Three pages of pods, and one of each other kind.
	if reader.requests != 7 {
		t.Errorf("%d requests for 1,203 objects", reader.requests)
	}
	if got, want := seen("a"), "a/Pod 400, a/Deployment 1"; got != want {
		t.Errorf("got %s; want %s", got, want)
	}
	slices.Reverse(reader.pods)
	failed := false
	for _, err := range s.Running(t.Context(), "") {
		failed = failed || err != nil
	}
	if !failed {
		t.Error("objects out of order were taken, so that a namespace would be seen in parts")
	}
}

func TestTouched(t *testing.T) {
	pod := func(edit func(*corev1.Pod)) *corev1.Pod {
		p := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "prod", Name: "web", UID: types.UID("1"), Generation: 1, Labels: map[string]string{"app": "web"}, Annotations: map[string]string{"a": "b"}},
			Spec:       corev1.PodSpec{NodeName: "n"},
		}
		if edit != nil {
			edit(p)
		}
		return p
	}
	kind := corev1.SchemeGroupVersion.WithKind("Pod")
	touched := func() *Touched {
		x := NewTouched(nil, slog.New(slog.DiscardHandler))
		x.Judged(&Running{Kind: kind, Pod: pod(nil)})
		return x
	}
	for name, c := range map[string]struct {
		event apiwatch.EventType
		edit  func(*corev1.Pod)
		want  bool
	}{
		"the news of a kubelet":      {apiwatch.Modified, func(p *corev1.Pod) { p.ResourceVersion, p.ManagedFields = "7", []metav1.ManagedFieldsEntry{{}} }, false},
		"what the watch begins with": {apiwatch.Added, nil, false},
		"a label":                    {apiwatch.Modified, func(p *corev1.Pod) { p.Labels["app"] = "other" }, true},
		"a label is an annotation":   {apiwatch.Modified, func(p *corev1.Pod) { p.Labels, p.Annotations = p.Annotations, p.Labels }, true},
		"the spec":                   {apiwatch.Modified, func(p *corev1.Pod) { p.Generation = 2 }, true},
		"it is about to go":          {apiwatch.Modified, func(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{} }, true},
		"it is gone":                 {apiwatch.Deleted, nil, true},
		"another of its name":        {apiwatch.Added, func(p *corev1.Pod) { p.UID = "2" }, true},
		"progress":                   {apiwatch.Bookmark, nil, false},
	} {
		if got, perhaps := touched().changes("Pod", c.event, pod(c.edit)); got != c.want || perhaps {
			t.Errorf("%s: %t, perhaps %t; want %t", name, got, perhaps, c.want)
		}
	}
	x := touched()
	if changed, _ := x.changes("Deployment", apiwatch.Added, pod(nil)); !changed {
		t.Error("an object of another kind is taken for the pod")
	}
	waiting := pod(func(p *corev1.Pod) { p.Name, p.Spec.NodeName = "waiting", "" })
	x.Judged(&Running{Kind: kind, Pod: waiting})
	if changed, perhaps := x.changes("Pod", apiwatch.Modified, waiting); changed || !perhaps {
		t.Errorf("news of a pod that waits for a node: %t, perhaps %t; that it gets one does not show in its metadata", changed, perhaps)
	}
	if perhaps, _ := x.changes("Pod", apiwatch.Modified, pod(func(p *corev1.Pod) { p.Name, p.Labels = "waiting", nil })); !perhaps {
		t.Error("a label of a pod that waits for a node does not count")
	}
}

// What a whole pass does not meet is forgotten, and nothing if it breaks off.
func TestTouchedForgets(t *testing.T) {
	x := NewTouched(nil, slog.New(slog.DiscardHandler))
	of := func(name string) *Running {
		return &Running{Kind: corev1.SchemeGroupVersion.WithKind("Pod"), Pod: &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PodSpec{NodeName: "n"}}}
	}
	x.Judged(of("a"))
	x.Begin()
	x.Judged(of("b"))
	x.End(false)
	if len(x.judged) != 2 {
		t.Errorf("%d are known after a pass that broke off, want both", len(x.judged))
	}
	x.Begin()
	x.Judged(of("b"))
	x.End(true)
	a, _ := x.changes("Pod", apiwatch.Modified, of("a").Pod)
	b, _ := x.changes("Pod", apiwatch.Modified, of("b").Pod)
	if len(x.judged) != 1 || b || !a {
		t.Errorf("%d are known after a pass that met one", len(x.judged))
	}
}
