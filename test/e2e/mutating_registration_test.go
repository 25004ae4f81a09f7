package e2e

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/test/controlplane"
)

const mutatingName = "before-istio.meshvakt.io"

// resourcesGuard is a guard of sidecar-resources alone.
func resourcesGuard() *v1alpha1.MeshGuard {
	g := v1alpha1.DefaultGuard()
	g.Spec.StrictMTLS, g.Spec.MeshMembership, g.Spec.NodePools = nil, nil, nil
	return g
}

// mutatingEntries returns the names of the entries, and an error when the
// configuration is not there.
func mutatingEntries(ctx context.Context, c client.Client) ([]string, error) {
	var config admissionregistrationv1.MutatingWebhookConfiguration
	if err := c.Get(ctx, client.ObjectKey{Name: mutatingName}, &config); err != nil {
		return nil, err
	}
	names := []string{}
	for i := range config.Webhooks {
		names = append(names, config.Webhooks[i].Name)
	}
	return names, nil
}

// guardEntry is where the entry of the only guard stands.
const guardEntry = 1

// mutating waits for the entry of the guard and returns the configuration.
func mutating(t *testing.T, c client.Client, guard string) *admissionregistrationv1.MutatingWebhookConfiguration {
	t.Helper()
	var config admissionregistrationv1.MutatingWebhookConfiguration
	eventually(t, 30*time.Second, func() error {
		if err := c.Get(t.Context(), client.ObjectKey{Name: mutatingName}, &config); err != nil {
			return err
		}
		if len(config.Webhooks) != 2 || config.Webhooks[0].Name != "own.meshvakt.io" || config.Webhooks[guardEntry].Name != guard+".guard.meshvakt.io" {
			return fmt.Errorf("entries %+v; want one for Meshvakt's own objects and one for MeshGuard %s", config.Webhooks, guard)
		}
		return nil
	})
	return &config
}

// calls returns how often the API server has called a mutating webhook and got an
// answer. It counts before it answers itself.
func calls(t *testing.T, webhook string) int {
	t.Helper()
	text, _, err := plane.Kubectl(t.Context(), controlplane.Admin, "", "get", "--raw", "/metrics")
	must(t, err)
	var sum int
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "apiserver_admission_webhook_request_total{") && strings.Contains(line, `code="200"`) &&
			strings.Contains(line, fmt.Sprintf("name=%q", webhook)) && strings.Contains(line, `type="admit"`) {
			var n int
			fields := strings.Fields(line)
			if _, err := fmt.Sscan(fields[len(fields)-1], &n); err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			sum += n
		}
	}
	return sum
}

// The API server asks about new pods of the namespaces that the guard selects, and
// about nothing else.
func TestMutatingIsAsked(t *testing.T) {
	start(t)
	guard(t, resourcesGuard())
	enforcing(t, "default")
	admin := clientFor(t, controlplane.Admin)
	config := mutating(t, admin, "default")
	w := config.Webhooks[guardEntry]
	if *w.FailurePolicy != admissionregistrationv1.Ignore || *w.ReinvocationPolicy != admissionregistrationv1.IfNeededReinvocationPolicy ||
		!strings.HasSuffix(*w.ClientConfig.URL, "/mutate") || len(w.ClientConfig.CABundle) == 0 {
		t.Errorf("entry %+v", w)
	}
	if validating := registered(t, admin).Webhooks[guardEntry]; fmt.Sprint(w.NamespaceSelector) != fmt.Sprint(validating.NamespaceSelector) {
		t.Errorf("selects %v; the validating entry %v", w.NamespaceSelector, validating.NamespaceSelector)
	}

	guarded, other := namespace(unique("asked"), true), namespace(unique("not-asked"), false)
	create(t, admin, guarded, other)
	for _, ns := range []string{guarded.Name, other.Name} {
		serviceAccount(t, ns)
	}
	before := calls(t, "default.guard.meshvakt.io")
	eventually(t, 10*time.Second, func() error { // the API server learns of the entry by a watch
		must(t, client.NewDryRunClient(admin).Create(t.Context(), pod(guarded.Name, nil)))
		if calls(t, "default.guard.meshvakt.io") == before {
			return errors.New("not asked yet")
		}
		return nil
	})
	before = calls(t, "default.guard.meshvakt.io")
	one := pod(other.Name, nil)
	create(t, admin, one)
	two := pod(guarded.Name, nil)
	create(t, admin, two)
	must(t, relabel(t.Context(), admin, two, "changed", "yes"))
	if n := calls(t, "default.guard.meshvakt.io") - before; n != 1 {
		t.Errorf("asked %d times about one new pod of the guarded namespace, another one and a change", n)
	}
}

// Whatever anybody does to the mutating configuration is put back.
func TestMutatingDriftIsRepaired(t *testing.T) {
	start(t)
	guard(t, resourcesGuard())
	enforcing(t, "default")
	admin := clientFor(t, controlplane.Admin)
	want := mutating(t, admin, "default").Webhooks[guardEntry]
	want.ClientConfig.CABundle = nil

	edit := func(f func(*admissionregistrationv1.MutatingWebhookConfiguration)) func(*admissionregistrationv1.MutatingWebhookConfiguration) error {
		return func(c *admissionregistrationv1.MutatingWebhookConfiguration) error {
			f(c)
			return admin.Update(t.Context(), c)
		}
	}
	fail, never := admissionregistrationv1.Fail, admissionregistrationv1.NeverReinvocationPolicy
	for name, break_ := range map[string]func(*admissionregistrationv1.MutatingWebhookConfiguration) error{
		"failure policy": edit(func(c *admissionregistrationv1.MutatingWebhookConfiguration) {
			c.Webhooks[guardEntry].FailurePolicy = &fail
		}),
		"reinvocation policy": edit(func(c *admissionregistrationv1.MutatingWebhookConfiguration) {
			c.Webhooks[guardEntry].ReinvocationPolicy = &never
		}),
		"object selector": edit(func(c *admissionregistrationv1.MutatingWebhookConfiguration) {
			c.Webhooks[guardEntry].ObjectSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"never": "there"}}
		}),
		"match condition": edit(func(c *admissionregistrationv1.MutatingWebhookConfiguration) {
			c.Webhooks[guardEntry].MatchConditions = []admissionregistrationv1.MatchCondition{{Name: "never", Expression: "false"}}
		}),
		"CA bundle": edit(func(c *admissionregistrationv1.MutatingWebhookConfiguration) {
			c.Webhooks[guardEntry].ClientConfig.CABundle = nil
		}),
		"foreign entry": edit(func(c *admissionregistrationv1.MutatingWebhookConfiguration) {
			extra := *c.Webhooks[guardEntry].DeepCopy()
			extra.Name = "foreign.example.com"
			c.Webhooks = append(c.Webhooks, extra)
		}),
		"entries removed": edit(func(c *admissionregistrationv1.MutatingWebhookConfiguration) { c.Webhooks = nil }),
		"deleted": func(c *admissionregistrationv1.MutatingWebhookConfiguration) error {
			return admin.Delete(t.Context(), c)
		},
	} {
		t.Run(name, func(t *testing.T) {
			eventually(t, 10*time.Second, func() error { return break_(mutating(t, admin, "default")) }) // a conflict is tried again
			eventually(t, 10*time.Second, func() error {
				var now admissionregistrationv1.MutatingWebhookConfiguration
				if err := admin.Get(t.Context(), client.ObjectKey{Name: mutatingName}, &now); err != nil {
					return err
				}
				if len(now.Webhooks) != 2 || len(now.Webhooks[guardEntry].ClientConfig.CABundle) == 0 {
					return fmt.Errorf("entries %+v; want two with a CA", now.Webhooks)
				}
				got := now.Webhooks[guardEntry]
				got.ClientConfig.CABundle = nil
				if got.String() != want.String() {
					return fmt.Errorf("entry %s\nwant  %s", got.String(), want.String())
				}
				return nil
			})
		})
	}
}

// Nothing is asked for guards that want no changes, and an existing configuration
// is emptied when changes are switched off.
func TestMutatingFollowsGuardsAndSwitch(t *testing.T) {
	r := start(t)
	admin := clientFor(t, controlplane.Admin)
	strict := defaultGuard(v1alpha1.OnMissingReject)
	strict.Name = "strict"
	guard(t, strict)
	enforcing(t, "strict")
	holds := func(want ...string) func() error {
		return func() error {
			names, err := mutatingEntries(t.Context(), admin)
			if err != nil || !slices.Equal(names, want) {
				return fmt.Errorf("entries %q, %v; want %q", names, err, want) //nolint:errorlint // may be nil
			}
			return nil
		}
	}
	noGuard := holds("own.meshvakt.io")
	eventually(t, 10*time.Second, noGuard)

	g := resourcesGuard()
	guard(t, g)
	mutating(t, admin, "default")
	must(t, deleteGuard(t.Context(), admin, g.Name))
	eventually(t, 10*time.Second, noGuard)

	guard(t, resourcesGuard())
	mutating(t, admin, "default")
	enforcing(t, "default") // the validating configuration comes second
	config := registered(t, admin)
	if !slices.ContainsFunc(config.Webhooks, func(w admissionregistrationv1.ValidatingWebhook) bool { return w.Name == "default.guard.meshvakt.io" }) {
		t.Error("the guard is not judged")
	}
	r.stop()
	start(t, "--mutation=false")
	eventually(t, 60*time.Second, holds()) // once the new replica leads
	if now := registered(t, admin); len(now.Webhooks) != len(config.Webhooks) {
		t.Errorf("%d validating entries without mutation; want %d", len(now.Webhooks), len(config.Webhooks))
	}
}
