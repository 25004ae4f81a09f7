package main

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
)

// evidenceCommand runs a command of evidence.
func evidenceCommand(args ...string) (stdout, stderr string, code int) {
	var out, errs bytes.Buffer
	root := newRoot()
	root.SetOut(&out)
	root.SetErr(&errs)
	root.SetArgs(append([]string{"evidence"}, args...))
	err := root.Execute()
	var exit exitCode
	switch {
	case errors.As(err, &exit):
		code = int(exit)
	case err != nil:
		code = -1
	}
	return out.String(), errs.String(), code
}

// The hour takes plaintext from minute 20 to minute 30.
func TestEvidenceVerifyTellsByItsStatus(t *testing.T) {
	dir, key := hour(t)
	bare := []string{"verify", dir}
	const claim = "--claim mtls=STRICT,namespace=payments --from 2026-10-01T00:"
	for flags, want := range map[string]struct {
		code int
		says string
	}{
		"":               {0, "its key is known from the log itself"},
		"--key " + key:   {0, "VIOLATED 10m0s"},
		"-o json":        {0, `"grade": "VIOLATED"`},
		"-o xml":         {4, ""},
		"--from 2026-10": {4, ""},
		"--key x":        {4, ""},
		"--key " + key + " " + claim + "31:00Z --to 2026-10-01T00:55:00Z":                         {0, "HOLDS"},
		"--trust-log-key " + claim + "31:00Z --to 2026-10-01T00:55:00Z":                           {0, "HOLDS"},
		claim + "31:00Z --to 2026-10-01T00:55:00Z":                                                {2, "give its key with --policy or --key"},
		"--key " + key + " " + claim + "05:00Z --to 2026-10-01T00:25:00Z":                         {1, "a port takes PERMISSIVE"},
		"--key " + key + " " + claim + "31:00Z --to 2026-10-01T02:00:00Z":                         {2, "no log tells of this time"},
		"--key " + key + " " + claim + "31:00Z --to 2026-10-01T00:00:00Z":                         {4, ""},
		"--key " + key + " --claim mtls=PERMISSIVE,namespace=x --from 2026-10-01 --to 2026-10-02": {4, ""},
	} {
		out, stderr, code := evidenceCommand(append(bare, strings.Fields(flags)...)...)
		if code != want.code || !strings.Contains(out, want.says) {
			t.Errorf("%s: exit %d, must be %d and say %q\n%s%s", flags, code, want.code, want.says, out, stderr)
		}
	}
	if _, _, code := evidenceCommand("verify"); code != 4 {
		t.Errorf("without evidence: exit %d; must be 4", code)
	}
	entries := filepath.Join(dir, "tile", "entries", "000.p")
	files, err := os.ReadDir(entries)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(entries, files[0].Name())
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text[len(text)/2] ^= 1
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, _, code := evidenceCommand(bare...); code != 3 || !strings.Contains(out, "PROBLEM "+hourOrigin) {
		t.Errorf("after a bit was changed: exit %d; must be 3\n%s", code, out)
	}
}

func TestEvidenceProveAndInspect(t *testing.T) {
	dir, key := hour(t)
	line := filepath.Join(t.TempDir(), "record")
	proof, stderr, code := evidenceCommand("prove", dir, "--key", key, "--record", hourOrigin+"#7", "--record-file", line)
	if code != 0 {
		t.Fatalf("prove: exit %d, %s", code, stderr)
	}
	file := filepath.Join(t.TempDir(), "proof")
	if err := os.WriteFile(file, []byte(proof), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, stderr, code := evidenceCommand("verify", "--proof", file, "--record-file", line, "--key", key); code != 0 || !strings.Contains(out, hourOrigin+"#7 is in the log") {
		t.Errorf("verify the proof: exit %d, %s%s", code, out, stderr)
	}
	all, _, code := evidenceCommand("inspect", dir, "-o", "json")
	lines := strings.SplitAfter(all, "\n")
	if code != 0 || len(lines) != 3+61+2+1 {
		t.Fatalf("inspect: exit %d, %d lines", code, len(lines))
	}
	if err := os.WriteFile(line, []byte(lines[8]), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, code := evidenceCommand("verify", "--proof", file, "--record-file", line, "--key", key); code != 3 {
		t.Errorf("the proof with another record: exit %d; must be 3", code)
	}
	if out, _, code := evidenceCommand("inspect", dir, "--kind", "state", "-n", "payments", "--from", "2026-10-01T00:25:00Z"); code != 0 || strings.Count(out, "\n") != 1 || !strings.Contains(out, "state what=set") {
		t.Errorf("inspect states: exit %d\n%s", code, out)
	}
	checkpoint := filepath.Join(dir, "checkpoint")
	text, err := os.ReadFile(checkpoint)
	if err == nil {
		err = os.WriteFile(checkpoint, bytes.Replace(text, []byte(hourOrigin), []byte("\x1b[2Jlog"), 1), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, stderr, code := evidenceCommand("inspect", dir); code != 3 || !strings.Contains(stderr, `\x1b[2Jlog`) || strings.Contains(stderr, "\x1b") {
		t.Errorf("inspect a log of another name: exit %d, %q", code, stderr)
	}
}

func TestEvidenceSubject(t *testing.T) {
	dir, _ := hour(t)
	random := rand.NewChaCha8([32]byte{7}) // as the hour
	if _, _, err := note.GenerateKey(random, hourOrigin); err != nil {
		t.Fatal(err)
	}
	key, err := record.NewKey(random)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "2026q4")
	if err := os.WriteFile(file, key[:], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, stderr, code := evidenceCommand("subject", dir, "--name", "ola", "--key-file", file); code != 0 || !strings.Contains(stderr, "0 records") {
		t.Errorf("nobody did anything: exit %d, %s", code, stderr)
	}
	key[0] ^= 1
	if err := os.WriteFile(file, key[:], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, stderr, code := evidenceCommand("subject", dir, "--name", "ola", "--key-file", file); code != 2 || !strings.Contains(stderr, "which is not given") {
		t.Errorf("by another key: exit %d, %s", code, stderr)
	}
	for _, args := range [][]string{{"--name", "ola"}, {"--key-file", file}, {"--name", "ola", "--key-file", file, "--from-cluster", "--reason", "r"}, {"--name", "ola", "--from-cluster"}, {"--name", "ola", "--key-file", file, "--reason", "r"}} {
		if stdout, stderr, code := evidenceCommand(append([]string{"subject", dir}, args...)...); code != 4 || stdout != "" || !strings.Contains(stderr, "--") {
			t.Errorf("%q: %d, %q, %q; must be refused", args, code, stdout, stderr)
		}
	}
}

// What does not come to reading a log must not end with a status that says something of it.
func TestEvidenceCommandsThatAreWrong(t *testing.T) {
	dir, _ := hour(t)
	for args, says := range map[string]string{
		"verfy " + dir:                            `unknown command "verfy" for "meshvakt evidence"`,
		"verfy --claim x":                         "unknown flag: --claim",
		"verify " + dir + " --clam x":             "unknown flag: --clam",
		"verify " + dir + " --max-clock-error x":  `invalid argument "x" for "--max-clock-error"`,
		"report " + dir + " --form 2026-10-01":    "unknown flag: --form",
		"inspect " + dir + " --kinds x":           "unknown flag: --kinds",
		"prove " + dir + " --records x":           "unknown flag: --records",
		"subject " + dir + " --user x --reason y": "unknown flag: --user",
	} {
		if out, stderr, code := evidenceCommand(strings.Fields(args)...); code != int(exitUsage) || !strings.Contains(stderr, says) || out != "" {
			t.Errorf("%s: exit %d, must be %d and say %q\n%s%s", args, code, exitUsage, says, out, stderr)
		}
	}
	if out, _, code := evidenceCommand(); code != 0 || !strings.Contains(out, "verify") {
		t.Errorf("without arguments: exit %d, must list the commands\n%s", code, out)
	}
}
