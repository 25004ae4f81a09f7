package scan

import (
	"encoding/json"
	"maps"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// redirection is what istio-cni writes on a pod that it has enrolled in ambient. On a
// pod that is submitted it is refused.
const redirection = "ambient.istio.io/redirection"

// asWritten is the pod without what the mesh has noted on it since it was created.
func asWritten(pod *corev1.Pod) *corev1.Pod {
	if _, ok := pod.Annotations[redirection]; !ok {
		return pod
	}
	without := *pod
	without.Annotations = maps.Clone(pod.Annotations)
	delete(without.Annotations, redirection)
	return &without
}

// ownerOf is what a person has to change to change the pod: its controller, and the
// Deployment behind a ReplicaSet that is named as Deployments name theirs. The zero
// Object stands for the pod itself.
func ownerOf(pod *corev1.Pod) Object {
	o := facts.Controller(&pod.ObjectMeta)
	if o == nil {
		return Object{}
	}
	kind := schema.FromAPIVersionAndKind(o.APIVersion, o.Kind)
	if hash := pod.Labels["pod-template-hash"]; o.Kind == "ReplicaSet" && hash != "" {
		if name, ok := strings.CutSuffix(o.Name, "-"+hash); ok {
			return Object{Kind: schema.GroupVersionKind{Group: "apps", Version: "v1", Kind: "Deployment"}, Name: name}
		}
	}
	return Object{Kind: kind, Name: o.Name, UID: string(o.UID)}
}

// Stale reports whether the pod has a proxy that injection would not give it now: of
// another revision, or of an image that the injector does not use any more.
func Stale(injection *mesh.Injection, ns *facts.Namespace, pod *corev1.Pod) bool {
	note := pod.Annotations["sidecar.istio.io/status"]
	if note == "" {
		return false
	}
	d := injection.Decide(mesh.Candidate{
		Namespace: ns.Name, NamespaceLabels: ns.Labels, Labels: pod.Labels, Annotations: pod.Annotations, HostNetwork: pod.Spec.HostNetwork,
	})
	if !d.Injected() {
		return false // which is a finding, where it matters
	}
	var status struct {
		Revision string `json:"revision"`
	}
	// What cannot be read says nothing about a revision.
	if err := json.Unmarshal([]byte(note), &status); err == nil && status.Revision != "" && d.Webhook != nil && status.Revision != d.Webhook.Revision {
		return true
	}
	if d.Injector == nil {
		return false
	}
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			if list[i].Name == "istio-proxy" {
				return !d.Injector.AllowsImage(list[i].Image)
			}
		}
	}
	return false
}
