package policies

import (
	"encoding/json"
	"reflect"
	"testing"

	"sigs.k8s.io/yaml"
)

// What is taken for plain JSON says the same to a reader of YAML; all else goes to one.
func FuzzPlainJSON(f *testing.F) {
	for text, plain := range map[string]bool{
		"{}\n": true, `{"proxyMetadata":{"A":"b"},"concurrency":2,"tracing":{"sampling":1.5e1}}`: true, "{\n  \"a\" : [ null, true ]\n}": true,
		`{"<<":{"a":1}}`: true, `{"a":"$(POD_NAME) # - {x: y}","b":"yes","c":"0x10"}`: true, `{"a":0.10,"b":-0,"c":1E3}`: true,
		`{"a":"\u0041"}`: false, "{\"a\":\t1}": false, "{\"a\":\"\u0085\"}": false, `{a: b}`: false, "a: b": false, `{"a":1}}`: false, "": false,
	} {
		if got := plainJSON(text); got != plain {
			f.Errorf("%q: %t", text, got)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if !plainJSON(text) {
			return
		}
		raw, err := yaml.YAMLToJSON([]byte(text))
		if err != nil {
			return // Istio refuses it, whatever is found in it here
		}
		var want, got any
		if json.Unmarshal(raw, &want) != nil || json.Unmarshal([]byte(text), &got) != nil {
			return // a number that is too large
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%q is %v to one, and %v to the other", text, got, want)
		}
	})
}
