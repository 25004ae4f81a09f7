package controller

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/meshvakt/meshvakt/internal/cluster"
	"github.com/meshvakt/meshvakt/internal/objects"
	"github.com/meshvakt/meshvakt/policies"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// Provisioner creates the STRICT policy of namespaces whose guard says
// onMissing: Provision.
type Provisioner struct {
	Client client.Client
	Source *cluster.Source
	Events events.EventRecorder
	// Remedies is told of each attempt; nil where nobody wants to know.
	Remedies RemedyLog
	Log      *slog.Logger
	Now      func() time.Time
}

// Reconcile looks at the namespace named by the request.
func (p *Provisioner) Reconcile(ctx context.Context, r reconcile.Request) (reconcile.Result, error) {
	cached, err := p.Source.Cached(r.Name)
	if err != nil {
		return reconcile.Result{RequeueAfter: retryAfter}, nil //nolint:nilerr // caches that are not filled yet are waited for
	}
	if !policies.NeedsProvision(&cached, r.Name) {
		return reconcile.Result{}, nil
	}
	// The cache may be behind a policy that somebody has just created.
	live, err := p.Source.ReadLive(ctx, &facts.Review{Kind: corev1.SchemeGroupVersion.WithKind("Pod"), Namespace: r.Name})
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("read namespace %q: %w", r.Name, err)
	}
	if !policies.NeedsProvision(&live, r.Name) {
		return reconcile.Result{}, nil
	}
	found, want := p.Now(), policies.Provisioned(r.Name)
	object := &objects.PeerAuthentication{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: want.Namespace,
			Name:      want.Name,
			Labels:    map[string]string{"app.kubernetes.io/managed-by": "meshvakt"},
		},
		Spec: objects.PeerAuthenticationSpec{MTLS: &objects.MutualTLS{Mode: want.Mode.String()}},
	}
	err = p.Client.Create(ctx, object, FieldOwner)
	switch {
	case apierrors.IsAlreadyExists(err), apierrors.IsNotFound(err), apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		// Somebody was faster, or the namespace is going away; the next event tells.
		return reconcile.Result{}, nil
	case err != nil:
		p.provisioned(object, RemedyFailed, found)
		return reconcile.Result{}, fmt.Errorf("create PeerAuthentication %s: %w", want.Key(), err)
	}
	p.provisioned(object, RemedyDone, found)
	p.Log.InfoContext(ctx, "created a STRICT PeerAuthentication", "namespace", r.Name, "name", want.Name)
	p.Events.Eventf(object, nil, corev1.EventTypeNormal, "Provisioned", "Provision",
		"created because the namespace is guarded and was not STRICT")
	return reconcile.Result{}, nil
}
