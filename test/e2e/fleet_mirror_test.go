package e2e

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/test/controlplane"
	"github.com/meshvakt/meshvakt/test/tmpfs"
)

// TestFleetMirror has a replica's evidence copied to a real S3 server, through refused credentials, a
// sealer that is killed, and a server that is down. At each moment the copy is one that verifies.
func TestFleetMirror(t *testing.T) {
	s := startStorage(t)
	guard(t, defaultGuard(v1alpha1.OnMissingReject))
	dir := tmpfs.TempDir(t)
	r := start(t, append(evidenceOf(dir), "--evidence-beat", "2s")...)
	enforcing(t, "default")
	dev := clientFor(t, controlplane.Developer)
	ns := unique("mirror")
	create(t, dev, namespace(ns, false), policy(ns, "default", "STRICT"))
	must(t, relabel(t.Context(), dev, namespace(ns, false), v1alpha1.GuardedLabel, "true"))
	refuse := func(n int) { // each leaves a record
		t.Helper()
		for i := range n {
			if err := dev.Create(t.Context(), weakPolicy(ns, fmt.Sprint("weak-", i))); !apierrors.IsForbidden(err) {
				t.Fatalf("a weak policy: %v", err)
			}
		}
	}

	refuse(40)
	sealer := startSealer(t, dir, "another secret", s.flags()...)
	sealer.says("SignatureDoesNotMatch", "must accept the credentials", "AWS_ACCESS_KEY_ID", "it will be tried again")
	if here := checkpoints(t, dir); len(here) != 1 {
		t.Errorf("while the mirror refuses, %d logs are sealed; must be 1", len(here))
	}
	if list := s.objects(); len(list) != 0 {
		t.Errorf("with wrong credentials the mirror has %q", list)
	}
	sealer.end()

	whole := func() { // what is there can be verified, by its URL
		t.Helper()
		for origin := range checkpoints(t, s.copied()) {
			verdict(t, 0, "--trust-log-key", s.url()+"/"+logPath(origin))
		}
	}
	for range 6 {
		before := len(s.objects())
		refuse(60)
		sealer = startSealer(t, dir, storeSecret, s.flags()...)
		eventually(t, 30*time.Second, func() error {
			if n := len(s.objects()); n == before {
				return fmt.Errorf("%d objects, as before", n)
			}
			return nil
		})
		sealer.kill()
		whole()
	}

	sealer = startSealer(t, dir, storeSecret, s.flags()...)
	s.stop()
	refuse(20)
	sealer.says("it will be tried again", "connection refused")
	s.start()
	refuse(20)
	eventually(t, 60*time.Second, func() error {
		if there := checkpoints(t, s.copied()); !maps.Equal(there, checkpoints(t, dir)) {
			return errors.New("the mirror is behind")
		}
		return nil
	})
	r.stop()
	unregister(t)
	sealer.end()
	if here, there := checkpoints(t, dir), checkpoints(t, s.copied()); !maps.Equal(here, there) {
		t.Errorf("at the end the mirror has\n%v\nand the volume\n%v", there, here)
	}
	whole()
	copied := s.synced()
	t.Logf("%d objects:\n%s", len(s.objects()), verdict(t, 0, "--trust-log-key", copied))
	mirrorLocks(t, s)

	tile := filepath.Join("tile", "entries", "000")
	flipped := filepath.Join(copied, filepath.FromSlash(logPath(slices.Collect(maps.Keys(checkpoints(t, copied)))[0])), tile)
	text, err := os.ReadFile(flipped)
	must(t, err)
	text[len(text)/2] ^= 1
	for origin := range checkpoints(t, copied) {
		must(t, os.WriteFile(flipped, text, 0o600))
		verdict(t, 3, "--trust-log-key", copied)
		must(t, os.WriteFile(filepath.Join(s.copied(), filepath.FromSlash(logPath(origin)), tile), text, 0o600))
		verdict(t, 3, "--trust-log-key", s.url()+"/"+logPath(origin))
	}
}

// logPath is where a log lies in a mirror.
func logPath(origin string) string {
	at := strings.LastIndex(origin, "/")
	return origin[:at] + "/logs" + origin[at:]
}

// mirrorLocks asks the store for what it holds of full tiles: how they may be cached, and that they
// cannot be deleted.
func mirrorLocks(t testing.TB, s *storage) {
	t.Helper()
	locked := 0
	for _, name := range s.objects() {
		key := storePrefix + "/" + name
		info, err := s.client.StatObject(t.Context(), storeBucket, key, minio.StatObjectOptions{})
		must(t, err)
		cache, kind := info.Metadata.Get("Cache-Control"), info.ContentType
		switch {
		case strings.HasSuffix(name, "/checkpoint") || strings.HasSuffix(name, "/keys"):
			if cache != "no-cache" || kind != "text/plain; charset=utf-8" {
				t.Errorf("%s is %q and may be cached %q", name, kind, cache)
			}
			continue
		case !strings.Contains(cache, "immutable") || kind != "application/octet-stream":
			t.Errorf("%s is %q and may be cached %q", name, kind, cache)
		}
		if strings.Contains(name, ".p/") {
			continue
		}
		locked++
		mode, until := info.Metadata.Get("X-Amz-Object-Lock-Mode"), info.Metadata.Get("X-Amz-Object-Lock-Retain-Until-Date")
		if end, err := time.Parse(time.RFC3339, until); err != nil || mode != "GOVERNANCE" || end.Before(time.Now().Add(24*time.Hour)) {
			t.Errorf("%s is locked %q until %q: %v", name, mode, until, err)
		}
		if err := s.client.RemoveObject(t.Context(), storeBucket, key, minio.RemoveObjectOptions{VersionID: info.VersionID}); err == nil {
			t.Errorf("%s can be deleted", name)
		}
	}
	if locked < 4 {
		t.Errorf("%d full tiles are locked; must be those of 300 records", locked)
	}
}
