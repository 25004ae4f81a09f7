package policies

import (
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
	meshv1alpha1 "istio.io/api/mesh/v1alpha1"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// Settings of istiod. Whoever may write its ConfigMaps decides for the whole mesh,
// and most of what they decide is theirs. Denied is what takes the mesh from guarded
// namespaces without a word to those who work there: automatic mutual TLS turned
// off, interception turned off for all, variables for istio-init that no workload
// might set, traffic left out of capture, and injection that passes guarded
// namespaces by. What pods are judged by comes from these settings, so that nothing
// behind them would notice.
//
// Only what the change brings is judged: settings that are there are the mesh as it
// was decided. The effective mode is the matter of strict-mtls.
//
// Source: Istio, MeshConfig reference; the values of chart istio-discovery that the
// injector's templates read.

// settingsMatch is about the ConfigMaps of istiod.
func settingsMatch() Match {
	return Match{
		Group: "", Resource: "configmaps", Versions: []string{"v1"}, Kind: "ConfigMap",
		Operations: []admissionv1.Operation{admissionv1.Create, admissionv1.Update, admissionv1.Delete},
		Scope:      ScopeIstioSettings, OnlyIfChanged: []string{"data", "metadata.?labels"},
	}
}

// otherConfigMap tells other ConfigMaps, Istio's own too, from the settings of istiod,
// before and after the request. A side that is not there although it must be does not
// make it another one.
func otherConfigMap(r *facts.Review) bool {
	other := func(object any) bool {
		cm, ok := object.(*corev1.ConfigMap)
		return ok && !mesh.IsControlPlane(cm.Name, cm.Data) && !mesh.IsInjector(cm.Name, cm.Data)
	}
	return (r.Operation == admissionv1.Delete || other(r.Object)) && (r.Operation == admissionv1.Create || other(r.OldObject))
}

// settingsChange is the state before and after a change of a ConfigMap of istiod.
type settingsChange struct {
	before, after facts.Cluster
	// What the ConfigMap holds itself: its control plane or its injector, nil for
	// neither. Where there was none, it is what Istio does by default.
	planeBefore, planeAfter       *mesh.ControlPlane
	injectorBefore, injectorAfter *mesh.Injector
	// unreadable is why istiod cannot use the new text, "" if it can.
	unreadable string
}

// newSettingsChange reads both sides. Old settings that istiod cannot use count as
// its defaults.
func newSettingsChange(r *facts.Review) (*settingsChange, error) {
	old, cm, err := sides[corev1.ConfigMap](r)
	if err != nil {
		return nil, err
	}
	if r.Cluster.Namespaces[r.Namespace] == nil {
		return nil, fmt.Errorf("%w: namespace %q of the ConfigMap", ErrMissingFact, r.Namespace)
	}
	s := &settingsChange{before: r.Cluster, after: r.Cluster}
	if old != nil && mesh.IsControlPlane(old.Name, old.Data) || cm != nil && mesh.IsControlPlane(cm.Name, cm.Data) {
		s.readPlanes(old, cm)
	}
	if old != nil && mesh.IsInjector(old.Name, old.Data) || cm != nil && mesh.IsInjector(cm.Name, cm.Data) {
		s.readInjectors(old, cm)
	}
	return s, nil
}

func (s *settingsChange) readPlanes(old, cm *corev1.ConfigMap) {
	read := func(m *corev1.ConfigMap) (plane mesh.ControlPlane, err error) {
		if plane, err = mesh.ParseControlPlane(m.Name, m.Labels, m.Data); err != nil {
			plane, _ = mesh.ParseControlPlane(m.Name, m.Labels, nil)
		}
		return plane, err
	}
	if old != nil {
		plane, _ := read(old)
		s.planeBefore = &plane
		s.before.ControlPlanes = withPlane(s.before.ControlPlanes, plane.Revision, &plane)
	}
	if cm == nil {
		s.after.ControlPlanes = withPlane(s.before.ControlPlanes, s.planeBefore.Revision, nil)
		return
	}
	plane, err := read(cm)
	s.planeAfter, s.unreadable = &plane, oneLine(err)
	if s.planeBefore == nil {
		usual := mesh.DefaultControlPlane()
		s.planeBefore = &usual
		s.before.ControlPlanes = withPlane(s.before.ControlPlanes, plane.Revision, nil)
	}
	s.after.ControlPlanes = withPlane(s.before.ControlPlanes, plane.Revision, &plane)
}

// withPlane returns the control planes with the one of the revision replaced, or
// taken away. Without any, Istio's defaults hold.
func withPlane(planes []mesh.ControlPlane, revision string, plane *mesh.ControlPlane) []mesh.ControlPlane {
	list := slices.DeleteFunc(slices.Clone(planes), func(p mesh.ControlPlane) bool { return p.Revision == revision })
	switch {
	case plane != nil:
		list = append(list, *plane)
	case len(list) == 0:
		list = append(list, mesh.DefaultControlPlane())
	}
	return list
}

func (s *settingsChange) readInjectors(old, cm *corev1.ConfigMap) {
	with := func(list []mesh.Injector, revision string, injector *mesh.Injector) []mesh.Injector {
		list = slices.DeleteFunc(slices.Clone(list), func(i mesh.Injector) bool { return i.Revision == revision })
		if injector != nil {
			list = append(list, *injector)
		}
		return list
	}
	if old != nil {
		if injector, err := mesh.ParseInjector(old.Name, old.Labels, old.Data); err == nil {
			s.injectorBefore = &injector
			s.before.Injection.Injectors = with(s.before.Injection.Injectors, injector.Revision, &injector)
		}
	}
	if cm == nil {
		// The injector goes on with what it has read, and refuses pods when it starts anew.
		s.after.Injection = s.before.Injection
		return
	}
	injector, err := mesh.ParseInjector(cm.Name, cm.Labels, cm.Data)
	if err != nil {
		s.unreadable, s.after.Injection = oneLine(err), s.before.Injection
		return
	}
	s.injectorAfter = &injector
	if s.injectorBefore == nil {
		usual := mesh.DefaultInjection(injector.Revision).Injectors[0]
		s.injectorBefore = &usual
		s.before.Injection.Injectors = with(s.before.Injection.Injectors, injector.Revision, nil)
	}
	s.after.Injection.Injectors = with(s.before.Injection.Injectors, injector.Revision, &injector)
}

// judgeMeshSettings judges what a change of istiod's settings takes from guarded
// namespaces.
func judgeMeshSettings(r *facts.Review, g *facts.Guard) ([]Finding, error) {
	s, err := newSettingsChange(r)
	if err != nil {
		return nil, err
	}
	j := &settingsReview{settingsChange: s, guard: g}
	if s.unreadable != "" {
		j.refuse("data", fmt.Sprintf("istiod cannot use this text (%s), and will run on its defaults once it starts anew; must be readable", s.unreadable), "mend the text")
		return j.found, nil
	}
	if s.planeAfter != nil {
		j.judgeAutoMTLS()
		j.judgeDefaultConfig()
	}
	if s.injectorAfter != nil {
		j.judgeCaptured()
		j.judgeInjected()
	}
	return atMost(j.found), nil
}

type settingsReview struct {
	*settingsChange
	guard *facts.Guard
	found []Finding
}

func (j *settingsReview) refuse(field, message, remedy string) {
	j.found = append(j.found, Finding{
		Reason: reasonMeshSettingsWeakened(), Firm: true, Type: metav1.CauseTypeForbidden,
		Field: field, Message: message, Remedy: remedy,
	})
}

func (j *settingsReview) judgeAutoMTLS() {
	if j.planeBefore.EnableAutoMTLS && !j.planeAfter.EnableAutoMTLS {
		j.refuse("data.mesh", "enableAutoMtls false has every client in the mesh send plaintext unless a DestinationRule says otherwise; must be true or absent", "remove enableAutoMtls")
	}
}

// judgeDefaultConfig: what a workload may not have set in its annotation, nobody
// should get from the mesh by surprise.
func (j *settingsReview) judgeDefaultConfig() {
	before, after := j.planeBefore.ProxyConfig, j.planeAfter.ProxyConfig
	metadata := after.GetProxyMetadata()
	for _, name := range sortedKeys(metadata) {
		if forbiddenMetadata(name, metadata[name], j.before.ControlPlanes, j.guard) {
			j.refuse("data.mesh",
				fmt.Sprintf("defaultConfig.proxyMetadata[%s] %s becomes environment of every proxy and istio-init, and is not known to be harmless; must not be set", quote(name), quote(metadata[name])),
				fmt.Sprintf("remove it, or first have the name added to spec.meshMembership.proxyMetadata of MeshGuard %q", j.guard.Name))
		}
	}
	if mode := after.GetInterceptionMode(); mode != before.GetInterceptionMode() && mode == meshv1alpha1.ProxyConfig_NONE {
		j.refuse("data.mesh", "defaultConfig.interceptionMode \"NONE\" captures no traffic of any workload; must be \"REDIRECT\" or \"TPROXY\"", "remove interceptionMode")
	}
	m, was := after.ProtoReflect(), before.ProtoReflect()
	for _, name := range []protoreflect.Name{"binary_path", "config_path", "custom_config_file", "proxy_bootstrap_template_path"} {
		f := m.Descriptor().Fields().ByName(name)
		if m.Has(f) && !was.Get(f).Equal(m.Get(f)) {
			j.refuse("data.mesh",
				fmt.Sprintf("defaultConfig.%s %s has every proxy run something that is not Istio's configuration; must be absent", f.JSONName(), quote(m.Get(f).String())),
				"remove "+f.JSONName())
		}
	}
}

// judgeCaptured: traffic that the injector leaves out for all.
func (j *settingsReview) judgeCaptured() {
	was, is := j.injectorBefore, j.injectorAfter
	for _, list := range []struct{ name, before, after, does string }{
		{"excludeInboundPorts", was.ExcludeInboundPorts, is.ExcludeInboundPorts, "take plaintext on these ports"},
		{"excludeOutboundPorts", was.ExcludeOutboundPorts, is.ExcludeOutboundPorts, "send to these ports past the proxy"},
		{"excludeIPRanges", was.ExcludeIPRanges, is.ExcludeIPRanges, "send to these ranges past the proxy"},
	} {
		known := splitList(list.before)
		if added := slices.DeleteFunc(splitList(list.after), func(v string) bool { return slices.Contains(known, v) }); len(added) > 0 {
			j.refuse("data.values",
				fmt.Sprintf("global.proxy.%s now names %s, and lets every new workload %s; must not grow", list.name, quote(strings.Join(added, ",")), list.does),
				"leave it as it was")
		}
	}
	for _, list := range []struct{ name, before, after string }{
		{"includeInboundPorts", was.IncludeInboundPorts, is.IncludeInboundPorts},
		{"includeIPRanges", was.IncludeIPRanges, is.IncludeIPRanges},
	} {
		if list.after != all && list.after != list.before {
			j.refuse("data.values",
				fmt.Sprintf("global.proxy.%s %s captures the traffic of every new workload only in part; must be \"*\"", list.name, quote(list.after)),
				"set it to \"*\"")
		}
	}
}

// judgeInjected: guarded namespaces whose pods got a sidecar without asking, and
// will not.
func (j *settingsReview) judgeInjected() {
	var names []string
	for _, name := range guardedNamespaces(&j.after, j.guard) {
		ns := j.after.Namespaces[name]
		if enrolled(&j.before, ns, j.guard) && !enrolled(&j.after, ns, j.guard) {
			names = append(names, name)
		}
	}
	if len(names) > 0 {
		j.refuse("data.config",
			fmt.Sprintf("new pods of %s would get no sidecar, and be refused; must leave injection on there", holeGroup{namespaces: names}.names()),
			"leave policy and neverInjectSelector as they were")
	}
}

// oneLine is the text of an error with single spaces, "" for none. The protobuf
// library varies the kind of space in its errors from build to build.
func oneLine(err error) string {
	if err == nil {
		return ""
	}
	return strings.Join(strings.Fields(err.Error()), " ")
}
