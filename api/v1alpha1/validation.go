package v1alpha1

import (
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
	if g.Spec.StrictMTLS == nil {
		errs = append(errs, field.Required(spec.Child("strictMTLS"), "at least one policy block must be set: strictMTLS"))
		return errs
	}
	return append(errs, validateStrictMTLS(g.Spec.StrictMTLS, spec.Child("strictMTLS"))...)
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
