package preflight

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/policies"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// What a forecast lists is bounded, however large the cluster.
const (
	examplesAtMost = 3
	worstAtMost    = 10
)

// Forecast is what guards would say, if every object of the cluster were applied anew.
type Forecast struct {
	// Guards are those that were judged by, and Source where they come from.
	Guards []string `json:"guards"`
	Source string   `json:"source"`
	// Namespaces counts the namespaces.
	Namespaces NamespaceCounts `json:"namespaces"`
	// Kinds counts the objects that were judged.
	Kinds []KindCount `json:"kinds"`
	// Findings by policy, reason, kind and action, most objects first.
	Findings []FindingCount `json:"findings"`
	// Worst are the namespaces with most refusals.
	Worst []NamespaceCount `json:"worst"`
	// Notes tell what the forecast rests on that is not certain.
	Notes []string `json:"notes"`

	unread []unread
}

// unread is a kind that could not be read, or could not be judged.
type unread struct {
	class class // "" for what all judgements rest on
	err   error
}

// NamespaceCounts counts namespaces.
type NamespaceCounts struct {
	All       int `json:"all"`
	Guarded   int `json:"guarded"`
	NotStrict int `json:"notStrict"`
	// Refused is in how many something would be refused.
	Refused int `json:"refused"`
	// Open names the first of those that are not STRICT.
	Open []string `json:"open"`
}

// KindCount counts the objects of a kind by what would become of them.
type KindCount struct {
	Kind     string `json:"kind"`
	Judged   int    `json:"judged"`
	Refused  int    `json:"refused"`
	Warned   int    `json:"warned"`
	Excepted int    `json:"excepted"`
	// Outdated are those of the refused pods whose successors would be let in: they only
	// have to be replaced.
	Outdated int `json:"outdated,omitempty"`
}

// FindingCount counts the objects about which the same is found.
type FindingCount struct {
	Policy  string                    `json:"policy"`
	Code    string                    `json:"code"`
	Reason  string                    `json:"reason"`
	Kind    string                    `json:"kind"`
	Action  v1alpha1.ValidationAction `json:"action"`
	Objects int                       `json:"objects"`
	// Outdated are those of them that only have to be replaced.
	Outdated int       `json:"outdated,omitempty"`
	Examples []Example `json:"examples"`
}

// Example is one of the objects.
type Example struct {
	Object  string `json:"object"` // namespace/name
	Field   string `json:"field"`
	Message string `json:"message"`
	Remedy  string `json:"remedy"`
}

// NamespaceCount is how many objects of a namespace would be refused.
type NamespaceCount struct {
	Namespace string `json:"namespace"`
	Refused   int    `json:"refused"`
}

// Forecast returns what has been counted.
func (f *Forecaster) Forecast() *Forecast {
	out := &Forecast{
		Guards: []string{}, Source: f.source, Kinds: []KindCount{}, Findings: []FindingCount{}, Worst: []NamespaceCount{},
		Notes: append([]string{}, f.notes...), unread: f.unread,
	}
	c := f.state.Facts()
	for i := range c.Guards {
		out.Guards = append(out.Guards, c.Guards[i].Name)
	}
	out.Namespaces = namespaceCounts(c)
	out.Namespaces.Refused = len(f.refused)
	out.Namespaces.All = f.all // the state takes those of Kubernetes for granted
	for _, k := range sortedKeys(f.kinds) {
		out.Kinds = append(out.Kinds, *f.kinds[k])
	}
	for _, c := range f.findings {
		out.Findings = append(out.Findings, *c)
	}
	slices.SortFunc(out.Findings, func(a, b FindingCount) int {
		return cmp.Or(cmp.Compare(rank(a.Action), rank(b.Action)), cmp.Compare(b.Objects, a.Objects), cmp.Compare(a.Code, b.Code), cmp.Compare(a.Kind, b.Kind))
	})
	for ns, n := range f.refused {
		out.Worst = append(out.Worst, NamespaceCount{ns, n})
	}
	slices.SortFunc(out.Worst, func(a, b NamespaceCount) int {
		return cmp.Or(cmp.Compare(b.Refused, a.Refused), cmp.Compare(a.Namespace, b.Namespace))
	})
	if more := len(out.Worst) - worstAtMost; more > 0 {
		out.Worst = out.Worst[:worstAtMost]
		out.Notes = append(out.Notes, fmt.Sprintf("%s with refusals not listed", counted(more, "more namespace is", "more namespaces are")))
	}
	return out
}

func rank(a v1alpha1.ValidationAction) int {
	return slices.Index([]v1alpha1.ValidationAction{v1alpha1.Deny, v1alpha1.Warn, policies.Excepted, v1alpha1.Audit}, a)
}

func namespaceCounts(c *facts.Cluster) NamespaceCounts {
	counts := NamespaceCounts{Open: []string{}}
	for _, name := range sortedKeys(c.Namespaces) {
		ns := c.Namespaces[name]
		if ns.Terminating || !c.Guarded(name, ns.Labels) {
			continue
		}
		counts.Guarded++
		if !policies.Strict(c, name) {
			counts.NotStrict++
			if len(counts.Open) < worstAtMost {
				counts.Open = append(counts.Open, name)
			}
		}
	}
	return counts
}

// ErrNoControlPlane says that Istio is not there, or not where it was looked for.
var ErrNoControlPlane = errors.New("there is no control plane")

// ErrNoState says that the forecast could not be made.
var ErrNoState = errors.New("the state of the cluster could not be read")
