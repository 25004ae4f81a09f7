package mesh

import (
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
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
	// Privileged is global.proxy.privileged.
	Privileged bool
	// What the mesh captures of every pod that says nothing, in the form of the annotations: global.proxy.*.
	IncludeInboundPorts, ExcludeInboundPorts, ExcludeOutboundPorts, IncludeIPRanges, ExcludeIPRanges string
}

// AllowsImage reports whether the injector may have rendered the image.
func (i *Injector) AllowsImage(ref string) bool {
	panic("not written yet")
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

// ParseInjectionWebhooks returns the entries of a configuration that lead to an injector.
func ParseInjectionWebhooks(c *admissionregistrationv1.MutatingWebhookConfiguration) ([]InjectionWebhook, error) {
	panic("not written yet")
}

// DefaultInjection is what a mesh has that was installed with its default values and the given revisions.
func DefaultInjection(revisions ...string) Injection {
	panic("not written yet")
}

// ParseInjector reads the ConfigMap of an injector.
func ParseInjector(name string, labels, data map[string]string) (Injector, error) {
	panic("not written yet")
}

// Decide predicts whether a pod gets a sidecar.
func (i *Injection) Decide(c Candidate) InjectionDecision {
	panic("not written yet")
}

// AmbientEnrolled reports whether istio-cni would enrol the pod in ambient.
func AmbientEnrolled(c Candidate) bool {
	panic("not written yet")
}
