package controller

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// The canary is a request that Meshvakt must refuse: a GuardException that approves
// itself. Whatever else is registered, only that it comes back refused, by the entry that
// is ours and for the reason that is ours, shows that the API server asks and gets our
// answer.
//
// It is not told apart by its requester: the mutating webhook corrects that field, and a
// corrected one would be let pass.
const (
	canaryPrefix    = "meshvakt-canary-"
	canaryRequester = "meshvakt-canary"
	canaryEntry     = "own.meshvakt.io"
	canaryCode      = "[MV505]"
)

// The rhythm of the canary. An answer counts for a minute, and a lost one is asked for
// again soon.
const (
	canaryInterval = 20 * time.Second
	canaryAgain    = 2 * time.Second
	canaryPatience = 10 * time.Second
	// canaryFresh is how old the last answer may be when another one fails, so that it is
	// not older than a minute when the next one has failed too.
	canaryFresh = 45 * time.Second
)

// Canary asks the API server, while this replica leads, for what must be refused.
type Canary struct {
	Client    client.Client
	Namespace string // Meshvakt's own, in which nobody else asks for exceptions
	Count     CanaryCounter
	Log       *slog.Logger
	Now       func() time.Time

	mu       sync.Mutex
	answered time.Time     // guarded by mu; when the last right answer came
	verdict  CanaryVerdict // guarded by mu
	changed  []func()      // guarded by mu
}

// CanaryCounter counts answers, by outcome.
type CanaryCounter interface {
	CanaryAnswered(outcome string)
}

// CanaryVerdict is what the canary has found. The zero value: nothing yet.
type CanaryVerdict struct {
	Known, Answered bool
	// Reason and Message say what came instead of the right answer.
	Reason, Message string
}

// The outcomes of a canary; metric labels, and reasons of the condition Enforcing.
const (
	CanaryRefused  = "CanaryRefused"  // by us, as it must be
	CanaryLetPass  = "CanaryLetPass"  // nobody was asked, or whoever was let it pass
	CanaryOther    = "CanaryOther"    // somebody else refused
	CanaryNoAnswer = "CanaryNoAnswer" // the API server did not get an answer, or gave none
)

// CanaryOutcomes lists them, for metrics that start at zero.
func CanaryOutcomes() []string {
	return []string{CanaryRefused, CanaryLetPass, CanaryOther, CanaryNoAnswer}
}

// IsCanary tells the reviews of the canary from those of users, which alone are counted. A
// user who writes such an object hides nothing but a dry run in Meshvakt's own namespace.
func IsCanary(r *facts.Review, ownNamespace string) bool {
	e, ok := r.Object.(*v1alpha1.GuardException)
	return ok && r.DryRun && r.Namespace == ownNamespace && strings.HasPrefix(r.Name, canaryPrefix) && e.Spec.Reference == canaryRequester
}

// OnChange has f called whenever the verdict changes. f must not block.
func (c *Canary) OnChange(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.changed = append(c.changed, f)
}

// Verdict is what the canary says now.
func (c *Canary) Verdict() CanaryVerdict {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.verdict
}

// Age is how long ago the last right answer came; false while there was none, as on
// replicas that do not lead.
func (c *Canary) Age() (time.Duration, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.Now().Sub(c.answered), !c.answered.IsZero()
}

// Start asks until ctx ends. The manager runs it on the leader alone.
func (c *Canary) Start(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			c.mu.Lock()
			c.answered, c.verdict = time.Time{}, CanaryVerdict{} // of no worth for whoever leads next
			c.mu.Unlock()
			return nil
		case <-timer.C:
		}
		wait := canaryAgain
		if c.ask(ctx) {
			wait = canaryInterval
		}
		timer.Reset(wait)
	}
}

// ask sends one canary, and reports whether the right answer came.
func (c *Canary) ask(ctx context.Context) bool {
	canary, err := newCanary(c.Namespace, c.Now())
	if err != nil {
		c.Log.ErrorContext(ctx, "cannot make a canary", "error", err)
		return false
	}
	request, cancel := context.WithTimeout(ctx, canaryPatience)
	defer cancel()
	outcome, message := read(canary.Name, c.Client.Create(request, canary, client.DryRunAll))
	if ctx.Err() != nil {
		return false
	}
	c.Count.CanaryAnswered(outcome)
	c.settle(ctx, outcome, message)
	return outcome == CanaryRefused
}

// settle draws the conclusion. That a canary is let pass shows at once that nobody is
// asked. Where none comes back, requests are refused and not let pass, and a single one
// lost proves nothing: what counts is the last right answer.
func (c *Canary) settle(ctx context.Context, outcome, message string) {
	c.mu.Lock()
	now, before, never := c.Now(), c.verdict, c.answered.IsZero()
	switch {
	case outcome == CanaryRefused:
		c.answered = now
		c.verdict = CanaryVerdict{Known: true, Answered: true}
	case outcome == CanaryLetPass, c.answered.IsZero(), now.Sub(c.answered) >= canaryFresh:
		c.verdict = CanaryVerdict{Known: true, Reason: outcome, Message: message}
	}
	after, changed := c.verdict, c.changed
	c.mu.Unlock()
	if after == before {
		return
	}
	switch {
	case after.Answered:
		c.Log.InfoContext(ctx, "the API server asks, and Meshvakt answers")
	case never: // as always before the first registration
		c.Log.InfoContext(ctx, "the API server does not ask Meshvakt yet, or does not get its answers", "outcome", outcome, "answer", message)
	default:
		c.Log.ErrorContext(ctx, "a request that Meshvakt must refuse did not come back refused by it", "outcome", outcome, "answer", message)
	}
	for _, f := range changed {
		f()
	}
}

func newCanary(namespace string, now time.Time) (*v1alpha1.GuardException, error) {
	var nonce [8]byte
	if _, err := rand.Read(nonce[:]); err != nil {
		return nil, fmt.Errorf("make a name: %w", err)
	}
	return &v1alpha1.GuardException{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: canaryPrefix + hex.EncodeToString(nonce[:])},
		Spec: v1alpha1.GuardExceptionSpec{
			Policies:  []v1alpha1.ExceptedPolicy{{Name: "strict-mtls"}},
			Reason:    "asks whether Meshvakt answers; never stored",
			Reference: canaryRequester,
			ExpiresAt: metav1.NewTime(now.Add(time.Hour)),
			Approved:  true,
			Requester: canaryRequester,
		},
	}, nil
}

// read tells what an answer means. Details repeat the name of this very canary, which
// somebody who only plays back an old answer does not know.
func read(name string, err error) (outcome, message string) {
	if err == nil {
		return CanaryLetPass, "the API server let pass a request that Meshvakt must refuse; it does not ask, or somebody else answers"
	}
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		return CanaryNoAnswer, oneLine(err)
	}
	s := status.Status()
	switch {
	case s.Reason != metav1.StatusReasonForbidden || strings.Contains(s.Message, "failed calling webhook"):
		return CanaryNoAnswer, oneLine(err)
	case strings.HasPrefix(s.Message, fmt.Sprintf("admission webhook %q denied the request:", canaryEntry)) &&
		strings.Contains(s.Message, canaryCode) && s.Details != nil && s.Details.Name == name:
		return CanaryRefused, ""
	}
	return CanaryOther, "somebody else has refused the request by which Meshvakt sees whether it is asked: " + oneLine(err)
}

// oneLine is an error for a condition, whose message people read in a table.
func oneLine(err error) string {
	const most = 300
	text := strings.Join(strings.Fields(err.Error()), " ")
	if r := []rune(text); len(r) > most {
		return string(r[:most]) + "…"
	}
	return text
}
