package check

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	admissionv1 "k8s.io/api/admission/v1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/policies/facts"
)

func webhooksKind() schema.GroupKind {
	return schema.GroupKind{Group: admissionregistrationv1.GroupName, Kind: "MutatingWebhookConfiguration"}
}

// readInjection takes over how sidecars are injected, from the webhooks and the
// configurations of injectors among the manifests. Without any of them it is taken
// to be as Istio's default values make it, for the control planes that are there.
func (s *State) readInjection() error {
	var errs []error
	injection := &s.cluster.Injection
	for _, k := range s.order {
		d := s.docs[k]
		switch k.kind {
		case webhooksKind():
			var c admissionregistrationv1.MutatingWebhookConfiguration
			if err := json.Unmarshal(d.JSON, &c); err != nil {
				errs = append(errs, d.errorf("decode MutatingWebhookConfiguration: %w", err))
				continue
			}
			list, err := mesh.ParseInjectionWebhooks(&c)
			if err != nil {
				errs = append(errs, d.errorf("%w", err))
			}
			injection.Webhooks = append(injection.Webhooks, list...)
		case schema.GroupKind{Kind: "ConfigMap"}:
			var c corev1.ConfigMap
			if err := json.Unmarshal(d.JSON, &c); err != nil {
				errs = append(errs, d.errorf("decode ConfigMap: %w", err))
				continue
			}
			if !mesh.IsInjector(c.Name, c.Data) {
				continue
			}
			i, err := mesh.ParseInjector(c.Name, c.Labels, c.Data)
			if err != nil && s.live && !d.Stored {
				old, isMap := s.before[k].(*corev1.ConfigMap)
				if !isMap {
					continue
				}
				i, err = mesh.ParseInjector(old.Name, old.Labels, old.Data)
			}
			if err != nil {
				errs = append(errs, d.errorf("%w", err))
				continue
			}
			injection.Injectors = append(injection.Injectors, i)
		}
	}
	if s.live {
		return errors.Join(errs...)
	}
	var revisions []string
	for _, cp := range s.cluster.ControlPlanes {
		revisions = append(revisions, cp.Revision)
	}
	usual := mesh.DefaultInjection(revisions...)
	if len(injection.Webhooks) == 0 {
		injection.Webhooks = usual.Webhooks
		s.assumed = append(s.assumed, "MutatingWebhookConfigurations")
	}
	if len(injection.Injectors) == 0 {
		injection.Injectors = usual.Injectors
		s.assumed = append(s.assumed, "ConfigMap istio-sidecar-injector")
	}
	return errors.Join(errs...)
}

// injected reports whether an object is a pod that Istio's injector has evidently
// been at: somebody read it back from a cluster. Istio's containers are judged as
// they are then; as an author's they would be overrides.
func injected(object any) bool {
	pod, ok := object.(*corev1.Pod)
	if !ok {
		return false
	}
	if _, ok := pod.Annotations["sidecar.istio.io/status"]; !ok {
		return false
	}
	return slices.ContainsFunc(slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers), func(c corev1.Container) bool {
		return c.Name == "istio-proxy" && c.Image != "" && c.Image != "auto"
	})
}

// predicts counts what is judged by how its sidecar will be injected: pods and
// templates in namespaces whose guard asks for it.
func (s *State) predicts(r *facts.Review) {
	switch r.Object.(type) {
	case *corev1.Pod, *facts.Workload:
	default:
		return
	}
	ns := r.Cluster.Namespaces[r.Namespace]
	if ns != nil && slices.ContainsFunc(r.Cluster.Guards, func(g facts.Guard) bool {
		return (g.MeshMembership != nil || g.SidecarResources != nil || g.NodePools != nil) && r.Cluster.Selects(&g, ns.Name, ns.Labels)
	}) {
		s.predicted++
		if r.Operation == admissionv1.Create && injected(r.Object) {
			s.readBack = append(s.readBack, r.Namespace+"/"+r.DisplayName())
		}
	}
}

// injectedNotes tells which pods were judged as they are without being asked to.
func (s *State) injectedNotes(final bool) []string {
	if final || len(s.readBack) == 0 {
		return nil
	}
	return []string{fmt.Sprintf("judged as they are, as with --final, for they have Istio's annotation sidecar.istio.io/status and its proxy already: %s", strings.Join(s.readBack, ", "))}
}

// injectionNotes tells what the verdicts rest on that no manifest says.
func (s *State) injectionNotes() []string {
	if len(s.assumed) == 0 || s.predicted == 0 {
		return nil
	}
	return []string{fmt.Sprintf("pods and templates are judged by Istio's default settings: the manifests lack its %s", strings.Join(s.assumed, " and "))}
}
