package controlplane

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// pki holds what the API server identifies itself and ServiceAccounts with. The files
// are in the directory of the control plane and nowhere else.
type pki struct {
	ca                 []byte // PEM
	caFile             string
	servingCertFile    string
	servingKeyFile     string
	serviceAccountFile string // private key; the API server and the controller manager share it
}

func newPKI(dir string) (*pki, error) {
	p := &pki{
		caFile:             filepath.Join(dir, "ca.crt"),
		servingCertFile:    filepath.Join(dir, "kube-apiserver.crt"),
		servingKeyFile:     filepath.Join(dir, "kube-apiserver.key"),
		serviceAccountFile: filepath.Join(dir, "service-account.key"),
	}
	now := time.Now()
	caKey, err := writeKey("")
	if err != nil {
		return nil, err
	}
	ca := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "meshvakt test control plane"},
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.AddDate(1, 0, 0),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	if p.ca, err = writeCertificate(p.caFile, ca, ca, caKey.Public(), caKey); err != nil {
		return nil, err
	}
	servingKey, err := writeKey(p.servingKeyFile)
	if err != nil {
		return nil, err
	}
	serving := &x509.Certificate{
		SerialNumber: big.NewInt(2),
		Subject:      pkix.Name{CommonName: "kube-apiserver"},
		NotBefore:    now.Add(-time.Hour),
		NotAfter:     now.AddDate(1, 0, 0),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1), net.IPv4(10, 0, 0, 1)},
		DNSNames:     []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"},
	}
	if _, err = writeCertificate(p.servingCertFile, serving, ca, servingKey.Public(), caKey); err != nil {
		return nil, err
	}
	if _, err = writeKey(p.serviceAccountFile); err != nil {
		return nil, err
	}
	return p, nil
}

// writeKey creates a private key and writes it to path. An empty path keeps it in
// memory: nothing needs the CA's key after the serving certificate is signed.
func writeKey(path string) (crypto.Signer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate key: %w", err)
	}
	if path == "" {
		return key, nil
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	block := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
	if err := os.WriteFile(path, block, 0o600); err != nil {
		return nil, fmt.Errorf("write key: %w", err)
	}
	return key, nil
}

func writeCertificate(path string, cert, parent *x509.Certificate, public crypto.PublicKey, signer crypto.Signer) ([]byte, error) {
	der, err := x509.CreateCertificate(rand.Reader, cert, parent, public, signer)
	if err != nil {
		return nil, fmt.Errorf("sign certificate: %w", err)
	}
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := os.WriteFile(path, block, 0o600); err != nil {
		return nil, fmt.Errorf("write certificate: %w", err)
	}
	return block, nil
}
