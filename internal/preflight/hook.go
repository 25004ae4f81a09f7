package preflight

import (
	"slices"
	"strings"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// hook is one entry of a webhook configuration.
type hook struct {
	configuration, name string
	mutating            bool
	rules               []admissionregistrationv1.RuleWithOperations
	namespaces, objects labels.Selector
	closed              bool // failurePolicy Fail
	reinvoked           bool
	conditions          bool // there are some
	timeout             int32
	service             *Service
}

func (h *hook) String() string {
	if h.mutating {
		return "mutating " + h.configuration + "/" + h.name
	}
	return "validating " + h.configuration + "/" + h.name
}

// take fills in what both kinds of webhooks have, with the API server's defaults.
func (h *hook) take(failure *admissionregistrationv1.FailurePolicyType, timeout *int32, namespaces, objects *metav1.LabelSelector, to *admissionregistrationv1.WebhookClientConfig) {
	h.closed = failure == nil || *failure == admissionregistrationv1.Fail
	h.timeout = longTimeout
	if timeout != nil {
		h.timeout = *timeout
	}
	h.namespaces, h.objects = selectorOf(namespaces), selectorOf(objects)
	if to.Service != nil {
		h.service = &Service{to.Service.Namespace, to.Service.Name}
	}
}

// selectorOf reads a selector, where none selects everything. One that cannot be read
// is taken to as well, to be on the safe side: the API server would not have let it in.
func selectorOf(s *metav1.LabelSelector) labels.Selector {
	if s == nil {
		return labels.Everything()
	}
	parsed, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return labels.Everything()
	}
	return parsed
}

// selects reports whether it is about objects of the namespace that carry no labels:
// those that do are chosen by somebody.
func (h *hook) selects(ns *corev1.Namespace) bool { return h.selectsLabelled(ns, nil) }

func (h *hook) selectsLabelled(ns *corev1.Namespace, object map[string]string) bool {
	return h.namespaces.Matches(labels.Set(ns.Labels)) && h.objects.Matches(labels.Set(object))
}

// injects reports whether it is of Istio's injector.
func (h *hook) injects() bool {
	return h.mutating && strings.HasSuffix(h.name, "sidecar-injector.istio.io")
}

// resource is what a rule may be about.
type resource struct{ group, version, name, subresource string }

func podsResource() resource { return resource{"", "v1", "pods", ""} }

func (h *hook) creates(r resource) bool { return h.covers(r, admissionregistrationv1.Create) }

func (h *hook) updates(r resource) bool { return h.covers(r, admissionregistrationv1.Update) }

func (h *hook) covers(r resource, op admissionregistrationv1.OperationType) bool {
	return slices.ContainsFunc(h.rules, func(rule admissionregistrationv1.RuleWithOperations) bool {
		return (slices.Contains(rule.Operations, op) || slices.Contains(rule.Operations, admissionregistrationv1.OperationAll)) &&
			among(rule.APIGroups, r.group) && among(rule.APIVersions, r.version) && slices.ContainsFunc(rule.Resources, r.named)
	})
}

// named reports whether the resource of a rule, with wildcards in either part, is this
// one.
func (r resource) named(pattern string) bool {
	name, sub, _ := strings.Cut(pattern, "/")
	return (name == "*" || name == r.name) && (sub == r.subresource || sub == "*" || r.subresource == "" && pattern == "*/*")
}

func among(list []string, value string) bool {
	return slices.Contains(list, value) || slices.Contains(list, "*")
}

func pointers(list []hook) []*hook {
	all := make([]*hook, len(list))
	for i := range list {
		all[i] = &list[i]
	}
	return all
}
