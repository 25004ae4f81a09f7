package mesh

import (
	"slices"

	"k8s.io/apimachinery/pkg/labels"
)

// Injection is everything that decides whether a pod gets a sidecar: the API server asks an injector by the
// selectors of the webhooks, and the injector then decides by its configuration.
type Injection struct {
	Webhooks  []InjectionWebhook
	Injectors []Injector
}

// InjectionWebhook is one entry of a MutatingWebhookConfiguration that leads to an injector, which is any entry
// whose name ends in "sidecar-injector.istio.io".
type InjectionWebhook struct {
	Configuration, Name string
	// Revision is label istio.io/rev of the configuration, the revision of the injector that answers; Tag is
	// label istio.io/tag, "" when the configuration belongs to no tag.
	Revision, Tag string
	// NamespaceSelector and ObjectSelector must both match for the API server to ask.
	NamespaceSelector, ObjectSelector labels.Selector
}

// Injector is the configuration of the injector of one revision, from ConfigMap "istio-sidecar-injector" or
// "istio-sidecar-injector-<revision>".
type Injector struct {
	Revision string
	// Policy is "enabled" or "disabled"; anything else injects nothing.
	Policy string
	// Never and Always are the selectors over pod labels, without empty ones, which Istio skips.
	Never, Always []labels.Selector
	// Images are the references that the injector renders for the proxy and its init containers, without the
	// suffix of an image type ("-debug", "-distroless").
	Images []string
	// CNI says that istio-cni captures traffic, so that pods carry istio-validation in place of istio-init.
	CNI bool
	// StatusPort is the port of the agent, "15020" by default.
	StatusPort string
	// Templates are the names that injection uses for a pod that asks for none, "sidecar" by default.
	Templates []string
	// CAAddress is global.caAddress, where proxies get their certificates when that is not istiod.
	CAAddress string
	// RootConfigMap is global.trustBundleName, the ConfigMap with the roots that proxies trust, "" for the default.
	RootConfigMap string
	// MountsCertificates is global.mountMtlsCerts.
	MountsCertificates bool
	// Privileged is global.proxy.privileged.
	Privileged bool
	// Resources are global.proxy.resources, what the template "sidecar" gives its containers if no annotation
	// says anything about them.
	Resources Resources
	// What the mesh captures of every pod that says nothing, in the form of the annotations: global.proxy.*.
	IncludeInboundPorts, ExcludeInboundPorts, ExcludeOutboundPorts, IncludeIPRanges, ExcludeIPRanges string
}

// Candidate is what the decision reads of a pod and its namespace.
type Candidate struct {
	Namespace       string
	NamespaceLabels map[string]string
	Labels          map[string]string
	Annotations     map[string]string
	HostNetwork     bool
}

// InjectionCause says why a pod is injected, or why not.
type InjectionCause string

// The causes. All but the first mean that there is no sidecar.
const (
	Injected InjectionCause = "Injected"
	// NotInjectedHostNetwork: the pod is on the node's network.
	NotInjectedHostNetwork InjectionCause = "HostNetwork"
	// NotInjectedIgnoredNamespace: injectors skip Kubernetes' own namespaces.
	NotInjectedIgnoredNamespace InjectionCause = "IgnoredNamespace"
	// NotInjectedLabel and NotInjectedAnnotation: sidecar.istio.io/inject is "false".
	NotInjectedLabel      InjectionCause = "Label"
	NotInjectedAnnotation InjectionCause = "Annotation"
	// NotInjectedNamespace: the labels of namespace and pod ask for no injection.
	NotInjectedNamespace InjectionCause = "Namespace"
	// NotInjectedNamespaceDisabled: label istio-injection has a value other than "enabled".
	NotInjectedNamespaceDisabled InjectionCause = "NamespaceDisabled"
	// NotInjectedNamespaceRevision and NotInjectedPodRevision: label istio.io/rev of namespace or pod names
	// neither a revision nor a tag that is there.
	NotInjectedNamespaceRevision InjectionCause = "NamespaceRevision"
	NotInjectedPodRevision       InjectionCause = "PodRevision"
	// NotInjectedNoInjector: there is no webhook of an injector, or it asks for injection in a way that none of
	// those that are there answers.
	NotInjectedNoInjector InjectionCause = "NoInjector"
	// NotInjectedSelector: the labels match neverInjectSelector of the injector's configuration.
	NotInjectedSelector InjectionCause = "NeverInjectSelector"
	// NotInjectedPolicy: the injector's configuration has a policy other than "enabled".
	NotInjectedPolicy InjectionCause = "InjectorPolicy"
)

// InjectionDecision is the outcome for one pod.
type InjectionDecision struct {
	Cause InjectionCause
	// Webhook is the entry by which the API server would ask, nil when it asks nobody.
	Webhook *InjectionWebhook
	// Injector is the configuration behind it, nil when there is none.
	Injector *Injector
}

// Injected reports whether the pod gets a sidecar.
func (d *InjectionDecision) Injected() bool { return d.Cause == Injected }

// The labels and the annotation by which injection is asked for.
const (
	injectKey          = "sidecar.istio.io/inject"
	injectionKey       = "istio-injection"
	dataplaneModeLabel = "istio.io/dataplane-mode"
)

// Decide predicts whether a pod gets a sidecar. Where several webhooks ask for it, as when two revisions have a tag
// of one name, each injector decides for itself, and the first that injects is the one behind it. An injector whose configuration is not known is taken to inject
// what the API server asks it about: without a configuration it answers 404, and the pod is refused.
func (i *Injection) Decide(c Candidate) InjectionDecision {
	// What the injector never does comes first, as the most useful thing to say.
	if c.HostNetwork {
		return InjectionDecision{Cause: NotInjectedHostNetwork}
	}
	if ignoredNamespace(c.Namespace) {
		return InjectionDecision{Cause: NotInjectedIgnoredNamespace}
	}
	namespace, pod := labels.Set(c.NamespaceLabels), labels.Set(c.Labels)
	var declined *InjectionDecision
	for n := range i.Webhooks {
		if w := &i.Webhooks[n]; w.NamespaceSelector.Matches(namespace) && w.ObjectSelector.Matches(pod) {
			d := InjectionDecision{Cause: Injected, Webhook: w, Injector: i.injector(w.Revision)}
			if d.Injector != nil {
				d.Cause = d.Injector.decide(c)
			}
			if d.Injected() {
				return d
			}
			if declined == nil {
				declined = &d
			}
		}
	}
	if declined != nil {
		return *declined
	}
	return InjectionDecision{Cause: i.unasked(c)}
}

func (i *Injection) injector(revision string) *Injector {
	for n := range i.Injectors {
		if i.Injectors[n].Revision == revision {
			return &i.Injectors[n]
		}
	}
	return nil
}

// ignoredNamespace: pkg/kube/inject/initializer.go, IgnoredNamespaces. istio-system is not one of them.
func ignoredNamespace(name string) bool {
	switch name {
	case "kube-system", "kube-public", "kube-node-lease", "local-path-storage":
		return true
	}
	return false
}

// decide is what the injector does once it is asked (pkg/kube/inject/inject.go, injectRequired). The label hides
// the annotation even when it is empty; values other than "true" and "false" are no wish at all.
func (i *Injector) decide(c Candidate) InjectionCause {
	wish, optOut := c.Annotations[injectKey], NotInjectedAnnotation
	if label, ok := c.Labels[injectKey]; ok {
		wish, optOut = label, NotInjectedLabel
	}
	if i.Policy != policyEnabled && i.Policy != policyDisabled {
		return NotInjectedPolicy
	}
	switch wish {
	case "true":
		return Injected
	case "false":
		return optOut
	}
	pod := labels.Set(c.Labels)
	matches := func(s labels.Selector) bool { return s.Matches(pod) }
	switch {
	case slices.ContainsFunc(i.Never, matches):
		return NotInjectedSelector
	case slices.ContainsFunc(i.Always, matches), i.Policy == policyEnabled:
		return Injected
	}
	return NotInjectedPolicy
}

const policyEnabled, policyDisabled = "enabled", "disabled"

// unasked says why the API server asks no injector, in the order in which somebody would have to mend it: what
// the namespace says cannot be overruled by a pod.
func (i *Injection) unasked(c Candidate) InjectionCause {
	injection, hasInjection := c.NamespaceLabels[injectionKey]
	revision, hasRevision := c.NamespaceLabels[revisionLabel]
	podRevision, hasPodRevision := c.Labels[revisionLabel]
	switch {
	case len(i.Webhooks) == 0:
		return NotInjectedNoInjector
	case hasInjection && injection != "enabled":
		return NotInjectedNamespaceDisabled
	case c.Labels[injectKey] == "false":
		return NotInjectedLabel
	case hasInjection:
		return NotInjectedNoInjector
	case hasRevision && !i.serves(revision):
		return NotInjectedNamespaceRevision
	case hasRevision:
		return NotInjectedNoInjector
	case hasPodRevision && !i.serves(podRevision):
		return NotInjectedPodRevision
	case c.Labels[injectKey] == "true":
		return NotInjectedNoInjector
	}
	return NotInjectedNamespace
}

// serves reports whether a webhook asks for pods of namespaces that are labelled with the revision or tag.
func (i *Injection) serves(revision string) bool {
	labelled := labels.Set{revisionLabel: revision}
	return slices.ContainsFunc(i.Webhooks, func(w InjectionWebhook) bool {
		return w.NamespaceSelector.Matches(labelled) && w.ObjectSelector.Matches(labels.Set{})
	})
}

// AmbientEnrolled reports whether istio-cni would enrol the pod in ambient (cni/pkg/util, the enablement
// selector): by label of the pod, or of the namespace unless the pod says "none"; never on the node's network,
// nor with an annotation sidecar.istio.io/status, whatever its value. The namespaces that istio-cni leaves out are
// those that are never guarded.
func AmbientEnrolled(c Candidate) bool {
	if _, sidecar := c.Annotations["sidecar.istio.io/status"]; sidecar || c.HostNetwork {
		return false
	}
	switch c.Labels[dataplaneModeLabel] {
	case "ambient":
		return true
	case "none":
		return false
	}
	return c.NamespaceLabels[dataplaneModeLabel] == "ambient"
}
