package cluster

import (
	"context"
	"reflect"
	"slices"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/policies/facts"
)

// needsPods reports whether the request is judged together with the pods that run
// in the namespace: it puts the namespace under a guard of mesh membership, or
// changes the labels of one that is.
func (l *liveRead) needsPods(r *facts.Review) bool {
	ns, ok := r.Object.(*corev1.Namespace)
	return ok && r.Operation == admissionv1.Update && slices.ContainsFunc(l.cluster.Guards, func(g facts.Guard) bool {
		return g.MeshMembership != nil && l.cluster.Selects(&g, ns.Name, ns.Labels)
	})
}

// pods reads the pods that run in a namespace, a page at a time, so that at no
// moment more is held than one page as the API server sends it and what is judged.
// A pod with a sidecar takes 22 KiB, and there are namespaces with thousands; those
// of one controller are nearly the same, and share what is equal.
func (l *liveRead) pods(ctx context.Context, namespace string) error {
	ns := l.cluster.Namespaces[namespace]
	if ns == nil {
		return nil
	}
	with := *ns
	twins := map[types.UID]*corev1.Pod{}
	list := &corev1.PodList{}
	err := l.pages(ctx, list, func() {
		for i := range list.Items {
			p := slimPod(&list.Items[i])
			if p == nil {
				continue
			}
			with.Pods = append(with.Pods, p)
			owner := metav1.GetControllerOf(&list.Items[i])
			if owner == nil {
				continue
			}
			if twin := twins[owner.UID]; twin != nil {
				share(reflect.ValueOf(p).Elem(), reflect.ValueOf(twin).Elem())
			} else {
				twins[owner.UID] = p
			}
		}
	}, client.InNamespace(namespace))
	l.cluster.Namespaces[namespace] = &with
	return err
}

// slimPod returns what is judged of a pod that runs, apart from the page it came
// in, and nil for one that has ended, or stands for what the kubelet runs from a
// file.
func slimPod(p *corev1.Pod) *corev1.Pod {
	_, mirror := p.Annotations[corev1.MirrorPodAnnotationKey]
	if mirror || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
		return nil
	}
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: p.Name, Namespace: p.Namespace, Labels: p.Labels, Annotations: p.Annotations, DeletionTimestamp: p.DeletionTimestamp,
		},
		Spec:   p.Spec,
		Status: corev1.PodStatus{Phase: p.Status.Phase},
	}
}

// share lets value hold what is equal in twin instead of its own. Both are only read
// from then on.
func share(value, twin reflect.Value) {
	switch value.Kind() {
	case reflect.String:
		if value.CanSet() && value.String() == twin.String() {
			value.Set(twin)
		}
	case reflect.Struct:
		for i := range value.NumField() {
			share(value.Field(i), twin.Field(i))
		}
	case reflect.Pointer, reflect.Slice, reflect.Map:
		if !value.CanSet() || value.IsNil() || twin.IsNil() {
			return
		}
		if reflect.DeepEqual(value.Interface(), twin.Interface()) {
			value.Set(twin)
			return
		}
		if value.Kind() == reflect.Pointer {
			share(value.Elem(), twin.Elem())
		}
		if value.Kind() == reflect.Slice {
			for i := range min(value.Len(), twin.Len()) {
				share(value.Index(i), twin.Index(i))
			}
		}
	default: // as large as a reference to it
	}
}
