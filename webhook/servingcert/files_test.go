package servingcert

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// writePair issues a certificate for name and writes it, or half of it.
func writePair(t *testing.T, dir, name string, cert, key bool) {
	t.Helper()
	ca := newTestCA(t, time.Now().Add(-time.Hour), day)
	other := newTestCA(t, time.Now().Add(-time.Hour), day)
	leaf, err := ca.sign(&x509.Certificate{PublicKey: other.key.Public(), DNSNames: []string{name}}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if cert {
		writePEM(t, filepath.Join(dir, "tls.crt"), "CERTIFICATE", leaf.Raw)
	}
	if key {
		raw, err := x509.MarshalPKCS8PrivateKey(other.key)
		if err != nil {
			t.Fatal(err)
		}
		writePEM(t, filepath.Join(dir, "tls.key"), "PRIVATE KEY", raw)
	}
}

func writePEM(t *testing.T, file, kind string, raw []byte) {
	t.Helper()
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: raw}), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s, err := NewFiles(FilesConfig{
			CertFile: filepath.Join(dir, "tls.crt"), KeyFile: filepath.Join(dir, "tls.key"), Log: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Start(ctx) }()
		reload := func() {
			time.Sleep(DefaultReloadInterval)
			synctest.Wait()
		}
		serves := func() string {
			if cert, err := s.GetCertificate(nil); err == nil {
				return cert.Leaf.DNSNames[0]
			}
			return ""
		}
		// Files that are missing for long do not end the source.
		for range 100 {
			reload()
		}
		if s.Healthy() || serves() != "" {
			t.Error("healthy without files")
		}
		writePair(t, dir, "one", true, true)
		reload()
		if !s.Healthy() || serves() != "one" {
			t.Errorf("serves %q, want one", serves())
		}
		writePair(t, dir, "two", true, false)
		reload()
		if serves() != "one" {
			t.Errorf("serves %q with a certificate and a key that do not belong together", serves())
		}
		writePair(t, dir, "three", true, true)
		reload()
		if serves() != "three" {
			t.Errorf("serves %q, want three", serves())
		}
		if err := os.Remove(filepath.Join(dir, "tls.key")); err != nil {
			t.Fatal(err)
		}
		reload()
		if !s.Healthy() {
			t.Error("the certificate in service went with its file")
		}
		time.Sleep(time.Hour)
		if s.Healthy() {
			t.Error("healthy with an expired certificate")
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// For the race detector: health is asked while files are reloaded.
func TestFilesHealthIsSafe(t *testing.T) {
	dir := t.TempDir()
	writePair(t, dir, "one", true, true)
	s, err := NewFiles(FilesConfig{
		CertFile: filepath.Join(dir, "tls.crt"), KeyFile: filepath.Join(dir, "tls.key"), ReloadInterval: time.Millisecond, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Start(ctx); err != nil {
			t.Error(err)
		}
	})
	for !s.Healthy() {
		time.Sleep(time.Millisecond)
	}
	cancel()
	wg.Wait()
}

func TestFilesConfigIsChecked(t *testing.T) {
	if _, err := NewFiles(FilesConfig{CertFile: "tls.crt"}); err == nil {
		t.Error("accepted without a key file")
	}
}
