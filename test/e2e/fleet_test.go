package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/test/controlplane"
	"github.com/meshvakt/meshvakt/test/tmpfs"
)

// member is one cluster of a fleet: a control plane of its own, and two replicas with evidence.
type member struct {
	t          testing.TB
	plane      *controlplane.ControlPlane
	kubeconfig string
	uid        string
	dirs       []string
	replicas   []*replica
	sealers    []*sealer
}

// payments is a namespace that each cluster has.
const payments = "payments"

// use has the functions of this package act on this cluster.
func (m *member) use() { plane, serviceAccountKubeconfig = m.plane, m.kubeconfig }

// newMember boots a cluster, with two replicas that watch one guarded namespace.
func newMember(t testing.TB) *member {
	t.Helper()
	m := &member{t: t}
	var err error
	m.plane, m.kubeconfig, err = setUp(t.Context(), controlplane.Options{Log: os.Stderr})
	must(t, err)
	t.Cleanup(func() {
		if err := m.plane.Stop(); err != nil {
			t.Error(err)
		}
	})
	m.use()
	admin, dev := clientFor(t, controlplane.Admin), clientFor(t, controlplane.Developer)
	var system corev1.Namespace
	must(t, admin.Get(t.Context(), client.ObjectKey{Name: "kube-system"}, &system))
	m.uid = string(system.UID)
	must(t, admin.Create(t.Context(), defaultGuard(v1alpha1.OnMissingReject)))
	endpoints := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: ownNamespace, Name: "meshvakt", Labels: map[string]string{discoveryv1.LabelServiceName: "meshvakt"}},
		AddressType: discoveryv1.AddressTypeIPv4,
	}
	for i := range 2 {
		name, dir := fmt.Sprintf("meshvakt-%d", i), tmpfs.TempDir(t)
		endpoints.Endpoints = append(endpoints.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{fmt.Sprintf("10.0.0.%d", i+1)},
			TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: ownNamespace, Name: name},
		})
		m.dirs = append(m.dirs, dir)
		m.replicas = append(m.replicas, start(t, append(evidenceOf(dir), "--evidence-replica", name, "--evidence-beat", beatOfOracle.String(), "--evidence-clock-error", margin.String(), "--evidence-clock-source", "the test, which goes by the same clock")...))
	}
	t.Cleanup(m.use) // for those of the replicas, which run next
	must(t, admin.Create(t.Context(), endpoints))
	enforcing(t, "default")
	for _, o := range []client.Object{namespace(payments, false), policy(payments, "default", "STRICT")} {
		must(t, dev.Create(t.Context(), o))
	}
	must(t, relabel(t.Context(), dev, namespace(payments, false), v1alpha1.GuardedLabel, "true"))
	return m
}

// seal has all logs cosigned and copied, and returns their keys.
func (m *member) seal(w *cosigner, s *storage) (keys []string) {
	m.t.Helper()
	for _, dir := range m.dirs {
		keys = append(keys, logKeys(m.t, dir)...)
	}
	for _, k := range keys {
		w.knows(k)
	}
	for _, dir := range m.dirs {
		m.sealers = append(m.sealers, startSealer(m.t, dir, storeSecret, append(s.flags(), "--witness-policy", w.policy())...))
	}
	return keys
}

// end stops all that runs in the cluster, in the order of a pod's containers.
func (m *member) end() {
	m.t.Helper()
	m.use()
	for _, r := range m.replicas {
		r.stop()
	}
	unregister(m.t)
	for _, s := range m.sealers {
		s.end()
	}
}

// weaken changes a policy behind the webhook's back.
func (m *member) weaken() {
	m.t.Helper()
	m.use()
	admin := clientFor(m.t, controlplane.Admin)
	giveBack := withoutRight(m.t, admin)
	must(m.t, admin.Delete(m.t.Context(), registered(m.t, admin)))
	eventually(m.t, 20*time.Second, func() error {
		return admin.Patch(m.t.Context(), policy(payments, "default", "PERMISSIVE"), client.RawPatch("application/merge-patch+json", []byte(`{"spec":{"mtls":{"mode":"PERMISSIVE"}}}`)))
	})
	giveBack()
	enforcing(m.t, "default")
}

// TestFleet has three clusters, whose evidence one witness cosigns and one S3 server keeps. Whoever has a
// copy of it and the keys learns what holds for each cluster, and for the fleet.
func TestFleet(t *testing.T) {
	sharedPlane, sharedKubeconfig := plane, serviceAccountKubeconfig
	t.Cleanup(func() { plane, serviceAccountKubeconfig = sharedPlane, sharedKubeconfig })
	w, s := startWitness(t), startStorage(t)
	sound, weak, silent := newMember(t), newMember(t), newMember(t)
	fleet := []*member{sound, weak, silent}
	keys := map[*member][]string{}
	var all []string
	for _, m := range fleet {
		keys[m] = m.seal(w, s)
		all = append(all, keys[m]...)
	}
	if len(all) != 6 {
		t.Fatalf("keys of logs are %q; must be one for each replica", all)
	}
	pass := func() { waitUntil(t, time.Now().Add(nearBy+heard)) }
	pass()
	from := time.Now()
	pass()
	weak.weaken()
	pass()
	to := time.Now()
	pass()
	for _, m := range fleet {
		m.end()
	}
	for _, m := range fleet {
		for _, dir := range m.dirs {
			must(t, cosigned(t, dir))
			for origin, text := range checkpoints(t, dir) {
				if there := checkpoints(t, s.copied())[origin]; there != text {
					t.Errorf("of %s the mirror has\n%s\nand the volume\n%s", origin, there, text)
				}
			}
		}
	}

	copied := s.synced()
	place := func(m *member) string { return filepath.Join(copied, "evidence.example.org", m.uid) }
	must(t, os.RemoveAll(filepath.Join(place(silent), "meshvakt-1")))
	claim := func(text string) []string {
		return []string{"--policy", w.policy(all...), "--claim", text, "--from", from.UTC().Format(time.RFC3339), "--to", to.UTC().Format(time.RFC3339)}
	}
	about := func(m *member) []string { return claim("mtls=STRICT,namespace=" + payments + ",cluster=" + m.uid) }
	out := verdict(t, 1, append(claim("mtls=STRICT,namespace=*"), copied)...)
	t.Logf("the fleet:\n%s", out)
	for _, want := range []string{
		"3 clusters: 1 violated, 1 not provable, 1 holds",
		"cluster " + weak.uid + ": VIOLATED, 1 of 1 namespace",
		"cluster " + silent.uid + ": NOT PROVABLE, 1 of 1 namespace",
		"the log of replica meshvakt-1 is not here",
		"cluster " + sound.uid + ": HOLDS, 1 namespace\n",
		"FINDING unexplained-change",
		"FINDING missing-log",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("it is not said that %q", want)
		}
	}
	verdict(t, 0, append(about(sound), copied)...)
	verdict(t, 1, append(about(weak), copied)...)
	verdict(t, 2, append(about(silent), copied)...)
	// A cluster of which nothing is given, while its keys are, is not left out.
	out = verdict(t, 2, append(claim("mtls=STRICT,namespace="+payments), place(sound))...)
	if n := strings.Count(out, "none of them is given"); n != 2 {
		t.Errorf("of the clusters whose logs are not given it is said %d times:\n%s", n, out)
	}
	urls := about(sound)
	for _, k := range keys[sound] {
		origin, _, _ := strings.Cut(k, "+")
		urls = append(urls, s.url()+"/"+logPath(origin))
	}
	verdict(t, 0, urls...)
	// What was changed in one copy shows, whatever is asked.
	must(t, flip(filepath.Join(place(sound), "meshvakt-0")))
	verdict(t, 3, append(about(weak), copied)...)
}

// flip changes one bit of the records in a copy.
func flip(dir string) error {
	entries, err := filepath.Glob(filepath.Join(dir, "logs", "*", "tile", "entries", "000*"))
	if err != nil || len(entries) == 0 {
		return errors.Join(errors.New("there are no records"), err)
	}
	for _, name := range entries {
		if partial, err := filepath.Glob(filepath.Join(name, "*")); err == nil && len(partial) > 0 {
			name = partial[len(partial)-1]
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		text[len(text)/2] ^= 1
		if err := os.WriteFile(name, text, 0o600); err != nil {
			return err
		}
	}
	return nil
}
