package controller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	acadmission "k8s.io/client-go/applyconfigurations/admissionregistration/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/cluster"
	"github.com/meshvakt/meshvakt/policies"
	"github.com/meshvakt/meshvakt/policies/facts"
	"github.com/meshvakt/meshvakt/webhook/servingcert"
)

// FieldOwner is the field manager of everything Meshvakt applies.
const FieldOwner = client.FieldOwner("meshvakt")

// CASource returns the CA certificates (PEM) that sign the serving certificates,
// and an error while there are none yet.
type CASource func(context.Context) ([]byte, error)

// Registrar keeps the two webhook configurations as policies and guards demand them,
// and puts back whatever else changes them.
type Registrar struct {
	Client client.Client // reads from the cache
	Live   client.Reader
	Source *cluster.Source
	CA     CASource
	// Ready returns nil once this replica answers reviews. A webhook that nobody
	// answers is not registered in the first place; one that is registered is kept
	// up to date whatever this replica can do, since its serving certificate may
	// be waiting for just that.
	Ready    func() error
	Endpoint Endpoint
	Policies []policies.Policy
	Timeout  time.Duration
	// Mutation says whether objects are changed, and not just judged.
	Mutation bool
	// Repairs is told of configurations that somebody else had changed or deleted.
	Repairs Repairs
	Log     *slog.Logger
	Now     func() time.Time

	applied inPlace
}

// retryAfter is how soon to look again for what a registration waits for.
const retryAfter = 200 * time.Millisecond

// resync is how often the registration is gone over without an event: a CA in a
// file changes without one.
const resync = time.Minute

// Reconcile applies the configurations.
func (r *Registrar) Reconcile(ctx context.Context, _ reconcile.Request) (reconcile.Result, error) {
	if !r.Source.Synced() {
		return reconcile.Result{RequeueAfter: retryAfter}, nil
	}
	ca, err := r.CA(ctx)
	if err != nil {
		r.Log.DebugContext(ctx, "waiting for the CA of the serving certificate", "reason", err)
		return reconcile.Result{RequeueAfter: retryAfter}, nil
	}
	var existing admissionregistrationv1.ValidatingWebhookConfiguration
	switch err := r.Live.Get(ctx, client.ObjectKey{Name: WebhookName}, &existing); {
	case apierrors.IsNotFound(err):
		if r.Ready() != nil {
			return reconcile.Result{RequeueAfter: retryAfter}, nil //nolint:nilerr // that nothing is registered yet is no failure
		}
	case err != nil:
		return reconcile.Result{}, fmt.Errorf("get ValidatingWebhookConfiguration: %w", err)
	}
	bundle, err := servingcert.MergeBundle(PublishedBundle(&existing), ca, r.Now())
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("merge the CA bundle: %w", err)
	}
	registration, err := r.registration(ctx, bundle)
	if err != nil {
		return reconcile.Result{}, err
	}
	// The mutating one first: that the bundle has been published is read off the other.
	// That one is put in place all the same where this fails, for it is the one that
	// refuses.
	errMutating := r.applyMutating(ctx, registration.BuildMutating())
	errValidating := r.applyValidating(ctx, registration.Build())
	return reconcile.Result{RequeueAfter: resync}, errors.Join(errMutating, errValidating)
}

func (r *Registrar) registration(ctx context.Context, bundle []byte) (*Registration, error) {
	var guards v1alpha1.MeshGuardList
	if err := r.Client.List(ctx, &guards); err != nil {
		return nil, fmt.Errorf("list MeshGuards: %w", err)
	}
	readable := guards.Items[:0]
	for i := range guards.Items {
		// One guard that the API server should have refused must not keep the
		// others from being registered.
		if _, err := facts.NewGuard(&guards.Items[i]); err != nil {
			r.Log.ErrorContext(ctx, "cannot register a MeshGuard", "guard", guards.Items[i].Name, "error", err)
			continue
		}
		readable = append(readable, guards.Items[i])
	}
	state, err := r.Source.Cached("")
	if err != nil {
		return nil, fmt.Errorf("read the mesh settings: %w", err)
	}
	return &Registration{
		Endpoint:       r.Endpoint,
		CABundle:       bundle,
		Policies:       r.Policies,
		Guards:         readable,
		RootNamespaces: state.RootNamespaces(),
		IstioNamespace: r.Source.IstioNamespace(),
		Unguardable:    state.Unguardable,
		TimeoutSeconds: int32(r.Timeout / time.Second),
		Mutation:       r.Mutation,
	}, nil
}

func (r *Registrar) applyValidating(ctx context.Context, config *acadmission.ValidatingWebhookConfigurationApplyConfiguration) error {
	want, err := webhooksOf[admissionregistrationv1.ValidatingWebhook](config) // before it is applied, which writes the answer into config
	if err != nil {
		return err
	}
	var applied admissionregistrationv1.ValidatingWebhookConfiguration
	return apply(ctx, r, "ValidatingWebhookConfiguration", WebhookName, config, want, &applied, &applied.Webhooks)
}

// applyMutating does not create a configuration in which nothing is.
func (r *Registrar) applyMutating(ctx context.Context, config *acadmission.MutatingWebhookConfigurationApplyConfiguration) error {
	want, err := webhooksOf[admissionregistrationv1.MutatingWebhook](config)
	if err != nil {
		return err
	}
	var applied admissionregistrationv1.MutatingWebhookConfiguration
	if len(want) == 0 {
		switch err := r.Live.Get(ctx, client.ObjectKey{Name: MutatingName}, &applied); {
		case apierrors.IsNotFound(err):
			return nil
		case err != nil:
			return fmt.Errorf("get MutatingWebhookConfiguration: %w", err)
		}
	}
	return apply(ctx, r, "MutatingWebhookConfiguration", MutatingName, config, want, &applied, &applied.Webhooks)
}

// apply puts a webhook configuration in place. webhooks is where its entries are once
// it has been read into found.
func apply[W any](ctx context.Context, r *Registrar, kind, name string, config runtime.ApplyConfiguration, want []W, found client.Object, webhooks *[]W) error {
	if r.applied == nil {
		r.applied = inPlace{}
	}
	err := r.Live.Get(ctx, client.ObjectKey{Name: name}, found)
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("get webhook configuration %s: %w", name, err)
	}
	harm := r.applied.harm(name, err == nil, *webhooks)
	if err := place(ctx, r, name, config, want, found, webhooks); err != nil {
		if harm != "" {
			found.SetName(name)
			r.Repairs.Unrepaired(ctx, found, kind, "it "+harm.Harm()+", and cannot be put back")
		}
		return err
	}
	r.applied.settle(ctx, r.Repairs, found, kind, want, harm)
	return nil
}

// place applies a configuration. Apply leaves alone what others have added to lists:
// entries, or conditions that an entry must meet. Whatever still differs is replaced.
func place[W any](ctx context.Context, r *Registrar, name string, config runtime.ApplyConfiguration, want []W, found client.Object, webhooks *[]W) error {
	if err := r.Client.Apply(ctx, config, FieldOwner, client.ForceOwnership); err != nil {
		return fmt.Errorf("apply webhook configuration %s: %w", name, err)
	}
	if err := r.Live.Get(ctx, client.ObjectKey{Name: name}, found); err != nil {
		return fmt.Errorf("get webhook configuration %s: %w", name, err)
	}
	if equality.Semantic.DeepEqual(want, *webhooks) {
		return nil
	}
	r.Log.WarnContext(ctx, "replacing what others have added to the webhook configuration", "name", name)
	*webhooks = want
	if err := r.Client.Update(ctx, found, FieldOwner); err != nil {
		return fmt.Errorf("replace webhook configuration %s: %w", name, err)
	}
	return nil
}

// webhooksOf returns the entries of a configuration as the API server stores them.
func webhooksOf[W any](config any) ([]W, error) {
	text, err := json.Marshal(config)
	if err != nil {
		return nil, fmt.Errorf("encode webhook configuration: %w", err)
	}
	var typed struct {
		Webhooks []W `json:"webhooks"`
	}
	if err := json.Unmarshal(text, &typed); err != nil {
		return nil, fmt.Errorf("decode webhook configuration: %w", err)
	}
	return typed.Webhooks, nil
}

// PublishedBundle returns the CA bundle of a webhook configuration: that of its
// first entry, for all are written together. nil when there is none.
func PublishedBundle(c *admissionregistrationv1.ValidatingWebhookConfiguration) []byte {
	if len(c.Webhooks) == 0 || len(c.Webhooks[0].ClientConfig.CABundle) == 0 {
		return nil
	}
	return c.Webhooks[0].ClientConfig.CABundle
}
