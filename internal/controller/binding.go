package controller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime/schema"
	acadmission "k8s.io/client-go/applyconfigurations/admissionregistration/v1"
	acmeta "k8s.io/client-go/applyconfigurations/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/cluster"
	"github.com/meshvakt/meshvakt/policies"
	"github.com/meshvakt/meshvakt/policies/celpack"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// BindingLabels are those of every ValidatingAdmissionPolicyBinding that Meshvakt
// makes. What has them and binds its policy is deleted where no guard asks for it.
func BindingLabels() map[string]string {
	return map[string]string{"app.kubernetes.io/name": "meshvakt", "app.kubernetes.io/managed-by": "meshvakt"}
}

// Binder keeps one ValidatingAdmissionPolicyBinding for each guard that denies by
// mesh-membership, and puts back whatever else changes it. Bindings outlive the
// process: by them the API server refuses the main ways out of the mesh while no
// replica answers.
type Binder struct {
	Client client.Client // reads from the cache
	Live   client.Reader
	Source *cluster.Source
	// Repairs is told of bindings that somebody else had changed or deleted.
	Repairs Repairs
	Log     *slog.Logger
	Now     func() time.Time

	applied inPlace
	missing time.Time // since when there is no policy to bind
}

// policyMayReturn is how long bindings wait for a policy that is gone: where Meshvakt puts
// it back, they would be deleted for a moment only. Without it they do nothing.
const policyMayReturn = 5 * time.Second

// Bindable reports whether the API server serves ValidatingAdmissionPolicies, which
// it does from Kubernetes 1.30 on.
func Bindable(mapper meta.RESTMapper) (bool, error) {
	kind := schema.GroupKind{Group: admissionregistrationv1.GroupName, Kind: "ValidatingAdmissionPolicyBinding"}
	switch _, err := mapper.RESTMapping(kind, admissionregistrationv1.SchemeGroupVersion.Version); {
	case meta.IsNoMatchError(err):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("look up %s: %w", kind.Kind, err)
	}
	return true, nil
}

// Reconcile applies the bindings that the guards ask for and deletes the others.
// Without the policy, which is the chart's to install, there are none: it is looked
// for once a minute.
func (b *Binder) Reconcile(ctx context.Context, _ reconcile.Request) (reconcile.Result, error) {
	if !b.Source.Synced() {
		return reconcile.Result{RequeueAfter: retryAfter}, nil
	}
	var wanted []*acadmission.ValidatingAdmissionPolicyBindingApplyConfiguration
	again := resync
	var policy admissionregistrationv1.ValidatingAdmissionPolicy
	switch err := b.Live.Get(ctx, client.ObjectKey{Name: celpack.PolicyName}, &policy); {
	case apierrors.IsNotFound(err):
		if b.missing.IsZero() {
			b.missing = b.Now()
		}
		if len(b.applied) > 0 && b.Now().Sub(b.missing) < policyMayReturn {
			return reconcile.Result{RequeueAfter: retryAfter}, nil
		}
		b.applied = nil
		b.Log.DebugContext(ctx, "nothing to bind: there is no ValidatingAdmissionPolicy", "name", celpack.PolicyName)
	case err != nil:
		return reconcile.Result{}, fmt.Errorf("get ValidatingAdmissionPolicy %s: %w", celpack.PolicyName, err)
	default:
		b.missing = time.Time{}
		if wanted, again, err = b.wanted(ctx); err != nil {
			return reconcile.Result{}, err
		}
	}
	errs := []error{b.deleteOthers(ctx, wanted)}
	for _, w := range wanted {
		errs = append(errs, b.apply(ctx, w))
	}
	return reconcile.Result{RequeueAfter: again}, errors.Join(errs...)
}

// wanted are the bindings that the guards ask for, and when to look again at the latest.
func (b *Binder) wanted(ctx context.Context) (_ []*acadmission.ValidatingAdmissionPolicyBindingApplyConfiguration, again time.Duration, _ error) {
	var guards v1alpha1.MeshGuardList
	if err := b.Client.List(ctx, &guards); err != nil {
		return nil, 0, fmt.Errorf("list MeshGuards: %w", err)
	}
	state, err := b.Source.Snapshot()
	if err != nil {
		return nil, 0, fmt.Errorf("read the namespaces that are never guarded: %w", err)
	}
	now := b.Now()
	again = resync
	var wanted []*acadmission.ValidatingAdmissionPolicyBindingApplyConfiguration
	for i := range guards.Items {
		g := &guards.Items[i]
		guard, err := facts.NewGuard(g)
		if err != nil {
			b.Log.ErrorContext(ctx, "cannot bind a MeshGuard", "guard", g.Name, "error", err)
			continue
		}
		names, until := excepted(&state, &guard, now)
		if len(names) > 0 {
			again = min(again, until.Sub(now))
		}
		if config := binding(g, append(slices.Clone(state.Unguardable), names...)); config != nil {
			wanted = append(wanted, config)
		}
	}
	return wanted, again, nil
}

// excepted are the namespaces in which an exception from mesh-membership applies under
// the guard, sorted, and when the first of them ends. The API server knows nothing of
// exceptions, so it leaves these namespaces to the webhook.
func excepted(c *facts.Cluster, g *facts.Guard, now time.Time) (names []string, until time.Time) {
	for name, ns := range c.Namespaces {
		for _, e := range ns.Exceptions {
			if !c.Selects(g, name, ns.Labels) || !e.Names(policies.MeshMembership().ID, "") || e.State(g, now) != v1alpha1.ExceptionActive {
				continue
			}
			if ends := e.Spec.ExpiresAt.Time; until.IsZero() || ends.Before(until) {
				until = ends
			}
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names), until
}

// binding is what binds the policy to the namespaces of a guard but for some, nil for one that
// does not deny: warnings keep nobody out, and the webhook gives better ones. Every
// field is stated, as in the webhook configuration.
func binding(g *v1alpha1.MeshGuard, without []string) *acadmission.ValidatingAdmissionPolicyBindingApplyConfiguration {
	if g.DeletionTimestamp != nil || g.Spec.MeshMembership == nil || !slices.Contains(g.Spec.MeshMembership.ValidationActions, v1alpha1.Deny) {
		return nil
	}
	var actions []admissionregistrationv1.ValidationAction
	for _, a := range g.Spec.MeshMembership.ValidationActions {
		actions = append(actions, admissionregistrationv1.ValidationAction(a))
	}
	return acadmission.ValidatingAdmissionPolicyBinding("meshvakt-" + g.Name).WithLabels(BindingLabels()).
		WithSpec(acadmission.ValidatingAdmissionPolicyBindingSpec().
			WithPolicyName(celpack.PolicyName).
			// A guard that goes while Meshvakt does not run asks for nothing any more.
			WithParamRef(acadmission.ParamRef().WithName(g.Name).WithParameterNotFoundAction(admissionregistrationv1.AllowAction)).
			WithMatchResources(acadmission.MatchResources().
				WithMatchPolicy(admissionregistrationv1.Equivalent).
				WithObjectSelector(acmeta.LabelSelector()).
				WithNamespaceSelector(guardedNamespaces(g, without))).
			WithValidationActions(actions...))
}

func (b *Binder) deleteOthers(ctx context.Context, wanted []*acadmission.ValidatingAdmissionPolicyBindingApplyConfiguration) error {
	var there admissionregistrationv1.ValidatingAdmissionPolicyBindingList
	if err := b.Live.List(ctx, &there, client.MatchingLabels(BindingLabels())); err != nil {
		return fmt.Errorf("list ValidatingAdmissionPolicyBindings: %w", err)
	}
	var errs []error
	for i := range there.Items {
		o := &there.Items[i]
		asked := slices.ContainsFunc(wanted, func(w *acadmission.ValidatingAdmissionPolicyBindingApplyConfiguration) bool {
			return *w.GetName() == o.Name
		})
		if asked || o.Spec.PolicyName != celpack.PolicyName {
			continue
		}
		delete(b.applied, o.Name)
		if err := b.Client.Delete(ctx, o, client.Preconditions{UID: &o.UID}); client.IgnoreNotFound(err) != nil {
			errs = append(errs, fmt.Errorf("delete ValidatingAdmissionPolicyBinding %s: %w", o.Name, err))
		}
	}
	return errors.Join(errs...)
}

func (b *Binder) apply(ctx context.Context, config *acadmission.ValidatingAdmissionPolicyBindingApplyConfiguration) error {
	name := *config.GetName()
	want, err := bindingSpec(config) // before Apply, which writes the answer into config
	if err != nil {
		return err
	}
	if b.applied == nil {
		b.applied = inPlace{}
	}
	var found admissionregistrationv1.ValidatingAdmissionPolicyBinding
	err = b.Live.Get(ctx, client.ObjectKey{Name: name}, &found)
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("get ValidatingAdmissionPolicyBinding %s: %w", name, err)
	}
	harm := b.applied.harm(name, err == nil, found.Spec)
	if err := b.Client.Apply(ctx, config, FieldOwner, client.ForceOwnership); err != nil {
		return fmt.Errorf("apply ValidatingAdmissionPolicyBinding %s: %w", name, err)
	}
	// Apply leaves alone what others have added, such as rules that exclude objects.
	if err := b.Live.Get(ctx, client.ObjectKey{Name: name}, &found); err != nil {
		return fmt.Errorf("get ValidatingAdmissionPolicyBinding %s: %w", name, err)
	}
	if !equality.Semantic.DeepEqual(want, found.Spec) {
		b.Log.WarnContext(ctx, "replacing what others have added to a binding", "binding", name)
		found.Spec = want
		if err := b.Client.Update(ctx, &found, FieldOwner); err != nil {
			return fmt.Errorf("replace ValidatingAdmissionPolicyBinding %s: %w", name, err)
		}
	}
	b.applied.settle(ctx, b.Repairs, &found, "ValidatingAdmissionPolicyBinding", want, harm)
	return nil
}

// bindingSpec returns the spec as the API server stores it.
func bindingSpec(config *acadmission.ValidatingAdmissionPolicyBindingApplyConfiguration) (admissionregistrationv1.ValidatingAdmissionPolicyBindingSpec, error) {
	text, err := json.Marshal(config)
	if err != nil {
		return admissionregistrationv1.ValidatingAdmissionPolicyBindingSpec{}, fmt.Errorf("encode ValidatingAdmissionPolicyBinding: %w", err)
	}
	var typed admissionregistrationv1.ValidatingAdmissionPolicyBinding
	if err := json.Unmarshal(text, &typed); err != nil {
		return admissionregistrationv1.ValidatingAdmissionPolicyBindingSpec{}, fmt.Errorf("decode ValidatingAdmissionPolicyBinding: %w", err)
	}
	return typed.Spec, nil
}

// DeleteBindings deletes all bindings that Meshvakt has made.
func DeleteBindings(ctx context.Context, c client.Client) error {
	b := Binder{Client: c, Live: c}
	err := b.deleteOthers(ctx, nil)
	if meta.IsNoMatchError(errors.Unwrap(err)) { // before Kubernetes 1.30
		return nil
	}
	return err
}
