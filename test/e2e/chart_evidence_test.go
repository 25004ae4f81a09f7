package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/test/tmpfs"
)

var evidenceArgs = []string{"--set", "evidence.enabled=true,evidence.name=evidence.example.org,evidence.retention=9504h"}

// evidenceNode is where all pods are said to run. Schedulers leave it alone: they would wait for
// volumes that nobody provides.
const evidenceNode = "evidence"

// From a Deployment to a StatefulSet with evidence and back, with Helm itself: at no time is the
// Service without the endpoints that it had.
func TestChartEvidence(t *testing.T) {
	r := newRelease(t)
	r.kubectl("", "create", "namespace", "istio-system")
	r.kubectl("", "create", "namespace", ownNamespace)
	r.kubectl("", "label", "namespace", ownNamespace, "pod-security.kubernetes.io/enforce=restricted")
	for _, step := range []struct {
		name string
		do   func(t *testing.T, r *release)
	}{
		{"replicas of a Deployment serve", evidenceDeploymentServes},
		{"they are not taken away for others that do not serve yet", evidenceNeedsMigration},
		{"both serve", evidenceMigrates},
		{"the StatefulSet serves alone", evidenceServesAlone},
		{"rights suffice", evidenceRightsSuffice},
		{"and back", evidenceGoesBack},
		{"uninstall", evidenceUninstalls},
	} {
		if !t.Run(step.name, func(t *testing.T) {
			step.do(t, &release{t: t, plane: r.plane, client: r.client, helm: r.helm})
		}) {
			return // the next step rests on it
		}
	}
}

// kubelets does for pods of these owners what kubelets would, until stop is called.
func (r *release) kubelets(owners ...string) (stop func()) {
	ctx, cancel := context.WithCancel(r.t.Context())
	ended := make(chan error, 1)
	go func() {
		var err error
		for ctx.Err() == nil {
			err = r.servePods(ctx, owners)
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
		}
		ended <- err
	}()
	return func() {
		r.t.Helper()
		cancel()
		if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
			r.t.Error(err)
		}
	}
}

// servePods binds those that are new, says that they run, and lets go those that end.
func (r *release) servePods(ctx context.Context, owners []string) error {
	var pods corev1.PodList
	if err := r.client.List(ctx, &pods, client.InNamespace(ownNamespace), client.MatchingLabels{"app.kubernetes.io/component": "webhook"}); err != nil {
		return err
	}
	for i := range pods.Items {
		p := &pods.Items[i]
		if p.DeletionTimestamp != nil {
			if err := r.client.Delete(ctx, p, client.GracePeriodSeconds(0)); client.IgnoreNotFound(err) != nil {
				return err
			}
			continue
		}
		if owner := metav1.GetControllerOf(p); owner == nil || !slices.Contains(owners, owner.Kind) || p.Status.Phase == corev1.PodRunning {
			continue
		}
		if p.Spec.NodeName == "" {
			binding := &corev1.Binding{Target: corev1.ObjectReference{Kind: "Node", Name: evidenceNode}}
			if err := r.client.SubResource("binding").Create(ctx, p, binding); client.IgnoreNotFound(err) != nil && !apierrors.IsConflict(err) {
				return err
			}
		}
		before := p.DeepCopy()
		p.Status.Phase = corev1.PodRunning
		// Another address for each, or the endpoints would be taken for one.
		p.Status.PodIP = fmt.Sprintf("198.18.%d.%d", p.UID[0], p.UID[1]+p.UID[2])
		p.Status.PodIPs = []corev1.PodIP{{IP: p.Status.PodIP}}
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(time.Now().Add(-time.Hour))}}
		if err := r.client.Status().Patch(ctx, p, client.MergeFrom(before)); client.IgnoreNotFound(err) != nil {
			return err
		}
	}
	return nil
}

// available waits until the API server knows of three available replicas.
func (r *release) available(kind string) {
	r.t.Helper()
	eventually(r.t, 60*time.Second, func() error {
		if n := r.kubectl("", "-n", ownNamespace, "get", kind, "meshvakt", "-o", "jsonpath={.status.availableReplicas}"); n != "3" {
			return fmt.Errorf("%s replicas of %s are available; must be 3", n, kind)
		}
		return nil
	})
}

// endpoints are the pods that the API server would send reviews to.
func (r *release) endpoints() (pods []string, err error) {
	var slicesOf discoveryv1.EndpointSliceList
	if err := r.client.List(r.t.Context(), &slicesOf, client.InNamespace(ownNamespace), client.MatchingLabels{discoveryv1.LabelServiceName: "meshvakt"}); err != nil {
		return nil, err
	}
	for _, s := range slicesOf.Items {
		for _, e := range s.Endpoints {
			if e.Conditions.Ready == nil || *e.Conditions.Ready {
				pods = append(pods, e.TargetRef.Name)
			}
		}
	}
	slices.Sort(pods)
	return slices.Compact(pods), nil
}

func (r *release) endpointsBecome(what string, right func(pods []string) bool) {
	r.t.Helper()
	eventually(r.t, 60*time.Second, func() error {
		pods, err := r.endpoints()
		if err == nil && !right(pods) {
			err = fmt.Errorf("the Service leads to %q; must be %s", pods, what)
		}
		return err
	})
}

// while looks at the endpoints again and again as f runs: there must always be three.
func (r *release) while(f func()) {
	r.t.Helper()
	ctx, cancel := context.WithCancel(r.t.Context())
	looked := make(chan error, 1)
	go func() {
		for ctx.Err() == nil {
			if pods, err := r.endpoints(); err == nil && len(pods) < 3 {
				looked <- fmt.Errorf("meanwhile the Service leads to %q; must be three or more", pods)
				return
			}
		}
		looked <- nil
	}()
	f()
	cancel()
	if err := <-looked; err != nil {
		r.t.Error(err)
	}
}

func ofStatefulSet(pod string) bool {
	return slices.Contains([]string{"meshvakt-0", "meshvakt-1", "meshvakt-2"}, pod)
}

func evidenceDeploymentServes(_ *testing.T, r *release) {
	r.kubectl(`{"apiVersion":"v1","kind":"Node","metadata":{"name":"`+evidenceNode+`"},"spec":{"unschedulable":true}}`, "create", "-f", "-")
	r.run("install", "meshvakt", "charts/meshvakt")
	defer r.kubelets("ReplicaSet")()
	r.available("deployment")
	r.endpointsBecome("three", func(pods []string) bool { return len(pods) == 3 })
}

func evidenceNeedsMigration(t *testing.T, r *release) {
	_, err := r.try(slices.Concat([]string{"upgrade", "meshvakt", "charts/meshvakt"}, evidenceArgs)...)
	if err == nil || !strings.Contains(err.Error(), "first upgrade with evidence.enabled=true and evidence.migration=true") {
		t.Fatalf("the Deployment would be deleted at once: %v", err)
	}
	if pods, err := r.endpoints(); err != nil || len(pods) != 3 {
		t.Errorf("the Service leads to %q, %v", pods, err)
	}
}

func evidenceMigrates(t *testing.T, r *release) {
	r.while(func() {
		r.run(slices.Concat([]string{"upgrade", "meshvakt", "charts/meshvakt", "--set", "evidence.migration=true"}, evidenceArgs)...)
		// The digest of its own objects is in the arguments, so the Deployment's pods are replaced too.
		stop := r.kubelets("ReplicaSet")
		r.kubectl("", "-n", ownNamespace, "rollout", "status", "deployment", "meshvakt", "--timeout=60s")
		stop()
		// Too early: none of the new ones is there.
		if _, err := r.try(slices.Concat([]string{"upgrade", "meshvakt", "charts/meshvakt"}, evidenceArgs)...); err == nil || !strings.Contains(err.Error(), "0 are available") {
			t.Errorf("the Deployment would be deleted before the StatefulSet serves: %v", err)
		}
		defer r.kubelets("StatefulSet")()
		r.available("statefulset")
		r.endpointsBecome("six", func(pods []string) bool { return len(pods) == 6 })
	})
}

func evidenceServesAlone(t *testing.T, r *release) {
	defer r.kubelets("StatefulSet")()
	r.while(func() {
		r.run(slices.Concat([]string{"upgrade", "meshvakt", "charts/meshvakt"}, evidenceArgs)...)
		r.endpointsBecome("those of the StatefulSet", func(pods []string) bool {
			return len(pods) == 3 && !slices.ContainsFunc(pods, func(p string) bool { return !ofStatefulSet(p) })
		})
	})
	var d appsv1.Deployment
	if err := r.client.Get(t.Context(), client.ObjectKey{Namespace: ownNamespace, Name: "meshvakt"}, &d); !apierrors.IsNotFound(err) {
		t.Errorf("the Deployment: %v; must be gone", err)
	}
	var claims corev1.PersistentVolumeClaimList
	if err := r.client.List(t.Context(), &claims, client.InNamespace(ownNamespace)); err != nil || len(claims.Items) != 3 {
		t.Errorf("%d claims, %v; must be one for each replica", len(claims.Items), err)
	}
}

// The process of a replica keeps evidence with the arguments and the rights of the chart.
func evidenceRightsSuffice(t *testing.T, r *release) {
	var s appsv1.StatefulSet
	must(t, r.client.Get(t.Context(), client.ObjectKey{Namespace: ownNamespace, Name: "meshvakt"}, &s))
	kubeconfig, err := r.plane.ServiceAccountKubeconfig(t.Context(), ownNamespace, "meshvakt")
	must(t, err)
	address, evidence := freeAddress(t), tmpfs.TempDir(t)
	args := slices.Concat(s.Spec.Template.Spec.Containers[0].Args[1:], []string{
		"--kubeconfig", kubeconfig, "--listen", address, "--webhook-url", "https://" + address,
		"--operations-listen", "127.0.0.1:0", "--drain-delay", "100ms",
		"--evidence-dir", evidence, "--evidence-replica", "meshvakt-0",
	})
	replica := startReplica(t, args...).ready(t.Context())
	eventually(t, 30*time.Second, func() error {
		if replica.metric(t.Context(), "meshvakt_evidence_available ") != 1 {
			return errors.New("no record can be written")
		}
		return nil
	})
	sealsBesides(t, s.Spec.Template.Spec.Containers[1].Args, evidence)
	if lease := r.kubectl("", "-n", ownNamespace, "get", "lease", "meshvakt-evidence-meshvakt-0", "-o", "jsonpath={.spec.holderIdentity}"); lease == "" {
		t.Error("no Lease says which start of the replica is running")
	}
	replica.mu.Lock()
	defer replica.mu.Unlock()
	for _, line := range replica.log {
		if strings.Contains(line, "forbidden") {
			t.Errorf("a right is missing: %s", line)
		}
	}
	if keys := r.kubectl("", "-n", ownNamespace, "get", "secret", "meshvakt-evidence", "-o", "jsonpath={.data}"); !strings.Contains(keys, "q") {
		t.Errorf("keys of pseudonyms: %q", keys)
	}
}

func evidenceGoesBack(t *testing.T, r *release) {
	// They would be refused, for the process of the step before has ended.
	r.kubectl("", "delete", "validatingwebhookconfiguration", "meshvakt")
	r.kubectl("", "delete", "mutatingwebhookconfiguration", mutatingName)
	if _, err := r.try("upgrade", "meshvakt", "charts/meshvakt", "--reset-values"); err == nil || !strings.Contains(err.Error(), "evidence.migration=true") {
		t.Errorf("the StatefulSet would be deleted at once: %v", err)
	}
	defer r.kubelets("ReplicaSet", "StatefulSet")()
	r.while(func() {
		r.run(slices.Concat([]string{"upgrade", "meshvakt", "charts/meshvakt", "--set", "evidence.migration=true"}, evidenceArgs)...)
		r.available("deployment")
		r.run("upgrade", "meshvakt", "charts/meshvakt", "--reset-values")
		r.endpointsBecome("those of the Deployment", func(pods []string) bool {
			return len(pods) == 3 && !slices.ContainsFunc(pods, ofStatefulSet)
		})
	})
	// Evidence outlives it.
	var claims corev1.PersistentVolumeClaimList
	if err := r.client.List(t.Context(), &claims, client.InNamespace(ownNamespace)); err != nil || len(claims.Items) != 3 {
		t.Errorf("%d claims are left, %v; must be 3", len(claims.Items), err)
	}
}

// With evidence it is the StatefulSet that is stopped before the configurations go.
func evidenceUninstalls(t *testing.T, r *release) {
	r.run(slices.Concat([]string{"upgrade", "meshvakt", "charts/meshvakt", "--set", "evidence.migration=true,uninstall.timeoutSeconds=60"}, evidenceArgs)...)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	played := make(chan error, 1)
	go func() { played <- r.playUninstall(ctx) }()
	_, err := r.try("uninstall", "meshvakt", "--timeout", "2m")
	stop()
	if err := errors.Join(<-played, err); err != nil {
		t.Fatal(err)
	}
	if left := r.registered(); len(left) > 0 {
		t.Errorf("left, and nobody serves them: %q", left)
	}
}

// sealsBesides runs the sealer by the arguments of its container until it has sealed a beat, which
// lists the replicas behind the Service, and ends it as a kubelet does.
func sealsBesides(t *testing.T, args []string, dir string) {
	t.Helper()
	cmd := exec.Command(binary, append(slices.Clone(args), "--dir="+dir, "--checkpoint-interval=1s")...)
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	must(t, cmd.Start())
	eventually(t, 90*time.Second, func() error {
		checkpoints, err := filepath.Glob(filepath.Join(dir, "logs", "*", "checkpoint"))
		if err != nil {
			return err
		}
		if len(checkpoints) != 1 {
			return fmt.Errorf("%d checkpoints; must be one", len(checkpoints))
		}
		entries, err := filepath.Glob(filepath.Join(dir, "logs", "*", "tile", "entries", "*", "*"))
		if err != nil {
			return err
		}
		for _, name := range entries {
			text, err := os.ReadFile(name)
			if err == nil && bytes.Contains(text, []byte(`"kind":"beat"`)) && bytes.Contains(text, []byte(`"ready":[{"pod":"meshvakt-0"`)) {
				return nil
			}
		}
		return fmt.Errorf("no beat with replicas is sealed in %q", entries)
	})
	must(t, cmd.Process.Signal(syscall.SIGTERM))
	if err := cmd.Wait(); err != nil {
		t.Errorf("the sealer's container ended: %v\n%s", err, log.String())
	}
}
