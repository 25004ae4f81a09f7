package observe

import (
	"fmt"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/evidence/record"
	"github.com/meshvakt/meshvakt/internal/objects"
)

// weakFor is a policy of the workloads of one app.
func weakFor(app, mode string) *objects.PeerAuthentication {
	p := policyOf("prod", app, mode)
	p.Spec.Selector = &objects.WorkloadSelector{MatchLabels: map[string]string{"app": app}}
	return p
}

// exceptionFor is one for the workloads of an app, all where it is empty.
func exceptionFor(name, app, policy string) *v1alpha1.GuardException {
	e := exceptionOf("prod", name)
	e.Spec.Policies = []v1alpha1.ExceptedPolicy{{Name: policy}}
	if app != "" {
		e.Spec.ObjectSelector = metav1.LabelSelector{MatchLabels: map[string]string{"app": app}}
	}
	return e
}

// TestExcuses: an exception is for what it selects, and for nothing else that is weak in the namespace.
func TestExcuses(t *testing.T) {
	legacy, all := exceptionFor("legacy", "legacy", "strict-mtls"), exceptionFor("all", "", "strict-mtls")
	for name, c := range map[string]struct {
		change []client.Object
		want   string
	}{
		"nothing is weak":                                 {[]client.Object{legacy}, "STRICT"},
		"what it selects is weak":                         {[]client.Object{legacy, weakFor("legacy", "PERMISSIVE")}, "STRICT; PERMISSIVE: legacy"},
		"something else is weak":                          {[]client.Object{legacy, weakFor("other", "PERMISSIVE")}, "PERMISSIVE"},
		"both are weak":                                   {[]client.Object{legacy, weakFor("legacy", "DISABLE"), weakFor("other", "PERMISSIVE")}, "PERMISSIVE; DISABLE: legacy"},
		"all of the namespace is weak":                    {[]client.Object{legacy, policyOf("prod", "default", "PERMISSIVE")}, "PERMISSIVE"},
		"all of it is, and an exception is for all of it": {[]client.Object{all, policyOf("prod", "default", "PERMISSIVE"), weakFor("legacy", "DISABLE")}, "STRICT; DISABLE: all"},
		"two exceptions": {[]client.Object{all, legacy, weakFor("legacy", "PERMISSIVE"), weakFor("other", "DISABLE")},
			"STRICT; DISABLE: all; PERMISSIVE: all legacy"},
		"an exception from something else": {[]client.Object{exceptionFor("x", "legacy", "mesh-membership"), weakFor("legacy", "PERMISSIVE")}, "PERMISSIVE"},
	} {
		t.Run(name, func(t *testing.T) {
			inCluster(t, func(t *testing.T, s *setting) {
				s.opened()
				for _, o := range c.change {
					s.set(o)
				}
				s.pass(time.Minute)
				row := replay(t, s.log.told())["prod"]
				text := row.Unexcused
				for _, e := range row.Excused {
					text += "; " + e.Mode + ": " + strings.ReplaceAll(strings.Join(e.Exceptions, " "), "u-prod-", "")
				}
				if text != c.want {
					t.Errorf("told %q; must be %q", text, c.want)
				}
			}, prod()...)
		})
	}
}

// TestExcusesThatChange: the row is told anew when there is an exception, and when there is none any more.
func TestExcusesThatChange(t *testing.T) {
	legacy := exceptionFor("legacy", "legacy", "strict-mtls")
	inCluster(t, func(t *testing.T, s *setting) {
		s.opened()
		n := len(s.log.told())
		s.set(legacy)
		s.pass(time.Minute)
		s.remove(legacy)
		s.pass(time.Minute)
		var got []string
		for _, st := range of[*record.State](s.since(n)) {
			got = append(got, fmt.Sprint(st.Row.Unexcused, len(st.Row.Excused)))
		}
		if want := "[STRICT1 PERMISSIVE0]"; fmt.Sprint(got) != want {
			t.Errorf("told %v; must be %s", got, want)
		}
	}, append(prod(), weakFor("legacy", "PERMISSIVE"))...)
}
