package controller

import (
	"fmt"
	"hash/fnv"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/util/flowcontrol"

	"github.com/meshvakt/meshvakt/internal/scan"
)

// How many events are left at most: some at once, as when a guard is created over a
// cluster that was never guarded, and then a few a second. What is put off is told of at
// the next scan.
const (
	eventsPerSecond = 5
	eventsAtOnce    = 100
	// saidAtMost bounds what is remembered of a namespace.
	saidAtMost = 64
)

// AnnounceRecorder counts events.
type AnnounceRecorder interface {
	// Announced tells whether an event was left or put off.
	Announced(left bool)
}

// Announcer leaves an event on the owner of what the scan newly finds: once for each
// owner and reason, until that is mended and comes back.
type Announcer struct {
	events   events.EventRecorder
	recorder AnnounceRecorder
	limit    flowcontrol.PassiveRateLimiter

	mu   sync.Mutex
	said map[string][]uint64 // guarded by mu; by namespace, sorted
}

// NewAnnouncer returns an Announcer that has said nothing.
func NewAnnouncer(recorder events.EventRecorder, counts AnnounceRecorder) *Announcer {
	return &Announcer{
		events: recorder, recorder: counts, said: map[string][]uint64{},
		limit: flowcontrol.NewTokenBucketPassiveRateLimiter(eventsPerSecond, eventsAtOnce),
	}
}

// Tell leaves events about what stands in a namespace, nil for one that is not looked
// at any more.
func (a *Announcer) Tell(namespace string, now *scan.Standing) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if now == nil {
		delete(a.said, namespace)
		return
	}
	var said []uint64
	for i := range now.Results {
		r := &now.Results[i]
		if r.Exception != "" || len(said) == saidAtMost {
			continue
		}
		h := fnv.New64a()
		fmt.Fprintf(h, "%s\x00%s\x00%s\x00%s", r.Owner.Kind.Kind, r.Owner.Name, r.Policy, r.Reason.Name)
		k := h.Sum64()
		if _, known := slices.BinarySearch(a.said[namespace], k); !known && !slices.Contains(said, k) {
			left := a.limit.TryAccept()
			a.recorder.Announced(left)
			if !left {
				continue
			}
			a.events.Eventf(objectReference(namespace, r.Owner), nil, corev1.EventTypeWarning, r.Reason.Name, "Scan", "%s", shortened(resultText(r)))
		}
		said = append(said, k)
	}
	slices.Sort(said)
	if a.said[namespace] = slices.Compact(said); len(said) == 0 {
		delete(a.said, namespace)
	}
}

// resultText says what an owner breaks, and by how many objects where they are not itself.
func resultText(r *scan.Result) string {
	switch {
	case r.First == r.Owner:
		return r.Text
	case r.Objects > 1:
		return fmt.Sprintf("%d pods such as %s: %s", r.Objects, r.First.Name, r.Text)
	}
	return fmt.Sprintf("pod %s: %s", r.First.Name, r.Text)
}

// shortened cuts a text to what an event can hold.
func shortened(text string) string { return cut(text, longestNote) }

// cut ends a text after so many bytes, and not within a rune.
func cut(text string, most int) string {
	if len(text) <= most {
		return text
	}
	for most > 0 && text[most]&0xC0 == 0x80 {
		most--
	}
	return text[:most] + " …"
}

// objectReference is enough of an object to leave an event on it. Events about a
// namespace lie in it, where its people look.
func objectReference(namespace string, o scan.Object) *corev1.ObjectReference {
	version, kind := o.Kind.ToAPIVersionAndKind()
	return &corev1.ObjectReference{APIVersion: version, Kind: kind, Namespace: namespace, Name: o.Name, UID: types.UID(o.UID)}
}
