package webhook

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"net/http"
	"os"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/policies"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// injectedPods returns a review of a pod that a real API server sent after Istio's
// injector had dealt with it, and the same pod getting an ephemeral container.
func injectedPods(tb testing.TB) [][]byte {
	tb.Helper()
	file, err := os.Open("testdata/reviews.jsonl.gz")
	if err != nil {
		tb.Fatal(err)
	}
	defer file.Close()
	plain, err := gzip.NewReader(file)
	if err != nil {
		tb.Fatal(err)
	}
	for d := json.NewDecoder(plain); ; {
		var r admissionv1.AdmissionReview
		if err := d.Decode(&r); err != nil {
			tb.Fatalf("no injected pod is recorded: %v", err)
		}
		q := r.Request
		if q.Kind.Kind != "Pod" || !bytes.Contains(q.Object.Raw, []byte("sidecar.istio.io/status")) {
			continue
		}
		created := encode(tb, &r)
		q.Operation, q.SubResource, q.OldObject.Raw = admissionv1.Update, "ephemeralcontainers", q.Object.Raw
		q.Object.Raw = bytes.Replace(q.Object.Raw, []byte(`"spec":{`), []byte(`"spec":{"ephemeralContainers":[{"name":"debug","image":"busybox"}],`), 1)
		return [][]byte{created, encode(tb, &r)}
	}
}

// FuzzReview throws bytes at a webhook whose policies refuse whatever they are
// shown. So every answer must be an HTTP error or a refusal with the UID that
// the bytes hold: allowed: true would mean that no policy had looked.
func FuzzReview(f *testing.F) {
	f.Add(encode(f, podReview("u")))
	f.Add(encode(f, namespaceReview()))
	r := podReview("u")
	q := r.Request
	q.Operation = admissionv1.Delete
	q.Kind.Group, q.Kind.Kind = "security.istio.io", "PeerAuthentication"
	q.Resource.Group, q.Resource.Resource = "security.istio.io", "peerauthentications"
	q.Name, q.Object.Raw = "default", nil
	q.OldObject.Raw = []byte(`{"metadata":{"name":"default","namespace":"prod"},"spec":{"mtls":{"mode":"STRICT"},"portLevelMtls":{"8080":{"mode":"DISABLE"}}}}`)
	f.Add(encode(f, r))
	for _, pod := range injectedPods(f) {
		f.Add(pod)
	}
	for _, seed := range []string{"", "null", "{}", "[", `{"request":{"uid":"u"}}`, `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u"}}`} {
		f.Add([]byte(seed))
	}
	cluster := guarded(f)
	cluster.Guards[0].MeshMembership = v1alpha1.DefaultGuard().Spec.MeshMembership
	w := newWebhook(f, cluster, func(c *Config) {
		c.Policies = policies.All()
		for i := range c.Policies {
			c.Policies[i].Judge = func(*facts.Review, *facts.Guard) ([]policies.Finding, error) {
				return []policies.Finding{{Message: "refused"}}, nil
			}
		}
	})
	f.Fuzz(func(t *testing.T, body []byte) {
		got := post(w, PathValidate, bytes.NewReader(body))
		w.log.Reset()
		switch {
		case got.Code >= 400 && got.Code < 500:
			return
		case got.Code != http.StatusOK:
			t.Fatalf("HTTP %d %s", got.Code, got.Body)
		}
		answer := decodeAnswer(t, got.Body.Bytes())
		if answer.Allowed {
			t.Fatalf("allowed without having been judged: %q", body)
		}
		// By exact name, which encoding/json does only for maps.
		var sent struct{ Request map[string]any }
		if err := json.Unmarshal(body, &sent); err != nil {
			t.Fatalf("judged what is no JSON: %v: %q", err, body)
		}
		if uid, _ := sent.Request["uid"].(string); uid == "" || string(answer.UID) != uid {
			t.Fatalf("answered UID %q for %q", answer.UID, body)
		}
	})
}
