package observe

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/evidence/record"
)

const (
	// useChanged is how soon it is told again how many objects stand by one exception, and useStands how soon that they
	// still do. What one lets in has decisions of its own.
	useChanged = time.Minute
	useStands  = time.Hour
)

// uses are how many objects stand by exceptions, as scans have found. Only a leader scans, so only a leader tells.
type uses struct {
	mu    sync.Mutex
	found map[types.UID]*use // guarded by mu
}

// use is of one exception. What is not told yet is from from to to.
type use struct {
	namespace string
	now, most uint64 // objects, in the last scan, and in that of the time not told which found the most
	from, to  time.Time
	scans     uint64                   // that have found some
	object    *v1alpha1.GuardException // as it was told last; it belongs to the cache

	told      bool
	toldN     uint64
	toldScans uint64
	toldAt    time.Duration
}

// Relied takes how many objects of a namespace stand by which exceptions, as a scan has found that read nothing older than
// at. It may be called by anybody at any time, and does not block.
func (o *Observer) Relied(namespace string, at time.Time, found map[types.UID]int) {
	u := &o.uses
	u.mu.Lock()
	for uid, n := range found {
		if n <= 0 {
			continue
		}
		if u.found[uid] == nil {
			u.found[uid] = &use{namespace: namespace}
		}
		u.found[uid].see(uint64(n), at)
	}
	for uid, was := range u.found {
		if was.namespace == namespace && found[uid] == 0 {
			was.now = 0
		}
	}
	u.mu.Unlock()
	o.rouse()
}

func (u *use) see(n uint64, at time.Time) {
	if u.now == 0 && !u.pending() {
		u.from, u.most = at, 0
	}
	u.now, u.most, u.to = n, max(u.most, n), at
	u.scans++
}

// pending reports whether a scan has found something that was not told.
func (u *use) pending() bool { return u.scans > u.toldScans }

// due reports whether it is time to tell.
func (u *use) due(mono time.Duration) bool {
	switch age := mono - u.toldAt; {
	case !u.pending():
		return false
	case !u.told, age >= useStands:
		return true
	default:
		return u.now != u.toldN && age >= useChanged
	}
}

// again has all of them told anew, in a shard that knows nothing of them.
func (u *uses) again() {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, x := range u.found {
		x.told, x.toldScans = false, 0
	}
}

// take returns copies of those that are due, and forgets those of which nothing is left to tell.
func (u *uses) take(mono time.Duration) map[types.UID]use {
	u.mu.Lock()
	defer u.mu.Unlock()
	due := map[types.UID]use{}
	for uid, x := range u.found {
		switch {
		case x.due(mono):
			due[uid] = *x
		case x.now == 0 && !x.pending():
			delete(u.found, uid)
		}
	}
	return due
}

// tellUses tells how many objects stand by exceptions.
func (o *Observer) tellUses(ctx context.Context) error {
	mono := o.config.Since()
	due := o.uses.take(mono)
	for _, uid := range slices.Sorted(maps.Keys(due)) {
		x := due[uid]
		if e := o.exceptions.known(uid); e != nil {
			x.object = e
		}
		if x.object == nil { // the scan has it from the same cache, so it is about to come, or has just gone
			if x.now == 0 {
				o.uses.forget(uid)
			}
			continue
		}
		object, err := o.exceptionObject(x.object)
		if err != nil {
			return err
		}
		if err := o.writeException(ctx, uid, &record.ExceptionUsed{Object: object, How: "standing", From: x.from.UTC(), To: x.to.UTC(), N: x.most}); err != nil {
			return err
		}
		o.uses.tell(uid, x, mono)
	}
	return nil
}

// tell notes that one was told as it was taken; a scan may have found more since.
func (u *uses) tell(uid types.UID, as use, mono time.Duration) {
	u.mu.Lock()
	defer u.mu.Unlock()
	x := u.found[uid]
	x.object, x.told, x.toldN, x.toldScans, x.toldAt = as.object, true, as.now, as.scans, mono
	x.from = as.to
	if !x.pending() {
		x.most = x.now
	}
}

func (u *uses) forget(uid types.UID) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.found, uid)
}

// known is an exception as it was seen, nil for one that is no more.
func (x *exceptions) known(uid types.UID) *v1alpha1.GuardException {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.seen[uid]
}
