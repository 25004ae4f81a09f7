package check

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"runtime"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"
)

// Document is one Kubernetes object of an input file. Lists have been taken
// apart.
type Document struct {
	Kind         schema.GroupVersionKind
	Namespace    string // as in the file, hence perhaps empty
	Name         string
	GenerateName string
	JSON         []byte

	// Stored says that a cluster holds the object already. Then it is what it is: what
	// Istio's schema does not know in it counts as the webhook counts it, and a guard or
	// an exception that cannot be read does nothing.
	Stored bool

	// Origin is where the object stands: "dir/file.yaml: document 2 (line 14)".
	Origin string

	text string // YAML that the object is in, for finding lines
	line int    // of the file, where text begins

	inList bool // the object is one of several in the text
}

// key identifies an object of the cluster, in whatever version it is written.
type key struct {
	kind            schema.GroupKind
	namespace, name string
}

func (k key) String() string {
	if k.namespace == "" {
		return fmt.Sprintf("%s %q", k.kind.Kind, k.name)
	}
	return fmt.Sprintf("%s %q", k.kind.Kind, k.namespace+"/"+k.name)
}

func (d *Document) errorf(format string, args ...any) error {
	return fmt.Errorf(d.Origin+": "+format, args...)
}

// Parse reads the objects of one file, which may hold several YAML documents, or
// JSON. The name is used in errors; all errors are reported together.
func Parse(name string, data []byte) ([]Document, error) {
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	parts := split(string(data))
	found, errs := make([][]Document, len(parts)), make([]error, len(parts))
	// Reading YAML is most of what checking costs.
	var group errgroup.Group
	group.SetLimit(runtime.GOMAXPROCS(0))
	for i, p := range parts {
		group.Go(func() error {
			found[i], errs[i] = parsePart(fmt.Sprintf("%s: document %d (line %d)", name, i+1, p.begins()), p)
			return nil
		})
	}
	_ = group.Wait() // the errors are told in the order of the documents
	return slices.Concat(found...), errors.Join(errs...)
}

func parsePart(origin string, p part) ([]Document, error) {
	// JSON need not be read as YAML, which takes many times as long.
	if text := bytes.TrimSpace([]byte(p.text)); bytes.HasPrefix(text, []byte("{")) && jsontext.Value(text).IsValid() {
		return expand(Document{JSON: text, Origin: origin, text: p.text, line: p.line})
	}
	raw, err := yaml.YAMLToJSONStrict([]byte(p.text))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", origin, syntaxError(p))
	}
	if string(raw) == "null" {
		return nil, nil
	}
	return expand(Document{JSON: raw, Origin: origin, text: p.text, line: p.line})
}

// syntaxError reads the text once more, at its place in the file, so that the
// parser's line numbers are those of the file.
func syntaxError(p part) error {
	_, err := yaml.YAMLToJSONStrict([]byte(strings.Repeat("\n", p.line-1) + p.text))
	if err == nil {
		return errors.New("not readable as YAML")
	}
	text := strings.TrimPrefix(err.Error(), "error converting YAML to JSON: ")
	text = strings.ReplaceAll(text, "yaml: unmarshal errors:\n", "yaml: ")
	return errors.New(strings.Join(strings.Fields(strings.ReplaceAll(text, "\n", "; ")), " "))
}

// header is what all objects and lists have.
type header struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Metadata   struct {
		Namespace    string `json:"namespace"`
		Name         string `json:"name"`
		GenerateName string `json:"generateName"`
	} `json:"metadata"`
	Items *[]json.RawMessage `json:"items"`
}

// expand fills in the identity of the document, or takes a list apart.
func expand(d Document) ([]Document, error) {
	var h header
	if err := json.Unmarshal(d.JSON, &h); err != nil {
		return nil, d.errorf("not a Kubernetes object: %w", err)
	}
	if h.APIVersion == "" || h.Kind == "" {
		return nil, d.errorf("not a Kubernetes object: apiVersion and kind must be set")
	}
	gv, err := schema.ParseGroupVersion(h.APIVersion)
	if err != nil {
		return nil, d.errorf("apiVersion: %w", err)
	}
	if item, ok := strings.CutSuffix(h.Kind, "List"); ok && h.Items != nil {
		return expandItems(d, h, item)
	}
	d.Kind = gv.WithKind(h.Kind)
	d.Namespace, d.Name, d.GenerateName = h.Metadata.Namespace, h.Metadata.Name, h.Metadata.GenerateName
	if d.Name == "" && d.GenerateName == "" {
		return nil, d.errorf("%s: metadata.name must be set", d.Kind.Kind)
	}
	return []Document{d}, nil
}

func expandItems(list Document, h header, kind string) ([]Document, error) {
	var docs []Document
	var errs []error
	for i, raw := range *h.Items {
		one := list
		one.inList = true
		one.Origin = fmt.Sprintf("%s: items[%d]", list.Origin, i)
		one.JSON = raw
		// A typed list may leave kind and version of its items out.
		if kind != "" {
			var err error
			if one.JSON, err = withType(raw, h.APIVersion, kind); err != nil {
				errs = append(errs, one.errorf("not a Kubernetes object: %w", err))
				continue
			}
		}
		found, err := expand(one)
		if err != nil {
			errs = append(errs, err)
		}
		docs = append(docs, found...)
	}
	return docs, errors.Join(errs...)
}

func withType(raw []byte, apiVersion, kind string) ([]byte, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(raw, &fields); err != nil {
		return nil, err
	}
	if fields["kind"] != nil || fields["apiVersion"] != nil {
		return raw, nil
	}
	if fields == nil {
		fields = map[string]json.RawMessage{}
	}
	for name, value := range map[string]string{"apiVersion": apiVersion, "kind": kind} {
		quoted, err := json.Marshal(value)
		if err != nil {
			return nil, err
		}
		fields[name] = quoted
	}
	return json.Marshal(fields)
}

// part is one YAML document of a file and the line it begins at.
type part struct {
	text string
	line int
}

// begins is the first line that says something.
func (p part) begins() int {
	at := p.line
	for line := range strings.Lines(p.text) {
		if t := strings.TrimSpace(line); t != "" && !strings.HasPrefix(t, "#") {
			return at
		}
		at++
	}
	return p.line
}

// split cuts a file at its document markers, which stand at the beginning of a
// line. Parts without a word are left out.
func split(text string) []part {
	var parts []part
	var b strings.Builder
	begin, at := 1, 0
	flush := func(next int) {
		p := part{b.String(), begin}
		for line := range strings.Lines(p.text) {
			if t := strings.TrimSpace(line); t != "" && !strings.HasPrefix(t, "#") {
				parts = append(parts, p)
				break
			}
		}
		b.Reset()
		begin = next
	}
	for line := range strings.Lines(text) {
		at++
		rest, marker := strings.CutPrefix(line, "---")
		if marker && (rest == "" || strings.ContainsAny(rest[:1], " \t\r\n")) {
			flush(at)
			// What follows on the same line belongs to the document.
			line = "   " + rest
		}
		b.WriteString(line)
	}
	flush(at)
	return parts
}

// lineOf finds the line of the file where a field of this name stands, 0 if it
// cannot tell.
func (d *Document) lineOf(field string) int {
	match := regexp.MustCompile(`^[\s{,-]*["']?` + regexp.QuoteMeta(field) + `["']?\s*:`)
	at, found := d.line, 0
	for line := range strings.Lines(d.text) {
		if match.MatchString(line) {
			if found != 0 {
				return 0
			}
			found = at
		}
		at++
	}
	return found
}

// dated reports whether the file says when the object was created.
func dated(d *Document) bool {
	var h struct {
		Metadata struct {
			CreationTimestamp string `json:"creationTimestamp"`
		} `json:"metadata"`
	}
	return json.Unmarshal(d.JSON, &h) == nil && h.Metadata.CreationTimestamp != ""
}
