package chart

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/meshvakt/meshvakt/internal/keeper"
)

// withoutCopies takes out of a rendered chart what repeats the rest of it, or follows
// from it: the copies of its objects in the ConfigMap, their mark and their digest.
func withoutCopies(manifest string) string {
	for pattern, with := range map[string]string{
		`(?s)(\n  kept\.yaml: )\|-\n.*?\n---\n# Source`:   "$1...\n---\n# Source",
		`(meshvakt\.io/installation: )"[0-9a-f]{16}"`:     `$1"..."`,
		`(--own-objects-digest=)[0-9a-f]{64}`:             "$1...",
		`(meshvakt\.io/installation: )'?[0-9a-f]{16}'?\n`: "$1\"...\"\n",
	} {
		manifest = regexp.MustCompile(pattern).ReplaceAllString(manifest, with)
	}
	return manifest
}

func argument(t *testing.T, w workload, flag string) string {
	t.Helper()
	for _, a := range w.pod.Spec.Containers[0].Args {
		if v, is := strings.CutPrefix(a, flag+"="); is {
			return v
		}
	}
	t.Fatalf("no argument %s", flag)
	return ""
}

// What Meshvakt keeps is what the chart installs: every object but those that go with the
// release, follow the Deployment or are somebody else's, each as it is rendered.
func TestOwnObjectsAreThoseOfTheChart(t *testing.T) {
	notKept := []string{
		"ConfigMap meshvakt-own-objects", "Deployment meshvakt", "StatefulSet meshvakt", "MeshGuard default", // kept otherwise, see docs
		"Service meshvakt-metrics", "Service meshvakt-evidence", "ServiceMonitor meshvakt", "PrometheusRule meshvakt",
		"Certificate meshvakt-serving", "Certificate meshvakt-issuing-ca", "Issuer meshvakt-self-signed", "Issuer meshvakt-issuing-ca",
	}
	for name, values := range valueSets(t) {
		t.Run(name, func(t *testing.T) {
			list := documents(t, render(t, "--values", values))
			cm := find[corev1.ConfigMap](t, list, "ConfigMap", "meshvakt-own-objects")
			desired := &keeper.Desired{}
			for _, w := range workloads(t, list) {
				var err error
				if desired, err = keeper.Read(cm, argument(t, w, "--own-objects-digest")); err != nil {
					t.Fatalf("%s: %v", w.kind, err)
				}
			}
			if desired.Mark != cm.Labels[keeper.MarkLabel] {
				t.Errorf("the objects have mark %q, and their ConfigMap %q", desired.Mark, cm.Labels[keeper.MarkLabel])
			}
			copied := documents(t, cm.Data[keeper.KeyKept]+"\n---\n"+cm.Data[keeper.KeyWatched])
			for _, o := range list {
				id := o.GetKind() + " " + o.GetName()
				at := slices.IndexFunc(copied, func(c *unstructured.Unstructured) bool {
					return c.GetKind() == o.GetKind() && c.GetName() == o.GetName() && c.GetNamespace() == o.GetNamespace()
				})
				_, hook := o.GetAnnotations()["helm.sh/hook"]
				other := hook || slices.Contains(notKept, id) || strings.Contains(id, "probe") || o.GetLabels()[keeper.MarkLabel] == ""
				switch {
				case other != (at < 0):
					t.Errorf("%s: among what is kept: %t", id, at >= 0)
				case at >= 0 && !equal(copied[at].Object, o.Object):
					t.Errorf("%s is kept in another form than it is installed in", id)
				}
			}
		})
	}
}

// What is kept can be kept: both of the roles grant it, by name.
func TestRightsSufficeForOwnObjects(t *testing.T) {
	plural := map[string]string{"NetworkPolicy": "networkpolicies", "ValidatingAdmissionPolicy": "validatingadmissionpolicies"}
	looks := []string{"get", "list", "watch"}
	for name, values := range valueSets(t) {
		list := documents(t, render(t, "--values", values))
		cm := find[corev1.ConfigMap](t, list, "ConfigMap", "meshvakt-own-objects")
		may := func(suffix string, o *unstructured.Unstructured, verb string) bool {
			group, resource := o.GroupVersionKind().Group, strings.ToLower(o.GetKind())+"s"
			if p := plural[o.GetKind()]; p != "" {
				resource = p
			}
			roles := []string{"ClusterRole/meshvakt" + suffix, "Role/meshvakt" + suffix, "Role/meshvakt-mesh-settings" + suffix}
			for _, r := range list {
				if !slices.Contains(roles, r.GetKind()+"/"+r.GetName()) || r.GetKind() == "Role" && r.GetNamespace() != o.GetNamespace() {
					continue
				}
				for _, rule := range find[rbacv1.ClusterRole](t, list, r.GetKind(), r.GetName()).Rules {
					if slices.Contains(rule.APIGroups, group) && slices.Contains(rule.Resources, resource) && slices.Contains(rule.Verbs, verb) &&
						(len(rule.ResourceNames) == 0 || slices.Contains(rule.ResourceNames, o.GetName())) {
						return true
					}
				}
			}
			return false
		}
		for key, verbs := range map[string][]string{keeper.KeyKept: append([]string{"create", "update", "patch"}, looks...), keeper.KeyWatched: looks} {
			for _, o := range documents(t, cm.Data[key]) {
				for _, verb := range verbs {
					if !may("", o, verb) || !may("-spare", o, verb) {
						t.Errorf("%s: no right to %s %s %s", name, verb, o.GetKind(), o.GetName())
					}
				}
			}
		}
	}
}

// A role can be put back only by who has what is in it.
func TestEachRoleIsThereTwice(t *testing.T) {
	list := documents(t, render(t))
	for _, c := range [][2]string{{"ClusterRole", "meshvakt"}, {"Role", "meshvakt"}, {"Role", "meshvakt-mesh-settings"}} {
		one, other := find[rbacv1.ClusterRole](t, list, c[0], c[1]), find[rbacv1.ClusterRole](t, list, c[0], c[1]+"-spare")
		if !equal(one.Rules, other.Rules) {
			t.Errorf("%s %s and its spare differ", c[0], c[1])
		}
		bound, spare := find[rbacv1.ClusterRoleBinding](t, list, c[0]+"Binding", c[1]), find[rbacv1.ClusterRoleBinding](t, list, c[0]+"Binding", c[1]+"-spare")
		if bound.RoleRef.Name != c[1] || spare.RoleRef.Name != c[1]+"-spare" || !equal(bound.Subjects, spare.Subjects) {
			t.Errorf("%s %s and its spare are bound to %v of %v and %v of %v", c[0], c[1], bound.RoleRef, bound.Subjects, spare.RoleRef, spare.Subjects)
		}
	}
}

// The mark changes with what is installed, so that two versions are told apart.
func TestMarkFollowsTheValues(t *testing.T) {
	mark := func(args ...string) string {
		return find[corev1.Service](t, documents(t, render(t, args...)), "Service", "meshvakt").Labels[keeper.MarkLabel]
	}
	if one, again := mark(), mark(); one == "" || one != again {
		t.Errorf("marks %q and %q of the same installation", one, again)
	}
	if mark() == mark("--set", "service.port=8443") {
		t.Error("another Service has the same mark")
	}
	if mark() != mark("--set", "guard.create=false") {
		t.Error("replicas are replaced for the sake of a guard")
	}
	if mark("--set", withEvidence) != mark("--set", withEvidence+",evidence.migration=true") {
		t.Error("the replicas that stay are replaced when the others go")
	}
}

func TestOwnObjectsCanBeLeftAlone(t *testing.T) {
	for _, o := range documents(t, render(t, "--set", "ownObjects.keep=false")) {
		if strings.HasSuffix(o.GetName(), "-spare") || o.GetName() == "meshvakt-own-objects" && o.GetKind() == "ConfigMap" || o.GetLabels()[keeper.MarkLabel] != "" {
			t.Errorf("turned off, it renders %s %s", o.GetKind(), o.GetName())
		}
	}
}
