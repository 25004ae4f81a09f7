package chart

import (
	"slices"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"

	"github.com/meshvakt/meshvakt/policies"
)

// allows reports whether a rule grants a verb on every object of a resource.
func allows(rules []rbacv1.PolicyRule, group, resource, verb string) bool {
	return slices.ContainsFunc(rules, func(r rbacv1.PolicyRule) bool {
		return len(r.ResourceNames) == 0 && slices.Contains(r.APIGroups, group) && slices.Contains(r.Resources, resource) && slices.Contains(r.Verbs, verb)
	})
}

// What policies judge by is what may be read. Pods and templates of pods are
// judged as they come, with the request, and as they stand, by the scan, which lists
// them and watches their metadata; a pod is looked up when it is put on a node. The class
// of nodes is written on them. A PeerAuthentication is patched to be STRICT again.
func TestRightsFollowPolicies(t *testing.T) {
	rules := find[rbacv1.ClusterRole](t, documents(t, render(t)), "ClusterRole", "meshvakt").Rules
	watched := []string{"get", "list", "watch"}
	rights := map[string][]string{
		"Namespace": watched, "PeerAuthentication": append([]string{"patch"}, watched...), "Pod": watched, "Node": watched, "PersistentVolume": {"list"},
		"Deployment": {"list", "watch"}, "StatefulSet": {"list", "watch"}, "DaemonSet": {"list", "watch"}, "CronJob": {"list", "watch"},
		"MeshGuard": watched, "GuardException": watched,
	}
	for _, p := range policies.All() {
		for _, m := range p.Matches {
			resource := m.Resource
			if m.OnlySubresource != "" {
				resource += "/" + m.OnlySubresource
			}
			for _, verb := range append([]string{"update", "patch", "delete", "deletecollection"}, watched...) {
				want := slices.Contains(rights[m.Kind], verb)
				if got := allows(rules, m.Group, resource, verb); got != want {
					t.Errorf("policy %s judges %s.%s; right to %s it is %t, must be %t", p.ID, resource, m.Group, verb, got, want)
				}
			}
		}
	}
}

func TestRightsAreNarrow(t *testing.T) {
	for name, path := range valueSets(t) {
		t.Run(name, func(t *testing.T) {
			list := documents(t, render(t, "--values", path))
			for _, o := range list {
				if o.GetKind() != "ClusterRole" && o.GetKind() != "Role" {
					continue
				}
				role := find[rbacv1.ClusterRole](t, list, o.GetKind(), o.GetName())
				for _, r := range role.Rules {
					for _, s := range slices.Concat(r.APIGroups, r.Resources, r.Verbs) {
						if strings.Contains(s, "*") || slices.Contains([]string{"escalate", "bind", "impersonate"}, s) {
							t.Errorf("%s %s: rule %v is too wide", o.GetKind(), o.GetName(), r)
						}
					}
					if len(r.NonResourceURLs) > 0 {
						t.Errorf("%s %s: rule %v", o.GetKind(), o.GetName(), r)
					}
					named := len(r.ResourceNames) > 0
					switch {
					case slices.Contains(r.Resources, "secrets") && (o.GetKind() == "ClusterRole" || !named && !slices.Equal(r.Verbs, []string{"create"})):
						t.Errorf("%s %s: may do more with Secrets than its own one needs: %v", o.GetKind(), o.GetName(), r)
					case slices.Contains(r.Resources, "validatingwebhookconfigurations") && !named:
						t.Errorf("%s %s: may touch other webhook configurations: %v", o.GetKind(), o.GetName(), r)
					case slices.Contains(r.Resources, "mutatingwebhookconfigurations") && !slices.Equal(r.ResourceNames, []string{"before-istio.meshvakt.io"}) &&
						!slices.Equal(r.Verbs, []string{"get", "list", "watch"}):
						t.Errorf("%s %s: may do more than see other mutating webhooks: %v", o.GetKind(), o.GetName(), r)
					case slices.Contains(r.Resources, "validatingadmissionpolicies") && (!named || slices.Contains(r.Verbs, "delete")):
						t.Errorf("%s %s: may do more with admission policies than put back its own: %v", o.GetKind(), o.GetName(), r)
					case writesOwnObjects(r) && (!named || !ownNames(r.ResourceNames)):
						t.Errorf("%s %s: may write more than Meshvakt's own objects: %v", o.GetKind(), o.GetName(), r)
					case writesNodes(r) && !patchesNodeStatus(o.GetName(), r):
						t.Errorf("%s %s: may write more of Nodes than classes and probes need: %v", o.GetKind(), o.GetName(), r)
					case slices.Contains(r.Verbs, "unguard") && o.GetName() != "meshvakt-unguard":
						t.Errorf("%s %s: may take namespaces out of guards", o.GetKind(), o.GetName())
					case slices.Contains(r.Verbs, "approve") && o.GetName() != "meshvakt-approve":
						t.Errorf("%s %s: may approve exceptions", o.GetKind(), o.GetName())
					}
				}
			}
		})
	}
}

// writesOwnObjects reports whether a rule is about kinds of which Meshvakt may write its own
// objects, and no others.
func writesOwnObjects(r rbacv1.PolicyRule) bool {
	kinds := []string{
		"customresourcedefinitions", "clusterroles", "clusterrolebindings", "roles", "rolebindings", "services", "serviceaccounts",
		"poddisruptionbudgets", "networkpolicies", "validatingadmissionpolicies",
	}
	return slices.ContainsFunc(r.Resources, func(s string) bool { return slices.Contains(kinds, s) }) &&
		slices.ContainsFunc(r.Verbs, func(v string) bool { return !slices.Contains([]string{"get", "list", "watch"}, v) })
}

func ownNames(names []string) bool {
	return !slices.ContainsFunc(names, func(n string) bool {
		return n != "meshvakt" && !strings.HasPrefix(n, "meshvakt-") && !strings.HasSuffix(n, ".meshvakt.io")
	})
}

// Roles for people are looked at and never written: to write them takes what is in them.
func TestRolesForPeopleAreOnlyWatched(t *testing.T) {
	list := documents(t, render(t))
	for _, r := range find[rbacv1.ClusterRole](t, list, "ClusterRole", "meshvakt").Rules {
		for _, people := range []string{"meshvakt-view", "meshvakt-request", "meshvakt-approve", "meshvakt-unguard"} {
			if slices.Contains(r.ResourceNames, people) && !slices.Equal(r.Verbs, []string{"get", "list", "watch"}) {
				t.Errorf("may do %v to ClusterRole %s", r.Verbs, people)
			}
		}
		if slices.Contains(r.Verbs, "approve") || slices.Contains(r.Verbs, "unguard") {
			t.Errorf("Meshvakt itself may do what people must decide: %v", r)
		}
	}
}

// writesNodes reports whether a rule lets somebody write Nodes, or a part of them.
func writesNodes(r rbacv1.PolicyRule) bool {
	return slices.ContainsFunc(r.Resources, func(s string) bool { return s == "nodes" || strings.HasPrefix(s, "nodes/") }) &&
		slices.ContainsFunc(r.Verbs, func(v string) bool { return !slices.Contains([]string{"get", "list", "watch"}, v) })
}

// patchesNodeStatus is the one right to write Nodes that there is; it does not reach the
// spec. The leader writes classes by it, probes what they measure, and both are cleaned up
// behind.
func patchesNodeStatus(role string, r rbacv1.PolicyRule) bool {
	return slices.Contains([]string{"meshvakt", "meshvakt-spare", probeName, "meshvakt-uninstall"}, role) &&
		slices.Equal(r.Resources, []string{"nodes/status"}) && slices.Equal(r.Verbs, []string{"patch"})
}
