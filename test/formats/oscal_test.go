package formats

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/xeipuuv/gojsonschema"
)

// oscalSchema is NIST's, by the hash of the release: testdata says where it is from.
func oscalSchema(t *testing.T) *gojsonschema.Schema {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", "oscal-1.1.3-assessment-results.json"))
	if err != nil {
		t.Fatal(err)
	}
	if sum := sha256.Sum256(text); hex.EncodeToString(sum[:]) != "d9e34757f0c12aff61f52b821f0b8f83ba0ba75b3a149a202b08ba82f82bc4c3" {
		t.Fatal("the schema of OSCAL is not the one that NIST has released")
	}
	// The schema names each definition by an $id that looks like the way to it. Read as identifiers, as the draft has
	// it, they would lead nowhere; as ways they are right without.
	var document map[string]any
	if err := json.Unmarshal(text, &document); err != nil {
		t.Fatal(err)
	}
	dropIDs(document["definitions"])
	s, err := gojsonschema.NewSchema(gojsonschema.NewGoLoader(document))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func dropIDs(v any) {
	switch v := v.(type) {
	case map[string]any:
		if id, is := v["$id"].(string); is && strings.HasPrefix(id, "#") {
			delete(v, "$id")
		}
		for _, e := range v {
			dropIDs(e)
		}
	case []any:
		for _, e := range v {
			dropIDs(e)
		}
	}
}

// TestOSCALIsValid by NIST's schema. The documents are those that the tests of the package that writes them hold it to.
func TestOSCALIsValid(t *testing.T) {
	s := oscalSchema(t)
	for _, name := range []string{"rich.oscal.json", "empty.oscal.json", "broken.oscal.json"} {
		document, err := os.ReadFile(filepath.Join("..", "..", "internal", "evidence", "report", "testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		r, err := s.Validate(gojsonschema.NewBytesLoader(document))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range r.Errors() {
			t.Errorf("%s: %s", name, e)
		}
		// That the schema is asked, down to the definitions that it refers to.
		for _, change := range [][2]string{{`"oscal-version"`, `"oscal-release"`}, {`"methods": [`, `"method": [`}, {`"state": "not-satisfied"`, `"state": "partially-satisfied"`}, {`"collected": "2026`, `"collected": "26`}} {
			broken := bytes.Replace(document, []byte(change[0]), []byte(change[1]), 1)
			if bytes.Equal(broken, document) {
				if name == "rich.oscal.json" {
					t.Errorf("%s has no %s", name, change[0])
				}
				continue
			}
			if r, err := s.Validate(gojsonschema.NewBytesLoader(broken)); err != nil || r.Valid() {
				t.Errorf("%s: the schema lets %s pass: %v", name, change[1], err)
			}
		}
	}
}
