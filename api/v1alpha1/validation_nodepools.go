package v1alpha1

import (
	"regexp"
	"slices"

	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// How much the lists may hold.
const (
	maxPlaces      = 64
	maxLabelValues = 32
	maxTypes       = 64
)

func validateNodePools(n *NodePools, at *field.Path) field.ErrorList {
	errs := validateActions(n.ValidationActions, at.Child("validationActions"))
	errs = append(errs, oneOf(at.Child("scope"), n.Scope, PlacementMesh, PlacementAll)...)
	errs = append(errs, oneOf(at.Child("controlPlane"), n.ControlPlane, ControlPlaneGuard, ControlPlaneIgnore)...)
	errs = append(errs, oneOf(at.Child("unknown"), n.Unknown, UnknownAllow, UnknownDeny)...)
	errs = append(errs, oneOf(at.Child("steering"), n.Steering, SteeringRequired, SteeringNone)...)
	errs = append(errs, oneOf(at.Child("onNoNode"), n.OnNoNode, OnNoNodeReject, OnNoNodeWait)...)
	if n.OnNoNode == OnNoNodeWait && (n.Steering != SteeringRequired || !slices.Contains(n.ValidationActions, Deny)) {
		errs = append(errs, field.Forbidden(at.Child("onNoNode"), "Wait must be used together with steering Required and validationActions Deny: nothing else keeps pods waiting"))
	}
	if l := n.NodeLabel; l != nil {
		errs = append(errs, validateNodeLabel(l, at.Child("nodeLabel"))...)
	}
	errs = append(errs, validateInstanceTypes(n.InstanceTypes, at.Child("instanceTypes"))...)
	if m := n.MaxStealPercent; m != nil && (*m < 1 || *m > 100) {
		errs = append(errs, field.Invalid(at.Child("maxStealPercent"), *m, "must be from 1 to 100"))
	}
	errs = append(errs, labelValues(at.Child("allowedRegions"), n.AllowedRegions, maxPlaces, false)...)
	errs = append(errs, labelValues(at.Child("allowedZones"), n.AllowedZones, maxPlaces, false)...)
	if n.AllowedZones != nil && n.AllowedRegions == nil {
		errs = append(errs, field.Required(at.Child("allowedRegions"), "allowedZones must be used together with allowedRegions: a zone is in a region"))
	}
	return errs
}

func validateNodeLabel(l *NodeLabel, at *field.Path) field.ErrorList {
	var errs field.ErrorList
	for _, problem := range validation.IsQualifiedName(l.Key) {
		errs = append(errs, field.Invalid(at.Child("key"), l.Key, problem))
	}
	if l.Key == ClassLabel {
		errs = append(errs, field.Invalid(at.Child("key"), l.Key, "must not be the label in which Meshvakt writes the class"))
	}
	errs = append(errs, labelValues(at.Child("burstable"), l.Burstable, maxLabelValues, true)...)
	errs = append(errs, labelValues(at.Child("dedicated"), l.Dedicated, maxLabelValues, true)...)
	if l.Burstable == nil && l.Dedicated == nil {
		errs = append(errs, field.Required(at, "burstable or dedicated must be set: the label says nothing otherwise"))
	}
	for i, v := range l.Dedicated {
		if slices.Contains(l.Burstable, v) {
			errs = append(errs, field.Invalid(at.Child("dedicated").Index(i), v, "a value must not be both burstable and dedicated"))
		}
	}
	return errs
}

func validateInstanceTypes(list []InstanceTypeClass, at *field.Path) field.ErrorList {
	var errs field.ErrorList
	if len(list) > maxTypes {
		errs = append(errs, field.TooMany(at, len(list), maxTypes))
	}
	pattern := regexp.MustCompile(`^[-A-Za-z0-9_.*]{1,63}$`)
	for i := range list {
		types := at.Index(i).Child("types")
		errs = append(errs, oneOf(at.Index(i).Child("class"), list[i].Class, NodeBurstable, NodeDedicated)...)
		switch n := len(list[i].Types); {
		case n == 0:
			errs = append(errs, field.Required(types, "at least one instance type"))
		case n > maxTypes:
			errs = append(errs, field.TooMany(types, n, maxTypes))
		}
		for j, t := range list[i].Types {
			if !pattern.MatchString(t) {
				errs = append(errs, field.Invalid(types.Index(j), t, "must be an instance type of at most 63 letters, digits and -_., with * for any of them"))
			}
			if slices.Contains(list[i].Types[:j], t) {
				errs = append(errs, field.Duplicate(types.Index(j), t))
			}
		}
	}
	return errs
}

// labelValues validates a list that, if it is there, holds distinct values of a label.
func labelValues(at *field.Path, values []string, atMost int, mayBeEmpty bool) field.ErrorList {
	var errs field.ErrorList
	switch {
	case values != nil && len(values) == 0:
		errs = append(errs, field.Required(at, "an empty list stands for nothing; must be left out"))
	case len(values) > atMost:
		errs = append(errs, field.TooMany(at, len(values), atMost))
	}
	for i, v := range values {
		if v == "" && !mayBeEmpty {
			errs = append(errs, field.Required(at.Index(i), "an empty entry stands for nothing"))
		}
		for _, problem := range validation.IsValidLabelValue(v) {
			errs = append(errs, field.Invalid(at.Index(i), v, problem))
		}
		if slices.Contains(values[:i], v) {
			errs = append(errs, field.Duplicate(at.Index(i), v))
		}
	}
	return errs
}

func oneOf[T ~string](at *field.Path, value T, known ...T) field.ErrorList {
	if slices.Contains(known, value) {
		return nil
	}
	return field.ErrorList{field.NotSupported(at, value, known)}
}
