package policies

import (
	"fmt"
	"strings"

	networkingv1alpha3 "istio.io/api/networking/v1alpha3"

	"github.com/meshvakt/meshvakt/policies/facts"
)

// DestinationRule. Where it says nothing, clients use mutual TLS with every server
// that takes it, and check that the server runs as the service's account. DISABLE
// sends plaintext, SIMPLE and MUTUAL another TLS with certificates that are not the
// mesh's; a list of subject names takes the place of the service's own.
//
// A rule counts for the clients in its own namespace, in the namespace of the host
// for all clients, and in a mesh root namespace for all of both. Denied for hosts of
// guarded namespaces wherever the rule lies: what its clients send is data of the
// guarded service. A remark where a guarded namespace leaves TLS off toward another
// one: some such servers are not in the mesh, and Istio would leave it off by itself.
//
// Source: Istio, DestinationRule reference, ClientTLSSettings;
// pilot/pkg/networking/core/cluster_tls.go, buildUpstreamTLSSettings.

func (j *istioReview) judgeDestinationRule(rule *networkingv1alpha3.DestinationRule) {
	reach := facts.RuleReach(rule.GetHost(), j.namespace.Name)
	if !reach.InCluster() {
		return
	}
	whose, guarded := j.guards(reach)
	if !guarded && !j.inside() {
		return
	}
	target := ruleTarget{host: rule.GetHost(), whose: whose, guarded: guarded, namespace: reach.Namespace}
	j.judgeTrafficPolicy("spec.trafficPolicy", rule.GetTrafficPolicy(), target)
	for _, s := range rule.GetSubsets() {
		j.judgeTrafficPolicy(fmt.Sprintf("spec.subsets[%s].trafficPolicy", s.GetName()), s.GetTrafficPolicy(), target)
	}
}

// ruleTarget is the services that a rule is about.
type ruleTarget struct {
	host, whose string
	guarded     bool
	namespace   string // "" for those of several
}

func (j *istioReview) judgeTrafficPolicy(field string, p *networkingv1alpha3.TrafficPolicy, to ruleTarget) {
	j.judgeClientTLS(field+".tls", p.GetTls(), to)
	for _, s := range p.GetPortLevelSettings() {
		j.judgeClientTLS(fmt.Sprintf("%s.portLevelSettings[%d].tls", field, s.GetPort().GetNumber()), s.GetTls(), to)
	}
}

func (j *istioReview) judgeClientTLS(field string, tls *networkingv1alpha3.ClientTLSSettings, to ruleTarget) {
	if tls == nil {
		return
	}
	const remedy = "remove tls: Istio uses mutual TLS by itself with every server that takes it"
	mode := tls.GetMode()
	switch {
	case mode == networkingv1alpha3.ClientTLSSettings_DISABLE && to.guarded:
		j.refuse(reasonClientTLSOff(), field+".mode",
			fmt.Sprintf("%q has clients send plaintext to %s of %s; must be \"ISTIO_MUTUAL\" or absent", mode, quote(to.host), to.whose), remedy)
	case mode == networkingv1alpha3.ClientTLSSettings_DISABLE:
		j.remark(reasonClientTLSOff(), field+".mode",
			fmt.Sprintf("%q has the workloads of guarded namespace %q send plaintext to %s, also if the server is in the mesh", mode, j.namespace.Name, quote(to.host)),
			"remove tls, unless the server must not take mutual TLS: to one that is not in the mesh Istio sends plaintext by itself")
	case !to.guarded:
	case mode != networkingv1alpha3.ClientTLSSettings_ISTIO_MUTUAL:
		j.refuse(reasonMeshIdentityReplaced(), field+".mode",
			fmt.Sprintf("%q has clients of %s of %s use certificates that are not the mesh's, so that neither side knows the other by its identity; must be \"ISTIO_MUTUAL\" or absent", mode, quote(to.host), to.whose), remedy)
	default:
		j.judgeServerIdentity(field, tls, to)
	}
}

// judgeServerIdentity: mutual TLS of the mesh, with whom?
func (j *istioReview) judgeServerIdentity(field string, tls *networkingv1alpha3.ClientTLSSettings, to ruleTarget) {
	if tls.GetInsecureSkipVerify().GetValue() {
		j.refuse(reasonMeshIdentityReplaced(), field+".insecureSkipVerify",
			fmt.Sprintf("true has clients of %s of %s talk to whoever answers; must be false or absent", quote(to.host), to.whose), "remove insecureSkipVerify")
	}
	for i, name := range tls.GetSubjectAltNames() {
		if !identityIn(name, to.namespace) {
			j.refuse(reasonMeshIdentityReplaced(), fmt.Sprintf("%s.subjectAltNames[%d]", field, i),
				fmt.Sprintf("%s is taken for %s, and is no identity of a service account in its namespace; must be of the form spiffe://<trust domain>/ns/%s/sa/<account>", quote(name), quote(to.host), to.namespaceText()),
				"remove subjectAltNames: Istio checks for the service accounts of the service's pods by itself")
		}
	}
}

func (t ruleTarget) namespaceText() string {
	if t.namespace == "" {
		return "<namespace>"
	}
	return t.namespace
}

// identityIn reports whether the name is that of a service account in the
// namespace, in any trust domain: a mesh may trust several.
func identityIn(name, namespace string) bool {
	rest, ok := strings.CutPrefix(name, "spiffe://")
	if !ok || namespace == "" {
		return false
	}
	_, path, _ := strings.Cut(rest, "/")
	account, ok := strings.CutPrefix(path, "ns/"+namespace+"/sa/")
	return ok && account != "" && !strings.Contains(account, "/")
}
