package server

import (
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
)

// newTLSConfig is the TLS side of the admission listener.
func newTLSConfig(c Config) (*tls.Config, error) {
	version := c.MinTLSVersion
	switch version {
	case 0:
		version = tls.VersionTLS13
	case tls.VersionTLS12, tls.VersionTLS13:
	default:
		return nil, fmt.Errorf("server: minimum TLS version %s; must be TLS 1.2 or 1.3", tls.VersionName(version))
	}
	config := &tls.Config{
		MinVersion:     version,
		GetCertificate: c.GetCertificate,
		NextProtos:     []string{"h2", "http/1.1"},
	}
	switch {
	case c.ClientCAs == nil && len(c.ClientNames) > 0:
		return nil, errors.New("server: client names without client CAs; nothing would verify them")
	case c.ClientCAs != nil:
		config.ClientAuth = tls.RequireAndVerifyClientCert
		config.ClientCAs = c.ClientCAs
		// A resumed session would not be held against CAs and names again.
		config.SessionTicketsDisabled = true
	}
	if names := slices.Clone(c.ClientNames); len(names) > 0 {
		config.VerifyConnection = func(state tls.ConnectionState) error {
			// RequireAndVerifyClientCert has seen to it that there is a chain.
			if name := state.VerifiedChains[0][0].Subject.CommonName; !slices.Contains(names, name) {
				return fmt.Errorf("client certificate is for %q; must be for one of %q", name, names)
			}
			return nil
		}
	}
	return config, nil
}
