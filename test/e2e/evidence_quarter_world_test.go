package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/cluster"
	"github.com/meshvakt/meshvakt/internal/evidence/record"
	"github.com/meshvakt/meshvakt/test/controlplane"
	"github.com/meshvakt/meshvakt/test/tmpfs"
)

// quarter is a cluster that lives through one.
type quarter struct {
	t                          *testing.T
	now                        time.Duration // since the beginning
	watchers                   []*watcher
	binary                     string // with simulated time
	address, certFile, keyFile string // of the webhook's one name
	endpoints                  *discoveryv1.EndpointSlice
	idle                       string            // a namespace that no guard selects
	names                      map[string]string // of namespaces, by what they are called in the script
	dev, platform, admin       client.Client
	deeds                      []deed
	expected                   []expected
	unlogged                   uint64 // answers for which there was no record

	mu      sync.Mutex
	turn    int                 // guarded by mu; of the balancer
	barrier map[string]*barrier // guarded by mu; by namespace
}

const beatOfQuarter = 2 * time.Hour

// beginning is half an hour into the quarter, so that its end is between two beats.
func beginning() time.Time { return time.Date(2024, 7, 1, 0, 30, 0, 0, time.UTC) }

func endOfQuarter() time.Time { return time.Date(2024, 10, 1, 0, 0, 0, 0, time.UTC) }

func (q *quarter) time() time.Time { return beginning().Add(q.now) }

func newQuarter(t *testing.T) *quarter {
	t.Helper()
	q := &quarter{
		t: t, idle: unique("idle"), names: map[string]string{}, barrier: map[string]*barrier{},
		dev: clientFor(t, controlplane.Developer), platform: clientFor(t, controlplane.Platform), admin: clientFor(t, controlplane.Admin),
	}
	var err error
	// Without the race detector, which the other tests of evidence have: thousands of beats would take minutes more.
	q.binary, err = build(t.Context(), t.TempDir(), false, "simulatedtime")
	must(t, err)
	q.balance()
	for i := range 2 {
		q.watchers = append(q.watchers, &watcher{q: q, name: fmt.Sprintf("meshvakt-%d", i), dir: tmpfs.TempDir(t), listen: freeAddress(t), clock: newTimepiece(t)})
	}
	q.endpoints = &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: ownNamespace, Name: unique("meshvakt"), Labels: map[string]string{discoveryv1.LabelServiceName: "meshvakt"}},
		AddressType: discoveryv1.AddressTypeIPv4,
	}
	create(t, q.admin, q.endpoints)
	must(t, plane.Apply(t.Context(), []byte(writings)))
	guards := map[string]v1alpha1.Remediation{"watched": "", "restored": v1alpha1.RemediationRestore}
	for value, remediation := range guards {
		g := defaultGuard(v1alpha1.OnMissingReject)
		g.Name = "quarter-" + value
		g.Spec.NamespaceSelector = metav1.LabelSelector{MatchLabels: map[string]string{"quarter": value}}
		if remediation != "" {
			g.Spec.Remediation = remediation
		}
		guard(t, g)
	}
	return q
}

// balance gives the replicas one address, as the Service does. Each review goes to the next one that is there.
func (q *quarter) balance() {
	t, dir := q.t, q.t.TempDir()
	q.address = freeAddress(t)
	cert, certPEM, keyPEM := selfSigned(t)
	q.certFile, q.keyFile = filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	must(t, os.WriteFile(q.certFile, certPEM, 0o600))
	must(t, os.WriteFile(q.keyFile, keyPEM, 0o600))
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(certPEM)
	proxy := &httputil.ReverseProxy{
		Rewrite:      func(r *httputil.ProxyRequest) { r.SetURL(q.backend()) },
		Transport:    &meeting{q, &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13}, DisableKeepAlives: true}},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) },
	}
	listener, err := net.Listen("tcp", q.address)
	must(t, err)
	server := &http.Server{Handler: proxy, TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13}, ReadHeaderTimeout: time.Minute}
	go func() { _ = server.ServeTLS(listener, "", "") }()
	t.Cleanup(func() { _ = server.Close() })
}

// backend is who answers next. Where nobody is there, it is an address at which nobody is.
func (q *quarter) backend() *url.URL {
	q.mu.Lock()
	defer q.mu.Unlock()
	for range q.watchers {
		q.turn++
		if w := q.watchers[q.turn%len(q.watchers)]; w.up {
			return &url.URL{Scheme: "https", Host: w.listen}
		}
	}
	return &url.URL{Scheme: "https", Host: q.watchers[0].listen}
}

// present tells balancer and Service who is there.
func (q *quarter) present() {
	q.t.Helper()
	q.mu.Lock()
	q.endpoints.Endpoints = nil
	for i, w := range q.watchers {
		if w.up = w.process != nil; w.up {
			q.endpoints.Endpoints = append(q.endpoints.Endpoints, discoveryv1.Endpoint{
				Addresses: []string{fmt.Sprintf("10.0.0.%d", i+1)}, TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: ownNamespace, Name: w.name},
			})
		}
	}
	q.mu.Unlock()
	must(q.t, q.admin.Update(q.t.Context(), q.endpoints))
}

// meeting is a transport in which requests to delete policies of one namespace wait for each other, on the way there
// and on the way back, so that each is judged before any is done.
type meeting struct {
	q    *quarter
	next http.RoundTripper
}

type barrier struct{ there, back sync.WaitGroup }

// meet has so many reviews of deletions in a namespace wait for each other.
func (q *quarter) meet(namespace string, reviews int) {
	b := &barrier{}
	b.there.Add(reviews)
	b.back.Add(reviews)
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.barrier[namespace] = b; reviews == 0 {
		delete(q.barrier, namespace)
	}
}

// RoundTrip implements http.RoundTripper.
func (m *meeting) RoundTrip(r *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	var review struct {
		Request struct{ Operation, Namespace string }
	}
	_ = json.Unmarshal(body, &review) // who answers says what is wrong with it
	m.q.mu.Lock()
	b := m.q.barrier[review.Request.Namespace]
	m.q.mu.Unlock()
	if b == nil || review.Request.Operation != "DELETE" {
		return m.next.RoundTrip(r)
	}
	b.there.Done()
	b.there.Wait()
	response, err := m.next.RoundTrip(r)
	b.back.Done()
	b.back.Wait()
	return response, err
}

// said is what records and other objects are told by: each watch has said something.
func (q *quarter) said() {
	t := q.t
	t.Helper()
	text := fmt.Sprintf(`{"metadata":{"annotations":{"quarter":%q}}}`, q.now.String())
	for _, o := range []client.Object{
		namespace(q.idle, false), policy(q.idle, "idle", ""), guardObject("quarter-idle"),
		&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: q.idle, Name: "idle"}},
		&v1alpha1.GuardException{ObjectMeta: metav1.ObjectMeta{Namespace: q.idle, Name: "idle"}},
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: q.idle}},
	} {
		must(t, q.admin.Patch(t.Context(), o, mergePatch(text)))
	}
}

// quiet makes what said touches.
func (q *quarter) quiet() {
	t := q.t
	t.Helper()
	create(t, q.admin, namespace(q.idle, false))
	serviceAccount(t, q.idle)
	g := defaultGuard(v1alpha1.OnMissingReject)
	g.Name, g.Spec.NamespaceSelector = "quarter-idle", metav1.LabelSelector{MatchLabels: map[string]string{"quarter": "nobody"}}
	guard(t, g)
	p := pod(q.idle, nil)
	p.Name, p.GenerateName = "idle", ""
	e := (&governed{namespace: q.idle}).legacy("idle", beginning().Add(200*24*time.Hour))
	create(t, q.admin, policy(q.idle, "idle", "STRICT"), p, e, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: q.idle}})
}

// What a change is behind: a beat, and before it a word on each watch, so that it is known that it was not yet.
const (
	saidBefore = 10 * time.Second
	doneAfter  = 10 * time.Second
)

// at goes to just behind the beat of a day and hour, counted from the beginning, with all that came before settled: the
// bound before which a change now cannot have been lies saidBefore + doneAfter back.
func (q *quarter) at(day, hour int) {
	q.t.Helper()
	q.just(time.Duration(24*day+hour) * time.Hour)
	q.t.Logf("%s: day %d, hour %d of the script", q.time().Format(time.DateTime), day, hour)
}

// later goes so far beyond the beat that at has gone to.
func (q *quarter) later(by time.Duration) {
	q.t.Helper()
	q.advance(q.now - doneAfter + by)
}

// just is at for the time of a beat.
func (q *quarter) just(beat time.Duration) {
	q.t.Helper()
	for beat < q.now+saidBefore { // what was before has taken a beat longer
		beat += beatOfQuarter
	}
	for tries := 1; ; tries++ {
		q.advance(beat - saidBefore)
		q.said()
		if tries > 2 {
			// The word that comes with each new watch, in time that stands still. The beat tells whether it has come.
			time.Sleep(cluster.WordEvery + 5*time.Second)
		}
		q.tick()
		last := q.lastOf(beat)
		q.advance(last)
		late := q.unheard(last - beat)
		if q.now > last {
			late = "a beat was late"
		}
		if late == "" {
			break
		}
		q.t.Logf("%s; another beat later then", late)
		if tries == 12 {
			q.stuck()
		}
		beat += beatOfQuarter
	}
	q.advance(beat + doneAfter - 4*time.Second)
	q.advance(beat + doneAfter)
}

// lastOf is when all have told the beat of that time. A replica whose first beat was late goes on as late as that.
func (q *quarter) lastOf(beat time.Duration) time.Duration {
	last := beat
	for _, w := range q.watchers {
		if w.process != nil && !w.mute && w.next <= beat+patienceOfBeat*time.Second {
			last = max(last, w.next)
		}
	}
	return last
}

// stuck ends the test, with what all goroutines of the replicas are at.
func (q *quarter) stuck() {
	q.t.Helper()
	for _, w := range q.watchers {
		if w.process != nil {
			_ = w.process.cmd.Process.Signal(syscall.SIGQUIT)
			<-w.process.exited
			w.process.dump(5000)
		}
	}
	q.t.Fatal("a watch hears nothing")
}

// unheard tells of a watch that, by the last beat, which some have told so much later than others, has not told yet what
// was said before it.
func (q *quarter) unheard(later time.Duration) string {
	for _, w := range q.watchers {
		if w.process == nil || w.mute {
			continue
		}
		for _, watch := range w.beat.Watches {
			if watch.QuietMillis > uint64((saidBefore + later).Milliseconds()) {
				return fmt.Sprintf("%s has heard nothing of %s for %d ms", w.name, watch.GVK, watch.QuietMillis)
			}
		}
	}
	return ""
}

// observed waits until all that are there have recorded how a namespace stands.
func (q *quarter) observed(name, least string) {
	q.t.Helper()
	for _, w := range q.watchers {
		if w.process == nil || w.mute {
			continue
		}
		eventually(q.t, 60*time.Second, func() error {
			w.read()
			if got := w.stands(q.names[name]); got != least {
				return fmt.Errorf("%s: namespace %s is %q; must be %q", w.name, name, got, least)
			}
			return nil
		})
	}
}

// told waits until all that are there have recorded something: while it is on its way to them, no time must pass.
func (q *quarter) told(what string, is func(record.Record) bool) {
	q.t.Helper()
	for _, w := range q.watchers {
		if w.process == nil || w.mute {
			continue
		}
		eventually(q.t, 60*time.Second, func() error {
			w.read()
			if !slices.ContainsFunc(w.records, is) {
				return fmt.Errorf("%s has not recorded %s", w.name, what)
			}
			return nil
		})
	}
}

// stands is the weakest mode by the last record of a namespace, empty where there is none.
func (w *watcher) stands(namespace string) string {
	for _, r := range slices.Backward(w.records) {
		switch b := r.Body.(type) {
		case *record.State:
			if b.Row.Namespace == namespace {
				if b.What != "set" {
					return ""
				}
				return b.Row.Least
			}
		case *record.Snapshot:
			for i := range b.Rows {
				if b.Rows[i].Namespace == namespace {
					return b.Rows[i].Least
				}
			}
			if b.Part == 1 {
				return ""
			}
		}
	}
	return ""
}

// asked waits until the leader has seen the API server ask.
func (q *quarter) asked() {
	q.t.Helper()
	eventually(q.t, 90*time.Second, func() error {
		for _, w := range q.watchers {
			if w.process == nil {
				continue
			}
			body, err := get(q.t.Context(), "http://"+w.process.operations+"/metrics")
			if err != nil {
				return err
			}
			if strings.Contains(body, "\nmeshvakt_canary_age_seconds ") && w.process.metric(q.t.Context(), "meshvakt_canary_age_seconds ") < 30 {
				return nil
			}
		}
		return errors.New("no leader has seen the API server ask")
	})
}

// past does something past the webhook, which nobody puts back meanwhile.
func (q *quarter) past(do func(context.Context) error) {
	q.t.Helper()
	giveBack := withoutRight(q.t, q.admin)
	must(q.t, q.admin.Delete(q.t.Context(), registered(q.t, q.admin)))
	q.unasked(do)
	giveBack()
}

// unasked tries until the API server has noticed that there is nobody to ask.
func (q *quarter) unasked(do func(context.Context) error) {
	q.t.Helper()
	eventually(q.t, 20*time.Second, func() error {
		err := do(q.t.Context())
		if apierrors.IsConflict(err) {
			q.t.Fatal(err)
		}
		return err
	})
}
