package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"

	"github.com/meshvakt/meshvakt/internal/evidence/verify"
)

// withEvidence opens all inputs for use, and closes them. What could not be read of a server is its error, whatever use
// has made of that: a network that fails says nothing of a log.
func withEvidence(inputs []string, use func([]*verify.Source) error) (err error) {
	network := &reach{next: http.DefaultTransport}
	sources, err := openEvidence(inputs, &http.Client{Timeout: patience, Transport: network})
	defer func() { err = errors.Join(err, closeEvidence(sources)) }()
	if err != nil {
		return err
	}
	err = use(sources)
	if failed := network.failed(); failed != nil {
		return fmt.Errorf("read evidence: %w", failed)
	}
	return err
}

// reach is a transport that remembers the first failure to read.
type reach struct {
	next http.RoundTripper

	mu  sync.Mutex
	err error // guarded by mu
}

func (r *reach) failed() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

func (r *reach) note(err error) {
	if errors.Is(err, context.Canceled) { // by whoever reads, who has had enough
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil {
		r.err = err
	}
}

// RoundTrip implements http.RoundTripper. That a tile is not there is for the verifier to judge; where there is no
// checkpoint, there is no log.
func (r *reach) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := r.next.RoundTrip(req)
	if err != nil {
		r.note(fmt.Errorf("%s: %w", req.URL.Redacted(), err))
		return nil, err
	}
	switch {
	case resp.StatusCode == http.StatusNotFound && !strings.HasSuffix(req.URL.Path, "/checkpoint"):
	case resp.StatusCode == http.StatusNotFound:
		r.note(fmt.Errorf("%s: the server answers %s; must be the URL of a log, which ends as in /logs/2026q4", req.URL.Redacted(), resp.Status))
	case resp.StatusCode != http.StatusOK && (resp.StatusCode < 300 || resp.StatusCode > 399): // the client goes where it is sent
		r.note(fmt.Errorf("%s: the server answers %s", req.URL.Redacted(), resp.Status))
	}
	resp.Body = &body{resp.Body, r, req.URL.Redacted()}
	return resp, nil
}

// body is of an answer, and may end too early.
type body struct {
	io.ReadCloser
	of   *reach
	name string
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		b.of.note(fmt.Errorf("%s: %w", b.name, err))
	}
	return n, err
}
