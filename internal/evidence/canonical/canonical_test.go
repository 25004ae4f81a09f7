package canonical_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"testing"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/check"
	"github.com/meshvakt/meshvakt/internal/cluster"
	"github.com/meshvakt/meshvakt/internal/evidence/canonical"
	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/internal/objects"
	"github.com/meshvakt/meshvakt/policies/facts"
	"github.com/meshvakt/meshvakt/policies/policytest"
)

func canonicalOf(t *testing.T, object any) string {
	t.Helper()
	text, err := canonical.Of(object)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// asked is the object as the webhook reads it from a request.
func asked(t *testing.T, kind schema.GroupKind, raw []byte) any {
	t.Helper()
	_, o, err := objects.Checked(kind, raw)
	if err == nil && o == nil {
		o, err = objects.DecodeStored(kind, raw)
	}
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// watched is the object as it comes out of the caches: decoded as they do, with all that the API server writes of
// itself, and cut down to what they keep. It is nil for kinds that no cache holds.
func watched(t *testing.T, kind schema.GroupKind, raw []byte) client.Object {
	t.Helper()
	var o client.Object
	switch kind.Kind {
	case "Namespace":
		m := &metav1.PartialObjectMetadata{}
		m.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Namespace"))
		o = m
	case "ConfigMap":
		o = &corev1.ConfigMap{}
	case "Node":
		o = &corev1.Node{}
	case "PeerAuthentication":
		o = &objects.PeerAuthentication{}
	case "MeshGuard":
		o = &v1alpha1.MeshGuard{}
	case "GuardException":
		o = &v1alpha1.GuardException{}
	default:
		return nil
	}
	if err := json.Unmarshal(raw, o); err != nil {
		t.Fatal(err)
	}
	if m, ok := o.(*metav1.PartialObjectMetadata); ok {
		m.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Namespace"))
	}
	o.SetUID("0000-1111")
	o.SetResourceVersion("4711")
	o.SetGeneration(3)
	o.SetCreationTimestamp(metav1.NewTime(time.Unix(1e9, 0)))
	o.SetManagedFields([]metav1.ManagedFieldsEntry{{Manager: "kubectl"}})
	annotations := maps.Clone(o.GetAnnotations())
	if annotations == nil {
		annotations = map[string]string{}
	}
	annotations["kubectl.kubernetes.io/last-applied-configuration"] = "{}"
	o.SetAnnotations(annotations)
	for of, options := range cluster.CacheOptions("istio-system") {
		if reflect.TypeOf(of) == reflect.TypeOf(o) {
			out, err := options.Transform(o)
			if err != nil {
				t.Fatal(err)
			}
			return out.(client.Object)
		}
	}
	t.Fatalf("no cache holds a %T", o)
	return nil
}

// TestSameInRequestAndCache takes every object there is in the corpus.
func TestSameInRequestAndCache(t *testing.T) {
	compared, written := map[string]int{}, map[string]int{}
	for _, c := range policytest.Load(t, "../../../policies/testdata") {
		documents := append(c.ClusterDocuments(t), c.ObjectDocument(t))
		if old, ok := c.OldDocument(t); ok {
			documents = append(documents, old)
		}
		for _, d := range documents {
			kind := d.Kind.GroupKind()
			if !objects.Decodes(kind) {
				continue
			}
			text := canonicalOf(t, asked(t, kind, d.JSON))
			if again := canonicalOf(t, asked(t, kind, d.JSON)); again != text {
				t.Errorf("%s: the same object gives\n%s\nand\n%s", d.Origin, text, again)
			}
			written[kind.Kind]++
			if cached := watched(t, kind, d.JSON); cached != nil {
				compared[kind.Kind]++
				if got := canonicalOf(t, cached); got != text {
					t.Errorf("%s: in a request\n%s\nin a cache\n%s", d.Origin, text, got)
				}
			}
		}
	}
	for _, kind := range []string{"Namespace", "ConfigMap", "Node", "PeerAuthentication", "MeshGuard", "GuardException"} {
		if compared[kind] < 2 {
			t.Errorf("%d objects of kind %s were compared; must be more", compared[kind], kind)
		}
	}
	for _, kind := range []string{"Pod", "Deployment", "DestinationRule", "EnvoyFilter", "ServiceEntry", "Binding", "PersistentVolume"} {
		if written[kind] == 0 {
			t.Errorf("there is no %s in the corpus", kind)
		}
	}
}

// TestInjectorConfigMap: the webhook sees the templates, the cache does not.
func TestInjectorConfigMap(t *testing.T) {
	cm := corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: "istio-sidecar-injector", Labels: map[string]string{"istio.io/rev": "default"}},
		Data: map[string]string{
			"config": "policy: enabled\ntemplates:\n  sidecar: |\n    spec: {}\nalwaysInjectSelector: []\n",
			"values": `{"global":{"proxy":{"image":"proxyv2"},"hub":"docker.io/istio","tag":"1.30.0","more":[1,2]}}`,
		},
	}
	raw, err := json.Marshal(cm)
	if err != nil {
		t.Fatal(err)
	}
	kind := schema.GroupKind{Kind: "ConfigMap"}
	if a, b := canonicalOf(t, asked(t, kind, raw)), canonicalOf(t, watched(t, kind, raw)); a != b {
		t.Errorf("in a request\n%s\nin a cache\n%s", a, b)
	}
}

// TestTellsApart: what is judged by cannot change without the form, and what is not can.
func TestTellsApart(t *testing.T) {
	base := func() *mesh.PeerAuthentication {
		return &mesh.PeerAuthentication{Namespace: "prod", Name: "default", Mode: mesh.ModeStrict, Created: time.Unix(1, 0), UID: "a", Generation: 1}
	}
	was := canonicalOf(t, base())
	for name, change := range map[string]func(*mesh.PeerAuthentication){
		"another namespace":      func(p *mesh.PeerAuthentication) { p.Namespace = "shop" },
		"another name":           func(p *mesh.PeerAuthentication) { p.Name = "other" },
		"another mode":           func(p *mesh.PeerAuthentication) { p.Mode = mesh.ModePermissive },
		"no mode":                func(p *mesh.PeerAuthentication) { p.Mode = mesh.ModeUnset },
		"a selector":             func(p *mesh.PeerAuthentication) { p.SelectorSet, p.Selector = true, map[string]string{"app": "web"} },
		"an empty selector":      func(p *mesh.PeerAuthentication) { p.SelectorSet = true },
		"a port":                 func(p *mesh.PeerAuthentication) { p.Ports = map[uint32]mesh.Mode{80: mesh.ModeUnset} },
		"a revision":             func(p *mesh.PeerAuthentication) { p.HasRevision, p.Revision = true, "canary" },
		"an empty revision":      func(p *mesh.PeerAuthentication) { p.HasRevision = true },
		"a port of another mode": func(p *mesh.PeerAuthentication) { p.Ports = map[uint32]mesh.Mode{80: mesh.ModeDisable} },
	} {
		p := base()
		change(p)
		if canonicalOf(t, p) == was {
			t.Errorf("%s: has the same form, %s", name, was)
		}
	}
	p := base()
	p.UID, p.Generation, p.Created, p.Terminating = "b", 7, time.Unix(2, 0), true
	if got := canonicalOf(t, p); got != was {
		t.Errorf("what the API server writes of itself is in the form: %s", got)
	}
}

// TestOwnObjects: typed or not, and whatever was noted on it.
func TestOwnObjects(t *testing.T) {
	fail, ignore := admissionregistrationv1.Fail, admissionregistrationv1.Ignore
	typed := &admissionregistrationv1.ValidatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: "meshvakt", UID: "u", ResourceVersion: "7", Generation: 2, Annotations: map[string]string{"note": "x"}},
		Webhooks:   []admissionregistrationv1.ValidatingWebhook{{Name: "pods.meshvakt.io", FailurePolicy: &fail}},
	}
	was := canonicalOf(t, typed)
	raw, err := json.Marshal(typed)
	if err != nil {
		t.Fatal(err)
	}
	loose := &unstructured.Unstructured{}
	if err := json.Unmarshal(raw, &loose.Object); err != nil {
		t.Fatal(err)
	}
	loose.SetAPIVersion("admissionregistration.k8s.io/v1")
	loose.SetKind("ValidatingWebhookConfiguration")
	loose.SetResourceVersion("8")
	loose.SetAnnotations(nil)
	if got := canonicalOf(t, loose); got != was {
		t.Errorf("typed\n%s\nuntyped\n%s", was, got)
	}
	if loose.GetResourceVersion() != "8" {
		t.Error("the object itself was changed")
	}
	typed.Webhooks[0].FailurePolicy = &ignore
	if got := canonicalOf(t, typed); got == was {
		t.Errorf("with another failure policy it has the same form, %s", got)
	}
}

func TestReference(t *testing.T) {
	m := metav1.ObjectMeta{Namespace: "prod", Name: "x", UID: "u", Generation: 4, ResourceVersion: "9"}
	policy := "security.istio.io/v1/PeerAuthentication"
	for _, c := range []struct {
		object any
		want   canonical.Ref
	}{
		{&mesh.PeerAuthentication{Namespace: "prod", Name: "x", UID: "u", Generation: 4}, canonical.Ref{policy, "prod", "x", "u", 4, ""}},
		{&objects.PeerAuthentication{ObjectMeta: m}, canonical.Ref{policy, "prod", "x", "u", 4, "9"}},
		{&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "prod", UID: "u"}}, canonical.Ref{"v1/Namespace", "prod", "prod", "u", 0, ""}},
		{&v1alpha1.GuardException{ObjectMeta: m}, canonical.Ref{"meshvakt.io/v1alpha1/GuardException", "prod", "x", "u", 4, "9"}},
		{&facts.Workload{ObjectMeta: m}, canonical.Ref{"", "prod", "x", "u", 4, "9"}},
		{nil, canonical.Ref{}},
		{"text", canonical.Ref{}},
	} {
		if got := canonical.Reference(c.object); got != c.want {
			t.Errorf("%T: %+v; want %+v", c.object, got, c.want)
		}
	}
}

// TestReferenceOfRequest: the webhook's own reader of pods and namespaces keeps what tells them apart.
func TestReferenceOfRequest(t *testing.T) {
	for _, kind := range []string{"Namespace", "Pod", "PeerAuthentication", "ConfigMap"} {
		group := ""
		if kind == "PeerAuthentication" {
			group = "security.istio.io"
		}
		raw := fmt.Appendf(nil, `{"kind":%q,"metadata":{"name":"x","uid":"u-1","generation":5}}`, kind)
		got := canonical.Reference(asked(t, schema.GroupKind{Group: group, Kind: kind}, raw))
		if got.UID != "u-1" || got.Generation != 5 || got.Name != "x" {
			t.Errorf("%s: %+v", kind, got)
		}
	}
}

func TestOfRefusesOthers(t *testing.T) {
	for _, o := range []any{nil, "text", 7, check.Document{}} {
		if text, err := canonical.Of(o); err == nil {
			t.Errorf("%T: %s", o, text)
		}
	}
}

func TestGuardsInAnyOrder(t *testing.T) {
	guard := func(name string) facts.Guard {
		g := v1alpha1.DefaultGuard()
		g.Name = name
		f, err := facts.NewGuard(g)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	list := []facts.Guard{guard("a"), guard("b")}
	was, err := canonical.Guards(list)
	if err != nil {
		t.Fatal(err)
	}
	slices.Reverse(list)
	if got, err := canonical.Guards(list); err != nil || !bytes.Equal(got, was) {
		t.Errorf("%s, %v; want %s", got, err, was)
	}
	weaker := *list[0].StrictMTLS
	weaker.ValidationActions = []v1alpha1.ValidationAction{v1alpha1.Warn}
	list[0].StrictMTLS = &weaker
	if got, err := canonical.Guards(list); err != nil || bytes.Equal(got, was) {
		t.Errorf("%s, %v; must be another", got, err)
	}
	if list[0].Name != "b" {
		t.Error("the list itself was sorted")
	}
}
