package servingcert

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"time"

	cmtls "github.com/cert-manager/cert-manager/pkg/server/tls"
	"github.com/cert-manager/cert-manager/pkg/server/tls/authority"
	"k8s.io/client-go/rest"
)

// Defaults of self-managed certificates.
const (
	DefaultCADuration   = 365 * 24 * time.Hour
	DefaultLeafDuration = 7 * 24 * time.Hour
	// DefaultClockSkew is how far apart the clocks of API server and webhook may
	// be without a rotation failing on a certificate that is "not yet valid".
	DefaultClockSkew = 5 * time.Second
)

// retryInterval is how soon a certificate that could not be signed, usually
// because the CA is just being created, is asked for again. It bounds the time
// from start to readiness.
const retryInterval = 200 * time.Millisecond

// AuthorityConfig says where the CA lives.
type AuthorityConfig struct {
	RESTConfig *rest.Config
	// Namespace and Secret name the Secret that holds the CA with its key, in
	// tls.crt, tls.key and ca.crt. Whoever can read it can pose as the webhook to
	// the API server; whoever can write it can do so at once.
	Namespace, Secret string
	// Labels are put on the Secret when it is created.
	Labels map[string]string
	// CADuration and LeafDuration are 0 for the defaults. CA and leaf are renewed
	// after two thirds of their life.
	CADuration, LeafDuration time.Duration
}

// NewAuthority returns cert-manager's authority on a CA that all replicas share:
// whichever comes first creates it, and all follow when it is replaced.
func NewAuthority(c AuthorityConfig) (cmtls.Authority, error) {
	if c.RESTConfig == nil || c.Namespace == "" || c.Secret == "" {
		return nil, errors.New("certificate authority: API server, namespace and name of the Secret must be set")
	}
	if c.CADuration <= 0 {
		c.CADuration = DefaultCADuration
	}
	if c.LeafDuration <= 0 {
		c.LeafDuration = DefaultLeafDuration
	}
	if c.LeafDuration >= c.CADuration {
		return nil, errors.New("certificate authority: certificates must live shorter than their CA")
	}
	return &authority.DynamicAuthority{
		RESTConfig:      c.RESTConfig,
		SecretNamespace: c.Namespace,
		SecretName:      c.Secret,
		SecretLabels:    c.Labels,
		CommonName:      "meshvakt-webhook-ca",
		CADuration:      c.CADuration,
		LeafDuration:    c.LeafDuration,
	}, nil
}

// SelfManagedConfig is what a SelfManaged source needs.
type SelfManagedConfig struct {
	// Authority signs; see NewAuthority. Required.
	Authority cmtls.Authority
	// DNSNames and IPAddresses are what the certificate is for; at least one.
	DNSNames    []string
	IPAddresses []net.IP
	// Trust knows what the API server trusts; see Bundle. With nil every
	// certificate is put into service as soon as it is signed.
	Trust Trust
	// ClockSkew is 0 for DefaultClockSkew.
	ClockSkew time.Duration
	// Log is nil for slog.Default.
	Log *slog.Logger
}

// Trust tells whether API servers accept a certificate.
type Trust interface {
	// Trusts reports whether a leaf put into service now would be accepted. It
	// is asked a few times per second while the answer is no.
	Trusts(leaf *x509.Certificate) bool
}

// SelfManaged serves certificates signed by an authority: a key of its own for
// every replica, renewed in time, and replaced when the CA is, without a moment
// in which the API server does not trust what it is shown.
type SelfManaged struct {
	inner *cmtls.DynamicSource
	log   *slog.Logger
}

// NewSelfManaged makes a SelfManaged source.
func NewSelfManaged(c SelfManagedConfig) (*SelfManaged, error) {
	if c.Authority == nil || len(c.DNSNames)+len(c.IPAddresses) == 0 {
		return nil, errors.New("serving certificate: authority and at least one DNS name or IP address must be set")
	}
	if c.ClockSkew <= 0 {
		c.ClockSkew = DefaultClockSkew
	}
	log := orDefaultLog(c.Log)
	return &SelfManaged{
		inner: &cmtls.DynamicSource{
			DNSNames:      c.DNSNames,
			Authority:     newGate(c, log),
			RetryInterval: retryInterval,
		},
		log: log,
	}, nil
}

// Start keeps the certificate fresh until ctx is cancelled. It may be called
// once.
func (s *SelfManaged) Start(ctx context.Context) error {
	return s.inner.Start(withLog(ctx, s.log))
}

// GetCertificate returns the certificate in service.
func (s *SelfManaged) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	return s.inner.GetCertificate(hello)
}

// Healthy reports whether there is a certificate and it has not expired.
func (s *SelfManaged) Healthy() bool {
	return inDate(s)
}
