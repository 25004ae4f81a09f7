package chart

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"
)

const (
	valuesBegin = "<!-- The table is generated from values.yaml by go test ./test/chart -update. -->\n"
	valuesEnd   = "<!-- end of the table -->\n"
)

func labelSet(m map[string]string) labels.Set { return m }

func equal(a, b any) bool { return reflect.DeepEqual(a, b) }

func scan(text, format string, into *int64) {
	var n int64
	if _, err := fmt.Sscanf(text, format, &n); err == nil {
		*into = n
	}
}

func inChart(file string) string { return filepath.Join(root, chart, file) }

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// comments returns the comment above each key of values.yaml, by path, in order.
func comments(text string) (paths []string, of map[string]string) {
	of = map[string]string{}
	var at []string // path of the key on the last line with one
	var comment []string
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		content := strings.TrimLeft(line, " ")
		if c, is := strings.CutPrefix(content, "#"); is {
			comment = append(comment, strings.TrimSpace(c))
			continue
		}
		key, _, isKey := strings.Cut(content, ":")
		if content == "" || strings.HasPrefix(content, "- ") || !isKey {
			comment = nil
			continue
		}
		depth := (len(line) - len(content)) / 2
		at = append(slices.Clone(at[:min(depth, len(at))]), key)
		if len(comment) > 0 {
			path := strings.Join(at, ".")
			paths = append(paths, path)
			of[path] = strings.Join(comment, " ")
		}
		comment = nil
	}
	return paths, of
}

// lookup returns the value at a path.
func lookup(values map[string]any, path string) (any, bool) {
	var at any = values
	for key := range strings.SplitSeq(path, ".") {
		m, ok := at.(map[string]any)
		if !ok {
			return nil, false
		}
		if at, ok = m[key]; !ok {
			return nil, false
		}
	}
	return at, true
}

func defaults(t *testing.T) map[string]any {
	t.Helper()
	values := map[string]any{}
	if err := yaml.Unmarshal([]byte(read(t, inChart("values.yaml"))), &values); err != nil {
		t.Fatal(err)
	}
	return values
}

func TestReadmeListsValues(t *testing.T) {
	paths, of := comments(read(t, inChart("values.yaml")))
	values := defaults(t)
	var table strings.Builder
	table.WriteString("| Value | Default | What it is |\n|---|---|---|\n")
	for _, path := range paths {
		value, ok := lookup(values, path)
		if !ok {
			t.Fatalf("comment on %s, which is no value", path)
		}
		text, err := json.Marshal(value)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&table, "| `%s` | `%s` | %s |\n", path, text, strings.ReplaceAll(of[path], "|", `\|`))
	}
	var undocumented func(prefix string, m map[string]any)
	undocumented = func(prefix string, m map[string]any) {
		for key, value := range m {
			path := prefix + key
			if of[path] != "" {
				continue
			}
			if inner, is := value.(map[string]any); is && len(inner) > 0 {
				undocumented(path+".", inner)
				continue
			}
			t.Errorf("values.yaml: %s has no comment", path)
		}
	}
	undocumented("", values)

	readme := read(t, inChart("README.md"))
	head, rest, begins := strings.Cut(readme, valuesBegin)
	_, tail, ends := strings.Cut(rest, valuesEnd)
	if !begins || !ends {
		t.Fatal("README.md of the chart has no place for the table")
	}
	golden(t, inChart("README.md"), head+valuesBegin+table.String()+valuesEnd+tail)
}

func schema(t *testing.T) map[string]any {
	t.Helper()
	s := map[string]any{}
	if err := json.Unmarshal([]byte(read(t, inChart("values.schema.json"))), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// The part of the schema about a MeshGuard is that of its CustomResourceDefinition.
func TestSchemaKnowsMeshGuards(t *testing.T) {
	var crd struct {
		Spec struct {
			Versions []struct {
				Schema struct {
					OpenAPIV3Schema struct {
						Properties map[string]any `json:"properties"`
					} `json:"openAPIV3Schema"`
				} `json:"schema"`
			} `json:"versions"`
		} `json:"spec"`
	}
	if err := yaml.Unmarshal([]byte(read(t, inChart("files/crds/meshvakt.io_meshguards.yaml"))), &crd); err != nil {
		t.Fatal(err)
	}
	s := schema(t)
	s["$defs"] = map[string]any{"MeshGuardSpec": strictly(crd.Spec.Versions[0].Schema.OpenAPIV3Schema.Properties["spec"])}
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, inChart("values.schema.json"), string(text)+"\n")
}

// strictly turns a structural schema into one that refuses unknown fields.
func strictly(v any) any {
	switch v := v.(type) {
	case []any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = strictly(v[i])
		}
		return out
	case map[string]any:
		out := map[string]any{}
		for key, inner := range v {
			if key == "properties" {
				properties := map[string]any{}
				for name, property := range inner.(map[string]any) {
					properties[name] = strictly(property)
				}
				out[key] = properties
				out["additionalProperties"] = false
				continue
			}
			if key != "description" && key != "default" && !strings.HasPrefix(key, "x-kubernetes-") {
				out[key] = strictly(inner)
			}
		}
		return out
	}
	return v
}

// Schema and values.yaml have the same keys, and no object of the schema lets
// unknown ones pass.
func TestSchemaAndValuesAgree(t *testing.T) {
	s := schema(t)
	definitions := s["$defs"].(map[string]any)
	var walk func(path string, schema map[string]any, value any)
	walk = func(path string, schema map[string]any, value any) {
		if reference, is := schema["$ref"].(string); is {
			schema = definitions[strings.TrimPrefix(reference, "#/$defs/")].(map[string]any)
		}
		properties, has := schema["properties"].(map[string]any)
		if !has {
			return
		}
		if schema["additionalProperties"] != false && schema["type"] == "object" {
			t.Errorf("%s: the schema lets unknown keys pass", path)
		}
		m, _ := value.(map[string]any)
		for key := range m {
			if properties[key] == nil {
				t.Errorf("%s.%s: a value that the schema does not know", path, key)
			}
		}
		for _, key := range slices.Sorted(maps.Keys(properties)) {
			inner := path + "." + key
			if m[key] == nil && len(m) > 0 && key != "global" && !strings.HasPrefix(inner, ".guard.spec.") {
				t.Errorf("%s: in the schema and not in values.yaml", inner)
			}
			walk(inner, properties[key].(map[string]any), m[key])
		}
	}
	walk("", s, defaults(t))
}

func TestSchemaRefuses(t *testing.T) {
	for _, c := range []struct{ set, says string }{
		{"replicas=3", "replicas"},
		{"image.tags=1", "tags"},
		{"image.digest=latest", "digest"},
		{"replicaCount=0", "replicaCount"},
		{"webhook.timeoutSeconds=31", "timeoutSeconds"},
		{"webhook.failurePolicy=Ignore", "failurePolicy"},
		{"webhook.mutation=sometimes", "mutation"},
		{"guard.spec.sidecarResources.mode=Force", "mode"},
		{"certificates.mode=vault", "mode"},
		{"certificates.certManager.issuer=x", "issuer"},
		{"log.level=trace", "level"},
		{"guard.spec.strictMTLS.onMissing=Ignore", "onMissing"},
		{"guard.spec.strictMtls.onMissing=Hold", "strictMtls"},
		{"metrics.serviceMonitor.enable=true", "enable"},
		{"networkPolicy.apiServerPorts={}", "apiServerPorts"},
		{"probe.enable=true", "enable"},
		{"probe.interval=30s", "interval"},
		{"probe.interval=0m", "interval"},
		{"probe.window=1500ms", "window"},
		{"probe.contendedAt=0", "contendedAt"},
		{"probe.contendedAt=101", "contendedAt"},
		{"probe.targets={istiod}", "targets"},
		{"probe.targets={a:1,a:2,a:3,a:4,a:5,a:6,a:7,a:8,a:9}", "targets"},
		{"probe.disk.every=1h", "every"},
		{"probe.hostNetwork=true", "hostNetwork"},
		{"evidence.enable=true", "enable"},
		{"evidence.mode=bestEffort", "mode"},
		{"evidence.name=https://evidence.example.org", "name"},
		{"evidence.breakGlassGroups={}", "breakGlassGroups"},
		{"evidence.retention=13 months", "retention"},
		{"evidence.clock.error=half a second", "error"},
		{"evidence.clock.kernel=ok", "kernel"},
		{"evidence.retention=0h", "retention"},
		{"evidence.volume.type=nfs", "type"},
		{"evidence.volume.accessModes={ReadWriteMany}", "accessModes"},
		{"evidence.sealer.checkpointInterval=0s", "checkpointInterval"},
		{"evidence.sealer.listen.port=0", "port"},
	} {
		_, _, err := helm(t, "template", "meshvakt", chart, "--set", c.set)
		if err == nil {
			t.Errorf("--set %s: accepted", c.set)
		} else if !strings.Contains(err.Error(), c.says) {
			t.Errorf("--set %s: %v\nmust name %s", c.set, err, c.says)
		}
	}
	for set, says := range map[string]string{
		"certificates.mode=secret":                                 "certificates.secret.name must be set",
		"evidence.enabled=true,evidence.retention=forever":         "evidence.name must be set",
		"evidence.enabled=true,evidence.name=evidence.example.org": "evidence.retention must be set",
		"evidence.migration=true":                                  "evidence.migration is for evidence.enabled true",
		"evidence.enabled=true,evidence.name=evidence.example.org,evidence.retention=forever,evidence.clock.error=500ms":   "evidence.clock.source must be set",
		"evidence.enabled=true,evidence.name=evidence.example.org,evidence.retention=forever,evidence.clock.source=chrony": "evidence.clock.error must be set",
	} {
		if _, _, err := helm(t, "template", "meshvakt", chart, "--set", set); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v\nmust say %q", set, err, says)
		}
	}
}
