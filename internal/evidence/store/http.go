package store

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
)

// HTTP is a server that takes PUT, and gives back with GET what was put.
type HTTP struct {
	base   *url.URL
	client *http.Client
	// authorization is asked for the header of that name before each request; nil: none.
	authorization func() (string, error)
}

// NewHTTP is for files under an http or https URL. A nil transport is the default one; authorization
// may be nil.
func NewHTTP(base string, transport http.RoundTripper, authorization func() (string, error)) (*HTTP, error) {
	u, err := parseBase(base, "https", "http")
	if err != nil {
		return nil, err
	}
	return &HTTP{base: u, client: &http.Client{Transport: transportOr(transport)}, authorization: authorization}, nil
}

// Read returns a whole file, no longer than most. One that is not there is fs.ErrNotExist.
func (h *HTTP) Read(ctx context.Context, name string, most int64) ([]byte, error) {
	var data []byte
	err := h.do(ctx, http.MethodGet, &File{Name: name}, most, func(resp *http.Response) (err error) {
		data, err = within(resp.Body, name, most)
		return err
	})
	return data, err
}

// Size is that of a file. One that is not there is fs.ErrNotExist.
func (h *HTTP) Size(ctx context.Context, name string) (int64, error) {
	size := int64(-1)
	err := h.do(ctx, http.MethodHead, &File{Name: name}, 0, func(resp *http.Response) error {
		if size = resp.ContentLength; size < 0 {
			return fmt.Errorf("the mirror does not say how long %s is", name)
		}
		return nil
	})
	return size, err
}

// Write stores a file.
func (h *HTTP) Write(ctx context.Context, f *File) error {
	if !f.Until.IsZero() {
		return fmt.Errorf("store %s: a server that takes PUT locks nothing", f.Name)
	}
	return h.do(ctx, http.MethodPut, f, f.Size, func(*http.Response) error { return nil })
}

// Remove removes a file. That it is not there is no error.
func (h *HTTP) Remove(ctx context.Context, name string) error {
	return h.do(ctx, http.MethodDelete, &File{Name: name}, 0, func(*http.Response) error { return nil })
}

func (h *HTTP) do(ctx context.Context, method string, f *File, size int64, read func(*http.Response) error) (err error) {
	if err := clean(f.Name); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, patience(size))
	defer cancel()
	var body io.Reader
	if method == http.MethodPut {
		body = io.NewSectionReader(f.Data, 0, f.Size)
	}
	req, err := http.NewRequestWithContext(ctx, method, h.base.JoinPath(f.Name).String(), body)
	if err != nil {
		return err
	}
	if method == http.MethodPut {
		req.ContentLength = f.Size
		req.Header.Set("Content-Type", f.Type)
		req.Header.Set("Cache-Control", f.Cache)
		if f.Once {
			req.Header.Set("If-None-Match", "*")
		}
	}
	if h.authorization != nil {
		value, err := h.authorization()
		if err != nil {
			return fmt.Errorf("authorization for the mirror: %w", err)
		}
		req.Header.Set("Authorization", value)
	}
	resp, err := h.client.Do(req)
	if err != nil {
		return fmt.Errorf("the mirror: %w", err)
	}
	defer resp.Body.Close() //nolint:errcheck // what was read is what counts
	switch {
	case resp.StatusCode == http.StatusNotFound && method == http.MethodDelete:
		return nil
	case resp.StatusCode == http.StatusNotFound && method != http.MethodPut:
		return missing(f.Name)
	case resp.StatusCode == http.StatusPreconditionFailed && f.Once:
		return there(f.Name)
	case resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusForbidden:
		return fmt.Errorf("the mirror answers %s to %s of %s; must allow it; see what is in --mirror-authorization-file", resp.Status, method, f.Name)
	case resp.StatusCode < 200 || resp.StatusCode > 299:
		return fmt.Errorf("the mirror answers %s to %s of %s; must be 2xx", resp.Status, method, f.Name)
	}
	return read(resp)
}
