package controller

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/cluster"
	"github.com/meshvakt/meshvakt/internal/scan"
	"github.com/meshvakt/meshvakt/policies"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// namedInStatus bounds how many namespaces a condition names.
const namedInStatus = 10

// Reasons of the condition Compliant that come from the modes alone.
const (
	reasonInvalidSelector = "InvalidSelector"
	reasonNotStrict       = "NamespaceNotStrict"
)

// Standing keeps the status of a MeshGuard.
type Standing struct {
	Client client.Client
	Source *cluster.Source
	Events events.EventRecorder
	// Ledger is what the scan has found; nil when nothing is scanned.
	Ledger *scan.Ledger
	// Undone names the namespaces of a guard in which somebody undoes what Meshvakt
	// restores; nil when nothing is restored.
	Undone func(guard string) []string
	Now    func() time.Time
	Canary Verdicts
	// Own is how Meshvakt's own objects are; nil when they are not kept.
	Own OwnObjects
}

// OwnObjects tells how Meshvakt's own objects are.
type OwnObjects interface {
	// Degradation says what is wrong with them, or was a while ago; reason is empty when
	// nothing is.
	Degradation() (reason, message string)
	// OnChange has f called whenever that changes, but for what becomes so by time.
	OnChange(f func())
}

// Verdicts tell whether the API server asks us, and gets our answers.
type Verdicts interface {
	Verdict() CanaryVerdict
	// OnChange has f called whenever the verdict changes.
	OnChange(f func())
}

// Reconcile writes the status of the guard named by the request.
func (s *Standing) Reconcile(ctx context.Context, r reconcile.Request) (reconcile.Result, error) {
	var guard v1alpha1.MeshGuard
	if err := s.Client.Get(ctx, r.NamespacedName, &guard); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	state, err := s.Source.Snapshot()
	if err != nil {
		return reconcile.Result{RequeueAfter: retryAfter}, nil //nolint:nilerr // caches that are not filled yet are waited for
	}
	var config admissionregistrationv1.ValidatingWebhookConfiguration
	if err := s.Client.Get(ctx, client.ObjectKey{Name: WebhookName}, &config); client.IgnoreNotFound(err) != nil {
		return reconcile.Result{}, fmt.Errorf("get ValidatingWebhookConfiguration: %w", err)
	}
	before := guard.Status.DeepCopy()
	fillStatus(&guard, &state, &config, s.Canary.Verdict(), s.Now())
	s.fillScan(&guard, before)
	var done reconcile.Result
	if s.Own != nil {
		if reason, _ := s.Own.Degradation(); reason != "" {
			done.RequeueAfter = ownAgain
		}
	}
	if equality.Semantic.DeepEqual(before, &guard.Status) {
		return done, nil
	}
	// The whole status, for a patch would leave out counts that are still zero.
	switch err := s.Client.Status().Update(ctx, &guard, FieldOwner); {
	case apierrors.IsConflict(err):
		return reconcile.Result{RequeueAfter: retryAfter}, nil
	case apierrors.IsNotFound(err):
		return reconcile.Result{}, nil
	case err != nil:
		return reconcile.Result{}, fmt.Errorf("update status of MeshGuard %q: %w", r.Name, err)
	}
	warnOf(s.Events, &guard, before.Conditions, v1alpha1.ConditionInjectionAvailable)
	return done, nil
}

func fillStatus(guard *v1alpha1.MeshGuard, state *facts.Cluster, config *admissionregistrationv1.ValidatingWebhookConfiguration, canary CanaryVerdict, now time.Time) {
	status := &guard.Status
	status.ObservedGeneration = guard.Generation
	set := func(kind string, holds bool, reason, message string) {
		c := metav1.Condition{Type: kind, Status: metav1.ConditionFalse, Reason: reason, Message: message, ObservedGeneration: guard.Generation}
		if holds {
			c.Status = metav1.ConditionTrue
		}
		meta.SetStatusCondition(&status.Conditions, c)
	}
	g, err := facts.NewGuard(guard)
	if err != nil {
		status.Namespaces = v1alpha1.NamespaceCounts{}
		set(v1alpha1.ConditionEnforcing, false, reasonInvalidSelector, err.Error())
		set(v1alpha1.ConditionCompliant, false, reasonInvalidSelector, err.Error())
		meta.RemoveStatusCondition(&status.Conditions, v1alpha1.ConditionInjectionAvailable)
		return
	}
	var counts v1alpha1.NamespaceCounts
	var open, excused []string
	for name, ns := range state.Namespaces {
		if ns.Terminating || !state.Selects(&g, name, ns.Labels) {
			continue
		}
		counts.Guarded++
		if policies.Strict(state, name) {
			counts.Strict++
			continue
		}
		counts.NotStrict++
		if policies.ExcusedBy(state, &g, name, now) != nil {
			excused = append(excused, name)
		} else {
			open = append(open, name)
		}
	}
	status.Namespaces = counts
	switch {
	case g.StrictMTLS == nil:
		set(v1alpha1.ConditionCompliant, true, "StrictNotDemanded", fmt.Sprintf("the guard does not demand STRICT, which %d of %d guarded namespaces are", counts.Strict, counts.Guarded))
	case len(open) == 0:
		text := fmt.Sprintf("all %d guarded namespaces are STRICT", counts.Guarded)
		if len(excused) > 0 {
			slices.Sort(excused)
			text += ", but for what exceptions let be otherwise in " + firstNames(excused)
		}
		set(v1alpha1.ConditionCompliant, true, "AllStrict", text)
	default:
		slices.Sort(open)
		set(v1alpha1.ConditionCompliant, false, reasonNotStrict, fmt.Sprintf("%d of %d guarded namespaces are not STRICT: %s", len(open), counts.Guarded, firstNames(open)))
	}
	if g.MeshMembership == nil {
		meta.RemoveStatusCondition(&status.Conditions, v1alpha1.ConditionInjectionAvailable)
	} else if missing := cluster.WithoutInjection(state, &g); len(missing) == 0 {
		set(v1alpha1.ConditionInjectionAvailable, true, "AllInjected", fmt.Sprintf("pods of all %d guarded namespaces get into the mesh without asking for it", counts.Guarded))
	} else {
		set(v1alpha1.ConditionInjectionAvailable, false, "NamespaceNotInjected", fmt.Sprintf("%d of %d guarded namespaces leave pods that do not ask for a sidecar without one: %s", len(missing), counts.Guarded, firstNames(missing)))
	}
	enforcing(guard, config, canary)
}

func firstNames(names []string) string {
	if len(names) <= namedInStatus {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:namedInStatus], ", "), len(names)-namedInStatus)
}
