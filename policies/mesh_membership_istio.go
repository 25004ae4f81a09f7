package policies

import (
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	networkingv1alpha3 "istio.io/api/networking/v1alpha3"
	networkingv1beta1 "istio.io/api/networking/v1beta1"

	"github.com/meshvakt/meshvakt/policies/facts"
)

// Istio objects. A workload can be in the mesh, with everything about its pod as it
// must be, while an object beside it takes the protection away: it tells clients to
// leave TLS off, patches the proxy's listeners, puts another endpoint in the place
// of a service, or hands variables to istio-init.
//
// An object counts where Istio reads it: that of a guarded namespace for the
// workloads in it, that of a mesh root namespace for all, and one that names a host
// for the clients of that host, wherever it lies.
//
// Source: Istio's references of each kind; pilot/pkg/model/push_context.go
// (destinationRule, getMatchedEnvoyFilters), which says whose objects are looked up
// for a proxy.

func istioMatches() []Match {
	var matches []Match
	for _, k := range []struct {
		resource, kind, versions string
	}{
		{"destinationrules", "DestinationRule", "v1 v1beta1 v1alpha3"},
		{"envoyfilters", "EnvoyFilter", "v1alpha3"},
		{"proxyconfigs", "ProxyConfig", "v1beta1"},
		{"serviceentries", "ServiceEntry", "v1 v1beta1 v1alpha3"},
		{"sidecars", "Sidecar", "v1 v1beta1 v1alpha3"},
		{"workloadentries", "WorkloadEntry", "v1 v1beta1 v1alpha3"},
		{"workloadgroups", "WorkloadGroup", "v1 v1beta1 v1alpha3"},
	} {
		matches = append(matches, Match{
			Group: "networking.istio.io", Resource: k.resource, Versions: strings.Fields(k.versions), Kind: k.kind,
			// No DELETE: without any of them Istio does what it does by default.
			Operations: []admissionv1.Operation{admissionv1.Create, admissionv1.Update},
			Scope:      ScopeGuardedAndRoot, OnlyIfChanged: []string{"spec"},
		})
	}
	return matches
}

// istioReview is the judgement of one side of a request about an object of Istio's.
type istioReview struct {
	cluster   *facts.Cluster
	guard     *facts.Guard
	namespace *facts.Namespace
	object    *facts.IstioObject
	// bounded: the object names more namespaces than were read.
	bounded bool
	// beyond: the object is about services of other namespaces than its own.
	beyond bool
	found  []Finding
}

// judgeIstioObject judges an object before and after the request. What was wrong
// before does not refuse a change.
func judgeIstioObject(r *facts.Review, g *facts.Guard) ([]Finding, error) {
	ns := r.Cluster.Namespaces[r.Namespace]
	if ns == nil {
		return nil, fmt.Errorf("%w: namespace %q of the %s", ErrMissingFact, r.Namespace, r.Kind.Kind)
	}
	after, err := istioFindings(r, r.Object, ns, g)
	if len(after) == 0 || r.Operation == admissionv1.Create {
		return after, err
	}
	before, err := istioFindings(r, r.OldObject, ns, g)
	if err != nil {
		return nil, err
	}
	return onlyNew(before, after, reasonStillOutOfMesh()), nil
}

func istioFindings(r *facts.Review, object any, ns *facts.Namespace, g *facts.Guard) ([]Finding, error) {
	o, ok := object.(*facts.IstioObject)
	if !ok {
		return nil, errWrongObject(r)
	}
	if o.DeletionTimestamp != nil || ns.Terminating {
		return nil, nil
	}
	j := &istioReview{
		cluster: &r.Cluster, guard: g, namespace: ns, object: o,
		bounded: len(r.OtherNamespaces()) >= facts.ReferencesAtMost,
		beyond:  reachesBeyond(o.Spec, ns.Name),
	}
	switch spec := o.Spec.(type) {
	case *networkingv1alpha3.DestinationRule:
		j.judgeDestinationRule(spec)
	case *networkingv1alpha3.EnvoyFilter:
		j.judgeEnvoyFilter(spec)
	case *networkingv1beta1.ProxyConfig:
		j.judgeProxyConfigObject(spec)
	case *networkingv1alpha3.ServiceEntry:
		j.judgeServiceEntry(spec)
	case *networkingv1alpha3.Sidecar:
		j.judgeSidecar(spec)
	case *networkingv1alpha3.WorkloadEntry:
		j.judgeWorkloadEntry(spec)
	case *networkingv1alpha3.WorkloadGroup:
		j.judgeWorkloadGroup(spec)
	default:
		return nil, errWrongObject(r)
	}
	return atMost(j.found), nil
}

// reachesBeyond reports whether a spec names services of other namespaces.
func reachesBeyond(spec proto.Message, namespace string) bool {
	own := func(reach facts.Reach) bool {
		return !reach.InCluster() || reach.Namespace == namespace
	}
	switch s := spec.(type) {
	case *networkingv1alpha3.DestinationRule:
		return !own(facts.RuleReach(s.GetHost(), namespace))
	case *networkingv1alpha3.ServiceEntry:
		return slices.ContainsFunc(s.GetHosts(), func(host string) bool { return !own(facts.EntryReach(host)) })
	}
	return false
}

// inside reports whether the object lies in a namespace of the guard.
func (j *istioReview) inside() bool {
	return j.cluster.Selects(j.guard, j.namespace.Name, j.namespace.Labels)
}

// everywhere reports whether Istio applies what lies in the object's namespace to
// all of the mesh.
func (j *istioReview) everywhere() bool {
	return slices.Contains(j.cluster.RootNamespaces(), j.namespace.Name)
}

// applies reports whether Istio applies what lies in the object's namespace to
// workloads of the guard.
func (j *istioReview) applies() bool { return j.inside() || j.everywhere() }

// whose are the workloads that an object applies to, for messages.
func (j *istioReview) whose() string {
	if j.everywhere() {
		return "every guarded namespace"
	}
	return fmt.Sprintf("guarded namespace %q", j.namespace.Name)
}

// guards reports whether a host stands for a service of a guarded namespace, and
// of which, for messages.
func (j *istioReview) guards(reach facts.Reach) (whose string, guarded bool) {
	switch {
	case reach.Every:
		return "every guarded namespace", true
	case reach.Suffix != "":
		return fmt.Sprintf("every guarded namespace whose name ends in %q", reach.Suffix), true
	case !reach.InCluster():
		return "", false
	}
	ns := j.cluster.Namespaces[reach.Namespace]
	if ns == nil {
		// Of some namespaces nothing was read, so that nothing says they are not guarded.
		return fmt.Sprintf("namespace %q", reach.Namespace), j.bounded && !reach.Short
	}
	return fmt.Sprintf("guarded namespace %q", ns.Name), j.cluster.Selects(j.guard, ns.Name, ns.Labels)
}

func (j *istioReview) refuse(reason Reason, field, message, remedy string) {
	j.found = append(j.found, Finding{
		Reason: reason, Firm: j.beyond, Type: metav1.CauseTypeForbidden,
		Field: field, Message: message, Remedy: remedy,
	})
}

func (j *istioReview) remark(reason Reason, field, message, remedy string) {
	j.refuse(reason, field, message, remedy)
	j.found[len(j.found)-1].Severity = Notice
}
