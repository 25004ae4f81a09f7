package webhook

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/meshvakt/meshvakt/policies"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// ledger is evidence that can be made to refuse.
type ledger struct {
	refused error

	mu    sync.Mutex
	lines []string
}

func (l *ledger) note(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, fmt.Sprintf(format, args...))
}

func (l *ledger) Decided(_ context.Context, r *facts.Review, d policies.Decision, _ time.Duration) (string, error) {
	l.note("%s %s", r.UID, d.Outcome)
	return "origin#7 abc", l.refused
}

func (l *ledger) Failed(ctx context.Context, r *facts.Review, _ time.Duration) {
	l.note("%s failed, in time: %v", r.UID, ctx.Err() == nil)
}

func withEvidence(l *ledger) func(*Config) { return func(c *Config) { c.Evidence = l } }

func TestEvidenceOfAnswers(t *testing.T) {
	l := &ledger{}
	w := newWebhook(t, guarded(t), withEvidence(l), func(c *Config) {
		c.Canary = func(r *facts.Review) bool { return r.UID == "canary" }
	})
	if a := w.ask(t, podReview("denied")); a.Allowed || a.AuditAnnotations[AnnotationEvidence] != "origin#7 abc" {
		t.Errorf("answered %+v; must be refused and say where the record is", a)
	}
	w.facts.cached, w.facts.live = strict(t), strict(t)
	if a := w.ask(t, podReview("allowed")); !a.Allowed || a.AuditAnnotations[AnnotationEvidence] != "origin#7 abc" {
		t.Errorf("answered %+v; must be allowed and say where the record is", a)
	}
	dry := podReview("dry")
	yes := true
	dry.Request.DryRun = &yes
	if a := w.ask(t, dry); a.AuditAnnotations[AnnotationEvidence] != "" {
		t.Errorf("a dry run has the annotation %q", a.AuditAnnotations[AnnotationEvidence])
	}
	w.ask(t, podReview("canary"))
	if got := post(w, PathMutate, bytes.NewReader(encode(t, podReview("mutated")))); got.Code != http.StatusOK {
		t.Fatalf("HTTP %d: %s", got.Code, got.Body)
	}
	if want := []string{"denied Deny", "allowed Allow"}; !slices.Equal(l.lines, want) {
		t.Errorf("evidence is %q; must be %q: no dry run, no canary, no mutation", l.lines, want)
	}
}

func TestEvidenceOfWhatWasNotJudged(t *testing.T) {
	l := &ledger{}
	w := newWebhook(t, strict(t), withEvidence(l))
	w.facts.err = errors.New("the cache is empty")
	post(w, PathValidate, bytes.NewReader(encode(t, podReview("no facts"))))
	post(w, PathMutate, bytes.NewReader(encode(t, podReview("not changed"))))
	strange := podReview("strange")
	strange.Request.Namespace = ""
	post(w, PathValidate, bytes.NewReader(encode(t, strange)))
	post(w, PathValidate, strings.NewReader("{"))
	dry := podReview("dry")
	yes := true
	dry.Request.DryRun = &yes
	post(w, PathValidate, bytes.NewReader(encode(t, dry)))
	w.facts.before = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	post(w, PathValidate+"?timeout=10ms", bytes.NewReader(encode(t, podReview("late"))))
	want := []string{"no facts failed, in time: true", "strange failed, in time: true", "late failed, in time: true"}
	if !slices.Equal(l.lines, want) {
		t.Errorf("evidence is %q; must be %q", l.lines, want)
	}
}

// What must not happen without a record is refused whatever the failure policy of the webhook: it
// is an answer, and no failed call.
func TestRefusedForWantOfARecord(t *testing.T) {
	l := &ledger{refused: errors.New("EvidenceUnavailable: no room")}
	w := newWebhook(t, strict(t), withEvidence(l))
	a := w.ask(t, podReview("u"))
	if a.Allowed || a.Result.Code != http.StatusServiceUnavailable || a.Result.Message != "EvidenceUnavailable: no room" ||
		a.AuditAnnotations[AnnotationEvidence] == "" || a.AuditAnnotations[AnnotationDecision] != "deny" {
		t.Errorf("answered %+v", a)
	}
	if len(w.recorder.outcomes) != 1 || w.recorder.outcomes[0] != policies.Deny || !strings.Contains(w.log.String(), `"decision":"deny"`) {
		t.Errorf("counted %v, logged %s", w.recorder.outcomes, w.log)
	}
}
