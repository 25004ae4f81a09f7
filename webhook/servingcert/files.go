package servingcert

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"math"
	"time"

	cmtls "github.com/cert-manager/cert-manager/pkg/server/tls"
)

// DefaultReloadInterval is how often certificate files are looked at.
const DefaultReloadInterval = 5 * time.Second

// FilesConfig is what a Files source needs.
type FilesConfig struct {
	// CertFile and KeyFile are PEM files, such as a mounted Secret's. Whoever can
	// write them decides what the API server is shown. Required.
	CertFile, KeyFile string
	// ReloadInterval is 0 for DefaultReloadInterval.
	ReloadInterval time.Duration
	// Log is nil for slog.Default.
	Log *slog.Logger
}

// Files serves a certificate from files and follows their changes. What cannot
// be read, or does not fit together because only one file has been written yet,
// leaves the certificate in service as it is.
type Files struct {
	inner *cmtls.FileCertificateSource
	log   *slog.Logger
}

// NewFiles makes a Files source.
func NewFiles(c FilesConfig) (*Files, error) {
	if c.CertFile == "" || c.KeyFile == "" {
		return nil, errors.New("serving certificate: certificate and key file must be named")
	}
	if c.ReloadInterval <= 0 {
		c.ReloadInterval = DefaultReloadInterval
	}
	return &Files{
		inner: &cmtls.FileCertificateSource{
			CertPath: c.CertFile, KeyPath: c.KeyFile, UpdateInterval: c.ReloadInterval,
			// It counts failures over its whole life and gives up at this
			// number; a file that is gone for a while must not end the process.
			MaxFailures: math.MaxInt,
		},
		log: orDefaultLog(c.Log),
	}, nil
}

// Start follows the files until ctx is cancelled.
func (f *Files) Start(ctx context.Context) error {
	return f.inner.Start(withLog(ctx, f.log))
}

// GetCertificate returns the certificate in service.
func (f *Files) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	return f.inner.GetCertificate(hello)
}

// Healthy reports whether there is a certificate and it has not expired. It asks
// GetCertificate, since the inner source's own Healthy reads without its lock.
func (f *Files) Healthy() bool {
	return inDate(f)
}
