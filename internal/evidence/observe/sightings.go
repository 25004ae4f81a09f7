package observe

import (
	"bytes"
	"cmp"
	"context"
	"maps"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/runtime"

	"github.com/meshvakt/meshvakt/internal/evidence/canonical"
)

const (
	// ownHold is how long a change of Meshvakt's own waits for whoever has put the object back to say so: the watch may be
	// faster than the answers to the one who wrote, and those may take seconds where the API server has much to do. The
	// record says when the change was seen.
	ownHold = 5 * time.Second
	// maxSightings is how many changes of one object wait, and maxRepairs how many versions of it are remembered.
	maxSightings = 16
	maxRepairs   = 4
)

// sighting is an object as it was seen to become, nil where it was gone. All of them are told, in their order: what was
// changed and put back within a moment was changed all the same.
type sighting struct {
	object *ownObject
	found  time.Time
	at     time.Duration
}

// note is called with mu held.
func (w *own) note(key ownKey, o *ownObject) {
	if o == nil {
		delete(w.seen, key)
	} else {
		w.seen[key] = o
	}
	list := w.waiting[key]
	s := sighting{o, w.now(), w.since()}
	if n := len(list); n > 0 && (n == maxSightings || list[n-1].object.same(o)) {
		s.found, s.at = list[n-1].found, list[n-1].at
		list[n-1] = s
		return
	}
	w.waiting[key] = append(list, s)
}

// same reports whether nothing that counts has changed.
func (s *ownObject) same(o *ownObject) bool {
	if s == nil || o == nil {
		return s == o
	}
	return s.uid == o.uid && bytes.Equal(s.form, o.form)
}

// repaired notes that Meshvakt itself has put the object in place in that version.
func (w *own) repaired(key ownKey, version string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.repairs[key] = append(w.repairs[key], version)
	w.repairs[key] = w.repairs[key][max(len(w.repairs[key])-maxRepairs, 0):]
}

// settle takes what is seen for what is known, at the first snapshot.
func (w *own) settle() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.told = maps.Clone(w.seen)
	clear(w.waiting)
	clear(w.fresh)
}

// telling is one sighting that is to be told.
type telling struct {
	key             ownKey
	object          *ownObject
	found           time.Time
	fresh, repaired bool
}

// waits reports whether a sighting waits for the word of somebody who may have put the object back. Nobody does so with a
// guard, nor by deleting anything.
func (s *sighting) waits() bool { return s.object != nil && s.object.guard == nil }

// ripe are those for which nobody's word is to be waited for, or all of them.
func (w *own) ripe(all bool) []telling {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := w.since()
	var list []telling
	for _, key := range slices.SortedFunc(maps.Keys(w.waiting), func(a, b ownKey) int { return cmp.Or(cmp.Compare(a.gvk, b.gvk), cmp.Compare(a.name, b.name)) }) {
		var some []telling
		n := 0
		for i, s := range w.waiting[key] {
			t := telling{key: key, object: s.object, found: s.found, fresh: i == 0 && w.fresh[key]}
			t.repaired = s.object != nil && slices.Contains(w.repairs[key], s.object.version)
			if some = append(some, t); all || t.repaired || !s.waits() || now-s.at >= ownHold {
				n = i + 1
			}
		}
		list = append(list, some[:n]...)
	}
	return list
}

// done takes the oldest sighting of an object away, which was told.
func (w *own) done(t *telling) {
	w.mu.Lock()
	defer w.mu.Unlock()
	key := t.key
	delete(w.fresh, key)
	if t.repaired {
		w.repairs[key] = slices.DeleteFunc(w.repairs[key], func(v string) bool { return v == t.object.version })
	}
	if w.waiting[key] = w.waiting[key][1:]; len(w.waiting[key]) == 0 {
		delete(w.waiting, key)
	}
}

// beatHold is how long a beat waits for a change of Meshvakt's own: short enough that the beat is not late for it.
func (o *Observer) beatHold() time.Duration { return min(ownHold, o.config.Beat/2) }

// holding reports whether a change is not told yet.
func (w *own) holding() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.waiting) > 0
}

// tellOwn tells what has changed of Meshvakt's own.
func (o *Observer) tellOwn(ctx context.Context) error {
	w := o.own
	for _, t := range w.ripe(o.config.Since() >= o.nextBeat+o.beatHold()) {
		before := w.told[t.key]
		if !before.same(t.object) && (before != nil || !t.fresh) {
			weaker, err := o.weaker(before, t.object)
			if err != nil {
				return err
			}
			if err := o.write(ctx, changeOf(o.pseudonyms, before, &t, weaker, o.self(ctx, t.repaired))); err != nil {
				return err
			}
		}
		if t.object == nil {
			delete(w.told, t.key)
		} else {
			w.told[t.key] = t.object
		}
		w.done(&t)
	}
	return nil
}

// self is who Meshvakt itself is, empty where that is not known.
func (o *Observer) self(ctx context.Context, wanted bool) string {
	if !wanted || o.config.User == nil {
		return ""
	}
	user, err := o.config.User(ctx)
	if err != nil {
		o.config.Logger.WarnContext(ctx, "evidence: it is not known who Meshvakt is to the API server", "error", err)
		return ""
	}
	return user
}

// kindOf is the kind of an object that canonical.Reference takes, which a typed one may not say itself.
func (o *Observer) kindOf(object any, ref canonical.Ref) string {
	if typed, ok := object.(runtime.Object); ok && ref.GVK == "" {
		if kind, err := o.config.Client.GroupVersionKindFor(typed); err == nil {
			return canonical.GVK(kind.Group, kind.Version, kind.Kind)
		}
	}
	return ref.GVK
}
