package seal

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/meshvakt/meshvakt/internal/evidence/spool"
)

// state is the hash of all files but locks.
func state(t *testing.T, dir string) string {
	t.Helper()
	h := sha256.New()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasSuffix(path, ".lock") {
			return err
		}
		text, err := os.ReadFile(path)
		fmt.Fprintf(h, "%s %d\n%s\n", path, len(text), text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

func copyDir(t *testing.T, to, from string) {
	t.Helper()
	if err := os.RemoveAll(to); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	// CopyFS leaves no mode of ours; the spool wants none but the owner's.
	_ = filepath.WalkDir(to, func(path string, d fs.DirEntry, _ error) error {
		if !d.IsDir() {
			return os.Chmod(path, 0o600)
		}
		return nil
	})
}

// Where log and spool do not belong together, sealing ends with an error that says so, and
// nothing is touched.
func TestLogAndSpoolHaveParted(t *testing.T) {
	for name, c := range map[string]struct {
		part func(t *testing.T, b *book)
		want string
	}{
		"the spool is another replica's": {
			func(t *testing.T, b *book) {
				other := newBook(t, t.TempDir())
				other.replica = "meshvakt-1"
				other.begin(t, "2027q1")
				other.fill(t, 10)
				copyDir(t, b.dir.Spool(), other.dir.Spool())
			}, "the log of shard 2026q4 ends with record 599",
		},
		"the spool is older than the log": {
			func(t *testing.T, b *book) { copyDir(t, b.dir.Spool(), filepath.Join(string(b.dir), "backup")) },
			"the log of shard 2026q4 ends with record 599",
		},
		"the spool began the same shard anew": {
			func(t *testing.T, b *book) {
				other := newBook(t, t.TempDir())
				other.begin(t, "2026q4")
				copyDir(t, b.dir.Spool(), other.dir.Spool())
			}, "the log of shard 2026q4 ends with record 599",
		},
		"the log is gone": {
			func(t *testing.T, b *book) {
				if err := os.RemoveAll(b.dir.Log("2026q4")); err != nil {
					t.Fatal(err)
				}
			}, "there is no log that holds",
		},
		"the size of the tree is gone": {
			func(t *testing.T, b *book) {
				if err := os.RemoveAll(filepath.Join(b.dir.Log("2026q4"), ".state")); err != nil {
					t.Fatal(err)
				}
			}, "no .state/treeState",
		},
		"the checkpoint is gone": {
			func(t *testing.T, b *book) {
				if err := os.Remove(filepath.Join(b.dir.Log("2026q4"), "checkpoint")); err != nil {
					t.Fatal(err)
				}
			}, "records and no checkpoint",
		},
		"the key is gone": {
			func(t *testing.T, b *book) {
				if err := os.Remove(b.dir.LogKeyFile("2026q4")); err != nil {
					t.Fatal(err)
				}
			}, "has no key",
		},
		"a tile was changed": {
			func(t *testing.T, b *book) {
				name := filepath.Join(b.dir.Log("2026q4"), "tile/0/000")
				text, err := os.ReadFile(name)
				if err != nil {
					t.Fatal(err)
				}
				// A hash that the proof of the next tree needs: that of the last whole tile.
				for i := range text {
					text[i] ^= 1
				}
				name = filepath.Join(b.dir.Log("2026q4"), "tile/1/000.p/2")
				if err := os.WriteFile(name, text[:64], 0o644); err != nil {
					t.Fatal(err)
				}
				b.fill(t, 300)
			}, "does not extend the 600 records that were signed",
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBook(t, t.TempDir())
			b.begin(t, "2026q4")
			b.fill(t, 98)
			backup := filepath.Join(string(b.dir), "backup")
			copyDir(t, backup, b.dir.Spool())
			b.fill(t, 500)
			s := openSealer(t, b.config())
			mustPass(t, s)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if err := b.spool.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			grows := name == "a tile was changed"
			if grows {
				b.reopen(t)
			}
			c.part(t, b)
			signed, _ := os.ReadFile(filepath.Join(b.dir.Log("2026q4"), "checkpoint"))
			before := state(t, string(b.dir))
			s = openSealer(t, b.config())
			err := s.Pass(t.Context())
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("pass: %v; must tell %q", err, c.want)
			}
			if again, _ := os.ReadFile(filepath.Join(b.dir.Log("2026q4"), "checkpoint")); !bytes.Equal(signed, again) {
				t.Errorf("the checkpoint was %s and is %s", signed, again)
			}
			if !grows && state(t, string(b.dir)) != before {
				t.Error("files were changed")
			}
		})
	}
}

// A record that does not follow the one before it is not sealed; what stands before it is.
func TestABrokenChainIsNotSealed(t *testing.T) {
	for name, spoil := range map[string]func(line []byte) []byte{
		"a field changed": func(line []byte) []byte { return bytes.Replace(line, []byte(`"clock"`), []byte(`"clonk"`), 1) },
		"another number":  func(line []byte) []byte { return bytes.Replace(line, []byte(`"seq":`), []byte(`"seq":1`), 1) },
		"no record":       func([]byte) []byte { return []byte("{}") },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBook(t, t.TempDir())
			b.begin(t, "2026q4")
			b.fill(t, 20)
			b.fill(t, 1)
			line := b.lines["2026q4"][22]
			// The same line again, and spoilt, where another must stand.
			if _, _, err := b.spool.Append(t.Context(), func(uint64, [32]byte) ([]byte, error) { return spoil(line), nil }); err != nil {
				t.Fatal(err)
			}
			s := openSealer(t, b.config())
			var parted *PartedError
			if err := s.Pass(t.Context()); !errors.As(err, &parted) || !strings.Contains(err.Error(), "line 24 of the spool does not follow the records of shard 2026q4") {
				t.Fatalf("pass: %v", err)
			}
			b.mustBeSealed(t)
			if err := s.Run(context.Background()); !errors.As(err, &parted) {
				t.Errorf("run: %v; must end", err)
			}
		})
	}
}

// What a newer Meshvakt has written is sealed as it is.
func TestAKindOfANewerMeshvakt(t *testing.T) {
	b := newBook(t, t.TempDir())
	b.begin(t, "2026q4")
	b.fill(t, 1)
	_, _, err := b.spool.Append(t.Context(), func(uint64, [32]byte) ([]byte, error) {
		link, _, err := b.chain.Next(gapOf(), b.boot, testTime(), 1e9, zeros{})
		if err != nil {
			return nil, err
		}
		line := bytes.Replace(link.Line, []byte(`"kind":"gap"`), []byte(`"kind":"later"`), 1)
		_, next, _ := b.chain.Follow(line)
		b.chain = next
		b.lines["2026q4"] = append(b.lines["2026q4"], line)
		return line, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	b.fill(t, 3)
	mustPass(t, openSealer(t, b.config()))
	b.mustBeSealed(t)
}

// A spool that was damaged is moved away, and another begun with a shard of its own.
func TestASpoolThatBeginsAnew(t *testing.T) {
	b := newBook(t, t.TempDir())
	b.begin(t, "2026q4")
	b.fill(t, 20)
	s := openSealer(t, b.config())
	mustPass(t, s)
	if err := errors.Join(s.Close(), b.spool.Close(t.Context()), os.Rename(b.dir.Spool(), b.dir.Spool()+".damaged"), b.dir.Create()); err != nil {
		t.Fatal(err)
	}
	after := &book{dir: b.dir, replica: b.replica, boot: b.boot, lines: b.lines}
	after.reopen(t)
	after.begin(t, "2026q4-2")
	after.fill(t, 5)
	mustPass(t, openSealer(t, b.config()))
	after.shards = []string{"2026q4", "2026q4-2"}
	after.mustBeSealed(t)
	if sealed, err := b.dir.ReadSealed(); err != nil || sealed.Line != 7 {
		t.Errorf("sealed is %+v, %v; must be line 7 of the new spool", sealed, err)
	}
}

// Lines that were let go of and never sealed are a hole, and not passed over.
func TestAHole(t *testing.T) {
	b := newBook(t, t.TempDir())
	b.begin(t, "2026q4")
	b.fill(t, 10)
	s := openSealer(t, b.config())
	mustPass(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	b.fill(t, 600)
	r, err := spool.OpenReader(b.dir.Spool(), 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(r.Release(400), r.Close()); err != nil {
		t.Fatal(err)
	}
	var parted *PartedError
	if err := openSealer(t, b.config()).Pass(t.Context()); !errors.As(err, &parted) {
		t.Errorf("pass: %v; must tell that they have parted", err)
	}
}
