package snapshot

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/meshvakt/meshvakt/internal/check"
	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/internal/objects"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// What is kept of an object is named here, kind by kind; everything else stays in the
// cluster. That nothing is missing which a policy reads is held by a test, which judges
// the cases of all policies by what is kept.

// document is what is kept of an object; nil for one that no policy reads.
func document(kind schema.GroupVersionKind, o *unstructured.Unstructured) (*check.Document, error) {
	raw, err := o.MarshalJSON()
	if err != nil {
		return nil, fmt.Errorf("read %s %s/%s: %w", kind.Kind, o.GetNamespace(), o.GetName(), err)
	}
	kept, err := trim(kind, raw)
	if kept == nil || err != nil {
		return nil, err
	}
	text, err := json.Marshal(kept)
	if err != nil {
		return nil, fmt.Errorf("write %s %s/%s: %w", kind.Kind, o.GetNamespace(), o.GetName(), err)
	}
	return &check.Document{
		Kind: kind, Namespace: o.GetNamespace(), Name: o.GetName(), JSON: text, Stored: true,
		Origin: "state of the cluster",
	}, nil
}

// object is the form of all that is kept.
type object struct {
	APIVersion string            `json:"apiVersion"`
	Kind       string            `json:"kind"`
	Metadata   metadata          `json:"metadata"`
	Data       map[string]string `json:"data,omitempty"`
	Spec       any               `json:"spec,omitempty"`
	Status     any               `json:"status,omitempty"`
	Webhooks   any               `json:"webhooks,omitempty"`
}

type metadata struct {
	Name              string            `json:"name"`
	Namespace         string            `json:"namespace,omitempty"`
	Labels            map[string]string `json:"labels,omitempty"`
	Annotations       map[string]string `json:"annotations,omitempty"`
	CreationTimestamp *metav1.Time      `json:"creationTimestamp,omitempty"`
	DeletionTimestamp *metav1.Time      `json:"deletionTimestamp,omitempty"`
	OwnerReferences   []owner           `json:"ownerReferences,omitempty"`
}

// owner says of what kind the owner of a pod is: those of DaemonSets are let run where
// others are not.
type owner struct {
	Kind       string `json:"kind"`
	Controller *bool  `json:"controller,omitempty"`
}

func trim(kind schema.GroupVersionKind, raw []byte) (*object, error) {
	var o struct {
		Metadata metav1.ObjectMeta          `json:"metadata"`
		Spec     map[string]json.RawMessage `json:"spec"`
		Status   map[string]json.RawMessage `json:"status"`
		Data     map[string]string          `json:"data"`
	}
	if err := json.Unmarshal(raw, &o); err != nil {
		return nil, fmt.Errorf("decode %s: %w", kind.Kind, err)
	}
	kept := &object{APIVersion: kind.GroupVersion().String(), Kind: kind.Kind, Metadata: metadata{
		Name: o.Metadata.Name, Namespace: o.Metadata.Namespace, Labels: o.Metadata.Labels,
		Annotations: annotations(o.Metadata.Annotations), DeletionTimestamp: o.Metadata.DeletionTimestamp,
	}}
	switch kind.GroupKind() {
	case schema.GroupKind{Kind: "Namespace"}:
		return kept, nil
	case schema.GroupKind{Kind: "ConfigMap"}:
		kept.Data = settings(o.Metadata.Name, o.Data)
		if kept.Data == nil {
			return nil, nil
		}
	case schema.GroupKind{Kind: "Node"}:
		kept.Spec = only(o.Spec, "taints")
	case schema.GroupKind{Kind: "PersistentVolume"}:
		kept.Spec = volume(o.Spec)
	case schema.GroupKind{Kind: "ResourceQuota"}:
		kept.Spec, kept.Status = o.Spec, only(o.Status, "hard", "used")
	case schema.GroupKind{Group: admissionregistrationv1.GroupName, Kind: "MutatingWebhookConfiguration"}:
		return injector(kept, raw)
	case schema.GroupKind{Group: "meshvakt.io", Kind: "GuardException"}, objects.PeerAuthenticationKind().GroupKind():
		// Which of two policies is older decides, and so does how old an exception is.
		kept.Metadata.CreationTimestamp = &o.Metadata.CreationTimestamp
		kept.Spec = o.Spec
	default:
		_, decoded, err := objects.Checked(kind.GroupKind(), raw)
		if err != nil {
			return nil, err
		}
		switch d := decoded.(type) {
		case *corev1.Pod:
			return pod(kept, d), nil
		case *facts.Workload:
			return workload(kept, d, &o.Metadata), nil
		}
		// LimitRanges, MeshGuards, and what Istio calls networking.
		kept.Spec = o.Spec
	}
	return kept, nil
}

// annotations keeps those by which Istio, OpenShift and Meshvakt are told something.
func annotations(all map[string]string) map[string]string {
	kept := map[string]string{}
	for key, value := range all {
		domain, _, _ := strings.Cut(key, "/")
		of := func(owner string) bool { return domain == owner || strings.HasSuffix(domain, "."+owner) }
		if of("istio.io") || of("meshvakt.io") || key == "openshift.io/sa.scc.uid-range" {
			kept[key] = value
		}
	}
	if len(kept) == 0 {
		return nil
	}
	return kept
}

func only(fields map[string]json.RawMessage, names ...string) any {
	kept := map[string]json.RawMessage{}
	for _, name := range names {
		if value, ok := fields[name]; ok {
			kept[name] = value
		}
	}
	if len(kept) == 0 {
		return nil
	}
	return kept
}

// settings are the settings of istiod and of injectors, nil in any other ConfigMap.
func settings(name string, data map[string]string) map[string]string {
	kept := map[string]string{}
	if mesh.IsControlPlane(name, data) {
		kept["mesh"] = data["mesh"]
	}
	if mesh.IsInjector(name, data) {
		kept["config"], kept["values"] = mesh.SlimInjector(data)
	}
	if len(kept) == 0 {
		return nil
	}
	return kept
}

// volume keeps where a volume can be reached from, and the namespace of who claims it.
func volume(spec map[string]json.RawMessage) any {
	var claim struct {
		Namespace string `json:"namespace"`
		Name      string `json:"name"`
	}
	kept := map[string]any{}
	if affinity, ok := spec["nodeAffinity"]; ok {
		kept["nodeAffinity"] = affinity
	}
	if json.Unmarshal(spec["claimRef"], &claim) == nil {
		kept["claimRef"] = claim
	}
	return kept
}

// injector keeps the webhooks that lead to an injector, without where they are and how
// they are trusted.
func injector(kept *object, raw []byte) (*object, error) {
	var c admissionregistrationv1.MutatingWebhookConfiguration
	if err := json.Unmarshal(raw, &c); err != nil {
		return nil, fmt.Errorf("decode MutatingWebhookConfiguration: %w", err)
	}
	type webhook struct {
		Name              string                                       `json:"name"`
		Rules             []admissionregistrationv1.RuleWithOperations `json:"rules,omitempty"`
		NamespaceSelector *metav1.LabelSelector                        `json:"namespaceSelector,omitempty"`
		ObjectSelector    *metav1.LabelSelector                        `json:"objectSelector,omitempty"`
	}
	var list []webhook
	for i := range c.Webhooks {
		one := c.DeepCopy()
		one.Webhooks = one.Webhooks[i : i+1]
		// One that cannot be read is kept: it is for the reader of the state to say so.
		if found, err := mesh.ParseInjectionWebhooks(one); err == nil && len(found) == 0 {
			continue
		}
		w := &one.Webhooks[0]
		list = append(list, webhook{w.Name, w.Rules, w.NamespaceSelector, w.ObjectSelector})
	}
	if len(list) == 0 {
		return nil, nil
	}
	kept.Webhooks = list
	return kept, nil
}

// pod keeps a pod that runs, or is about to.
func pod(kept *object, p *corev1.Pod) *object {
	_, mirror := p.Annotations[corev1.MirrorPodAnnotationKey]
	if mirror || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
		return nil
	}
	withoutSecrets(&p.Spec)
	kept.Spec = p.Spec
	for _, o := range p.OwnerReferences {
		kept.Metadata.OwnerReferences = append(kept.Metadata.OwnerReferences, owner{o.Kind, o.Controller})
	}
	if p.Status.Phase != "" {
		kept.Status = map[string]any{"phase": p.Status.Phase}
	}
	return kept
}

// workload keeps what makes pods, unless a controller has made it of something else: that
// is not what people write.
func workload(kept *object, w *facts.Workload, meta *metav1.ObjectMeta) *object {
	if metav1.GetControllerOfNoCopy(meta) != nil {
		return nil
	}
	spec := map[string]any{}
	if w.Template != nil {
		withoutSecrets(&w.Template.Spec)
		spec["template"] = map[string]any{
			"metadata": metadata{Labels: w.Template.Labels, Annotations: annotations(w.Template.Annotations)},
			"spec":     w.Template.Spec,
		}
	}
	switch kept.Kind {
	case "CronJob":
		spec["parallelism"] = w.Pods
		spec = map[string]any{"jobTemplate": map[string]any{"spec": spec}}
	case "Job":
		spec["parallelism"] = w.Pods
	case "DaemonSet":
	default:
		spec["replicas"] = w.Pods
	}
	kept.Spec = spec
	return kept
}

// withoutSecrets takes out of the containers of applications what no policy reads there:
// how they are started, what they are told, and where it is kept. Of Istio's containers
// all that is judged.
func withoutSecrets(s *corev1.PodSpec) {
	for _, list := range [][]corev1.Container{s.InitContainers, s.Containers} {
		for i := range list {
			silence(&list[i])
		}
	}
	for i := range s.EphemeralContainers {
		silence((*corev1.Container)(&s.EphemeralContainers[i].EphemeralContainerCommon))
	}
}

func silence(c *corev1.Container) {
	if slices.Contains([]string{"istio-proxy", "istio-init", "istio-validation"}, c.Name) {
		return
	}
	c.Env, c.EnvFrom, c.Command, c.Args, c.Lifecycle = nil, nil, nil, nil, nil
	for _, p := range []*corev1.Probe{c.LivenessProbe, c.ReadinessProbe, c.StartupProbe} {
		if p != nil && p.Exec != nil {
			p.Exec = &corev1.ExecAction{}
		}
	}
}

// withoutNames puts numbers in the place of those who asked for exceptions and approved
// them: the same for the same user, for two persons must differ.
func withoutNames(docs []check.Document) {
	numbers := map[string]string{}
	for i := range docs {
		d := &docs[i]
		if d.Kind.Kind != "GuardException" {
			continue
		}
		var o map[string]any
		if json.Unmarshal(d.JSON, &o) != nil {
			continue
		}
		spec, _ := o["spec"].(map[string]any)
		for _, field := range []string{"requester", "approver"} {
			name, _ := spec[field].(string)
			if name == "" {
				continue
			}
			if numbers[name] == "" {
				numbers[name] = fmt.Sprintf("user-%d", len(numbers)+1)
			}
			spec[field] = numbers[name]
		}
		if text, err := json.Marshal(o); err == nil {
			d.JSON = text
		}
	}
}
