package policies

import (
	"fmt"
	"maps"

	networkingv1alpha3 "istio.io/api/networking/v1alpha3"

	"github.com/meshvakt/meshvakt/policies/facts"
)

// ServiceEntry, WorkloadEntry, WorkloadGroup: endpoints that are no pods.
//
// A ServiceEntry whose host is a service's in the cluster stands beside that service
// for every client that sees it, and the client takes its endpoints: outside of the
// mesh, and then in plaintext, or somebody else's. Denied wherever it lies, in the
// namespace of the service too: what a host outside of the cluster needs, has a name
// of its own.
//
// A WorkloadEntry in a guarded namespace becomes an endpoint of each service that
// selects its labels. Clients send plaintext to it unless it says that it takes
// mutual TLS, by its label or by naming a service account. Denied: it is a member of
// a guarded service in the eyes of its clients.
//
// Source: Istio's references of the three; pilot/pkg/serviceregistry/serviceentry/
// conversion.go, getTLSModeFromWorkloadEntry; pilot/pkg/autoregistration/controller.go,
// workloadEntryFromGroup.

const tlsModeIstio = "istio"

func (j *istioReview) judgeServiceEntry(entry *networkingv1alpha3.ServiceEntry) {
	for i, host := range entry.GetHosts() {
		whose, guarded := j.guards(facts.EntryReach(host))
		if !guarded {
			continue
		}
		j.refuse(reasonServiceImpersonated(), fmt.Sprintf("spec.hosts[%d]", i),
			fmt.Sprintf("%s is a host of %s, and clients take the endpoints of this entry for the service; must be a host outside of the cluster", quote(host), whose),
			"give the endpoints a host of their own, or, for workloads of the service on virtual machines, use a WorkloadEntry that the Service selects")
	}
}

func (j *istioReview) judgeWorkloadEntry(entry *networkingv1alpha3.WorkloadEntry) {
	if j.inside() {
		j.judgeEndpoint("spec.", "spec.labels", entry.GetLabels(), entry.GetServiceAccount())
	}
}

// judgeWorkloadGroup judges the entries that istiod makes by it; labels of the
// group's metadata come before those of its template.
func (j *istioReview) judgeWorkloadGroup(group *networkingv1alpha3.WorkloadGroup) {
	if !j.inside() {
		return
	}
	at, labels := "spec.template.labels", maps.Clone(group.GetTemplate().GetLabels())
	for name, value := range group.GetMetadata().GetLabels() {
		if labels == nil {
			labels = map[string]string{}
		}
		if labels[name] = value; name == tlsModeKey {
			at = "spec.metadata.labels"
		}
	}
	j.judgeEndpoint("spec.template.", at, labels, group.GetTemplate().GetServiceAccount())
}

func (j *istioReview) judgeEndpoint(at, labelsAt string, labels map[string]string, account string) {
	mode, labelled := labels[tlsModeKey]
	switch {
	case labelled && mode != tlsModeIstio:
		j.refuse(reasonPlaintextEndpoint(), labelsAt+"["+tlsModeKey+"]",
			fmt.Sprintf("%s has clients send plaintext to this endpoint of guarded namespace %q; must be %q or absent", quote(mode), j.namespace.Name, tlsModeIstio),
			"remove the label and name the workload's serviceAccount")
	case !labelled && account == "":
		j.refuse(reasonPlaintextEndpoint(), at+"serviceAccount",
			fmt.Sprintf("without it clients send plaintext to this endpoint of guarded namespace %q; must name the account that the workload's proxy runs as", j.namespace.Name),
			"set serviceAccount, or keep workloads that have no proxy out of guarded namespaces")
	}
}
