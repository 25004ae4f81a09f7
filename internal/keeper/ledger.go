package keeper

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Action is what a repair did; a metric label, and permanent.
type Action string

// The actions.
const (
	Created Action = "created" // the object was gone
	Changed Action = "changed" // it was not as installed
)

// Actions lists them, for metrics that start at zero.
func Actions() []string { return []string{string(Created), string(Changed)} }

// Counter counts repairs.
type Counter interface {
	OwnObjectRepaired(kind, action string)
}

// Ledger is told of every own object that was put back, and of those that could not be.
// It logs, counts and emits an Event. Its methods may be called from several goroutines.
type Ledger struct {
	events events.EventRecorder
	count  Counter
	log    *slog.Logger
	now    func() time.Time

	mu       sync.Mutex
	wrong    map[string]wrong                  // guarded by mu; by kind and name
	repaired []repair                          // guarded by mu; the latest, oldest first
	changed  []func()                          // guarded by mu
	onRepair []func(o client.Object, r Repair) // guarded by mu
}

// Repair is what came of an object that was not as it should be.
type Repair struct {
	At time.Time
	// Done: it was put back. GivenUp: Meshvakt does not try, for it may not, or somebody undoes it. Neither: it could not.
	Done, GivenUp bool
}

type wrong struct{ kind, why string }

type repair struct {
	what string
	at   time.Time
}

// recent is how long a repair shows in Degradation: long enough for whoever looks at
// their guards to see it.
const recent = 10 * time.Minute

// remembered bounds how many repairs are kept.
const remembered = 20

// NewLedger makes a Ledger.
func NewLedger(recorder events.EventRecorder, count Counter, log *slog.Logger, now func() time.Time) *Ledger {
	return &Ledger{events: recorder, count: count, log: log, now: now, wrong: map[string]wrong{}}
}

// OnChange has f called when Degradation says something else than before, but for what it
// says no longer after ten minutes. f must not block.
func (l *Ledger) OnChange(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.changed = append(l.changed, f)
}

// OnRepair has f called with each object that was put back, or was not. f must not block, nor change the object.
func (l *Ledger) OnRepair(f func(o client.Object, r Repair)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.onRepair = append(l.onRepair, f)
}

func (l *Ledger) tell() {
	l.mu.Lock()
	changed := l.changed
	l.mu.Unlock()
	for _, f := range changed {
		f()
	}
}

// Repaired notes that an object was put back. how says what was wrong, in a few words; no
// user is named, for nobody here knows them.
func (l *Ledger) Repaired(ctx context.Context, o client.Object, kind string, action Action, how string) {
	name := described(kind, o)
	l.log.WarnContext(ctx, "put back an object of Meshvakt's own", "object", name, "action", string(action), "was", how)
	l.count.OwnObjectRepaired(kind, string(action))
	l.emit(o, corev1.EventTypeWarning, "OwnObjectRepaired", "%s %s, and was put back as installed: %s", name, action.Harm(), how)
	l.mu.Lock()
	delete(l.wrong, name)
	at := l.now()
	l.repaired = append(l.repaired, repair{name, at})
	if more := len(l.repaired) - remembered; more > 0 {
		l.repaired = slices.Delete(l.repaired, 0, more)
	}
	l.mu.Unlock()
	l.came(o, Repair{At: at, Done: true})
	l.tell()
}

func (l *Ledger) came(o client.Object, r Repair) {
	l.mu.Lock()
	onRepair := l.onRepair
	l.mu.Unlock()
	for _, f := range onRepair {
		f(o, r)
	}
}

// Harm says what somebody had done to the object.
func (a Action) Harm() string {
	if a == Created {
		return "was deleted"
	}
	return "was changed"
}

// Unrepaired notes that an object is not as installed, and could not be put back. It is said
// once for each reason.
func (l *Ledger) Unrepaired(ctx context.Context, o client.Object, kind, why string) {
	l.notAsInstalled(ctx, o, kind, why, false)
}

// LeftAlone notes that an object is not as installed, and that nobody tries to put it back. It is
// said once for each reason.
func (l *Ledger) LeftAlone(ctx context.Context, o client.Object, kind, why string) {
	l.notAsInstalled(ctx, o, kind, why, true)
}

func (l *Ledger) notAsInstalled(ctx context.Context, o client.Object, kind, why string, givenUp bool) {
	name := described(kind, o)
	l.mu.Lock()
	known := l.wrong[name].why == why
	l.wrong[name] = wrong{kind, why}
	l.mu.Unlock()
	if known {
		return
	}
	l.came(o, Repair{At: l.now(), GivenUp: givenUp})
	l.tell()
	l.log.ErrorContext(ctx, "an object of Meshvakt's own is not as installed, and is not put back", "object", name, "reason", why)
	l.emit(o, corev1.EventTypeWarning, "OwnObjectNotAsInstalled", "%s is not as installed, and is not put back: %s", name, why)
}

// AsInstalled notes that an object is as it should be.
func (l *Ledger) AsInstalled(o client.Object, kind string) {
	name := described(kind, o)
	l.mu.Lock()
	_, was := l.wrong[name]
	delete(l.wrong, name)
	l.mu.Unlock()
	if was {
		l.tell()
	}
}

// Wrong counts the objects that are not as installed, by kind.
func (l *Ledger) Wrong() map[string]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	counts := map[string]int{}
	for _, w := range l.wrong {
		counts[w.kind]++
	}
	return counts
}

// Degradation says what is wrong with Meshvakt's own objects, or has been in the last ten
// minutes; reason is empty when nothing is. It is for a condition of the guards.
func (l *Ledger) Degradation() (reason, message string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.wrong) > 0 {
		names := make([]string, 0, len(l.wrong))
		for name, w := range l.wrong {
			names = append(names, name+" ("+w.why+")")
		}
		slices.Sort(names)
		return "OwnObjectsNotAsInstalled", "not as installed: " + strings.Join(names, ", ")
	}
	var names []string
	for _, r := range l.repaired {
		if l.now().Sub(r.at) < recent && !slices.Contains(names, r.what) {
			names = append(names, r.what)
		}
	}
	if len(names) == 0 {
		return "", ""
	}
	slices.Sort(names)
	return "OwnObjectsRepaired", fmt.Sprintf("changed by somebody in the last %d minutes, and put back: %s", int(recent.Minutes()), strings.Join(names, ", "))
}

// emit writes an Event about a copy: the recorder reads it later.
func (l *Ledger) emit(o client.Object, kind, reason, format string, args ...any) {
	l.events.Eventf(o.DeepCopyObject(), nil, kind, reason, "Keep", format, args...)
}

func described(kind string, o client.Object) string {
	if o.GetNamespace() == "" {
		return kind + " " + o.GetName()
	}
	return kind + " " + o.GetNamespace() + "/" + o.GetName()
}
