package survey

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/check"
	"github.com/meshvakt/meshvakt/internal/preflight"
)

// choose settles which guards are judged by, and says where they come from.
func choose(f *preflight.Facts, o *Options) (source string, err error) {
	switch {
	case len(o.Guards) > 0:
		f.Judged, source = o.Guards, o.Source
	case o.Guard != "":
		at := slices.IndexFunc(f.Guards.Value, func(g v1alpha1.MeshGuard) bool { return g.Name == o.Guard })
		if f.Guards.Err != nil {
			return "", fmt.Errorf("read MeshGuard %q: %w", o.Guard, f.Guards.Err)
		}
		if at < 0 {
			return "", fmt.Errorf("%w: %q is neither a file nor in the cluster", ErrNoGuard, o.Guard)
		}
		f.Judged, source = f.Guards.Value[at:at+1], fmt.Sprintf("MeshGuard %q", o.Guard)
	case len(f.Guards.Value) > 0:
		f.Judged, source = f.Guards.Value, "MeshGuards of the cluster"
	case f.Guards.Err != nil:
		f.Judged, source = []v1alpha1.MeshGuard{*v1alpha1.DefaultGuard()}, "default guard, for those of the cluster could not be read"
	default:
		f.Judged, source = []v1alpha1.MeshGuard{*v1alpha1.DefaultGuard()}, "default guard, for there is none in the cluster"
	}
	if o.Deny {
		f.Judged = preflight.Denying(f.Judged)
		source += ", as if it denied"
	}
	return source, nil
}

// forecast judges every object by the guards. Without namespaces or policies there is
// nothing to judge in, and the error says so.
func (r *reading) forecast(ctx context.Context, o *Options, source string) (*preflight.Forecast, error) {
	f := r.facts
	for _, err := range []error{f.Namespaces.Err, f.Policies.Err} {
		if err != nil {
			return nil, err
		}
	}
	forecaster, err := preflight.NewForecaster(check.Cluster{Documents: r.living(), Unread: r.unread}, f.Judged, f.Names.Namespace, source, o.Now)
	if err != nil {
		return nil, err
	}
	for _, s := range r.soft {
		forecaster.Unread(s.err, s.note, s.kinds...)
	}
	if r.exceptionsUnread {
		forecaster.Note("what exceptions let pass counts as refused: the GuardExceptions could not be read")
	}
	if f.Guards.Err != nil && len(o.Guards) == 0 && o.Guard == "" {
		forecaster.Unread(f.Guards.Err, "judged by the default guard: the MeshGuards could not be read")
	}
	if r.broken != nil {
		forecaster.Unread(r.broken, "some kinds may be missing: the API server does not tell of all of them")
	}
	if f.ControlPlanes.Err == nil && len(f.ControlPlanes.Value) == 0 {
		forecaster.Unread(preflight.ErrNoControlPlane, fmt.Sprintf("judged by Istio's default settings: no control plane in namespace %q", f.Names.IstioNamespace))
	}
	forecaster.JudgeState(o.Namespaces)
	for _, w := range preflight.Workloads() {
		if err := r.judgeAll(ctx, forecaster, &w, o); err != nil {
			forecaster.Unread(err, "", w.Kind)
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	return forecaster.Forecast(), nil
}

// living are the objects of the state without those in namespaces that were gone when
// namespaces were listed, or not there yet.
func (r *reading) living() []check.Document {
	names := make(map[string]bool, len(r.facts.Namespaces.Value))
	for i := range r.facts.Namespaces.Value {
		names[r.facts.Namespaces.Value[i].Name] = true
	}
	return slices.DeleteFunc(r.state, func(d check.Document) bool { return d.Namespace != "" && !names[d.Namespace] })
}

// judgeAll judges every object of a kind, one after the other.
func (r *reading) judgeAll(ctx context.Context, forecaster *preflight.Forecaster, w *preflight.Workload, o *Options) error {
	version := r.versionOf(w.Group, w.Resource, w.Versions)
	if version == "" {
		return nil
	}
	namespaces := o.Namespaces
	if len(namespaces) == 0 {
		namespaces = []string{corev1.NamespaceAll}
	}
	kind := w.WithVersion(version)
	n := 0
	for _, ns := range namespaces {
		at := place{schema.GroupVersionResource{Group: w.Group, Version: version, Resource: w.Resource}, ns, ""}
		err := r.list(ctx, at, preflight.Right{Verb: "list", Group: w.Group, Resource: w.Resource, Namespace: ns}, func(raw []byte) error {
			d, err := document(kind, raw)
			if err != nil {
				return err
			}
			if forecaster.Wants(w, d.Namespace) {
				forecaster.Judge(&d)
			}
			if n++; n%pageSize == 0 && o.Judged != nil {
				o.Judged(w.Kind, n)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}
