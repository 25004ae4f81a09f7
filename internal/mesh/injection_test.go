package mesh

import (
	"fmt"
	"strings"
	"testing"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// TestInjectionMatrix is what a running istiod of the default revision was seen to
// do: rows are namespace labels, columns pod labels, "+" is injected.
func TestInjectionMatrix(t *testing.T) {
	columns := []map[string]string{
		nil, {injectKey: "true"}, {injectKey: "false"}, {injectKey: "False"}, {injectKey: ""},
		{revisionLabel: "default"}, {revisionLabel: "canary"},
		{injectKey: "true", revisionLabel: "default"}, {injectKey: "true", revisionLabel: "canary"},
	}
	const nobody, everybody = "---------", "++-++++++"
	rows := []struct {
		labels map[string]string
		want   string
		cause  InjectionCause // of a pod without labels
	}{
		{nil, "-+---+-+-", NotInjectedNamespace},
		{map[string]string{injectionKey: "enabled"}, everybody, Injected},
		{map[string]string{injectionKey: "disabled"}, nobody, NotInjectedNamespaceDisabled},
		{map[string]string{injectionKey: "true"}, nobody, NotInjectedNamespaceDisabled},
		{map[string]string{injectionKey: "Enabled"}, nobody, NotInjectedNamespaceDisabled},
		{map[string]string{injectionKey: ""}, nobody, NotInjectedNamespaceDisabled},
		{map[string]string{revisionLabel: "default"}, everybody, Injected},
		{map[string]string{revisionLabel: "canary"}, nobody, NotInjectedNamespaceRevision},
		{map[string]string{revisionLabel: "canary", injectionKey: "enabled"}, everybody, Injected},
		{map[string]string{revisionLabel: "default", injectionKey: "disabled"}, nobody, NotInjectedNamespaceDisabled},
		{map[string]string{dataplaneModeLabel: "ambient"}, "-+---+-+-", NotInjectedNamespace},
		{map[string]string{dataplaneModeLabel: "ambient", injectionKey: "enabled"}, everybody, Injected},
	}
	mesh := DefaultInjection("default")
	for _, row := range rows {
		var got strings.Builder
		for _, pod := range columns {
			d := mesh.Decide(Candidate{Namespace: "prod", NamespaceLabels: row.labels, Labels: pod})
			got.WriteString(map[bool]string{true: "+", false: "-"}[d.Injected()])
		}
		if got.String() != row.want {
			t.Errorf("namespace %v: got %s, want %s", row.labels, got.String(), row.want)
		}
		if d := mesh.Decide(Candidate{Namespace: "prod", NamespaceLabels: row.labels}); d.Cause != row.cause {
			t.Errorf("namespace %v: cause %s, want %s", row.labels, d.Cause, row.cause)
		}
	}
}

// TestInjectorDecides is the second gate, as Istio's own function was seen to decide.
func TestInjectorDecides(t *testing.T) {
	never, always := labels.SelectorFromSet(labels.Set{"never": "1"}), labels.SelectorFromSet(labels.Set{"always": "1"})
	for _, c := range []struct {
		policy, label, annotation string // "-" is absent
		pod                       map[string]string
		want                      InjectionCause
	}{
		{"enabled", "-", "-", nil, Injected},
		{"disabled", "-", "-", nil, NotInjectedPolicy},
		{"bogus", "-", "-", nil, NotInjectedPolicy},
		{"bogus", "true", "-", nil, NotInjectedPolicy},
		{"disabled", "true", "-", nil, Injected},
		{"enabled", "False", "-", nil, Injected},
		{"enabled", "0", "-", nil, Injected},
		{"enabled", "", "false", nil, Injected},
		{"enabled", "-", "false", nil, NotInjectedAnnotation},
		{"enabled", "-", "False", nil, Injected},
		{"enabled", "true", "false", nil, Injected},
		{"enabled", "false", "true", nil, NotInjectedLabel},
		{"enabled", "-", "-", map[string]string{"never": "1"}, NotInjectedSelector},
		{"enabled", "true", "-", map[string]string{"never": "1"}, Injected},
		{"enabled", "-", "-", map[string]string{"never": "1", "always": "1"}, NotInjectedSelector},
		{"disabled", "-", "-", map[string]string{"always": "1"}, Injected},
		{"disabled", "-", "false", map[string]string{"always": "1"}, NotInjectedAnnotation},
	} {
		i := Injector{Policy: c.policy, Never: []labels.Selector{never}, Always: []labels.Selector{always}}
		candidate := Candidate{Namespace: "prod", Labels: map[string]string{}, Annotations: map[string]string{}}
		for k, v := range c.pod {
			candidate.Labels[k] = v
		}
		if c.label != "-" {
			candidate.Labels[injectKey] = c.label
		}
		if c.annotation != "-" {
			candidate.Annotations[injectKey] = c.annotation
		}
		if got := i.decide(candidate); got != c.want {
			t.Errorf("%+v: got %s", c, got)
		}
	}
}

func TestInjectionCauses(t *testing.T) {
	mesh := DefaultInjection("default", "stable")
	enabled := map[string]string{injectionKey: "enabled"}
	for name, c := range map[string]struct {
		mesh Injection
		of   Candidate
		want InjectionCause
	}{
		"host network":               {mesh, Candidate{Namespace: "prod", NamespaceLabels: enabled, HostNetwork: true}, NotInjectedHostNetwork},
		"ignored namespace":          {mesh, Candidate{Namespace: "kube-system", NamespaceLabels: enabled}, NotInjectedIgnoredNamespace},
		"root namespace":             {mesh, Candidate{Namespace: "istio-system", NamespaceLabels: enabled}, Injected},
		"another revision":           {mesh, Candidate{Namespace: "prod", NamespaceLabels: map[string]string{revisionLabel: "stable"}}, Injected},
		"opt-out before asking":      {mesh, Candidate{Namespace: "prod", NamespaceLabels: enabled, Labels: map[string]string{injectKey: "false"}}, NotInjectedLabel},
		"dead revision of the pod":   {mesh, Candidate{Namespace: "prod", Labels: map[string]string{revisionLabel: "canary"}}, NotInjectedPodRevision},
		"no default revision":        {DefaultInjection("stable"), Candidate{Namespace: "prod", NamespaceLabels: enabled}, NotInjectedNoInjector},
		"no injector":                {Injection{}, Candidate{Namespace: "prod", NamespaceLabels: enabled}, NotInjectedNoInjector},
		"settings are not known":     {Injection{Webhooks: mesh.Webhooks}, Candidate{Namespace: "prod", NamespaceLabels: enabled}, Injected},
		"a forged status annotation": {mesh, Candidate{Namespace: "prod", NamespaceLabels: enabled, Annotations: map[string]string{"sidecar.istio.io/status": "{}"}}, Injected},
	} {
		if d := c.mesh.Decide(c.of); d.Cause != c.want {
			t.Errorf("%s: got %s, want %s", name, d.Cause, c.want)
		}
	}
}

// TestSeveralInjectorsAreAsked: of two revisions with a tag of one name, either may inject, and the first that
// declines says why when none does.
func TestSeveralInjectorsAreAsked(t *testing.T) {
	tagged := func(revision string) InjectionWebhook {
		return InjectionWebhook{Revision: revision, Tag: "prod", NamespaceSelector: labels.SelectorFromSet(labels.Set{revisionLabel: "prod"}), ObjectSelector: labels.Everything()}
	}
	pod := Candidate{Namespace: "prod", NamespaceLabels: map[string]string{revisionLabel: "prod"}}
	i := Injection{
		Webhooks:  []InjectionWebhook{tagged("default"), tagged("canary")},
		Injectors: []Injector{{Revision: "default", Policy: policyDisabled}, {Revision: "canary", Policy: policyEnabled}},
	}
	if d := i.Decide(pod); !d.Injected() || d.Injector.Revision != "canary" || d.Webhook.Revision != "canary" {
		t.Errorf("got %+v; must be injected by canary", d)
	}
	i.Injectors[1].Never = []labels.Selector{labels.Everything()}
	if d := i.Decide(pod); d.Cause != NotInjectedPolicy || d.Injector.Revision != "default" {
		t.Errorf("got %+v; must be declined by default", d)
	}
}

func TestAmbientEnrolled(t *testing.T) {
	ambient, none := map[string]string{dataplaneModeLabel: "ambient"}, map[string]string{dataplaneModeLabel: "none"}
	status := map[string]string{"sidecar.istio.io/status": ""}
	for name, c := range map[string]struct {
		of   Candidate
		want bool
	}{
		"nothing":                {Candidate{}, false},
		"namespace":              {Candidate{NamespaceLabels: ambient}, true},
		"pod":                    {Candidate{Labels: ambient}, true},
		"pod says none":          {Candidate{NamespaceLabels: ambient, Labels: none}, false},
		"pod over namespace":     {Candidate{NamespaceLabels: none, Labels: ambient}, true},
		"host network":           {Candidate{NamespaceLabels: ambient, HostNetwork: true}, false},
		"status of any value":    {Candidate{NamespaceLabels: ambient, Annotations: status}, false},
		"an odd value of a pod":  {Candidate{NamespaceLabels: ambient, Labels: map[string]string{dataplaneModeLabel: "None"}}, true},
		"an odd value of a name": {Candidate{NamespaceLabels: map[string]string{dataplaneModeLabel: "Ambient"}}, false},
	} {
		if got := AmbientEnrolled(c.of); got != c.want {
			t.Errorf("%s: got %t", name, got)
		}
	}
}

func TestParseInjectionWebhooks(t *testing.T) {
	pods := []admissionregistrationv1.RuleWithOperations{{
		Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.Create},
		Rule:       admissionregistrationv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"pods"}},
	}}
	config := &admissionregistrationv1.MutatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: "istio-revision-tag-prod", Labels: map[string]string{revisionLabel: "1-31", tagLabel: "prod"}},
		Webhooks: []admissionregistrationv1.MutatingWebhook{
			{Name: "rev.namespace.sidecar-injector.istio.io", Rules: pods, NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{revisionLabel: "prod"}}},
			{Name: "somebody.else.example.com", Rules: pods},
			{Name: "idle.sidecar-injector.istio.io"},
		},
	}
	list, err := ParseInjectionWebhooks(config)
	if err != nil || len(list) != 1 || list[0].Revision != "1-31" || list[0].Tag != "prod" {
		t.Fatalf("got %+v, %v", list, err)
	}
	i := Injection{Webhooks: list}
	if d := i.Decide(Candidate{Namespace: "a", NamespaceLabels: map[string]string{revisionLabel: "prod"}}); !d.Injected() {
		t.Errorf("a namespace of the tag: %s", d.Cause)
	}
	config.Webhooks[0].ObjectSelector = &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "a", Operator: "Equals"}}}
	if _, err := ParseInjectionWebhooks(config); err == nil || !strings.Contains(err.Error(), "objectSelector") {
		t.Errorf("an unreadable selector: %v", err)
	}
}

func TestParseInjector(t *testing.T) {
	data := map[string]string{
		"config": "policy: enabled\nneverInjectSelector:\n- matchLabels: {job: batch}\n- {}\n- matchExpressions: [{key: a, operator: Bad}]\n",
		"values": `{"global":{"hub":"docker.io/istio","tag":1.31,"caAddress":"ca:443","proxy":{"image":"proxyv2","statusPort":15020,"includeInboundPorts":"*","includeIPRanges":"*"},"proxy_init":{"image":"reg.example.com/init:2"}},"pilot":{"cni":{"enabled":true}}}`,
	}
	i, err := ParseInjector("istio-sidecar-injector-canary", nil, data)
	if err != nil {
		t.Fatal(err)
	}
	if i.Revision != "canary" || !i.CNI || len(i.Never) != 1 || i.StatusPort != "15020" || i.CAAddress != "ca:443" || i.Templates[0] != "sidecar" {
		t.Errorf("got %+v", i)
	}
	for image, want := range map[string]bool{
		"docker.io/istio/proxyv2:1.31":            true,
		"docker.io/istio/proxyv2:1.31-distroless": true,
		"docker.io/istio/proxyv2:1.31-debug":      true,
		"reg.example.com/init:2":                  true,
		"docker.io/istio/proxyv2:1.30":            false,
		"docker.io/istio/proxyv2:1.31-evil":       false,
		"docker.io/istio/proxyv2":                 false,
		"evil.io/istio/proxyv2:1.31":              false,
		"":                                        false,
	} {
		if got := i.AllowsImage(image); got != want {
			t.Errorf("AllowsImage(%q) is %t", image, got)
		}
	}
	for _, broken := range []map[string]string{
		{"config": "policy: [", "values": "{}"}, {"config": "policy: enabled", "values": "{"}, {"config": ""}, nil,
	} {
		if _, err := ParseInjector("istio-sidecar-injector", nil, broken); err == nil {
			t.Errorf("%v is read", broken)
		}
	}
}

func TestProxyUID(t *testing.T) {
	for text, want := range map[string]int64{
		"": 1337, "1000650000/10000": 1000659999, "1000-1999": 1999, "x/1": 1337, "5/0": 1337, "9-1": 1337,
	} {
		if got := ProxyUID(map[string]string{"openshift.io/sa.scc.uid-range": text}); got != want {
			t.Errorf("%q: got %d, want %d", text, got, want)
		}
	}
}

func BenchmarkDecide(b *testing.B) {
	mesh := DefaultInjection("default", "stable", "canary")
	c := Candidate{Namespace: "prod", NamespaceLabels: map[string]string{injectionKey: "enabled"}, Labels: map[string]string{"app": "web"}}
	b.ReportAllocs()
	for b.Loop() {
		if d := mesh.Decide(c); !d.Injected() {
			b.Fatal(d.Cause)
		}
	}
}

func FuzzParseInjector(f *testing.F) {
	f.Add("policy: enabled", `{"global":{"hub":"h","tag":"t"}}`)
	f.Add("neverInjectSelector: [{}]", `{"global":{"proxy":{"statusPort":"0"}}}`)
	f.Fuzz(func(_ *testing.T, config, values string) {
		if i, err := ParseInjector("istio-sidecar-injector", nil, map[string]string{"config": config, "values": values}); err == nil {
			_ = fmt.Sprint(i.AllowsImage(values), i.decide(Candidate{Namespace: config}))
		}
	})
}
