package keeper

import (
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

func object(t *testing.T, manifest string) *unstructured.Unstructured {
	t.Helper()
	list, err := decode(manifest)
	if err != nil || len(list) != 1 {
		t.Fatalf("%d objects, %v", len(list), err)
	}
	return list[0]
}

const wantedPolicy = `
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: p, labels: {a: "1"}, annotations: {note: "1"}}
spec:
  failurePolicy: Fail
  matchConstraints:
    resourceRules:
      - {apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [nodes]}
  validations:
    - {expression: "true", message: m}
`

// What counts as a difference, and what does not. What is put right has none.
func TestDifferences(t *testing.T) {
	for name, c := range map[string]struct {
		edit func(map[string]any)
		want []string
	}{
		"nothing": {func(map[string]any) {}, nil},
		"what the API server fills in": {func(o map[string]any) {
			constraints := o["spec"].(map[string]any)["matchConstraints"].(map[string]any)
			constraints["matchPolicy"], constraints["namespaceSelector"], constraints["objectSelector"] = "Equivalent", map[string]any{}, map[string]any{}
			constraints["resourceRules"].([]any)[0].(map[string]any)["scope"] = "*"
		}, nil},
		"status, and metadata of others": {func(o map[string]any) {
			o["status"] = map[string]any{"observedGeneration": int64(1)}
			o["metadata"].(map[string]any)["labels"].(map[string]any)["b"] = "2"
			o["metadata"].(map[string]any)["uid"] = "x"
		}, nil},
		"a label": {func(o map[string]any) { o["metadata"].(map[string]any)["labels"].(map[string]any)["a"] = "2" }, []string{"metadata.labels[a]"}},
		"an annotation": {func(o map[string]any) { delete(o["metadata"].(map[string]any), "annotations") },
			[]string{"metadata.annotations[note]"}},
		"a value": {func(o map[string]any) { o["spec"].(map[string]any)["failurePolicy"] = "Ignore" }, []string{"spec.failurePolicy"}},
		"a condition is added": {func(o map[string]any) {
			o["spec"].(map[string]any)["matchConditions"] = []any{map[string]any{"name": "never", "expression": "false"}}
		}, []string{"spec.matchConditions"}},
		"a selector where none was": {func(o map[string]any) {
			o["spec"].(map[string]any)["matchConstraints"].(map[string]any)["objectSelector"] = map[string]any{"matchLabels": map[string]any{"x": "y"}}
		}, []string{"spec.matchConstraints.objectSelector"}},
		"another value than the one that is filled in": {func(o map[string]any) {
			o["spec"].(map[string]any)["matchConstraints"].(map[string]any)["matchPolicy"] = "Exact"
		}, []string{"spec.matchConstraints.matchPolicy"}},
		"an entry is added": {func(o map[string]any) {
			v := o["spec"].(map[string]any)["validations"].([]any)
			o["spec"].(map[string]any)["validations"] = append(v, map[string]any{"expression": "true"})
		}, []string{"spec.validations"}},
		"an entry is changed": {func(o map[string]any) {
			o["spec"].(map[string]any)["validations"].([]any)[0].(map[string]any)["expression"] = "false"
		}, []string{"spec.validations[].expression"}},
		"all of it is gone": {func(o map[string]any) { delete(o, "spec") }, []string{"spec"}},
	} {
		t.Run(name, func(t *testing.T) {
			want, live := object(t, wantedPolicy), object(t, wantedPolicy)
			c.edit(live.Object)
			if got := differences(want, live); !slices.Equal(got, c.want) {
				t.Errorf("got %q; want %q", got, c.want)
			}
			right := restored(want, live)
			if got := differences(want, right); len(got) > 0 {
				t.Errorf("put right, it still differs in %q", got)
			}
			if right.GetUID() != live.GetUID() || len(right.GetLabels()) < len(live.GetLabels()) {
				t.Error("put right, it has lost what others have written to its metadata")
			}
		})
	}
}

// The API server sends whole numbers where YAML may have had another form of them.
func TestNumbersAreNumbers(t *testing.T) {
	want := object(t, "{apiVersion: v1, kind: Service, metadata: {name: s}, spec: {ports: [{port: 443.0}], publishNotReadyAddresses: false}}")
	live := object(t, `{apiVersion: v1, kind: Service, metadata: {name: s}, spec: {ports: [{port: 443, nodePort: 30000}], clusterIP: 10.0.0.1, sessionAffinity: None}}`)
	if got := differences(want, live); len(got) > 0 {
		t.Errorf("differs in %q", got)
	}
	right := restored(want, live)
	if ip, _, err := unstructured.NestedString(right.Object, "spec", "clusterIP"); err != nil || ip != "10.0.0.1" {
		t.Errorf("clusterIP %q, %v; must stay, for it cannot be changed", ip, err)
	}
	live.Object["spec"].(map[string]any)["sessionAffinity"] = "ClientIP"
	if got := strings.Join(differences(want, live), ","); got != "spec.sessionAffinity" {
		t.Errorf("differs in %q", got)
	}
}
