package controlplane

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// TestControlPlane boots once for all that does not need Istio.
func TestControlPlane(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a control plane")
	}
	cp := Start(t, Options{})
	for _, test := range []struct {
		name string
		run  func(*testing.T, *ControlPlane)
	}{
		{"users have the rights they should", testRights},
		{"kubectl acts as its user", testKubectl},
		{"pods get a ServiceAccount token", testServiceAccountAdmission},
		{"a ServiceAccount can be a client", testServiceAccountConfig},
		{"CRDs are in force", testCRDs},
		{"the audit log has annotations", testAudit},
		{"pods are scheduled and their namespace can be deleted", testNodeAndNamespace},
		{"components can be paused and restarted", testFaults},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, cp) })
	}
}

// within bounds what a test waits for. It is generous: a busy machine is no failure.
func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func client(t *testing.T, cp *ControlPlane, user User) kubernetes.Interface {
	t.Helper()
	c, err := kubernetes.NewForConfig(cp.RestConfig(user))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// namespace creates a namespace that pods can be created in.
func namespace(t *testing.T, cp *ControlPlane, labels map[string]string) string {
	t.Helper()
	created, err := client(t, cp, Developer).CoreV1().Namespaces().Create(within(t),
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "test-", Labels: labels}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := cp.WaitNamespace(within(t), created.Name); err != nil {
		t.Fatal(err)
	}
	return created.Name
}

func pod() *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "test-"},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "app"}}},
	}
}

func testRights(t *testing.T, cp *ControlPlane) {
	for _, test := range []struct {
		verb, resource string // resource.group
		allowed        []User
	}{
		{"get", "secrets", []User{Admin, Platform, Developer}},
		{"list", "pods", []User{Admin, Platform, Developer, Auditor}},
		{"create", "pods", []User{Admin, Platform, Developer}},
		{"create", "deployments.apps", []User{Admin, Platform, Developer}},
		{"list", "namespaces", []User{Admin, Platform, Developer, Auditor}},
		{"create", "namespaces", []User{Admin, Platform, Developer}},
		{"delete", "namespaces", []User{Admin, Platform, Developer}},
		{"create", "peerauthentications.security.istio.io", []User{Admin, Platform, Developer}},
		{"delete", "virtualservices.networking.istio.io", []User{Admin, Platform, Developer}},
		{"list", "peerauthentications.security.istio.io", []User{Admin, Platform, Developer, Auditor}},
		{"list", "telemetries.telemetry.istio.io", []User{Admin, Auditor}},
		{"list", "meshguards.meshvakt.io", []User{Admin, Platform, Auditor}},
		{"update", "meshguards.meshvakt.io", []User{Admin, Platform}},
		{"unguard", "meshguards.meshvakt.io", []User{Admin, Platform}},
		{"list", "guardexceptions.meshvakt.io", []User{Admin, Platform, Auditor}},
		{"create", "guardexceptions.meshvakt.io", []User{Admin, Platform}},
		{"approve", "guardexceptions.meshvakt.io", []User{Admin, Platform}},
		{"list", "nodes", []User{Admin, Auditor}},
		{"list", "clusterroles.rbac.authorization.k8s.io", []User{Admin, Auditor}},
		{"escalate", "clusterroles.rbac.authorization.k8s.io", []User{Admin}},
		{"create", "clusterrolebindings.rbac.authorization.k8s.io", []User{Admin}},
		{"create", "rolebindings.rbac.authorization.k8s.io", []User{Admin}},
		{"create", "validatingwebhookconfigurations.admissionregistration.k8s.io", []User{Admin}},
		{"impersonate", "users", []User{Admin}},
	} {
		t.Run(test.verb+" "+test.resource, func(t *testing.T) {
			resource, group, _ := strings.Cut(test.resource, ".")
			var allowed []User
			for _, user := range Users() {
				review, err := client(t, cp, user).AuthorizationV1().SelfSubjectAccessReviews().Create(within(t),
					&authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{
						ResourceAttributes: &authorizationv1.ResourceAttributes{
							Verb: test.verb, Group: group, Resource: resource,
						},
					}}, metav1.CreateOptions{})
				if err != nil {
					t.Fatal(err)
				}
				if review.Status.Allowed {
					allowed = append(allowed, user)
				}
			}
			if got, want := fmt.Sprint(allowed), fmt.Sprint(test.allowed); got != want {
				t.Errorf("allowed to %s; want %s", got, want)
			}
		})
	}
}

func testKubectl(t *testing.T, cp *ControlPlane) {
	for _, user := range Users() {
		stdout, _, err := cp.Kubectl(within(t), user, "", "auth", "whoami", "-o", "jsonpath={.status.userInfo.username}")
		if err != nil {
			t.Error(err)
		}
		if stdout != string(user) {
			t.Errorf("kubectl is %q; want %q", stdout, user)
		}
	}
	_, stderr, err := cp.Kubectl(within(t), Developer, "", "get", "nodes")
	if err == nil || !strings.Contains(stderr, "Forbidden") {
		t.Errorf("a developer lists nodes: error %v, stderr %q", err, stderr)
	}
}

func testServiceAccountAdmission(t *testing.T, cp *ControlPlane) {
	created, err := client(t, cp, Developer).CoreV1().Pods(metav1.NamespaceDefault).Create(within(t), pod(),
		metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	if err != nil {
		t.Fatal(err)
	}
	if got := created.Spec.ServiceAccountName; got != "default" {
		t.Errorf("ServiceAccount %q; want default", got)
	}
	if len(created.Spec.Volumes) != 1 || created.Spec.Volumes[0].Projected == nil {
		t.Errorf("volumes %v; want the projected token", created.Spec.Volumes)
	}
}

func testServiceAccountConfig(t *testing.T, cp *ControlPlane) {
	config, err := cp.ServiceAccountConfig(within(t), metav1.NamespaceDefault, "default")
	if err != nil {
		t.Fatal(err)
	}
	c, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	self, err := c.AuthenticationV1().SelfSubjectReviews().Create(within(t),
		&authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := self.Status.UserInfo.Username, "system:serviceaccount:default:default"; got != want {
		t.Errorf("user %q; want %q", got, want)
	}
}

const peerAuthentication = `
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: %s, namespace: default}
spec: {mtls: {mode: STRICT}%s}
`

func testCRDs(t *testing.T, cp *ControlPlane) {
	good := fmt.Sprintf(peerAuthentication, "good", "")
	if _, _, err := cp.Kubectl(within(t), Developer, good, "create", "-f", "-"); err != nil {
		t.Error(err)
	}
	// A rule in CEL that Istio's CRD has, and that only a real API server evaluates.
	bad := fmt.Sprintf(peerAuthentication, "bad", ", portLevelMtls: {8080: {mode: DISABLE}}")
	_, stderr, err := cp.Kubectl(within(t), Developer, bad, "create", "-f", "-")
	if err == nil || !strings.Contains(stderr, "portLevelMtls requires selector") {
		t.Errorf("portLevelMtls without selector: error %v; want a refusal that says why", err)
	}
	if _, _, err := cp.Kubectl(within(t), Admin, "", "get", "certificates.cert-manager.io"); err != nil {
		t.Error(err)
	}
}

func testAudit(t *testing.T, cp *ControlPlane) {
	_, err := client(t, cp, Developer).CoreV1().ConfigMaps(metav1.NamespaceDefault).Create(within(t),
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "audited"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	event, err := cp.WaitAudit(within(t), func(e AuditEvent) bool {
		return e.Verb == "create" && e.ObjectRef.Resource == "configmaps" && e.ObjectRef.Name == "audited"
	})
	if err != nil {
		t.Fatal(err)
	}
	if event.User.Username != string(Developer) || event.ResponseStatus.Code != 201 {
		t.Errorf("user %q, code %d; want developer, 201", event.User.Username, event.ResponseStatus.Code)
	}
	if event.Annotations["authorization.k8s.io/decision"] != "allow" {
		t.Errorf("annotations %v; want the decision of the authorizer", event.Annotations)
	}
}

func testNodeAndNamespace(t *testing.T, cp *ControlPlane) {
	node, err := cp.AddNode(within(t), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-1"}})
	if err != nil {
		t.Fatal(err)
	}
	if len(node.Spec.Taints) > 0 {
		t.Errorf("taints %v; want none", node.Spec.Taints)
	}
	developer := client(t, cp, Developer).CoreV1()
	name := namespace(t, cp, nil)
	created, err := developer.Pods(name).Create(within(t), pod(), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	err = poll(within(t), func(ctx context.Context) error {
		current, err := developer.Pods(name).Get(ctx, created.Name, metav1.GetOptions{})
		if err == nil && current.Spec.NodeName != node.Name {
			err = fmt.Errorf("the pod is on node %q", current.Spec.NodeName)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := developer.Namespaces().Delete(within(t), name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	err = poll(within(t), func(ctx context.Context) error {
		current, err := developer.Namespaces().Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err == nil {
			err = fmt.Errorf("the namespace is there: %v", current.Status)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func testFaults(t *testing.T, cp *ControlPlane) {
	admin := client(t, cp, Admin)
	serves := func(ctx context.Context) error {
		_, err := admin.CoreV1().Namespaces().Get(ctx, metav1.NamespaceDefault, metav1.GetOptions{})
		return err
	}
	if err := cp.Pause(APIServer); err != nil {
		t.Fatal(err)
	}
	soon, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := serves(soon); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a paused API server answers: %v", err)
	}
	if err := cp.Resume(APIServer); err != nil {
		t.Fatal(err)
	}
	if err := poll(within(t), serves); err != nil {
		t.Errorf("after Resume: %v", err)
	}
	for _, name := range []string{Etcd, APIServer, ControllerManager, Scheduler} {
		before := cp.PIDs()[name]
		if err := cp.Restart(within(t), name); err != nil {
			t.Fatal(err)
		}
		if after := cp.PIDs()[name]; after == 0 || after == before {
			t.Errorf("%s has pid %d after a restart, %d before", name, after, before)
		}
		if err := poll(within(t), serves); err != nil {
			t.Errorf("after the restart of %s: %v", name, err)
		}
	}
	if err := cp.Kill(Scheduler); err != nil {
		t.Fatal(err)
	}
	if pid, ok := cp.PIDs()[Scheduler]; ok {
		t.Errorf("the scheduler runs after Kill, pid %d", pid)
	}
	if err := cp.Err(); err != nil {
		t.Errorf("what was asked for is reported as a failure: %v", err)
	}
	if err := cp.Pause("kubelet"); err == nil {
		t.Error("a component that does not exist is paused")
	}
}
