package observe

import (
	"context"
	"sync"
	"time"

	"github.com/meshvakt/meshvakt/internal/evidence/canonical"
	"github.com/meshvakt/meshvakt/internal/evidence/record"
)

// What a Remedy is about.
const (
	Restored    = "restored"    // a policy, where a namespace had ceased to be STRICT
	Provisioned = "provisioned" // one that a namespace did not have yet
	Own         = "own"         // an object of Meshvakt's
)

// What has come of a Remedy.
const (
	Done    = "done"
	Failed  = "failed"  // it is tried again
	GivenUp = "givenUp" // Meshvakt may not, or cannot, and does not try
)

// Remedy is something that Meshvakt has put right, or could not.
type Remedy struct {
	What, Outcome string
	// Object is as it was stored, or as it was to be, of those that canonical.Of takes; where nothing was to be tried, the
	// namespace.
	Object any
	// After and Found are the bounds of its beginning, zero where they are not known; At is when it was tried.
	After, Found, At time.Time
}

// maxRemedies is how many wait for the log. Each request that was made is a decision too; what is left out here is why.
const maxRemedies = 64

// remedies are those that are to be told, and how often each object was tried since it was put right last.
type remedies struct {
	mu      sync.Mutex
	waiting []Remedy // guarded by mu

	tries map[string]uint64 // of the goroutine of the Observer; by UID or name
}

// Remedied takes a remedy, to be told. It may be called by anybody at any time, and does not block.
func (o *Observer) Remedied(r Remedy) {
	if r.What == Own && r.Outcome == Done {
		ref := canonical.Reference(r.Object)
		o.own.repaired(ownKey{o.kindOf(r.Object, ref), ref.Name}, ref.ResourceVersion)
	}
	o.remedies.mu.Lock()
	if len(o.remedies.waiting) < maxRemedies {
		o.remedies.waiting = append(o.remedies.waiting, r)
	}
	o.remedies.mu.Unlock()
	o.rouse()
}

func (o *Observer) tellRemedies(ctx context.Context) error {
	o.remedies.mu.Lock()
	waiting := o.remedies.waiting
	o.remedies.waiting = nil
	o.remedies.mu.Unlock()
	for i := range waiting {
		if err := o.tellRemedy(ctx, &waiting[i]); err != nil {
			o.remedies.mu.Lock()
			o.remedies.waiting = append(waiting[i:], o.remedies.waiting...)
			o.remedies.waiting = o.remedies.waiting[:min(len(o.remedies.waiting), maxRemedies)]
			o.remedies.mu.Unlock()
			return err
		}
	}
	return nil
}

func (o *Observer) tellRemedy(ctx context.Context, r *Remedy) error {
	form, err := canonical.Of(r.Object)
	if err != nil {
		return err
	}
	ref := canonical.Reference(r.Object)
	ref.GVK = o.kindOf(r.Object, ref)
	key := ref.GVK + " " + ref.Namespace + "/" + ref.Name
	if len(o.remedies.tries) > maxRemedies {
		clear(o.remedies.tries) // of objects that nobody tries any more
	}
	o.remedies.tries[key]++
	if n := o.remedies.tries[key]; r.Outcome == Failed && n&(n-1) != 0 {
		return nil // each that fails is tried again within moments; the number of tries is told with the next power of two
	}
	b := &record.Remediation{
		What: r.What, Outcome: r.Outcome, Tries: o.remedies.tries[key], After: r.After, Found: r.Found, Done: r.At,
		Object: record.Object{
			GVK: ref.GVK, Namespace: ref.Namespace, Name: o.pseudonyms.Object(ref.GVK, ref.Namespace, ref.Name),
			UID: ref.UID, Generation: ref.Generation, Digest: o.pseudonyms.Digest(form),
		},
	}
	if r.Outcome == GivenUp {
		b.Object.Digest = "" // nothing was to be stored
	}
	if b.Found.IsZero() {
		b.Found = r.At
	}
	if b.After.IsZero() {
		b.After = time.Unix(0, 0) // not known: whoever leads may have found it so
	}
	b.After, b.Found, b.Done = b.After.UTC(), b.Found.UTC(), b.Done.UTC()
	if err := o.write(ctx, b); err != nil {
		o.remedies.tries[key]--
		return err
	}
	if r.Outcome == Done {
		delete(o.remedies.tries, key)
	}
	return nil
}
