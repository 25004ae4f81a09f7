package servingcert

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"slices"
	"sync"
	"testing"
	"time"
)

// testCA is a certificate authority with its key.
type testCA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newTestCA(t testing.TB, notBefore time.Time, life time.Duration) *testCA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "meshvakt-webhook-ca"},
		NotBefore: notBefore, NotAfter: notBefore.Add(life),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(raw)
	if err != nil {
		t.Fatal(err)
	}
	return &testCA{cert, key}
}

func (c *testCA) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.cert.Raw})
}

// sign does to a template what cert-manager's authority does.
func (c *testCA) sign(template *x509.Certificate, life time.Duration) (*x509.Certificate, error) {
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	template.NotBefore = time.Now()
	template.NotAfter = template.NotBefore.Add(life)
	raw, err := x509.CreateCertificate(rand.Reader, template, c.cert, template.PublicKey.(crypto.PublicKey), c.key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(raw)
}

func (c *testCA) leaf(t testing.TB) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := c.sign(&x509.Certificate{PublicKey: key.Public(), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return leaf
}

// fakeAuthority is an authority whose CA is replaced on command, as all replicas
// see it when the Secret changes.
type fakeAuthority struct {
	t        testing.TB
	leafLife time.Duration

	mu      sync.Mutex
	ca      *testCA // nil: not created yet
	watches []chan<- struct{}
	signed  int
}

func (f *fakeAuthority) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

func (f *fakeAuthority) WatchRotation(ch chan<- struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.watches = append(f.watches, ch)
}

func (f *fakeAuthority) StopWatchingRotation(ch chan<- struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.watches = slices.DeleteFunc(f.watches, func(c chan<- struct{}) bool { return c == ch })
}

func (f *fakeAuthority) Sign(template *x509.Certificate) (*x509.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ca == nil {
		return nil, errNoCA
	}
	f.signed++
	return f.ca.sign(template, f.leafLife)
}

// rotate replaces the CA and returns the new one.
func (f *fakeAuthority) rotate() *testCA {
	ca := newTestCA(f.t, time.Now(), 365*24*time.Hour)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ca = ca
	for _, ch := range f.watches {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
	return ca
}

// servedBy returns which of the CAs signed the certificate in service.
func servedBy(t testing.TB, s Source, cas ...*testCA) *testCA {
	t.Helper()
	cert, err := s.GetCertificate(nil)
	if err != nil {
		return nil
	}
	for _, ca := range cas {
		if cert.Leaf.CheckSignatureFrom(ca.cert) == nil {
			return ca
		}
	}
	t.Fatal("certificate in service is of no known CA")
	return nil
}

// handshake connects as an API server with these roots would.
func handshake(s Source, roots []byte, now time.Time, name string) error {
	cert, err := s.GetCertificate(&tls.ClientHelloInfo{ServerName: name})
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(roots)
	_, err = cert.Leaf.Verify(x509.VerifyOptions{
		Roots: pool, CurrentTime: now, DNSName: name, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	return err
}
