package e2e

import (
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/test/controlplane"
)

// The schema refuses numbers that no proxy could have, in words that tell what to do.
func TestSidecarGuardNonsense(t *testing.T) {
	dryRun := client.NewDryRunClient(clientFor(t, controlplane.Admin))
	const at = "spec.sidecarResources"
	for name, c := range map[string]struct{ block, field, message string }{
		"CPU request over limit":       {"{requests: {cpu: 3}}", at, "requests.cpu must not be greater than limits.cpu"},
		"memory request over limit":    {"{requests: {memory: 2Gi}}", at, "requests.memory must not be greater than limits.memory"},
		"CPU limit under request":      {"{limits: {cpu: 50m}}", at, "requests.cpu must not be greater than limits.cpu"},
		"memory limit in other units":  {"{limits: {memory: 134217727}}", at, "requests.memory must not be greater than limits.memory"},
		"CPU minimum over request":     {"{minimum: {cpu: 200m}}", at, "minimum.cpu must not be greater than requests.cpu"},
		"memory minimum over request":  {"{minimum: {memory: 1Gi}}", at, "minimum.memory must not be greater than requests.memory"},
		"CPU maximum under limit":      {"{maximum: {cpu: 1}}", at, "limits.cpu must not be greater than maximum.cpu"},
		"memory maximum under limit":   {"{maximum: {memory: 512Mi}}", at, "limits.memory must not be greater than maximum.memory"},
		"CPU minimum over maximum":     {"{minimum: {cpu: 4}, maximum: {cpu: 3}}", at, "minimum.cpu must not be greater than requests.cpu"},
		"memory minimum over maximum":  {"{minimum: {memory: 4Gi}, maximum: {memory: 3Gi}}", at, "minimum.memory must not be greater than requests.memory"},
		"negative request":             {"{requests: {cpu: -1}}", at + ".requests.cpu", "must be a quantity greater than 0, such as 100m"},
		"negative text":                {"{requests: {memory: -1Mi}}", at + ".requests.memory", "must be a quantity greater than 0, such as 128Mi"},
		"limit of zero":                {"{limits: {cpu: 0}}", at + ".limits.cpu", "must be a quantity greater than 0, such as 2000m"},
		"limit of zero as text":        {`{limits: {memory: "0"}}`, at + ".limits.memory", "must be a quantity greater than 0, such as 1024Mi"},
		"minimum of zero":              {"{minimum: {cpu: 0}}", at + ".minimum.cpu", "must be a quantity greater than 0"},
		"maximum of zero":              {`{maximum: {memory: "0"}}`, at + ".maximum.memory", "must be a quantity greater than 0"},
		"lots":                         {"{limits: {memory: lots}}", at + ".limits.memory", "should match"},
		"no text":                      {`{limits: {memory: ""}}`, at + ".limits.memory", "should match"},
		"fraction":                     {"{limits: {cpu: 1.5}}", at + ".limits.cpu", "must be of type integer,string"},
		"endless":                      {"{limits: {memory: '100000000000000000000000000000000'}}", at + ".limits.memory", "may not be more than 32 bytes"},
		"Clamp without bounds":         {"{mode: Clamp}", at, "mode Clamp needs minimum or maximum"},
		"Exact with minimum":           {"{mode: Exact, minimum: {cpu: 10m}}", at, "mode Exact must be used without minimum and maximum"},
		"Exact with maximum":           {"{mode: Exact, maximum: {cpu: 4}}", at, "mode Exact must be used without minimum and maximum"},
		"empty minimum":                {"{minimum: {}}", at + ".minimum", "should have at least 1 properties"},
		"empty maximum":                {"{mode: Clamp, maximum: {}}", at + ".maximum", "should have at least 1 properties"},
		"no threads":                   {"{concurrency: 0}", at + ".concurrency", "should be greater than or equal to 1"},
		"too many threads":             {"{concurrency: 1025}", at + ".concurrency", "should be less than or equal to 1024"},
		"unknown mode":                 {"{mode: Guess}", at + ".mode", `supported values: "Fill", "Clamp", "Exact"`},
		"unknown treatment":            {"{qos: Keep}", at + ".qos", `supported values: "Preserve", "Allow"`},
		"no action":                    {"{validationActions: []}", at + ".validationActions", "should have at least 1 items"},
		"Deny and Warn":                {"{validationActions: [Deny, Warn]}", at + ".validationActions", "Deny and Warn must not be used together"},
		"null for the block and alone": {"null", "spec", "at least one policy block must be set"},
	} {
		t.Run(name, func(t *testing.T) {
			err := dryRun.Create(t.Context(), sidecarGuard(t, "nonsense", map[string]string{v1alpha1.GuardedLabel: v1alpha1.GuardedValue}, c.block))
			if !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), c.field+": ") || !strings.Contains(err.Error(), c.message) {
				t.Fatalf("got %v; want %s to be invalid for %q", err, c.field, c.message)
			}
			t.Log(err)
		})
	}
}

// What a guard leaves out is filled in with what the documentation says, and whole
// numbers are quantities too.
func TestSidecarGuardDefaults(t *testing.T) {
	admin := clientFor(t, controlplane.Admin)
	for name, c := range map[string]struct {
		block string
		mode  v1alpha1.ResourcesMode
		want  four
	}{
		"nothing":           {"{}", v1alpha1.ModeFill, four{"100m", "128Mi", "2", "1Gi"}},
		"null":              {"{requests: null, limits: {cpu: null}}", v1alpha1.ModeFill, four{"100m", "128Mi", "2", "1Gi"}},
		"a limit of memory": {"{limits: {memory: 2Gi}}", v1alpha1.ModeFill, four{"100m", "128Mi", "2", "2Gi"}},
		"a request of CPU":  {"{requests: {cpu: 250m}}", v1alpha1.ModeFill, four{"250m", "128Mi", "2", "1Gi"}},
		"whole numbers":     {"{requests: {cpu: 2}, limits: {cpu: 2, memory: 1073741824}}", v1alpha1.ModeFill, four{"2", "128Mi", "2", "1073741824"}},
		"other notations":   {"{limits: {memory: 2e9}, maximum: {memory: 2G}}", v1alpha1.ModeFill, four{"100m", "128Mi", "2", "2G"}},
		"bounds alike":      {"{mode: Clamp, minimum: {cpu: '0.1'}, maximum: {cpu: 2, memory: 1Gi}}", v1alpha1.ModeClamp, four{"100m", "128Mi", "2", "1Gi"}},
		"one number":        {"{mode: Exact, requests: {cpu: 1}, limits: {cpu: 1}}", v1alpha1.ModeExact, four{"1", "128Mi", "1", "1Gi"}},
	} {
		t.Run(name, func(t *testing.T) {
			written := sidecarGuard(t, unique("defaults"), map[string]string{"nobody": "has"}, c.block)
			create(t, admin, written)
			var g v1alpha1.MeshGuard
			must(t, admin.Get(t.Context(), client.ObjectKeyFromObject(written), &g))
			s := g.Spec.SidecarResources
			got := four{s.Requests.CPU.String(), s.Requests.Memory.String(), s.Limits.CPU.String(), s.Limits.Memory.String()}
			if got != c.want || s.Mode != c.mode {
				t.Errorf("%s in mode %s; want %s in mode %s", got, s.Mode, c.want, c.mode)
			}
			if len(s.ValidationActions) != 1 || s.ValidationActions[0] != v1alpha1.Deny || s.QoS != v1alpha1.QoSAllow {
				t.Errorf("validationActions %v, qos %q; want Deny, Allow", s.ValidationActions, s.QoS)
			}
		})
	}
}
