package controller

import (
	"context"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/cluster"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// Exceptions keeps the status of GuardExceptions, and warns before they end: a day
// before, an hour before, and when it has happened. Nothing is decided by the status, and
// so nothing by whether the leader is there to write it.
type Exceptions struct {
	Client client.Client // reads from the cache
	Source *cluster.Source
	Events events.EventRecorder
	Now    func() time.Time
}

// AddExceptions adds the controller of the exceptions.
func AddExceptions(m manager.Manager, s *cluster.Source, e *Exceptions) error {
	c, err := controller.New("exceptions", m, controller.Options{Reconciler: e})
	if err != nil {
		return fmt.Errorf("create the controller of exceptions: %w", err)
	}
	return c.Watch(source.Func(func(ctx context.Context, q queue) error {
		// Their own changes come with those of the namespace.
		in := func(namespace string) {
			var list v1alpha1.GuardExceptionList
			if err := e.Client.List(ctx, &list, client.InNamespace(namespace)); err != nil {
				return // the cache cannot fail but when it ends
			}
			for i := range list.Items {
				q.Add(reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&list.Items[i])})
			}
		}
		s.OnChange(in)
		in("")
		return nil
	}))
}

// Reconcile writes the status of the exception named by the request.
func (e *Exceptions) Reconcile(ctx context.Context, r reconcile.Request) (reconcile.Result, error) {
	state, err := e.Source.Cached(r.Namespace)
	if err != nil {
		return reconcile.Result{RequeueAfter: retryAfter}, nil //nolint:nilerr // caches that are not filled yet are waited for
	}
	var exception v1alpha1.GuardException
	if err := e.Client.Get(ctx, r.NamespacedName, &exception); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	now := e.Now()
	before := exception.Status
	status, again := exceptionStatus(&state, &exception, now)
	if status == before {
		return reconcile.Result{RequeueAfter: again}, nil
	}
	exception.Status = status
	switch err := e.Client.Status().Update(ctx, &exception, FieldOwner); {
	case apierrors.IsConflict(err):
		return reconcile.Result{RequeueAfter: retryAfter}, nil
	case apierrors.IsNotFound(err):
		return reconcile.Result{}, nil
	case err != nil:
		return reconcile.Result{}, fmt.Errorf("update status of GuardException %s: %w", r.NamespacedName, err)
	}
	e.tell(&exception, &before)
	return reconcile.Result{RequeueAfter: again}, nil
}

// exceptionStatus is how an exception stands, and for how long it stands so by the clock
// alone, 0 for ever.
func exceptionStatus(c *facts.Cluster, e *v1alpha1.GuardException, now time.Time) (v1alpha1.GuardExceptionStatus, time.Duration) {
	status := v1alpha1.GuardExceptionStatus{ObservedGeneration: e.Generation}
	x, err := facts.NewException(e)
	if err != nil {
		status.State, status.Message = v1alpha1.ExceptionNotGranted, err.Error()
		return status, 0
	}
	var guards []*facts.Guard
	if ns := c.Namespaces[e.Namespace]; ns != nil {
		for i := range c.Guards {
			if g := &c.Guards[i]; c.Selects(g, e.Namespace, ns.Labels) {
				guards = append(guards, g)
			}
		}
	}
	status.State = x.Standing(guards, now)
	left := e.Spec.ExpiresAt.Sub(now)
	switch status.State {
	case v1alpha1.ExceptionActive:
		status.Message = activeText(x, guards, now)
	case v1alpha1.ExceptionPending:
		status.Message = "waits for the approval of another person than the requester, who has the verb approve on guardexceptions"
	case v1alpha1.ExceptionNotGranted:
		status.Message = notGrantedText(x, guards)
	default:
		return status, 0
	}
	text, again := timeLeft(left)
	if status.State != v1alpha1.ExceptionNotGranted {
		status.TimeLeft = text
		return status, again
	}
	return status, left
}

// activeText names the guards under which an exception applies, where it does not under
// all.
func activeText(x *facts.Exception, guards []*facts.Guard, now time.Time) string {
	var under, not []string
	for _, g := range guards {
		if x.State(g, now) == v1alpha1.ExceptionActive {
			under = append(under, g.Name)
		} else {
			not = append(not, g.Name)
		}
	}
	if len(not) == 0 {
		return ""
	}
	return fmt.Sprintf("applies under MeshGuard %s, and not under %s, which does not take it so", strings.Join(under, ", "), strings.Join(not, ", "))
}

// notGrantedText says what is in the way of an exception.
func notGrantedText(x *facts.Exception, guards []*facts.Guard) string {
	if len(guards) == 0 {
		return "no MeshGuard selects the namespace, so there is nothing to be excepted from"
	}
	var parts []string
	for _, g := range guards {
		if g.Exceptions == nil {
			parts = append(parts, fmt.Sprintf("MeshGuard %q takes no exceptions (spec.exceptions)", g.Name))
		} else {
			parts = append(parts, fmt.Sprintf("MeshGuard %q lets exceptions last at most %s, which would be until %s", g.Name,
				g.Exceptions.MaxDuration.Duration, x.Created.Add(g.Exceptions.MaxDuration.Duration).UTC().Format(time.RFC3339)))
		}
	}
	return strings.Join(parts, "; ")
}

const day = 24 * time.Hour

// timeLeft is a time in its largest unit, rounded down, and after what time it is to be
// told otherwise.
func timeLeft(left time.Duration) (text string, again time.Duration) {
	for _, u := range []struct {
		unit   time.Duration
		letter string
	}{{day, "d"}, {time.Hour, "h"}, {time.Minute, "m"}} {
		if left >= u.unit {
			return fmt.Sprintf("%d%s", left/u.unit, u.letter), left%u.unit + time.Millisecond
		}
	}
	return "<1m", left
}

// tell leaves an event about what has come to be since the status was last written. The
// status is what remembers what has been told.
func (e *Exceptions) tell(x *v1alpha1.GuardException, before *v1alpha1.GuardExceptionStatus) {
	status := &x.Status
	ends := x.Spec.ExpiresAt.UTC().Format(time.RFC3339)
	was, is := before.State, status.State
	switch {
	case is == v1alpha1.ExceptionActive && was != is:
		e.Events.Eventf(x, nil, corev1.EventTypeNormal, "ExceptionActive", "Observe", "the exception applies until %s", ends)
	case is == v1alpha1.ExceptionExpired && was == v1alpha1.ExceptionActive:
		e.Events.Eventf(x, nil, corev1.EventTypeWarning, "ExceptionExpired", "Observe", "the exception has ended; what runs by it breaks %s from now on", policiesText(x))
	case is == v1alpha1.ExceptionRevoked && was == v1alpha1.ExceptionActive:
		e.Events.Eventf(x, nil, corev1.EventTypeWarning, "ExceptionRevoked", "Observe", "the exception was revoked; what runs by it breaks %s from now on", policiesText(x))
	case is == v1alpha1.ExceptionNotGranted && was == v1alpha1.ExceptionActive:
		e.Events.Eventf(x, nil, corev1.EventTypeWarning, "ExceptionNotGranted", "Observe", "the exception does not apply any more: %s", shortened(status.Message))
	case is != v1alpha1.ExceptionActive:
	case unitOf(before.TimeLeft) > time.Hour && unitOf(status.TimeLeft) == time.Hour:
		e.Events.Eventf(x, nil, corev1.EventTypeWarning, "ExceptionExpiring", "Observe", "the exception ends within a day, at %s; what runs by it then breaks %s", ends, policiesText(x))
	case unitOf(before.TimeLeft) > time.Minute && unitOf(status.TimeLeft) <= time.Minute:
		e.Events.Eventf(x, nil, corev1.EventTypeWarning, "ExceptionExpiring", "Observe", "the exception ends within the hour, at %s; what runs by it then breaks %s", ends, policiesText(x))
	}
}

// unitOf is the unit of a time as timeLeft states it, 0 for none.
func unitOf(text string) time.Duration {
	switch {
	case strings.HasSuffix(text, "d"):
		return day
	case strings.HasSuffix(text, "h"):
		return time.Hour
	case strings.HasSuffix(text, "m"):
		return time.Minute
	}
	return 0
}

func policiesText(x *v1alpha1.GuardException) string {
	names := make([]string, 0, len(x.Spec.Policies))
	for _, p := range x.Spec.Policies {
		names = append(names, p.Name)
	}
	return strings.Join(names, ", ")
}
