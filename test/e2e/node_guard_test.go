package e2e

import (
	"encoding/json"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/test/controlplane"
)

// The schema refuses what no node could be held against, and `meshvakt check` refuses
// the same in files.
func TestNodeGuardNonsense(t *testing.T) {
	dryRun := client.NewDryRunClient(clientFor(t, controlplane.Admin))
	const at = "spec.nodePools"
	for name, c := range map[string]struct{ block, field, message string }{
		"unknown scope":                   {"{scope: Some}", at + ".scope", `supported values: "Mesh", "All"`},
		"unknown treatment of the mesh":   {"{controlPlane: Deny}", at + ".controlPlane", `supported values: "Guard", "Ignore"`},
		"unknown treatment of unknown":    {"{unknown: Warn}", at + ".unknown", `supported values: "Allow", "Deny"`},
		"unknown steering":                {"{steering: Preferred}", at + ".steering", `supported values: "Required", "None"`},
		"unknown word for no node":        {"{onNoNode: Hope}", at + ".onNoNode", `supported values: "Reject", "Wait"`},
		"waiting without steering":        {"{onNoNode: Wait, steering: None}", at, "onNoNode Wait must be used together with steering Required and validationActions Deny"},
		"waiting without Deny":            {"{onNoNode: Wait, validationActions: [Warn]}", at, "onNoNode Wait must be used together with steering Required and validationActions Deny"},
		"no action":                       {"{validationActions: []}", at + ".validationActions", "should have at least 1 items"},
		"Deny and Warn":                   {"{validationActions: [Deny, Warn]}", at + ".validationActions", "Deny and Warn must not be used together"},
		"no threshold":                    {"{maxStealPercent: 0}", at + ".maxStealPercent", "should be greater than or equal to 1"},
		"too high a threshold":            {"{maxStealPercent: 101}", at + ".maxStealPercent", "should be less than or equal to 100"},
		"no region":                       {"{allowedRegions: []}", at + ".allowedRegions", "should have at least 1 items"},
		"empty region":                    {`{allowedRegions: [""]}`, at + ".allowedRegions[0]", "should be at least 1 chars long"},
		"no value of a label":             {`{allowedRegions: ["eu north"]}`, at + ".allowedRegions[0]", "should match"},
		"region twice":                    {`{allowedRegions: [eu-north-1, eu-north-1]}`, at + ".allowedRegions[1]", "Duplicate value"},
		"zones without regions":           {"{allowedZones: [eu-north-1a]}", at, "allowedZones must be used together with allowedRegions"},
		"no zone":                         {"{allowedRegions: [a], allowedZones: []}", at + ".allowedZones", "should have at least 1 items"},
		"a label that says nothing":       {"{nodeLabel: {key: cpu}}", at + ".nodeLabel", "burstable or dedicated must be set"},
		"a value of both classes":         {"{nodeLabel: {key: cpu, burstable: [a, b], dedicated: [b]}}", at + ".nodeLabel", "a value must not be both burstable and dedicated"},
		"no label":                        {"{nodeLabel: {key: '', burstable: [a]}}", at + ".nodeLabel.key", "should be at least 1 chars long"},
		"no key of a label":               {"{nodeLabel: {key: 'a b', burstable: [a]}}", at + ".nodeLabel.key", "should match"},
		"our own label":                   {"{nodeLabel: {key: meshvakt.node-restriction.kubernetes.io/class, burstable: [a]}}", at + ".nodeLabel.key", "must not be the label in which Meshvakt writes the class"},
		"no values of a label":            {"{nodeLabel: {key: cpu, burstable: []}}", at + ".nodeLabel.burstable", "should have at least 1 items"},
		"an instance type of no class":    {"{instanceTypes: [{types: [m5.large], class: Unknown}]}", at + ".instanceTypes[0].class", `supported values: "Burstable", "Dedicated"`},
		"a class of no instance type":     {"{instanceTypes: [{types: [], class: Burstable}]}", at + ".instanceTypes[0].types", "should have at least 1 items"},
		"an instance type with a space":   {"{instanceTypes: [{types: ['m5 large'], class: Burstable}]}", at + ".instanceTypes[0].types[0]", "should match"},
		"an instance type twice":          {"{instanceTypes: [{types: [a, a], class: Burstable}]}", at + ".instanceTypes[0].types[1]", "Duplicate value"},
		"null for the block and alone":    {"null", "spec", "at least one policy block must be set"},
		"a key with a prefix of nonsense": {"{nodeLabel: {key: 'A_/b', burstable: [a]}}", at + ".nodeLabel.key", "should match"},
	} {
		t.Run(name, func(t *testing.T) {
			written := guardOf(t, "nonsense", map[string]string{v1alpha1.GuardedLabel: v1alpha1.GuardedValue}, "nodePools", c.block)
			err := dryRun.Create(t.Context(), written.DeepCopy())
			if !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), c.field+": ") || !strings.Contains(err.Error(), c.message) {
				t.Errorf("got %v; want %s to be invalid for %q", err, c.field, c.message)
			}
			text, err := written.MarshalJSON()
			must(t, err)
			var g v1alpha1.MeshGuard
			must(t, json.Unmarshal(text, &g))
			v1alpha1.SetDefaults(&g)
			if name == "no action" {
				return // files need not say what the default is
			}
			if errs := v1alpha1.Validate(&g); len(errs) == 0 {
				t.Error("files may say so")
			}
		})
	}
}

// What a guard leaves out is filled in with what the documentation says.
func TestNodeGuardDefaults(t *testing.T) {
	admin := clientFor(t, controlplane.Admin)
	written := guardOf(t, unique("defaults"), map[string]string{"nobody": "has"}, "nodePools", `
allowedRegions: [eu-north-1, norwayeast]
allowedZones: [eu-north-1a]
nodeLabel: {key: example.com.node-restriction.kubernetes.io/cpu, burstable: [shared], dedicated: ["", own]}
instanceTypes: [{types: ["vm-*"], class: Dedicated}]
maxStealPercent: 5`)
	create(t, admin, written)
	var g v1alpha1.MeshGuard
	must(t, admin.Get(t.Context(), client.ObjectKeyFromObject(written), &g))
	n := g.Spec.NodePools
	if n.Scope != v1alpha1.PlacementMesh || n.ControlPlane != v1alpha1.ControlPlaneGuard || n.Unknown != v1alpha1.UnknownAllow || n.Steering != v1alpha1.SteeringRequired || n.OnNoNode != v1alpha1.OnNoNodeReject ||
		len(n.ValidationActions) != 1 || n.ValidationActions[0] != v1alpha1.Deny {
		t.Errorf("defaults %+v", n)
	}
	inFile := v1alpha1.MeshGuard{Spec: v1alpha1.MeshGuardSpec{NodePools: &v1alpha1.NodePools{}}}
	v1alpha1.SetDefaults(&inFile)
	if f := inFile.Spec.NodePools; f.Scope != n.Scope || f.ControlPlane != n.ControlPlane || f.Unknown != n.Unknown || f.Steering != n.Steering || len(f.ValidationActions) != 1 {
		t.Errorf("defaults of files %+v", f)
	}
	if errs := v1alpha1.Validate(&g); len(errs) > 0 {
		t.Errorf("refused in files: %v", errs)
	}
}
