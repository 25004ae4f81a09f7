package preflight

import (
	"fmt"
	"slices"
	"strings"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
)

func webhookChecks(f *Facts) []Check {
	return []Check{webhookOrder(f), webhookLocks(f), webhookTimeouts(f)}
}

// longTimeout is what the API server waits for by default. Clients wait for as long as
// all webhooks together.
const longTimeout = 10

// webhookOrder is about who changes pods after Meshvakt has.
func webhookOrder(f *Facts) Check {
	const id = "webhook-order"
	if f.Mutating.Err != nil || f.Namespaces.Err != nil {
		return unknown(id, f.Mutating.Err, f.Namespaces.Err)
	}
	guarded := guardedNamespaces(f)
	var last, after []string
	for _, h := range pointers(mutatingHooks(f)) {
		if strings.Compare(h.configuration, f.Names.Mutating) <= 0 || h.injects() || !h.creates(podsResource()) {
			continue
		}
		n := 0
		for _, ns := range guarded {
			if h.selects(ns) {
				n++
			}
		}
		if n == 0 {
			continue
		}
		text := fmt.Sprintf("%s, about pods of %s", h, counted(n, "guarded namespace", "guarded namespaces"))
		if h.reinvoked {
			last = append(last, text)
		} else {
			after = append(after, text)
		}
	}
	c := Check{ID: id, Result: Pass, Details: details(after), Found: "no webhook can undo what Meshvakt sets in pods"}
	if len(after) > 0 {
		c.Found = fmt.Sprintf("%s after Meshvakt, which is asked once more then", counted(len(after), "webhook changes pods", "webhooks change pods"))
	}
	if len(last) > 0 {
		c.Result = Warn
		c.Found = fmt.Sprintf("%s after Meshvakt and again in the end (reinvocationPolicy IfNeeded)", counted(len(last), "webhook changes pods", "webhooks change pods"))
		c.Must = "not touch the proxy's resources, node affinity or Istio's annotations, or the pod is refused"
		c.Remedy = fmt.Sprintf("give the configuration a name that sorts before %q, or set reinvocationPolicy Never", f.Names.Mutating)
		c.Details = details(append(last, after...))
	}
	return c
}

// webhookLocks is about webhooks of others that fail closed on what a cluster needs in
// order to come back.
func webhookLocks(f *Facts) Check {
	const id = "webhook-locks"
	if f.Mutating.Err != nil || f.Validating.Err != nil || f.Namespaces.Err != nil {
		return unknown(id, f.Mutating.Err, f.Validating.Err, f.Namespaces.Err)
	}
	hooks := slices.DeleteFunc(append(mutatingHooks(f), validatingHooks(f)...), func(h hook) bool {
		return !h.closed || h.configuration == f.Names.Validating || h.configuration == f.Names.Mutating
	})
	var locks, risks []string
	for i := range hooks {
		l, r := hooks[i].locks(f)
		locks, risks = append(locks, l...), append(risks, r...)
	}
	c := Check{ID: id, Result: Pass, Found: fmt.Sprintf("none of %s with failurePolicy Fail can lock the cluster", counted(len(hooks), "webhook", "webhooks"))}
	switch {
	case len(locks) > 0:
		c.Result = Fail
		c.Found = fmt.Sprintf("%s can lock the cluster", counted(len(locks), "rule with failurePolicy Fail", "rules with failurePolicy Fail"))
	case len(risks) > 0:
		c.Result = Warn
		c.Found = fmt.Sprintf("%s may hold up what must come up first", counted(len(risks), "rule with failurePolicy Fail", "rules with failurePolicy Fail"))
	default:
		if f.Endpoints.Err != nil {
			return unknown(id, f.Endpoints.Err)
		}
		return c
	}
	c.Must = "leave out nodes, leases, kube-system, Meshvakt's namespace and the webhook's own"
	c.Remedy = "exclude these by the webhook's namespaceSelector and rules, or set its failurePolicy to Ignore"
	c.Details = details(append(locks, risks...))
	return c
}

// locks returns what of the webhook can lock the cluster, and what can hold up its
// recovery. Conditions in CEL are not evaluated here: they may exclude all of it.
func (h *hook) locks(f *Facts) (locks, risks []string) {
	lock := func(format string, args ...any) {
		text := h.String() + " " + fmt.Sprintf(format, args...)
		if h.conditions {
			risks = append(risks, text+", unless its matchConditions exclude them")
			return
		}
		locks = append(locks, text)
	}
	namespaces := namespacesByName(f)
	pods := func(namespace string) bool {
		ns := namespaces[namespace]
		return ns != nil && h.creates(podsResource()) && h.selects(ns)
	}
	if leases := namespaces[corev1.NamespaceNodeLease]; leases != nil && h.updates(resource{"coordination.k8s.io", "v1", "leases", ""}) && h.selects(leases) {
		lock("is about the leases of nodes: while it does not answer, every node becomes NotReady")
	}
	if h.updates(resource{"", "v1", "nodes", "status"}) || h.updates(resource{"", "v1", "nodes", ""}) {
		lock("is about nodes: while it does not answer, none can report or be mended")
	}
	if h.service != nil {
		if n, known := f.Endpoints.Value[*h.service]; f.Endpoints.Err == nil && known && n == 0 {
			locks = append(locks, fmt.Sprintf("%s has nobody to answer: Service %s has no ready endpoint, so that what it is about is refused now", h, h.service))
		}
		// Istio's chart keeps istiod out of its own injector by labels.
		if !h.injects() && pods(h.service.Namespace) {
			lock("is about the pods of its own namespace %q: once all are down none can start", h.service.Namespace)
		}
	}
	if h.service == nil || h.service.Namespace != systemNamespace {
		if pods(systemNamespace) {
			risks = append(risks, h.String()+" is about pods of kube-system")
		}
	}
	own := namespaces[f.Names.Namespace]
	switch about := own != nil && h.creates(podsResource()) && h.selectsLabelled(own, ownPodLabels(f)); {
	case about && h.service != nil && namespaces[h.service.Namespace] != nil && guardedBy(f, h.service.Namespace, namespaces[h.service.Namespace].Labels):
		lock("is about Meshvakt's pods in %q, and Meshvakt about its own in guarded namespace %q: once both are down neither can start", f.Names.Namespace, h.service.Namespace)
	case about:
		risks = append(risks, fmt.Sprintf("%s is about Meshvakt's pods in %q", h, f.Names.Namespace))
	}
	return locks, risks
}

func webhookTimeouts(f *Facts) Check {
	const id = "webhook-timeouts"
	if f.Mutating.Err != nil || f.Validating.Err != nil {
		return unknown(id, f.Mutating.Err, f.Validating.Err)
	}
	var long []string
	for _, h := range pointers(append(mutatingHooks(f), validatingHooks(f)...)) {
		if h.timeout > longTimeout {
			long = append(long, fmt.Sprintf("%s: %d s", h, h.timeout))
		}
	}
	if len(long) == 0 {
		return Check{ID: id, Result: Pass, Found: fmt.Sprintf("none above %d s", longTimeout)}
	}
	return Check{
		ID: id, Result: Warn, Found: fmt.Sprintf("%s with a timeout above %d s", counted(len(long), "webhook", "webhooks"), longTimeout),
		Must:   fmt.Sprintf("be at most %d s: controllers give up on a request before it is answered", longTimeout),
		Remedy: "set timeoutSeconds of these webhooks", Details: details(long),
	}
}

func mutatingHooks(f *Facts) []hook {
	var list []hook
	for i := range f.Mutating.Value {
		for j := range f.Mutating.Value[i].Webhooks {
			w := &f.Mutating.Value[i].Webhooks[j]
			h := hook{
				mutating: true, configuration: f.Mutating.Value[i].Name, name: w.Name, rules: w.Rules, conditions: len(w.MatchConditions) > 0,
				reinvoked: w.ReinvocationPolicy != nil && *w.ReinvocationPolicy == admissionregistrationv1.IfNeededReinvocationPolicy,
			}
			h.take(w.FailurePolicy, w.TimeoutSeconds, w.NamespaceSelector, w.ObjectSelector, &w.ClientConfig)
			list = append(list, h)
		}
	}
	return list
}

func validatingHooks(f *Facts) []hook {
	var list []hook
	for i := range f.Validating.Value {
		for j := range f.Validating.Value[i].Webhooks {
			w := &f.Validating.Value[i].Webhooks[j]
			h := hook{configuration: f.Validating.Value[i].Name, name: w.Name, rules: w.Rules, conditions: len(w.MatchConditions) > 0}
			h.take(w.FailurePolicy, w.TimeoutSeconds, w.NamespaceSelector, w.ObjectSelector, &w.ClientConfig)
			list = append(list, h)
		}
	}
	return list
}

// ownPodLabels are the labels of Meshvakt's pods: those that it has, or the chart's.
func ownPodLabels(f *Facts) map[string]string {
	if own := ownReplicaSets(f); len(own) > 0 {
		return own[0].podLabels
	}
	return map[string]string{
		"app.kubernetes.io/name": "meshvakt", "app.kubernetes.io/component": "webhook",
		"sidecar.istio.io/inject": "false", "istio.io/dataplane-mode": "none",
	}
}

// WebhookServices are the Services that webhooks name, each once.
func WebhookServices(f *Facts) []Service {
	var list []Service
	for _, h := range append(mutatingHooks(f), validatingHooks(f)...) {
		if h.service != nil && !slices.Contains(list, *h.service) {
			list = append(list, *h.service)
		}
	}
	return list
}
