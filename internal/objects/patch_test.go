package objects

import (
	"testing"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"

	"github.com/meshvakt/meshvakt/policies/facts"
)

type key struct {
	K string `json:"k"`
}

func TestPatch(t *testing.T) {
	annotation := func(key string) []string { return []string{"metadata", "annotations", key} }
	limit := []string{"spec", "containers", "1", "resources", "limits", "cpu"}
	memory := []string{"spec", "containers", "1", "resources", "limits", "memory"}
	for name, c := range map[string]struct {
		object  string
		changes []facts.Change
		patch   string // operations
		want    string // the object that comes of it
	}{
		"nothing": {`{"metadata":{}}`, nil, `null`, `{"metadata":{}}`},
		"no annotations": {
			`{"metadata":{"name":"web"}}`,
			[]facts.Change{{Path: annotation("a.io/b"), Value: "1"}, {Path: annotation("c~d"), Value: "2"}},
			`[{"op":"add","path":"/metadata/annotations","value":{"a.io/b":"1","c~d":"2"}}]`,
			`{"metadata":{"name":"web","annotations":{"a.io/b":"1","c~d":"2"}}}`,
		},
		"null annotations": {
			`{"metadata":{"annotations":null}}`, []facts.Change{{Path: annotation("a"), Value: "1"}},
			`[{"op":"add","path":"/metadata/annotations","value":{"a":"1"}}]`, `{"metadata":{"annotations":{"a":"1"}}}`,
		},
		"some annotations": {
			`{"metadata":{"annotations":{"a.io/b":"0","x":"y"}}}`,
			[]facts.Change{{Path: annotation("a.io/b"), Value: "1"}, {Path: annotation("c~d"), Value: "2"}},
			`[{"op":"replace","path":"/metadata/annotations/a.io~1b","value":"1"},{"op":"add","path":"/metadata/annotations/c~0d","value":"2"}]`,
			`{"metadata":{"annotations":{"a.io/b":"1","c~d":"2","x":"y"}}}`,
		},
		"no metadata": {
			`{}`, []facts.Change{{Path: annotation("a"), Value: "1"}},
			`[{"op":"add","path":"/metadata","value":{"annotations":{"a":"1"}}}]`, `{"metadata":{"annotations":{"a":"1"}}}`,
		},
		"what the types do not know stays": {
			`{"spec":{"newer":{"deep":[1,1.50]},"containers":[{},{"name":"p","resources":{"claims":[{"name":"g"}],"newer":1,"limits":{"newer":"3"}}}]}}`,
			[]facts.Change{{Path: limit, Value: "2"}, {Path: memory, Value: "1Gi"}},
			`[{"op":"add","path":"/spec/containers/1/resources/limits/cpu","value":"2"},{"op":"add","path":"/spec/containers/1/resources/limits/memory","value":"1Gi"}]`,
			`{"spec":{"newer":{"deep":[1,1.50]},"containers":[{},{"name":"p","resources":{"claims":[{"name":"g"}],"newer":1,"limits":{"newer":"3","cpu":"2","memory":"1Gi"}}}]}}`,
		},
		"no limits": {
			`{"spec":{"containers":[{},{"resources":{"requests":{"cpu":1}}}]}}`, []facts.Change{{Path: limit, Value: "2"}, {Path: memory, Value: "1Gi"}},
			`[{"op":"add","path":"/spec/containers/1/resources/limits","value":{"cpu":"2","memory":"1Gi"}}]`,
			`{"spec":{"containers":[{},{"resources":{"requests":{"cpu":1},"limits":{"cpu":"2","memory":"1Gi"}}}]}}`,
		},
		"a number is replaced": {
			`{"spec":{"containers":[{},{"resources":{"limits":{"cpu":0}}}]}}`, []facts.Change{{Path: limit, Value: "2"}},
			`[{"op":"replace","path":"/spec/containers/1/resources/limits/cpu","value":"2"}]`,
			`{"spec":{"containers":[{},{"resources":{"limits":{"cpu":"2"}}}]}}`,
		},
		"what is added to lists": {
			`{"spec":{"terms":[{"x":[{"k":"a"}]},{"x":null},{}]}}`,
			[]facts.Change{
				{Path: []string{"spec", "terms", "0", "x", "-"}, Value: key{"b"}},
				{Path: []string{"spec", "terms", "0", "x", "-"}, Value: key{"c"}},
				{Path: []string{"spec", "terms", "1", "x"}, Value: []key{{"b"}, {"c"}}},
				{Path: []string{"spec", "terms", "2", "x"}, Value: []key{{"b"}}},
			},
			`[{"op":"add","path":"/spec/terms/0/x/-","value":{"k":"b"}},{"op":"add","path":"/spec/terms/0/x/-","value":{"k":"c"}},` +
				`{"op":"add","path":"/spec/terms/1/x","value":[{"k":"b"},{"k":"c"}]},{"op":"add","path":"/spec/terms/2/x","value":[{"k":"b"}]}]`,
			`{"spec":{"terms":[{"x":[{"k":"a"},{"k":"b"},{"k":"c"}]},{"x":[{"k":"b"},{"k":"c"}]},{"x":[{"k":"b"}]}]}}`,
		},
		"a value below nothing": {
			`{"spec":{}}`, []facts.Change{{Path: []string{"spec", "affinity", "node", "required"}, Value: key{"b"}}},
			`[{"op":"add","path":"/spec/affinity","value":{"node":{"required":{"k":"b"}}}}]`,
			`{"spec":{"affinity":{"node":{"required":{"k":"b"}}}}}`,
		},
	} {
		operations, err := Patch([]byte(c.object), c.changes)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := string(asJSON(t, operations)); got != c.patch {
			t.Errorf("%s: patch %s, want %s", name, got, c.patch)
		}
		patch, err := jsonpatch.DecodePatch(asJSON(t, operations))
		if err != nil {
			t.Fatal(err)
		}
		got := []byte(c.object)
		if len(operations) > 0 {
			if got, err = patch.Apply(got); err != nil {
				t.Fatal(err)
			}
		}
		if !jsonpatch.Equal(got, []byte(c.want)) {
			t.Errorf("%s: comes to %s, want %s", name, got, c.want)
		}
	}
}

func TestPatchErrors(t *testing.T) {
	for name, c := range map[string]struct {
		object string
		path   []string
	}{
		"no JSON":         {`{`, []string{"a"}},
		"no such element": {`{"a":[1]}`, []string{"a", "1"}},
		"no number":       {`{"a":[1]}`, []string{"a", "x"}},
		"a word":          {`{"a":"x"}`, []string{"a", "b"}},
		"no path":         {`{}`, nil},
		"below an end":    {`{"a":[1]}`, []string{"a", "-", "b"}},
	} {
		if operations, err := Patch([]byte(c.object), []facts.Change{{Path: c.path, Value: "v"}}); err == nil {
			t.Errorf("%s: %s", name, asJSON(t, operations))
		}
	}
}
