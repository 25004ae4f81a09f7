package record

import (
	"bytes"
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func format(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../../../docs/evidence-format.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestExampleInTheDocumentIsRight(t *testing.T) {
	text := format(t)
	c, found := Begin(Hash{}), 0
	hash := regexp.MustCompile(`(?m)^([0-9a-f]{64})  -$`).FindStringSubmatch(text)
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, `{"v":`) {
			continue
		}
		line = strings.TrimSuffix(line, "\n")
		_, next, err := c.Follow([]byte(line))
		if err != nil {
			t.Fatalf("%v:\n%s", err, line)
		}
		if want := chained(examples())[found].Line; string(want) != line {
			t.Errorf("line %d is not that of testdata/records", found)
		}
		if found == 0 && (hash == nil || hash[1] != next.Last().String()) {
			t.Errorf("the hash of the example is %s; the document has %v", next.Last(), hash)
		}
		c, found = next, found+1
	}
	if found != 2 {
		t.Errorf("found %d lines", found)
	}
	p := testNames()
	for _, s := range []string{p.Subject("ola@example.org").ID, p.Group("platform"), exampleObject().Name, testKey().ID()} {
		if !strings.Contains(text, "| `"+s+"` |") {
			t.Errorf("%s is not in the document", s)
		}
	}
}

// The document has the fields of every kind and part, in the order in which they are written.
func TestDocumentHasAllFieldsInOrder(t *testing.T) {
	text := format(t)
	head := keys(t, []byte(`{"v":1,"kind":"","seq":0,"prev":"","salt":"","t":"","mono":0,"boot":""}`))
	if got := listed(text, "## The head"); !slices.Equal(got, head) {
		t.Errorf("the head has %q; want %q", got, head)
	}
	for _, l := range chained(examples()) {
		r, err := Parse(l.Line)
		if err != nil {
			t.Fatal(err)
		}
		all := keys(t, l.Line)
		kind := string(r.Body.Kind())
		if !slices.Equal(all[:len(head)], head) {
			t.Errorf("%s: begins with %q", kind, all)
		}
		if got := listed(text, "### "+kind); !slices.Equal(got, all[len(head):]) {
			t.Errorf("%s: the document has %q; want %q", kind, got, all[len(head):])
		}
	}
	row, object, counts := exampleRow("a"), exampleObject(), Counters{}
	subject := testNames().Subject("ola")
	for part, fields := range map[string]func(*codec){
		"Object": object.fields, "Subject": subject.fields, "Counters": counts.fields, "Row": row.fields,
	} {
		c := &codec{}
		c.braces(fields)
		if got, want := listed(text, "### "+part), keys(t, c.buf); !slices.Equal(got, want) {
			t.Errorf("%s: the document has %q; want %q", part, got, want)
		}
	}
	_, kinds, _ := strings.Cut(text, "\n## Kinds\n")
	if got, want := strings.Count(kinds, "\n### "), len(Kinds()); got != want {
		t.Errorf("the document has %d kinds; want %d", got, want)
	}
}

// keys are the names of the members of an object, in order.
func keys(t *testing.T, object []byte) []string {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(object))
	var names []string
	if _, err := d.Token(); err != nil {
		t.Fatal(err)
	}
	for d.More() {
		name, err := d.Token()
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, name.(string))
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			t.Fatal(err)
		}
	}
	return names
}

// listed are the names in the first column of the first table behind a heading.
func listed(text, heading string) []string {
	_, rest, _ := strings.Cut(text, "\n"+heading+"\n")
	rest, _, _ = strings.Cut(rest, "\n#")
	var names []string
	for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\|").FindAllStringSubmatch(rest, -1) {
		names = append(names, m[1])
	}
	return names
}
