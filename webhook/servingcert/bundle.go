package servingcert

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// DefaultSettleDelay is how long a CA must have been published before it is
// counted on. API servers learn of it by a watch, each in its own time.
const DefaultSettleDelay = 5 * time.Second

// maxCAs bounds a published bundle: the current CA and those before it whose
// certificates can still be in service somewhere.
const maxCAs = 3

// MergeBundle returns the caBundle to publish: the current CA, then those in the
// existing bundle that have not expired, newest first, three in all. Publishing
// both old and new is what lets replicas change over one by one. The result
// depends on the certificates alone, so writing it twice changes nothing; what
// cannot be read in existing is dropped.
func MergeBundle(existing, current []byte, now time.Time) ([]byte, error) {
	merged := parseCertificates(current)
	if len(merged) == 0 {
		return nil, errors.New("merge CA bundle: there is no certificate in the current one")
	}
	previous := parseCertificates(existing)
	slices.SortStableFunc(previous, func(a, b *x509.Certificate) int {
		if c := b.NotBefore.Compare(a.NotBefore); c != 0 {
			return c
		}
		return bytes.Compare(a.Raw, b.Raw)
	})
	for _, c := range previous {
		if len(merged) < maxCAs && now.Before(c.NotAfter) && !slices.ContainsFunc(merged, c.Equal) {
			merged = append(merged, c)
		}
	}
	var out bytes.Buffer
	for _, c := range merged {
		if err := pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}); err != nil {
			return nil, fmt.Errorf("merge CA bundle: %w", err)
		}
	}
	return out.Bytes(), nil
}

// parseCertificates returns the certificates in PEM data, each once, and passes
// over everything else.
func parseCertificates(data []byte) []*x509.Certificate {
	var list []*x509.Certificate
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			return list
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		if c, err := x509.ParseCertificate(block.Bytes); err == nil && !slices.ContainsFunc(list, c.Equal) {
			list = append(list, c)
		}
	}
}

// Bundle follows what is published as caBundle in the webhook configurations,
// and so knows what API servers trust. Every replica needs one that is told of
// every change, leader or not. It is safe for concurrent use.
type Bundle struct {
	settle time.Duration

	mu        sync.Mutex
	observed  bool // Observe was called
	published bool // the last Observe saw a CA anywhere
	cas       []publishedCA
}

type publishedCA struct {
	cert *x509.Certificate
	// since is when it was first seen in all configurations, the zero time for
	// longer than can be told.
	since time.Time
}

// NewBundle makes a Bundle that counts on a CA once it has been published for
// settle, 0 meaning DefaultSettleDelay.
func NewBundle(settle time.Duration) *Bundle {
	if settle <= 0 {
		settle = DefaultSettleDelay
	}
	return &Bundle{settle: settle}
}

// Observe takes note of the caBundles of all webhooks as they are now. Those
// without a certificate are passed over: nothing is trusted there yet, whatever
// is served. It must be called once
// at the start even if there is no webhook configuration, or certificates are
// held for want of knowledge.
func (b *Bundle) Observe(caBundles ...[]byte) {
	var common []*x509.Certificate
	published := false
	for _, data := range caBundles {
		list := parseCertificates(data)
		switch {
		case len(list) == 0: // a placeholder
		case !published:
			common, published = list, true
		default:
			common = slices.DeleteFunc(common, func(c *x509.Certificate) bool { return !slices.ContainsFunc(list, c.Equal) })
		}
	}

	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	cas := make([]publishedCA, 0, len(common))
	for _, c := range common {
		since := now
		if i := slices.IndexFunc(b.cas, func(p publishedCA) bool { return p.cert.Equal(c) }); i >= 0 {
			since = b.cas[i].since
		} else if !b.observed && b.longPublished(c, len(common), now) {
			since = time.Time{}
		}
		cas = append(cas, publishedCA{c, since})
	}
	b.cas, b.published, b.observed = cas, published, true
}

// longPublished guesses, for a CA in the first bundle that this process sees, if
// it has been there for long: it has if there is no other that an API server
// could trust instead, or if the CA itself is older than its publication can
// have taken. A restart must not wait for nothing.
func (b *Bundle) longPublished(c *x509.Certificate, among int, now time.Time) bool {
	return among == 1 || now.Sub(c.NotBefore) > b.settle+time.Minute
}

// Trusts reports whether API servers accept the leaf. They do when a CA that has
// been published for long enough has signed it; and when nothing is published
// at all there is nothing to lose. Before the first observation the answer is no.
func (b *Bundle) Trusts(leaf *x509.Certificate) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.observed {
		return false
	}
	if !b.published {
		return true
	}
	now := time.Now()
	roots := x509.NewCertPool()
	for _, p := range b.cas {
		if now.Sub(p.since) >= b.settle {
			roots.AddCert(p.cert)
		}
	}
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	return err == nil
}
