package e2e

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/policies/policytest"
	"github.com/meshvakt/meshvakt/test/controlplane"
)

// writings is what the users need to be refused by Meshvakt and not by RBAC: a developer
// who may write guards without the verb unguard, and exceptions without approve.
const writings = `
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: writing-guards}
rules:
- {apiGroups: [meshvakt.io], resources: [meshguards], verbs: [get, create, update, delete]}
- {apiGroups: [meshvakt.io], resources: [guardexceptions], verbs: [get, create, update, patch, delete]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: writing-guards}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: writing-guards}
subjects:
- {apiGroup: rbac.authorization.k8s.io, kind: User, name: developer}
- {apiGroup: rbac.authorization.k8s.io, kind: User, name: auditor}
`

// instants are moments as cases and messages state them.
func instants() *regexp.Regexp { return regexp.MustCompile(`20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ`) }

// shift moves what is to happen in a case from the time at which cases play to now.
func (p *playedCase) shift(c *policytest.Case) {
	p.late = time.Now().Truncate(time.Second).Sub(policytest.Now())
	ends := regexp.MustCompile(`(expiresAt: ["']?)(` + instants().String() + `)`)
	for _, file := range []*[]byte{&c.Object, &c.Cluster} {
		*file = ends.ReplaceAllFunc(*file, func(match []byte) []byte {
			parts := ends.FindSubmatch(match)
			at, _ := time.Parse(time.RFC3339, string(parts[2])) // matches the pattern
			return append(parts[1], at.Add(p.late).Format(time.RFC3339)...)
		})
	}
}

// asPlayed moves the moments in an answer back to when the case plays. What the API server
// does takes its time, and the cases speak of whole hours.
func (p *playedCase) asPlayed(text string) string {
	return instants().ReplaceAllStringFunc(text, func(s string) string {
		at, err := time.Parse(time.RFC3339, s)
		if err != nil {
			return s
		}
		return at.Add(-p.late).Round(time.Hour).Format(time.RFC3339)
	})
}

// ask brings an exception to where the case has it, by those whom it names.
func (y *corpusPlayer) ask(t *testing.T, o *unstructured.Unstructured) {
	t.Helper()
	e := &v1alpha1.GuardException{}
	must(t, runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, e))
	wanted := e.Spec
	requester, approver := clientFor(t, controlplane.User(wanted.Requester)), clientFor(t, controlplane.User(wanted.Approver))
	e.Spec.Approved, e.Spec.Approver, e.Spec.Revoked = false, "", false
	must(t, requester.Create(t.Context(), e))
	if inCommon(o) {
		t.Cleanup(func() {
			if err := requester.Delete(context.Background(), e); client.IgnoreNotFound(err) != nil {
				t.Error(err)
			}
		})
	}
	if wanted.Approved {
		must(t, approver.Patch(t.Context(), e, mergePatch(fmt.Sprintf(`{"spec":{"approved":true,"approver":%q}}`, wanted.Approver))))
	}
	if wanted.Revoked {
		must(t, requester.Patch(t.Context(), e, mergePatch(`{"spec":{"revoked":true}}`)))
	}
}

// exceptedWarnings are those of findings that exceptions let pass.
func (p *playedCase) exceptedWarnings() (warnings []string) {
	for i, f := range p.findings("Excepted") {
		namespace, name, _ := strings.Cut(p.exceptions()[i], "/")
		f.Remedy = ""
		warnings = append(warnings, "["+f.Reason.Code+"] let pass until "+p.end(namespace, name)+" by GuardException "+name+": "+f.Text())
	}
	return warnings
}

// exceptions are those that the findings name which they let pass.
func (p *playedCase) exceptions() (keys []string) {
	for _, f := range p.Want.Findings {
		if f.Exception != "" {
			keys = append(keys, f.Exception)
		}
	}
	return keys
}

// end is when an exception of the case ends, by the time of the case.
func (p *playedCase) end(namespace, name string) string {
	for _, o := range p.objects {
		if o.GetKind() == "GuardException" && o.GetNamespace() == namespace && o.GetName() == name {
			at, _, _ := unstructured.NestedString(o.Object, "spec", "expiresAt")
			return p.asPlayed(at)
		}
	}
	return "(no such exception)"
}

// excepted is the audit annotation of the answer.
func (p *playedCase) excepted() string {
	var list []string
	for i, f := range p.findings("Excepted") {
		list = append(list, f.Reason.Code+" by "+p.exceptions()[i])
	}
	return strings.Join(list, ",")
}
