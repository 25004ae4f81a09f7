package scan

import (
	"cmp"
	"slices"
	"sync"
	"time"
)

// WorstAtMost bounds the namespaces that are named as the worst.
const WorstAtMost = 10

// soon is what counts as about to expire.
const soon = 24 * time.Hour

// Ledger keeps how every namespace stands, in some hundred bytes each. It is safe for
// concurrent use.
type Ledger struct {
	mu         sync.Mutex
	namespaces map[string]*Standing // guarded by mu
	scanned    time.Time            // guarded by mu; when the last whole pass ended
	took       time.Duration        // guarded by mu
	failing    error                // guarded by mu; why passes fail, nil when the last did not
	listeners  []func(guard string) // guarded by mu
}

// NewLedger returns a Ledger that knows nothing.
func NewLedger() *Ledger { return &Ledger{namespaces: map[string]*Standing{}} }

// OnChange adds a function that is called after something has changed of what stands
// under a guard. It must not block.
func (l *Ledger) OnChange(f func(guard string)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.listeners = append(l.listeners, f)
}

// Put takes how a namespace stands, unless it knows that from an examination that began
// later, and reports whether it has.
func (l *Ledger) Put(s *Standing) bool {
	kept := *s
	kept.Results, kept.Relied = nil, nil
	l.mu.Lock()
	before := l.namespaces[s.Namespace]
	if before != nil && before.Began.After(s.Began) {
		l.mu.Unlock()
		return false
	}
	l.namespaces[s.Namespace] = &kept
	l.mu.Unlock()
	if before == nil || !before.same(&kept) {
		l.tell(before, &kept)
	}
	return true
}

// Remove forgets a namespace, and reports whether it was known.
func (l *Ledger) Remove(namespace string) bool {
	l.mu.Lock()
	before := l.namespaces[namespace]
	delete(l.namespaces, namespace)
	l.mu.Unlock()
	l.tell(before)
	return before != nil
}

func (l *Ledger) tell(of ...*Standing) {
	var guards []string
	for _, s := range of {
		if s == nil {
			continue
		}
		guards = append(guards, s.Guards...)
		for _, c := range s.Counts {
			guards = append(guards, c.Guard)
		}
	}
	slices.Sort(guards)
	l.Changed(slices.Compact(guards)...)
}

// Changed calls the listeners for the guards.
func (l *Ledger) Changed(guards ...string) {
	l.mu.Lock()
	listeners := l.listeners
	l.mu.Unlock()
	for _, g := range guards {
		for _, f := range listeners {
			f(g)
		}
	}
}

func (s *Standing) same(o *Standing) bool {
	return s.Strict == o.Strict && s.Pods == o.Pods && s.Stale == o.Stale && s.Unjudged == o.Unjudged && s.LeftOut == o.LeftOut &&
		slices.Equal(s.Guards, o.Guards) && slices.Equal(s.Counts, o.Counts) &&
		slices.EqualFunc(s.Exceptions, o.Exceptions, func(a, b Exception) bool {
			return a.Guard == b.Guard && a.Name == b.Name && a.Ended == b.Ended && a.Ends.Equal(b.Ends)
		})
}

// Complete notes that a pass over all namespaces has ended, which began at a time: what
// was not met in it, and not since, is not there any more. It returns their names.
func (l *Ledger) Complete(began, ended time.Time, met map[string]bool) (gone []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for name, s := range l.namespaces {
		if !met[name] && s.Began.Before(began) {
			delete(l.namespaces, name)
			gone = append(gone, name)
		}
	}
	slices.Sort(gone)
	l.scanned, l.took, l.failing = ended, ended.Sub(began), nil
	return gone
}

// Knows reports whether it is known how a namespace stands.
func (l *Ledger) Knows(namespace string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.namespaces[namespace] != nil
}

// Pods is how many pods a namespace held when it was last examined.
func (l *Ledger) Pods(namespace string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := l.namespaces[namespace]; s != nil {
		return s.Pods
	}
	return 0
}

// Failed notes that a pass could not be brought to its end.
func (l *Ledger) Failed(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failing = err
}

// Scanned is when the last whole pass ended, zero before the first, how long it took,
// and why none has ended since.
func (l *Ledger) Scanned() (at time.Time, took time.Duration, failing error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.scanned, l.took, l.failing
}

// Totals is what stands under a guard.
type Totals struct {
	Guard string
	// Guarded are the namespaces that it selects, Violating those of them with findings,
	// and Strict those that are STRICT.
	Guarded, Violating, Strict int
	Pods, Stale, Unjudged      int
	Found, Excepted            int
	// Counts are those of all namespaces together, sorted.
	Counts []Count
	// Active and Expiring are the exceptions that apply, and that end within a day; Expired those that have ended and are
	// there still.
	Active, Expiring, Expired int
	// Worst are the namespaces with the most findings, at most WorstAtMost.
	Worst []Standing
}

// Totals adds up what stands under a guard.
func (l *Ledger) Totals(guard string, now time.Time) Totals {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := Totals{Guard: guard}
	sums := map[Count]*Count{}
	var worst []*Standing
	for _, s := range l.namespaces {
		selected := slices.Contains(s.Guards, guard)
		found := s.Found(guard)
		if selected {
			t.Guarded++
			t.Pods += s.Pods
			t.Stale += s.Stale
			t.Unjudged += s.Unjudged
			if s.Strict {
				t.Strict++
			}
			if found > 0 {
				t.Violating++
			}
			t.addExceptions(s, guard, now)
		}
		if found > 0 {
			worst = append(worst, s)
		}
		for _, c := range s.Counts {
			if c.Guard != guard {
				continue
			}
			k := Count{Guard: c.Guard, Policy: c.Policy, Reason: c.Reason}
			if sums[k] == nil {
				sums[k] = &Count{Guard: c.Guard, Policy: c.Policy, Reason: c.Reason}
			}
			sums[k].Found += c.Found
			sums[k].Excepted += c.Excepted
			t.Found += c.Found
			t.Excepted += c.Excepted
		}
	}
	for _, c := range sums {
		t.Counts = append(t.Counts, *c)
	}
	slices.SortFunc(t.Counts, func(a, b Count) int { return cmp.Or(cmp.Compare(a.Policy, b.Policy), cmp.Compare(a.Reason, b.Reason)) })
	slices.SortFunc(worst, func(a, b *Standing) int {
		return cmp.Or(cmp.Compare(b.Found(guard), a.Found(guard)), cmp.Compare(a.Namespace, b.Namespace))
	})
	for _, s := range worst[:min(len(worst), WorstAtMost)] {
		t.Worst = append(t.Worst, *s)
	}
	return t
}

func (t *Totals) addExceptions(s *Standing, guard string, now time.Time) {
	for _, x := range s.Exceptions {
		if x.Guard != guard {
			continue
		}
		if x.Ended || !x.Ends.After(now) {
			t.Expired++
			continue
		}
		t.Active++
		if x.Ends.Sub(now) <= soon {
			t.Expiring++
		}
	}
}
