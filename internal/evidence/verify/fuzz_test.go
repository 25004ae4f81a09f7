package verify

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// Whatever a file holds, it is read to its end or refused, and never proves a claim unless it is
// the log that was signed.
func FuzzBundle(f *testing.F) {
	b := quiet("meshvakt-0", 3)
	s := b.shards[0]
	path := filepath.Join(f.TempDir(), "seed.zip")
	writeZip(f, path, withManifest(logFiles(s.origin, s.key, s.lines), s.origin, "meshvakt-0", s.name, s.lines))
	seed := must(os.ReadFile(path))
	f.Add(seed)
	f.Add(seed[:len(seed)/2])
	f.Add([]byte("PK\x05\x06" + string(make([]byte, 18))))
	trust := must(NewTrust(nil, []string{s.key.public}, false))
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "bundle.zip")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		sources, err := Open(path, nil)
		if err != nil {
			return
		}
		defer sources[0].Close()
		r := verifyAll(t, Options{Trust: trust, Claims: []Claim{claimOf(t, "mtls=STRICT,namespace=payments", 0, 180)}}, sources...)
		if r.ExitCode() == 0 && (len(r.Logs) != 1 || r.Logs[0].Size != uint64(len(s.lines)) || !bytes.Equal([]byte(r.Logs[0].Key), []byte(s.key.public))) {
			t.Errorf("a log that nobody has signed proves a claim: %+v", r.Logs)
		}
	})
}
