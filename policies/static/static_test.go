package static

import (
	"strings"
	"testing"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	"sigs.k8s.io/yaml"
)

// What the API server demands of policies in files: names with its suffix, bindings of
// policies that are there, no parameters.
func TestManifest(t *testing.T) {
	manifest, err := Manifest(Names{Namespace: "guard", ServiceAccount: "account", BreakGlass: "glass"})
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(manifest, "@") || !strings.Contains(manifest, "'system:serviceaccount:guard:account'") || !strings.Contains(manifest, "'glass' in request.userInfo") {
		t.Errorf("names are not filled in:\n%s", manifest)
	}
	policies, bound := 0, map[string]bool{}
	for doc := range strings.SplitSeq(manifest, "\n---\n") {
		var binding admissionregistrationv1.ValidatingAdmissionPolicyBinding
		var policy admissionregistrationv1.ValidatingAdmissionPolicy
		if yaml.UnmarshalStrict([]byte(doc), &policy) == nil && policy.Kind == "ValidatingAdmissionPolicy" {
			policies++
			if !strings.HasSuffix(policy.Name, ".static.k8s.io") || policy.Spec.ParamKind != nil || *policy.Spec.FailurePolicy != admissionregistrationv1.Fail {
				t.Errorf("policy %s: %+v", policy.Name, policy.Spec)
			}
			continue
		}
		if err := yaml.UnmarshalStrict([]byte(doc), &binding); err != nil {
			t.Fatalf("%v in\n%s", err, doc)
		}
		bound[binding.Spec.PolicyName] = strings.HasSuffix(binding.Name, ".static.k8s.io")
	}
	if policies != 3 || len(bound) != policies {
		t.Errorf("%d policies, bound: %v", policies, bound)
	}
}

func TestManifestTakesNoCEL(t *testing.T) {
	for _, n := range []Names{{"", "a", "b"}, {"a", "x' || true || '", "b"}, {"a", "b", "c\n"}} {
		if m, err := Manifest(n); err == nil {
			t.Errorf("%+v gives\n%s", n, m)
		}
	}
}
