package policies

import (
	"slices"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// governance
//
// Rule: an exception ends, says who asked for it, and is approved by somebody else; a
// guard is weakened only by those who have the right to, and they say why.
//
// These are the rules that Meshvakt itself lives by. No guard turns them on or off, and
// no exception covers them. Who asks and who approves is taken from the user of the
// request and never from the object: what the object says must be that.
//
// Fields: the spec of a GuardException (see governance_exceptions.go), and the spec of a
// MeshGuard with the annotation meshvakt.io/change-reason (see governance_guards.go).
//
// Not judged: the status of both, by which nothing is decided; that an exception is
// deleted, which ends it; that a guard is created, which only adds demands.
//
// Source: segregation of duties, ISO/IEC 27001:2022 A.5.3; NIST SP 800-53 AC-5, CM-5.

// Governance is the policy governance.
func Governance() Policy {
	createUpdate := []admissionv1.Operation{admissionv1.Create, admissionv1.Update}
	exceptions := Match{
		Group: v1alpha1.Group, Resource: "guardexceptions", Versions: []string{v1alpha1.Version}, Kind: "GuardException",
		Operations: createUpdate, Scope: ScopeOwn,
	}
	return Policy{
		ID:        "governance",
		Title:     "Exceptions end and are approved by another person; guards are weakened only by those who may",
		Rationale: "A guard is worth what it takes to get around it: one who can grant themselves an exception, or quietly take a demand out of a guard, is not guarded at all.",
		Citations: []string{
			"ISO/IEC 27001:2022, A.5.3 Segregation of duties",
			"NIST SP 800-53 Rev. 5, AC-5 Separation of Duties and CM-5 Access Restrictions for Change",
		},
		Reasons: governanceReasons(),
		Matches: []Match{exceptions, {
			Group: v1alpha1.Group, Resource: "meshguards", Versions: []string{v1alpha1.Version}, Kind: "MeshGuard",
			Operations: []admissionv1.Operation{admissionv1.Update, admissionv1.Delete}, Scope: ScopeOwn,
		}},
		Actions: func(*facts.Guard) []v1alpha1.ValidationAction { return nil },
		Judge:   func(*facts.Review, *facts.Guard) ([]Finding, error) { return nil, nil },
		Own:     judgeGovernance,
		Mutation: &Mutation{
			Matches:  []Match{exceptions},
			Enforced: func(*facts.Guard) bool { return false },
			Own:      signException,
		},
	}
}

func judgeGovernance(r *facts.Review) ([]Finding, error) {
	switch r.Kind.Kind {
	case "GuardException":
		old, e, err := sides[v1alpha1.GuardException](r)
		if err != nil {
			return nil, err
		}
		return judgeException(r, old, e)
	case "MeshGuard":
		old, g, err := sides[v1alpha1.MeshGuard](r)
		if err != nil {
			return nil, err
		}
		return judgeGuard(r, old, g)
	}
	return nil, errWrongObject(r)
}

func refuse(reason Reason, field, message, remedy string) Finding {
	return Finding{Reason: reason, Firm: true, Type: metav1.CauseTypeForbidden, Field: field, Message: message, Remedy: remedy}
}

// signException writes down who asks and who approves.
func signException(r *facts.Review) ([]facts.Change, error) {
	old, e, err := sides[v1alpha1.GuardException](r)
	if err != nil {
		return nil, err
	}
	var changes []facts.Change
	set := func(field, have, want string) {
		if have != want {
			changes = append(changes, facts.Change{Path: []string{"spec", field}, Value: want})
		}
	}
	switch {
	case old == nil, !old.Spec.Approved && !sameTerms(&old.Spec, &e.Spec):
		set("requester", e.Spec.Requester, r.User.Username)
	case r.Approves():
		set("requester", e.Spec.Requester, old.Spec.Requester)
		set("approver", e.Spec.Approver, r.User.Username)
	default:
		// Whoever applies the manifest again that they once wrote, without the two.
		set("requester", e.Spec.Requester, old.Spec.Requester)
		set("approver", e.Spec.Approver, old.Spec.Approver)
	}
	return changes, nil
}

// sameTerms reports whether two specs let the same pass, for the same reason and as long.
func sameTerms(a, b *v1alpha1.GuardExceptionSpec) bool {
	return len(changedTerms(a, b)) == 0 && a.ExpiresAt.Equal(&b.ExpiresAt)
}

// changedTerms names the fields that differ, but for the end.
func changedTerms(a, b *v1alpha1.GuardExceptionSpec) []string {
	var names []string
	for _, f := range []struct {
		name string
		same bool
	}{
		{"objectSelector", metav1.FormatLabelSelector(&a.ObjectSelector) == metav1.FormatLabelSelector(&b.ObjectSelector)},
		{"policies", slices.EqualFunc(a.Policies, b.Policies, func(x, y v1alpha1.ExceptedPolicy) bool {
			return x.Name == y.Name && slices.Equal(x.Reasons, y.Reasons)
		})},
		{"reason", a.Reason == b.Reason},
		{"reference", a.Reference == b.Reference},
	} {
		if !f.same {
			names = append(names, f.name)
		}
	}
	return names
}

// instant is a moment as messages state it.
func instant(t time.Time) string { return t.UTC().Format(time.RFC3339) }
