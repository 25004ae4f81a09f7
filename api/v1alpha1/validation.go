package v1alpha1

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Validate reports what the CustomResourceDefinition refuses in a MeshGuard,
// for guards that are read from files, and what neither its schema nor its
// rules can express. It expects a guard with its defaults set.
func Validate(g *MeshGuard) field.ErrorList {
	var errs field.ErrorList
	name := field.NewPath("metadata", "name")
	if g.Name == "" {
		errs = append(errs, field.Required(name, "a MeshGuard is known by its name"))
	}
	for _, problem := range validation.IsDNS1123Subdomain(g.Name) {
		if g.Name != "" {
			errs = append(errs, field.Invalid(name, g.Name, problem))
		}
	}
	spec := field.NewPath("spec")
	errs = append(errs, metav1validation.ValidateLabelSelector(&g.Spec.NamespaceSelector,
		metav1validation.LabelSelectorValidationOptions{}, spec.Child("namespaceSelector"))...)
	if g.Spec.StrictMTLS == nil && g.Spec.MeshMembership == nil && g.Spec.SidecarResources == nil && g.Spec.NodePools == nil {
		errs = append(errs, field.Required(spec, "at least one policy block must be set: meshMembership, nodePools, sidecarResources, strictMTLS"))
	}
	if s := g.Spec.StrictMTLS; s != nil {
		errs = append(errs, validateStrictMTLS(s, spec.Child("strictMTLS"))...)
	}
	if m := g.Spec.MeshMembership; m != nil {
		errs = append(errs, validateMeshMembership(m, spec.Child("meshMembership"))...)
	}
	if s := g.Spec.SidecarResources; s != nil {
		errs = append(errs, validateSidecarResources(s, spec.Child("sidecarResources"))...)
	}
	if n := g.Spec.NodePools; n != nil {
		errs = append(errs, validateNodePools(n, spec.Child("nodePools"))...)
	}
	if e := g.Spec.Exceptions; e != nil {
		errs = append(errs, validateExceptions(e, spec.Child("exceptions"))...)
	}
	if known := []Remediation{RemediationNone, RemediationRestore}; !slices.Contains(known, g.Spec.Remediation) {
		errs = append(errs, field.NotSupported(spec.Child("remediation"), g.Spec.Remediation, known))
	}
	return errs
}

func validateMeshMembership(m *MeshMembership, at *field.Path) field.ErrorList {
	errs := validateActions(m.ValidationActions, at.Child("validationActions"))
	planes := []DataPlane{DataPlaneSidecar, DataPlaneAmbient}
	for i, p := range m.DataPlanes {
		if !slices.Contains(planes, p) {
			errs = append(errs, field.NotSupported(at.Child("dataPlanes").Index(i), p, planes))
		}
	}
	if rewrites := []ProbeRewrite{ProbeRewriteAllow, ProbeRewriteDeny}; !slices.Contains(rewrites, m.ProbeRewrite) {
		errs = append(errs, field.NotSupported(at.Child("probeRewrite"), m.ProbeRewrite, rewrites))
	}
	lists := map[string][]string{"proxyImages": m.ProxyImages, "proxyMetadata": m.ProxyMetadata, "injectionTemplates": m.InjectionTemplates}
	for _, name := range slices.Sorted(maps.Keys(lists)) {
		for i, v := range lists[name] {
			if v == "" {
				errs = append(errs, field.Required(at.Child(name).Index(i), "an empty entry stands for nothing"))
			}
		}
	}
	out := at.Child("outbound")
	for i, p := range m.Outbound.Ports {
		for _, problem := range validation.IsValidPortNum(int(p)) {
			errs = append(errs, field.Invalid(out.Child("ports").Index(i), p, problem))
		}
	}
	for i, c := range m.Outbound.CIDRs {
		if _, err := netip.ParsePrefix(c); err != nil {
			errs = append(errs, field.Invalid(out.Child("cidrs").Index(i), c, "must be an address range such as 10.0.0.0/8"))
		}
	}
	return errs
}

func validateSidecarResources(s *SidecarResources, at *field.Path) field.ErrorList {
	errs := validateActions(s.ValidationActions, at.Child("validationActions"))
	if modes := []ResourcesMode{ModeFill, ModeClamp, ModeExact}; !slices.Contains(modes, s.Mode) {
		errs = append(errs, field.NotSupported(at.Child("mode"), s.Mode, modes))
	}
	if treatments := []QoSTreatment{QoSPreserve, QoSAllow}; !slices.Contains(treatments, s.QoS) {
		errs = append(errs, field.NotSupported(at.Child("qos"), s.QoS, treatments))
	}
	bounds := map[string]ProxyBound{}
	for name, b := range map[string]*ProxyBound{"minimum": s.Minimum, "maximum": s.Maximum} {
		switch {
		case b == nil:
		case *b == ProxyBound{}:
			errs = append(errs, field.Required(at.Child(name), "cpu or memory must be set"))
		default:
			bounds[name] = *b
		}
	}
	minimum, maximum := bounds["minimum"], bounds["maximum"]
	for _, ordered := range []struct {
		name   string
		values [4]*resource.Quantity
	}{
		{"cpu", [4]*resource.Quantity{minimum.CPU, s.Requests.CPU, s.Limits.CPU, maximum.CPU}},
		{"memory", [4]*resource.Quantity{minimum.Memory, s.Requests.Memory, s.Limits.Memory, maximum.Memory}},
	} {
		paths := [4]*field.Path{at.Child("minimum", ordered.name), at.Child("requests", ordered.name), at.Child("limits", ordered.name), at.Child("maximum", ordered.name)}
		for i, q := range ordered.values {
			switch {
			case q == nil:
			case q.Sign() <= 0:
				errs = append(errs, field.Invalid(paths[i], q.String(), "must be greater than 0"))
			case i > 0 && ordered.values[i-1] != nil && q.Cmp(*ordered.values[i-1]) < 0:
				errs = append(errs, field.Invalid(paths[i], q.String(), fmt.Sprintf("must not be less than %s, %s", paths[i-1], ordered.values[i-1])))
			}
		}
	}
	bounded := s.Minimum != nil || s.Maximum != nil
	switch {
	case s.Mode == ModeClamp && !bounded:
		errs = append(errs, field.Required(at.Child("maximum"), "mode Clamp needs minimum or maximum: without bounds there is nothing to move"))
	case s.Mode == ModeExact && bounded:
		errs = append(errs, field.Forbidden(at.Child("mode"), "Exact must be used without minimum and maximum: nothing but requests and limits is accepted"))
	}
	if c := s.Concurrency; c != nil && (*c < 1 || *c > 1024) {
		errs = append(errs, field.Invalid(at.Child("concurrency"), *c, "must be from 1 to 1024"))
	}
	return errs
}

func validateStrictMTLS(s *StrictMTLS, at *field.Path) field.ErrorList {
	errs := validateActions(s.ValidationActions, at.Child("validationActions"))
	if modes := []OnMissing{OnMissingReject, OnMissingHold, OnMissingProvision}; !slices.Contains(modes, s.OnMissing) {
		errs = append(errs, field.NotSupported(at.Child("onMissing"), s.OnMissing, modes))
	}
	return errs
}

func validateActions(actions []ValidationAction, at *field.Path) field.ErrorList {
	var errs field.ErrorList
	known := []ValidationAction{Deny, Warn, Audit}
	for i, a := range actions {
		switch {
		case !slices.Contains(known, a):
			errs = append(errs, field.NotSupported(at.Index(i), a, known))
		case slices.Contains(actions[:i], a):
			errs = append(errs, field.Duplicate(at.Index(i), a))
		}
	}
	switch {
	case len(actions) == 0:
		errs = append(errs, field.Required(at, "at least one of Deny, Warn and Audit"))
	case slices.Contains(actions, Deny) && slices.Contains(actions, Warn):
		errs = append(errs, field.Invalid(at, actions, "Deny and Warn must not be used together: a refusal already carries every finding"))
	}
	return errs
}
