package controller

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/policies/facts"
)

// RemedyOutcome is what came of a Remedy.
type RemedyOutcome int

// The outcomes.
const (
	RemedyDone    RemedyOutcome = iota
	RemedyFailed                // it is tried again
	RemedyGivenUp               // nothing that Meshvakt may do would help
)

// Remedy is an attempt to have a namespace STRICT by a policy.
type Remedy struct {
	// Provisioned: the namespace had no policy yet. Otherwise it was STRICT, and had ceased to be.
	Provisioned bool
	Outcome     RemedyOutcome
	// Object is the policy as the API server has stored it; where it has not, as it was to be; the namespace where there
	// was none to try.
	Object client.Object
	// After and Found are the bounds within which it came to be so, zero where they are not known; At is when it was tried.
	After, Found, At time.Time
}

// RemedyLog is told of remedies. It must not block.
type RemedyLog interface {
	Remedied(r Remedy)
}

// remedied tells of an attempt about a policy, or a namespace.
func (r *Restorer) remedied(o client.Object, outcome RemedyOutcome) {
	if r.Remedies == nil {
		return
	}
	name := o.GetNamespace()
	if name == "" {
		name = o.GetName()
	}
	gap := r.Memory.gap(name)
	r.Remedies.Remedied(Remedy{Outcome: outcome, Object: o, After: gap.After, Found: gap.Found, At: r.Now()})
}

// provisioned tells of an attempt to give a namespace a policy.
func (p *Provisioner) provisioned(o client.Object, outcome RemedyOutcome, found time.Time) {
	if p.Remedies != nil {
		p.Remedies.Remedied(Remedy{Provisioned: true, Outcome: outcome, Object: o, Found: found, At: p.Now()})
	}
}

// asNamespace is a namespace as far as it is known here.
func asNamespace(ns *facts.Namespace) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns.Name, Labels: ns.Labels}}
}
