// Package policies holds the rules of Meshvakt as pure functions: a request and
// the facts it meets go in, findings come out. There is no I/O, no client and
// no clock in here, so that an auditor can read the package in one sitting and
// the webhook, `meshvakt check` and the standing scan cannot disagree.
//
// All lists the policies. Evaluate runs them and turns findings into a
// Decision by the validation actions of the guards.
package policies

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// Policy is one named rule set. It is a value: everything in it but Judge is
// data, which is printed, tested, and turned into webhook rules.
type Policy struct {
	// ID names the policy for good, in kebab case: "strict-mtls".
	ID string
	// Title is the rule in one sentence.
	Title string
	// Rationale says what goes wrong without the rule.
	Rationale string
	// Citations are the sources of the rule.
	Citations []string
	// Reasons is the closed set of what the policy may find.
	Reasons []Reason
	// Matches are the requests the policy judges. The webhook registration and
	// the service account's rights are derived from them.
	Matches []Match

	// Actions returns what findings of this policy do under the guard, nil when
	// the guard does not enforce it.
	Actions func(*facts.Guard) []v1alpha1.ValidationAction

	// Judge returns what is wrong with the request under one guard. It is total
	// and deterministic. An error means that the facts do not suffice to
	// judge, never that the request is bad.
	Judge func(*facts.Review, *facts.Guard) ([]Finding, error)

	// Own, where it is not nil, returns what is wrong with the request whatever guards
	// there are: of the rules that Meshvakt itself lives by. Its breaches are refused
	// and no exception covers them. As for the rest it is like Judge.
	Own func(*facts.Review) ([]Finding, error)

	// Mutation is nil for a policy that only judges.
	Mutation *Mutation
}

// Mutation is how a policy changes objects before they are judged. It may fail to
// happen, for its webhook fails open; Judge does not rely on it.
type Mutation struct {
	// Matches are the requests whose objects are changed.
	Matches []Match
	// Enforced reports whether the guard wants the changes.
	Enforced func(*facts.Guard) bool
	// ControlPlane reports whether it wants them in the mesh root namespaces too, which
	// it need not select; nil: no guard does.
	ControlPlane func(*facts.Guard) bool
	// Changes returns what is to be changed under the guards, which are sorted by name.
	// It is total and deterministic, and has nothing to change in what it has changed.
	// An error is as with Judge.
	Changes func(*facts.Review, []*facts.Guard) ([]facts.Change, error)
	// Own are changes that are made whatever guards there are; nil where there are none.
	Own func(*facts.Review) ([]facts.Change, error)
}

// Reason is a kind of finding. Name is the metric label, log field, test key
// and anchor on the policy's page; Code stands in messages. Both are permanent.
type Reason struct {
	Name  string // "PolicyWeakensMTLS"
	Code  string // "MV103"
	Title string // what it means, one sentence
}

// Scope says which namespaces' objects a Match is about.
type Scope string

// The scopes of a Match.
const (
	// ScopeGuarded is objects in guarded namespaces.
	ScopeGuarded Scope = "Guarded"
	// ScopeGuardedAndRoot is objects in guarded and in mesh root namespaces.
	ScopeGuardedAndRoot Scope = "GuardedAndRoot"
	// ScopeNamespaces is namespaces that are, were, or become guarded, and the
	// mesh root namespaces.
	ScopeNamespaces Scope = "Namespaces"
	// ScopeGuardedAndControlPlane is objects in guarded namespaces, and in mesh root
	// namespaces for the guards that are about the mesh's own pods. Those are let pass
	// while Meshvakt does not answer: the mesh must come up without it.
	ScopeGuardedAndControlPlane Scope = "GuardedAndControlPlane"
	// ScopeNodes is nodes and what is tied to them, which are in no namespace. Nothing
	// of it is ever refused, nor waits for Meshvakt while that does not answer.
	ScopeNodes Scope = "Nodes"
	// ScopeOwn is objects of Meshvakt's API, wherever they are and whatever is guarded.
	ScopeOwn Scope = "Own"
	// ScopeIstioSettings is the ConfigMaps of istiod in its namespace: the settings
	// of control planes and injectors.
	ScopeIstioSettings Scope = "IstioSettings"
)

// Match is a kind of request that a policy judges.
type Match struct {
	Group, Resource string
	Versions        []string
	Kind            string
	Operations      []admissionv1.Operation
	// Subresources that change what the policy reads as well: the API server lets
	// labels be changed through "status" of namespaces and pods, for one.
	Subresources []string
	// OnlySubresource is the one that the match is about, instead of the resource.
	OnlySubresource string
	Scope           Scope
	// Names are those of the only objects that matter; empty: all do.
	Names []string
	// OnlyIfChanged are the CEL expressions, over object and oldObject, of which
	// at least one must differ for an UPDATE to matter; empty: every UPDATE does.
	OnlyIfChanged []string
}

// Severity tells a breach from a remark.
type Severity uint8

const (
	// Breach is what the guard's validation actions decide about.
	Breach Severity = iota
	// Notice is worth telling the user and never refuses the request.
	Notice
)

// Finding is one thing wrong with a request.
type Finding struct {
	Reason   Reason
	Severity Severity
	// Firm: no exception covers it, for it is about more than objects of the exception's
	// namespace.
	Firm bool
	// Type classifies the breach as the API does for field errors.
	Type metav1.CauseType
	// Field is the path in the object of the request.
	Field string
	// Message says what was found, with the value quoted, and what must be. It
	// neither repeats the field nor ends in a full stop.
	Message string
	// Remedy is the cheapest way out.
	Remedy string
}

// Text is the finding as people read it on one line.
func (f *Finding) Text() string {
	var b strings.Builder
	if f.Field != "" {
		b.WriteString(f.Field)
		b.WriteString(": ")
	}
	b.WriteString(f.Message)
	b.WriteString(" [")
	b.WriteString(f.Reason.Code)
	b.WriteString("]")
	if f.Remedy != "" {
		b.WriteString("; ")
		b.WriteString(f.Remedy)
	}
	return b.String()
}

// Namespaced reports whether the objects are in namespaces.
func (m *Match) Namespaced() bool {
	return m.Scope != ScopeNamespaces && m.Scope != ScopeNodes && m.Resource != "meshguards"
}

// Covers reports whether the match is about the resource itself, for "", or the
// subresource.
func (m *Match) Covers(subresource string) bool {
	return subresource == m.OnlySubresource || slices.Contains(m.Subresources, subresource)
}

// All returns every policy, sorted by ID.
func All() []Policy {
	return []Policy{
		Governance(),
		MeshMembership(),
		NodePools(),
		SidecarResources(),
		StrictMTLS(),
	}
}

// Check reports what is wrong with a list of policies: doubled or malformed
// IDs, names and codes, missing texts, wrong order.
func Check(list []Policy) error {
	var errs []error
	seen := map[string]string{}
	once := func(what, value, owner string) {
		if value == "" {
			errs = append(errs, fmt.Errorf("policy %s: empty %s", owner, what))
		} else if other, ok := seen[what+value]; ok {
			errs = append(errs, fmt.Errorf("policy %s: %s %q is taken by %s", owner, what, value, other))
		}
		seen[what+value] = owner
	}
	for i := range list {
		p := &list[i]
		once("ID", p.ID, p.ID)
		if p.Title == "" || p.Rationale == "" || len(p.Citations) == 0 || len(p.Matches) == 0 || p.Judge == nil || p.Actions == nil ||
			p.Mutation != nil && (len(p.Mutation.Matches) == 0 || p.Mutation.Enforced == nil || p.Mutation.Changes == nil && p.Mutation.Own == nil) {
			errs = append(errs, fmt.Errorf("policy %s: incomplete", p.ID))
		}
		for _, r := range p.Reasons {
			once("reason", r.Name, p.ID)
			once("code", r.Code, p.ID)
			once("reason title", r.Title, p.ID)
		}
	}
	if !slices.IsSortedFunc(list, func(a, b Policy) int { return strings.Compare(a.ID, b.ID) }) {
		errs = append(errs, errors.New("policies are not sorted by ID"))
	}
	return errors.Join(errs...)
}
