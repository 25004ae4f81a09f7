package observe

import (
	"hash/maphash"
	"log/slog"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/internal/mesh"
)

// outside counts the pods that have not ended and are not in the mesh, by namespace. It keeps some 40 bytes for each of
// them and nothing for all others.
//
// In the mesh is what has a proxy, or is enrolled in ambient, as for the policies. That is asked of the pod as it is,
// and not of what it was admitted for.
type outside struct {
	*follower
	changed func(namespace string)

	seed  maphash.Seed
	mu    sync.Mutex
	pods  map[uint64]outsidePod // guarded by mu; by UID
	met   map[uint64]bool       // guarded by mu; those outside in a list that is under way, nil unless one is
	count map[string]*outsideCount
	ready chan struct{}
	once  sync.Once // for ready
}

// outsideCount counts pods that are outside whatever the namespace is, and those that are unless it is ambient.
type outsideCount struct{ always, unlessAmbient int }

type outsidePod struct {
	in            *outsideCount
	namespace     string
	unlessAmbient bool
}

func newOutside(c client.WithWatch, log *slog.Logger, now func() time.Time, changed func(namespace string)) *outside {
	o := &outside{
		changed: changed, seed: maphash.MakeSeed(), pods: map[uint64]outsidePod{}, count: map[string]*outsideCount{}, ready: make(chan struct{}),
	}
	o.follower = &follower{
		client: c, kind: "Pod", list: func() client.ObjectList { return &corev1.PodList{} }, log: log, now: now,
		// What has ended takes no traffic; the API server tells of it as deleted.
		fields: fields.ParseSelectorOrDie("status.phase!=Succeeded,status.phase!=Failed"),
		begin:  o.begin, end: o.end, set: o.setPod, gone: o.removePod,
	}
	return o
}

// Count is how many pods of a namespace are outside.
func (o *outside) Count(namespace string, ambient bool) uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	c := o.count[namespace]
	switch {
	case c == nil:
		return 0
	case ambient:
		return uint64(c.always) //nolint:gosec // not negative
	}
	return uint64(c.always + c.unlessAmbient) //nolint:gosec // not negative
}

func (o *outside) key(uid types.UID) uint64 { return maphash.String(o.seed, string(uid)) }

func (o *outside) setPod(object client.Object) {
	pod, ok := object.(*corev1.Pod)
	if !ok {
		return
	}
	if pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
		o.removePod(pod) // where the selector was not heeded
		return
	}
	out, unlessAmbient := isOutside(pod)
	key := o.key(pod.UID)
	o.mu.Lock()
	if o.met != nil && out {
		o.met[key] = true
	}
	was, known := o.pods[key]
	different := known != out || known && was.unlessAmbient != unlessAmbient
	if different {
		o.forget(key)
		if out {
			o.remember(key, pod.Namespace, unlessAmbient)
		}
	}
	o.mu.Unlock()
	if different {
		o.changed(pod.Namespace)
	}
}

func (o *outside) removePod(object client.Object) {
	key := o.key(object.GetUID())
	o.mu.Lock()
	_, known := o.pods[key]
	o.forget(key)
	o.mu.Unlock()
	if known {
		o.changed(object.GetNamespace())
	}
}

// remember and forget are called with mu held.
func (o *outside) remember(key uint64, namespace string, unlessAmbient bool) {
	c := o.count[namespace]
	if c == nil {
		c = &outsideCount{}
		o.count[namespace] = c
	}
	if unlessAmbient {
		c.unlessAmbient++
	} else {
		c.always++
	}
	o.pods[key] = outsidePod{c, namespace, unlessAmbient}
}

func (o *outside) forget(key uint64) {
	was, known := o.pods[key]
	if !known {
		return
	}
	delete(o.pods, key)
	if was.unlessAmbient {
		was.in.unlessAmbient--
	} else {
		was.in.always--
	}
	if *was.in == (outsideCount{}) {
		delete(o.count, was.namespace)
	}
}

func (o *outside) begin() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.met = map[uint64]bool{}
}

// end forgets what was not met in the list.
func (o *outside) end() {
	var changed []string
	o.mu.Lock()
	for key, was := range o.pods {
		if !o.met[key] {
			changed = append(changed, was.namespace)
			o.forget(key)
		}
	}
	o.met = nil
	o.mu.Unlock()
	slices.Sort(changed)
	for _, namespace := range slices.Compact(changed) {
		o.changed(namespace)
	}
	o.once.Do(func() { close(o.ready) })
}

// isOutside reports whether a pod is outside of the mesh, and whether that is so only while its namespace is not
// ambient.
func isOutside(pod *corev1.Pod) (out, unlessAmbient bool) {
	isProxy := func(c corev1.Container) bool { return c.Name == "istio-proxy" }
	if slices.ContainsFunc(pod.Spec.Containers, isProxy) || slices.ContainsFunc(pod.Spec.InitContainers, isProxy) {
		return false, false
	}
	candidate := mesh.Candidate{Namespace: pod.Namespace, Labels: pod.Labels, Annotations: pod.Annotations, HostNetwork: pod.Spec.HostNetwork}
	if mesh.AmbientEnrolled(candidate) {
		return false, false
	}
	candidate.NamespaceLabels = map[string]string{"istio.io/dataplane-mode": "ambient"}
	return true, mesh.AmbientEnrolled(candidate)
}
