package chart

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

const (
	root  = "../.."
	chart = "charts/meshvakt"
)

var update = flag.Bool("update", false, "rewrite generated and golden files")

// helmPath is the pinned helm; set by TestMain.
var helmPath string

func TestMain(m *testing.M) {
	flag.Parse()
	// "go tool" checks its whole build at every call; its executable does not.
	cmd := exec.Command("go", "tool", "-modfile=test/tools/helm/go.mod", "-n", "helm")
	cmd.Dir, cmd.Stderr = root, os.Stderr
	path, err := cmd.Output()
	if err != nil {
		fmt.Fprintln(os.Stderr, "build helm:", err)
		os.Exit(1)
	}
	helmPath = strings.TrimSpace(string(path))
	os.Exit(m.Run())
}

// helm runs helm in the root of the tree, without a cluster.
func helm(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	home := t.TempDir()
	cmd := exec.CommandContext(t.Context(), helmPath, args...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "KUBECONFIG="+os.DevNull,
		"HELM_CACHE_HOME="+home, "HELM_CONFIG_HOME="+home, "HELM_DATA_HOME="+home)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err = cmd.Run(); err != nil {
		err = fmt.Errorf("helm %s: %w: %s", strings.Join(args, " "), err, errOut.String())
	}
	return out.String(), errOut.String(), err
}

// render renders the chart as `helm install` would.
func render(t *testing.T, args ...string) string {
	t.Helper()
	out, _, err := helm(t, append([]string{"template", "meshvakt", chart, "--namespace", "meshvakt-system"}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// valueSets are the sets of values in testdata, by name.
func valueSets(t *testing.T) map[string]string {
	t.Helper()
	files, err := filepath.Glob("testdata/*.values.yaml")
	if err != nil {
		t.Fatal(err)
	}
	sets := map[string]string{}
	for _, f := range files {
		sets[strings.TrimSuffix(filepath.Base(f), ".values.yaml")] = "test/chart/" + filepath.ToSlash(f)
	}
	if len(sets) < 3 {
		t.Fatalf("only %d sets of values in testdata", len(sets))
	}
	return sets
}

// documents splits what helm printed.
func documents(t *testing.T, manifest string) []*unstructured.Unstructured {
	t.Helper()
	var list []*unstructured.Unstructured
	decoder := utilyaml.NewDocumentDecoder(io.NopCloser(strings.NewReader(manifest)))
	buffer := make([]byte, len(manifest)+1)
	for {
		n, err := decoder.Read(buffer)
		if err == io.EOF {
			return list
		}
		if err != nil {
			t.Fatal(err)
		}
		o := &unstructured.Unstructured{}
		if err := yaml.UnmarshalStrict(buffer[:n], &o.Object); err != nil {
			t.Fatalf("%v in\n%s", err, buffer[:n])
		}
		if len(o.Object) > 0 {
			list = append(list, o)
		}
	}
}

// golden compares with a file, or writes it.
func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s is not up to date; run go test ./test/chart -update and verify the diff\n%s", path, firstDifference(string(want), got))
	}
}

func firstDifference(want, got string) string {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := 0; i < len(w) || i < len(g); i++ {
		a, b := "(end)", "(end)"
		if i < len(w) {
			a = w[i]
		}
		if i < len(g) {
			b = g[i]
		}
		if a != b {
			return fmt.Sprintf("line %d\n  want %s\n  got  %s", i+1, a, b)
		}
	}
	return "no difference"
}
