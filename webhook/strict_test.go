package webhook

import (
	"net/http"
	"slices"
	"strings"
	"testing"
)

// An object is read in passing, with the review around it; it must be no less
// strict for that, in what is read of it and in what is passed over.
func TestObjectIsReadStrictly(t *testing.T) {
	good := string(encode(t, podReview("u")))
	const head = `"kind":"Pod","apiVersion":"v1","metadata":{"name":"web","namespace":"prod","labels":{"app":"web"}}`
	for name, c := range map[string]struct{ old, new, says string }{
		"two kinds":                       {head, `"kind":"Pod",` + head, "duplicate"},
		"two kinds, the second escaped":   {head, `"k\u0069nd":"Namespace",` + head, "duplicate"},
		"two specs":                       {`"spec":`, `"spec":{},"spec":`, "duplicate"},
		"two keys in a container":         {`"name":"c"`, `"name":"c","name":"d"`, "duplicate"},
		"two names":                       {`{"name":"web"`, `{"name":"web","name":"db"`, "duplicate"},
		"two of what is unread":           {`{"name":"web"`, `{"uid":"1","uid":"2","name":"web"`, "duplicate"},
		"kind after all else":             {head, `"metadata":{"name":"web","namespace":"prod"},"x":{},"kind":"Namespace"`, "must be what request.kind says"},
		"kind is a number":                {head, `"kind":1`, ""},
		"metadata is a string":            {head, `"metadata":"x"`, ""},
		"metadata in capitals":            {head, `"Metadata":{"name":"web","namespace":"prod"}`, `object is in namespace ""`},
		"labels are a list":               {`{"app":"web"}`, `["app"]`, ""},
		"invalid UTF-8 in a label":        {`"app":"web"`, "\"app\":\"\xff\"", ""},
		"invalid UTF-8 in what is unread": {`"name":"c"`, "\"name\":\"\xff\"", ""},
		"an image is a number":            {`"secret-image"`, `1`, "decode Pod: at byte"},
		"phase is a number":               {`"spec":`, `"status":{"phase":1},"spec":`, "decode Pod: at byte"},
		"bracket missing":                 {`"containers":[`, `"containers":`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			if strings.Count(good, c.old) != 1 {
				t.Fatalf("%s does not hold %s once", good, c.old)
			}
			w := newWebhook(t, strict(t))
			got := post(w, PathValidate, strings.NewReader(strings.Replace(good, c.old, c.new, 1)))
			if got.Code != http.StatusBadRequest || !strings.Contains(got.Body.String(), c.says) {
				t.Errorf("HTTP %d %s, want 400 and %q", got.Code, got.Body, c.says)
			}
			if s := w.recorder.failures(); !slices.Equal(s, []string{StageDecode}) || w.facts.reads.Load() != 0 {
				t.Errorf("failed in %v after %d reads of facts, want decode and none", s, w.facts.reads.Load())
			}
		})
	}
}
