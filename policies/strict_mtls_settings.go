package policies

import (
	"fmt"

	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshvakt/meshvakt/policies/facts"
)

// judgeSettingsMTLS judges a change of a control plane's settings by what it would
// do: another root namespace, or selectors that hide namespaces from istiod, take
// PeerAuthentications out of force that nobody has touched.
func judgeSettingsMTLS(r *facts.Review, g *facts.Guard) ([]Finding, error) {
	s, err := newSettingsChange(r)
	if err != nil || s.planeBefore == nil {
		return nil, err
	}
	var lost []hole
	for _, name := range guardedNamespaces(&r.Cluster, g) {
		lost = append(lost, regressions(&s.before, &s.after, name)...)
	}
	var found []Finding
	for _, group := range groupHoles(lost) {
		verb, remedy := "changing", "leave rootNamespace and discoverySelectors as they were"
		switch r.Operation {
		case admissionv1.Create:
			verb, remedy = "creating", "give it the rootNamespace and discoverySelectors of the control planes that are there"
		case admissionv1.Delete:
			verb, remedy = "deleting", "keep the settings"
		}
		plane := group.holes[0].view.controlPlane
		found = append(found, Finding{
			Reason: reasonSettingsWeakenMTLS(),
			Firm:   true,
			Type:   metav1.CauseTypeForbidden,
			Field:  "data.mesh",
			Message: fmt.Sprintf("%s the settings of Istio revision %q, with root namespace %q, makes %s%s; must be STRICT",
				verb, plane.Revision, plane.RootNamespace, group.makes(), group.because(&s.after)),
			Remedy: remedy + ", or first " + group.remedy(&s.after),
		})
	}
	return atMost(found), nil
}
