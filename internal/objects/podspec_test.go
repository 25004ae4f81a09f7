package objects

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	jsonv2 "github.com/go-json-experiment/json"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// readByPolicies are the fields of pods that decide about anything.
func readByPolicies(t testing.TB) map[string]bool {
	t.Helper()
	return fieldsRead(t, "policies", "policies/facts", "internal/mesh")
}

// only leaves of a value the fields of types of k8s.io/api/core/v1 that are in the set.
func only(set map[string]bool, v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			only(set, v.Elem())
		}
	case reflect.Slice:
		for i := range v.Len() {
			only(set, v.Index(i))
		}
	case reflect.Struct:
		name := v.Type().Name()
		if name == "EphemeralContainerCommon" {
			name = "Container" // which policies turn it into
		}
		for i := range v.NumField() {
			if set[name+"."+v.Type().Field(i).Name] {
				only(set, v.Field(i))
			} else {
				v.Field(i).SetZero()
			}
		}
	default:
	}
}

// whole is the spec as decoding it whole gives it, without what is not read.
func whole(read map[string]bool, raw []byte) (*corev1.PodSpec, error) {
	var spec corev1.PodSpec
	if len(raw) > 0 {
		if err := jsonv2.Unmarshal(raw, &spec); err != nil {
			return nil, err
		}
	}
	only(read, reflect.ValueOf(&spec))
	return &spec, nil
}

// fill sets all fields of a value of k8s.io/api/core/v1.
func fill(v reflect.Value) {
	switch v.Kind() {
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int32, reflect.Int64:
		v.SetInt(7)
	case reflect.String:
		v.SetString("\u00e6 \"quoted\" " + v.Type().Name())
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem())
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		fill(v.Index(0))
		fill(v.Index(1))
	case reflect.Struct:
		if strings.HasSuffix(v.Type().PkgPath(), "core/v1") {
			for i := range v.NumField() {
				fill(v.Field(i))
			}
		}
	default: // types of others are read nowhere
	}
}

// What policies read of a pod is decoded, and nothing else: a policy that names a
// field of a pod's spec for the first time fails here until PodSpec reads it.
func TestPodSpecReadsWhatPoliciesRead(t *testing.T) {
	read := readByPolicies(t)
	for _, must := range []string{"PodSpec.Containers", "Container.Image", "VolumeSource.HostPath", "EphemeralContainerCommon.Name"} {
		if !read[must] {
			t.Errorf("policies are not known to read %s", must)
		}
	}
	var full corev1.PodSpec
	fill(reflect.ValueOf(&full).Elem())
	raw, err := json.Marshal(full)
	if err != nil {
		t.Fatal(err)
	}
	want, err := whole(read, raw)
	if err != nil {
		t.Fatal(err)
	}
	var got corev1.PodSpec
	if err := PodSpec(raw, &got); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(&got, want) {
		t.Errorf("read\n%s\npolicies read\n%s", asJSON(t, got), asJSON(t, want))
	}
}

func asJSON(t *testing.T, v any) []byte {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestPodSpecErrors(t *testing.T) {
	for _, raw := range []string{
		`[]`, `"x"`, `1`, `{"containers":{}}`, `{"containers":[1]}`, `{"containers":[{"name":1}]}`, `{"containers":[{"args":"x"}]}`,
		`{"containers":[{"image":{"a":[]}}]}`, `{"hostNetwork":"true"}`, `{"hostNetwork":1}`, `{"volumes":[{"emptyDir":[]}]}`,
		`{"containers":[{"ports":[{"containerPort":2147483648}]}]}`, `{"securityContext":{"runAsUser":1.5}}`,
		`{"securityContext":{"runAsUser":9223372036854775808}}`, `{"securityContext":{"runAsUser":"1337"}}`, `{"securityContext":{"runAsUser":1e3}}`,
		// What no checked text is.
		`{`, `{"`, `{"containers"`, `{"containers":[`, `{"containers":[{"name":"\`, `{"x":[`, `{"hostNetwork"true}`, ` `,
	} {
		if err := PodSpec([]byte(raw), new(corev1.PodSpec)); err == nil || !strings.HasPrefix(err.Error(), "decode spec of Pod: ") {
			t.Errorf("%s: error %v", raw, err)
		}
	}
}

// corpusPods are the pods of the corpus of mesh-membership, in JSON.
func corpusPods(t testing.TB) [][]byte {
	t.Helper()
	files, err := filepath.Glob("../../policies/testdata/mesh-membership/*/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var pods [][]byte
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for document := range strings.SplitSeq(string(text), "\n---\n") {
			var o struct {
				Kind string          `json:"kind"`
				Spec json.RawMessage `json:"spec"`
			}
			if err := yaml.Unmarshal([]byte(document), &o); err == nil && o.Kind == "Pod" {
				pods = append(pods, o.Spec)
			}
		}
	}
	if len(pods) < 50 {
		t.Fatalf("%d pods in the corpus", len(pods))
	}
	return pods
}

// FuzzPodSpec: whatever is a pod's spec to a decoder that reads it whole, PodSpec
// reads the same of it, as far as it is read.
func FuzzPodSpec(f *testing.F) {
	for _, raw := range corpusPods(f) {
		f.Add(raw)
	}
	for _, seed := range []string{
		``, `null`, `{}`, ` { "containers" : [ null , { } ] , "volumes" : [ ] } `, `{"containers":null,"hostPID":null,"securityContext":{"runAsUser":null}}`,
		`{"c\u006fntainers":[{"name":"\ud83d\ude00\/\n","image":"\"\\","args":["",null]}]}`, `{"securityContext":{"runAsUser":-0,"supplementalGroups":[1337,0]}}`,
		`{"ephemeralContainers":[{"name":"d","targetContainerName":"istio-proxy","envFrom":[{},null]}],"Containers":[{"name":"x"}]}`,
	} {
		f.Add([]byte(seed))
	}
	read := readByPolicies(f)
	f.Fuzz(func(t *testing.T, raw []byte) {
		var got corev1.PodSpec
		err := PodSpec(raw, &got)
		want, wholeErr := whole(read, raw)
		if wholeErr != nil {
			return // no panic, and no end of time
		}
		if err != nil {
			t.Fatalf("%v of %s", err, raw)
		}
		if !reflect.DeepEqual(&got, want) {
			t.Fatalf("%s\nread\n%s\npolicies read\n%s", raw, asJSON(t, got), asJSON(t, want))
		}
	})
}
