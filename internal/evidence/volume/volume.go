// Package volume is how the evidence of one replica lies on its disk, and which of its
// processes writes what: the webhook the spool, the sealer all else. Keys of the log are made
// by whichever needs one first.
//
//	spool/              lines that were acknowledged and may not be sealed yet
//	current             the origin of the shard that is written to
//	sealed              how far the sealer has come, for the webhook's heartbeats
//	keys/SHARD.key      signs the log of the shard; mode 0600
//	logs/SHARD/         the log as C2SP tlog-tiles: checkpoint, tile/…
//	bundles/SHARD.zip   a shard that is closed, for whoever verifies it
//	tombstones/SHARD    what remains of a shard after retention
package volume

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/sys/unix"
)

// Dir is the directory of one replica's evidence.
type Dir string

// Spool is where the webhook appends.
func (d Dir) Spool() string { return filepath.Join(string(d), "spool") }

// Keys is where the keys of logs are.
func (d Dir) Keys() string { return filepath.Join(string(d), "keys") }

// Logs has a directory for each shard's log that is still here.
func (d Dir) Logs() string { return filepath.Join(string(d), "logs") }

// Log is the log of a shard.
func (d Dir) Log(shard string) string { return filepath.Join(d.Logs(), shard) }

// Bundles has the bundles of closed shards.
func (d Dir) Bundles() string { return filepath.Join(string(d), "bundles") }

// Bundle is the bundle of a shard.
func (d Dir) Bundle(shard string) string { return filepath.Join(d.Bundles(), shard+".zip") }

// Tombstones has what remains of shards after retention.
func (d Dir) Tombstones() string { return filepath.Join(string(d), "tombstones") }

// Tombstone is what remains of a shard.
func (d Dir) Tombstone(shard string) string { return filepath.Join(d.Tombstones(), shard) }

// LogKeyFile is where the key of a shard's log is.
func (d Dir) LogKeyFile(shard string) string { return filepath.Join(d.Keys(), shard+".key") }

// Has reports whether there is, or was, a log of that shard.
func (d Dir) Has(shard string) (bool, error) {
	for _, path := range []string{d.Log(shard), d.Bundle(shard), d.Tombstone(shard)} {
		if _, err := os.Lstat(path); err == nil {
			return true, nil
		} else if !errors.Is(err, fs.ErrNotExist) {
			return false, fmt.Errorf("look for shard %s: %w", shard, err)
		}
	}
	return false, nil
}

// Begun reports whether the log of a shard was to begin here, and has not: there is its key, and nothing else of it.
func (d Dir) Begun(shard string) (bool, error) {
	if _, err := os.Lstat(d.LogKeyFile(shard)); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("look for shard %s: %w", shard, err)
	}
	if there, err := d.Has(shard); there || err != nil {
		return false, err
	}
	current, err := d.ReadCurrent()
	return current.Shard != shard, err
}

// Create makes what is not there yet. The directory itself must be.
func (d Dir) Create() error {
	for _, sub := range []string{d.Spool(), d.Keys(), d.Logs(), d.Bundles(), d.Tombstones()} {
		if err := os.Mkdir(sub, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("create the evidence directory: %w", err)
		}
	}
	return syncDir(string(d))
}

// LogKey signs the log of one shard. Its name is the log's origin.
type LogKey struct {
	Signer   string // as note.NewSigner takes it; secret
	Verifier string // as note.NewVerifier takes it
}

// LogKey returns the key of a shard and makes it where there is none. Two processes that do
// so at once get the same one.
func (d Dir) LogKey(shard, origin string, random io.Reader) (LogKey, error) {
	path := d.LogKeyFile(shard)
	if key, err := readLogKey(path, origin); !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	signer, verifier, err := note.GenerateKey(random, origin)
	if err != nil {
		return LogKey{}, fmt.Errorf("make the log key of shard %s: %w", shard, err)
	}
	temporary, err := writeTemporary(path, signer+"\n"+verifier+"\n")
	if err != nil {
		return LogKey{}, fmt.Errorf("store the log key of shard %s: %w", shard, err)
	}
	// Unlike a rename, a link does not replace what another process has made meanwhile.
	err = os.Link(temporary, path)
	if errors.Is(err, fs.ErrExist) {
		err = nil
	}
	if err = errors.Join(err, os.Remove(temporary), syncDir(d.Keys())); err != nil {
		return LogKey{}, fmt.Errorf("store the log key of shard %s: %w", shard, err)
	}
	return readLogKey(path, origin)
}

func readLogKey(path, origin string) (LogKey, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return LogKey{}, fmt.Errorf("read a log key: %w", err)
	}
	signer, rest, _ := strings.Cut(string(text), "\n")
	verifier, _, _ := strings.Cut(rest, "\n")
	s, err := note.NewSigner(signer)
	if err != nil {
		return LogKey{}, fmt.Errorf("read a log key: %s: %w", filepath.Base(path), err)
	}
	v, err := note.NewVerifier(verifier)
	if err != nil {
		return LogKey{}, fmt.Errorf("read a log key: %s: %w", filepath.Base(path), err)
	}
	if s.Name() != origin || v.Name() != origin || s.KeyHash() != v.KeyHash() {
		return LogKey{}, fmt.Errorf("read a log key: %s is of %q and %q; must be of %q", filepath.Base(path), s.Name(), v.Name(), origin)
	}
	return LogKey{signer, verifier}, nil
}

// Sealed is how far the sealer has come.
type Sealed struct {
	// Line is the number, in the spool, of the last line that is in a signed checkpoint; 0 for none.
	Line uint64
	// At is when that was found to be so: the sealer writes it anew while there is nothing to seal, too.
	At time.Time
}

// ReadSealed returns the zero Sealed where no sealer has been at work yet.
func (d Dir) ReadSealed() (Sealed, error) {
	text, err := os.ReadFile(filepath.Join(string(d), "sealed"))
	if errors.Is(err, fs.ErrNotExist) {
		return Sealed{}, nil
	}
	if err != nil {
		return Sealed{}, fmt.Errorf("read how far is sealed: %w", err)
	}
	line, at, _ := strings.Cut(strings.TrimSuffix(string(text), "\n"), " ")
	n, err := strconv.ParseUint(line, 10, 64)
	if err != nil {
		return Sealed{}, fmt.Errorf("read how far is sealed: %w", err)
	}
	t, err := time.Parse(time.RFC3339Nano, at)
	if err != nil {
		return Sealed{}, fmt.Errorf("read how far is sealed: %w", err)
	}
	return Sealed{n, t}, nil
}

// WriteSealed is for the sealer. It is advice, from which nothing is deleted, so it is not
// synced.
func (d Dir) WriteSealed(s Sealed) error {
	path := filepath.Join(string(d), "sealed")
	temporary := path + ".tmp"
	text := fmt.Sprintf("%d %s\n", s.Line, s.At.UTC().Format(time.RFC3339Nano))
	if err := os.WriteFile(temporary, []byte(text), 0o600); err != nil {
		return fmt.Errorf("write how far is sealed: %w", err)
	}
	if err := os.Rename(temporary, path); err != nil {
		return fmt.Errorf("write how far is sealed: %w", err)
	}
	return nil
}

// writeTemporary writes a durable file next to path, under a name of its own.
func writeTemporary(path, text string) (name string, err error) {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*.tmp")
	if err != nil {
		return "", err
	}
	_, err = f.WriteString(text)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return "", errors.Join(err, os.Remove(f.Name()))
	}
	return f.Name(), nil
}

func syncDir(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	err = f.Sync()
	if errors.Is(err, unix.EINVAL) { // file systems that have nothing to sync
		err = nil
	}
	return errors.Join(err, f.Close())
}

// Current is the shard that the webhook writes to.
type Current struct {
	Shard  string
	Origin string
	// Pseudonyms is the ID of the key of its pseudonyms.
	Pseudonyms string
}

// ReadCurrent returns the zero Current where nothing was ever written.
func (d Dir) ReadCurrent() (Current, error) {
	text, err := os.ReadFile(filepath.Join(string(d), "current"))
	if errors.Is(err, fs.ErrNotExist) {
		return Current{}, nil
	}
	if err != nil {
		return Current{}, fmt.Errorf("read the current shard: %w", err)
	}
	origin, rest, _ := strings.Cut(string(text), "\n")
	pseudonyms, _, _ := strings.Cut(rest, "\n")
	_, _, _, shard, err := SplitOrigin(origin)
	if err != nil {
		return Current{}, fmt.Errorf("read the current shard: %w", err)
	}
	return Current{Shard: shard, Origin: origin, Pseudonyms: pseudonyms}, nil
}

// WriteCurrent is for the webhook, and durable: once the genesis of the shard has been sealed and
// released from the spool, nothing else there says which shard it is.
func (d Dir) WriteCurrent(c Current) error {
	path := filepath.Join(string(d), "current")
	temporary, err := writeTemporary(path, c.Origin+"\n"+c.Pseudonyms+"\n")
	if err != nil {
		return fmt.Errorf("write the current shard: %w", err)
	}
	if err := errors.Join(os.Rename(temporary, path), syncDir(string(d))); err != nil {
		return fmt.Errorf("write the current shard: %w", err)
	}
	return nil
}
