package verify

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
)

// manifest is what a bundle says of itself. It is not signed, and adds nothing to what the log
// proves; but a bundle that is not what it says was changed by somebody.
type manifest struct {
	Format  int    `json:"format"`
	Origin  string `json:"origin"`
	Cluster string `json:"cluster"`
	Replica string `json:"replica"`
	Shard   string `json:"shard"`
	Size    uint64 `json:"size"`
	Root    string `json:"root"`
	Closed  bool   `json:"closed"`
	Files   []struct {
		Name   string `json:"name"`
		Size   int    `json:"size"`
		SHA256 string `json:"sha256"`
	} `json:"files"`
	Kinds map[string]uint64 `json:"kinds"`
}

// manifest compares the manifest, where there is one, with what was verified.
func (r *reading) manifest(ctx context.Context, o *opened, log *Log) error {
	text, err := o.source.files.read(ctx, "manifest.json", maxManifest)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the manifest: %w", err)
	}
	var m manifest
	if err := json.Unmarshal(text, &m); err != nil {
		return fmt.Errorf("the manifest is not JSON as it must be: %w", err)
	}
	if m.Format != 1 {
		r.newer = append(r.newer, Problem{log.Origin, -1, fmt.Sprintf("its manifest has format %d; a newer Meshvakt is needed", m.Format)})
		return nil
	}
	if m.Origin != log.Origin || m.Cluster != log.Cluster || m.Replica != log.Replica || m.Shard != log.Shard || m.Size != log.Size || m.Root != log.Root || m.Closed != log.Closed {
		return fmt.Errorf("the manifest is of %s with %d records and root %s; the log is another", m.Origin, m.Size, m.Root)
	}
	for _, k := range log.Kinds {
		if m.Kinds[k.Kind] != k.N {
			return fmt.Errorf("the manifest counts %d records of kind %s and the log has %d", m.Kinds[k.Kind], k.Kind, k.N)
		}
	}
	named := make(map[string]bool, len(m.Files))
	for _, f := range m.Files {
		if named[f.Name] { // each would be read again, and a short bundle can have a long list of a file that is large when unpacked
			return fmt.Errorf("the manifest names file %q twice", f.Name)
		}
		named[f.Name] = true
		if !fs.ValidPath(f.Name) {
			return fmt.Errorf("the manifest names file %q; must be a path within the bundle", f.Name)
		}
		data, err := o.source.files.read(ctx, f.Name, max(maxBundle, maxCheckpoint))
		if err != nil {
			return fmt.Errorf("read %s, which the manifest names: %w", f.Name, err)
		}
		if sum := sha256.Sum256(data); len(data) != f.Size || hex.EncodeToString(sum[:]) != f.SHA256 {
			return fmt.Errorf("%s is not as the manifest says", f.Name)
		}
	}
	return nil
}
