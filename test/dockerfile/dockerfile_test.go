package dockerfile

import (
	"bytes"
	"debug/elf"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

const root = "../.."

// instruction is one of a Dockerfile, with its lines joined.
type instruction struct{ name, args string }

// stage is what stands between two FROM.
type stage struct {
	from, name   string
	instructions []instruction
}

// parse reads the subset of the Dockerfile format that ours is written in.
func parse(t *testing.T) (global []instruction, stages []stage) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	joined := ""
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "#") || joined == "" && line == "" {
			continue
		}
		if continued, is := strings.CutSuffix(line, `\`); is {
			joined += continued
			continue
		}
		name, args, _ := strings.Cut(joined+line, " ")
		joined = ""
		i := instruction{name, strings.Join(strings.Fields(args), " ")}
		switch {
		case i.name == "FROM":
			words := slices.DeleteFunc(strings.Fields(i.args), func(w string) bool { return strings.HasPrefix(w, "--") })
			s := stage{from: words[0]}
			if len(words) == 3 {
				s.name = words[2]
			}
			stages = append(stages, s)
		case len(stages) == 0:
			global = append(global, i)
		default:
			last := &stages[len(stages)-1]
			last.instructions = append(last.instructions, i)
		}
	}
	if len(stages) != 2 || stages[0].name != "build" {
		t.Fatalf("%d stages; must be build and the image", len(stages))
	}
	return global, stages
}

func (s *stage) all(name string) []string {
	var list []string
	for _, i := range s.instructions {
		if i.name == name {
			list = append(list, i.args)
		}
	}
	return list
}

// copyTree copies what the build context holds: all that git does not ignore.
func copyTree(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("git", "-C", root, "ls-files", "-z", "--cached", "--others", "--exclude-standard").Output()
	if err != nil {
		t.Skipf("not a git checkout: %v", err)
	}
	dir := t.TempDir()
	for _, name := range strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00") {
		from := filepath.Join(root, name)
		info, err := os.Lstat(from)
		if err != nil || !info.Mode().IsRegular() {
			continue // deleted in the work tree
		}
		text, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, text, info.Mode()); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestBuildStage(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("builds a binary for Linux and runs it")
	}
	_, stages := parse(t)
	tree, out := copyTree(t), t.TempDir()
	for _, run := range stages[0].all("RUN") {
		cmd := exec.CommandContext(t.Context(), "sh", "-euc", strings.ReplaceAll(run, "/out/", out+"/"))
		cmd.Dir = tree
		cmd.Env = append(os.Environ(), "TARGETOS=linux", "TARGETARCH="+runtime.GOARCH)
		var output bytes.Buffer
		cmd.Stdout, cmd.Stderr = &output, &output
		if err := cmd.Run(); err != nil {
			t.Fatalf("RUN %s: %v\n%s", run, err, output.String())
		}
	}
	binary := filepath.Join(out, "meshvakt")
	f, err := elf.Open(binary)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
			t.Errorf("the binary has a segment %s: it is not static and would not start from scratch", p.Type)
		}
	}
	if text, err := os.ReadFile(binary); err != nil || bytes.Contains(text, []byte(tree)) {
		t.Errorf("the binary names the directory it was built in (%v)", err)
	}
	// As in the image: no files, no environment.
	cmd := exec.CommandContext(t.Context(), binary, "version")
	cmd.Env = []string{}
	if got, err := cmd.CombinedOutput(); err != nil || !strings.HasPrefix(string(got), "meshvakt ") {
		t.Errorf("meshvakt version: %v: %s", err, got)
	}
}

func TestFinalStage(t *testing.T) {
	_, stages := parse(t)
	image := stages[1]
	if image.from != "scratch" {
		t.Errorf("FROM %s; must be scratch", image.from)
	}
	allowed := []string{"ARG", "LABEL", "COPY", "USER", "EXPOSE", "ENTRYPOINT"}
	for _, i := range image.instructions {
		if !slices.Contains(allowed, i.name) {
			t.Errorf("%s %s; the image takes only %v", i.name, i.args, allowed)
		}
	}
	if copies := image.all("COPY"); !slices.Equal(copies, []string{"--from=build /out/meshvakt /meshvakt"}) {
		t.Errorf("COPY %q; must be the binary alone", copies)
	}
	var entry []string
	if e := image.all("ENTRYPOINT"); len(e) != 1 || json.Unmarshal([]byte(e[0]), &entry) != nil || !slices.Equal(entry, []string{"/meshvakt"}) {
		t.Errorf("ENTRYPOINT %q; without a shell it must be the list [\"/meshvakt\"]", e)
	}
	user := image.all("USER")
	if len(user) != 1 || !regexp.MustCompile(`^[1-9][0-9]*:[1-9][0-9]*$`).MatchString(user[0]) {
		t.Fatalf("USER %q; must be a number above 0, for kubelets cannot tell whether a name is root", user)
	}
	var values struct {
		PodSecurityContext struct{ RunAsUser, RunAsGroup json.Number }
	}
	text, err := os.ReadFile(filepath.Join(root, "charts/meshvakt/values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(text, &values); err != nil {
		t.Fatal(err)
	}
	if c := values.PodSecurityContext; user[0] != c.RunAsUser.String()+":"+c.RunAsGroup.String() {
		t.Errorf("USER %s; the chart runs the image as %s:%s", user[0], c.RunAsUser, c.RunAsGroup)
	}
}

// The image of the build stage is of the Go version that go.mod asks for.
func TestGoVersion(t *testing.T) {
	global, stages := parse(t)
	if stages[0].from != "golang:${GO_VERSION}" {
		t.Errorf("FROM %s; must be golang:${GO_VERSION}", stages[0].from)
	}
	mod, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	wanted := regexp.MustCompile(`(?m)^go (\d+\.\d+)`).FindSubmatch(mod)
	if wanted == nil || !slices.Contains(global, instruction{"ARG", "GO_VERSION=" + string(wanted[1])}) {
		t.Errorf("%v; go.mod asks for %s", global, wanted)
	}
}

// What is tracked must be in the build context, or the Go tool takes the tree for
// a modified one.
func TestContextHoldsTheTree(t *testing.T) {
	read := func(name string) []string {
		text, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		var lines []string
		for line := range strings.Lines(string(text)) {
			if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
				lines = append(lines, strings.Trim(strings.TrimPrefix(line, "**/"), "/"))
			}
		}
		return lines
	}
	ignored := read(".gitignore")
	for _, pattern := range read(".dockerignore") {
		if !slices.Contains(ignored, pattern) {
			t.Errorf(".dockerignore: %s is not in .gitignore", pattern)
		}
	}
}
