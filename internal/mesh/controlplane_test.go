package mesh_test

import (
	"strings"
	"testing"

	"github.com/meshvakt/meshvakt/internal/mesh"
)

func TestReadsRevision(t *testing.T) {
	tests := []struct {
		controlPlane string
		has          bool
		label        string
		want         bool
	}{
		{"default", false, "", true},
		{"default", true, "default", true},
		{"default", true, "other", false},
		{"default", true, "", false},
		{"canary", false, "", true},
		{"canary", true, "canary", true},
		{"canary", true, "default", false},
		{"canary", true, "prod-tag", false}, // tags are not resolved
		{"", false, "", true},
		{"", true, "anything", true},
	}
	for _, tt := range tests {
		c := mesh.DefaultControlPlane()
		c.Revision = tt.controlPlane
		p := pa("foo/n", 1, strict)
		p.HasRevision, p.Revision = tt.has, tt.label
		if got := c.Reads(p, nil); got != tt.want {
			t.Errorf("revision %q, label %v %q: %v, want %v", tt.controlPlane, tt.has, tt.label, got, tt.want)
		}
	}
}

func TestDiscovered(t *testing.T) {
	type labels = map[string]string
	tests := []struct {
		name      string
		selectors string
		in        labels
		want      bool
	}{
		{"no selectors", "", nil, true},
		{"empty list", "discoverySelectors: []", nil, true},
		{"empty selector", "discoverySelectors: [{}]", nil, true},
		{"match", "discoverySelectors: [{matchLabels: {env: prod}}]", labels{"env": "prod", "x": "y"}, true},
		{"no match", "discoverySelectors: [{matchLabels: {env: prod}}]", labels{"env": "dev"}, false},
		{"no labels", "discoverySelectors: [{matchLabels: {env: prod}}]", nil, false},
		{"second matches", "discoverySelectors: [{matchLabels: {env: prod}}, {matchLabels: {env: dev}}]", labels{"env": "dev"}, true},
		{"both in one", "discoverySelectors: [{matchLabels: {env: prod, team: a}}]", labels{"env": "prod"}, false},
		{"In", "discoverySelectors: [{matchExpressions: [{key: env, operator: In, values: [a, b]}]}]", labels{"env": "b"}, true},
		{"NotIn without the label", "discoverySelectors: [{matchExpressions: [{key: env, operator: NotIn, values: [a]}]}]", nil, true},
		{"Exists", "discoverySelectors: [{matchExpressions: [{key: env, operator: Exists}]}]", labels{"env": ""}, true},
		{"DoesNotExist", "discoverySelectors: [{matchExpressions: [{key: env, operator: DoesNotExist}]}]", labels{"env": ""}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := mesh.ParseControlPlane("istio", nil, map[string]string{"mesh": tt.selectors})
			if err != nil {
				t.Fatal(err)
			}
			if got := c.Discovered(tt.in); got != tt.want {
				t.Errorf("Discovered(%v) = %v", tt.in, got)
			}
			if got := c.Reads(pa("foo/n", 1, strict), tt.in); got != tt.want {
				t.Errorf("Reads in %v = %v", tt.in, got)
			}
		})
	}
}

// The root namespace has no exemption: undiscovered, its STRICT mesh policy has no effect.
func TestRootNamespaceUndiscovered(t *testing.T) {
	c, err := mesh.ParseControlPlane("istio", nil, map[string]string{"mesh": "discoverySelectors: [{matchLabels: {mesh: in}}]"})
	if err != nil {
		t.Fatal(err)
	}
	labels := map[string]map[string]string{
		"foo":          {"mesh": "in"},
		"istio-system": {"kubernetes.io/metadata.name": "istio-system"},
	}
	resolve := func() mesh.Mode {
		var read []*mesh.PeerAuthentication
		for _, p := range []*mesh.PeerAuthentication{pa("istio-system/m", 1, strict)} {
			if c.Reads(p, labels[p.Namespace]) {
				read = append(read, p)
			}
		}
		return c.Resolve(mesh.Workload{Namespace: "foo"}, read).Mode
	}
	if got := resolve(); got != permissive {
		t.Errorf("undiscovered root namespace: %v, want PERMISSIVE", got)
	}
	labels["istio-system"]["mesh"] = "in"
	if got := resolve(); got != strict {
		t.Errorf("discovered root namespace: %v, want STRICT", got)
	}
}

func TestParseControlPlane(t *testing.T) {
	rev := func(v string) map[string]string { return map[string]string{"istio.io/rev": v} }
	tests := []struct {
		name         string
		configMap    string
		labels       map[string]string
		text         string
		without      bool // no data key
		wantRevision string
		wantRoot     string
		wantAutoMTLS bool
		wantErr      string
	}{
		{name: "chart default", configMap: "istio", labels: rev("default"), text: "rootNamespace: istio-system\nenablePrometheusMerge: true\n", wantRevision: "default", wantRoot: "istio-system", wantAutoMTLS: true},
		{name: "no key", configMap: "istio", without: true, wantRevision: "default", wantRoot: "istio-system", wantAutoMTLS: true},
		{name: "empty text", configMap: "istio", wantRevision: "default", wantRoot: "istio-system", wantAutoMTLS: true},
		{name: "comment only", configMap: "istio", text: "# nothing\n", wantRevision: "default", wantRoot: "istio-system", wantAutoMTLS: true},
		{name: "revision by name", configMap: "istio-1-31-0", text: "{}", wantRevision: "1-31-0", wantRoot: "istio-system", wantAutoMTLS: true},
		{name: "label beats name", configMap: "istio-canary", labels: rev("blue"), text: "{}", wantRevision: "blue", wantRoot: "istio-system", wantAutoMTLS: true},
		{name: "empty label", configMap: "istio-canary", labels: rev(""), text: "{}", wantRevision: "canary", wantRoot: "istio-system", wantAutoMTLS: true},
		{name: "root namespace", configMap: "istio", text: "rootNamespace: cfg", wantRevision: "default", wantRoot: "cfg", wantAutoMTLS: true},
		{name: "root namespace in proto spelling", configMap: "istio", text: "root_namespace: cfg", wantRevision: "default", wantRoot: "cfg", wantAutoMTLS: true},
		{name: "root namespace emptied", configMap: "istio", text: `rootNamespace: ""`, wantRevision: "default", wantRoot: "", wantAutoMTLS: true},
		{name: "root namespace null", configMap: "istio", text: "rootNamespace: null", wantRevision: "default", wantRoot: "istio-system", wantAutoMTLS: true},
		{name: "auto mTLS off", configMap: "istio", text: "enableAutoMtls: false", wantRevision: "default", wantRoot: "istio-system"},
		{name: "unknown field", configMap: "istio", text: "nonsense: {a: 1}\nrootNamespace: cfg", wantRevision: "default", wantRoot: "cfg", wantAutoMTLS: true},
		{name: "bad YAML", configMap: "istio", text: "a: [", wantErr: `mesh config of ConfigMap "istio"`},
		{name: "not a map", configMap: "istio", text: "[1]", wantErr: "mesh config"},
		{name: "wrong type", configMap: "istio", text: "enableAutoMtls: certainly", wantErr: "mesh config"},
		{name: "bad operator", configMap: "istio", text: "discoverySelectors: [{}, {matchExpressions: [{key: a, operator: Near}]}]", wantErr: "discoverySelectors[1]"},
		{name: "bad label value", configMap: "istio", text: `discoverySelectors: [{matchLabels: {a: "b c"}}]`, wantErr: "discoverySelectors[0]"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			data := map[string]string{"mesh": tt.text}
			if tt.without {
				data = map[string]string{"meshNetworks": "networks: {}"}
			}
			c, err := mesh.ParseControlPlane(tt.configMap, tt.labels, data)
			if tt.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tt.wantErr) {
					t.Fatalf("error %v, want %q in it", err, tt.wantErr)
				}
				if c.Revision != "" || c.RootNamespace != "" {
					t.Errorf("an error comes with %+v", c)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if c.Revision != tt.wantRevision || c.RootNamespace != tt.wantRoot || c.EnableAutoMTLS != tt.wantAutoMTLS {
				t.Errorf("got %+v", c)
			}
		})
	}
}
