package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"github.com/meshvakt/meshvakt/internal/evidence/journal"
	"github.com/meshvakt/meshvakt/internal/evidence/record"
	"github.com/meshvakt/meshvakt/internal/evidence/spool"
	"github.com/meshvakt/meshvakt/internal/evidence/volume"
	"github.com/meshvakt/meshvakt/policies"
	"github.com/meshvakt/meshvakt/policies/facts"
	"github.com/meshvakt/meshvakt/webhook/server"
)

// endingManager is one that ends when it loses the lead.
type endingManager struct {
	manager.Manager
	lost chan struct{}
}

var errLeadLost = errors.New("leader election lost")

func (m *endingManager) Start(ctx context.Context) error {
	select {
	case <-m.lost:
		return errLeadLost
	case <-ctx.Done():
		return nil
	}
}

// oneCertificate is a source that has it.
type oneCertificate struct{ tls.Certificate }

func (c *oneCertificate) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return &c.Certificate, nil
}
func (c *oneCertificate) Healthy() bool { return true }
func (c *oneCertificate) Start(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// quietKeeper answers always the same.
type quietKeeper struct{}

func (quietKeeper) Cluster(context.Context) (string, error) { return "cluster-uid", nil }
func (quietKeeper) User(context.Context) (string, error)    { return "meshvakt", nil }
func (quietKeeper) Key(context.Context, volume.Period) (record.Key, error) {
	return record.Key{}, nil
}

// A replica that has lost the lead goes on answering until its server has drained. All of that is in its evidence: nothing
// afterwards would tell that it is missing.
func TestAnswersBehindALostLeadAreRecorded(t *testing.T) {
	const answers = 50
	dir := volume.Dir(t.TempDir())
	log := slog.New(slog.DiscardHandler)
	j, err := journal.New(journal.Config{
		Dir: dir, Name: "evidence.example.org", Replica: "meshvakt-0", Keeper: quietKeeper{},
		Boot:  record.Boot{Pod: "pod-uid", Node: "node-a", Version: "v0.2.0", BeatSeconds: 60},
		Spool: spool.Options{SegmentSize: 64 << 10, ReserveSize: 64 << 10, Budget: time.Minute},
		Now:   time.Now, Since: func() time.Duration { return 0 }, Random: rand.Reader, Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	site := httptest.NewTLSServer(nil) // for its certificate, and a client that takes it
	defer site.Close()
	certs := &oneCertificate{site.TLS.Certificates[0]}
	m := &endingManager{lost: make(chan struct{})}
	p := &process{log: log, manager: m, certs: certs, journal: j}
	p.server, err = server.New(t.Context(), server.Config{
		AdmissionAddress: "127.0.0.1:0", OperationsAddress: "127.0.0.1:0", GetCertificate: certs.GetCertificate, Log: log,
		Admission: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			close(m.lost)
			tick := time.NewTicker(time.Millisecond)
			defer tick.Stop()
			for !p.server.Draining() {
				<-tick.C
			}
			for range answers {
				receipt, err := j.Decided(r.Context(), &facts.Review{
					UID: "u", Operation: admissionv1.Create, Kind: schema.GroupVersionKind{Group: "security.istio.io", Version: "v1", Kind: "PeerAuthentication"},
					Namespace: "payments", Name: "default", User: authenticationv1.UserInfo{Username: "ola@example.org"},
				}, policies.Decision{Outcome: policies.Deny}, 0)
				if err != nil || !strings.HasPrefix(receipt, "evidence.example.org/") {
					t.Errorf("the receipt is %q, %v; must say where the record is", receipt, err)
				}
			}
		}),
	})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- p.run(t.Context()) }()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for j.Ready() != nil {
		<-tick.C
	}
	answer, err := site.Client().Get("https://" + p.server.AdmissionAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, answer.Body); err != nil {
		t.Error(err)
	}
	if err := answer.Body.Close(); err != nil {
		t.Error(err)
	}
	if err := <-ended; !errors.Is(err, errLeadLost) {
		t.Errorf("the process ends with %v; must be %v", err, errLeadLost)
	}
	reader, err := spool.OpenReader(dir.Spool(), 1)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	var last record.Record
	for line, err := range reader.Lines() {
		if err != nil {
			t.Fatal(err)
		}
		if last, err = record.Parse(line.Text); err != nil {
			t.Fatal(err)
		}
	}
	if stop, is := last.Body.(*record.Stop); !is || stop.Counts != (record.Counters{In: answers, Written: answers}) {
		t.Errorf("the last record is %+v; must be a stop that counts %d answers, all of them recorded", last.Body, answers)
	}
}
