package nodes

import (
	"strings"
	"testing"
)

func TestCatalogue(t *testing.T) {
	c, err := NewCatalogue()
	if err != nil {
		t.Fatal(err)
	}
	for class, types := range map[Class]string{
		Burstable: `t2.micro t3.large T3.LARGE t3a.nano t4g.2xlarge t1.micro f1-micro g1-small e2-micro e2-small e2-medium e2-custom-small-4096
			Standard_B2ms standard_b2ats_v2 Standard_B4als_v2 VM.Standard.E2.1.Micro ecs.t6-c1m2.large ecs.s6-c1m1.small ecs.xn4.small t6.large.2
			s3.medium.1 cx22 cx53 cpx31 cax11 cx11 s-2vcpu-4gb s-4vcpu-8gb-amd g6-nanode-1 g6-standard-2 DEV1-M GP1-XS PLAY2-NANO PRO2-S STARDUST1-S
			t1.1 c1.c2r4 c2-burst.c1r1`,
		Dedicated: `ccx13 ccx63 g-2vcpu-8gb m-2vcpu-16gb g6-dedicated-4 voc-c-2c-4gb-50s-amd POP2-2C-8G ENT1-M c3.large.2 g2a.4d`,
		Unknown: `m5.large c7g.xlarge t4.large t3 e2-standard-4 e2-highcpu-2 n1-standard-1 c2-standard-8 Standard_D4s_v5  VM.Standard.E4.Flex.
			ecs.g7.large cx2.2x4 bx2.4x16 m6.large.8 xcx22 cx22x custom-4-8192 b2-7`,
	} {
		for name := range strings.FieldsSeq(types) {
			got, e := c.Class(name)
			if got != class || (e == nil) != (class == Unknown) {
				t.Errorf("%s: %s by %+v, want %s", name, got, e, class)
			}
		}
	}
	if got, e := c.Class(""); got != Unknown {
		t.Errorf("no type: %s by %+v", got, e)
	}
}

func TestCatalogueIsHeldToItsForm(t *testing.T) {
	const entry = "- {provider: A, class: Shared, types: [a*], source: 'https://example.com'}\n"
	for name, text := range map[string]string{
		"no list":       "a: b",
		"no source":     "- {provider: A, class: Shared, types: [a]}",
		"no types":      "- {provider: A, class: Shared, source: x}",
		"no provider":   "- {class: Shared, types: [a], source: x}",
		"other class":   "- {provider: A, class: Slow, types: [a], source: x}",
		"unknown field": "- {provider: A, class: Shared, types: [a], source: x, typ: [b]}",
		"everything":    "- {provider: A, class: Shared, types: ['*'], source: x}",
		"both classes":  entry + "- {provider: A, class: Dedicated, types: [A*], source: x}",
	} {
		if _, err := ParseCatalogue([]byte(text)); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	c, err := ParseCatalogue([]byte(entry + "- {provider: A, class: Dedicated, types: ['*z'], source: x}"))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]Class{"a": Burstable, "z": Dedicated, "az": Burstable, "b": Unknown} {
		if got, _ := c.Class(name); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}

func TestMatch(t *testing.T) {
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"a", "a", true}, {"a", "ab", false}, {"a", "ba", false}, {"", "", true}, {"a*", "a", true}, {"a*", "ab", true}, {"*a", "ba", true}, {"*a", "ab", false},
		{"a*b*c", "abc", true}, {"a*b*c", "axbxbc", true}, {"a*b*c", "ac", false}, {"a*b*c", "abcd", false}, {"a*a", "a", false}, {"a**b", "ab", true}, {"a*bb*b", "abbb", true}, {"a*bb*b", "abb", false},
	} {
		if got := match(c.pattern, c.name); got != c.want {
			t.Errorf("%q for %q: %t, want %t", c.pattern, c.name, got, c.want)
		}
	}
}
