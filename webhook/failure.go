package webhook

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"

	"github.com/meshvakt/meshvakt/policies/facts"
)

// The stages in which a request can fail to be judged; they are metric labels
// and permanent.
const (
	StageMediaType = "media-type" // not JSON
	StageBody      = "body"       // too large, too slow, cut off
	StageDecode    = "decode"     // not an AdmissionReview, or one that contradicts itself
	StageNotJudged = "not-judged" // a review of something no policy judges
	StageOverload  = "overload"   // more requests than slots
	StageFacts     = "facts"      // the state of the cluster is not known
	StageAuthorize = "authorize"  // the user's rights are not known
	StageEvaluate  = "evaluate"   // a policy could not judge
	StagePanic     = "panic"      // a policy or the handler panicked
	StageDeadline  = "deadline"   // the API server's patience ended first
	StageRespond   = "respond"    // the answer could not be written
)

// Stages lists every stage, for metrics that start at zero.
func Stages() []string {
	return []string{
		StageMediaType, StageBody, StageDecode, StageNotJudged, StageOverload, StageFacts,
		StageAuthorize, StageEvaluate, StagePanic, StageDeadline, StageRespond,
	}
}

// failure is why a request was not judged.
type failure struct {
	stage string
	code  int
	err   error
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

func failed(stage string, code int, err error) error {
	return &failure{stage, code, err}
}

func failf(stage string, code int, format string, args ...any) error {
	return failed(stage, code, fmt.Errorf(format, args...))
}

// fail answers a request that was not judged. review is nil before it is known.
// The text reaches the user through the API server's "failed calling webhook",
// so it says what went wrong; what a panic carried stays in the log.
func (h *Handler) fail(ctx context.Context, w http.ResponseWriter, review *facts.Review, err error) {
	f := &failure{StageEvaluate, http.StatusInternalServerError, err}
	errors.As(err, &f)
	switch f.stage {
	case StageFacts, StageAuthorize, StageEvaluate:
		if ctx.Err() != nil { // then this is the cause, whatever it looks like
			f = &failure{StageDeadline, http.StatusGatewayTimeout, err}
		}
	}
	h.recorder.Failed(f.stage)

	level := slog.LevelError
	if f.code < http.StatusInternalServerError {
		level = slog.LevelWarn
	}
	attrs := []slog.Attr{slog.String("stage", f.stage), slog.Int("code", f.code), slog.String("err", err.Error())}
	h.log.LogAttrs(ctx, level, "request not judged", append(attrs, reviewAttrs(review)...)...)

	text := err.Error()
	if f.stage == StagePanic {
		text = "internal error, see the log of meshvakt"
	}
	writeText(w, f.code, "not evaluated: "+text)
}

// writeText answers in plain text, which the API server quotes to the user.
func writeText(w http.ResponseWriter, code int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	// A failed write means the client is gone, and there is nobody to tell.
	_, _ = fmt.Fprintln(w, clip(oneLine(text), maxErrorRunes))
}

// reviewAttrs names a request in the log. Objects and users are never logged.
func reviewAttrs(r *facts.Review) []slog.Attr {
	if r == nil {
		return nil
	}
	return []slog.Attr{
		slog.String("uid", r.UID),
		slog.String("kind", r.Kind.Kind),
		slog.String("namespace", r.Namespace),
		slog.String("name", r.DisplayName()),
		slog.String("operation", string(r.Operation)),
	}
}
