package facts

import (
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	networkingv1alpha3 "istio.io/api/networking/v1alpha3"
	corev1 "k8s.io/api/core/v1"

	"github.com/meshvakt/meshvakt/internal/mesh"
)

// ReferencesAtMost is how many other namespaces are read for one request.
const ReferencesAtMost = 64

// Reach is the namespaces whose services a host stands for. The zero value is a
// host outside of the cluster.
type Reach struct {
	// Every: services of any namespace, by a wildcard.
	Every bool
	// Namespace is the one whose services are meant.
	Namespace string
	// Suffix: of every namespace whose name ends so, by a wildcard.
	Suffix string
	// Short: by a name without "svc", which is a service's only if there is such a
	// namespace, and else may be anybody's on the internet.
	Short bool
}

// InCluster reports whether the host stands for services of the cluster.
func (r Reach) InCluster() bool { return r != Reach{} }

// RuleReach reads the host of a DestinationRule in the given namespace.
//
// A name without a dot is a service of the rule's own namespace, and every other
// name is taken as it is: "web.prod" is not completed, and so no service of the
// cluster (pilot/pkg/model/config.go, ResolveShortnameToFQDN). A star at the
// beginning stands for anything, parts of a label too (pkg/config/host/name.go).
//
// The domain of the cluster is not known here. Whatever follows "svc" counts, and
// of wildcards that leave it out those over cluster.local and clusterset.local.
func RuleReach(host, namespace string) Reach {
	host = plain(host)
	suffix, wildcard := strings.CutPrefix(host, "*")
	if wildcard {
		return wildcardReach(suffix)
	}
	if host != "" && !strings.ContainsAny(host, ".:") {
		return Reach{Namespace: namespace}
	}
	// The last one: there may be a namespace named "svc".
	i := strings.LastIndex(host, ".svc.")
	if i < 0 {
		return Reach{}
	}
	// Pods of a headless service have one more label in front.
	dot := strings.LastIndexByte(host[:i], '.')
	if dot <= 0 {
		return Reach{}
	}
	return Reach{Namespace: host[dot+1 : i]}
}

func wildcardReach(suffix string) Reach {
	for _, domain := range []string{".svc.cluster.local", ".svc.clusterset.local"} {
		if strings.HasSuffix(domain, suffix) {
			return Reach{Every: true}
		}
	}
	i := strings.LastIndex(suffix, ".svc.")
	switch {
	case i < 0:
		return Reach{}
	case i == 0:
		return Reach{Every: true}
	}
	if dot := strings.LastIndexByte(suffix[:i], '.'); dot >= 0 {
		return Reach{Namespace: suffix[dot+1 : i]}
	}
	return Reach{Suffix: suffix[:i]}
}

// EntryReach reads a host of a ServiceEntry. Proxies also know services as
// "web.prod" and "web.prod.svc", but leave these names to whoever has one of them
// as a host (pilot/pkg/networking/core/httproute.go, dedupeDomains). A name
// without a dot is not completed here; it is no service's of another namespace.
func EntryReach(host string) Reach {
	host = plain(host)
	if r := RuleReach(host, ""); r.InCluster() {
		return r
	}
	if host == "*.svc" {
		return Reach{Every: true}
	}
	switch labels := strings.Split(host, "."); {
	case len(labels) == 3 && labels[2] == "svc":
		return Reach{Namespace: labels[1]}
	case len(labels) == 2 && labels[0] != "" && labels[1] != "":
		return Reach{Namespace: labels[1], Short: true}
	}
	return Reach{}
}

// plain is the host as Envoy compares it.
func plain(host string) string { return strings.ToLower(strings.TrimSuffix(host, ".")) }

// OtherNamespaces returns the namespaces, besides the one of the request and the
// mesh root namespaces, whose labels the judgement reads, in the order in which
// the object names them, the new one first. There are at most ReferencesAtMost;
// when there are as many, what is not known of others is no reason to pass them.
func (r *Review) OtherNamespaces() []string {
	var names []string
	known := append(r.Cluster.RootNamespaces(), r.Namespace, "")
	for _, name := range r.references() {
		if len(names) < ReferencesAtMost && !slices.Contains(known, name) {
			names, known = append(names, name), append(known, name)
		}
	}
	return names
}

func (r *Review) references() []string {
	var names []string
	for _, o := range []any{r.Object, r.OldObject} {
		switch o := o.(type) {
		case *IstioObject:
			names = append(names, specReferences(o.Spec, r.Namespace)...)
		case *corev1.ConfigMap:
			// The settings may name another root namespace.
			if _, ok := o.Data["mesh"]; !ok {
				continue
			}
			if cp, err := mesh.ParseControlPlane(o.Name, o.Labels, o.Data); err == nil {
				names = append(names, cp.RootNamespace)
			}
		}
	}
	return names
}

func specReferences(spec proto.Message, namespace string) []string {
	switch s := spec.(type) {
	case *networkingv1alpha3.DestinationRule:
		return []string{RuleReach(s.GetHost(), namespace).Namespace}
	case *networkingv1alpha3.ServiceEntry:
		names := make([]string, 0, len(s.GetHosts()))
		for _, host := range s.GetHosts() {
			names = append(names, EntryReach(host).Namespace)
		}
		return names
	}
	return nil
}
