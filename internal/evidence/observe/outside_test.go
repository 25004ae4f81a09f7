package observe

import (
	"log/slog"
	"maps"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

func TestOutside(t *testing.T) {
	told := map[string]int{}
	o := newOutside(nil, slog.New(slog.DiscardHandler), time.Now, func(namespace string) { told[namespace]++ })
	with := func(p *corev1.Pod, edit func(*corev1.Pod)) *corev1.Pod { edit(p); return p }
	pods := []*corev1.Pod{
		podNamed("prod", "proxied", "istio-proxy"),
		with(podNamed("prod", "native", "app"), func(p *corev1.Pod) {
			p.Spec.InitContainers = []corev1.Container{{Name: "istio-proxy"}}
		}),
		podNamed("prod", "bare", "app"),
		with(podNamed("prod", "enrolled", "app"), func(p *corev1.Pod) { p.Labels = map[string]string{"istio.io/dataplane-mode": "ambient"} }),
		with(podNamed("prod", "opted-out", "app"), func(p *corev1.Pod) { p.Labels = map[string]string{"istio.io/dataplane-mode": "none"} }),
		with(podNamed("prod", "node-network", "app"), func(p *corev1.Pod) { p.Spec.HostNetwork = true }),
		with(podNamed("prod", "claims", "app"), func(p *corev1.Pod) { p.Annotations = map[string]string{"sidecar.istio.io/status": "{}"} }),
		with(podNamed("prod", "ended", "app"), func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }),
		podNamed("other", "bare", "app"),
	}
	list := func(pods []*corev1.Pod) {
		o.begin()
		for _, p := range pods {
			o.setPod(p)
		}
		o.end()
	}
	list(pods)
	count := func() map[string]uint64 {
		return map[string]uint64{"prod": o.Count("prod", false), "prod, ambient": o.Count("prod", true), "other": o.Count("other", false)}
	}
	if got, want := count(), (map[string]uint64{"prod": 4, "prod, ambient": 3, "other": 1}); !maps.Equal(got, want) {
		t.Errorf("outside are %v; want %v", got, want)
	}
	if !isClosed(o.ready) || told["prod"] != 4 || told["other"] != 1 {
		t.Errorf("told %v", told)
	}
	// The news of a kubelet touch nothing.
	clear(told)
	list(pods)
	o.setPod(with(podNamed("prod", "bare", "app"), func(p *corev1.Pod) { p.Status.Phase = corev1.PodRunning }))
	if len(told) != 0 {
		t.Errorf("told %v of what has not changed", told)
	}
	// A debug container makes no proxy; the label of ambient does.
	o.setPod(with(podNamed("prod", "bare", "app"), func(p *corev1.Pod) { p.Labels = map[string]string{"istio.io/dataplane-mode": "ambient"} }))
	o.removePod(podNamed("other", "bare", "app"))
	if got, want := count(), (map[string]uint64{"prod": 3, "prod, ambient": 3, "other": 0}); !maps.Equal(got, want) {
		t.Errorf("outside are %v; want %v", got, want)
	}
	// What is not in the next list is gone.
	list(pods[4:5])
	if got, want := count(), (map[string]uint64{"prod": 1, "prod, ambient": 1, "other": 0}); !maps.Equal(got, want) {
		t.Errorf("outside are %v; want %v", got, want)
	}
	list(nil)
	if len(o.pods) != 0 || len(o.count) != 0 {
		t.Errorf("of nothing there are kept %d pods, %d counts", len(o.pods), len(o.count))
	}
}

// TestFollowedPods: pods that come and go while they are followed.
func TestFollowedPods(t *testing.T) {
	inCluster(t, func(t *testing.T, s *setting) {
		s.opened()
		s.set(podNamed("prod", "bare", "app"))
		s.pass(2 * time.Second)
		if got := replay(t, s.log.told())["prod"].Outside; got != 1 {
			t.Errorf("%d pods are outside", got)
		}
		s.remove(podNamed("prod", "bare", "app"))
		s.pass(2 * time.Second)
		if got := replay(t, s.log.told())["prod"].Outside; got != 0 {
			t.Errorf("%d pods are outside", got)
		}
		if state := s.observer.outside.State(); state.Epoch != 1 || !state.Open || state.ResourceVersion == "" {
			t.Errorf("%+v", state)
		}
	}, append(prod(), podNamed("prod", "there", "istio-proxy"))...)
}
