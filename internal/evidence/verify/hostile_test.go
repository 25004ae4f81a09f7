package verify

import (
	"archive/zip"
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/tlog"
	"golang.org/x/sys/unix"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
)

// Bundles come from whoever hands them over.
func TestHostileBundles(t *testing.T) {
	b := quiet("meshvakt-0", 3)
	s := b.shards[0]
	entriesPath := torchwood.TilePath(tlog.Tile{H: torchwood.TileHeight, L: -1, W: len(s.lines)})
	for name, change := range map[string]func(fstest.MapFS){
		"a checkpoint that does not end": func(f fstest.MapFS) { f["checkpoint"] = &fstest.MapFile{Data: make([]byte, 8<<20)} },
		"entries that do not end":        func(f fstest.MapFS) { f[entriesPath] = &fstest.MapFile{Data: make([]byte, 64<<20)} },
		"an entry longer than the rest": func(f fstest.MapFS) {
			f[entriesPath] = &fstest.MapFile{Data: append([]byte{0xff, 0xff}, f[entriesPath].Data...)}
		},
		"a log of more records than there can be": func(f fstest.MapFS) {
			c := torchwood.Checkpoint{Origin: s.origin, Tree: tlog.Tree{N: 1 << 60}}
			f["checkpoint"] = &fstest.MapFile{Data: sign(c, s.key)}
		},
		"a log that is called after what excuses a log": func(f fstest.MapFS) {
			c := torchwood.Checkpoint{Origin: record.ErrUnknownVersion.Error(), Tree: tlog.Tree{N: int64(len(s.lines))}}
			f["checkpoint"] = &fstest.MapFile{Data: []byte(c.String() + "\n")}
		},
		"an empty log": func(f fstest.MapFS) {
			f["checkpoint"] = &fstest.MapFile{Data: sign(torchwood.Checkpoint{Origin: s.origin}, s.key)}
		},
		"a manifest that leads out": func(f fstest.MapFS) {
			f["manifest.json"].Data = bytes.Replace(f["manifest.json"].Data, []byte(`"checkpoint"`), []byte(`"../../etc/passwd"`), 1)
		},
		"a manifest that names a file twice": changedManifest(t, func(m map[string]any) {
			files := m["files"].([]any)
			m["files"] = append(files, files[0])
		}),
		"a manifest of another log": func(f fstest.MapFS) {
			f["manifest.json"].Data = bytes.Replace(f["manifest.json"].Data, []byte(`"size":`), []byte(`"size":9`), 1)
		},
		"a manifest that is none": func(f fstest.MapFS) { f["manifest.json"].Data = []byte("{") },
	} {
		files := withManifest(logFiles(s.origin, s.key, s.lines), s.origin, "meshvakt-0", s.name, s.lines)
		change(files)
		path := filepath.Join(t.TempDir(), "bundle.zip")
		deflated(t, path, files)
		sources, err := Open(path, nil)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if code := verifyAll(t, Options{}, sources...).ExitCode(); code != 3 {
			t.Errorf("%s: exit %d; must be 3", name, code)
		}
		if err := sources[0].Close(); err != nil {
			t.Error(err)
		}
	}
}

// What a bundle says of itself is told where it is not true, and moves no cursor: a line that says HOLDS could be put in the
// place of one that says PROBLEM.
func TestNamesInHostileBundlesMoveNoCursor(t *testing.T) {
	const escape = "\x1b[1A\rclaim HOLDS\u202e"
	if got := Tame(`the key is "é"` + "\nor " + escape); got != `the key is "é"; or \x1b[1A\rclaim HOLDS\u202e` {
		t.Errorf("it is told as %s", got)
	}
	b := quiet("meshvakt-0", 3)
	s := b.shards[0]
	for name, change := range map[string]func(fstest.MapFS){
		"origin of a checkpoint": func(f fstest.MapFS) {
			f["checkpoint"].Data = bytes.Replace(f["checkpoint"].Data, []byte(s.origin), []byte(escape), 1)
		},
		"origin of a manifest": changedManifest(t, func(m map[string]any) { m["origin"] = escape }),
		"file of a manifest": changedManifest(t, func(m map[string]any) {
			m["files"] = []any{map[string]any{"name": escape}}
		}),
	} {
		files := withManifest(logFiles(s.origin, s.key, s.lines), s.origin, "meshvakt-0", s.name, s.lines)
		change(files)
		r := verifyAll(t, Options{}, sourceOf("bundle", files))
		var text strings.Builder
		if err := r.WriteText(&text); err != nil {
			t.Fatal(err)
		}
		if r.ExitCode() != 3 || !strings.Contains(text.String(), "claim HOLDS") || strings.ContainsAny(text.String(), "\x1b\r\u202e") {
			t.Errorf("%s: exit %d, %q", name, r.ExitCode(), text.String())
		}
	}
}

// What has two files of one name is two logs, each of which may be signed: which of them is read is up to who reads.
func TestABundleThatIsTwoLogs(t *testing.T) {
	s := quiet("meshvakt-0", 3).shards[0]
	n := len(s.lines)
	for name, second := range map[string]fstest.MapFS{
		"two logs":                        logFiles(s.origin, s.key, s.lines[:n-1]),
		"a name that is another for some": {"./checkpoint": &fstest.MapFile{Data: logFiles(s.origin, s.key, s.lines[:n-1])["checkpoint"].Data}},
		"a name that leads out":           {"../checkpoint": &fstest.MapFile{}},
	} {
		path := filepath.Join(t.TempDir(), "bundle.zip")
		writeTwice(t, path, logFiles(s.origin, s.key, s.lines), second)
		sources := must(Open(path, nil))
		if r := verifyAll(t, Options{}, sources...); r.ExitCode() != 3 {
			t.Errorf("%s: exit %d; must be 3", name, r.ExitCode())
		}
		if err := sources[0].Close(); err != nil {
			t.Error(err)
		}
	}
}

// writeTwice puts the files of both into one bundle.
func writeTwice(t *testing.T, path string, first, second fstest.MapFS) {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, files := range []fstest.MapFS{first, second} {
		for _, name := range sortedNames(files) {
			if _, err := must(z.Create(name)).Write(files[name].Data); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := errors.Join(z.Close(), os.WriteFile(path, b.Bytes(), 0o600)); err != nil {
		t.Fatal(err)
	}
}

// changedManifest changes what a bundle says of itself.
func changedManifest(t *testing.T, change func(m map[string]any)) func(fstest.MapFS) {
	return func(f fstest.MapFS) {
		t.Helper()
		var m map[string]any
		if err := json.Unmarshal(f["manifest.json"].Data, &m); err != nil {
			t.Fatal(err)
		}
		change(m)
		f["manifest.json"].Data = must(json.Marshal(m))
	}
}

// A link in the directory of a log leads nowhere but into it.
func TestLinksOutOfALog(t *testing.T) {
	b := quiet("meshvakt-0", 3)
	s := b.shards[0]
	dir, outside := t.TempDir(), filepath.Join(t.TempDir(), "checkpoint")
	files := logFiles(s.origin, s.key, s.lines)
	for name, f := range files {
		path := filepath.Join(dir, filepath.FromSlash(name))
		if name == "checkpoint" {
			path = outside
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, f.Data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(outside, filepath.Join(dir, "checkpoint")); err != nil {
		t.Fatal(err)
	}
	sources, err := Open(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := sources[0].Close(); err != nil {
			t.Error(err)
		}
	}()
	if code := verifyAll(t, Options{}, sources...).ExitCode(); code != 3 {
		t.Errorf("exit %d; must be 3", code)
	}
}

// A directory may have been unpacked from what somebody else has packed.
func TestPipesInADirectory(t *testing.T) {
	s := quiet("meshvakt-0", 3).shards[0]
	dir := t.TempDir()
	for name, f := range logFiles(s.origin, s.key, s.lines) {
		path := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, f.Data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	entriesPath := filepath.Join(dir, filepath.FromSlash(torchwood.TilePath(tlog.Tile{H: torchwood.TileHeight, L: -1, W: len(s.lines)})))
	for _, path := range []string{entriesPath, filepath.Join(dir, "checkpoint")} {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mkfifo(path, 0o600); err != nil {
			t.Fatal(err)
		}
		sources := must(Open(dir, nil))
		if r := verifyAll(t, Options{}, sources...); r.ExitCode() != 3 || !strings.Contains(r.Problems[0].What, "must be a regular file") {
			t.Errorf("%s is a pipe: exit %d, %v", filepath.Base(path), r.ExitCode(), r.Problems)
		}
		if err := sources[0].Close(); err != nil {
			t.Error(err)
		}
	}
	bundle := filepath.Join(dir, "2026q4.zip")
	if err := unix.Mkfifo(bundle, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(bundle, nil); err == nil || !strings.Contains(err.Error(), "must be a regular file") {
		t.Errorf("a bundle that is a pipe: %v", err)
	}
}

// deflated packs zeros so that they take next to nothing.
func deflated(t *testing.T, path string, files fstest.MapFS) {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, name := range sortedNames(files) {
		if _, err := must(z.Create(name)).Write(files[name].Data); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
}
