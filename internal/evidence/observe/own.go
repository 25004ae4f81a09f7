package observe

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/evidence/canonical"
	"github.com/meshvakt/meshvakt/internal/evidence/record"
	"github.com/meshvakt/meshvakt/policies"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// The names of Meshvakt's own webhook configurations, and the label of its bindings.
const (
	validatingName = "meshvakt"
	mutatingName   = "before-istio.meshvakt.io"
	managedBy      = "app.kubernetes.io/managed-by"
	meshvakt       = "meshvakt"
)

// own is what Meshvakt itself is made of, as it was seen, and as it was told.
//
// What is seen first is told by the hooks of the next beat, and not as a change: a change while nobody was there shows
// in the digests of the beats before and after.
type own struct {
	rouse     func()
	failsOpen func(configuration, entry string) bool
	log       *slog.Logger
	kinds     []*follower
	guards    toolscache.ResourceEventHandlerRegistration

	now   func() time.Time
	since func() time.Duration

	mu      sync.Mutex
	seen    map[ownKey]*ownObject // guarded by mu
	waiting map[ownKey][]sighting // guarded by mu; what is to be told, oldest first
	repairs map[ownKey][]string   // guarded by mu; versions that Meshvakt has put in place, the latest
	met     map[ownKey]bool       // guarded by mu; in lists that are under way
	begun   map[*follower]bool    // guarded by mu; those that have seen all there is once
	fresh   map[ownKey]bool       // guarded by mu; seen in a first list, and not told of yet
	// needed is how many of kinds must have begun before anything is told.
	needed int

	told map[ownKey]*ownObject // of the goroutine of the Observer
}

type ownKey struct{ gvk, name string }

// ownObject is what is kept of an object: a few kilobytes, of a dozen objects.
type ownObject struct {
	key          ownKey
	uid, version string
	form         []byte
	hook         bool
	ignores      bool // less than all of it is refused where nobody answers
	entries      int
	// guard is set for a MeshGuard alone, and belongs to the cache.
	guard *v1alpha1.MeshGuard
}

// OwnObject names an object that Meshvakt is made of.
type OwnObject struct {
	Kind schema.GroupVersionKind
	Name string
}

func newOwn(c *Config, rouse func()) *own {
	w := &own{
		rouse: rouse, failsOpen: c.FailsOpen, log: c.Logger, now: c.Now, since: c.Since, seen: map[ownKey]*ownObject{}, waiting: map[ownKey][]sighting{},
		repairs: map[ownKey][]string{}, met: map[ownKey]bool{},
		begun: map[*follower]bool{}, fresh: map[ownKey]bool{}, told: map[ownKey]*ownObject{},
	}
	hook := func(kind string, list func() client.ObjectList, fields fields.Selector) {
		w.kinds = append(w.kinds, w.follow(c, canonical.GVK(admissionregistrationv1.GroupName, "v1", kind), kind, list, fields))
	}
	hook("ValidatingWebhookConfiguration", func() client.ObjectList { return &admissionregistrationv1.ValidatingWebhookConfigurationList{} }, named(validatingName))
	hook("MutatingWebhookConfiguration", func() client.ObjectList { return &admissionregistrationv1.MutatingWebhookConfigurationList{} }, named(mutatingName))
	hook("ValidatingAdmissionPolicyBinding", func() client.ObjectList { return &admissionregistrationv1.ValidatingAdmissionPolicyBindingList{} }, fields.Everything())
	w.needed = len(w.kinds)
	for _, o := range c.Own {
		w.kinds = append(w.kinds, w.follow(c, canonical.GVK(o.Kind.Group, o.Kind.Version, o.Kind.Kind), o.Kind.Kind+" "+o.Name, func() client.ObjectList {
			list := &unstructured.UnstructuredList{}
			list.SetGroupVersionKind(o.Kind.GroupVersion().WithKind(o.Kind.Kind + "List"))
			return list
		}, named(o.Name)))
	}
	return w
}

func named(name string) fields.Selector { return fields.OneTermEqualSelector("metadata.name", name) }

// follow watches the objects of a kind that a selector leaves.
func (w *own) follow(c *Config, gvk, what string, list func() client.ObjectList, selector fields.Selector) *follower {
	var mine []ownKey // of the goroutine of the follower
	f := &follower{client: c.Client, kind: what, list: list, fields: selector, log: c.Logger, now: c.Now}
	f.begin = func() { w.begin(mine) }
	f.set = func(o client.Object) {
		key := ownKey{gvk, o.GetName()}
		if !slices.Contains(mine, key) {
			mine = append(mine, key)
		}
		w.set(gvk, o)
	}
	f.gone = func(o client.Object) { w.remove(ownKey{gvk, o.GetName()}) }
	f.end = func() { w.end(f, mine) }
	return f
}

func (w *own) followers() []*follower { return w.kinds }

// watchGuards takes the MeshGuards from the cache, which has them anyway.
func (w *own) watchGuards(ctx context.Context, c cache.Cache) error {
	informer, err := c.GetInformer(ctx, &v1alpha1.MeshGuard{}, cache.BlockUntilSynced(false))
	if err != nil {
		return fmt.Errorf("watch MeshGuards: %w", err)
	}
	gvk := watched()["MeshGuard"]
	set := func(o any) {
		if g, ok := o.(*v1alpha1.MeshGuard); ok {
			w.set(gvk, g)
		}
	}
	w.guards, err = informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		AddFunc: set, UpdateFunc: func(_, o any) { set(o) },
		DeleteFunc: func(o any) {
			if d, ok := o.(toolscache.DeletedFinalStateUnknown); ok {
				o = d.Obj
			}
			if g, ok := o.(*v1alpha1.MeshGuard); ok {
				w.remove(ownKey{gvk, g.Name})
			}
		},
	})
	if err != nil {
		return fmt.Errorf("watch MeshGuards: %w", err)
	}
	return nil
}

// ready reports whether all that a beat needs has been seen once.
func (w *own) ready() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range w.kinds[:w.needed] {
		if !w.begun[f] {
			return false
		}
	}
	return w.guards.HasSynced()
}

func (w *own) begin(mine []ownKey) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, key := range mine {
		delete(w.met, key)
	}
}

// end takes what was not met for gone. What is seen in the first list is no change.
func (w *own) end(f *follower, mine []ownKey) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, key := range mine {
		if w.seen[key] != nil && !w.met[key] {
			w.note(key, nil)
		}
		if !w.begun[f] {
			w.fresh[key] = true
		}
	}
	w.begun[f] = true
	w.rouse()
}

func (w *own) set(gvk string, o client.Object) {
	if _, binding := o.(*admissionregistrationv1.ValidatingAdmissionPolicyBinding); binding && o.GetLabels()[managedBy] != meshvakt {
		// A binding of ours that has lost its label counts as changed to nothing.
		w.remove(ownKey{gvk, o.GetName()})
		return
	}
	form, err := canonical.Of(o)
	if err != nil {
		w.log.Error("evidence: an object of Meshvakt's own cannot be read", "kind", gvk, "name", o.GetName(), "error", err)
		return
	}
	key := ownKey{gvk, o.GetName()}
	seen := &ownObject{key: key, uid: string(o.GetUID()), version: o.GetResourceVersion(), form: form}
	seen.describe(o, w.failsOpen)
	w.mu.Lock()
	w.met[key] = true
	w.note(key, seen)
	w.mu.Unlock()
	w.rouse()
}

// describe reads what tells whether less is enforced.
func (s *ownObject) describe(o client.Object, failsOpen func(configuration, entry string) bool) {
	switch o := o.(type) {
	case *admissionregistrationv1.ValidatingWebhookConfiguration:
		s.hook, s.entries = true, len(o.Webhooks)
		for i := range o.Webhooks {
			s.entry(o.Name, o.Webhooks[i].Name, o.Webhooks[i].FailurePolicy, failsOpen)
		}
	case *admissionregistrationv1.MutatingWebhookConfiguration:
		s.hook, s.entries = true, len(o.Webhooks)
		for i := range o.Webhooks {
			s.entry(o.Name, o.Webhooks[i].Name, o.Webhooks[i].FailurePolicy, failsOpen)
		}
	case *admissionregistrationv1.ValidatingAdmissionPolicyBinding:
		s.hook, s.entries = true, 1
		s.ignores = !slices.Contains(o.Spec.ValidationActions, admissionregistrationv1.Deny)
	case *v1alpha1.MeshGuard:
		s.guard = o
	}
}

// entry notes one that lets pass what nobody answers, and is not meant to.
func (s *ownObject) entry(configuration, name string, p *admissionregistrationv1.FailurePolicyType, failsOpen func(configuration, entry string) bool) {
	s.ignores = s.ignores || p != nil && *p == admissionregistrationv1.Ignore && !failsOpen(configuration, name)
}

func (w *own) remove(key ownKey) {
	w.mu.Lock()
	_, known := w.seen[key]
	if known {
		w.note(key, nil)
	}
	w.mu.Unlock()
	if known {
		w.rouse()
	}
}

// hooks are those of a beat, as they were told: the webhook configurations, and as many bindings as there is room for.
func (w *own) hooks(p record.Pseudonymiser) []record.Hook {
	var list []record.Hook
	for _, s := range w.told {
		if !s.hook {
			continue
		}
		failure := "Fail"
		if s.ignores {
			failure = "Ignore"
		}
		list = append(list, record.Hook{GVK: s.key.gvk, Name: s.key.name, UID: s.uid, ResourceVersion: s.version, Digest: p.Digest(s.form), Failure: failure})
	}
	order := func(a, b record.Hook) int { return cmp.Or(cmp.Compare(a.GVK, b.GVK), cmp.Compare(a.Name, b.Name)) }
	binding := func(h record.Hook) int {
		if h.GVK == canonical.GVK(admissionregistrationv1.GroupName, "v1", "ValidatingAdmissionPolicyBinding") {
			return 1
		}
		return 0
	}
	slices.SortFunc(list, func(a, b record.Hook) int { return cmp.Or(cmp.Compare(binding(a), binding(b)), order(a, b)) })
	list = list[:min(len(list), maxHooks)]
	slices.SortFunc(list, order)
	return list
}

// weaker reports whether less is enforced than before.
func (o *Observer) weaker(before, after *ownObject) (bool, error) {
	switch {
	case before == nil:
		return false, nil
	case after == nil:
		return true, nil
	case before.guard == nil:
		return after.ignores && !before.ignores || after.entries < before.entries, nil
	}
	c, err := o.config.Source.Snapshot()
	if err != nil {
		// Whom a guard selects shows in the rows. What is left is told by the guards alone.
		c = facts.Cluster{Namespaces: map[string]*facts.Namespace{}}
	}
	n, err := policies.GuardWeakenings(&c, before.guard, after.guard)
	if err != nil {
		return false, fmt.Errorf("compare MeshGuard %q with what it was: %w", before.key.name, err)
	}
	return n > 0, nil
}

// changeOf is the record of a change. Who has made it, a watch does not say: where the API server asked, a decision does.
// What Meshvakt has put back itself is known by its version.
func changeOf(p record.Pseudonymiser, before *ownObject, t *telling, weaker bool, self string) *record.ConfigChanged {
	c := &record.ConfigChanged{What: "changed", Found: t.found.UTC(), By: p.Subject(""), Weaker: weaker}
	after := t.object
	of := after
	switch {
	case t.repaired:
		c.What, c.By = "repaired", p.Subject(self)
	case before == nil:
		c.What = "created"
	case after == nil:
		c.What, of = "deleted", before
	}
	c.GVK, c.Name, c.UID, c.ResourceVersion = of.key.gvk, of.key.name, of.uid, of.version
	if before != nil {
		c.Before = p.Digest(before.form)
	}
	if after != nil {
		c.After = p.Digest(after.form)
		if after.guard != nil {
			c.Reason, c.ReasonN = record.Excerpt(after.guard.Annotations[v1alpha1.ChangeReasonAnnotation])
		}
	}
	return c
}
