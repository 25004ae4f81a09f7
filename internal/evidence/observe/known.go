package observe

import (
	"cmp"
	"slices"
	"time"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/cluster"
	"github.com/meshvakt/meshvakt/internal/evidence/canonical"
	"github.com/meshvakt/meshvakt/internal/mesh"
)

// known says up to when all that had happened is in the table.
//
// A watch tells that something has changed, and not when. What can be said is that it had not changed by the time at
// which the API server last said how far it is. Such words take a moment to become rows, and may be the very change:
// so they count only once they are settled and nothing is left to be told.
type known struct {
	at      time.Time
	pending []hearing // oldest first
}

// hearing is that at some moment, by the clock that is not set, all watches had been heard since.
type hearing struct {
	mono  time.Duration
	since time.Time
}

// idle notes that all that was seen has been told, unless more is wanted.
func (k *known) idle(told bool, mono time.Duration, watches []cluster.WatchState) {
	for told && len(k.pending) > 0 && mono-k.pending[0].mono >= settled {
		if since := k.pending[0].since; since.After(k.at) {
			k.at = since
		}
		k.pending = k.pending[1:]
	}
	since := heardSince(watches)
	last := len(k.pending) - 1
	if since.IsZero() || last >= 0 && k.pending[last].since.Equal(since) {
		return
	}
	k.pending = append(k.pending, hearing{mono, since})
}

// heardSince is when the watch that has been silent for longest was heard, zero unless all are open.
func heardSince(watches []cluster.WatchState) time.Time {
	var since time.Time
	for _, w := range watches {
		if !w.Open || w.Heard.IsZero() {
			return time.Time{}
		}
		if since.IsZero() || w.Heard.Before(since) {
			since = w.Heard
		}
	}
	return since
}

// begin is for the first snapshot. What is in it is at least as new as what was heard by then.
func (k *known) begin(now time.Time, watches []cluster.WatchState) {
	k.at = now
	if since := heardSince(watches); !since.IsZero() && since.Before(now) {
		k.at = since
	}
}

// reset is for a clock that was set: nothing later than now can be known.
func (k *known) reset(now time.Time) {
	k.pending = nil
	if k.at.After(now) {
		k.at = now
	}
}

// watched are the kinds that rows are computed from, and exceptions, with their names in records.
func watched() map[string]string {
	return map[string]string{
		"ConfigMap":          "v1/ConfigMap",
		"Namespace":          "v1/Namespace",
		"Pod":                "v1/Pod",
		"PeerAuthentication": canonical.Reference(&mesh.PeerAuthentication{}).GVK,
		"MeshGuard":          canonical.GVK(v1alpha1.Group, v1alpha1.Version, "MeshGuard"),
		"GuardException":     canonical.GVK(v1alpha1.Group, v1alpha1.Version, "GuardException"),
	}
}

// watches are the watches that rows are computed from, and that of exceptions, sorted by their names in records.
func (o *Observer) watches() []cluster.WatchState {
	names := watched()
	states := slices.DeleteFunc(append(o.config.Source.WatchStates(), o.outside.State()), func(w cluster.WatchState) bool { return names[w.Kind] == "" })
	slices.SortFunc(states, func(a, b cluster.WatchState) int { return cmp.Compare(names[a.Kind], names[b.Kind]) })
	return states
}
