package objects

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"

	"github.com/meshvakt/meshvakt/policies/facts"
)

// checkedKinds are those of which Checked gives the object.
func checkedKinds() []schema.GroupKind {
	return []schema.GroupKind{{Kind: "Pod"}, {Group: "apps", Kind: "Deployment"}, {Group: "batch", Kind: "CronJob"}, {Kind: "Namespace"}}
}

// fieldsOfPods are the fields that decide about anything, and those that say which
// object it is.
func fieldsOfPods(t testing.TB) map[string]bool {
	t.Helper()
	read := fieldsRead(t, "policies", "policies/facts", "internal/mesh", "internal/nodes")
	for _, must := range []string{"PodSpec.Containers", "Container.Image", "VolumeSource.HostPath", "EphemeralContainerCommon.Name", "ObjectMeta.Labels"} {
		if !read[must] {
			t.Errorf("policies are not known to read %s", must)
		}
	}
	for _, name := range []string{"Name", "Namespace", "UID", "Generation"} {
		read["ObjectMeta."+name] = true
	}
	// Kubernetes' own helpers, which are asked about affinity and tolerations.
	for _, name := range []string{"Toleration.Key", "Toleration.Operator", "Toleration.Value", "Toleration.Effect"} {
		read[name] = true
	}
	return read
}

// only leaves of a value those fields of types of the API that are in the set.
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
		if !ofPods(v.Type().PkgPath(), name) {
			return
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

// whole is the object as decoding it whole gives it, without what is not read.
func whole(read map[string]bool, kind schema.GroupKind, raw []byte) (any, error) {
	object, err := Decode(kind, raw)
	if err != nil {
		return nil, err
	}
	switch o := object.(type) {
	case *facts.Workload:
		only(read, reflect.ValueOf(&o.ObjectMeta))
		only(read, reflect.ValueOf(o.Template))
	default:
		only(read, reflect.ValueOf(object))
	}
	return object, nil
}

// fill sets all fields of a value of the types of pods.
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
	case reflect.Map:
		if v.Type() == reflect.TypeFor[map[string]string]() {
			v.Set(reflect.ValueOf(map[string]string{"a": "b", "\n": ""}))
		}
		if v.Type() == reflect.TypeFor[corev1.ResourceList]() {
			v.Set(reflect.ValueOf(corev1.ResourceList{"cpu": resource.MustParse("1500m"), "memory": resource.MustParse("0")}))
		}
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[metav1.Time]() {
			v.Set(reflect.ValueOf(metav1.Unix(1_700_000_000, 0)))
		}
		if ofPods(v.Type().PkgPath(), v.Type().Name()) {
			for i := range v.NumField() {
				fill(v.Field(i))
			}
		}
	default: // types of others, of which nothing is read
	}
}

// What policies read of a pod is decoded, and nothing else: a policy that names a
// field of pods for the first time fails here until Checked reads it.
func TestCheckedReadsWhatPoliciesRead(t *testing.T) {
	read := fieldsOfPods(t)
	var pod corev1.Pod
	fill(reflect.ValueOf(&pod).Elem())
	template := map[string]any{"metadata": pod.ObjectMeta, "spec": pod.Spec}
	for i, o := range []any{
		pod,
		map[string]any{"metadata": pod.ObjectMeta, "spec": map[string]any{"replicas": 1, "template": template}},
		map[string]any{"metadata": pod.ObjectMeta, "spec": map[string]any{"template": 1, "jobTemplate": map[string]any{"metadata": 1, "spec": map[string]any{"template": template}}}},
		map[string]any{"metadata": pod.ObjectMeta, "spec": map[string]any{"finalizers": []string{"kubernetes"}}},
	} {
		kind, raw := checkedKinds()[i], asJSON(t, o)
		if kind.Kind == "CronJob" {
			raw = []byte(strings.Replace(string(raw), `"template":1`, `"template":null`, 1))
		}
		want, err := whole(read, kind, raw)
		if err != nil {
			t.Fatal(err)
		}
		_, got, err := Checked(kind, raw)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: read\n%s\npolicies read\n%s", kind.Kind, asJSON(t, got), asJSON(t, want))
		}
	}
}

func asJSON(t testing.TB, v any) []byte {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestCheckedErrors(t *testing.T) {
	for _, spec := range []string{
		`[]`, `"x"`, `1`, `{"containers":{}}`, `{"containers":[1]}`, `{"containers":[{"name":1}]}`, `{"containers":[{"args":"x"}]}`,
		`{"containers":[{"image":{"a":[]}}]}`, `{"hostNetwork":"true"}`, `{"hostNetwork":1}`, `{"volumes":[{"emptyDir":[]}]}`,
		`{"containers":[{"ports":[{"containerPort":2147483648}]}]}`, `{"securityContext":{"runAsUser":1.5}}`,
		`{"securityContext":{"runAsUser":9223372036854775808}}`, `{"securityContext":{"runAsUser":"1337"}}`, `{"securityContext":{"runAsUser":1e3}}`,
		`{"containers":[{"resources":[]}]}`, `{"containers":[{"resources":{"limits":{"cpu":"lots"}}}]}`, `{"containers":[{"resources":{"limits":{"cpu":true}}}]}`,
		`{"resources":{"requests":{"cpu":{}}}}`, `{"resources":{"requests":{"cpu":""}}}`,
		// What no checked text is.
		``, ` `, `{`, `{"`, `{"containers"`, `{"containers":[`, `{"containers":[{"name":"\`, `{"x":[`, `{"hostNetwork"true}`,
	} {
		if _, o, err := Checked(schema.GroupKind{Kind: "Pod"}, []byte(`{"spec":`+spec)); err == nil || !strings.HasPrefix(err.Error(), "decode Pod: ") {
			t.Errorf("%s: %v, error %v", spec, o, err)
		}
	}
	for _, text := range []string{`{"kind":1}`, `{"metadata":[]}`, `{"metadata":{"labels":["a"]}}`, `{"metadata":{"labels":{"a":1}}}`, `{"metadata":{"deletionTimestamp":"now"}}`, `{"status":{"phase":1}}`} {
		if _, o, err := Checked(schema.GroupKind{Kind: "Pod"}, []byte(text)); err == nil {
			t.Errorf("%s: %v", text, o)
		}
	}
}

func TestCheckedOfOtherKinds(t *testing.T) {
	head, o, err := Checked(PeerAuthenticationKind().GroupKind(), []byte(`{"apiVersion":"v","kind":"k","metadata":{"name":"n","namespace":"ns"},"spec":{"mtls":[]}}`))
	if err != nil || o != nil || head.APIVersion != "v" || head.Kind != "k" || head.Name != "n" || head.Namespace != "ns" {
		t.Errorf("%+v, %v, %v", head, o, err)
	}
}

// corpus are the objects of the corpus of mesh-membership, in JSON, by kind.
func corpus(t testing.TB) map[string][][]byte {
	t.Helper()
	files, err := filepath.Glob("../../policies/testdata/mesh-membership/*/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	found := map[string][][]byte{}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for document := range strings.SplitSeq(string(text), "\n---\n") {
			var o struct {
				Kind string `json:"kind"`
			}
			raw, err := yaml.YAMLToJSON([]byte(document))
			if err == nil && json.Unmarshal(raw, &o) == nil {
				found[o.Kind] = append(found[o.Kind], raw)
			}
		}
	}
	if len(found["Pod"]) < 50 || len(found["Deployment"]) == 0 {
		t.Fatalf("%d pods in the corpus, %d Deployments", len(found["Pod"]), len(found["Deployment"]))
	}
	return found
}

// FuzzChecked: whatever is an object to a decoder that reads it whole, Checked reads
// the same of it, as far as it is read.
func FuzzChecked(f *testing.F) {
	objects := corpus(f)
	for i, kind := range checkedKinds() {
		for _, raw := range objects[kind.Kind] {
			f.Add(i, raw)
		}
		for _, seed := range []string{
			`null`, `{}`, ` { "metadata" : null , "spec" : { } } `, `{"metadata":{"labels":{},"annotations":null,"deletionTimestamp":"2026-01-02T03:04:05Z"},"spec":null,"status":null}`,
			`{"spec":{"template":null,"jobTemplate":{"spec":{"template":{}}}}}`,
		} {
			f.Add(i, []byte(seed))
		}
	}
	for _, spec := range []string{
		`{ "containers" : [ null , { } ] , "volumes" : [ ] }`, `{"containers":null,"hostPID":null,"securityContext":{"runAsUser":null}}`,
		`{"c\u006fntainers":[{"name":"\ud83d\ude00\/\n","image":"\"\\","args":["",null]}]}`, `{"securityContext":{"runAsUser":-0,"supplementalGroups":[1337,0]}}`,
		`{"containers":[{"resources":{"limits":{"cpu":2,"memory":"0.5Gi","x":1e3},"requests":null,"claims":[1]}}],"resources":{"limits":{}}}`,
		`{"containers":[{"resources":{"limits":{"cpu":null,"memory":" 1 "}}}],"resources":null,"priorityClassName":"high","activeDeadlineSeconds":60}`,
		`{"ephemeralContainers":[{"name":"d","targetContainerName":"istio-proxy","envFrom":[{},null]}],"Containers":[{"name":"x"}]}`,
	} {
		f.Add(0, []byte(`{"spec":`+spec+`}`))
		f.Add(1, []byte(`{"spec":{"template":{"spec":`+spec+`}}}`))
	}
	read := fieldsOfPods(f)
	f.Fuzz(func(t *testing.T, i int, raw []byte) {
		kind := checkedKinds()[uint(i)%uint(len(checkedKinds()))]
		_, got, err := Checked(kind, raw)
		want, wholeErr := whole(read, kind, raw)
		if wholeErr != nil {
			return // no panic, and no end of time
		}
		if err != nil {
			t.Fatalf("%v of %s", err, raw)
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("%s\nread\n%s\npolicies read\n%s", raw, asJSON(t, got), asJSON(t, want))
		}
	})
}
