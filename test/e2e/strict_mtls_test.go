package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/objects"
	"github.com/meshvakt/meshvakt/test/controlplane"
)

// The story that the README tells: refused, made STRICT by the mesh, admitted,
// and the policy that makes it so cannot be deleted.
func TestMeshWideStrict(t *testing.T) {
	start(t)
	guard(t, defaultGuard(v1alpha1.OnMissingReject))
	enforcing(t, "default")
	dev := clientFor(t, controlplane.Developer)

	shop, pay := unique("shop"), unique("pay")
	refused(t, dev.Create(t.Context(), namespace(shop, true)), shop, "PERMISSIVE", "must be STRICT", "onMissing", "MV101")

	mesh := policy("istio-system", "default", "STRICT")
	create(t, dev, mesh, namespace(shop, true), namespace(pay, true))

	message := refused(t, dev.Delete(t.Context(), mesh), shop, pay, "MV103")
	t.Log(message)
	weaker := mesh.DeepCopy()
	weaker.Spec.MTLS.Mode = "PERMISSIVE"
	refused(t, dev.Update(t.Context(), weaker), "spec.mtls.mode", shop, pay)
	hidden := mesh.DeepCopy()
	hidden.Labels = map[string]string{"istio.io/rev": "nobody"}
	refused(t, dev.Update(t.Context(), hidden), "istio.io/rev", shop)
	refused(t, dev.Create(t.Context(), policy(pay, "legacy", "PERMISSIVE")), "spec.mtls.mode", pay)
	port := &objects.PeerAuthentication{Spec: objects.PeerAuthenticationSpec{
		Selector:      &objects.WorkloadSelector{MatchLabels: map[string]string{"app": "ledger"}},
		PortLevelMTLS: map[string]*objects.MutualTLS{"8080": {Mode: "DISABLE"}},
	}}
	port.Namespace, port.Name = pay, "ledger"
	refused(t, dev.Create(t.Context(), port), "8080", "app=ledger")

	// With policies of their own, the namespaces do not need the mesh's.
	create(t, dev, policy(shop, "default", "STRICT"), policy(pay, "default", "STRICT"))
	must(t, dev.Delete(t.Context(), mesh))
	err := dev.DeleteAllOf(t.Context(), &objects.PeerAuthentication{}, client.InNamespace(shop))
	refused(t, err, shop)
	var left objects.PeerAuthenticationList
	must(t, dev.List(t.Context(), &left, client.InNamespace(shop)))
	if len(left.Items) != 1 {
		t.Errorf("%d policies are left after a refused deletecollection; want 1", len(left.Items))
	}
}

func TestHold(t *testing.T) {
	start(t)
	guard(t, defaultGuard(v1alpha1.OnMissingHold))
	enforcing(t, "default")
	var warnings bytes.Buffer
	dev := warned(t, controlplane.Developer, &warnings)

	name := unique("hold")
	create(t, dev, namespace(name, true))
	if !strings.Contains(warnings.String(), "MV101") || !strings.Contains(warnings.String(), "must be STRICT before pods enter it") {
		t.Errorf("the namespace was admitted with warning %q; want MV101 and what follows from it", warnings.String())
	}
	serviceAccount(t, name)
	refused(t, dev.Create(t.Context(), pod(name, nil)), "metadata.namespace", name, "MV101")
	strict := policy(name, "default", "STRICT")
	create(t, dev, strict)
	must(t, dev.Create(t.Context(), pod(name, nil))) // at once: nothing stale may refuse it
	refused(t, dev.Delete(t.Context(), strict), name)
}

func TestProvision(t *testing.T) {
	start(t)
	guard(t, defaultGuard(v1alpha1.OnMissingProvision))
	enforcing(t, "default")
	dev := clientFor(t, controlplane.Developer)

	name := unique("prov")
	create(t, dev, namespace(name, true))
	admitted := time.Now()
	var pa objects.PeerAuthentication
	eventually(t, 5*time.Second, func() error {
		return dev.Get(t.Context(), client.ObjectKey{Namespace: name, Name: "default"}, &pa)
	})
	t.Logf("PeerAuthentication created after %s", time.Since(admitted).Round(time.Millisecond))
	if pa.Spec.MTLS == nil || pa.Spec.MTLS.Mode != "STRICT" {
		t.Errorf("created %+v; want STRICT", pa.Spec)
	}
	serviceAccount(t, name)
	must(t, dev.Create(t.Context(), pod(name, nil)))

	// A namespace that a policy of its own keeps open cannot be provisioned.
	open := unique("open")
	create(t, dev, namespace(open, false), policy(open, "legacy", "PERMISSIVE"))
	must(t, relabel(t.Context(), dev, namespace(open, false), v1alpha1.GuardedLabel, "true"))
	serviceAccount(t, open)
	eventually(t, 10*time.Second, func() error { // the API server learns of the label by a watch
		err := client.NewDryRunClient(dev).Create(t.Context(), pod(open, nil))
		if err == nil {
			return errors.New("not asked yet")
		}
		refused(t, err, open+"/legacy")
		return nil
	})
}

func TestUnguard(t *testing.T) {
	start(t)
	guard(t, defaultGuard(v1alpha1.OnMissingReject))
	enforcing(t, "default")
	dev, platform := clientFor(t, controlplane.Developer), clientFor(t, controlplane.Platform)

	name := unique("unguard")
	create(t, dev, namespace(name, false), policy(name, "default", "STRICT"))
	must(t, relabel(t.Context(), dev, namespace(name, false), v1alpha1.GuardedLabel, "true"))
	refused(t, relabel(t.Context(), dev, namespace(name, false), v1alpha1.GuardedLabel, ""), "metadata.labels", "unguard", "MV105")
	refused(t, relabel(t.Context(), dev, namespace(name, false), v1alpha1.GuardedLabel, "false"), "MV105")
	must(t, relabel(t.Context(), dev, namespace(name, false), "team", "blue"))
	must(t, relabel(t.Context(), platform, namespace(name, false), v1alpha1.GuardedLabel, ""))
}

func TestPodLabelsThatMatchAWeakPolicy(t *testing.T) {
	start(t)
	admin := clientFor(t, controlplane.Admin)
	name := unique("labels")
	weak := policy(name, "legacy", "PERMISSIVE")
	weak.Spec.Selector = &objects.WorkloadSelector{MatchLabels: map[string]string{"app": "legacy"}}
	create(t, admin, namespace(name, true), policy(name, "default", "STRICT"), weak)
	guard(t, defaultGuard(v1alpha1.OnMissingReject))
	enforcing(t, "default")
	serviceAccount(t, name)
	dev := clientFor(t, controlplane.Developer)

	refused(t, dev.Create(t.Context(), pod(name, map[string]string{"app": "legacy"})), "metadata.labels", name+"/legacy", "MV102")
	good := pod(name, map[string]string{"app": "new"})
	create(t, dev, good)
	refused(t, relabel(t.Context(), dev, good, "app", "legacy"), "MV102")
	must(t, relabel(t.Context(), dev, good, "tier", "web"))
}

// A refused Deployment reaches its author as an event of its ReplicaSet; until
// templates are judged, the message there must be complete.
func TestRefusalReachesTheReplicaSet(t *testing.T) {
	start(t)
	guard(t, defaultGuard(v1alpha1.OnMissingHold))
	enforcing(t, "default")
	dev := clientFor(t, controlplane.Developer)
	name := unique("deploy")
	create(t, dev, namespace(name, true))
	serviceAccount(t, name)
	_, stderr, err := plane.Kubectl(t.Context(), controlplane.Developer, "", "-n", name, "create", "deployment", "web", "--image=registry.example/web:1")
	if err != nil {
		t.Fatalf("%v\n%s", err, stderr)
	}
	eventually(t, 30*time.Second, func() error {
		var events corev1.EventList
		if err := dev.List(t.Context(), &events, client.InNamespace(name)); err != nil {
			return err
		}
		for _, e := range events.Items {
			if e.Reason == "FailedCreate" && strings.Contains(e.Message, "MV101") {
				return nil
			}
		}
		return fmt.Errorf("no FailedCreate event with the finding among %d events", len(events.Items))
	})
}

// Deleting a namespace must work while nobody answers, and whatever is in it.
func TestNamespaceDeletionIsNeverBlocked(t *testing.T) {
	r := start(t)
	guard(t, defaultGuard(v1alpha1.OnMissingReject))
	enforcing(t, "default")
	dev, admin := clientFor(t, controlplane.Developer), clientFor(t, controlplane.Admin)
	up, down := unique("up"), unique("down")
	for _, name := range []string{up, down} {
		create(t, dev, namespace(name, false), policy(name, "default", "STRICT"))
		must(t, relabel(t.Context(), dev, namespace(name, false), v1alpha1.GuardedLabel, "true"))
	}
	gone := func(name string) {
		t.Helper()
		must(t, dev.Delete(t.Context(), namespace(name, true)))
		eventually(t, 60*time.Second, func() error {
			var ns corev1.Namespace
			err := admin.Get(t.Context(), client.ObjectKey{Name: name}, &ns)
			if apierrors.IsNotFound(err) {
				return nil
			}
			return fmt.Errorf("namespace %s is still there: %v %v", name, ns.Status.Conditions, err)
		})
	}
	gone(up)
	r.kill()
	if err := dev.Create(t.Context(), policy(down, "second", "STRICT")); err == nil {
		t.Fatal("a policy was admitted while nobody answered; the webhook must fail closed")
	}
	gone(down)
}

// Labels can be changed through subresources too, by those who may write them.
func TestSubresourcesAreNoWayAround(t *testing.T) {
	start(t)
	guard(t, defaultGuard(v1alpha1.OnMissingReject))
	enforcing(t, "default")
	dev, admin := clientFor(t, controlplane.Developer), clientFor(t, controlplane.Admin)
	name := unique("status")
	weak := policy(name, "legacy", "PERMISSIVE")
	weak.Spec.Selector = &objects.WorkloadSelector{MatchLabels: map[string]string{"app": "legacy"}}
	create(t, admin, namespace(name, false), policy(name, "default", "STRICT"))
	serviceAccount(t, name)
	running := pod(name, map[string]string{"app": "new"})
	create(t, dev, running)

	g := defaultGuard(v1alpha1.OnMissingReject)
	must(t, deleteGuard(t.Context(), admin, g.Name)) // so that a bad state can be built
	eventually(t, 10*time.Second, func() error { return client.NewDryRunClient(dev).Create(t.Context(), weak) })
	create(t, admin, weak)
	must(t, relabel(t.Context(), admin, namespace(name, false), v1alpha1.GuardedLabel, "true"))
	guard(t, defaultGuard(v1alpha1.OnMissingReject))
	enforcing(t, "default")

	patch := client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"labels":{"app":"legacy"}}}`))
	eventually(t, 10*time.Second, func() error {
		err := admin.Status().Patch(t.Context(), running.DeepCopy(), patch, client.DryRunAll)
		if err == nil {
			return fmt.Errorf("the labels of a pod were changed through its status")
		}
		refused(t, err, "MV102")
		return nil
	})
	// Somebody who may write the status of namespaces, and no more.
	writer := unique("status-writer")
	role := &rbacv1.ClusterRole{
		ObjectMeta: metav1.ObjectMeta{Name: writer},
		Rules:      []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"namespaces", "namespaces/status"}, Verbs: []string{"get", "patch", "update"}}},
	}
	binding := &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: writer},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: writer},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: writer}},
	}
	create(t, admin, role, binding)
	config := plane.RestConfig(controlplane.Admin)
	config.Impersonate.UserName = writer
	c, err := client.New(config, client.Options{Scheme: scheme})
	must(t, err)
	eventually(t, 10*time.Second, func() error { // the API server learns of rights by a watch
		var ns corev1.Namespace
		return c.Get(t.Context(), client.ObjectKey{Name: name}, &ns)
	})
	unlabel := client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"labels":{"meshvakt.io/guarded":null}}}`))
	refused(t, c.Status().Patch(t.Context(), namespace(name, true), unlabel), "MV105")
}
