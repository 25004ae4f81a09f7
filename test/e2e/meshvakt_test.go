package e2e

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/test/controlplane"
)

// replica is one running `meshvakt serve`.
type replica struct {
	t          testing.TB
	cmd        *exec.Cmd
	admission  string // host:port of the webhook; empty if it waited for the API server first
	operations string // host:port of probes and metrics
	exited     chan struct{}
	exitErr    error // valid once exited is closed

	mu  sync.Mutex
	log []string // guarded by mu
}

// start runs one replica that registers itself, and waits until it is ready.
func start(t testing.TB, args ...string) *replica {
	t.Helper()
	address := freeAddress(t)
	return startReplica(t, append([]string{"--listen", address, "--webhook-url", "https://" + address}, args...)...).ready(t.Context())
}

// startReplica runs meshvakt with the rights of its ServiceAccount and waits
// until it listens; it need not be ready. It is stopped with the test.
func startReplica(t testing.TB, args ...string) *replica {
	t.Helper()
	return startBuild(t, binary, nil, args...)
}

// startBuild does so with a build of its own, and more in its environment.
func startBuild(t testing.TB, build string, environment []string, args ...string) *replica {
	t.Helper()
	r := &replica{t: t, exited: make(chan struct{})}
	r.cmd = exec.Command(build, append([]string{
		"serve", "--kubeconfig", serviceAccountKubeconfig, "--namespace", ownNamespace,
		"--operations-listen", "127.0.0.1:0",
		"--log-format", "json", "--log-level", "debug", "--drain-delay", "200ms",
	}, args...)...)
	r.cmd.Env = append(os.Environ(), environment...)
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stderr, err := r.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	controlplane.Stall(r.cmd.Process, r.exited)
	listening := make(chan struct{})
	go r.follow(stderr, listening)
	t.Cleanup(func() {
		r.stop()
		unregister(t)
		r.withoutRaces()
		if t.Failed() {
			r.dump(60)
		}
	})
	select {
	case <-listening:
	case <-r.exited:
		r.dump(60)
		t.Fatalf("meshvakt serve ended: %v", r.exitErr)
	case <-time.After(30 * time.Second):
		r.dump(60)
		t.Fatal("meshvakt serve does not listen after 30 s")
	}
	return r
}

// unregister removes the webhook configurations that a stopped replica leaves
// behind: the next test must not be refused, or wait, for want of an answer. The API
// server learns of it by a watch of its own, and goes on asking until then.
func unregister(t testing.TB) {
	admin := clientFor(t, controlplane.Admin)
	for _, config := range []client.Object{
		&admissionregistrationv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "meshvakt"}},
		&admissionregistrationv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "before-istio.meshvakt.io"}},
	} {
		if err := admin.Delete(context.Background(), config); client.IgnoreNotFound(err) != nil {
			t.Errorf("unregister: %v", err)
		}
	}
	eventually(t, 30*time.Second, func() error { return asksNobody(admin) })
}

// asksNobody tries what Meshvakt is asked about: a guard, and a namespace that the guards
// select. What serves custom resources hears of a configuration by itself, and so does the
// rest of the API server.
func asksNobody(admin client.Client) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	g, ns := v1alpha1.DefaultGuard(), namespace(unique("unregistered"), true)
	g.Name = ns.Name
	var guards v1alpha1.MeshGuardList
	if err := admin.List(ctx, &guards); err == nil { // else there are none any more
		for i := range guards.Items {
			maps.Copy(ns.Labels, guards.Items[i].Spec.NamespaceSelector.MatchLabels)
		}
	}
	for _, o := range []client.Object{g, ns} {
		err := client.NewDryRunClient(admin).Create(ctx, o)
		if err != nil && strings.Contains(err.Error(), "failed calling webhook") && strings.Contains(err.Error(), `.meshvakt.io"`) {
			return fmt.Errorf("the API server still asks: %w", err)
		}
	}
	return nil
}

// follow keeps the log and learns the addresses from it.
func (r *replica) follow(stderr io.Reader, listening chan<- struct{}) {
	scanner := bufio.NewScanner(stderr)
	scanner.Buffer(nil, 1<<20)
	for scanner.Scan() {
		line := scanner.Text()
		var record struct{ Msg, Admission, Operations string }
		_ = json.Unmarshal([]byte(line), &record) // not every line is ours
		r.mu.Lock()
		r.log = append(r.log, line)
		r.mu.Unlock()
		if r.operations == "" && (record.Msg == "serving" || record.Msg == "waiting") {
			r.admission, r.operations = record.Admission, record.Operations
			close(listening)
		}
	}
	r.exitErr = r.cmd.Wait()
	close(r.exited)
}

func (r *replica) dump(lines int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	from := max(0, len(r.log)-lines)
	r.t.Logf("log of meshvakt (last %d of %d lines):\n%s", len(r.log)-from, len(r.log), strings.Join(r.log[from:], "\n"))
}

// withoutRaces fails the test for data races, which a binary that is built to detect
// them writes into its log.
func (r *replica) withoutRaces() {
	r.t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if at := slices.IndexFunc(r.log, func(line string) bool { return strings.Contains(line, "WARNING: DATA RACE") }); at >= 0 {
		r.t.Errorf("meshvakt has a data race:\n%s", strings.Join(r.log[at:min(len(r.log), at+60)], "\n"))
	}
}

// stop ends the replica as Kubernetes does: SIGTERM, later SIGKILL.
func (r *replica) stop() {
	_ = r.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-r.exited:
	case <-time.After(30 * time.Second):
		_ = r.cmd.Process.Kill()
		<-r.exited
	}
}

// still lets the replica stand still while something is done, so that all of it has
// happened before the replica can do anything about the first of it.
func (r *replica) still(do func() error) error {
	if err := r.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	defer func() { _ = r.cmd.Process.Signal(syscall.SIGCONT) }()
	return do()
}

func (r *replica) kill() {
	_ = r.cmd.Process.Kill()
	<-r.exited
}

// ready waits until /readyz says so.
func (r *replica) ready(ctx context.Context) *replica {
	r.t.Helper()
	eventually(r.t, 60*time.Second, func() error {
		select {
		case <-r.exited:
			r.t.Fatalf("meshvakt serve ended: %v", r.exitErr)
		default:
		}
		body, err := get(ctx, "http://"+r.operations+"/readyz")
		if err != nil {
			return fmt.Errorf("%w: %s", err, body)
		}
		return nil
	})
	return r
}

// metric returns the sum of the samples whose line begins with the prefix.
func (r *replica) metric(ctx context.Context, prefix string) float64 {
	r.t.Helper()
	body, err := get(ctx, "http://"+r.operations+"/metrics")
	if err != nil {
		r.t.Fatal(err)
	}
	var sum float64
	for line := range strings.Lines(body) {
		if strings.HasPrefix(line, prefix) {
			var v float64
			fields := strings.Fields(line)
			if _, err := fmt.Sscan(fields[len(fields)-1], &v); err == nil {
				sum += v
			}
		}
	}
	return sum
}

// rss returns the resident memory of the replica in bytes.
func (r *replica) rss() int {
	r.t.Helper()
	status, err := os.ReadFile(filepath.Join("/proc", fmt.Sprint(r.cmd.Process.Pid), "status"))
	if err != nil {
		r.t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		var kib int
		if _, err := fmt.Sscanf(line, "VmRSS: %d kB", &kib); err == nil {
			return kib << 10
		}
	}
	r.t.Fatal("no VmRSS in /proc/PID/status")
	return 0
}

func get(ctx context.Context, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	return string(body), err
}

// eventually retries until f succeeds, and fails the test with f's last error.
func eventually(t testing.TB, within time.Duration, f func() error) {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %v", within, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// handshake connects to the webhook port and returns what it presents.
func handshake(address string, config *tls.Config) (tls.ConnectionState, error) {
	conn, err := tls.Dial("tcp", address, config)
	if err != nil {
		return tls.ConnectionState{}, err
	}
	defer conn.Close()
	return conn.ConnectionState(), nil
}
