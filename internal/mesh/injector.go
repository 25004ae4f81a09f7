package mesh

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"
)

const (
	injectorSuffix        = "sidecar-injector.istio.io"
	injectorConfigMapName = "istio-sidecar-injector"
	tagLabel              = "istio.io/tag"
)

// ParseInjectionWebhooks returns the entries of a configuration that lead to an injector: by their names, as
// Istio's own tools recognise them (istioctl/pkg/checkinject), and only if they ask about the creation of pods.
func ParseInjectionWebhooks(c *admissionregistrationv1.MutatingWebhookConfiguration) ([]InjectionWebhook, error) {
	var list []InjectionWebhook
	for i := range c.Webhooks {
		w := &c.Webhooks[i]
		if !strings.HasSuffix(w.Name, injectorSuffix) || !createsPods(w.Rules) {
			continue
		}
		namespaces, err := selectorOf(w.NamespaceSelector)
		if err != nil {
			return nil, fmt.Errorf("namespaceSelector of webhook %q in MutatingWebhookConfiguration %q: %w", w.Name, c.Name, err)
		}
		objects, err := selectorOf(w.ObjectSelector)
		if err != nil {
			return nil, fmt.Errorf("objectSelector of webhook %q in MutatingWebhookConfiguration %q: %w", w.Name, c.Name, err)
		}
		list = append(list, InjectionWebhook{
			Configuration:     c.Name,
			Name:              w.Name,
			Revision:          cmp.Or(c.Labels[revisionLabel], defaultRevision),
			Tag:               c.Labels[tagLabel],
			NamespaceSelector: namespaces,
			ObjectSelector:    objects,
		})
	}
	return list, nil
}

// createsPods reports whether the API server asks about new pods by these rules.
func createsPods(rules []admissionregistrationv1.RuleWithOperations) bool {
	has := func(list []string, value string) bool {
		return slices.Contains(list, value) || slices.Contains(list, "*")
	}
	return slices.ContainsFunc(rules, func(r admissionregistrationv1.RuleWithOperations) bool {
		creates := slices.Contains(r.Operations, admissionregistrationv1.Create) || slices.Contains(r.Operations, admissionregistrationv1.OperationAll)
		return creates && has(r.APIGroups, "") && has(r.APIVersions, "v1") && (has(r.Resources, "pods") || slices.Contains(r.Resources, "*/*"))
	})
}

// selectorOf reads a selector of a webhook, where none selects everything.
func selectorOf(s *metav1.LabelSelector) (labels.Selector, error) {
	if s == nil {
		return labels.Everything(), nil
	}
	return metav1.LabelSelectorAsSelector(s)
}

// DefaultInjection is what a mesh has that was installed with its default values and the given revisions, for
// judging without a cluster. Which images it renders is not known, so that every image named proxyv2 counts.
func DefaultInjection(revisions ...string) Injection {
	var i Injection
	for _, revision := range revisions {
		i.Webhooks = append(i.Webhooks, defaultWebhooks(revision)...)
		i.Injectors = append(i.Injectors, defaultInjector(revision))
	}
	return i
}

// defaultWebhooks are the entries of the chart (istio-discovery/templates/mutatingwebhook.yaml). Those of label
// istio-injection belong to the revision "default".
func defaultWebhooks(revision string) []InjectionWebhook {
	in := func(key string, values ...string) metav1.LabelSelectorRequirement {
		return metav1.LabelSelectorRequirement{Key: key, Operator: metav1.LabelSelectorOpIn, Values: values}
	}
	absent := func(key string) metav1.LabelSelectorRequirement {
		return metav1.LabelSelectorRequirement{Key: key, Operator: metav1.LabelSelectorOpDoesNotExist}
	}
	wanted := metav1.LabelSelectorRequirement{Key: injectKey, Operator: metav1.LabelSelectorOpNotIn, Values: []string{"false"}}
	type entry struct {
		name               string
		namespaces, object []metav1.LabelSelectorRequirement
	}
	type requirements = []metav1.LabelSelectorRequirement
	entries := []entry{
		{"rev.namespace.", requirements{in(revisionLabel, revision), absent(injectionKey)}, requirements{wanted}},
		{"rev.object.", requirements{absent(revisionLabel), absent(injectionKey)}, requirements{wanted, in(revisionLabel, revision)}},
	}
	if revision == defaultRevision {
		entries = append(entries,
			entry{"namespace.", requirements{in(injectionKey, "enabled")}, requirements{wanted}},
			entry{"object.", requirements{absent(injectionKey), absent(revisionLabel)}, requirements{in(injectKey, "true"), absent(revisionLabel)}},
		)
	}
	list := make([]InjectionWebhook, 0, len(entries))
	for _, e := range entries {
		list = append(list, InjectionWebhook{
			Configuration:     injectorConfigMapName,
			Name:              e.name + injectorSuffix,
			Revision:          revision,
			NamespaceSelector: requirementsSelector(e.namespaces),
			ObjectSelector:    requirementsSelector(e.object),
		})
	}
	return list
}

// requirementsSelector parses requirements that are well formed by construction.
func requirementsSelector(list []metav1.LabelSelectorRequirement) labels.Selector {
	s, err := metav1.LabelSelectorAsSelector(&metav1.LabelSelector{MatchExpressions: list})
	if err != nil {
		return labels.Nothing()
	}
	return s
}

func defaultInjector(revision string) Injector {
	return Injector{
		Revision:            revision,
		Policy:              policyEnabled,
		StatusPort:          "15020",
		Templates:           []string{"sidecar"},
		IncludeInboundPorts: "*",
		IncludeIPRanges:     "*",
		Resources:           defaultResources(),
	}
}

// injectorConfig is the part of the injector's configuration that is read.
type injectorConfig struct {
	Policy               string                 `json:"policy"`
	DefaultTemplates     []string               `json:"defaultTemplates"`
	NeverInjectSelector  []metav1.LabelSelector `json:"neverInjectSelector"`
	AlwaysInjectSelector []metav1.LabelSelector `json:"alwaysInjectSelector"`
}

// injectorValues are the chart's values that the templates are rendered with.
type injectorValues struct {
	Global struct {
		Hub             string `json:"hub"`
		Tag             any    `json:"tag"` // a number where somebody forgot the quotes
		CAAddress       string `json:"caAddress"`
		TrustBundleName string `json:"trustBundleName"`
		MountMTLSCerts  bool   `json:"mountMtlsCerts"`
		Proxy           struct {
			Image                string `json:"image"`
			StatusPort           any    `json:"statusPort"`
			Privileged           bool   `json:"privileged"`
			IncludeIPRanges      string `json:"includeIPRanges"`
			ExcludeIPRanges      string `json:"excludeIPRanges"`
			IncludeInboundPorts  string `json:"includeInboundPorts"`
			ExcludeInboundPorts  string `json:"excludeInboundPorts"`
			ExcludeOutboundPorts string `json:"excludeOutboundPorts"`
			// As it stands: a value that is no quantity keeps nothing else from being read.
			Resources map[string]map[string]any `json:"resources,omitempty"`
		} `json:"proxy"`
		ProxyInit struct {
			Image string `json:"image"`
		} `json:"proxy_init"`
	} `json:"global"`
	Pilot struct {
		CNI struct {
			Enabled bool `json:"enabled"`
		} `json:"cni"`
	} `json:"pilot"`
}

// IsInjector reports whether the ConfigMap is the configuration of an injector, by its name and its data.
func IsInjector(name string, data map[string]string) bool {
	if name != injectorConfigMapName && !strings.HasPrefix(name, injectorConfigMapName+"-") {
		return false
	}
	_, config := data["config"]
	_, values := data["values"]
	return config && values
}

// SlimInjector returns config and values without what ParseInjector does not read; what cannot be read stays as it
// is. The templates alone are some 50 KiB.
func SlimInjector(data map[string]string) (config, values string) {
	config, values = data["config"], data["values"]
	var c injectorConfig
	if yaml.Unmarshal([]byte(config), &c) == nil {
		if slim, err := yaml.Marshal(c); err == nil {
			config = string(slim)
		}
	}
	var v injectorValues
	if json.Unmarshal([]byte(values), &v) == nil {
		if slim, err := json.Marshal(v); err == nil {
			values = string(slim)
		}
	}
	return config, values
}

// ParseInjector reads the ConfigMap of an injector. The revision is found as in ParseControlPlane. Selectors that
// cannot be read are skipped, as istiod does.
func ParseInjector(name string, objectLabels, data map[string]string) (Injector, error) {
	if !IsInjector(name, data) {
		return Injector{}, errors.New("not the ConfigMap of an injector")
	}
	i := defaultInjector(defaultRevision)
	if suffix, ok := strings.CutPrefix(name, injectorConfigMapName+"-"); ok {
		i.Revision = suffix
	}
	i.Revision = cmp.Or(objectLabels[revisionLabel], i.Revision)
	var config injectorConfig
	if err := yaml.Unmarshal([]byte(data["config"]), &config); err != nil {
		return Injector{}, fmt.Errorf("read config of ConfigMap %q: %w", name, err)
	}
	var values injectorValues
	if err := json.Unmarshal([]byte(data["values"]), &values); err != nil {
		return Injector{}, fmt.Errorf("read values of ConfigMap %q: %w", name, err)
	}
	i.Policy = config.Policy
	if len(config.DefaultTemplates) > 0 {
		i.Templates = config.DefaultTemplates
	}
	i.Never, i.Always = selectorsOf(config.NeverInjectSelector), selectorsOf(config.AlwaysInjectSelector)
	i.take(&values)
	return i, nil
}

func (i *Injector) take(v *injectorValues) {
	proxy := v.Global.Proxy
	for _, image := range []string{proxy.Image, cmp.Or(v.Global.ProxyInit.Image, proxy.Image)} {
		// With a slash it is a whole reference (injection template); else it is put together as in proxyImageURL.
		if !strings.Contains(image, "/") {
			image = v.Global.Hub + "/" + cmp.Or(image, "proxyv2") + ":" + fmt.Sprint(v.Global.Tag)
		}
		if image = withoutType(image); !slices.Contains(i.Images, image) {
			i.Images = append(i.Images, image)
		}
	}
	i.CNI = v.Pilot.CNI.Enabled
	i.MountsCertificates = v.Global.MountMTLSCerts
	i.CAAddress, i.RootConfigMap, i.Privileged = v.Global.CAAddress, v.Global.TrustBundleName, proxy.Privileged
	if proxy.StatusPort != nil {
		i.StatusPort = fmt.Sprint(proxy.StatusPort)
	}
	i.IncludeInboundPorts, i.ExcludeInboundPorts = proxy.IncludeInboundPorts, proxy.ExcludeInboundPorts
	i.IncludeIPRanges, i.ExcludeIPRanges = proxy.IncludeIPRanges, proxy.ExcludeIPRanges
	i.ExcludeOutboundPorts = proxy.ExcludeOutboundPorts
	i.Resources = resourcesOf(proxy.Resources)
}

// selectorsOf leaves out what cannot be read, and what is empty: Istio does not take that for everything.
func selectorsOf(list []metav1.LabelSelector) []labels.Selector {
	var selectors []labels.Selector
	for n := range list {
		if s, err := metav1.LabelSelectorAsSelector(&list[n]); err == nil && !s.Empty() {
			selectors = append(selectors, s)
		}
	}
	return selectors
}

// AllowsImage reports whether the injector may have rendered the image: the configured reference, of any of the
// types that Istio publishes, which stand at the end of the tag. Where the configuration is not known, every image
// named proxyv2 is taken for Istio's.
func (i *Injector) AllowsImage(ref string) bool {
	if len(i.Images) == 0 {
		name := ref[strings.LastIndex(ref, "/")+1:]
		name, _, _ = strings.Cut(name, "@")
		name, _, _ = strings.Cut(name, ":")
		return name == "proxyv2"
	}
	return slices.Contains(i.Images, withoutType(ref))
}

// withoutType cuts the type of an image off its tag (pkg/kube/inject/inject.go, updateImageTypeIfPresent).
func withoutType(ref string) string {
	for _, t := range []string{"-debug", "-distroless"} {
		if base, ok := strings.CutSuffix(ref, t); ok {
			return base
		}
	}
	return ref
}

// DefaultProxyUID is the user and group that proxies run as outside of OpenShift.
const DefaultProxyUID = 1337

// ProxyUID is the user that proxies of a namespace run as: on OpenShift the last of the range that the namespace
// was given, "first/size" or "first-last" (pkg/kube/inject/openshift.go).
func ProxyUID(namespaceAnnotations map[string]string) int64 {
	text := namespaceAnnotations["openshift.io/sa.scc.uid-range"]
	if first, size, ok := strings.Cut(text, "/"); ok {
		f, errF := strconv.ParseUint(first, 10, 32)
		s, errS := strconv.ParseUint(size, 10, 32)
		if errF == nil && errS == nil && s > 0 {
			return int64(f + s - 1) //nolint:gosec // two numbers of 32 bits
		}
	}
	if first, last, ok := strings.Cut(text, "-"); ok {
		f, errF := strconv.ParseUint(first, 10, 32)
		l, errL := strconv.ParseUint(last, 10, 32)
		if errF == nil && errL == nil && f <= l {
			return int64(l) //nolint:gosec // a number of 32 bits
		}
	}
	return DefaultProxyUID
}
