package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/test/controlplane"
)

const breakGlass = "meshvakt:break-glass"

// staticPlane is a control plane whose API server has loaded what `meshvakt static-policy`
// prints.
func staticPlane(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	manifests := filepath.Join(dir, "manifests")
	must(t, os.Mkdir(manifests, 0o700))
	policies, err := exec.CommandContext(t.Context(), binary, "static-policy", "--namespace", ownNamespace).Output()
	must(t, err)
	must(t, os.WriteFile(filepath.Join(manifests, "meshvakt.yaml"), policies, 0o600))
	config := filepath.Join(dir, "admission.yaml")
	must(t, os.WriteFile(config, fmt.Appendf(nil, `apiVersion: apiserver.config.k8s.io/v1
kind: AdmissionConfiguration
plugins:
  - name: ValidatingAdmissionPolicy
    configuration:
      apiVersion: apiserver.config.k8s.io/v1
      kind: ValidatingAdmissionPolicyConfiguration
      staticManifestsDir: %s
`, manifests), 0o600))
	ownPlane(t, controlplane.Options{Log: os.Stderr, APIServerArgs: []string{"--admission-control-config-file=" + config}})
}

// TestKeeperStaticPolicy has the API server itself refuse what would take Meshvakt away, by
// policies that no request can reach; Meshvakt goes on writing what it keeps, and in an
// emergency there is a way.
func TestKeeperStaticPolicy(t *testing.T) {
	staticPlane(t)
	admin := clientFor(t, controlplane.Admin)
	guard(t, defaultGuard(v1alpha1.OnMissingReject))
	r := start(t, keeping(t)...)
	t.Cleanup(func() { // before the replica's own, which is not in the group
		r.stop()
		glass := acting(t, "admin", breakGlass, "system:masters")
		for _, o := range []client.Object{
			&admissionregistrationv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "meshvakt"}},
			&admissionregistrationv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: mutatingName}},
		} {
			if err := glass.Delete(context.Background(), o); client.IgnoreNotFound(err) != nil {
				t.Error(err)
			}
		}
	})
	enforcing(t, "default") // the ServiceAccount may register
	eventually(t, 10*time.Second, func() error { return asInstalled(t, r) })

	t.Run("refused", func(t *testing.T) {
		for name, do := range map[string]func() error{
			"delete the configuration": func() error { return admin.Delete(t.Context(), registered(t, admin)) },
			"change the configuration": func() error {
				return admin.Patch(t.Context(), registered(t, admin), mergePatch(`{"webhooks":[]}`))
			},
			"delete all configurations": func() error {
				return admin.DeleteAllOf(t.Context(), &admissionregistrationv1.ValidatingWebhookConfiguration{})
			},
			"delete the mutating one": func() error {
				return admin.Delete(t.Context(), &admissionregistrationv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: mutatingName}})
			},
			"delete the namespace": func() error { return admin.Delete(t.Context(), namespace(ownNamespace, false)) },
		} {
			refusedStatically(t, name, do())
		}
		for _, key := range []string{keptKey, watchedKey} {
			for _, o := range ownManifest(t, key) {
				switch o.GetKind() {
				case "Service", "PodDisruptionBudget":
					continue // Meshvakt puts them back, and nothing is let pass meanwhile
				}
				refusedStatically(t, "delete "+describe(o), admin.Delete(t.Context(), o.DeepCopy()))
			}
		}
	})
	t.Run("others' objects", func(t *testing.T) {
		other := &admissionregistrationv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "other"}}
		role := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "meshvakt-like"}}
		for _, o := range []client.Object{other, role, namespace("other", false)} {
			must(t, admin.Create(t.Context(), o))
			must(t, admin.Delete(t.Context(), o))
		}
	})
	t.Run("the policies themselves", func(t *testing.T) {
		var list admissionregistrationv1.ValidatingAdmissionPolicyList
		must(t, admin.List(t.Context(), &list))
		for _, p := range list.Items {
			if strings.HasSuffix(p.Name, ".static.k8s.io") {
				t.Errorf("%s can be reached by requests", p.Name)
			}
		}
	})
	t.Run("Meshvakt puts back", func(t *testing.T) {
		before := r.metric(t.Context(), `meshvakt_own_objects_repaired_total{action="created",kind="ClusterRole"`)
		must(t, acting(t, "admin", breakGlass, "system:masters").Delete(t.Context(), &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "meshvakt"}}))
		eventually(t, repairedWithin, func() error {
			if n := r.metric(t.Context(), `meshvakt_own_objects_repaired_total{action="created",kind="ClusterRole"`); n <= before {
				return fmt.Errorf("%v repairs", n)
			}
			return nil
		})
	})
	t.Run("guards without a webhook", staticGuards(r))
}

// staticGuards takes the webhook away: what is left is what the API server has in its files.
func staticGuards(r *replica) func(*testing.T) {
	return func(t *testing.T) {
		r.stop()
		glass := acting(t, "admin", breakGlass, "system:masters")
		must(t, glass.Delete(t.Context(), &admissionregistrationv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "meshvakt"}}))
		must(t, glass.Delete(t.Context(), &admissionregistrationv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: mutatingName}}))
		admin := clientFor(t, controlplane.Admin)
		must(t, admin.Create(t.Context(), &rbacv1.ClusterRole{
			ObjectMeta: metav1.ObjectMeta{Name: "writes-guards"},
			Rules:      []rbacv1.PolicyRule{{APIGroups: []string{"meshvakt.io"}, Resources: []string{"meshguards"}, Verbs: []string{"get", "update", "patch", "delete"}}},
		}))
		must(t, admin.Create(t.Context(), &rbacv1.ClusterRoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: "writes-guards"},
			RoleRef:    rbacv1.RoleRef{APIGroup: "rbac.authorization.k8s.io", Kind: "ClusterRole", Name: "writes-guards"},
			Subjects:   []rbacv1.Subject{{APIGroup: "rbac.authorization.k8s.io", Kind: "User", Name: "writer"}},
		}))
		writer := acting(t, "writer", "system:authenticated")
		g := &v1alpha1.MeshGuard{ObjectMeta: metav1.ObjectMeta{Name: "default"}}
		weaker := mergePatch(`{"spec":{"strictMTLS":{"validationActions":["Warn"]}}}`)
		eventually(t, 10*time.Second, func() error { // rights are learnt by a watch
			if err := writer.Get(t.Context(), client.ObjectKeyFromObject(g), g); err != nil {
				return err
			}
			return writer.Patch(t.Context(), g.DeepCopy(), mergePatch(`{"metadata":{"annotations":{"note":"x"}}}`))
		})
		err := writer.Patch(t.Context(), g.DeepCopy(), weaker)
		refusedStatically(t, "weaken a guard", err)
		if err != nil && !strings.Contains(err.Error(), "spec.strictMTLS.validationActions: no longer Deny") {
			t.Error(err)
		}
		refusedStatically(t, "delete a guard", writer.Delete(t.Context(), g.DeepCopy()))
		must(t, admin.Patch(t.Context(), g.DeepCopy(), weaker, client.DryRunAll)) // who has every verb has unguard
	}
}

// acting is a client of somebody who acts for a user in groups.
func acting(t testing.TB, user string, groups ...string) client.Client {
	t.Helper()
	config := plane.RestConfig(controlplane.Admin)
	config.Impersonate.UserName, config.Impersonate.Groups = user, groups
	c, err := client.New(config, client.Options{Scheme: scheme})
	must(t, err)
	return c
}

func refusedStatically(t testing.TB, what string, err error) {
	t.Helper()
	if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), ".meshvakt.static.k8s.io") {
		t.Errorf("%s: %v; must be refused by a static policy", what, err)
	}
}
