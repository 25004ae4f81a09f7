// Package webhook is the HTTP edge of Meshvakt: AdmissionReviews come in,
// policies judge them over facts, AdmissionReviews go out.
//
// What kube-apiserver makes of an answer decides which one is given. A request
// that was judged gets HTTP 200 and allowed true or false. A request that could
// not be judged, whatever the cause, gets HTTP 4xx or 5xx: the API server counts
// that as a failed call and applies the failure policy that the operator chose.
// allowed: true is never the answer to something that no policy looked at.
package webhook

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	authenticationv1 "k8s.io/api/authentication/v1"

	"github.com/meshvakt/meshvakt/policies"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// FactSource reads the state of the cluster that a request meets.
type FactSource interface {
	// Read may answer from a cache; Cluster.Live says whether it did.
	Read(context.Context, *facts.Review) (facts.Cluster, error)
	// ReadLive asks the API server.
	ReadLive(context.Context, *facts.Review) (facts.Cluster, error)
}

// Authorizer knows who may take namespaces out of a guard, and who may approve
// exceptions.
type Authorizer interface {
	MayUnguard(ctx context.Context, user authenticationv1.UserInfo, guard string) (bool, error)
	MayApprove(ctx context.Context, user authenticationv1.UserInfo, namespace, name string) (bool, error)
}

// Recorder counts what the handler does.
type Recorder interface {
	// Begin notes a request on a path; end is called once when it is answered.
	Begin(path string) (end func())
	// Decided notes a decision that is being answered.
	Decided(kind, operation string, d policies.Decision)
	// Changed notes that a mutation is being answered, and whether with a patch.
	Changed(kind string, patched bool)
	// Failed notes a request that was not judged, by the stage it failed in.
	Failed(stage string)
}

// Evidence keeps records of what is answered. Dry runs leave none.
type Evidence interface {
	// Decided is told of a decision before it is answered. The receipt, for the API server's
	// audit log, says where the record is. With refused the request is denied after all, by
	// that text: it must not happen without a record, and there is none.
	Decided(ctx context.Context, r *facts.Review, d policies.Decision, took time.Duration) (receipt string, refused error)
	// Failed is told of a request that was not judged.
	Failed(ctx context.Context, r *facts.Review, took time.Duration)
}

// Config is what a Handler needs.
type Config struct {
	// Policies judge the requests. Required: a webhook without policies would
	// wave everything through.
	Policies []policies.Policy
	// Facts is required.
	Facts FactSource
	// Authorizer is required.
	Authorizer Authorizer
	// Recorder is where metrics go, nil for nowhere.
	Recorder Recorder
	// Log is nil for slog.Default.
	Log *slog.Logger
	// MaxInFlight is how many requests are judged at once; one more is answered
	// 503. 0 means DefaultMaxInFlight.
	MaxInFlight int
	// Now is the clock that policies judge by, nil for time.Now.
	Now func() time.Time
	// Canary tells reviews that Meshvakt itself has caused to see whether it is asked. They
	// are answered like all others, and not counted. Nil: there are none.
	Canary func(*facts.Review) bool
	// Evidence is nil where none is kept.
	Evidence Evidence
}

// DefaultMaxInFlight is many times what an API server sends in a deployment
// wave, and holds memory below MaxInFlight times MaxBody.
const DefaultMaxInFlight = 256

// Handler judges AdmissionReviews. Routes puts it on its paths. It keeps nothing
// of a request for the next and is safe for concurrent use.
type Handler struct {
	policies   []policies.Policy
	rules      ruleSet
	facts      FactSource
	authorizer Authorizer
	recorder   Recorder
	log        *slog.Logger
	slots      chan struct{}
	bodies     bodies
	now        func() time.Time
	canary     func(*facts.Review) bool
	evidence   Evidence
}

// New makes a Handler.
func New(c Config) (*Handler, error) {
	if c.Facts == nil || c.Authorizer == nil || len(c.Policies) == 0 {
		return nil, errors.New("webhook handler: policies, facts and authorizer must be set")
	}
	if err := policies.Check(c.Policies); err != nil {
		return nil, fmt.Errorf("webhook handler: %w", err)
	}
	rules, err := newRuleSet(c.Policies)
	if err != nil {
		return nil, fmt.Errorf("webhook handler: %w", err)
	}
	h := &Handler{
		policies:   c.Policies,
		rules:      rules,
		facts:      c.Facts,
		authorizer: c.Authorizer,
		recorder:   c.Recorder,
		log:        c.Log,
		now:        c.Now,
		canary:     c.Canary,
		evidence:   c.Evidence,
	}
	if h.recorder == nil {
		h.recorder = noRecorder{}
	}
	if h.log == nil {
		h.log = slog.Default()
	}
	if h.now == nil {
		h.now = time.Now
	}
	if h.evidence == nil {
		h.evidence = noEvidence{}
	}
	if c.MaxInFlight <= 0 {
		c.MaxInFlight = DefaultMaxInFlight
	}
	h.slots = make(chan struct{}, c.MaxInFlight)
	return h, nil
}

// endpoint is what one path does with a request.
type endpoint struct {
	answer func(context.Context, *request) (*admissionv1.AdmissionResponse, error)
	// failed is told of a request that was decoded, at least to its UID, and not answered.
	failed func(context.Context, *facts.Review, time.Duration)
}

// validate serves PathValidate.
func (h *Handler) validate(w http.ResponseWriter, r *http.Request) {
	h.serve(w, r, endpoint{h.judge, h.unjudged})
}

// mutate serves PathMutate. Mutation never refuses: the final object is judged by
// validate.
func (h *Handler) mutate(w http.ResponseWriter, r *http.Request) {
	h.serve(w, r, endpoint{h.change, func(context.Context, *facts.Review, time.Duration) {}})
}

// serve takes a request its whole way. The body is read before a slot is taken,
// so that clients that dribble their bodies cannot occupy the slots.
func (h *Handler) serve(w http.ResponseWriter, r *http.Request, e endpoint) {
	start := time.Now()
	ctx, cancel := context.WithTimeout(r.Context(), timeToAnswer(r))
	defer cancel()

	body := h.bodies.get()
	defer h.bodies.put(body)
	if err := readBody(body, w, r); err != nil {
		h.fail(ctx, w, nil, err)
		return
	}
	select {
	case h.slots <- struct{}{}:
		defer func() { <-h.slots }()
	default:
		w.Header().Set("Retry-After", "1")
		h.fail(ctx, w, nil, failf(StageOverload, http.StatusServiceUnavailable, "%d requests are being judged already", cap(h.slots)))
		return
	}
	q, err := h.decode(body.Bytes())
	if err != nil {
		e.failed(ctx, q.review, time.Since(start))
		h.fail(ctx, w, q.review, err)
		return
	}
	q.received = start
	response, err := e.answer(ctx, q)
	if err == nil {
		err = ctx.Err() // nobody is waiting for this answer any more
	}
	if err != nil {
		e.failed(ctx, q.review, time.Since(start))
		h.fail(ctx, w, q.review, err)
		return
	}
	h.write(ctx, w, q.review, response)
}

// judge answers by the decision of the policies.
func (h *Handler) judge(ctx context.Context, q *request) (*admissionv1.AdmissionResponse, error) {
	d, err := h.decide(ctx, q.review)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if h.isCanary(q.review) {
		return respond(q.review, d), nil
	}
	receipt, refused := h.record(ctx, q, d)
	if refused != nil {
		d.Outcome = policies.Deny
	}
	h.recorder.Decided(q.review.Kind.Kind, string(q.review.Operation), d)
	h.logDecision(ctx, q.review, d, time.Since(q.received))
	if refused != nil {
		return respondUnrecorded(q.review, d, receipt, refused), nil
	}
	response := respond(q.review, d)
	if receipt != "" {
		response.AuditAnnotations[AnnotationEvidence] = receipt
	}
	return response, nil
}

// record leaves evidence of a decision that is about to be answered.
func (h *Handler) record(ctx context.Context, q *request, d policies.Decision) (receipt string, refused error) {
	if q.review.DryRun {
		return "", nil
	}
	return h.evidence.Decided(ctx, q.review, d, time.Since(q.received))
}

// unjudgedPatience is how long an answer that says nothing may wait for its record.
const unjudgedPatience = 200 * time.Millisecond

// unjudged leaves evidence of a request that was not judged, also when its own time is over.
func (h *Handler) unjudged(ctx context.Context, r *facts.Review, took time.Duration) {
	if r == nil || r.DryRun || h.isCanary(r) {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), unjudgedPatience)
	defer cancel()
	h.evidence.Failed(ctx, r, took)
}

// change answers with what the policies change. The facts may come from a cache: what
// they do not suffice for is found by the judgement that follows.
func (h *Handler) change(ctx context.Context, q *request) (*admissionv1.AdmissionResponse, error) {
	var err error
	if q.review.Cluster, err = h.facts.Read(ctx, q.review); err != nil {
		return nil, failed(StageFacts, http.StatusServiceUnavailable, fmt.Errorf("read facts: %w", err))
	}
	changes, err := policies.Mutate(h.policies, q.review)
	if err != nil {
		return nil, evaluationFailed(err)
	}
	response, err := respondChanged(q, changes)
	if err != nil {
		return nil, failed(StageRespond, http.StatusInternalServerError, err)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if h.isCanary(q.review) {
		return response, nil
	}
	h.recorder.Changed(q.review.Kind.Kind, len(changes) > 0)
	h.logChanges(ctx, q.review, changes, time.Since(q.received))
	return response, nil
}

func (h *Handler) isCanary(r *facts.Review) bool { return h.canary != nil && h.canary(r) }

// decide judges a request by the facts at hand, and once more by a live read
// where the first judgement would refuse it, or could not be made, by facts from
// the cache. What the user did a moment ago is then never held against them, and an
// exception that somebody revoked a moment ago lets nothing pass.
func (h *Handler) decide(ctx context.Context, r *facts.Review) (policies.Decision, error) {
	r.MayUnguard = map[string]bool{}
	cluster, err := h.facts.Read(ctx, r)
	if err != nil {
		return policies.Decision{}, failed(StageFacts, http.StatusServiceUnavailable, fmt.Errorf("read facts: %w", err))
	}
	d, err := h.evaluate(ctx, r, cluster)
	doubtful := d.Outcome == policies.Deny || d.RestsOnException() || errors.Is(err, policies.ErrMissingFact)
	if cluster.Live || !doubtful {
		return d, err
	}
	if cluster, err = h.facts.ReadLive(ctx, r); err != nil {
		return policies.Decision{}, failed(StageFacts, http.StatusServiceUnavailable, fmt.Errorf("read facts live: %w", err))
	}
	return h.evaluate(ctx, r, cluster)
}

// evaluate runs the policies over one snapshot. Which guards the request leaves
// depends on the snapshot, so the user's rights are looked up here; what is
// known from an earlier snapshot is not asked again.
func (h *Handler) evaluate(ctx context.Context, r *facts.Review, c facts.Cluster) (policies.Decision, error) {
	r.Cluster = c
	for _, guard := range r.Unguards() {
		if _, known := r.MayUnguard[guard]; known {
			continue
		}
		may, err := h.authorizer.MayUnguard(ctx, r.User, guard)
		if err != nil {
			return policies.Decision{}, failed(StageAuthorize, http.StatusServiceUnavailable, fmt.Errorf("authorize leaving MeshGuard %q: %w", guard, err))
		}
		r.MayUnguard[guard] = may
	}
	if r.Approves() {
		var err error
		if r.MayApprove, err = h.authorizer.MayApprove(ctx, r.User, r.Namespace, r.Name); err != nil {
			return policies.Decision{}, failed(StageAuthorize, http.StatusServiceUnavailable, fmt.Errorf("authorize approving GuardException %s/%s: %w", r.Namespace, r.Name, err))
		}
	}
	d, err := policies.Evaluate(h.policies, r)
	if err != nil {
		return policies.Decision{}, evaluationFailed(err)
	}
	return d, nil
}

// evaluationFailed is what it means that policies could not say.
func evaluationFailed(err error) error {
	switch {
	case errors.Is(err, policies.ErrPanic):
		return failed(StagePanic, http.StatusInternalServerError, err)
	case errors.Is(err, policies.ErrMissingFact):
		return failed(StageFacts, http.StatusServiceUnavailable, err)
	}
	return failed(StageEvaluate, http.StatusInternalServerError, err)
}

// noEvidence is the Evidence of those who keep none.
type noEvidence struct{}

func (noEvidence) Decided(context.Context, *facts.Review, policies.Decision, time.Duration) (string, error) {
	return "", nil
}
func (noEvidence) Failed(context.Context, *facts.Review, time.Duration) {}

// noRecorder is the Recorder of those who want none.
type noRecorder struct{}

func (noRecorder) Begin(string) func()                       { return func() {} }
func (noRecorder) Decided(string, string, policies.Decision) {}
func (noRecorder) Changed(string, bool)                      {}
func (noRecorder) Failed(string)                             {}
