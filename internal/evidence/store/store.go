// Package store is where copies of evidence are put: S3-compatible object storage, or a server that
// takes PUT. What a store says is not trusted here or by who uses it: it is told of, and compared.
package store

import (
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// File is what is stored under one name.
type File struct {
	Name string
	// Type and Cache are of the headers Content-Type and Cache-Control.
	Type, Cache string
	// Once: it never changes. Where one of that name is there the store is to leave it alone and
	// answer with fs.ErrExist; some cannot tell, and replace it.
	Once bool
	// Until is the time before which the store must let nobody replace or delete it; zero for none.
	Until time.Time
	Data  io.ReaderAt
	Size  int64
}

// patience is for one request that carries that many bytes: more than that is a store that hangs.
func patience(size int64) time.Duration {
	const least, slowest = 30 * time.Second, 128 << 10 // bytes a second
	return least + time.Duration(size/slowest)*time.Second
}

// clean refuses names that would not be what they say, as URL or as key.
func clean(name string) error {
	if !fs.ValidPath(name) || strings.ContainsAny(name, "\\?#%") {
		return fmt.Errorf("name is %q; must be a path without \"..\", %q and the like", name, `\?#%`)
	}
	return nil
}

// parseBase is the URL of a store, without a slash at its end.
func parseBase(base string, schemes ...string) (*url.URL, error) {
	u, err := url.Parse(base)
	if err != nil {
		return nil, err
	}
	for _, s := range schemes {
		if u.Scheme == s && u.Host != "" && u.RawQuery == "" && u.Fragment == "" && u.User == nil {
			u.Path = strings.TrimSuffix(u.Path, "/")
			return u, nil
		}
	}
	return nil, fmt.Errorf("URL is %q; must be %s://HOST/PATH without query and user", u.Redacted(), strings.Join(schemes, ":// or "))
}

// within is an answer's body up to most bytes; more is an error.
func within(body io.Reader, name string, most int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(body, most+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if int64(len(data)) > most {
		return nil, fmt.Errorf("read %s: it has more than %d bytes", name, most)
	}
	return data, nil
}

func missing(name string) error { return fmt.Errorf("%s: %w", name, fs.ErrNotExist) }

func there(name string) error { return fmt.Errorf("%s: %w", name, fs.ErrExist) }

// clientOr is one of ours where there is none.
func transportOr(t http.RoundTripper) http.RoundTripper {
	if t == nil {
		return http.DefaultTransport
	}
	return t
}
