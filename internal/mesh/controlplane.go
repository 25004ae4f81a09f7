package mesh

import (
	"cmp"
	"encoding/json"
	"fmt"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	meshv1alpha1 "istio.io/api/mesh/v1alpha1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"
)

const (
	revisionLabel        = "istio.io/rev"
	defaultRevision      = "default"
	defaultRootNamespace = "istio-system"
	meshConfigMapName    = "istio"
	meshConfigKey        = "mesh"
)

// ControlPlane is one istiod revision and the mesh settings that decide which policies it applies.
type ControlPlane struct {
	Revision           string            // REVISION of the istiod; "" reads every object
	RootNamespace      string            // selector-less policies here hold for the whole mesh
	DiscoverySelectors []labels.Selector // any one must match; empty: every namespace is discovered
	EnableAutoMTLS     bool              // clients choose mutual TLS on their own; no effect on the server's mode

	// RegistryOnly: proxies forward only to what they know, unless a Sidecar object says otherwise.
	RegistryOnly bool

	// ProxyConfig is MeshConfig.defaultConfig as it is written, nil when it is not: what every proxy starts from.
	ProxyConfig *meshv1alpha1.ProxyConfig
	// ProxyListenPort and InboundListenPort are where captured traffic goes, 15001 and 15006 by default.
	ProxyListenPort, InboundListenPort int32
}

// DefaultControlPlane is what istiod runs with when the chart's values are left alone.
func DefaultControlPlane() ControlPlane {
	return ControlPlane{
		Revision:          defaultRevision,
		RootNamespace:     defaultRootNamespace,
		EnableAutoMTLS:    true,
		ProxyListenPort:   15001,
		InboundListenPort: 15006,
	}
}

// IsControlPlane reports whether the ConfigMap holds the settings of a control plane, by its name and its data: others
// of Istio's share the beginning of the name.
func IsControlPlane(name string, data map[string]string) bool {
	_, settings := data[meshConfigKey]
	return settings && (name == meshConfigMapName || strings.HasPrefix(name, meshConfigMapName+"-"))
}

// ParseControlPlane reads the ConfigMap that Istio installs for a control plane: "istio", or "istio-<revision>".
//
// The revision is the value of its label istio.io/rev when that is not empty, else the suffix of its name, else
// "default". The settings are the MeshConfig under data key "mesh", on top of Istio's defaults; unknown fields
// are skipped, as istiod does, and without the key the defaults stand.
//
// An error means that istiod cannot use this text, not that it stops: it keeps the last good settings if it has
// seen any since it started, else its defaults (pkg/config/mesh/meshwatcher/collection.go); and on an
// unreadable discovery selector alone, the previous selectors, at start none, so that every namespace is
// discovered (pkg/kube/namespace/filter.go, selectorsChanged). Which of these holds cannot be told from the
// ConfigMap, so the result is then the zero value and must not be used. istiod refuses some more texts that this
// function accepts, those with an invalid value in a field that is not read here.
func ParseControlPlane(name string, labels, data map[string]string) (ControlPlane, error) {
	c := DefaultControlPlane()
	if suffix, ok := strings.CutPrefix(name, meshConfigMapName+"-"); ok && suffix != "" {
		c.Revision = suffix
	}
	if rev := labels[revisionLabel]; rev != "" {
		c.Revision = rev
	}
	text, ok := data[meshConfigKey]
	if !ok {
		return c, nil
	}
	if err := c.applyMeshConfig(text); err != nil {
		return ControlPlane{}, fmt.Errorf("read mesh config of ConfigMap %q: %w", name, err)
	}
	return c, nil
}

// applyMeshConfig puts the fields that are present in the text over those of c.
func (c *ControlPlane) applyMeshConfig(text string) error {
	raw, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		return err
	}
	// Presence must be read from the text: an explicit `rootNamespace: ""` leaves istiod without a root
	// namespace, hence without any mesh-wide policy, while an absent one means the default.
	var present map[string]json.RawMessage
	if err := json.Unmarshal(raw, &present); err != nil {
		return err
	}
	if present == nil {
		return nil // empty document
	}
	var settings meshv1alpha1.MeshConfig
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(raw, &settings); err != nil {
		return err
	}
	for _, field := range []string{"rootNamespace", "root_namespace"} {
		if value, ok := present[field]; ok && string(value) != "null" {
			c.RootNamespace = settings.GetRootNamespace()
		}
	}
	if enable := settings.GetEnableAutoMtls(); enable != nil {
		c.EnableAutoMTLS = enable.GetValue()
	}
	c.RegistryOnly = settings.GetOutboundTrafficPolicy().GetMode() == meshv1alpha1.MeshConfig_OutboundTrafficPolicy_REGISTRY_ONLY &&
		settings.GetOutboundTrafficPolicy() != nil
	c.ProxyConfig = settings.GetDefaultConfig()
	c.ProxyListenPort = cmp.Or(settings.GetProxyListenPort(), c.ProxyListenPort)
	c.InboundListenPort = cmp.Or(settings.GetProxyInboundListenPort(), c.InboundListenPort)
	for i, selector := range settings.GetDiscoverySelectors() {
		parsed, err := discoverySelector(selector)
		if err != nil {
			return fmt.Errorf("discoverySelectors[%d]: %w", i, err)
		}
		c.DiscoverySelectors = append(c.DiscoverySelectors, parsed)
	}
	return nil
}

// discoverySelector reads Istio's own copy of the Kubernetes label selector; an empty one selects everything.
func discoverySelector(s *meshv1alpha1.LabelSelector) (labels.Selector, error) {
	same := metav1.LabelSelector{MatchLabels: s.GetMatchLabels()}
	for _, e := range s.GetMatchExpressions() {
		same.MatchExpressions = append(same.MatchExpressions, metav1.LabelSelectorRequirement{
			Key:      e.GetKey(),
			Operator: metav1.LabelSelectorOperator(e.GetOperator()),
			Values:   e.GetValues(),
		})
	}
	return metav1.LabelSelectorAsSelector(&same)
}

// Discovered reports whether the control plane sees objects of a namespace that carries these labels.
//
// MeshConfig.discoverySelectors hides what is in every other namespace, and the root namespace has no
// exemption: a STRICT mesh policy in an istio-system that no selector matches has no effect.
func (c ControlPlane) Discovered(namespaceLabels map[string]string) bool {
	if len(c.DiscoverySelectors) == 0 {
		return true
	}
	for _, s := range c.DiscoverySelectors {
		if s.Matches(labels.Set(namespaceLabels)) {
			return true
		}
	}
	return false
}

// Reads reports whether this control plane reads the policy at all, given the labels of the policy's namespace.
//
// A policy that carries label istio.io/rev is read only by the istiod whose REVISION is exactly that value;
// revision tags are not resolved, and an empty value matches no revision. A policy without the label is read by
// all. An istiod with an empty REVISION reads every policy.
func (c ControlPlane) Reads(p *PeerAuthentication, namespaceLabels map[string]string) bool {
	if p.HasRevision && c.Revision != "" && c.Revision != p.Revision {
		return false
	}
	return c.Discovered(namespaceLabels)
}
