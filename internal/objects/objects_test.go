package objects_test

import (
	"reflect"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/internal/objects"
	"github.com/meshvakt/meshvakt/policies/facts"
)

var policyKind = objects.PeerAuthenticationKind().GroupKind()

// policy is the JSON of a PeerAuthentication with the given spec.
func policy(spec string) []byte {
	return []byte(`{"apiVersion":"security.istio.io/v1","kind":"PeerAuthentication",
		"metadata":{"namespace":"prod","name":"default","creationTimestamp":"2026-01-01T00:00:01Z"},"spec":` + spec + `}`)
}

func TestDecodePolicy(t *testing.T) {
	created := time.Date(2026, 1, 1, 0, 0, 1, 0, time.UTC)
	for name, c := range map[string]struct {
		raw  string
		want mesh.PeerAuthentication
	}{
		"a mode is read": {
			`{"mtls":{"mode":"STRICT"}}`,
			mesh.PeerAuthentication{Mode: mesh.ModeStrict},
		},
		"an empty spec sets nothing": {`{}`, mesh.PeerAuthentication{}},
		"an mtls without a mode is UNSET": {
			`{"mtls":{}}`, mesh.PeerAuthentication{Mode: mesh.ModeUnset},
		},
		"a null mtls is UNSET": {`{"mtls":null}`, mesh.PeerAuthentication{Mode: mesh.ModeUnset}},
		"an empty selector is told from none": {
			`{"selector":{}}`, mesh.PeerAuthentication{SelectorSet: true},
		},
		"a selector and ports are read": {
			`{"selector":{"matchLabels":{"app":"web"}},"portLevelMtls":{"1":{"mode":"DISABLE"},"65535":{"mode":"PERMISSIVE"},"80":{}}}`,
			mesh.PeerAuthentication{
				SelectorSet: true, Selector: map[string]string{"app": "web"},
				Ports: map[uint32]mesh.Mode{1: mesh.ModeDisable, 65535: mesh.ModePermissive, 80: mesh.ModeUnset},
			},
		},
		"a port without settings is UNSET": {
			`{"portLevelMtls":{"80":null}}`, mesh.PeerAuthentication{Ports: map[uint32]mesh.Mode{80: mesh.ModeUnset}},
		},
		"a field of a newer schema is passed over": {
			`{"mtls":{"mode":"STRICT","cipherSuites":["x"]},"tomorrow":{"a":1}}`,
			mesh.PeerAuthentication{Mode: mesh.ModeStrict},
		},
	} {
		t.Run(name, func(t *testing.T) {
			c.want.Namespace, c.want.Name, c.want.Created = "prod", "default", created
			for how, decode := range map[string]func(schema.GroupKind, []byte) (any, error){"Decode": objects.Decode, "DecodeStored": objects.DecodeStored} {
				got, err := decode(policyKind, policy(c.raw))
				if err != nil {
					t.Fatalf("%s: %v", how, err)
				}
				p := got.(*mesh.PeerAuthentication)
				p.Created = p.Created.UTC()
				if !reflect.DeepEqual(*p, c.want) {
					t.Errorf("%s: got %+v; want %+v", how, *p, c.want)
				}
			}
		})
	}
}

func TestDecodePolicyMetadata(t *testing.T) {
	for name, c := range map[string]struct {
		metadata    string
		revision    string
		has, leaves bool
	}{
		"no revision":         {`{}`, "", false, false},
		"a revision":          {`{"labels":{"istio.io/rev":"canary"}}`, "canary", true, false},
		"an empty revision":   {`{"labels":{"istio.io/rev":""}}`, "", true, false},
		"it is being deleted": {`{"deletionTimestamp":"2026-01-01T00:00:59Z"}`, "", false, true},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := objects.Decode(policyKind, []byte(`{"metadata":`+c.metadata+`}`))
			if err != nil {
				t.Fatal(err)
			}
			p := got.(*mesh.PeerAuthentication)
			if p.Revision != c.revision || p.HasRevision != c.has || p.Terminating != c.leaves || !p.Created.IsZero() {
				t.Errorf("got %+v", *p)
			}
		})
	}
}

// What Istio's schema does not know is not let in; what is in already counts as
// the weakest, so that it can still be mended or deleted.
func TestDecodeUnknownValues(t *testing.T) {
	for name, c := range map[string]struct {
		spec   string
		errors []string
		stored mesh.PeerAuthentication
	}{
		"an unknown mode": {
			`{"mtls":{"mode":"MUTUAL"}}`, []string{"spec.mtls.mode", `"MUTUAL"`, "must be one of", "prod/default"},
			mesh.PeerAuthentication{Mode: mesh.ModeDisable},
		},
		"a mode in lower case": {
			`{"mtls":{"mode":"strict"}}`, []string{`"strict"`}, mesh.PeerAuthentication{Mode: mesh.ModeDisable},
		},
		"an unknown mode of a port": {
			`{"mtls":{"mode":"STRICT"},"portLevelMtls":{"80":{"mode":"X"}}}`, []string{"spec.portLevelMtls[80].mode", `"X"`},
			mesh.PeerAuthentication{Mode: mesh.ModeStrict, Ports: map[uint32]mesh.Mode{80: mesh.ModeDisable}},
		},
		"port 0":              {`{"portLevelMtls":{"0":{"mode":"STRICT"}}}`, []string{"spec.portLevelMtls", `"0"`, "1 to 65535"}, mesh.PeerAuthentication{Ports: map[uint32]mesh.Mode{}}},
		"a port too high":     {`{"portLevelMtls":{"65536":{"mode":"STRICT"}}}`, []string{`"65536"`}, mesh.PeerAuthentication{Ports: map[uint32]mesh.Mode{}}},
		"a negative port":     {`{"portLevelMtls":{"-1":{"mode":"STRICT"}}}`, []string{`"-1"`}, mesh.PeerAuthentication{Ports: map[uint32]mesh.Mode{}}},
		"a port with a name":  {`{"portLevelMtls":{"http":{"mode":"STRICT"}}}`, []string{`"http"`}, mesh.PeerAuthentication{Ports: map[uint32]mesh.Mode{}}},
		"a port with a sign":  {`{"portLevelMtls":{"+80":{"mode":"STRICT"}}}`, []string{`"+80"`}, mesh.PeerAuthentication{Ports: map[uint32]mesh.Mode{}}},
		"a port with nothing": {`{"portLevelMtls":{"":{"mode":"STRICT"}}}`, []string{`""`}, mesh.PeerAuthentication{Ports: map[uint32]mesh.Mode{}}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := objects.Decode(policyKind, policy(c.spec))
			if err == nil {
				t.Fatal("Decode lets it in")
			}
			for _, want := range c.errors {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the error lacks %q: %v", want, err)
				}
			}
			got, err := objects.DecodeStored(policyKind, policy(c.spec))
			if err != nil {
				t.Fatalf("DecodeStored: %v", err)
			}
			p := got.(*mesh.PeerAuthentication)
			if p.Mode != c.stored.Mode || !reflect.DeepEqual(p.Ports, c.stored.Ports) || p.Key() != "prod/default" {
				t.Errorf("DecodeStored: got %+v; want %+v", *p, c.stored)
			}
		})
	}
}

// Readers that take the first of two and readers that take the last would
// disagree, so neither is let in.
func TestDecodeRefusesDuplicates(t *testing.T) {
	namespace, pod := schema.GroupKind{Kind: "Namespace"}, schema.GroupKind{Kind: "Pod"}
	for name, c := range map[string]struct {
		kind schema.GroupKind
		raw  string
	}{
		"two modes":                 {policyKind, `{"spec":{"mtls":{"mode":"STRICT","mode":"DISABLE"}}}`},
		"two specs":                 {policyKind, `{"spec":{"mtls":{"mode":"STRICT"}},"spec":{}}`},
		"a port twice":              {policyKind, `{"spec":{"portLevelMtls":{"80":{"mode":"STRICT"},"80":{"mode":"DISABLE"}}}}`},
		"a label of a namespace":    {namespace, `{"metadata":{"labels":{"meshvakt.io/guarded":"true","meshvakt.io/guarded":"false"}}}`},
		"a label of a pod":          {pod, `{"metadata":{"labels":{"app":"web","app":"legacy"}}}`},
		"two metadata of a pod":     {pod, `{"metadata":{"labels":{"app":"web"}},"metadata":{}}`},
		"a field that we pass over": {policyKind, `{"tomorrow":{"a":1,"a":2}}`},
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := objects.Decode(c.kind, []byte(c.raw)); err == nil {
				t.Errorf("Decode reads %+v", got)
			}
			if got, err := objects.DecodeStored(c.kind, []byte(c.raw)); err == nil {
				t.Errorf("DecodeStored reads %+v", got)
			}
		})
	}
}

func TestDecodeKinds(t *testing.T) {
	for name, c := range map[string]struct {
		kind schema.GroupKind
		want any
	}{
		"a pod":                       {schema.GroupKind{Kind: "Pod"}, &corev1.Pod{}},
		"a namespace":                 {schema.GroupKind{Kind: "Namespace"}, &corev1.Namespace{}},
		"a policy":                    {policyKind, &mesh.PeerAuthentication{}},
		"a template":                  {schema.GroupKind{Group: "apps", Kind: "Deployment"}, &facts.Workload{}},
		"a kind nobody judges":        {schema.GroupKind{Group: "apps", Kind: "ControllerRevision"}, nil},
		"a kind of the wrong group":   {schema.GroupKind{Group: "example.com", Kind: "Pod"}, nil},
		"a policy of no group at all": {schema.GroupKind{Kind: "PeerAuthentication"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			if got := objects.Decodes(c.kind); got != (c.want != nil) {
				t.Errorf("Decodes is %t", got)
			}
			got, err := objects.Decode(c.kind, []byte(`{"metadata":{"name":"x"}}`))
			if c.want == nil {
				if err == nil || !strings.Contains(err.Error(), c.kind.String()) {
					t.Errorf("got %v, %v; want an error that names the kind", got, err)
				}
				return
			}
			if err != nil || reflect.TypeOf(got) != reflect.TypeOf(c.want) {
				t.Errorf("got %T, %v; want %T", got, err, c.want)
			}
			for _, broken := range []string{``, `[]`, `"x"`, `{"metadata":`, `{"metadata":{"labels":7}}`, `{} {}`} {
				if got, err := objects.Decode(c.kind, []byte(broken)); err == nil {
					t.Errorf("%q is read as %+v", broken, got)
				}
			}
		})
	}
}

// The list that an informer reads must survive one strange object in it.
func TestMeshOfAStrangeObjectIsComplete(t *testing.T) {
	p := objects.PeerAuthentication{Spec: objects.PeerAuthenticationSpec{
		MTLS:          &objects.MutualTLS{Mode: "NEWER"},
		PortLevelMTLS: map[string]*objects.MutualTLS{"80": {Mode: "STRICT"}, "x": {Mode: "STRICT"}, "81": {Mode: "NEWER"}},
	}}
	got, err := p.Mesh()
	if err == nil {
		t.Error("no error")
	}
	want := map[uint32]mesh.Mode{80: mesh.ModeStrict, 81: mesh.ModeDisable}
	if got == nil || got.Mode != mesh.ModeDisable || !reflect.DeepEqual(got.Ports, want) {
		t.Errorf("got %+v", got)
	}
}

func TestAddToScheme(t *testing.T) {
	s := runtime.NewScheme()
	if err := objects.AddToScheme(s); err != nil {
		t.Fatal(err)
	}
	o, err := s.New(objects.PeerAuthenticationKind())
	if _, is := o.(*objects.PeerAuthentication); err != nil || !is {
		t.Errorf("got %T, %v", o, err)
	}
}

func TestDeepCopySharesNothing(t *testing.T) {
	p := &objects.PeerAuthentication{Spec: objects.PeerAuthenticationSpec{
		Selector:      &objects.WorkloadSelector{MatchLabels: map[string]string{"app": "web"}},
		MTLS:          &objects.MutualTLS{Mode: "STRICT"},
		PortLevelMTLS: map[string]*objects.MutualTLS{"80": {Mode: "STRICT"}},
	}}
	c := p.DeepCopy()
	if !reflect.DeepEqual(p, c) {
		t.Fatalf("the copy is %+v", c)
	}
	c.Spec.Selector.MatchLabels["app"], c.Spec.MTLS.Mode, c.Spec.PortLevelMTLS["80"].Mode = "x", "x", "x"
	if p.Spec.Selector.MatchLabels["app"] != "web" || p.Spec.MTLS.Mode != "STRICT" || p.Spec.PortLevelMTLS["80"].Mode != "STRICT" {
		t.Errorf("the original changed with the copy: %+v", p.Spec)
	}
}
