// Package servingcert holds the sources of the certificate that the admission
// listener shows to the API server: self-managed, by cert-manager's library and
// a CA in a Secret that the replicas share, or from files.
//
// A source is made to be rotated under load. Two things stand between a new
// certificate and a refused connection, and self-managed certificates wait for
// both while the old one stays in service: the API server must have been told
// to trust the new CA, and the clocks of API server and webhook may differ.
package servingcert

import (
	"log/slog"
	"time"

	cmtls "github.com/cert-manager/cert-manager/pkg/server/tls"
)

// Source gives the current serving certificate. Start runs until its context is
// cancelled; an error means that no further certificate will come.
type Source interface {
	cmtls.CertificateSource
}

// NotAfter returns when the certificate in service expires, the zero time while
// there is none.
func NotAfter(s Source) time.Time {
	cert, err := s.GetCertificate(nil)
	if err != nil || cert == nil || cert.Leaf == nil {
		return time.Time{}
	}
	return cert.Leaf.NotAfter
}

// inDate is what both sources call healthy: there is a certificate, and clients
// can still accept it.
func inDate(s Source) bool {
	return time.Now().Before(NotAfter(s))
}

func orDefaultLog(log *slog.Logger) *slog.Logger {
	if log == nil {
		return slog.Default()
	}
	return log
}
