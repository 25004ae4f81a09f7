package objects

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/meshvakt/meshvakt/policies/facts"
)

// Head is what an object says of itself: its type, and what is read of metadata.
//
// +kubebuilder:object:generate=false
type Head struct {
	metav1.TypeMeta
	metav1.ObjectMeta
}

// Checked is Decode for JSON that has been checked: it is well formed and in UTF-8,
// and no name stands twice in an object, at any depth. Of pods, of what makes pods
// and of namespaces it reads what policies read, and nothing else; values of another
// type than the field's are an error, except where nothing of them is read. Of other
// kinds it only reads the head, and the object is nil.
func Checked(kind schema.GroupKind, text []byte) (Head, any, error) {
	r := &reader{text: string(text)}
	var (
		head Head
		pod  corev1.Pod
	)
	workload := facts.Workload{Pods: 1}
	path := templatePath(kind)
	isPod := kind == schema.GroupKind{Kind: "Pod"}
	for name := range r.fields() {
		switch {
		case name == "apiVersion":
			stringValue(r, &head.APIVersion)
		case name == "kind":
			stringValue(r, &head.Kind)
		case name == "metadata":
			objectMeta(r, &head.ObjectMeta)
		case name == "spec" && isPod:
			podSpec(r, &pod.Spec)
		case name == "spec" && path != "":
			workloadSpec(r, kind, &workload)
		case name == "status" && isPod:
			podStatus(r, &pod.Status)
		default:
			r.skip()
		}
	}
	if r.err != nil {
		return Head{}, nil, fmt.Errorf("decode %s: %w", kind.Kind, r.err)
	}
	switch {
	case isPod:
		pod.ObjectMeta = head.ObjectMeta
		return head, &pod, nil
	case path != "":
		workload.ObjectMeta, workload.Path = head.ObjectMeta, path
		return head, &workload, nil
	case kind == schema.GroupKind{Kind: "Namespace"}:
		return head, &corev1.Namespace{ObjectMeta: head.ObjectMeta}, nil
	}
	return head, nil, nil
}

// workloadSpec reads the spec of an object that makes pods.
func workloadSpec(r *reader, kind schema.GroupKind, w *facts.Workload) {
	for name := range r.fields() {
		switch {
		case name == "template" && kind.Kind != "CronJob":
			pointer(r, &w.Template, podTemplate)
		case name == "replicas" && runsReplicas(kind), name == "parallelism" && kind.Kind == "Job":
			integer(r, &w.Pods)
		case name == "jobTemplate" && kind.Kind == "CronJob":
			for name := range r.fields() {
				if name == "spec" {
					workloadSpec(r, schema.GroupKind{Group: kind.Group, Kind: "Job"}, w)
					continue
				}
				r.skip()
			}
		default:
			r.skip()
		}
	}
}

func podTemplate(r *reader, t *corev1.PodTemplateSpec) {
	for name := range r.fields() {
		switch name {
		case "metadata":
			objectMeta(r, &t.ObjectMeta)
		case "spec":
			podSpec(r, &t.Spec)
		default:
			r.skip()
		}
	}
}

func podStatus(r *reader, s *corev1.PodStatus) {
	for name := range r.fields() {
		if name == "phase" {
			stringValue(r, &s.Phase)
			continue
		}
		r.skip()
	}
}

func objectMeta(r *reader, m *metav1.ObjectMeta) {
	for name := range r.fields() {
		switch name {
		case "name":
			stringValue(r, &m.Name)
		case "generateName":
			stringValue(r, &m.GenerateName)
		case "namespace":
			stringValue(r, &m.Namespace)
		case "uid":
			stringValue(r, &m.UID)
		case "generation":
			integer(r, &m.Generation)
		case "labels":
			stringMap(r, &m.Labels)
		case "annotations":
			stringMap(r, &m.Annotations)
		case "deletionTimestamp":
			pointer(r, &m.DeletionTimestamp, timestamp)
		case "ownerReferences":
			list(r, &m.OwnerReferences, ownerReference)
		default:
			r.skip()
		}
	}
}

// ownerReference reads whether a controller owns the object, and of what kind.
func ownerReference(r *reader, o *metav1.OwnerReference) {
	for name := range r.fields() {
		switch name {
		case "kind":
			stringValue(r, &o.Kind)
		case "controller":
			pointer(r, &o.Controller, boolean)
		default:
			r.skip()
		}
	}
}

func stringMap(r *reader, into *map[string]string) {
	if r.null() {
		return
	}
	values := map[string]string{}
	for name := range r.fields() {
		var value string
		stringValue(r, &value)
		values[name] = value
	}
	*into = values
}

func timestamp(r *reader, into *metav1.Time) {
	var written string
	stringValue(r, &written)
	t, err := time.Parse(time.RFC3339, written)
	if err != nil {
		r.fail("time")
	}
	*into = metav1.NewTime(t.Local())
}
