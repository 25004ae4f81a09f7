package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/test/controlplane"
)

func registered(t testing.TB, c client.Client) *admissionregistrationv1.ValidatingWebhookConfiguration {
	t.Helper()
	var config admissionregistrationv1.ValidatingWebhookConfiguration
	must(t, c.Get(t.Context(), client.ObjectKey{Name: "meshvakt"}, &config))
	return &config
}

// Whatever anybody does to the webhook configuration is put back.
func TestDriftIsRepaired(t *testing.T) {
	start(t)
	guard(t, defaultGuard(v1alpha1.OnMissingReject))
	enforcing(t, "default")
	admin, dev := clientFor(t, controlplane.Admin), clientFor(t, controlplane.Developer)
	want := registered(t, admin).Webhooks
	ignore := admissionregistrationv1.Ignore

	for name, break_ := range map[string]func(*admissionregistrationv1.ValidatingWebhookConfiguration) error{
		"failure policy": func(c *admissionregistrationv1.ValidatingWebhookConfiguration) error {
			for i := range c.Webhooks {
				c.Webhooks[i].FailurePolicy = &ignore
			}
			return admin.Update(t.Context(), c)
		},
		"object selector": func(c *admissionregistrationv1.ValidatingWebhookConfiguration) error {
			c.Webhooks[0].ObjectSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"never": "there"}}
			return admin.Update(t.Context(), c)
		},
		"match condition": func(c *admissionregistrationv1.ValidatingWebhookConfiguration) error {
			for i := range c.Webhooks {
				c.Webhooks[i].MatchConditions = append(c.Webhooks[i].MatchConditions, admissionregistrationv1.MatchCondition{Name: "never", Expression: "false"})
			}
			return admin.Update(t.Context(), c)
		},
		"rules": func(c *admissionregistrationv1.ValidatingWebhookConfiguration) error {
			c.Webhooks[0].Rules = c.Webhooks[0].Rules[:1]
			return admin.Update(t.Context(), c)
		},
		"CA bundle": func(c *admissionregistrationv1.ValidatingWebhookConfiguration) error {
			for i := range c.Webhooks {
				c.Webhooks[i].ClientConfig.CABundle = nil
			}
			return admin.Update(t.Context(), c)
		},
		"foreign entry": func(c *admissionregistrationv1.ValidatingWebhookConfiguration) error {
			extra := *c.Webhooks[0].DeepCopy()
			extra.Name = "foreign.example.com"
			c.Webhooks = append(c.Webhooks, extra)
			return admin.Update(t.Context(), c)
		},
		"entries removed": func(c *admissionregistrationv1.ValidatingWebhookConfiguration) error {
			c.Webhooks = nil
			return admin.Update(t.Context(), c)
		},
		"deleted": func(c *admissionregistrationv1.ValidatingWebhookConfiguration) error {
			return admin.Delete(t.Context(), c)
		},
	} {
		t.Run(name, func(t *testing.T) {
			eventually(t, 10*time.Second, func() error { return break_(registered(t, admin)) }) // a conflict is tried again
			eventually(t, 10*time.Second, func() error {
				var now admissionregistrationv1.ValidatingWebhookConfiguration
				if err := admin.Get(t.Context(), client.ObjectKey{Name: "meshvakt"}, &now); err != nil {
					return err
				}
				if len(now.Webhooks) != len(want) {
					return fmt.Errorf("%d entries; want %d", len(now.Webhooks), len(want))
				}
				for i := range want {
					a, b := want[i].DeepCopy(), now.Webhooks[i].DeepCopy()
					a.ClientConfig.CABundle, b.ClientConfig.CABundle = nil, nil
					if fmt.Sprint(a) != fmt.Sprint(b) || len(now.Webhooks[i].ClientConfig.CABundle) == 0 {
						return fmt.Errorf("entry %d is %+v; want %+v", i, b, a)
					}
				}
				return nil
			})
		})
	}
	eventually(t, 10*time.Second, func() error {
		name := unique("after")
		err := dev.Create(t.Context(), namespace(name, true))
		if err == nil {
			remove(t, namespace(name, true))
			return errors.New("admitted")
		}
		if !strings.Contains(err.Error(), "MV101") {
			return err
		}
		return nil
	})
}

// Guards and the mesh's root namespace decide what the API server asks about.
func TestRegistrationFollowsGuards(t *testing.T) {
	start(t)
	admin := clientFor(t, controlplane.Admin)
	g := v1alpha1.DefaultGuard()
	g.Name = "by-environment"
	g.Spec.NamespaceSelector = metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
		{Key: "environment", Operator: metav1.LabelSelectorOpIn, Values: []string{"prod", "production"}},
		{Key: "sandbox", Operator: metav1.LabelSelectorOpDoesNotExist},
	}}
	guard(t, g)
	enforcing(t, g.Name)

	labelled := func(labels map[string]string) *corev1.Namespace {
		ns := namespace(unique("by-env"), false)
		ns.Labels = labels
		return ns
	}
	dryRun := client.NewDryRunClient(clientFor(t, controlplane.Developer))
	refused(t, dryRun.Create(t.Context(), labelled(map[string]string{"environment": "prod"})), "by-environment")
	must(t, dryRun.Create(t.Context(), labelled(map[string]string{"environment": "prod", "sandbox": ""})))
	must(t, dryRun.Create(t.Context(), labelled(map[string]string{"environment": "test"})))
	must(t, dryRun.Create(t.Context(), labelled(nil)))

	// Istio is reconfigured to another root namespace.
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: "istio"}, Data: map[string]string{"mesh": "rootNamespace: mesh-config\n"}}
	create(t, admin, namespace("mesh-config", false), cm, policy("mesh-config", "default", "STRICT"))
	eventually(t, 10*time.Second, func() error {
		for _, w := range registered(t, admin).Webhooks {
			if w.Name == "root.mesh.meshvakt.io" && w.NamespaceSelector.MatchExpressions[0].Values[0] == "mesh-config" {
				return nil
			}
		}
		return errors.New("the root entry does not select mesh-config")
	})
	prod := labelled(map[string]string{"environment": "prod"})
	create(t, admin, prod)
	eventually(t, 10*time.Second, func() error { // the API server learns of the new entry by a watch
		err := client.NewDryRunClient(admin).Delete(t.Context(), policy("mesh-config", "default", "STRICT"))
		if err == nil {
			return errors.New("not asked yet")
		}
		refused(t, err, prod.Name)
		return nil
	})
}

// The CA is replaced while the API server keeps asking: no request may fail.
func TestCARotationDropsNothing(t *testing.T) {
	r := start(t)
	guard(t, defaultGuard(v1alpha1.OnMissingReject))
	enforcing(t, "default")
	admin := clientFor(t, controlplane.Admin)
	before := registered(t, admin).Webhooks[0].ClientConfig.CABundle

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var asked, failed atomic.Int64
	var firstError atomic.Value
	done := make(chan struct{})
	go func() {
		defer close(done)
		dryRun := client.NewDryRunClient(clientFor(t, controlplane.Developer))
		for ctx.Err() == nil {
			err := dryRun.Create(ctx, namespace(unique("rotate"), true))
			asked.Add(1)
			if ctx.Err() == nil && (err == nil || !strings.Contains(err.Error(), "MV101")) {
				failed.Add(1)
				firstError.CompareAndSwap(nil, fmt.Sprint(err))
			}
		}
	}()

	old := leaf(t, r)
	must(t, admin.Delete(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: ownNamespace, Name: "meshvakt-ca"}}))
	eventually(t, 60*time.Second, func() error {
		if leaf(t, r).Equal(old) {
			return errors.New("the old certificate is still served")
		}
		return nil
	})
	after := asked.Load()
	eventually(t, 30*time.Second, func() error {
		if asked.Load() < after+20 {
			return fmt.Errorf("only %d requests since", asked.Load()-after)
		}
		return nil
	})
	stop()
	<-done
	if n := failed.Load(); n > 0 {
		t.Errorf("%d of %d requests failed, the first with %v", n, asked.Load(), firstError.Load())
	}
	bundle := registered(t, admin).Webhooks[0].ClientConfig.CABundle
	if !bytes.Contains(bundle, bytes.TrimSpace(before)) || bytes.Equal(bundle, before) {
		t.Error("the bundle does not hold both the old and the new CA")
	}
	t.Logf("%d requests during the rotation, none failed", asked.Load())
}

// leaf returns the certificate that the replica presents.
func leaf(t testing.TB, r *replica) *x509.Certificate {
	t.Helper()
	state, err := handshake(r.admission, &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // looks, trusts nothing
	must(t, err)
	return state.PeerCertificates[0]
}

func TestTLSVersion(t *testing.T) {
	r := start(t)
	if _, err := handshake(r.admission, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}); err == nil {
		t.Error("TLS 1.2 is accepted by default")
	}
	older := start(t, "--tls-min-version", "1.2")
	if state, err := handshake(older.admission, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}); err != nil || state.Version != tls.VersionTLS12 {
		t.Errorf("TLS 1.2 with --tls-min-version 1.2: %v %v", state.Version, err)
	}
}

// TestGuardMadeAnew: the entry of a guard that was deleted is about to go, and says nothing about one that was made anew
// under its name at once.
func TestGuardMadeAnew(t *testing.T) {
	start(t)
	admin := clientFor(t, controlplane.Admin)
	dryRun := client.NewDryRunClient(clientFor(t, controlplane.Developer))
	made := func() *v1alpha1.MeshGuard {
		g := defaultGuard(v1alpha1.OnMissingReject)
		g.Annotations = map[string]string{v1alpha1.ChangeReasonAnnotation: "it is made anew"} // so that nothing but the deletion comes between
		return g
	}
	guard(t, made())
	enforcing(t, "default")
	for i := range 30 {
		must(t, admin.Delete(t.Context(), guardObject("default")))
		must(t, admin.Create(t.Context(), made()))
		enforcing(t, "default")
		for range 20 { // nor in the moment after
			if err := dryRun.Create(t.Context(), namespace(unique("anew"), true)); err == nil {
				t.Fatalf("guard %d is enforcing, and a namespace without a policy was let pass", i)
			}
		}
	}
}

// After SIGTERM, reviews are answered until the drain delay is over.
func TestDrain(t *testing.T) {
	// The delay outlasts what is asked in it, also where a machine stands still for some seconds.
	r := start(t, "--drain-delay", "15s")
	guard(t, defaultGuard(v1alpha1.OnMissingReject))
	enforcing(t, "default")
	dryRun := client.NewDryRunClient(clientFor(t, controlplane.Developer))
	must(t, r.cmd.Process.Signal(syscall.SIGTERM))
	eventually(t, 5*time.Second, func() error {
		body, err := get(t.Context(), "http://"+r.operations+"/readyz")
		if err == nil {
			return errors.New("still ready: " + body)
		}
		return nil
	})
	for range 10 {
		refused(t, dryRun.Create(t.Context(), namespace(unique("drain"), true)))
	}
	select {
	case <-r.exited:
	case <-time.After(60 * time.Second): // the delay, the default of --shutdown-timeout, and as much for all else
		t.Fatal("still running a minute after SIGTERM")
	}
	if r.exitErr != nil {
		t.Errorf("exit: %v", r.exitErr)
	}
	if err := dryRun.Create(t.Context(), namespace(unique("drained"), true)); err == nil || apierrors.IsForbidden(err) {
		t.Errorf("got %v; want a failed call under failurePolicy Fail", err)
	}
}

// The guard's own schema refuses nonsense before Meshvakt ever sees it.
func TestGuardValidation(t *testing.T) {
	dryRun := client.NewDryRunClient(clientFor(t, controlplane.Admin))
	for name, c := range map[string]struct {
		edit func(*v1alpha1.MeshGuard)
		want string
	}{
		"no policy block": {func(g *v1alpha1.MeshGuard) {
			g.Spec.StrictMTLS, g.Spec.MeshMembership, g.Spec.SidecarResources, g.Spec.NodePools = nil, nil, nil, nil
		}, "at least one policy block"},
		"deny and warn": {func(g *v1alpha1.MeshGuard) {
			g.Spec.StrictMTLS.ValidationActions = []v1alpha1.ValidationAction{v1alpha1.Deny, v1alpha1.Warn}
		}, "Deny and Warn must not be used together"},
		"unknown action": {func(g *v1alpha1.MeshGuard) {
			g.Spec.StrictMTLS.ValidationActions = []v1alpha1.ValidationAction{"Explode"}
		}, "Unsupported value"},
		"unknown on missing": {func(g *v1alpha1.MeshGuard) { g.Spec.StrictMTLS.OnMissing = "Shrug" }, "Unsupported value"},
		"unknown operator": {func(g *v1alpha1.MeshGuard) {
			g.Spec.NamespaceSelector.MatchExpressions = []metav1.LabelSelectorRequirement{{Key: "a", Operator: "Gt", Values: []string{"1"}}}
		}, "operator must be"},
		"values missing": {func(g *v1alpha1.MeshGuard) {
			g.Spec.NamespaceSelector.MatchExpressions = []metav1.LabelSelectorRequirement{{Key: "a", Operator: "In"}}
		}, "values must be given"},
		"request of nothing": {func(g *v1alpha1.MeshGuard) {
			g.Spec.SidecarResources.Requests.CPU = resource.NewQuantity(0, resource.DecimalSI)
		}, "must be a quantity greater than 0, such as 100m"},
		"negative limit": {func(g *v1alpha1.MeshGuard) {
			g.Spec.SidecarResources.Limits.Memory = resource.NewQuantity(-1, resource.BinarySI)
		}, "must be a quantity greater than 0, such as 1024Mi"},
		"request above limit": {func(g *v1alpha1.MeshGuard) {
			g.Spec.SidecarResources.Requests.CPU = resource.NewQuantity(3, resource.DecimalSI)
		}, "requests.cpu must not be greater than limits.cpu"},
	} {
		t.Run(name, func(t *testing.T) {
			g := v1alpha1.DefaultGuard()
			g.Name = "nonsense"
			c.edit(g)
			err := dryRun.Create(t.Context(), g)
			if !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v; want it to be invalid for %q", err, c.want)
			}
		})
	}
}
