package observe

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/evidence/canonical"
	"github.com/meshvakt/meshvakt/internal/evidence/record"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// exceptions are the GuardExceptions as they were seen, and as they were told.
//
// Each shard tells anew, behind its first snapshot, those that are asked for or in force: whoever reads it needs no
// other. So does each start of the process, and each gap: the same may stand twice in a shard and then says the same
// twice, by the UID. What is told of one that was deleted while this replica did not run is told by the others; where
// none ran, it counts until the end that was told when it began.
type exceptions struct {
	rouse   func()
	handler toolscache.ResourceEventHandlerRegistration

	mu    sync.Mutex
	seen  map[types.UID]*v1alpha1.GuardException // guarded by mu; they belong to the cache
	dirty map[types.UID]bool                     // guarded by mu

	told map[types.UID]*toldException // of the goroutine of the Observer
}

// toldException is what the log knows of an exception.
type toldException struct {
	object  *v1alpha1.GuardException // as it was told last
	granted bool
	ended   bool
	until   time.Time
}

func newExceptions(rouse func()) *exceptions {
	return &exceptions{rouse: rouse, seen: map[types.UID]*v1alpha1.GuardException{}, dirty: map[types.UID]bool{}, told: map[types.UID]*toldException{}}
}

func (x *exceptions) watch(ctx context.Context, c cache.Cache) error {
	informer, err := c.GetInformer(ctx, &v1alpha1.GuardException{}, cache.BlockUntilSynced(false))
	if err != nil {
		return fmt.Errorf("watch GuardExceptions: %w", err)
	}
	note := func(o any, there bool) {
		if d, ok := o.(toolscache.DeletedFinalStateUnknown); ok {
			o = d.Obj
		}
		e, ok := o.(*v1alpha1.GuardException)
		if !ok {
			return
		}
		x.mu.Lock()
		if there {
			x.seen[e.UID] = e
		} else {
			delete(x.seen, e.UID)
		}
		x.dirty[e.UID] = true
		x.mu.Unlock()
		x.rouse()
	}
	x.handler, err = informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		AddFunc: func(o any) { note(o, true) }, DeleteFunc: func(o any) { note(o, false) },
		UpdateFunc: func(old, o any) {
			// One that was deleted and created anew between two lists comes as a change.
			if was, ok := old.(*v1alpha1.GuardException); ok {
				if e, ok := o.(*v1alpha1.GuardException); ok && e.UID != was.UID {
					note(was, false)
				}
			}
			note(o, true)
		},
	})
	if err != nil {
		return fmt.Errorf("watch GuardExceptions: %w", err)
	}
	return nil
}

func (x *exceptions) ready() bool { return x.handler.HasSynced() }

// again has all of them told anew. Of those that are no more, what was told stays until their end is told.
func (x *exceptions) again() {
	x.mu.Lock()
	defer x.mu.Unlock()
	for uid := range x.seen {
		delete(x.told, uid)
		x.dirty[uid] = true
	}
}

// due are the exceptions to look at: those of which something was seen, and those that were told and may have come to
// begin or to end without anybody doing anything.
func (x *exceptions) due() (uids []types.UID, seen map[types.UID]*v1alpha1.GuardException) {
	x.mu.Lock()
	defer x.mu.Unlock()
	all := maps.Clone(x.dirty)
	clear(x.dirty)
	for uid, t := range x.told {
		if !t.ended {
			all[uid] = true
		}
	}
	seen = make(map[types.UID]*v1alpha1.GuardException, len(all))
	for uid := range all {
		if e := x.seen[uid]; e != nil {
			seen[uid] = e
		}
	}
	return slices.Sorted(maps.Keys(all)), seen
}

// tellExceptions tells what has become of exceptions.
func (o *Observer) tellExceptions(ctx context.Context, now time.Time) error {
	uids, seen := o.exceptions.due()
	for i, uid := range uids {
		if err := o.tellException(ctx, uid, seen[uid], now); err != nil {
			o.exceptions.mu.Lock()
			for _, left := range uids[i:] {
				o.exceptions.dirty[left] = true
			}
			o.exceptions.mu.Unlock()
			return err
		}
	}
	return nil
}

// tellException tells of one, e, which is nil where it is no more.
func (o *Observer) tellException(ctx context.Context, uid types.UID, e *v1alpha1.GuardException, now time.Time) error {
	t := o.exceptions.told[uid]
	switch {
	case e == nil && t == nil:
		return nil
	case e == nil:
		if err := o.tellDeletion(ctx, t, now); err != nil {
			return err
		}
		delete(o.exceptions.told, uid)
		return nil
	}
	state, approval := o.stateOf(e, now)
	if t == nil && (state == v1alpha1.ExceptionExpired || state == v1alpha1.ExceptionRevoked) {
		return nil // over before anybody here could tell
	}
	if t == nil || !t.granted && t.object.Generation != e.Generation && terms(t.object) != terms(e) {
		if err := o.tellRequest(ctx, e, approval); err != nil {
			return err
		}
		t = &toldException{object: e, until: e.Spec.ExpiresAt.Time}
		o.exceptions.told[uid] = t
	}
	return o.tellCourse(ctx, t, e, state, now)
}

// tellCourse tells how it goes on with an exception that was told of.
func (o *Observer) tellCourse(ctx context.Context, t *toldException, e *v1alpha1.GuardException, state v1alpha1.ExceptionState, now time.Time) error {
	if t.ended {
		return nil
	}
	object, err := o.exceptionObject(e)
	if err != nil {
		return err
	}
	revoked := func(how string, until time.Time, ends bool) error {
		if err := o.writeException(ctx, e.UID, &record.ExceptionRevoked{Object: object, By: o.pseudonyms.Subject(""), How: how, Until: until}); err != nil {
			return err
		}
		t.object, t.until, t.ended = e, until, ends
		return nil
	}
	if until := e.Spec.ExpiresAt.Time; until.Before(t.until) && !e.Spec.Revoked {
		if err := revoked("shortened", until, false); err != nil {
			return err
		}
	}
	switch {
	case state == v1alpha1.ExceptionActive && !t.granted:
		granted := &record.ExceptionGranted{Object: object, By: o.pseudonyms.Subject(e.Spec.Approver), For: o.pseudonyms.Subject(e.Spec.Requester), Until: e.Spec.ExpiresAt.Time}
		if err := o.writeException(ctx, e.UID, granted); err != nil {
			return err
		}
		t.object, t.granted, t.until = e, true, e.Spec.ExpiresAt.Time
	case state == v1alpha1.ExceptionRevoked:
		return revoked("revoked", now, true)
	case state == v1alpha1.ExceptionExpired:
		return o.tellEnd(ctx, t)
	case t.granted && state != v1alpha1.ExceptionActive:
		// A guard that takes it no more. Should it take it again, it is granted again.
		if err := revoked("revoked", now, false); err != nil {
			return err
		}
		t.granted, t.until = false, e.Spec.ExpiresAt.Time
	}
	return nil
}

func (o *Observer) tellDeletion(ctx context.Context, t *toldException, now time.Time) error {
	switch {
	case t.ended:
		return nil
	case !now.Before(t.until):
		return o.tellEnd(ctx, t)
	}
	object, err := o.exceptionObject(t.object)
	if err != nil {
		return err
	}
	object.Digest = ""
	return o.writeException(ctx, t.object.UID, &record.ExceptionRevoked{Object: object, By: o.pseudonyms.Subject(""), How: "deleted", Until: now})
}

// tellEnd tells that one has come to its end. One that nobody approved has let nothing pass, and just ends.
func (o *Observer) tellEnd(ctx context.Context, t *toldException) error {
	object, err := o.exceptionObject(t.object)
	if err != nil {
		return err
	}
	if err := o.writeException(ctx, t.object.UID, &record.ExceptionExpired{Object: object, Until: t.until}); err != nil {
		return err
	}
	t.ended = true
	return nil
}

// writeException stores a record of one exception. One that has no place in the form of records, which the API server
// should have refused, must not keep all others from being told.
func (o *Observer) writeException(ctx context.Context, uid types.UID, body record.Body) error {
	err := o.write(ctx, body)
	var field *record.FieldError
	if errors.As(err, &field) {
		o.config.Logger.ErrorContext(ctx, "evidence: a GuardException cannot be recorded as it is", "uid", string(uid), "kind", string(body.Kind()), "error", err)
		return nil
	}
	return err
}

// stateOf is how an exception stands under the guards of its namespace, and whose approval they ask for.
func (o *Observer) stateOf(e *v1alpha1.GuardException, now time.Time) (state v1alpha1.ExceptionState, approval v1alpha1.Approval) {
	x, err := facts.NewException(e)
	if err != nil {
		return v1alpha1.ExceptionNotGranted, v1alpha1.ApprovalTwoPerson // which lets nothing pass
	}
	v, err := o.config.Source.View(e.Namespace)
	if err != nil || v.Namespace == nil {
		return x.Standing(nil, now), v1alpha1.ApprovalTwoPerson
	}
	var guards []*facts.Guard
	approval = v1alpha1.ApprovalTwoPerson
	for i := range v.Guards {
		g := &v.Guards[i]
		if !v.Selects(g, e.Namespace, v.Namespace.Labels) {
			continue
		}
		guards = append(guards, g)
		if g.Exceptions != nil && g.Exceptions.Approval == v1alpha1.ApprovalNone {
			approval = v1alpha1.ApprovalNone
		}
	}
	return x.Standing(guards, now), approval
}

// terms are what an exception is about, without who has agreed to it.
func terms(e *v1alpha1.GuardException) string {
	s := e.Spec
	s.Approved, s.Approver, s.Revoked = false, "", false
	text, err := json.Marshal(s)
	if err != nil {
		return err.Error() // of no type of ours
	}
	return string(text)
}

func (o *Observer) exceptionObject(e *v1alpha1.GuardException) (record.Object, error) {
	form, err := canonical.Of(e)
	if err != nil {
		return record.Object{}, err
	}
	ref := canonical.Reference(e)
	return record.Object{
		GVK: ref.GVK, Namespace: ref.Namespace, Name: o.pseudonyms.Object(ref.GVK, ref.Namespace, ref.Name),
		UID: ref.UID, Generation: ref.Generation, Digest: o.pseudonyms.Digest(form),
	}, nil
}

func (o *Observer) tellRequest(ctx context.Context, e *v1alpha1.GuardException, approval v1alpha1.Approval) error {
	object, err := o.exceptionObject(e)
	if err != nil {
		return err
	}
	selector, err := json.Marshal(e.Spec.ObjectSelector)
	if err != nil {
		return fmt.Errorf("read spec.objectSelector of GuardException %s/%s: %w", e.Namespace, e.Name, err)
	}
	rules := []string{}
	for _, p := range e.Spec.Policies {
		if len(p.Reasons) == 0 {
			rules = append(rules, p.Name)
		}
		for _, reason := range p.Reasons {
			rules = append(rules, p.Name+"/"+reason)
		}
	}
	slices.SortFunc(rules, cmp.Compare[string])
	rules = slices.Compact(rules)
	return o.writeException(ctx, e.UID, &record.ExceptionRequested{
		Object: object, By: o.pseudonyms.Subject(e.Spec.Requester), Rules: rules[:min(len(rules), 64)], RulesN: uint64(len(rules)),
		Selector: o.pseudonyms.Digest(selector), Approval: string(approval), Reason: e.Spec.Reason, Reference: e.Spec.Reference, Until: e.Spec.ExpiresAt.Time,
	})
}
