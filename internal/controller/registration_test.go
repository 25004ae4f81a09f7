package controller

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"slices"
	"testing"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/keeper"
	"github.com/meshvakt/meshvakt/policies"
)

var today = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func newCA(t *testing.T, serial int64) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "test"},
		NotBefore: today.Add(-time.Hour), NotAfter: today.Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func registrar(t *testing.T, s *setting, ca []byte) *Registrar {
	t.Helper()
	return &Registrar{
		Client: s.client, Live: s.client, Source: s.source,
		CA:       func(context.Context) ([]byte, error) { return ca, nil },
		Ready:    func() error { return nil },
		Endpoint: Endpoint{ServiceNamespace: "meshvakt-system", ServiceName: "meshvakt", ServicePort: 443},
		Policies: policies.All(), Timeout: 5 * time.Second, Repairs: new(repairs),
		Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return today },
	}
}

func stored(t *testing.T, s *setting) *admissionregistrationv1.ValidatingWebhookConfiguration {
	t.Helper()
	var c admissionregistrationv1.ValidatingWebhookConfiguration
	if err := s.client.Get(t.Context(), client.ObjectKey{Name: WebhookName}, &c); err != nil {
		t.Fatal(err)
	}
	return &c
}

func TestRegistrarWaits(t *testing.T) {
	for name, c := range map[string]struct {
		exists bool
		edit   func(*Registrar)
		writes bool
	}{
		"it registers once it is ready": {false, func(*Registrar) {}, true},
		"it waits for a CA": {false, func(r *Registrar) {
			r.CA = func(context.Context) ([]byte, error) { return nil, errors.New("none yet") }
		}, false},
		"it waits until reviews are answered":        {false, func(r *Registrar) { r.Ready = func() error { return errors.New("starting") } }, false},
		"it keeps an existing one up to date anyway": {true, func(r *Registrar) { r.Ready = func() error { return errors.New("starting") } }, true},
		"it leaves an existing one alone without a CA": {true, func(r *Registrar) {
			r.CA = func(context.Context) ([]byte, error) { return nil, errors.New("none yet") }
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			objects := []client.Object{guardWith("default", guardedSelector(), v1alpha1.OnMissingReject)}
			if c.exists {
				objects = append(objects, webhookWith())
			}
			s := newSetting(t, interceptor.Funcs{}, objects...)
			r := registrar(t, s, newCA(t, 1))
			c.edit(r)
			result, err := r.Reconcile(t.Context(), request(WebhookName))
			if err != nil {
				t.Fatal(err)
			}
			if want := map[bool]time.Duration{true: resync, false: retryAfter}[c.writes]; result.RequeueAfter != want {
				t.Errorf("looks again after %s; want %s", result.RequeueAfter, want)
			}
			var got admissionregistrationv1.ValidatingWebhookConfiguration
			if err := s.client.Get(t.Context(), client.ObjectKey{Name: WebhookName}, &got); client.IgnoreNotFound(err) != nil {
				t.Fatal(err)
			} else if !c.exists && apierrors.IsNotFound(err) == c.writes {
				t.Errorf("registered: %v; want %t", err, c.writes)
			}
			if registered := len(got.Webhooks) > 0; registered != c.writes {
				t.Errorf("%d entries; want some: %t", len(got.Webhooks), c.writes)
			}
		})
	}
}

// The old CA stays until no replica serves a certificate of it.
func TestRegistrarKeepsTheOldCA(t *testing.T) {
	s := newSetting(t, interceptor.Funcs{}, guardWith("default", guardedSelector(), v1alpha1.OnMissingReject))
	first, second := newCA(t, 1), newCA(t, 2)
	for _, ca := range [][]byte{first, second} {
		if _, err := registrar(t, s, ca).Reconcile(t.Context(), request(WebhookName)); err != nil {
			t.Fatal(err)
		}
	}
	bundle := PublishedBundle(stored(t, s))
	if !bytes.HasPrefix(bundle, bytes.TrimSpace(second)) || !bytes.Contains(bundle, bytes.TrimSpace(first)) {
		t.Errorf("the bundle is\n%s", bundle)
	}
	if PublishedBundle(webhookWith()) != nil || PublishedBundle(webhookWith("x")) != nil {
		t.Error("a bundle is found where none is")
	}
}

// Server-side apply leaves alone what others add to lists.
func TestRegistrarRepairs(t *testing.T) {
	ignore := admissionregistrationv1.Ignore
	for name, drift := range map[string]func(*admissionregistrationv1.ValidatingWebhookConfiguration){
		"an entry is added": func(c *admissionregistrationv1.ValidatingWebhookConfiguration) {
			extra := *c.Webhooks[0].DeepCopy()
			extra.Name = "foreign.example.com"
			c.Webhooks = append(c.Webhooks, extra)
		},
		"a condition is added": func(c *admissionregistrationv1.ValidatingWebhookConfiguration) {
			c.Webhooks[0].MatchConditions = append(c.Webhooks[0].MatchConditions, admissionregistrationv1.MatchCondition{Name: "never", Expression: "false"})
		},
		"an entry is weakened": func(c *admissionregistrationv1.ValidatingWebhookConfiguration) { c.Webhooks[0].FailurePolicy = &ignore },
		"an object selector is set": func(c *admissionregistrationv1.ValidatingWebhookConfiguration) {
			c.Webhooks[0].ObjectSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"never": "there"}}
		},
		"all entries are removed": func(c *admissionregistrationv1.ValidatingWebhookConfiguration) { c.Webhooks = nil },
	} {
		t.Run(name, func(t *testing.T) {
			s := newSetting(t, interceptor.Funcs{}, guardWith("default", guardedSelector(), v1alpha1.OnMissingReject))
			r := registrar(t, s, newCA(t, 1))
			if _, err := r.Reconcile(t.Context(), request(WebhookName)); err != nil {
				t.Fatal(err)
			}
			config := stored(t, s)
			want := config.DeepCopy().Webhooks
			drift(config)
			if err := s.client.Update(t.Context(), config, client.FieldOwner("somebody")); err != nil {
				t.Fatal(err)
			}
			if _, err := r.Reconcile(t.Context(), request(WebhookName)); err != nil {
				t.Fatal(err)
			}
			got := stored(t, s).Webhooks
			if !slices.Equal(names(got), names(want)) {
				t.Fatalf("entries %q; want %q", names(got), names(want))
			}
			for i := range want {
				got[i].ClientConfig.CABundle, want[i].ClientConfig.CABundle = nil, nil
				if got[i].String() != want[i].String() {
					t.Errorf("entry %s is\n%s\nwant\n%s", want[i].Name, got[i].String(), want[i].String())
				}
			}
		})
	}
}

type repairs []string

func (r *repairs) Repaired(_ context.Context, o client.Object, kind string, action keeper.Action, _ string) {
	*r = append(*r, fmt.Sprintf("%s %s %s", action, kind, o.GetName()))
}

func (r *repairs) Unrepaired(_ context.Context, o client.Object, kind, _ string) {
	*r = append(*r, fmt.Sprintf("unrepaired %s %s", kind, o.GetName()))
}

func (r *repairs) AsInstalled(client.Object, string) {}

// What somebody else has done is told of; what guards and certificates demand anew, and
// what was there before this replica began to lead, is not.
func TestRegistrarTellsOfRepairs(t *testing.T) {
	s := newSetting(t, interceptor.Funcs{}, guardWith("default", guardedSelector(), v1alpha1.OnMissingReject), webhookWith("of an older version"))
	r := registrar(t, s, newCA(t, 1))
	r.Mutation = true
	var told repairs
	r.Repairs = &told
	reconcile := func(want ...string) {
		t.Helper()
		told = nil
		if _, err := r.Reconcile(t.Context(), request(WebhookName)); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(told, want) {
			t.Errorf("told of %q; want %q", told, want)
		}
	}
	reconcile()
	reconcile()
	second := newCA(t, 2)
	r.CA = func(context.Context) ([]byte, error) { return second, nil }
	reconcile()
	config := stored(t, s)
	config.Webhooks = config.Webhooks[:1]
	if err := s.client.Update(t.Context(), config, client.FieldOwner("somebody")); err != nil {
		t.Fatal(err)
	}
	reconcile("changed ValidatingWebhookConfiguration " + WebhookName)
	reconcile()
	if err := s.client.Delete(t.Context(), stored(t, s)); err != nil {
		t.Fatal(err)
	}
	if err := s.client.Delete(t.Context(), &admissionregistrationv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: MutatingName}}); err != nil {
		t.Fatal(err)
	}
	reconcile("created MutatingWebhookConfiguration "+MutatingName, "created ValidatingWebhookConfiguration "+WebhookName)

	down := errors.New("down")
	r.Client = interceptor.NewClient(s.client.(client.WithWatch), interceptor.Funcs{
		Apply: func(context.Context, client.WithWatch, runtime.ApplyConfiguration, ...client.ApplyOption) error {
			return down
		},
	})
	if err := s.client.Delete(t.Context(), &admissionregistrationv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: MutatingName}}); err != nil {
		t.Fatal(err)
	}
	told = nil
	if _, err := r.Reconcile(t.Context(), request(WebhookName)); !errors.Is(err, down) || !slices.Equal(told, []string{"unrepaired MutatingWebhookConfiguration " + MutatingName}) {
		t.Errorf("got %v, told of %q", err, told)
	}
}

// One guard that cannot be read must not keep the others from being registered.
func TestRegistrarPassesOverAnUnreadableGuard(t *testing.T) {
	broken := guardWith("broken", metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "a", Operator: "Gt"}}}, v1alpha1.OnMissingReject)
	s := newSetting(t, interceptor.Funcs{}, broken, guardWith("default", guardedSelector(), v1alpha1.OnMissingReject))
	if _, err := registrar(t, s, newCA(t, 1)).Reconcile(t.Context(), request(WebhookName)); err != nil {
		t.Fatal(err)
	}
	if got := names(stored(t, s).Webhooks); !slices.Contains(got, "default.guard.meshvakt.io") || slices.Contains(got, "broken.guard.meshvakt.io") {
		t.Errorf("entries %q", got)
	}
}

func TestRegistrarErrors(t *testing.T) {
	down := errors.New("down")
	for name, funcs := range map[string]interceptor.Funcs{
		"the configuration cannot be read": {
			Get: func(context.Context, client.WithWatch, client.ObjectKey, client.Object, ...client.GetOption) error {
				return down
			},
		},
		"the configuration cannot be applied": {
			Apply: func(context.Context, client.WithWatch, runtime.ApplyConfiguration, ...client.ApplyOption) error {
				return down
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSetting(t, funcs, guardWith("default", guardedSelector(), v1alpha1.OnMissingReject))
			if _, err := registrar(t, s, newCA(t, 1)).Reconcile(t.Context(), request(WebhookName)); !errors.Is(err, down) {
				t.Errorf("got %v", err)
			}
		})
	}
}
