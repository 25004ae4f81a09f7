package policies

import (
	"cmp"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// Outcome is what a decision comes to.
type Outcome string

// The outcomes, from mildest to hardest.
const (
	Allow Outcome = "Allow"
	Warn  Outcome = "Warn"
	Deny  Outcome = "Deny"
)

// Decision is the answer to one request.
type Decision struct {
	Outcome Outcome
	// Judged are the IDs of the policies that some guard enforces and that looked
	// at the request; empty when it is no policy's business, which is not the same
	// as a pass.
	Judged []string
	// Findings, hardest action first, then by policy, field and code.
	Findings []Ruling
}

// Ruling is a finding together with who made it and what it does.
type Ruling struct {
	Finding
	Policy string
	// Guards are the guards under which the finding was made with this action; none
	// for what no guard has a say in.
	Guards []string
	Action v1alpha1.ValidationAction
	// Exception is the one that lets the finding pass, where Action is Excepted.
	Exception *facts.Exception
}

// Excepted is the action of a finding that an exception lets pass. Users and audit are
// told of it.
const Excepted v1alpha1.ValidationAction = "Excepted"

// RestsOnException reports whether an exception lets pass what the request breaks.
func (d *Decision) RestsOnException() bool {
	return slices.ContainsFunc(d.Findings, func(r Ruling) bool { return r.Exception != nil })
}

// ErrPanic marks a policy that panicked; it is our own fault and the request
// has not been judged.
var ErrPanic = errors.New("policy panicked")

// judges reports whether the policy judges requests of this kind.
func (p *Policy) judges(r *facts.Review) bool { return matches(p.Matches, r) }

func matches(list []Match, r *facts.Review) bool {
	return slices.ContainsFunc(list, func(m Match) bool {
		return m.Kind == r.Kind.Kind && m.Group == r.Kind.Group && m.Covers(r.SubResource) && slices.Contains(m.Operations, r.Operation) &&
			(len(m.Names) == 0 || slices.Contains(m.Names, r.Name)) &&
			(m.Scope != ScopeIstioSettings || !otherConfigMap(r))
	})
}

// Evaluate judges the request by every policy under every guard. It returns an
// error, and no decision, when any policy could not be evaluated.
func Evaluate(list []Policy, r *facts.Review) (Decision, error) {
	d := Decision{Outcome: Allow}
	for i := range list {
		p := &list[i]
		if !p.judges(r) {
			continue
		}
		judged := p.Own != nil
		if judged {
			found, err := judge(p.Own, r)
			if err != nil {
				return Decision{}, fmt.Errorf("evaluate policy %s: %w", p.ID, err)
			}
			for _, f := range found {
				d.Findings = append(d.Findings, Ruling{Finding: f, Policy: p.ID, Action: actionsFor(f.Severity, []v1alpha1.ValidationAction{v1alpha1.Deny})[0]})
			}
		}
		for j := range r.Cluster.Guards {
			g := &r.Cluster.Guards[j]
			actions := p.Actions(g)
			if len(actions) == 0 {
				continue
			}
			found, err := judge(func(r *facts.Review) ([]Finding, error) { return p.Judge(r, g) }, r)
			if err != nil {
				return Decision{}, fmt.Errorf("evaluate policy %s under MeshGuard %q: %w", p.ID, g.Name, err)
			}
			judged = true
			for _, f := range found {
				if e := excepting(r, g, p.ID, &f); e != nil {
					d.add(g.Name, Ruling{Finding: f, Policy: p.ID, Action: Excepted, Exception: e})
					continue
				}
				for _, a := range actionsFor(f.Severity, actions) {
					d.add(g.Name, Ruling{Finding: f, Policy: p.ID, Action: a})
				}
			}
		}
		if judged {
			d.Judged = append(d.Judged, p.ID)
		}
	}
	d.finish()
	return d, nil
}

// excepting returns the exception that lets a breach pass under the guard.
func excepting(r *facts.Review, g *facts.Guard, policy string, f *Finding) *facts.Exception {
	if f.Severity != Breach || f.Firm {
		return nil
	}
	return r.Excepting(g, policy, f.Reason.Name)
}

func judge(by func(*facts.Review) ([]Finding, error), r *facts.Review) (found []Finding, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("%w: %v\n%s", ErrPanic, v, debug.Stack())
		}
	}()
	return by(r)
}

// actionsFor softens Deny to Warn for what never refuses a request.
func actionsFor(s Severity, actions []v1alpha1.ValidationAction) []v1alpha1.ValidationAction {
	if s == Breach {
		return actions
	}
	soft := make([]v1alpha1.ValidationAction, 0, len(actions))
	for _, a := range actions {
		if a == v1alpha1.Deny {
			a = v1alpha1.Warn
		}
		soft = append(soft, a)
	}
	return soft
}

func (d *Decision) add(guard string, r Ruling) {
	for i := range d.Findings {
		if o := &d.Findings[i]; o.Policy == r.Policy && o.Finding == r.Finding && o.Action == r.Action && o.Exception == r.Exception {
			o.Guards = append(o.Guards, guard)
			return
		}
	}
	r.Guards = []string{guard}
	d.Findings = append(d.Findings, r)
}

func (d *Decision) finish() {
	slices.Sort(d.Judged)
	slices.SortStableFunc(d.Findings, func(a, b Ruling) int {
		return cmp.Or(
			cmp.Compare(hardness(b.Action), hardness(a.Action)),
			cmp.Compare(a.Policy, b.Policy),
			cmp.Compare(a.Field, b.Field),
			cmp.Compare(a.Reason.Code, b.Reason.Code),
			cmp.Compare(a.Message, b.Message),
		)
	})
	for i := range d.Findings {
		slices.Sort(d.Findings[i].Guards)
	}
	if len(d.Findings) == 0 {
		return
	}
	switch d.Findings[0].Action {
	case v1alpha1.Deny:
		d.Outcome = Deny
	case v1alpha1.Warn, Excepted:
		d.Outcome = Warn
	case v1alpha1.Audit:
		d.Outcome = Allow
	}
}

func hardness(a v1alpha1.ValidationAction) int {
	switch a {
	case v1alpha1.Deny:
		return 3
	case v1alpha1.Warn:
		return 2
	case Excepted:
		return 1
	default:
		return 0
	}
}
