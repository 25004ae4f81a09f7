package policies

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/policies/facts"
)

func restoredState(t *testing.T, edit func(*v1alpha1.MeshGuard), exceptions []*v1alpha1.GuardException, list ...*mesh.PeerAuthentication) *facts.Cluster {
	t.Helper()
	object := v1alpha1.DefaultGuard()
	object.Spec.Remediation = v1alpha1.RemediationRestore
	object.Spec.Exceptions = &v1alpha1.Exceptions{MaxDuration: metav1.Duration{Duration: 720 * time.Hour}, Approval: v1alpha1.ApprovalNone}
	if edit != nil {
		edit(object)
	}
	g, err := facts.NewGuard(object)
	if err != nil {
		t.Fatal(err)
	}
	c := &facts.Cluster{ControlPlanes: []mesh.ControlPlane{mesh.DefaultControlPlane()}, Guards: []facts.Guard{g}, Namespaces: map[string]*facts.Namespace{
		"prod":         {Name: "prod", Labels: map[string]string{corev1.LabelMetadataName: "prod", v1alpha1.GuardedLabel: v1alpha1.GuardedValue}},
		"istio-system": {Name: "istio-system", Labels: map[string]string{corev1.LabelMetadataName: "istio-system"}},
	}}
	for _, e := range exceptions {
		x, err := facts.NewException(e)
		if err != nil {
			t.Fatal(err)
		}
		c.Namespaces["prod"].Exceptions = append(c.Namespaces["prod"].Exceptions, x)
	}
	for i, p := range list {
		if p.Created.IsZero() {
			p.Created = time.Unix(1_000+int64(i), 0)
		}
		c.Namespaces[p.Namespace].PeerAuthentications = append(c.Namespaces[p.Namespace].PeerAuthentications, p)
	}
	return c
}

func TestRepairs(t *testing.T) {
	now := time.Unix(2_000_000_000, 0)
	excepts := func(selector map[string]string, reasons ...string) []*v1alpha1.GuardException {
		return []*v1alpha1.GuardException{{
			ObjectMeta: metav1.ObjectMeta{Namespace: "prod", Name: "x", CreationTimestamp: metav1.Time{Time: now}},
			Spec: v1alpha1.GuardExceptionSpec{
				Policies:  []v1alpha1.ExceptedPolicy{{Name: "strict-mtls", Reasons: reasons}},
				ExpiresAt: metav1.Time{Time: now.Add(time.Hour)}, ObjectSelector: metav1.LabelSelector{MatchLabels: selector},
			},
		}}
	}
	web := map[string]string{"app": "web"}
	policy := func(name string, mode mesh.Mode) *mesh.PeerAuthentication {
		return &mesh.PeerAuthentication{Namespace: "prod", Name: name, Mode: mode}
	}
	of := func(name string, mode mesh.Mode, ports map[uint32]mesh.Mode) *mesh.PeerAuthentication {
		return &mesh.PeerAuthentication{Namespace: "prod", Name: name, Mode: mode, SelectorSet: true, Selector: web, Ports: ports}
	}
	wide := func(mode mesh.Mode, selector map[string]string) *mesh.PeerAuthentication {
		return &mesh.PeerAuthentication{Namespace: "istio-system", Name: "default", Mode: mode, SelectorSet: selector != nil, Selector: selector}
	}
	terminating := policy("default", mesh.ModeStrict)
	terminating.Terminating = true
	for name, c := range map[string]struct {
		edit       func(*v1alpha1.MeshGuard)
		exceptions []*v1alpha1.GuardException
		list       []*mesh.PeerAuthentication
		want       string // "create NAME" or "NAME MODE ports"
	}{
		"nothing is missing":                        {list: []*mesh.PeerAuthentication{policy("default", mesh.ModeStrict)}},
		"the policy is gone":                        {want: "create default STRICT map[]"},
		"that of the mesh is gone":                  {list: []*mesh.PeerAuthentication{of("web", mesh.ModeStrict, nil)}, want: "create default STRICT map[]"},
		"a younger STRICT one makes up for nothing": {list: []*mesh.PeerAuthentication{policy("old", mesh.ModePermissive), policy("new", mesh.ModeStrict)}, want: "old STRICT map[]"},
		"the one that is there is PERMISSIVE":       {list: []*mesh.PeerAuthentication{policy("default", mesh.ModePermissive)}, want: "default STRICT map[]"},
		"it leaves to the mesh what is not STRICT":  {list: []*mesh.PeerAuthentication{policy("default", mesh.ModeUnset), wide(mesh.ModePermissive, nil)}, want: "default STRICT map[]"},
		"one of some pods is PERMISSIVE":            {list: []*mesh.PeerAuthentication{policy("default", mesh.ModeStrict), of("web", mesh.ModePermissive, nil)}, want: "web STRICT map[]"},
		"a port of some pods is":                    {list: []*mesh.PeerAuthentication{policy("default", mesh.ModeStrict), of("web", mesh.ModeStrict, map[uint32]mesh.Mode{80: mesh.ModeDisable, 81: mesh.ModeStrict})}, want: "web STRICT map[80:STRICT 81:STRICT]"},
		"several are":                               {list: []*mesh.PeerAuthentication{of("web", mesh.ModePermissive, map[uint32]mesh.Mode{80: mesh.ModeDisable})}, want: "create default STRICT map[]; web STRICT map[80:STRICT]"},
		"the name is taken":                         {list: []*mesh.PeerAuthentication{{Namespace: "prod", Name: "default", Mode: mesh.ModeStrict, SelectorSet: true, Selector: web}}, want: "create meshvakt STRICT map[]"},
		"the policy is about to go":                 {list: []*mesh.PeerAuthentication{terminating}, want: "create meshvakt STRICT map[]"},
		"an exception is for the namespace":         {exceptions: excepts(nil), list: []*mesh.PeerAuthentication{policy("default", mesh.ModePermissive)}},
		"an exception is for the deletion":          {exceptions: excepts(nil, "PolicyWeakensMTLS")},
		"an exception is for other pods":            {exceptions: excepts(web), want: "create default STRICT map[]"},
		"an exception is for these pods":            {exceptions: excepts(web), list: []*mesh.PeerAuthentication{policy("default", mesh.ModeStrict), of("web", mesh.ModePermissive, nil)}},
		"a guard that warns": {edit: func(g *v1alpha1.MeshGuard) {
			g.Spec.StrictMTLS.ValidationActions = []v1alpha1.ValidationAction{v1alpha1.Warn}
		}},
		"a guard that leaves it to people": {edit: func(g *v1alpha1.MeshGuard) { g.Spec.Remediation = v1alpha1.RemediationNone }},
	} {
		t.Run(name, func(t *testing.T) {
			s := restoredState(t, c.edit, c.exceptions, c.list...)
			repairs, obstacle := Repairs(s, "prod", now)
			var got []string
			for _, r := range repairs {
				verb := ""
				if r.Old == nil {
					verb = "create "
				}
				got = append(got, fmt.Sprintf("%s%s %s %v", verb, r.New.Name, r.New.Mode, r.New.Ports))
				s = withPolicy(s, r.Old, r.New)
			}
			slices.Sort(got)
			if text := strings.Join(got, "; "); text != c.want || obstacle != "" {
				t.Errorf("got %q, obstacle %q; want %q", text, obstacle, c.want)
			}
			if open := Open(s, "prod", now, true); open != "" {
				t.Errorf("afterwards %s", open)
			}
		})
	}
}

func TestRepairsOfRootNamespace(t *testing.T) {
	c := restoredState(t, nil, nil)
	c.Namespaces["istio-system"].Labels[v1alpha1.GuardedLabel] = v1alpha1.GuardedValue
	if list, obstacle := Repairs(c, "istio-system", time.Now()); len(list) > 0 || obstacle == "" {
		t.Errorf("%v, %q", list, obstacle)
	}
}

func TestDemanded(t *testing.T) {
	c := restoredState(t, nil, nil)
	for name, want := range map[string][2]bool{"prod": {true, true}, "istio-system": {false, false}, "none": {false, false}} {
		if demanded, restored := Demanded(c, name); [2]bool{demanded, restored} != want {
			t.Errorf("%s: %t, %t", name, demanded, restored)
		}
	}
	warns := restoredState(t, func(g *v1alpha1.MeshGuard) {
		g.Spec.StrictMTLS.ValidationActions = []v1alpha1.ValidationAction{v1alpha1.Audit}
	}, nil)
	if demanded, restored := Demanded(warns, "prod"); !demanded || restored {
		t.Errorf("a guard that audits: %t, %t", demanded, restored)
	}
	if Open(warns, "prod", time.Now(), false) == "" || Open(warns, "prod", time.Now(), true) != "" {
		t.Error("a guard that audits has a gap and nothing restored")
	}
}
