package preflight

import (
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/util/version"
)

// Minor versions of Kubernetes 1.
const (
	// oldestMinor is below what webhooks and schemas of this kind can work with at all.
	oldestMinor = 24
	// chartMinor is the first in which the API server takes the MeshGuard's schema; the
	// chart states it as its kubeVersion.
	chartMinor = 31
	// testedMinor is what the tests run on.
	testedMinor = 37
)

// capability is something of Kubernetes that Meshvakt makes use of.
type capability struct {
	minor uint // the first in which it is there without a feature gate
	name  string
	// without is what one does without.
	without string
}

// capabilities are by the feature gates of Kubernetes (pkg/features/kube_features.go of
// kube-apiserver and Kubernetes).
func capabilities() []capability {
	return []capability{
		{25, "CEL rules in CustomResourceDefinitions", "malformed MeshGuards are accepted"},
		{28, "matchConditions of webhooks", "the API server asks Meshvakt about every namespace, and waits for it"},
		{29, "native sidecars", "jobs do not end while their proxy runs, and init containers run without one"},
		{30, "ValidatingAdmissionPolicy", "nothing is refused while no replica answers"},
		{31, "the CEL library format", "the API server refuses the CustomResourceDefinition of MeshGuards"},
		{33, "in-place resize of pods", "sidecars get other resources by a restart only"},
		{37, "admission policies from files (KEP-5793)", "whoever may delete webhook configurations can end the guard for a moment"},
	}
}

func kubernetesVersion(f *Facts) Check {
	const id = "kubernetes-version"
	if f.Version.Err != nil {
		return unknown(id, f.Version.Err)
	}
	v, err := version.ParseGeneric(f.Version.Value)
	if err != nil {
		return unknown(id, fmt.Errorf("read version %q of the API server: %w", f.Version.Value, err))
	}
	c := Check{ID: id, Result: Pass, Found: f.Version.Value}
	if v.Major() != 1 {
		c.Result, c.Must = Warn, fmt.Sprintf("be 1.%d to 1.%d, which are the versions that are known", chartMinor, testedMinor)
		return c
	}
	for _, can := range capabilities() {
		if v.Minor() < can.minor {
			c.Details = append(c.Details, fmt.Sprintf("1.%d has %s; without, %s", can.minor, can.name, can.without))
		}
	}
	switch minor := v.Minor(); {
	case minor < oldestMinor:
		c.Result, c.Must = Fail, fmt.Sprintf("be 1.%d or later, and 1.%d for the chart", oldestMinor, chartMinor)
	case minor < chartMinor:
		c.Result, c.Must = Fail, fmt.Sprintf("be 1.%d or later, or the chart does not install", chartMinor)
	case minor > testedMinor:
		c.Result, c.Must = Warn, fmt.Sprintf("be one that Meshvakt is tested on, of which the last is 1.%d", testedMinor)
	case len(c.Details) > 0:
		c.Found += ", which lacks " + capabilityNames(minor)
	}
	if c.Result == Fail {
		c.Remedy = fmt.Sprintf("upgrade the control plane to 1.%d or later", chartMinor)
	}
	return c
}

func capabilityNames(minor uint) string {
	var names []string
	for _, can := range capabilities() {
		if minor < can.minor {
			names = append(names, can.name)
		}
	}
	return strings.Join(names, " and ")
}
