//go:build unix

package webhook_test

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/meshvakt/meshvakt/internal/objects"
	"github.com/meshvakt/meshvakt/policies"
	"github.com/meshvakt/meshvakt/policies/facts"
	"github.com/meshvakt/meshvakt/webhook"
)

// seen keeps the last review that facts were read for.
type seen struct {
	fixedFacts
	review *facts.Review
}

func (s *seen) Read(ctx context.Context, r *facts.Review) (facts.Cluster, error) {
	s.review = r
	return s.fixedFacts.Read(ctx, r)
}

// What policies are shown of the recorded objects is what the objects say, on the
// right side.
func TestRecordedObjectsAreReadRight(t *testing.T) {
	cluster, err := benchCluster(true)
	if err != nil {
		t.Fatal(err)
	}
	facts := &seen{fixedFacts: *cluster}
	h, err := webhook.New(webhook.Config{Policies: policies.All(), Facts: facts, Authorizer: byUserName{}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	routes := webhook.Routes(h)
	for _, kind := range []string{"Pod", "Deployment", "Namespace", "PeerAuthentication"} {
		for _, body := range reviewsOf(t, kind) {
			r := httptest.NewRequest(http.MethodPost, webhook.PathValidate, strings.NewReader(string(body)))
			r.Header.Set("Content-Type", "application/json")
			w := httptest.NewRecorder()
			routes.ServeHTTP(w, r)
			if w.Code != http.StatusOK {
				answer, _ := io.ReadAll(w.Body)
				t.Fatalf("HTTP %d %s", w.Code, answer)
			}
			var review admissionv1.AdmissionReview
			if err := json.Unmarshal(body, &review); err != nil {
				t.Fatal(err)
			}
			q, got := review.Request, facts.review
			for _, side := range []struct {
				raw []byte
				got any
			}{{q.Object.Raw, got.Object}, {q.OldObject.Raw, got.OldObject}} {
				var want any
				if len(side.raw) > 0 && string(side.raw) != "null" {
					want = readOf(t, schema.GroupKind{Group: q.Kind.Group, Kind: q.Kind.Kind}, side.raw)
				}
				if !reflect.DeepEqual(side.got, want) {
					t.Errorf("%s %s %s:\n got %+v\nwant %+v", q.Operation, kind, q.Name, side.got, want)
				}
			}
		}
	}
}

func readOf(t *testing.T, kind schema.GroupKind, raw []byte) any {
	t.Helper()
	_, read, err := objects.Checked(kind, raw)
	if err == nil && read == nil {
		read, err = objects.Decode(kind, raw)
	}
	if err != nil {
		t.Fatal(err)
	}
	return read
}
