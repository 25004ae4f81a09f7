package scan

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"
)

// The bounds of a Record, which must fit into one object of the API server.
const (
	// recordedNames is how much the names of the namespaces may take that are remembered
	// to have been STRICT: more than 10,000 of the longest, 30,000 of usual ones.
	recordedNames = 700 << 10
	// perName is what a name takes beyond its letters.
	perName = 3
	// recordedGaps bounds the gaps that are open at the same time, and the namespaces
	// whose restorations are counted.
	recordedGaps = 1_000
)

// The fight with somebody who undoes what is restored.
const (
	// TriesAtOnce is how often STRICT is restored without delay.
	TriesAtOnce = 3
	// triesForget is how long a namespace must stay STRICT for its restorations to be
	// forgotten.
	triesForget = time.Hour
	longestWait = 30 * time.Minute
)

// Record is what must outlive the leader for a namespace that has ceased to be STRICT to
// be told from one that never was, and for no gap to be lost. It is bounded.
type Record struct {
	// Confirmed is when the namespaces in Strict were last known to be STRICT, but for
	// those with a gap.
	Confirmed time.Time `json:"confirmed"`
	// Strict are the guarded namespaces that have been STRICT, sorted.
	Strict []string `json:"strict"`
	// Gaps are those that are not any more, by namespace.
	Gaps map[string]Gap `json:"gaps,omitempty"`
	// Restorations counts how often STRICT was restored lately, by namespace.
	Restorations map[string]Tries `json:"restorations,omitempty"`

	names int // what the names in Strict take
}

// Gap is a time in which a namespace took plaintext. It began after After and not later
// than Found.
type Gap struct {
	After time.Time `json:"after"`
	Found time.Time `json:"found"`
	// Told: that nothing can be done about it has been told.
	Told bool `json:"told,omitempty"`
}

// Tries counts restorations.
type Tries struct {
	Count int       `json:"count"`
	Last  time.Time `json:"last"`
}

// ParseRecord reads what Encode has written, and the empty text as an empty Record.
func ParseRecord(text string) (*Record, error) {
	r := &Record{}
	if text != "" {
		if err := json.Unmarshal([]byte(text), r); err != nil {
			return nil, fmt.Errorf("read the record of STRICT namespaces: %w", err)
		}
	}
	if r.Gaps == nil {
		r.Gaps = map[string]Gap{}
	}
	if r.Restorations == nil {
		r.Restorations = map[string]Tries{}
	}
	slices.Sort(r.Strict)
	for _, name := range r.Strict {
		r.names += len(name) + perName
	}
	return r, nil
}

// Encode writes the record.
func (r *Record) Encode() (string, error) {
	text, err := json.Marshal(r)
	if err != nil {
		return "", fmt.Errorf("write the record of STRICT namespaces: %w", err)
	}
	return string(text), nil
}

// WasStrict reports whether the namespace has been STRICT.
func (r *Record) WasStrict(namespace string) bool {
	_, found := slices.BinarySearch(r.Strict, namespace)
	return found
}

// NoteStrict takes down that the namespace is STRICT, and reports whether that is news.
// It takes down no more than fit.
func (r *Record) NoteStrict(namespace string) bool {
	at, found := slices.BinarySearch(r.Strict, namespace)
	if found || r.names+len(namespace)+perName > recordedNames {
		return false
	}
	r.names += len(namespace) + perName
	r.Strict = slices.Insert(r.Strict, at, namespace)
	return true
}

// Forget takes out a namespace that is not guarded any more, and reports whether it was
// in there.
func (r *Record) Forget(namespace string) bool {
	at, found := slices.BinarySearch(r.Strict, namespace)
	if found {
		r.Strict = slices.Delete(r.Strict, at, at+1)
		r.names -= len(namespace) + perName
	}
	_, gap := r.Gaps[namespace]
	_, tried := r.Restorations[namespace]
	delete(r.Gaps, namespace)
	delete(r.Restorations, namespace)
	return found || gap || tried
}

// OpenGap takes down that the namespace is found open, and reports whether that is news.
func (r *Record) OpenGap(namespace string, g Gap) bool {
	if _, open := r.Gaps[namespace]; open || len(r.Gaps) == recordedGaps {
		return false
	}
	r.Gaps[namespace] = g
	return true
}

// Wait is how long STRICT is not to be restored again, 0 when it may be now. The first
// times it is at once, and then at growing distances.
func (r *Record) Wait(namespace string, now time.Time) time.Duration {
	t := r.Restorations[namespace]
	if t.Count < TriesAtOnce {
		return 0
	}
	wait := min(time.Minute<<min(t.Count-TriesAtOnce, 10), longestWait)
	return max(wait-now.Sub(t.Last), 0)
}

// Tried counts a restoration.
func (r *Record) Tried(namespace string, now time.Time) {
	t := r.Restorations[namespace]
	if t.Count == 0 && len(r.Restorations) == recordedGaps {
		return
	}
	r.Restorations[namespace] = Tries{t.Count + 1, now}
}

// Undone are the namespaces in which STRICT is restored and lost again, sorted.
func (r *Record) Undone() []string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(r.Restorations)) {
		if r.Restorations[name].Count >= TriesAtOnce {
			names = append(names, name)
		}
	}
	return names
}

// Prune forgets the restorations that have lasted, and reports whether there were any.
func (r *Record) Prune(now time.Time) bool {
	before := len(r.Restorations)
	maps.DeleteFunc(r.Restorations, func(name string, t Tries) bool {
		_, open := r.Gaps[name]
		return !open && now.Sub(t.Last) > triesForget
	})
	return len(r.Restorations) != before
}
