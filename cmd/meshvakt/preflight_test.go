package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What is wrong with the command line is told before any cluster is asked.
func TestPreflightUsage(t *testing.T) {
	write := func(text string) string {
		t.Helper()
		file := filepath.Join(t.TempDir(), "guard.yaml")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	const nowhere = `{"apiVersion":"v1","kind":"Config","current-context":"a","contexts":[{"name":"a","context":{"cluster":"a"}}],"clusters":[{"name":"a","cluster":{"server":"http://127.0.0.1:1"}}]}`
	const guard = "apiVersion: meshvakt.io/v1alpha1\nkind: MeshGuard\nmetadata: {name: a}\nspec: {namespaceSelector: {}, "
	for name, tc := range map[string]struct {
		args []string
		want string
	}{
		"output":              {[]string{"-o", "yaml"}, "must be table or json"},
		"misspelt field":      {[]string{"--guard", write(guard + "strictMtls: {}}\n")}, "strictMtls"},
		"no guard in file":    {[]string{"--guard", write("apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n")}, "no MeshGuard in it"},
		"no such kubeconfig":  {[]string{"--kubeconfig", "no-such-file", "--guard", write(guard + "strictMTLS: {}}\n")}, "no-such-file"},
		"no API server":       {[]string{"--kubeconfig", write(nowhere)}, "version"},
		"unexpected argument": {[]string{"cluster"}, "cluster"},
	} {
		t.Run(name, func(t *testing.T) {
			stdout, stderr, status := run("", append([]string{"preflight"}, tc.args...)...)
			if status != 2 || stdout != "" || !strings.Contains(stderr, tc.want) {
				t.Errorf("status %d\n%s%s", status, stdout, stderr)
			}
		})
	}
}

func TestColours(t *testing.T) {
	for _, tc := range []struct {
		terminal bool
		noColor  string
		want     bool
	}{{true, "", true}, {true, "1", false}, {false, "", false}} {
		t.Setenv("NO_COLOR", tc.noColor)
		if got := coloured(tc.terminal); got != tc.want {
			t.Errorf("terminal %t, NO_COLOR=%q: %t", tc.terminal, tc.noColor, got)
		}
	}
}

func TestPreflightPrintsItsRole(t *testing.T) {
	stdout, stderr, status := run("", "preflight", "--print-rbac", "--kubeconfig", "no-such-file")
	if status != 0 || stderr != "" || !strings.Contains(stdout, "name: meshvakt-preflight") {
		t.Errorf("status %d\n%s%s", status, stdout, stderr)
	}
}
