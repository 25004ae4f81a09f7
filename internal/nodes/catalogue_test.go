package nodes

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
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
			t1.1 c1.c2r4 c2-burst.c1r1 m7i-flex.large c8i-flex.16xlarge r8i-flex.xlarge
			VM.Standard.E5.Flex.2o.32g.1_2b VM.Standard.A1.Flex.1o.6g.1_8b VM.Standard3.Flex.16o.128g.1_2b`,
		Dedicated: `m5.large c7g.xlarge m7i.large m6g.medium r6i.12xlarge i4i.32xlarge x2iedn.metal-32xl ccx13 ccx63 g-2vcpu-8gb m-2vcpu-16gb g6-dedicated-4 voc-c-2c-4gb-50s-amd POP2-2C-8G ENT1-M c3.large.2 g2a.4d
			m5.metal c7i.metal-24xl BM.Standard.E4.128 VM.Standard.E5.Flex.2o.32g.1_1b`,
		Unknown: `m1.large m2.4xlarge c5.large.2 t4.large t3 e2-standard-4 e2-highcpu-2 n1-standard-1 c2-standard-8 Standard_D4s_v5  VM.Standard.E4.Flex.
			ecs.g7.large cx2.2x4 bx2.4x16 m6.large.8 xcx22 cx22x custom-4-8192 b2-7 m7i-flexible metal m5.metallic AX41
			VM.Standard.E5.Flex VM.Standard.E5.Flex.2o.32g VM.Standard.E5.Flex.2o.32g.1_4b`,
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

		"labels, no source of theirs": "- {provider: A, class: Shared, labels: {k: [a]}, source: x}",
		"source of no labels":         "- {provider: A, class: Shared, types: [a], source: x, labelSource: x}",
		"labels, no source":           "- {provider: A, class: Shared, labels: {k: [a]}, labelSource: x}",
		"label without values":        "- {provider: A, class: Shared, labels: {k: []}, source: x, labelSource: x}",
		"label without key":           "- {provider: A, class: Shared, labels: {'': [a]}, source: x, labelSource: x}",
		"every value":                 "- {provider: A, class: Shared, labels: {k: ['**']}, source: x, labelSource: x}",
		"label of both classes": "- {provider: A, class: Shared, labels: {k: [a]}, source: x, labelSource: x}\n" +
			"- {provider: A, class: Dedicated, labels: {k: [A]}, source: x, labelSource: x}",
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

// The same value of another label is another matter, and so is a type of that name.
func TestCatalogueTakesValuesOfDifferentLabels(t *testing.T) {
	const text = `
- {provider: A, class: Dedicated, types: [v], labels: {b: [v], z: ["w*"]}, source: s, labelSource: s}
- {provider: A, class: Shared, types: [x], labels: {a: [v], m: [w]}, source: s, labelSource: s}
- {provider: A, class: Dedicated, labels: {c: [v]}, source: s, labelSource: s}
`
	for _, x := range []struct {
		labels map[string]string
		want   Verdict
	}{
		{map[string]string{"a": "v"}, Verdict{Burstable, FromLabel, "label a=v"}},
		{map[string]string{"b": "V"}, Verdict{Dedicated, FromLabel, "label b=V"}},
		{map[string]string{"a": "v", "b": "v"}, Verdict{Burstable, FromLabel, "label a=v"}},
		{map[string]string{"z": "wide", "m": "w", "b": "v"}, Verdict{Burstable, FromLabel, "label m=w"}},
		{map[string]string{"b": "v", "c": "v"}, Verdict{Dedicated, FromLabel, "label b=v"}},
		{map[string]string{"m": "w", "a": "v"}, Verdict{Burstable, FromLabel, "label a=v"}},
		{map[string]string{"z": "wide", "b": "v"}, Verdict{Dedicated, FromLabel, "label b=v"}},
		{map[string]string{"m": "wide"}, Verdict{Unknown, FromNothing, "no instance type"}},
		{map[string]string{"A": "v"}, Verdict{Unknown, FromNothing, "no instance type"}},
		{map[string]string{corev1.LabelInstanceTypeStable: "v", "a": "v"}, Verdict{Dedicated, FromInstanceType, "instance type v"}},
		{map[string]string{corev1.LabelInstanceTypeStable: "x", "b": "v"}, Verdict{Burstable, FromInstanceType, "instance type x"}},
		{map[string]string{corev1.LabelInstanceTypeStable: "other", "b": "v"}, Verdict{Dedicated, FromLabel, "label b=v"}},
	} {
		for range 20 { // maps are walked in an order of their own
			c, err := ParseCatalogue([]byte(text))
			if err != nil {
				t.Fatal(err)
			}
			if got := c.classify(x.labels); got != x.want {
				t.Fatalf("%v: %+v, want %+v", x.labels, got, x.want)
			}
		}
	}
}

func TestCatalogueOfLabels(t *testing.T) {
	c := catalogue(t)
	for class, labels := range map[Class]string{
		Burstable: `karpenter.k8s.aws/instance-category=t karpenter.k8s.aws/instance-family=t3a karpenter.k8s.aws/instance-family=m7i-flex
			karpenter.k8s.aws/instance-capability-flex=true eks.amazonaws.com/instance-category=t eks.amazonaws.com/instance-family=c8i-flex
			karpenter.azure.com/sku-family=B karpenter.azure.com/sku-name=Standard_B2ats_v2`,
		Dedicated: `karpenter.k8s.aws/instance-size=metal karpenter.k8s.aws/instance-size=metal-48xl oci.oraclecloud.com/baremetal-shape=true
			instance.hetzner.cloud/provided-by=robot`,
		Unknown: `karpenter.k8s.aws/instance-category=trn karpenter.k8s.aws/instance-category=m karpenter.k8s.aws/instance-capability-flex=false
			karpenter.k8s.aws/instance-family=m7i karpenter.k8s.aws/instance-family=m7iflex karpenter.k8s.aws/instance-size=large eks.amazonaws.com/instance-capability-flex=true
			karpenter.azure.com/sku-family=D karpenter.azure.com/sku-family=NB cloud.google.com/machine-family=e2 karpenter.k8s.gcp/instance-shape=small
			instance.hetzner.cloud/provided-by=cloud oci.oraclecloud.com/flex-shape=true instance-category=t`,
	} {
		for label := range strings.FieldsSeq(labels) {
			key, value, _ := strings.Cut(label, "=")
			want := Verdict{class, FromLabel, "label " + label}
			for _, instanceType := range []string{"", "strange"} {
				all, why := map[string]string{key: value, corev1.LabelHostname: "n"}, "no instance type"
				if instanceType != "" {
					all[corev1.LabelInstanceTypeStable], why = instanceType, "instance type "+instanceType
				}
				if class == Unknown {
					want = Verdict{Unknown, FromNothing, why}
				}
				if got := c.classify(all); got != want {
					t.Errorf("type %q, %s: %+v, want %+v", instanceType, label, got, want)
				}
			}
		}
	}
}

// What a guard says counts before the labels of providers, and steal counts against them.
func TestGuardsBeforeLabelsOfProviders(t *testing.T) {
	c, one := catalogue(t), int32(1)
	robot := []string{"instance.hetzner.cloud/provided-by=robot", "node.kubernetes.io/instance-type=AX41", v1alpha1.AnnotationSteal + "=2"}
	for name, x := range map[string]struct {
		guard v1alpha1.NodePools
		want  Verdict
	}{
		"label of the provider": {v1alpha1.NodePools{}, Verdict{Dedicated, FromLabel, "label instance.hetzner.cloud/provided-by=robot"}},
		"type of the guard":     {types("ax*", "Burstable"), Verdict{Burstable, FromInstanceType, "instance type AX41"}},
		"steal":                 {v1alpha1.NodePools{MaxStealPercent: &one}, Verdict{Burstable, FromSteal, "CPU steal of 2 %, until it has fallen to 0 %"}},
	} {
		if got := Classify(&x.guard, newNode(t, c, "n", robot...)); got != x.want {
			t.Errorf("%s: %+v, want %+v", name, got, x.want)
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
		if got := newPattern(c.pattern).matches(c.name); got != c.want {
			t.Errorf("%q for %q: %t, want %t", c.pattern, c.name, got, c.want)
		}
	}
}
