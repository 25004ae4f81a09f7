package webhook

import (
	"bytes"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	admissionv1 "k8s.io/api/admission/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/meshvakt/meshvakt/internal/objects"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// MaxBody is the largest AdmissionReview read, 7 MiB. The API server takes
// objects of up to 3 MiB (its limit for a request body; etcd's own, 1.5 MiB, is
// lower unless raised), an UPDATE carries two of them, and 1 MiB is left for the
// envelope: user with groups and extra, options, and what re-encoding adds.
const MaxBody = 7 << 20

// firstRead caps the buffer made for a body on the word of its Content-Length,
// and the buffers that are kept for the next request.
const firstRead = 256 << 10

// bodies keeps buffers for the next request. Nothing that is decoded refers to
// the body it came from.
type bodies struct{ pool sync.Pool }

func (p *bodies) get() *bytes.Buffer {
	if b, ok := p.pool.Get().(*bytes.Buffer); ok {
		return b
	}
	return new(bytes.Buffer)
}

func (p *bodies) put(b *bytes.Buffer) {
	if b.Cap() <= 2*firstRead {
		b.Reset()
		p.pool.Put(b)
	}
}

// admissionReview is the part of admission.k8s.io/v1 AdmissionReview that is
// read, in one pass over the body.
type admissionReview struct {
	APIVersion string            `json:"apiVersion"`
	Kind       string            `json:"kind"`
	Request    *admissionRequest `json:"request"`
}

type admissionRequest struct {
	UID         string                      `json:"uid"`
	Kind        metav1.GroupVersionKind     `json:"kind"`
	Resource    metav1.GroupVersionResource `json:"resource"`
	SubResource string                      `json:"subResource"`
	Name        string                      `json:"name"`
	Namespace   string                      `json:"namespace"`
	Operation   admissionv1.Operation       `json:"operation"`
	UserInfo    authenticationv1.UserInfo   `json:"userInfo"`
	Object      object                      `json:"object"`
	OldObject   object                      `json:"oldObject"`
	DryRun      bool                        `json:"dryRun"`
}

// The deadline of a request: the API server says in ?timeout= when it stops
// waiting; the margin leaves time for the answer to travel, so that a cause
// reaches the API server instead of a cut connection.
const (
	defaultTimeout = 10 * time.Second // the API server's own default
	maxTimeout     = 30 * time.Second // and its maximum
	maxMargin      = 500 * time.Millisecond
)

func timeToAnswer(r *http.Request) time.Duration {
	// A timeout that makes no sense is no reason to hold up a deployment.
	timeout, err := time.ParseDuration(r.URL.Query().Get("timeout"))
	if err != nil || timeout <= 0 {
		timeout = defaultTimeout
	}
	timeout = min(timeout, maxTimeout)
	return timeout - min(timeout/10, maxMargin)
}

// readBody reads a JSON body of at most MaxBody bytes into b.
func readBody(b *bytes.Buffer, w http.ResponseWriter, r *http.Request) error {
	if err := checkMediaType(r.Header); err != nil {
		return err
	}
	if r.ContentLength > MaxBody {
		return failf(StageBody, http.StatusRequestEntityTooLarge, "body of %d bytes; must be at most %d", r.ContentLength, MaxBody)
	}
	b.Grow(int(min(max(r.ContentLength, 0), firstRead)) + bytes.MinRead)
	_, err := b.ReadFrom(http.MaxBytesReader(w, r.Body, MaxBody))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return failf(StageBody, http.StatusRequestEntityTooLarge, "body is too large; must be at most %d bytes", MaxBody)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return failed(StageBody, http.StatusRequestTimeout, fmt.Errorf("read body: %w", err))
	case err != nil:
		return failed(StageBody, http.StatusBadRequest, fmt.Errorf("read body: %w", err))
	}
	return nil
}

func checkMediaType(h http.Header) error {
	if h.Get("Content-Type") == "application/json" && h.Get("Content-Encoding") == "" { // the API server
		return nil
	}
	mediaType, params, err := mime.ParseMediaType(h.Get("Content-Type"))
	charset, hasCharset := params["charset"]
	if err != nil || mediaType != "application/json" || (hasCharset && !strings.EqualFold(charset, "utf-8")) {
		return failf(StageMediaType, http.StatusUnsupportedMediaType, "Content-Type %q; must be application/json", h.Get("Content-Type"))
	}
	if encoding := h.Get("Content-Encoding"); encoding != "" && encoding != "identity" {
		return failf(StageMediaType, http.StatusUnsupportedMediaType, "Content-Encoding %q; must be absent", encoding)
	}
	return nil
}

// request is a review that has been decoded.
type request struct {
	review *facts.Review
	// object is the JSON of the new object, empty on DELETE. It lies in the body.
	object   []byte
	received time.Time
}

// decode reads a review and holds it against itself: what the request says of
// its objects must be what the objects are. The review of what is returned with an
// error is nil as long as there is no UID. The decoder refuses names that stand twice in
// one JSON object, at any depth, and anything after the review.
func (h *Handler) decode(raw []byte) (*request, error) {
	var in admissionReview
	if err := json.Unmarshal(raw, &in); err != nil {
		return &request{}, failed(StageDecode, http.StatusBadRequest, fmt.Errorf("decode AdmissionReview: %w", err))
	}
	q := in.Request
	switch {
	case in.Kind != "AdmissionReview" || in.APIVersion != admissionv1.SchemeGroupVersion.String():
		return &request{}, failf(StageDecode, http.StatusBadRequest, "body is %s %s; must be %s AdmissionReview", in.APIVersion, in.Kind, admissionv1.SchemeGroupVersion)
	case q == nil:
		return &request{}, failf(StageDecode, http.StatusBadRequest, "AdmissionReview has no request")
	case q.UID == "":
		return &request{}, failf(StageDecode, http.StatusBadRequest, "request.uid is empty")
	}
	r := &facts.Review{
		UID:         q.UID,
		Operation:   q.Operation,
		Kind:        schema.GroupVersionKind(q.Kind),
		Resource:    schema.GroupVersionResource(q.Resource),
		SubResource: q.SubResource,
		Namespace:   q.Namespace,
		Name:        q.Name,
		DryRun:      q.DryRun,
		User:        q.UserInfo,
		Now:         h.now(),
	}
	rule, err := h.rules.check(r)
	if err != nil {
		return &request{review: r}, err
	}
	if err := readObjects(r, rule, q, raw); err != nil {
		return &request{review: r}, failed(StageDecode, http.StatusBadRequest, err)
	}
	return &request{review: r, object: raw[q.Object.start:q.Object.end]}, nil
}

// readObjects fills Object and OldObject.
func readObjects(r *facts.Review, rule rule, q *admissionRequest, body []byte) error {
	if rule.namespaced && r.Namespace == "" {
		return fmt.Errorf("request.namespace is empty; must be set for %s", rule.resource)
	}
	if !rule.namespaced {
		// On CREATE the API server names the new namespace here, although a
		// Namespace is in none.
		if r.Namespace != "" && r.Namespace != r.Name {
			return fmt.Errorf("request.namespace is %q; must be empty or the name of the namespace", r.Namespace)
		}
		r.Namespace = ""
	}
	for _, side := range [...]struct {
		field  string
		object *object
		want   bool
		into   *any
		decode decoder
	}{
		{"request.object", &q.Object, r.Operation != admissionv1.Delete, &r.Object, objects.Decode},
		{"request.oldObject", &q.OldObject, r.Operation != admissionv1.Create, &r.OldObject, objects.DecodeStored},
	} {
		switch {
		case side.want && !side.object.present():
			return fmt.Errorf("%s is missing; must be set on %s", side.field, r.Operation)
		case !side.want && side.object.present():
			return fmt.Errorf("%s is set; must be null on %s", side.field, r.Operation)
		case !side.want:
			continue
		}
		value, err := side.object.value(r, rule, body, side.decode)
		if err != nil {
			return fmt.Errorf("%s: %w", side.field, err)
		}
		*side.into = value
	}
	return nil
}
