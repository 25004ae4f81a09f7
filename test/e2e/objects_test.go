package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/rand"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/objects"
	"github.com/meshvakt/meshvakt/test/controlplane"
)

// defaultGuard is the guard of the chart, with the given onMissing.
func defaultGuard(onMissing v1alpha1.OnMissing) *v1alpha1.MeshGuard {
	g := v1alpha1.DefaultGuard()
	g.Spec.MeshMembership, g.Spec.SidecarResources, g.Spec.NodePools = nil, nil, nil // of strict-mtls alone
	g.Spec.StrictMTLS.OnMissing = onMissing
	return g
}

// unique returns a name that no other test uses.
func unique(prefix string) string { return prefix + "-" + rand.String(5) }

func namespace(name string, guarded bool) *corev1.Namespace {
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{}}}
	if guarded {
		ns.Labels[v1alpha1.GuardedLabel] = v1alpha1.GuardedValue
	}
	return ns
}

func policy(namespace, name, mode string) *objects.PeerAuthentication {
	return &objects.PeerAuthentication{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec:       objects.PeerAuthenticationSpec{MTLS: &objects.MutualTLS{Mode: mode}},
	}
}

func pod(namespace string, labels map[string]string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, GenerateName: "app-", Labels: labels},
		Spec: corev1.PodSpec{
			ServiceAccountName:           "default",
			AutomountServiceAccountToken: new(bool),
			Containers:                   []corev1.Container{{Name: "app", Image: "registry.example/app:1"}},
		},
	}
}

// create creates the objects and deletes them with the test.
func create(t testing.TB, c client.Client, list ...client.Object) {
	t.Helper()
	for _, o := range list {
		if err := c.Create(t.Context(), o); err != nil {
			t.Fatalf("create %T %s/%s: %v", o, o.GetNamespace(), o.GetName(), err)
		}
		remove(t, o)
	}
}

// remove deletes the object when the test is over. What a guard still holds is
// taken from it first.
func remove(t testing.TB, o client.Object) {
	t.Helper()
	admin := clientFor(t, controlplane.Admin)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		for {
			err := admin.Delete(ctx, o)
			if client.IgnoreNotFound(err) == nil {
				return
			}
			var guards v1alpha1.MeshGuardList
			if err := admin.List(ctx, &guards); err != nil {
				t.Errorf("list MeshGuards: %v", err)
			}
			for i := range guards.Items {
				if err := deleteGuard(ctx, admin, guards.Items[i].Name); err != nil {
					t.Errorf("clean up MeshGuard: %v", err)
				}
			}
			select {
			case <-ctx.Done():
				t.Errorf("clean up %T %s/%s: %v", o, o.GetNamespace(), o.GetName(), err)
				return
			case <-time.After(100 * time.Millisecond):
			}
		}
	})
}

// serviceAccount waits for the ServiceAccount that pods of a namespace need.
func serviceAccount(t testing.TB, namespace string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := plane.WaitNamespace(ctx, namespace); err != nil {
		t.Fatal(err)
	}
}

// refused demands that Meshvakt refused the request, and returns what the user is
// told.
func refused(t testing.TB, err error, contains ...string) string {
	t.Helper()
	var status apierrors.APIStatus
	if !errors.As(err, &status) || status.Status().Code != 403 || !strings.Contains(err.Error(), "meshvakt.io\" denied the request: violates MeshGuard") {
		t.Fatalf("got %v; want a refusal by Meshvakt", err)
	}
	for _, c := range contains {
		if !strings.Contains(err.Error(), c) {
			t.Errorf("the message lacks %q:\n%s", c, err)
		}
	}
	details := status.Status().Details
	if details == nil || len(details.Causes) == 0 {
		t.Errorf("the refusal has no causes: %+v", status.Status())
		return err.Error()
	}
	for _, c := range details.Causes {
		if c.Message == "" || !strings.Contains(c.Message, "[MV") {
			t.Errorf("incomplete cause: %+v", c)
		}
	}
	return err.Error()
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// relabel sets or, with an empty value, removes a label.
func relabel(ctx context.Context, c client.Client, o client.Object, key, value string) error {
	quoted := "null"
	if value != "" {
		quoted = fmt.Sprintf("%q", value)
	}
	patch := fmt.Sprintf(`{"metadata":{"labels":{%q:%s}}}`, key, quoted)
	return c.Patch(ctx, o, client.RawPatch("application/merge-patch+json", []byte(patch)))
}
