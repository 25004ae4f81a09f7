package preflight

import (
	"fmt"
	"io"
	"slices"
	"strings"

	admissionv1 "k8s.io/api/admission/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/meshvakt/meshvakt/policies"
)

// Right is what a user may do: verb, resource, and the namespace it is confined to.
type Right struct {
	Verb      string `json:"verb"`
	Group     string `json:"group"`
	Resource  string `json:"resource"`
	Namespace string `json:"namespace,omitempty"`
}

// String is the right as people say it: "list pods", "list deployments.apps in namespace "x"".
func (r Right) String() string {
	resource := schema.GroupResource{Group: r.Group, Resource: r.Resource}.String()
	if r.Namespace == "" {
		return r.Verb + " " + resource
	}
	return fmt.Sprintf("%s %s in namespace %q", r.Verb, resource, r.Namespace)
}

// Workload is a kind of namespaced object that is judged one by one.
type Workload struct {
	schema.GroupKind
	Resource string
	// Versions are those that policies read, the preferred one first.
	Versions []string
	// Everywhere: the kind matters in namespaces that no guard selects too.
	Everywhere bool
}

// Workloads are the kinds that policies judge object by object: pods last, for what they
// come from must have been judged by then.
func Workloads() []Workload {
	var list []Workload
	var pods []Workload
	for _, p := range policies.All() {
		for _, m := range p.Matches {
			w := Workload{
				GroupKind: schema.GroupKind{Group: m.Group, Kind: m.Kind},
				Resource:  m.Resource, Versions: m.Versions, Everywhere: m.Scope == policies.ScopeGuardedAndRoot,
			}
			known := func(o Workload) bool { return o.GroupKind == w.GroupKind }
			switch {
			case !m.Namespaced() || m.OnlySubresource != "" || len(m.Names) > 0 || m.Scope == policies.ScopeIstioSettings || m.Scope == policies.ScopeOwn,
				!slices.Contains(m.Operations, admissionv1.Create),
				m.Kind == "Binding" || m.Kind == "PeerAuthentication" || m.Kind == "ConfigMap",
				slices.ContainsFunc(list, known), slices.ContainsFunc(pods, known):
			case m.Kind == "Pod":
				pods = append(pods, w)
			default:
				list = append(list, w)
			}
		}
	}
	slices.SortStableFunc(list, func(a, b Workload) int {
		return strings.Compare(a.Group+"/"+a.Resource, b.Group+"/"+b.Resource)
	})
	return append(list, pods...)
}

// ClusterRights are the rights to read what is not judged object by object, and
// NamespacedRights those to read what is.
func ClusterRights(n Names) []Right {
	return []Right{
		{"list", "", "namespaces", ""},
		{"list", "", "nodes", ""},
		{"list", "", "configmaps", n.IstioNamespace},
		{"list", "", "limitranges", ""},
		{"list", "", "resourcequotas", ""},
		{"list", "admissionregistration.k8s.io", "mutatingwebhookconfigurations", ""},
		{"list", "admissionregistration.k8s.io", "validatingwebhookconfigurations", ""},
		{"list", "apps", "deployments", ""},
		{"list", "apps", "statefulsets", n.Namespace},
		{"list", "discovery.k8s.io", "endpointslices", ""},
		{"list", "meshvakt.io", "guardexceptions", ""},
		{"list", "meshvakt.io", "meshguards", ""},
		{"list", "policy", "poddisruptionbudgets", n.Namespace},
		{"list", "security.istio.io", "peerauthentications", ""},
	}
}

// NamespacedRights are the rights to read the kinds that are judged object by object, in
// the whole cluster or in the namespaces.
func NamespacedRights(namespaces []string) []Right {
	if len(namespaces) == 0 {
		namespaces = []string{""}
	}
	var list []Right
	for _, w := range Workloads() {
		for _, ns := range namespaces {
			list = append(list, Right{"list", w.Group, w.Resource, ns})
		}
	}
	return list
}

// WriteRoles prints a ClusterRole, and a Role for what is read in the namespace of istiod
// alone, with every right that preflight uses. They read and never write, and no Secret is
// in them.
func WriteRoles(w io.Writer, n Names) error {
	rights := append(ClusterRights(n), NamespacedRights(nil)...)
	// The namespace of Meshvakt may not be there yet, and neither could a Role in it.
	inIstio := func(r Right) bool { return r.Namespace == n.IstioNamespace }
	var b strings.Builder
	b.WriteString("apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata:\n  name: meshvakt-preflight\n")
	writeRules(&b, slices.DeleteFunc(slices.Clone(rights), inIstio))
	fmt.Fprintf(&b, "---\napiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata:\n  name: meshvakt-preflight\n  namespace: %s\n", n.IstioNamespace)
	writeRules(&b, slices.DeleteFunc(slices.Clone(rights), func(r Right) bool { return !inIstio(r) }))
	_, err := io.WriteString(w, b.String())
	return err
}

func writeRules(b *strings.Builder, rights []Right) {
	groups := map[string][]string{}
	for _, r := range rights {
		if !slices.Contains(groups[r.Group], r.Resource) {
			groups[r.Group] = append(groups[r.Group], r.Resource)
		}
	}
	b.WriteString("rules:\n")
	for _, group := range sortedKeys(groups) {
		slices.Sort(groups[group])
		fmt.Fprintf(b, "  - apiGroups: [%q]\n    resources: [%s]\n    verbs: [list]\n", group, strings.Join(groups[group], ", "))
	}
}
