package verify

import (
	"bytes"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The second verifier is another program, by another hand's formulas: what the one refuses, so must the other.
func TestTheVerifierInPythonComesToTheSame(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("no python3 on this machine: the second verifier is not run")
	}
	run := func(args ...string) (string, int) {
		out, err := exec.Command(python, append([]string{"../../../test/verifier/verify.py"}, args...)...).CombinedOutput()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		code := 0
		if exit != nil {
			code = exit.ExitCode()
		}
		return string(out), code
	}
	dir := t.TempDir()
	books := pair()
	s := books[0].shards[0]
	whole := filepath.Join(dir, "whole.zip")
	writeZip(t, whole, withManifest(logFiles(s.origin, s.key, s.lines), s.origin, "meshvakt-0", s.name, s.lines))
	sources, err := Open(whole, nil)
	if err != nil {
		t.Fatal(err)
	}
	r := verifyAll(t, Options{}, sources...)
	want := fmt.Sprintf("%s %d %s\n", s.origin, r.Logs[0].Size, r.Logs[0].Root)
	if err := sources[0].Close(); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{whole}, {whole, s.key.public}} {
		if out, code := run(args...); code != 0 || out != want || r.ExitCode() != 0 {
			t.Errorf("a whole bundle: %q, exit %d; must be %q; Go says %v", out, code, want, r.Problems)
		}
	}
	if out, code := run(whole, books[1].shards[0].key.public); code != 3 {
		t.Errorf("by the key of another log: %q, exit %d; must be 3", out, code)
	}
	i := len(s.lines) / 2
	for name, lines := range changed(s.lines, i, books[1].shards[0].lines) {
		for _, resigned := range []bool{false, true} {
			if resigned && name == "cut off" {
				continue // an older state of the log
			}
			files := logFiles(s.origin, s.key, lines)
			if !resigned {
				files["checkpoint"] = logFiles(s.origin, s.key, s.lines)["checkpoint"]
			}
			path := filepath.Join(dir, strings.ReplaceAll(name, " ", "-")+".zip")
			writeZip(t, path, files)
			if out, code := run(path); code != 3 {
				t.Errorf("%s record %d, signed again: %v: %q, exit %d; must be 3", name, i, resigned, out, code)
			}
		}
	}
	files := logFiles(s.origin, s.key, s.lines)
	twice := filepath.Join(dir, "twice.zip")
	writeTwice(t, twice, files, logFiles(s.origin, s.key, s.lines[:i]))
	if out, code := run(twice); code != 3 {
		t.Errorf("two logs in one bundle: %q, exit %d; must be 3", out, code)
	}
	signed := bytes.Clone(files["checkpoint"].Data)
	signed[len(signed)-10] ^= 1
	files["checkpoint"].Data = signed
	path := filepath.Join(dir, "forged.zip")
	writeZip(t, path, files)
	if out, code := run(path); code != 3 {
		t.Errorf("a forged signature: %q, exit %d; must be 3", out, code)
	}
}
