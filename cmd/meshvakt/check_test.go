package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meshvakt/meshvakt/internal/check"
	"github.com/meshvakt/meshvakt/policies"
	"github.com/meshvakt/meshvakt/policies/policytest"
)

var update = flag.Bool("update", false, "rewrite the transcripts in testdata")

// run is the binary without the process around it.
func run(stdin string, args ...string) (stdout, stderr string, status int) {
	var out, errs bytes.Buffer
	root := newRoot()
	root.SetArgs(args)
	root.SetIn(strings.NewReader(stdin))
	root.SetOut(&out)
	root.SetErr(&errs)
	if err := root.Execute(); err != nil {
		status = report(root, err)
	}
	return out.String(), errs.String(), status
}

// TestTranscripts replays the command lines of testdata/check/*.txt and compares
// what they print. A transcript is a comment, commands with what they print (lines
// of standard error begin with "! "), and the files they read.
func TestTranscripts(t *testing.T) {
	paths, err := filepath.Glob("testdata/check/*.txt")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no transcripts: %v", err)
	}
	for _, path := range paths {
		path, err := filepath.Abs(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txt"), func(t *testing.T) {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			script, files := parseTranscript(string(data))
			dir := t.TempDir()
			for name, text := range files.text {
				file := filepath.Join(dir, name)
				if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			t.Chdir(dir)
			got := replay(script, files.text) + files.raw
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
					t.Fatal(err)
				}
				fmt.Println(path, "rewritten; verify the diff")
				return
			}
			if got != string(data) {
				t.Errorf("transcript differs; go test ./cmd/meshvakt -update rewrites it\n got:\n%s\nwant:\n%s", got, data)
			}
		})
	}
}

// transcriptFiles are the files of a transcript, also as they stand in it.
type transcriptFiles struct {
	raw  string
	text map[string]string
}

func parseTranscript(data string) (script string, files transcriptFiles) {
	files.text = map[string]string{}
	name := ""
	for line := range strings.Lines(data) {
		if in, ok := strings.CutPrefix(strings.TrimSpace(line), "-- "); ok && strings.HasSuffix(in, " --") {
			name = strings.TrimSuffix(in, " --")
			files.raw += line
			files.text[name] = ""
			continue
		}
		if name == "" {
			script += line
			continue
		}
		files.raw += line
		files.text[name] += line
	}
	return script, files
}

// replay runs the commands of a script and returns it with what they print now.
func replay(script string, files map[string]string) string {
	var b strings.Builder
	for line := range strings.Lines(script) {
		line = strings.TrimRight(line, "\n")
		command, isCommand := strings.CutPrefix(line, "$ meshvakt ")
		switch {
		case strings.HasPrefix(line, "#"):
			b.WriteString(line + "\n")
			continue
		case !isCommand:
			continue
		}
		command, input, _ := strings.Cut(command, " < ")
		stdout, stderr, status := run(files[input], strings.Fields(command)...)
		fmt.Fprintf(&b, "\n%s\n%s", line, stdout)
		for e := range strings.Lines(stderr) {
			b.WriteString("! " + e)
		}
		fmt.Fprintf(&b, "exit %d\n", status)
	}
	return b.String() + "\n"
}

// TestCorpus reads the cases of the policies as a user would check them, final
// and as submitted, and demands the same decision that the policies' own test
// demands.
func TestCorpus(t *testing.T) {
	for _, c := range policytest.Load(t, "../../policies/testdata") {
		t.Run(c.Policy+"/"+c.Name, func(t *testing.T) {
			operation := []string{"--operation", string(c.Want.Operation)}
			compareAnswer(t, c.Want.Answer, append(corpusArgs(t, &c, true), operation...))
			if c.Submits(t) {
				compareAnswer(t, c.Want.AsSubmitted(), append(corpusArgs(t, &c, false), operation...))
			}
		})
	}
}

// corpusArgs is the command line for a case.
func corpusArgs(t *testing.T, c *policytest.Case, final bool) []string {
	t.Helper()
	object := filepath.Join(c.Dir, "object.yaml")
	args := []string{"check", "-o", "json", "--cluster", filepath.Join(c.Dir, "cluster.yaml")}
	if final {
		args = append(args, "--final")
		if c.Final != nil {
			object = filepath.Join(t.TempDir(), "final.json")
			if err := os.WriteFile(object, c.Final.JSON, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	args = append(args, "--object", object)
	if c.Old != nil {
		args = append(args, "--old", filepath.Join(c.Dir, "old.yaml"))
	}
	if c.Want.MayUnguard {
		args = append(args, "--may-unguard")
	}
	if c.Want.MayApprove {
		args = append(args, "--may-approve")
	}
	if c.Want.User != "" {
		args = append(args, "--user", c.Want.User)
	}
	args = append(args, "--at", policytest.Now().Format(time.RFC3339))
	return args
}

// compareAnswer runs the command and demands the answer.
func compareAnswer(t *testing.T, want policytest.Answer, args []string) {
	t.Helper()
	stdout, stderr, status := run("", args...)
	var got check.Result
	if err := json.Unmarshal([]byte(stdout), &got); err != nil {
		t.Fatalf("%v; exit %d, stderr: %s", err, status, stderr)
	}
	if denied := want.Decision == policies.Deny; denied != (status == 1) || status > 1 {
		t.Errorf("exit %d for %s", status, want.Decision)
	}
	if want.Decision == policytest.NotApplicable {
		if got.Summary.Warned+got.Summary.Denied != 0 {
			t.Errorf("nobody judges this, yet: %+v", got.Summary)
		}
		return
	}
	if len(got.Results) != 1 || got.Results[0].Decision != want.Decision {
		t.Fatalf("%s: got %+v; want %s", args, got.Results, want.Decision)
	}
	var findings []policytest.WantFinding
	for _, f := range got.Results[0].Findings {
		findings = append(findings, policytest.WantFinding{
			Policy: f.Policy, Reason: f.Reason, Action: f.Action, Field: f.Field, Message: f.Message, Remedy: f.Remedy, Exception: f.Exception,
		})
	}
	if !reflect.DeepEqual(findings, want.Findings) {
		t.Errorf("%s: findings differ\n got: %+v\nwant: %+v", args, findings, want.Findings)
	}
}

// TestCorpusDerivesOperation leaves the operation out where it can be derived.
func TestCorpusDerivesOperation(t *testing.T) {
	for _, c := range policytest.Load(t, "../../policies/testdata") {
		if c.Want.Operation == "DELETE" || c.Want.Decision == policytest.NotApplicable {
			continue
		}
		stdout, _, _ := run("", corpusArgs(t, &c, true)...)
		if want := fmt.Sprintf("%q: %q", "decision", c.Want.Decision); !strings.Contains(stdout, want) {
			t.Errorf("%s: no %s in %s", c.Name, want, stdout)
		}
	}
}

// TestRootListsSubcommands keeps the subcommands known.
func TestRootListsSubcommands(t *testing.T) {
	var names []string
	for _, c := range newRoot().Commands() {
		names = append(names, c.Name())
	}
	for _, want := range []string{"check", "version"} {
		if !slices.Contains(names, want) {
			t.Errorf("no subcommand %s in %v", want, names)
		}
	}
	if stdout, _, status := run("", "version"); status != 0 || !strings.HasPrefix(stdout, "meshvakt ") {
		t.Errorf("version: exit %d, %q", status, stdout)
	}
}
