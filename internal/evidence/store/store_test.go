package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7/pkg/credentials"
)

// rotated are credentials that are others each time they are asked for.
type rotated struct{ n int }

func (r *rotated) Retrieve() (credentials.Value, error) {
	r.n++
	return credentials.Value{AccessKeyID: fmt.Sprint("key-", r.n), SecretAccessKey: "secret", SignerType: credentials.SignatureV4}, nil
}

func (r *rotated) RetrieveWithCredContext(*credentials.CredContext) (credentials.Value, error) {
	return r.Retrieve()
}

func (r *rotated) IsExpired() bool { return false }

// bucketThat is one whose server answers as told. How real servers answer is in test/e2e.
func bucketThat(t *testing.T, answers http.HandlerFunc) *S3 {
	t.Helper()
	server := httptest.NewServer(answers)
	t.Cleanup(server.Close)
	s, err := NewS3(S3Config{Bucket: "s3://evidence/fleet/", Endpoint: server.URL, Region: "us-east-1", Credentials: credentials.New(&rotated{})})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func refuse(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	_, _ = fmt.Fprintf(w, "<Error><Code>%s</Code><Message>because</Message></Error>", code)
}

func file(name, text string) *File {
	return &File{Name: name, Type: "text/plain", Cache: "no-cache", Once: true, Data: strings.NewReader(text), Size: int64(len(text))}
}

// A store that does not know conditional writes gets others, and is not asked for them again.
func TestStoreWithoutConditionalWrites(t *testing.T) {
	var asked []string
	s := bucketThat(t, func(w http.ResponseWriter, req *http.Request) {
		_, _ = io.Copy(io.Discard, req.Body)
		asked = append(asked, req.Method+" "+req.URL.Path+" "+req.Header.Get("If-None-Match"))
		if req.Header.Get("If-None-Match") != "" {
			refuse(w, http.StatusNotImplemented, "NotImplemented")
		}
	})
	for _, name := range []string{"a", "b/c"} {
		if err := s.Write(t.Context(), file(name, "x")); err != nil {
			t.Fatal(err)
		}
	}
	if want := "PUT /evidence/fleet/a *|PUT /evidence/fleet/a |PUT /evidence/fleet/b/c "; strings.Join(asked, "|") != want {
		t.Errorf("it was asked %q; must be %q", asked, want)
	}
}

// What a store refuses is told with what to do; credentials that it refuses are read anew.
func TestWhatIsToldOfRefusals(t *testing.T) {
	for code, c := range map[string]struct {
		status int
		is     error
		says   string
	}{
		"PreconditionFailed":    {http.StatusPreconditionFailed, fs.ErrExist, "a/b"},
		"NoSuchKey":             {http.StatusNotFound, fs.ErrNotExist, "a/b"},
		"NoSuchBucket":          {http.StatusNotFound, nil, "must exist; create it"},
		"InvalidAccessKeyId":    {http.StatusForbidden, nil, "AWS_ACCESS_KEY_ID"},
		"AccessDenied":          {http.StatusForbidden, nil, "s3:PutObject and s3:ListBucket"},
		"InvalidRequest":        {http.StatusBadRequest, nil, `bucket "evidence" answers InvalidRequest to PutObject of a/b`},
		"ObjectLockConfigError": {http.StatusBadRequest, nil, "must have Object Lock"},
	} {
		t.Run(code, func(t *testing.T) {
			var keys []string
			s := bucketThat(t, func(w http.ResponseWriter, req *http.Request) {
				_, key, _ := strings.Cut(req.Header.Get("Authorization"), "Credential=")
				key, _, _ = strings.Cut(key, "/")
				keys = append(keys, key)
				refuse(w, c.status, code)
			})
			err := s.Write(t.Context(), file("a/b", "x"))
			if err == nil || !strings.Contains(err.Error(), c.says) || c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("it is told %v; must say %q", err, c.says)
			}
			_ = s.Write(t.Context(), file("a/b", "x"))
			if anew := keys[len(keys)-1] != keys[0]; anew != (c.status == http.StatusForbidden) {
				t.Errorf("it was asked with %q", keys)
			}
		})
	}
}

func TestNamesAndAddresses(t *testing.T) {
	s := bucketThat(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) })
	h, err := NewHTTP("https://mirror.example.org/evidence/", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"", "/a", "a/../b", "a//b", "a?b", "a#b", "a%2fb", `a\b`} {
		if _, err := s.Read(t.Context(), name, 1); err == nil || !strings.Contains(err.Error(), "name is") {
			t.Errorf("S3 takes the name %q: %v", name, err)
		}
		if err := h.Write(t.Context(), file(name, "x")); err == nil || !strings.Contains(err.Error(), "name is") {
			t.Errorf("HTTP takes the name %q: %v", name, err)
		}
	}
	locked := file("a", "x")
	locked.Until = time.Now()
	if err := h.Write(t.Context(), locked); err == nil {
		t.Error("a server that takes PUT is said to lock")
	}
	for _, base := range []string{"mirror.example.org", "ftp://mirror.example.org", "https://user:secret@mirror.example.org", "https://mirror.example.org?x", "s3://evidence"} {
		if _, err := NewHTTP(base, nil, nil); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("HTTP takes %q: %v", base, err)
		}
	}
	for _, c := range []S3Config{{Bucket: "s3://"}, {Bucket: "evidence"}, {Bucket: "s3://evidence/a/../b"}, {Bucket: "s3://evidence", Endpoint: "s3.example.org"}, {Bucket: "s3://evidence", Endpoint: "https://s3.example.org/path"}} {
		if _, err := NewS3(c); err == nil {
			t.Errorf("S3 takes %+v", c)
		}
	}
}
