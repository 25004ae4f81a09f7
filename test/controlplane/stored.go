package controlplane

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
)

// EditStored changes an object where etcd keeps it, past the API server, whether that runs or not.
// Custom resources are stored as JSON, by keys such as
// "/registry/security.istio.io/peerauthentications/NAMESPACE/NAME".
func (cp *ControlPlane) EditStored(ctx context.Context, key string, edit func(object []byte) ([]byte, error)) error {
	var found struct {
		Kvs []struct{ Value []byte }
	}
	if err := cp.etcd(ctx, "range", map[string][]byte{"key": []byte(key)}, &found); err != nil {
		return err
	}
	if len(found.Kvs) == 0 {
		return fmt.Errorf("etcd has nothing at %q", key)
	}
	value, err := edit(found.Kvs[0].Value)
	if err != nil {
		return fmt.Errorf("edit %q: %w", key, err)
	}
	return cp.etcd(ctx, "put", map[string][]byte{"key": []byte(key), "value": value}, &struct{}{})
}

// etcd asks etcd's gateway for JSON, in which bytes are in base64 as encoding/json has them.
func (cp *ControlPlane) etcd(ctx context.Context, what string, question, answer any) (err error) {
	body, err := json.Marshal(question)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://etcd/v3/kv/"+what, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := cp.etcdClient().Do(req)
	if err != nil {
		return fmt.Errorf("ask etcd: %w", err)
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("ask etcd: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("ask etcd to %s: %s: %s", what, resp.Status, text)
	}
	return json.Unmarshal(text, answer)
}

// etcdClient reaches etcd by its socket.
func (cp *ControlPlane) etcdClient() *http.Client {
	return &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(cp.Dir, etcdSocket))
		},
	}}
}
