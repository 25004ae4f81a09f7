package keeper

import (
	"context"
	"log/slog"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
)

// definition is what the API server says of the CustomResourceDefinition.
type definition struct {
	uid         types.UID // "": it is not there
	terminating bool
}

func newGuards(t *testing.T, leads bool, d *definition) (*Guards, *setting) {
	t.Helper()
	s := newSetting(t, interceptor.Funcs{Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
		if key.Name != guardsCRD {
			return c.Get(ctx, key, o, opts...)
		}
		if d.uid == "" {
			return apierrors.NewNotFound(schema.GroupResource{Resource: "customresourcedefinitions"}, key.Name)
		}
		o.SetUID(d.uid)
		if d.terminating {
			o.SetDeletionTimestamp(&metav1.Time{})
		}
		return nil
	}})
	elected := make(chan struct{})
	if leads {
		close(elected)
	}
	return &Guards{
		Live: s.client, Client: s.client, Elected: elected, Ledger: s.keeper.Ledger, Log: slog.New(slog.DiscardHandler),
		known: map[string]*v1alpha1.MeshGuard{}, gone: map[string]*v1alpha1.MeshGuard{}, wake: make(chan struct{}, 1),
	}, s
}

func guardNamed(name string) *v1alpha1.MeshGuard {
	g := v1alpha1.DefaultGuard()
	g.Name, g.UID, g.ResourceVersion, g.Annotations = name, "old", "7", map[string]string{v1alpha1.ChangeReasonAnnotation: "T-1"}
	return g
}

func there(t *testing.T, s *setting, name string) *v1alpha1.MeshGuard {
	t.Helper()
	var g v1alpha1.MeshGuard
	if err := s.client.Get(t.Context(), client.ObjectKey{Name: name}, &g); err != nil {
		if !apierrors.IsNotFound(err) {
			t.Fatal(err)
		}
		return nil
	}
	return &g
}

func TestGuardsComeBackWithTheirDefinition(t *testing.T) {
	d := &definition{uid: "one"}
	g, s := newGuards(t, true, d)
	guard := guardNamed("default")
	g.seen(guard)
	g.step(t.Context())

	d.terminating = true
	g.deleted(toolscache.DeletedFinalStateUnknown{Key: "default", Obj: guard})
	g.step(t.Context())
	d.uid, d.terminating = "", false
	g.step(t.Context())
	if there(t, s, "default") != nil {
		t.Fatal("created before there is a definition")
	}
	d.uid = "two"
	g.step(t.Context())
	back := there(t, s, "default")
	if back == nil || back.Annotations[v1alpha1.ChangeReasonAnnotation] != "T-1" || back.Spec.StrictMTLS == nil || s.counts["MeshGuard created"] != 1 {
		t.Fatalf("the guard is %+v, counted %v", back, s.counts)
	}
	// From then on it belongs to the new one, and may be deleted.
	g.seen(back)
	g.step(t.Context())
	must(t, s.client.Delete(t.Context(), back))
	g.deleted(back)
	g.step(t.Context())
	if there(t, s, "default") != nil {
		t.Error("a guard that was deleted by itself is there again")
	}
}

// The definition may be there again before anybody looks.
func TestGuardsComeBackWhenNobodyHasSeenTheirDefinitionGo(t *testing.T) {
	d := &definition{uid: "one"}
	g, s := newGuards(t, true, d)
	guard := guardNamed("default")
	g.seen(guard)
	g.step(t.Context())
	d.uid = "two"
	g.deleted(guard)
	g.step(t.Context())
	if there(t, s, "default") == nil {
		t.Error("the guard is not there again")
	}
}

// A replica that has just started may see the definition go before it has seen it stand.
func TestGuardsComeBackWhenTheirDefinitionGoesAtTheStart(t *testing.T) {
	for name, early := range map[string]bool{"the guards are heard to go first": true, "the definition is back first": false} {
		t.Run(name, func(t *testing.T) {
			d := &definition{uid: "one", terminating: true}
			g, s := newGuards(t, true, d)
			guard := guardNamed("default")
			g.seen(guard)
			if early {
				g.deleted(guard)
			}
			g.step(t.Context())
			d.uid, d.terminating = "two", false
			g.step(t.Context())
			if !early {
				g.deleted(guard)
				g.step(t.Context())
			}
			back := there(t, s, "default")
			if back == nil {
				t.Fatal("the guard is not there again")
			}
			g.seen(back)
			g.step(t.Context())
			must(t, s.client.Delete(t.Context(), back))
			g.deleted(back)
			g.step(t.Context())
			if there(t, s, "default") != nil {
				t.Error("a guard that was deleted by itself is there again")
			}
		})
	}
}

func TestGuardsThatAreDeletedStayDeleted(t *testing.T) {
	d := &definition{uid: "one"}
	g, s := newGuards(t, true, d)
	guard := guardNamed("default")
	g.seen(guard)
	g.step(t.Context())
	g.deleted(guard)
	g.step(t.Context())
	g.step(t.Context())
	if there(t, s, "default") != nil || len(g.gone) > 0 {
		t.Errorf("it is there again, or remembered: %v", g.gone)
	}
}

// Whoever does not lead remembers, until it leads or sees them again.
func TestGuardsAreRememberedByAllReplicas(t *testing.T) {
	d := &definition{uid: "one"}
	g, s := newGuards(t, false, d)
	elected := make(chan struct{})
	g.Elected = elected
	first, second := guardNamed("first"), guardNamed("second")
	g.seen(first)
	g.seen(second)
	g.step(t.Context())
	d.uid = "two"
	g.deleted(first)
	g.deleted(second)
	g.step(t.Context())
	if there(t, s, "first") != nil {
		t.Error("created by a replica that does not lead")
	}
	g.seen(first) // the leader has come so far
	close(elected)
	g.step(t.Context())
	if there(t, s, "first") != nil || there(t, s, "second") == nil {
		t.Error("the second guard alone must be created")
	}
}
