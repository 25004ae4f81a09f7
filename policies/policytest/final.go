package policytest

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"sigs.k8s.io/yaml"

	"github.com/meshvakt/meshvakt/internal/check"
)

// injectedDir holds the goldens, beside the directories of the policies.
const injectedDir = "injected"

// Final is final.yaml: what a pod is after injection, told by what is different
// from a golden.
type Final struct {
	// Base is the name of the golden.
	Base string
	// ByHand says that nobody records the file: what it holds is not what istiod
	// makes of object.yaml.
	ByHand bool
	// Patch is the strategic merge patch that makes the pod of the golden.
	Patch []byte
	// JSON is the pod.
	JSON []byte
}

// Injected reads the golden of a name below the directory of the corpus, as JSON.
func Injected(dir, name string) ([]byte, error) {
	path := filepath.Join(dir, injectedDir, name+".yaml")
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	raw, err := yaml.YAMLToJSONStrict(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return raw, nil
}

// parseFinal reads final.yaml of a case below the directory of the corpus.
func parseFinal(dir string, data []byte) (*Final, error) {
	f := &Final{}
	for line := range strings.Lines(string(data)) {
		comment, ok := strings.CutPrefix(strings.TrimSpace(line), "# ")
		if !ok {
			break
		}
		if base, ok := strings.CutPrefix(comment, "base: "); ok {
			f.Base = base
		}
		f.ByHand = f.ByHand || comment == "by hand"
	}
	if f.Base == "" {
		return nil, fmt.Errorf(`no comment "# base: NAME" at the beginning`)
	}
	golden, err := Injected(dir, f.Base)
	if err != nil {
		return nil, err
	}
	if f.Patch, err = yaml.YAMLToJSONStrict(data); err != nil {
		return nil, err
	}
	if string(f.Patch) == "null" { // just like the golden
		f.Patch = []byte("{}")
	}
	f.JSON, err = strategicpatch.StrategicMergePatch(golden, f.Patch, corev1.Pod{})
	return f, err
}

// Submits reports whether the pod is judged as submitted too: on CREATE, unless
// object.yaml has been injected already and so is nothing that an author submits.
func (c *Case) Submits(tb testing.TB) bool {
	tb.Helper()
	d := c.ObjectDocument(tb)
	if c.Want.Operation != admissionv1.Create || d.Kind.Group != "" || d.Kind.Kind != "Pod" {
		return false
	}
	var pod struct {
		Metadata struct {
			Annotations map[string]string `json:"annotations"`
		} `json:"metadata"`
	}
	if err := json.Unmarshal(d.JSON, &pod); err != nil {
		tb.Fatal(err)
	}
	_, injected := pod.Metadata.Annotations["sidecar.istio.io/status"]
	return !injected
}

// FinalDocument is the object under review as the validating webhook sees it.
func (c *Case) FinalDocument(tb testing.TB) check.Document {
	tb.Helper()
	if c.Final == nil {
		return c.ObjectDocument(tb)
	}
	docs := c.documents(tb, "final.yaml", c.Final.JSON)
	if len(docs) != 1 {
		tb.Fatalf("%s: %d objects; must be one", filepath.Join(c.Dir, "final.yaml"), len(docs))
	}
	return docs[0]
}

// WriteFinal rewrites final.yaml: how the pod differs from its golden.
func (c *Case) WriteFinal(tb testing.TB, base string, patch []byte) {
	tb.Helper()
	var body map[string]any
	if err := json.Unmarshal(patch, &body); err != nil {
		tb.Fatal(err)
	}
	var text []byte
	if len(body) > 0 {
		var err error
		if text, err = yaml.Marshal(body); err != nil {
			tb.Fatal(err)
		}
	}
	head := "# " + c.Intent() + "\n# base: " + base + "\n"
	if err := os.WriteFile(filepath.Join(c.Dir, "final.yaml"), append([]byte(head), text...), 0o644); err != nil {
		tb.Fatal(err)
	}
}
