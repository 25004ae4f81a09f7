package servingcert

import (
	"context"
	"crypto/x509"
	"log/slog"
	"net"
	"time"

	cmtls "github.com/cert-manager/cert-manager/pkg/server/tls"
)

// A held certificate is looked at again after a tenth of the time it has been
// held for, within these bounds: soon while it is a matter of seconds, seldom
// when nobody publishes anything.
const (
	minPoll = 200 * time.Millisecond
	maxPoll = 10 * time.Second
)

// lastResort is when holding ends whatever is published: this long before the
// old certificate expires, or a tenth of its life if that is shorter. Up to then
// the old one works for certain; after that nothing is lost by trying the new.
const lastResort = 5 * time.Minute

// gate stands between cert-manager's DynamicSource and its authority. It adds IP
// addresses, which the source does not know of, and holds signed certificates
// back until they can be accepted. A held Sign blocks; the source goes on
// serving the certificate it has, and asks for one thing at a time.
//
// When the CA in the Secret is replaced, all replicas sign by the new one within
// moments, while the API server trusts the old one until the leader has written
// the new one into the webhook configurations and the API servers have seen it.
// Without the gate every call in between would fail.
type gate struct {
	cmtls.Authority
	ips   []net.IP
	trust Trust // nil: hold nothing
	skew  time.Duration
	log   *slog.Logger

	rotated chan struct{} // the CA was replaced while a certificate is held
	stopped chan struct{} // closed when the context of Run ends

	// serving is the certificate last let through, nil before the first. Only
	// Sign touches it, and DynamicSource calls Sign from one goroutine.
	serving *x509.Certificate
}

func newGate(c SelfManagedConfig, log *slog.Logger) *gate {
	g := &gate{
		Authority: c.Authority, ips: c.IPAddresses, trust: c.Trust, skew: c.ClockSkew, log: log,
		rotated: make(chan struct{}, 1), stopped: make(chan struct{}),
	}
	// Before anything is signed, so that no rotation goes unnoticed.
	c.Authority.WatchRotation(g.rotated)
	return g
}

// Run runs the authority.
func (g *gate) Run(ctx context.Context) error {
	context.AfterFunc(ctx, func() { close(g.stopped) })
	defer g.Authority.StopWatchingRotation(g.rotated)
	return g.Authority.Run(ctx)
}

// Sign signs, and returns the certificate when it can be put into service.
func (g *gate) Sign(template *x509.Certificate) (*x509.Certificate, error) {
	template.IPAddresses = g.ips
	leaf, err := g.Authority.Sign(template)
	if err != nil {
		return nil, err
	}
	held, begin := "", time.Now()
	for {
		why := g.hold(leaf)
		if why == "" {
			if held != "" {
				g.log.Info("held serving certificate goes into service", "notAfter", leaf.NotAfter)
			}
			g.serving = leaf
			return leaf, nil
		}
		if why != held {
			held = why
			level := slog.LevelInfo
			if g.serving == nil {
				level = slog.LevelWarn // and nothing is served meanwhile
			}
			g.log.Log(context.Background(), level, "new serving certificate is held back", "reason", why, "oldInService", g.serving != nil)
		}
		poll := time.NewTimer(min(max(time.Since(begin)/10, minPoll), maxPoll))
		select {
		case <-poll.C:
		case <-g.stopped:
			poll.Stop()
			return nil, context.Canceled
		case <-g.rotated:
			poll.Stop()
			// What is held may be signed by a CA that will never be published.
			if leaf, err = g.Authority.Sign(template); err != nil {
				return nil, err
			}
		}
	}
}

// hold says why a certificate must not go into service yet, "" if it may.
func (g *gate) hold(leaf *x509.Certificate) string {
	now := time.Now()
	trusted := g.trust == nil || g.trust.Trusts(leaf)
	if old := g.serving; old != nil {
		margin := min(lastResort, old.NotAfter.Sub(old.NotBefore)/10)
		if now.After(old.NotAfter.Add(-margin)) {
			if !trusted {
				g.log.Error("serving certificate is about to expire and is replaced by one that the API server has not been told to trust; the caBundle of the webhook configurations must be updated",
					"notAfter", old.NotAfter)
			}
			return ""
		}
		if now.Before(leaf.NotBefore.Add(g.skew)) {
			return "clocks may differ"
		}
	}
	if !trusted {
		return "its CA is not published in the webhook configurations for long enough"
	}
	return ""
}
