package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
)

func node(name, instanceType string, annotations map[string]string) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{
		Name: name, Labels: map[string]string{corev1.LabelInstanceTypeStable: instanceType}, Annotations: annotations,
	}}
}

// nodeStatus patches metadata of nodes by the subresource, as the API server does.
func nodeStatus(asked func() error) func(context.Context, client.Client, string, client.Object, client.Patch, ...client.SubResourcePatchOption) error {
	return func(ctx context.Context, c client.Client, sub string, o client.Object, p client.Patch, _ ...client.SubResourcePatchOption) error {
		if err := asked(); err != nil {
			return err
		}
		if sub != "status" {
			return fmt.Errorf("patch of %s", sub)
		}
		return c.Patch(ctx, o, p)
	}
}

func TestNodeClasses(t *testing.T) {
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	five := int32(5)
	plain := guardOfNodes("a", func(*v1alpha1.NodePools) {})
	stealing := guardOfNodes("b", func(n *v1alpha1.NodePools) { n.MaxStealPercent = &five })
	lazy := guardOfNodes("d", func(n *v1alpha1.NodePools) { n.MaxStealPercent = new(int32); *n.MaxStealPercent = 10 })
	own := guardOfNodes("c", func(n *v1alpha1.NodePools) {
		n.InstanceTypes = []v1alpha1.InstanceTypeClass{{Types: []string{"t3.large"}, Class: v1alpha1.NodeDedicated}}
	})
	strict := guardWith("strict", guardedSelector(), v1alpha1.OnMissingReject)
	measured := func(percent, source string, ago time.Duration) map[string]string {
		m := map[string]string{v1alpha1.AnnotationSteal: percent, v1alpha1.AnnotationMeasuredAt: now.Add(-ago).Format(time.RFC3339), v1alpha1.AnnotationResult: "{}"}
		if source != "" {
			m[v1alpha1.ClassSourceAnnotation] = source
		}
		return m
	}
	for name, c := range map[string]struct {
		guards        []client.Object
		node          *corev1.Node
		label, source string
		measured      bool
		again         time.Duration
	}{
		"burstable by type":           {[]client.Object{plain}, node("n", "t3.large", nil), "burstable", "instance-type", false, 0},
		"dedicated by type":           {[]client.Object{plain}, node("n", "ccx23", nil), "dedicated", "instance-type", false, 0},
		"unknown":                     {[]client.Object{plain}, node("n", "strange", nil), "unknown", "nothing", false, 0},
		"the worst of two":            {[]client.Object{own, plain}, node("n", "t3.large", nil), "burstable", "instance-type", false, 0},
		"both agree":                  {[]client.Object{own, stealing}, node("n", "ccx23", nil), "dedicated", "instance-type", false, 0},
		"no guard of nodes":           {[]client.Object{strict}, node("n", "t3.large", nil), "", "", false, 0},
		"no guard":                    {nil, node("n", "t3.large", nil), "", "", false, 0},
		"stolen from":                 {[]client.Object{stealing}, node("n", "ccx23", measured("6.0", "", time.Minute)), "burstable", "steal:5", true, 119 * time.Minute},
		"stolen from for one of two":  {[]client.Object{plain, stealing}, node("n", "ccx23", measured("6.0", "", time.Minute)), "burstable", "steal:5", true, 119 * time.Minute},
		"still stolen from":           {[]client.Object{stealing}, node("n", "ccx23", measured("3.5", "steal:5", time.Minute)), "burstable", "steal:5", true, 119 * time.Minute},
		"stolen from for another":     {[]client.Object{stealing, lazy}, node("n", "ccx23", measured("7.0", "steal:5", time.Minute)), "burstable", "steal:5", true, 119 * time.Minute},
		"stolen from for both":        {[]client.Object{stealing, lazy}, node("n", "ccx23", measured("10.0", "steal:5", time.Minute)), "burstable", "steal:5,10", true, 119 * time.Minute},
		"still stolen from for one":   {[]client.Object{stealing, lazy}, node("n", "ccx23", measured("5.0", "steal:5,10", time.Minute)), "burstable", "steal:5", true, 119 * time.Minute},
		"no longer stolen from":       {[]client.Object{stealing}, node("n", "ccx23", measured("2.0", "steal:5", time.Minute)), "dedicated", "instance-type", true, 119 * time.Minute},
		"a measurement of long ago":   {[]client.Object{stealing}, node("n", "ccx23", measured("2.0", "", 2*time.Hour)), "dedicated", "instance-type", false, 0},
		"a measurement without a day": {[]client.Object{stealing}, node("n", "ccx23", map[string]string{v1alpha1.AnnotationSteal: "2.0"}), "dedicated", "instance-type", false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			c.node.Labels["kept"], c.node.Labels[v1alpha1.ClassLabel] = "yes", "wrong"
			writes := 0
			s := newSetting(t, interceptor.Funcs{SubResourcePatch: nodeStatus(func() error { writes++; return nil })}, append(c.guards, c.node)...)
			r := &NodeClasses{Client: s.client, Source: s.source, Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return now }}
			for range 2 {
				result, err := r.Reconcile(t.Context(), request("n"))
				if err != nil {
					t.Fatal(err)
				}
				if result.RequeueAfter != c.again {
					t.Errorf("again after %s; must be %s", result.RequeueAfter, c.again)
				}
			}
			var got corev1.Node
			if err := s.client.Get(t.Context(), client.ObjectKey{Name: "n"}, &got); err != nil {
				t.Fatal(err)
			}
			want := maps.Clone(c.node.Labels)
			if want[v1alpha1.ClassLabel] = c.label; c.label == "" {
				delete(want, v1alpha1.ClassLabel)
			}
			if !maps.Equal(got.Labels, want) || got.Annotations[v1alpha1.ClassSourceAnnotation] != c.source {
				t.Errorf("labels %v, annotations %v; must have class %q from %q", got.Labels, got.Annotations, c.label, c.source)
			}
			for _, key := range []string{v1alpha1.AnnotationSteal, v1alpha1.AnnotationResult} {
				if _, has := got.Annotations[key]; has != c.measured {
					t.Errorf("%s is there: %t; must be %t", key, has, c.measured)
				}
			}
			if writes != 1 {
				t.Errorf("%d writes; must be 1", writes)
			}
		})
	}
}

func TestNodeClassesOfWhatIsGone(t *testing.T) {
	down := errors.New("down")
	fail := false
	s := newSetting(t, interceptor.Funcs{SubResourcePatch: nodeStatus(func() error {
		if fail {
			return down
		}
		return nil
	})}, guardOfNodes("a", func(*v1alpha1.NodePools) {}), node("n", "t3.large", nil))
	r := &NodeClasses{Client: s.client, Source: s.source, Log: slog.New(slog.DiscardHandler), Now: time.Now}
	if _, err := r.Reconcile(t.Context(), request("gone")); err != nil {
		t.Errorf("a node that is gone: %v", err)
	}
	fail = true
	if _, err := r.Reconcile(t.Context(), request("n")); !errors.Is(err, down) {
		t.Errorf("got %v; what could not be written must be tried again", err)
	}
	fail = false
	if _, err := r.Reconcile(t.Context(), request("n")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := EraseNodeClasses(t.Context(), s.client); err != nil {
			t.Fatal(err)
		}
	}
	var got corev1.Node
	if err := s.client.Get(t.Context(), client.ObjectKey{Name: "n"}, &got); err != nil {
		t.Fatal(err)
	}
	if len(got.Labels) != 1 || len(got.Annotations) != 0 {
		t.Errorf("labels %v, annotations %v stay", got.Labels, got.Annotations)
	}
}
