package main

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/meshvakt/meshvakt/internal/evidence/seal"
	"github.com/meshvakt/meshvakt/internal/evidence/store"
	"github.com/meshvakt/meshvakt/internal/evidence/volume"
)

// mirrorOptions are the flags of `meshvakt evidence seal` about copies elsewhere.
type mirrorOptions struct {
	url           string
	authorization string
	endpoint      string
	region        string
	ca            string
	lock          string
	lockFor       time.Duration
}

func (o *mirrorOptions) flags(f *pflag.FlagSet) {
	f.StringVar(&o.url, "mirror", "", "where all of it is copied to: s3://BUCKET/PREFIX, or the URL of a server that takes PUT, as in https://mirror.example.org/evidence")
	f.StringVar(&o.authorization, "mirror-authorization-file", "", "file with the Authorization header for an http(s) --mirror")
	f.StringVar(&o.endpoint, "mirror-endpoint", "", "URL of the object storage of an s3 --mirror, as in https://s3.example.org; empty for AWS")
	f.StringVar(&o.region, "mirror-region", "", "region of an s3 --mirror (default AWS_REGION, or us-east-1)")
	f.StringVar(&o.ca, "mirror-ca-file", "", "file with certificates of CAs (PEM) that --mirror is trusted by, besides those of the system")
	f.StringVar(&o.lock, "mirror-lock", "", "lock full tiles and bundles of an s3 --mirror by Object Lock: governance or compliance; the bucket must have it")
	f.DurationVar(&o.lockFor, "mirror-lock-for", 0, "how long after the end of its quarter --mirror-lock keeps what is locked")
}

// open returns none where none is wanted.
func (o *mirrorOptions) open(dir volume.Dir, log *slog.Logger) (*seal.Mirror, error) {
	if err := o.check(); err != nil || o.url == "" {
		return nil, err
	}
	transport, err := o.transport()
	if err != nil {
		return nil, err
	}
	m := &seal.Mirror{Dir: dir, LockFor: o.lockFor, Log: log}
	if !strings.HasPrefix(o.url, "s3:") {
		if m.Store, err = store.NewHTTP(o.url, transport, o.header()); err != nil {
			return nil, fmt.Errorf("--mirror: %w", err)
		}
		return m, nil
	}
	m.Store, err = store.NewS3(store.S3Config{
		Bucket: o.url, Endpoint: o.endpoint, Lock: strings.ToUpper(o.lock), Transport: transport,
		Region:      cmp.Or(o.region, os.Getenv("AWS_REGION"), os.Getenv("AWS_DEFAULT_REGION"), "us-east-1"),
		Credentials: store.EnvironmentCredentials(),
	})
	if err != nil {
		return nil, fmt.Errorf("--mirror: %w", err)
	}
	return m, nil
}

func (o *mirrorOptions) check() error {
	s3 := strings.HasPrefix(o.url, "s3:")
	for _, f := range []struct{ name, value string }{
		{"--mirror-endpoint", o.endpoint}, {"--mirror-region", o.region}, {"--mirror-lock", o.lock},
	} {
		if f.value != "" && !s3 {
			return fmt.Errorf("%s: needs --mirror s3://BUCKET/PREFIX", f.name)
		}
	}
	switch {
	case o.authorization != "" && (o.url == "" || s3):
		return errors.New("--mirror-authorization-file: needs --mirror with an http or https URL; credentials for s3 are in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
	case o.ca != "" && o.url == "":
		return errors.New("--mirror-ca-file: needs --mirror")
	case !slices.Contains([]string{"", "governance", "compliance"}, o.lock):
		return fmt.Errorf("--mirror-lock: %q; must be governance or compliance", o.lock)
	case (o.lock == "") != (o.lockFor == 0) || o.lockFor < 0:
		return fmt.Errorf("--mirror-lock: %q with --mirror-lock-for %s; must be given together, the time more than 0", o.lock, o.lockFor)
	}
	return nil
}

// transport trusts what the system does, and who is named.
func (o *mirrorOptions) transport() (http.RoundTripper, error) {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.DisableCompression = true // bytes as they are stored
	if o.ca == "" {
		return t, nil
	}
	text, err := os.ReadFile(o.ca)
	if err != nil {
		return nil, fmt.Errorf("--mirror-ca-file: %w", err)
	}
	roots, err := x509.SystemCertPool()
	if err != nil {
		return nil, fmt.Errorf("--mirror-ca-file: read the certificates of the system: %w", err)
	}
	if !roots.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("--mirror-ca-file: %s has no certificate; must be PEM", o.ca)
	}
	t.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	return t, nil
}

// header is read anew for each request, as Secrets are replaced.
func (o *mirrorOptions) header() func() (string, error) {
	if o.authorization == "" {
		return nil
	}
	return func() (string, error) {
		text, err := os.ReadFile(o.authorization)
		return strings.TrimSpace(string(text)), err
	}
}
