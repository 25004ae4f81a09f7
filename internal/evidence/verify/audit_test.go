package verify

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
)

// apiServer writes an audit log.
type apiServer struct{ lines bytes.Buffer }

func (s *apiServer) event(at time.Duration, e map[string]any) {
	e["kind"], e["apiVersion"], e["level"] = "Event", "audit.k8s.io/v1", "Metadata"
	if e["stage"] == nil {
		e["stage"] = "ResponseComplete"
	}
	e["requestReceivedTimestamp"] = epoch().Add(at).Format(time.RFC3339Nano)
	e["stageTimestamp"] = epoch().Add(at).Format(time.RFC3339Nano)
	s.lines.Write(append(must(json.Marshal(e)), '\n'))
}

func (s *apiServer) write(at time.Duration, verb, group, resource, ns, name string, code int) {
	s.event(at, map[string]any{"verb": verb, "user": map[string]any{"username": "ola@example.org"}, "responseStatus": map[string]any{"code": code},
		"objectRef": map[string]any{"apiGroup": group, "resource": resource, "namespace": ns, "name": name}})
}

// failed is a policy that somebody has tried to create.
func (s *apiServer) failed(at time.Duration, code int, message string) {
	s.event(at, map[string]any{"verb": "create", "responseStatus": map[string]any{"code": code, "message": message},
		"objectRef": map[string]any{"apiGroup": "security.istio.io", "resource": "peerauthentications", "namespace": "payments", "name": "weak"}})
}

// answered is a request that left a record.
func (s *apiServer) answered(at time.Duration, receipt string) {
	s.event(at, map[string]any{"verb": "update", "responseStatus": map[string]any{"code": 200},
		"objectRef":   map[string]any{"apiGroup": "security.istio.io", "resource": "peerauthentications", "namespace": "payments", "name": "default"},
		"annotations": map[string]any{"mesh.meshvakt.io/evidence": receipt, "authorization.k8s.io/decision": "allow"}})
}

// receipt is what the webhook says of the last record.
func (b *book) receipt() string {
	seq := len(b.now().lines) - 1
	return fmt.Sprintf("%s#%d %s", b.now().origin, seq, b.chain.Last())
}

// outage is a replica that is down from minute 6 to 26, and an audit log that goes on.
func outage(t *testing.T, happens func(b *book, s *apiServer), claims ...Claim) *Result {
	t.Helper()
	b, s := quiet("meshvakt-0", 1), &apiServer{}
	for m := range 40 {
		s.event(seconds(60*m-300), map[string]any{"verb": "create", "objectRef": map[string]any{"apiGroup": "authorization.k8s.io", "resource": "subjectaccessreviews"}})
	}
	s.write(seconds(1), "create", "", "configmaps", "other", "istio-ca-root-cert", 201)
	s.write(seconds(2), "create", "", "pods", "other", "web", 201)
	s.write(seconds(3), "create", "", "configmaps", "istio-system", "istio", 409)
	b.decide(seconds(62), "payments", 2)
	s.answered(seconds(62), b.receipt())
	b.state(seconds(63), seconds(61), b.row("payments", "STRICT", 0, 2))
	for m := 2; m < 7; m++ {
		b.beat(seconds(60 * m))
	}
	b.start(seconds(26 * 60))
	b.snapshot(seconds(26*60), "boot", seconds(26*60))
	for m := 26; m < 30; m++ {
		b.beat(seconds(60 * m))
	}
	happens(b, s)
	audit := NewAudit()
	if err := audit.Read("audit.log", &s.lines); err != nil {
		t.Fatal(err)
	}
	if claims == nil {
		claims = []Claim{claimOf(t, "mtls=STRICT,namespace=payments", 70, 1700)}
	}
	return verifyAll(t, Options{Audit: audit, Claims: claims}, b.sources()...)
}

// TestTimesThatTheAuditLogTellsOf: it fills a hole if nothing in it says, and nothing in it leaves open, that something
// came and went.
func TestTimesThatTheAuditLogTellsOf(t *testing.T) {
	inside := seconds(15 * 60)
	for name, c := range map[string]struct {
		happens func(b *book, s *apiServer)
		want    Verdict
		why     string // that the audit log is not used
	}{
		"nothing": {func(*book, *apiServer) {}, Holds, ""},
		"a policy came": {func(_ *book, s *apiServer) {
			s.write(inside, "create", "security.istio.io", "peerauthentications", "payments", "weak", 201)
		}, NotProvable, ""},
		"a policy came by server-side apply": {func(_ *book, s *apiServer) {
			s.write(inside, "patch", "security.istio.io", "peerauthentications", "payments", "weak", 201)
		}, NotProvable, ""},
		"a policy came, and what it answered was not told": {func(_ *book, s *apiServer) {
			s.write(inside, "create", "security.istio.io", "peerauthentications", "payments", "weak", 0)
		}, NotProvable, ""},
		"a policy was tried": {func(_ *book, s *apiServer) {
			s.event(inside, map[string]any{"verb": "create", "requestURI": "/apis/security.istio.io/v1/namespaces/payments/peerauthentications?dryRun=All&fieldManager=kubectl", "responseStatus": map[string]any{"code": 201},
				"objectRef": map[string]any{"apiGroup": "security.istio.io", "resource": "peerauthentications", "namespace": "payments", "name": "weak"}})
		}, Holds, ""},
		"a policy came from somebody whose name looks like a try": {func(_ *book, s *apiServer) {
			s.event(inside, map[string]any{"verb": "create", "requestURI": "/apis/security.istio.io/v1/namespaces/payments/peerauthentications?fieldManager=dryRun=All", "responseStatus": map[string]any{"code": 201},
				"objectRef": map[string]any{"apiGroup": "security.istio.io", "resource": "peerauthentications", "namespace": "payments", "name": "weak"}})
		}, NotProvable, ""},
		"a policy of another guarded namespace came": {func(b *book, s *apiServer) {
			b.state(seconds(28*60+1), seconds(28*60), b.row("journal", "STRICT", 0, 1)) // which may be a root namespace, too
			s.write(inside, "create", "security.istio.io", "peerauthentications", "journal", "default", 201)
		}, NotProvable, ""},
		"a policy was refused": {func(_ *book, s *apiServer) {
			s.write(inside, "create", "security.istio.io", "peerauthentications", "payments", "weak", 403)
		}, Holds, ""},
		"a policy came, and the API server gave up waiting for its storage": {func(_ *book, s *apiServer) {
			s.failed(inside, 504, "Timeout: request did not complete within requested timeout - context deadline exceeded")
		}, NotProvable, ""},
		"a policy came, and the storage did not say": {func(_ *book, s *apiServer) {
			s.failed(inside, 500, "etcdserver: request timed out")
		}, NotProvable, ""},
		"nobody was there to judge a policy": {func(_ *book, s *apiServer) {
			s.failed(inside, 500, `Internal error occurred: failed calling webhook "mesh.meshvakt.io": failed to call webhook: connection refused`)
		}, Holds, ""},
		"a policy could not be judged": {func(_ *book, s *apiServer) {
			s.failed(inside, 503, `admission webhook "mesh.example.org" denied the request: later`)
		}, Holds, ""},
		"a policy of what may be the root namespace came": {func(_ *book, s *apiServer) {
			s.write(inside, "create", "security.istio.io", "peerauthentications", "istio-system", "default", 201)
		}, NotProvable, ""},
		"settings of the mesh came": {func(_ *book, s *apiServer) {
			s.write(inside, "create", "", "configmaps", "istio-system", "istio", 201)
		}, NotProvable, ""},
		"a ConfigMap that Istio does not read came": {func(_ *book, s *apiServer) {
			s.write(inside, "create", "", "configmaps", "payments", "settings", 201)
		}, Holds, ""},
		"a pod came": {func(_ *book, s *apiServer) {
			s.write(inside, "create", "", "pods", "payments", "web", 201)
		}, NotProvable, ""},
		"a pod was changed": {func(_ *book, s *apiServer) {
			s.write(inside, "patch", "", "pods", "payments", "web", 200)
		}, NotProvable, ""},
		"a pod came elsewhere": {func(_ *book, s *apiServer) {
			s.write(inside, "create", "", "pods", "other", "web", 201)
		}, Holds, ""},
		"a pod's status": {func(_ *book, s *apiServer) {
			s.event(inside, map[string]any{"verb": "patch", "responseStatus": map[string]any{"code": 200}, "objectRef": map[string]any{"resource": "pods", "subresource": "status", "namespace": "payments", "name": "web"}})
		}, Holds, ""},
		"it is silent for six minutes": {func(_ *book, s *apiServer) { s.cut(seconds(12*60), seconds(18*60-1)) }, NotProvable, ""},
		"it ends too early":            {func(_ *book, s *apiServer) { s.cut(seconds(20*60), seconds(40*60)) }, NotProvable, ""},
		"it has no write of pods":      {func(_ *book, s *apiServer) { s.cut(seconds(2), seconds(3)) }, NotProvable, "it has no write of pods at all, which its policy may leave out"},
		"it lacks a decision": {func(b *book, _ *apiServer) {
			b.decide(seconds(29*60+1), "payments", 2)
		}, NotProvable, "of 2 decisions in its time it does not have 1: that of an API server is missing, or a part of one"},
		"a decision that could not be made": {func(b *book, _ *apiServer) {
			b.counts.In++
			b.counts.Written++
			b.add(seconds(29*60+1), &record.Decision{Request: "r", Operation: "UPDATE", Object: b.policy("payments", 2), By: b.pseudonyms.Subject("ola"), Guards: b.pseudonyms.Digest(nil), Verdict: "error"})
		}, Holds, ""},
		"it has no receipts": {func(_ *book, s *apiServer) {
			s.lines = *bytes.NewBuffer(bytes.ReplaceAll(s.lines.Bytes(), []byte("meshvakt.io/evidence"), []byte("other.io/evidence")))
		}, NotProvable, "no answer of Meshvakt's with a record is in it, so it cannot be told whose it is"},
		"it is of another cluster": {func(_ *book, s *apiServer) {
			s.lines = *bytes.NewBuffer(bytes.ReplaceAll(s.lines.Bytes(), []byte(testCluster), []byte(strings.Replace(testCluster, "9", "8", 1))))
		}, NotProvable, "it is of a cluster of which no log is here"},
		"the policy changed meanwhile": {func(b *book, _ *apiServer) {
			b.state(seconds(29*60+1), seconds(29*60), b.row("payments", "STRICT", 0, 3))
		}, Holds, ""},
	} {
		r := outage(t, c.happens)
		hole := intervalAt(r, 15*60)
		want := map[Verdict]Grade{Holds: ObservedByAudit, NotProvable: Inferred}[c.want]
		if len(r.Problems) > 0 || r.Claims[0].Verdict != c.want || hole.Grade != want || r.Audit.Why != c.why || r.Audit.Used != (c.why == "") {
			t.Errorf("%s: %s, the hole is %s, %+v, problems %v; must be %s, %s, %q", name, r.Claims[0].Verdict, hole.Grade, r.Audit, r.Problems, c.want, want, c.why)
		}
	}
}

// intervalAt is that of payments at a second.
func intervalAt(r *Result, second int) Interval {
	at := epoch().Add(seconds(second))
	for _, line := range r.Namespaces {
		for _, in := range line.Intervals {
			if line.Namespace == "payments" && !at.Before(in.From) && at.Before(in.To) {
				return in
			}
		}
	}
	return Interval{}
}

// cut takes out what was written from one time until before another.
func (s *apiServer) cut(from, to time.Duration) {
	var kept bytes.Buffer
	for line := range bytes.Lines(s.lines.Bytes()) {
		var e auditEvent
		if err := json.Unmarshal(line, &e); err != nil {
			panic(err)
		}
		if at := e.At.Sub(epoch()); at < from || at >= to {
			kept.Write(line)
		}
	}
	s.lines = kept
}

// TestReceipts: what the API server was told of is in the log, as it was told, or the verifier says so.
func TestReceipts(t *testing.T) {
	for name, c := range map[string]struct {
		happens func(b *book, s *apiServer)
		problem string
		finding string
	}{
		"as it was told": {func(*book, *apiServer) {}, "", ""},
		"another record": {func(b *book, s *apiServer) {
			s.answered(seconds(80), fmt.Sprintf("%s#4 %064x", b.now().origin, 7))
		}, "the log was rewritten", ""},
		"the end is missing": {func(b *book, s *apiServer) {
			b.decide(seconds(29*60+1), "payments", 2)
			s.answered(seconds(29*60+1), b.receipt())
			b.now().lines = b.now().lines[:len(b.now().lines)-1]
		}, "", FindingTail},
		"the end of a log that was closed is missing": {func(b *book, s *apiServer) {
			b.turn(seconds(29*60+30), "2027q1")
			closed := b.shards[0]
			s.answered(seconds(29*60+1), fmt.Sprintf("%s#%d %064x", closed.origin, len(closed.lines), 7))
		}, "the log was cut", ""},
		"a log is missing": {func(b *book, s *apiServer) {
			s.answered(seconds(80), fmt.Sprintf("%s#4 %064x", strings.Replace(b.now().origin, "meshvakt-0", "meshvakt-1", 1), 7))
		}, "", FindingMissingLog},
	} {
		r := outage(t, c.happens)
		got := ""
		for _, p := range r.Problems {
			got += p.What
		}
		if (c.problem == "") != (got == "") || !strings.Contains(got, c.problem) || (r.ExitCode() == 3) != (c.problem != "") {
			t.Errorf("%s: problems %v; must be %q", name, r.Problems, c.problem)
		}
		list := slices.DeleteFunc(codes(r), func(code string) bool { return code == FindingNotAsked }) // the outage itself
		if c.problem == "" && strings.Join(list, " ") != c.finding {
			t.Errorf("%s: findings %+v; must be %q", name, r.Findings, c.finding)
		}
	}
}

// TestALogThatOnlyTheAPIServerWasToldOf is of a replica that no other names. What it had, it had from its first answer to its last.
func TestALogThatOnlyTheAPIServerWasToldOf(t *testing.T) {
	for name, c := range map[string]struct {
		from, to int
		want     Verdict
	}{"all the time": {70, 350, NotProvable}, "between two answers": {120, 180, NotProvable}, "before the first": {70, 90, Holds}, "after the last": {210, 350, Holds}} {
		r := outage(t, func(b *book, s *apiServer) {
			origin := strings.Replace(b.now().origin, "meshvakt-0", "meshvakt-1", 1)
			s.answered(seconds(200), fmt.Sprintf("%s#4 %064x", origin, 7)) // whose clock was set, in between
			s.answered(seconds(100), fmt.Sprintf("%s#5 %064x", origin, 7))
		}, claimOf(t, "mtls=STRICT,namespace=payments", c.from, c.to))
		if len(r.Problems) > 0 || r.Claims[0].Verdict != c.want || !slices.Contains(codes(r), FindingMissingLog) {
			t.Errorf("%s: %s; must be %s: %+v, problems %v", name, r.Claims[0].Verdict, c.want, r.Namespaces[0].Intervals, r.Problems)
		}
	}
}

func TestReadAudit(t *testing.T) {
	good := `{"kind":"Event","stage":"ResponseComplete","stageTimestamp":"2026-10-01T00:00:00Z"}`
	receipt := func(value string) string {
		return strings.Replace(good, "{", fmt.Sprintf(`{"annotations":{"x.meshvakt.io/evidence":%q},`, value), 1)
	}
	for text, want := range map[string]string{
		"":                      "",
		"\n":                    "",
		good:                    "",
		good + "\n" + good[:20]: "", // half written
		good + "\n" + good[:20] + "\n" + good + "\n": "line 2",
		`{"kind":"Pod"}` + "\n":                      `kind is "Pod"`,
		"[]\n":                                       "line 1",
		receipt("counted") + "\n":                    "",
		receipt("gap") + "\n":                        "",
		receipt("log#1 00") + "\n":                   "must be as in ORIGIN#NUMBER HASH",
		receipt("evidence.example.org/"+testCluster+"/meshvakt-0/2026q4#-1 "+strings.Repeat("0", 64)) + "\n": "must be as in",
		receipt("evidence.example.org/"+testCluster+"/meshvakt-0/2026q4#1 "+strings.Repeat("0", 64)) + "\n" +
			receipt("evidence.example.org/"+strings.Replace(testCluster, "9", "8", 1)+"/meshvakt-0/2026q4#1 "+strings.Repeat("0", 64)) + "\n": "one cluster at a time",
	} {
		err := NewAudit().Read("audit.log", strings.NewReader(text))
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v; must be %q", text, err, want)
		}
	}
}
