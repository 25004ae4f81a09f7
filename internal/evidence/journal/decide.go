package journal

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/evidence/canonical"
	"github.com/meshvakt/meshvakt/internal/evidence/record"
	"github.com/meshvakt/meshvakt/policies"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// What Decided says of a request that has no record of its own.
const (
	Counted = "counted" // among others of its kind, once a minute
	Missing = "gap"     // none could be written; a gap will tell
)

// RefusedError says that a request is refused for want of a record. Its text is for the user.
type RefusedError struct {
	what  string
	glass []string // the groups that could do it nevertheless
	cause error
}

// Reason is the word for it, in messages, logs and documents.
const Reason = "EvidenceUnavailable"

func (e *RefusedError) Error() string {
	text := fmt.Sprintf("%s: %s needs a record in the evidence log of Meshvakt, and %s. Nothing is said against the request itself: "+
		"try again when the log is back, which whoever runs Meshvakt sees by meshvakt_evidence_available (docs/evidence.md).", Reason, e.what, whatFails(e.cause))
	if len(e.glass) > 0 {
		text += fmt.Sprintf(" In an emergency, members of %q may make the change without a record; that is counted.", e.glass)
	}
	return text
}
func (e *RefusedError) Unwrap() error { return e.cause }

// whatFails says it in the words of people who do not know the log.
func whatFails(err error) string {
	switch cause(err) {
	case "full":
		return "its volume is full"
	case "readOnly":
		return "its volume is read-only"
	case "slow":
		return "its volume does not answer in time"
	case "notOpen":
		return "it is not open yet"
	}
	return "its volume fails"
}

// Decided is told of a decision before it is answered, dry runs excepted. It returns where it is
// recorded, or that it is not; and a *RefusedError where the answer must be no for that reason. What
// is of no concern to any guard, and was asked about because the API server could not know, leaves
// nothing.
func (j *Journal) Decided(ctx context.Context, r *facts.Review, d policies.Decision, took time.Duration) (receipt string, refused error) {
	if d.Outcome != policies.Deny && len(d.Findings) == 0 && outside(r) {
		return "", nil
	}
	j.counts.in.Add(1)
	verdict := "allow"
	if d.Outcome == policies.Deny {
		verdict = "deny"
	}
	weight := weigh(r, d)
	if weight == ordinary && !j.config.Required {
		err := j.health()
		if err == nil {
			var guards string
			if guards, err = j.guards.of(r.Cluster.Guards); err == nil {
				j.admitted.add(groupOf(r, guards), j.config.Now())
				return Counted, nil
			}
		}
		j.miss(verdict, r.Kind, err)
		return Missing, nil
	}
	seen := j.observe(r, d, verdict, took)
	at, err := j.append(ctx, seen.build)
	if err == nil {
		j.counts.written.Add(1)
		return at.String(), nil
	}
	if verdict == "allow" {
		own := r.User.Username == j.ownUser()
		switch {
		case weight == control && (own || j.mayBreakGlass(r.User.Groups)):
			seen.brokeGlass = !own
			j.glass.keep(seen)
		case weight == control:
			j.miss("deny", r.Kind, err)
			return Missing, &RefusedError{subject(r), j.config.BreakGlass, err}
		case weight == grave || j.config.Required:
			j.miss("deny", r.Kind, err)
			return Missing, &RefusedError{subject(r), nil, err}
		}
	}
	j.miss(verdict, r.Kind, err)
	return Missing, nil
}

// Failed is told of a request that could not be judged, dry runs excepted.
func (j *Journal) Failed(ctx context.Context, r *facts.Review, took time.Duration) {
	j.counts.in.Add(1)
	if _, err := j.append(ctx, j.observe(r, policies.Decision{}, "error", took).build); err != nil {
		j.miss("error", r.Kind, err)
		return
	}
	j.counts.written.Add(1)
}

func (j *Journal) miss(verdict string, kind schema.GroupVersionKind, err error) {
	j.counts.unlogged.Add(1)
	now := j.config.Now()
	j.gap.note(verdict, gvk(kind), cause(err), !uncertain(err), 1, now, now)
}

func (j *Journal) mayBreakGlass(groups []string) bool {
	return slices.ContainsFunc(groups, func(g string) bool { return slices.Contains(j.config.BreakGlass, g) })
}

// weight is what hangs on the record of a decision.
type weight uint8

const (
	ordinary weight = iota // a workload that is let in, one of many
	single                 // has a record of its own, and goes on without one where there is none
	control                // a change of what decides; without a record by the break-glass groups alone
	grave                  // must not happen without a record
)

func weigh(r *facts.Review, d policies.Decision) weight {
	switch {
	case d.Outcome == policies.Deny:
		return single
	case d.RestsOnException():
		return grave
	}
	switch r.Kind.GroupKind() {
	case schema.GroupKind{Kind: "Node"}, schema.GroupKind{Kind: "PersistentVolume"}:
		return single
	case schema.GroupKind{Kind: "Namespace"}, schema.GroupKind{Kind: "ConfigMap"}:
		return control
	}
	if r.Kind.Group == v1alpha1.Group || r.Kind.Group == "istio.io" || strings.HasSuffix(r.Kind.Group, ".istio.io") {
		return control
	}
	return ordinary
}

// outside reports whether the request is about a namespace that no guard selects, before and after,
// and that is no root namespace of the mesh.
func outside(r *facts.Review) bool {
	c := &r.Cluster
	if ns, before := r.OldObject.(*corev1.Namespace); before && concerns(c, ns.Name, ns.Labels) {
		return false
	}
	if ns, after := r.Object.(*corev1.Namespace); after {
		return !concerns(c, ns.Name, ns.Labels)
	}
	if r.Kind.GroupKind() == (schema.GroupKind{Kind: "Namespace"}) {
		return true
	}
	ns := c.Namespaces[r.Namespace]
	switch {
	case r.Namespace == "", r.Kind.Group == v1alpha1.Group, r.Kind.Kind == "ConfigMap":
		return false
	case ns == nil: // of which nothing is known
		return false
	}
	return !concerns(c, ns.Name, ns.Labels)
}

func concerns(c *facts.Cluster, namespace string, labels map[string]string) bool {
	return c.Guarded(namespace, labels) || c.IsRoot(namespace)
}

// subject says to the user what is refused.
func subject(r *facts.Review) string {
	return fmt.Sprintf("%s of %s %q", r.Operation, r.Kind.Kind, r.DisplayName())
}

// observed is what a record says of a decision, before names become pseudonyms.
type observed struct {
	decision   record.Decision
	user       string
	groups     []string
	name       string
	object     []byte // canonical; nil where it is gone, or could not be read
	guards     string // canonical
	err        error  // why they have none
	brokeGlass bool
}

func (j *Journal) observe(r *facts.Review, d policies.Decision, verdict string, took time.Duration) *observed {
	o := &observed{user: r.User.Username, groups: r.User.Groups, name: r.Name}
	o.guards, o.err = j.guards.of(r.Cluster.Guards)
	o.decision = record.Decision{
		Request:     r.UID,
		Operation:   string(r.Operation),
		Subresource: r.SubResource,
		Object:      record.Object{GVK: gvk(r.Kind), Namespace: r.Namespace},
		Rules:       rules(d.Findings),
		RulesN:      uint64(len(d.Findings)),
		Verdict:     verdict,
		Micros:      uint64(max(took.Microseconds(), 0)),
	}
	if r.Kind.GroupKind() == (schema.GroupKind{Kind: "Namespace"}) {
		o.decision.Object.Namespace = r.Name
	}
	o.see(r)
	o.decision.Exceptions, o.decision.ExceptionsN = exceptions(d.Findings)
	return o
}

// see adds what is read of the object: of the new one, and of one that is deleted its identity alone.
func (o *observed) see(r *facts.Review) {
	object := r.Object
	if object == nil {
		object = r.OldObject
	}
	if object == nil { // it could not be decoded
		return
	}
	ref := canonical.Reference(object)
	o.decision.Object.UID, o.decision.Object.Generation = ref.UID, ref.Generation
	if r.Object == nil {
		return
	}
	var err error
	if o.object, err = canonical.Of(object); err != nil && o.err == nil {
		o.err = err
	}
}

func (o *observed) build(s *openShard) (record.Body, error) {
	b := o.decision // may be made more than once
	b.By = s.pseudonyms.Subject(o.user)
	groups := make([]string, 0, len(o.groups))
	for _, g := range o.groups {
		groups = append(groups, s.pseudonyms.Group(g))
	}
	b.Groups, b.GroupsN = listed(groups, 16)
	if o.name != "" {
		b.Object.Name = s.pseudonyms.Object(b.Object.GVK, b.Object.Namespace, o.name)
	}
	if o.object != nil {
		b.Object.Digest = s.pseudonyms.Digest(o.object)
	}
	b.Guards = s.pseudonyms.Digest([]byte(o.guards))
	b.BreakGlass = o.brokeGlass
	return &b, o.err
}

// rules counts findings by code and action.
func rules(findings []policies.Ruling) []record.Rule {
	counts := map[record.Rule]uint64{}
	for _, f := range findings {
		counts[record.Rule{Code: f.Reason.Code, Action: strings.ToLower(string(f.Action))}]++
	}
	list := make([]record.Rule, 0, len(counts))
	for rule, n := range counts {
		rule.N = n
		list = append(list, rule)
	}
	slices.SortFunc(list, func(a, b record.Rule) int {
		return cmp.Or(cmp.Compare(a.Code, b.Code), cmp.Compare(a.Action, b.Action))
	})
	return list[:min(len(list), 64)]
}

// exceptions are the UIDs of those that let something pass.
func exceptions(findings []policies.Ruling) (uids []string, n uint64) {
	seen := map[string]bool{}
	for _, f := range findings {
		if f.Exception == nil || seen[f.Exception.Key()] {
			continue
		}
		seen[f.Exception.Key()] = true
		if uid := f.Exception.UID; uid != "" {
			uids = append(uids, string(uid))
		}
	}
	uids, _ = listed(uids, 8)
	return uids, uint64(len(seen))
}

// listed is what a record lists of values, sorted and each once, and how many there are.
func listed(values []string, most int) ([]string, uint64) {
	slices.Sort(values)
	values = slices.Compact(values)
	return values[:min(len(values), most)], uint64(len(values))
}

func gvk(k schema.GroupVersionKind) string { return canonical.GVK(k.Group, k.Version, k.Kind) }
