package controller

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
)

func volume(name, namespace, region string) *corev1.PersistentVolume {
	return &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PersistentVolumeSpec{
		ClaimRef: &corev1.ObjectReference{Namespace: namespace, Name: "data"},
		NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
			MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelTopologyRegion, Operator: corev1.NodeSelectorOpIn, Values: []string{region}}},
		}}}},
	}}
}

func TestPlacement(t *testing.T) {
	home := guardOfNodes("default", func(n *v1alpha1.NodePools) { n.Scope, n.AllowedRegions = v1alpha1.PlacementAll, []string{"eu-north-1"} })
	shared := node("shared", "t3.large", nil)
	shared.Labels[corev1.LabelTopologyRegion] = "eu-north-1"
	pod := func(namespace string) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "web"}, Spec: corev1.PodSpec{NodeName: "shared"}}
	}
	prod, dev := namespaceOf("prod", true), namespaceOf("dev", false)
	now := time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
	excepted := func(policy, reason string, ends time.Time) *v1alpha1.GuardException {
		e := exceptionFrom(policy)
		e.Spec.Policies[0].Reasons, e.Spec.ExpiresAt = []string{reason}, metav1.NewTime(ends)
		e.Spec.Requester, e.Spec.Approver, e.Spec.Approved = "developer", "platform", true
		return e
	}
	abroad := shared.DeepCopy()
	abroad.Labels[corev1.LabelTopologyRegion] = "us-east-1"
	for name, c := range map[string]struct {
		guard           *v1alpha1.MeshGuard
		there           []client.Object
		reason, message string // no reason: no condition
		events          int
	}{
		"nothing runs":              {home, []client.Object{shared, prod}, "AllPlaced", "no pod and no volume", 0},
		"a pod of the guard":        {home, []client.Object{shared, prod, pod("prod")}, "PodsMisplaced", "1 pod runs where it may not: prod/web on node shared, which is burstable (instance type t3.large)", 1},
		"a pod of others":           {home, []client.Object{shared, dev, pod("dev")}, "AllPlaced", "", 0},
		"an excepted pod":           {home, []client.Object{shared, prod, pod("prod"), excepted("node-pools", "NodeBurstable", now.Add(time.Second))}, "AllPlaced", "", 0},
		"excepted until now":        {home, []client.Object{shared, prod, pod("prod"), excepted("node-pools", "NodeBurstable", now)}, "PodsMisplaced", "prod/web on node shared", 1},
		"excepted from other rules": {home, []client.Object{shared, prod, pod("prod"), excepted("strict-mtls", "NodeBurstable", now.Add(time.Hour))}, "PodsMisplaced", "prod/web on node shared", 1},
		"excepted from half of it":  {home, []client.Object{abroad, prod, pod("prod"), excepted("node-pools", "NodeBurstable", now.Add(time.Hour))}, "PodsMisplaced", `prod/web on node shared, which is in region "us-east-1"`, 1},
		"no node that is refused":   {home, []client.Object{prod, pod("prod")}, "AllPlaced", "", 0},
		"a volume elsewhere":        {home, []client.Object{prod, volume("v", "prod", "us-east-1")}, "VolumesMisplaced", `1 volume is where it must not be: v of prod/data, which is in region "us-east-1"`, 1},
		"a volume at home":          {home, []client.Object{prod, volume("v", "prod", "eu-north-1")}, "AllPlaced", "", 0},
		"a volume of others":        {home, []client.Object{prod, dev, volume("v", "dev", "us-east-1")}, "AllPlaced", "", 0},
		"both":                      {home, []client.Object{shared, prod, pod("prod"), volume("v", "prod", "us-east-1")}, "PodsMisplaced", "; 1 volume is", 1},
		"regions do not matter":     {guardOfNodes("default", func(*v1alpha1.NodePools) {}), []client.Object{prod, volume("v", "prod", "us-east-1")}, "AllPlaced", "", 0},
		"a guard that does not ask": {guardWith("default", guardedSelector(), v1alpha1.OnMissingReject), []client.Object{shared, prod, pod("prod")}, "", "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			guard := c.guard.DeepCopy()
			meta.SetStatusCondition(&guard.Status.Conditions, metav1.Condition{Type: v1alpha1.ConditionEnforcing, Status: metav1.ConditionTrue, Reason: "Registered"})
			if c.reason == "" {
				meta.SetStatusCondition(&guard.Status.Conditions, metav1.Condition{Type: v1alpha1.ConditionPlacementCompliant, Status: metav1.ConditionTrue, Reason: "AllPlaced"})
			}
			writes := 0
			s := newSetting(t, interceptor.Funcs{SubResourcePatch: func(ctx context.Context, w client.Client, sub string, o client.Object, p client.Patch, opts ...client.SubResourcePatchOption) error {
				writes++
				return w.SubResource(sub).Patch(ctx, o, p, opts...)
			}}, append(c.there, guard)...)
			recorder := events.NewFakeRecorder(5)
			p := &Placement{Client: s.client, Source: s.source, Events: recorder, Now: func() time.Time { return now }}
			for range 2 {
				result, err := p.Reconcile(t.Context(), request("default"))
				if err != nil {
					t.Fatal(err)
				}
				if asked := c.guard.Spec.NodePools != nil; (result.RequeueAfter == time.Minute) != asked {
					t.Errorf("again after %s", result.RequeueAfter)
				}
			}
			var got v1alpha1.MeshGuard
			if err := s.client.Get(t.Context(), client.ObjectKey{Name: "default"}, &got); err != nil {
				t.Fatal(err)
			}
			condition := meta.FindStatusCondition(got.Status.Conditions, v1alpha1.ConditionPlacementCompliant)
			switch {
			case c.reason == "" && condition != nil:
				t.Errorf("condition %+v", condition)
			case c.reason != "" && (condition == nil || condition.Reason != c.reason || !strings.Contains(condition.Message, c.message) || (condition.Status == metav1.ConditionTrue) != (c.reason == "AllPlaced")):
				t.Errorf("condition %+v; must be %s with %q", condition, c.reason, c.message)
			}
			if !meta.IsStatusConditionTrue(got.Status.Conditions, v1alpha1.ConditionEnforcing) {
				t.Error("another condition is gone")
			}
			if writes != 1 || len(recorder.Events) != c.events {
				t.Errorf("%d writes, %d events; must be 1 and %d", writes, len(recorder.Events), c.events)
			}
		})
	}
}

func TestPlacementThatCannotBeTold(t *testing.T) {
	down := errors.New("down")
	shared := node("shared", "t3.large", nil)
	s := newSetting(t, interceptor.Funcs{List: func(ctx context.Context, w client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
		if _, ok := list.(*corev1.PodList); ok {
			return down
		}
		return w.List(ctx, list, opts...)
	}}, guardOfNodes("default", func(*v1alpha1.NodePools) {}), namespaceOf("prod", true), shared)
	p := &Placement{Client: s.client, Source: s.source, Events: events.NewFakeRecorder(5), Now: time.Now}
	if _, err := p.Reconcile(t.Context(), request("default")); !errors.Is(err, down) {
		t.Errorf("got %v; pods that cannot be read must not count as none", err)
	}
	if _, err := p.Reconcile(t.Context(), request("gone")); err != nil {
		t.Errorf("a guard that is gone: %v", err)
	}
}
