package webhook

import (
	"fmt"
	"net/http"
	"runtime/debug"

	"github.com/go-chi/chi/v5"
)

// The paths of the webhooks.
const (
	PathValidate = "/validate"
	PathMutate   = "/mutate"
)

// Paths lists the paths, for metrics that start at zero.
func Paths() []string {
	return []string{PathMutate, PathValidate}
}

// Routes puts a handler on its paths. What applies to every request is listed
// here, outermost first; limits of body, slots and time belong to the handler's
// own course (see serve), because their order against decoding matters.
func Routes(h *Handler) http.Handler {
	r := chi.NewRouter()
	r.Use(
		h.measured,
		h.surviving,
	)
	r.NotFound(func(w http.ResponseWriter, _ *http.Request) {
		writeText(w, http.StatusNotFound, "not found; must be "+PathValidate+" or "+PathMutate)
	})
	r.MethodNotAllowed(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Allow", http.MethodPost)
		writeText(w, http.StatusMethodNotAllowed, "method not allowed; must be POST")
	})
	r.Post(PathValidate, h.validate)
	r.Post(PathMutate, h.mutate)
	return r
}

// measured counts the request while it lasts and times it.
func (h *Handler) measured(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		end := h.recorder.Begin(r.URL.Path)
		defer end()
		next.ServeHTTP(w, r)
	})
}

// surviving turns a panic into an answer, so that it costs one request and not
// the process. Answers are written in one go at the very end, so nothing has
// been sent yet unless sending itself panicked.
func (h *Handler) surviving(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			v := recover()
			if v == nil {
				return
			}
			if v == http.ErrAbortHandler { //nolint:errorlint // net/http compares it so, too
				panic(v)
			}
			err := fmt.Errorf("panic: %v\n%s", v, debug.Stack())
			h.fail(r.Context(), w, nil, failed(StagePanic, http.StatusInternalServerError, err))
		}()
		next.ServeHTTP(w, r)
	})
}
