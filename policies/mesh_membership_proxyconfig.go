package policies

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"
	meshv1alpha1 "istio.io/api/mesh/v1alpha1"
	"sigs.k8s.io/yaml"

	"github.com/meshvakt/meshvakt/internal/mesh"
)

// The annotation proxy.istio.io/config can set every field of ProxyConfig, over
// the mesh's own; the agent reads it again at every start of the proxy. Fields
// that move the proxy to another control plane, binary or bootstrap, or traffic
// past it, are refused by leaving them out of the list of harmless ones. A field
// that says what the mesh says anyway is fine.
//
// Source: pilot/pkg/model/proxy_config.go; pilot/cmd/pilot-agent/config.
const proxyConfigKey = "proxy.istio.io/config"

// harmlessProxyConfig are the fields that tune the proxy and what it reports.
func harmlessProxyConfig() []string {
	return []string{
		"availabilityZone", "concurrency", "connectionSettings", "discoveryRefreshDelay", "drainDuration",
		"envoyAccessLogService", "envoyMetricsService", "envoyMetricsServiceAddress", "extraStatTags",
		"fileFlushInterval", "fileFlushMinSizeKb", "gatewayTopology", "holdApplicationUntilProxyStarts",
		"meshId", "privateKeyProvider", "proxyHeaders", "proxyStatsMatcher", "readinessProbe",
		"serviceCluster", "statNameLength", "statsCompression", "statsdUdpAddress",
		"terminationDrainDuration", "tracing", "tracingServiceName", "zipkinAddress",
	}
}

func (w *workload) judgeProxyConfig() {
	if v, ok := w.annotation(proxyConfigKey); ok && w.plane != planeAmbient {
		w.judgeProxyConfigText(v, w.annotationField(proxyConfigKey))
	}
}

// judgeProxyConfigText judges a ProxyConfig in YAML or JSON. Fields that Istio
// does not know have no effect.
func (w *workload) judgeProxyConfigText(text, field string) {
	if strings.TrimSpace(text) == "{}" {
		return // as Istio renders it where nobody configures anything
	}
	var config meshv1alpha1.ProxyConfig
	raw, err := []byte(text), error(nil)
	if !plainJSON(text) {
		raw, err = yaml.YAMLToJSON(raw)
	}
	if err := errors.Join(err, protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(raw, &config)); err != nil {
		w.refuse(reasonProxyConfigForbidden(), field,
			fmt.Sprintf("%s cannot be read as a ProxyConfig; must be valid YAML of one", quote(text)), "mend or remove it")
		return
	}
	if name := foreignReference(string(raw)); name != "" {
		w.refuse(reasonProxyConfigForbidden(), field,
			fmt.Sprintf("the kubelet puts the value of environment variable %s into the configuration, which may be anything; must only refer to variables that Istio sets", quote(name)),
			fmt.Sprintf("write the value in place of $(%s)", name))
	}
	w.judgeBootstrapFields(&config, field)
	m := config.ProtoReflect()
	for _, f := range writtenFields(m.Descriptor(), raw) {
		if !slices.Contains(harmlessProxyConfig(), f.JSONName()) && !w.meshSays(f, m.Get(f)) {
			w.judgeProxyConfigField(&config, f, m.Get(f), field)
		}
	}
}

// plainJSON reports whether the text, as a reader of YAML takes it, is the JSON that
// it looks like, so that the slow one need not be asked. Every pod of a mesh has such
// text from Istio in it.
func plainJSON(text string) bool {
	differs := func(c rune) bool { return c == '\\' || c > '~' || c < ' ' && c != '\n' }
	return !strings.ContainsFunc(text, differs) && json.Valid([]byte(text))
}

// writtenFields returns the fields that the object in JSON sets, by either of their
// names, sorted: Istio merges it over the mesh's configuration, so that an explicit
// zero value counts too. Null is nothing.
func writtenFields(d protoreflect.MessageDescriptor, raw []byte) []protoreflect.FieldDescriptor {
	var object map[string]json.RawMessage
	if json.Unmarshal(raw, &object) != nil {
		return nil // null, the only other thing that is read as a message
	}
	var fields []protoreflect.FieldDescriptor
	for i := range d.Fields().Len() {
		f := d.Fields().Get(i)
		for _, name := range []string{f.JSONName(), string(f.Name())} {
			if v, ok := object[name]; ok && string(v) != "null" {
				fields = append(fields, f)
				break
			}
		}
	}
	slices.SortFunc(fields, func(a, b protoreflect.FieldDescriptor) int { return strings.Compare(a.JSONName(), b.JSONName()) })
	return fields
}

// foreignReference returns the first variable that the text refers to and that
// Istio's template does not fill from the pod's own fields.
func foreignReference(text string) string {
	for _, part := range strings.Split(text, "$(")[1:] {
		name, _, closed := strings.Cut(part, ")")
		if closed && renderedField(name) == "" {
			return name
		}
	}
	return ""
}

// meshSays reports whether the mesh's own default sets the field to the value.
func (w *workload) meshSays(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
	return slices.ContainsFunc(w.cluster.ControlPlanes, func(cp mesh.ControlPlane) bool {
		m := cp.ProxyConfig.ProtoReflect()
		return m.Has(f) && m.Get(f).Equal(v)
	})
}

func (w *workload) judgeProxyConfigField(config *meshv1alpha1.ProxyConfig, f protoreflect.FieldDescriptor, v protoreflect.Value, field string) {
	switch f.JSONName() {
	case "proxyMetadata":
		for _, name := range sortedKeys(config.GetProxyMetadata()) {
			value := config.GetProxyMetadata()[name]
			if forbiddenMetadata(name, value, w.cluster.ControlPlanes, w.guard) {
				w.refuseMetadata(field, fmt.Sprintf("proxyMetadata[%s]: %s", quote(name), quote(value)), name)
			}
		}
	case "interceptionMode":
		if mode := config.GetInterceptionMode(); mode != meshv1alpha1.ProxyConfig_REDIRECT && mode != meshv1alpha1.ProxyConfig_TPROXY {
			w.refuse(reasonInterceptionOff(), field,
				fmt.Sprintf("interceptionMode %q captures no traffic at all; must be \"REDIRECT\", \"TPROXY\" or absent", mode), "remove interceptionMode")
		}
	case "controlPlaneAuthPolicy":
		if config.GetControlPlaneAuthPolicy() != meshv1alpha1.AuthenticationPolicy_MUTUAL_TLS {
			w.refuse(reasonProxyConfigForbidden(), field,
				fmt.Sprintf("controlPlaneAuthPolicy %q has the proxy take its configuration from anybody; must be \"MUTUAL_TLS\" or absent", config.GetControlPlaneAuthPolicy()), "remove controlPlaneAuthPolicy")
		}
	case "image":
		if t := config.GetImage().GetImageType(); !publishedImageType(t) {
			w.refuse(reasonProxyImageForbidden(), field,
				fmt.Sprintf("image.imageType %s is none of Istio's; must be \"default\", \"debug\" or \"distroless\"", quote(t)), "remove image.imageType")
		}
	default:
		w.refuse(reasonProxyConfigForbidden(), field,
			fmt.Sprintf("%s %s takes the proxy out of the mesh's hands; must be left to the mesh's configuration", f.JSONName(), quote(v.String())),
			fmt.Sprintf("remove %s", f.JSONName()))
	}
}

// refuseMetadata notes an environment variable that is not allowed, once per name.
func (w *workload) refuseMetadata(field, what, name string) {
	for _, f := range w.found {
		if f.Reason == reasonProxyMetadataForbidden() && strings.Contains(f.Message, quote(name)) {
			return
		}
	}
	w.refuse(reasonProxyMetadataForbidden(), field,
		what+" becomes environment of the proxy and of istio-init, and is not known to be harmless; must not be set",
		fmt.Sprintf("remove it, or have the name added to spec.meshMembership.proxyMetadata of MeshGuard %q", w.guard.Name))
}

// publishedImageType reports whether Istio publishes images of the type.
func publishedImageType(t string) bool {
	return slices.Contains([]string{"", "default", "debug", "distroless"}, t)
}
