package v1alpha1

import (
	"maps"
	"net/netip"
	"slices"

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
	if g.Spec.StrictMTLS == nil && g.Spec.MeshMembership == nil {
		errs = append(errs, field.Required(spec, "at least one policy block must be set: meshMembership, strictMTLS"))
	}
	if s := g.Spec.StrictMTLS; s != nil {
		errs = append(errs, validateStrictMTLS(s, spec.Child("strictMTLS"))...)
	}
	if m := g.Spec.MeshMembership; m != nil {
		errs = append(errs, validateMeshMembership(m, spec.Child("meshMembership"))...)
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
