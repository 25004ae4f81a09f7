package v1alpha1

import (
	"fmt"
	"slices"
	"time"
	"unicode/utf8"

	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func validateExceptions(e *Exceptions, at *field.Path) field.ErrorList {
	var errs field.ErrorList
	if d := e.MaxDuration.Duration; d < time.Minute || d > MaxExceptionHours*time.Hour {
		errs = append(errs, field.Invalid(at.Child("maxDuration"), d.String(), fmt.Sprintf("must be from 1m to %dh", MaxExceptionHours)))
	}
	if known := []Approval{ApprovalTwoPerson, ApprovalNone}; !slices.Contains(known, e.Approval) {
		errs = append(errs, field.NotSupported(at.Child("approval"), e.Approval, known))
	}
	return errs
}

// ExceptablePolicies are the IDs of the policies that exceptions can be made from.
func ExceptablePolicies() []string {
	return []string{"mesh-membership", "node-pools", "sidecar-resources", "strict-mtls"}
}

// ValidateException reports what the CustomResourceDefinition refuses in a
// GuardException, for exceptions that are read from files, and a selector that cannot
// be read.
func ValidateException(e *GuardException) field.ErrorList {
	spec := field.NewPath("spec")
	errs := metav1validation.ValidateLabelSelector(&e.Spec.ObjectSelector, metav1validation.LabelSelectorValidationOptions{}, spec.Child("objectSelector"))
	if n := len(e.Spec.Policies); n == 0 {
		errs = append(errs, field.Required(spec.Child("policies"), "at least one policy must be named"))
	}
	for i, p := range e.Spec.Policies {
		at := spec.Child("policies").Index(i).Child("name")
		if !slices.Contains(ExceptablePolicies(), p.Name) {
			errs = append(errs, field.NotSupported(at, p.Name, ExceptablePolicies()))
		}
		if slices.ContainsFunc(e.Spec.Policies[:i], func(o ExceptedPolicy) bool { return o.Name == p.Name }) {
			errs = append(errs, field.Duplicate(at, p.Name))
		}
	}
	for _, text := range []struct {
		name, value string
		limit       int
	}{{"reason", e.Spec.Reason, 500}, {"reference", e.Spec.Reference, 200}} {
		switch n := utf8.RuneCountInString(text.value); {
		case n == 0:
			errs = append(errs, field.Required(spec.Child(text.name), "must be given"))
		case n > text.limit:
			errs = append(errs, field.TooLong(spec.Child(text.name), text.value, text.limit))
		}
	}
	if e.Spec.ExpiresAt.IsZero() {
		errs = append(errs, field.Required(spec.Child("expiresAt"), "an exception must end"))
	}
	return errs
}
