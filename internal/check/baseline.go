package check

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/policies"
)

// Baseline is the findings that are known and let pass for the time being, so that what
// is new can be refused before what is old has been mended.
type Baseline struct {
	metav1.TypeMeta `json:",inline"`
	Findings        []KnownFinding `json:"findings"`
}

// KnownFinding is one finding of a baseline. The ID decides; the rest is for people.
type KnownFinding struct {
	ID      string `json:"id"`
	Object  string `json:"object"`
	Finding string `json:"finding"`
	// Until is the last day, YYYY-MM-DD in UTC, on which it is let pass; empty: for good.
	Until string `json:"until,omitempty"`
}

const baselineKind = "CheckBaseline"

// LoadBaseline reads a baseline. A field it does not know is an error, for a misspelt
// "until" would let something pass for good.
func LoadBaseline(path string) (*Baseline, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var b Baseline
	if err := yaml.UnmarshalStrict(data, &b); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if b.Kind != baselineKind || b.APIVersion != v1alpha1.GroupVersion().String() {
		return nil, fmt.Errorf("%s: not a baseline: apiVersion %q and kind %q; must be %q and %q", path, b.APIVersion, b.Kind, v1alpha1.GroupVersion(), baselineKind)
	}
	var errs []error
	seen := map[string]bool{}
	for i, f := range b.Findings {
		switch {
		case f.ID == "":
			errs = append(errs, fmt.Errorf("%s: findings[%d].id: must be set", path, i))
		case seen[f.ID]:
			errs = append(errs, fmt.Errorf("%s: findings[%d].id: %q stands twice", path, i, f.ID))
		}
		seen[f.ID] = true
		if _, err := f.ends(); err != nil {
			errs = append(errs, fmt.Errorf("%s: findings[%d].until: %q; must be a day as 2026-12-31", path, i, f.Until))
		}
	}
	return &b, errors.Join(errs...)
}

// ends is when it is no longer let pass, the zero time for never.
func (f *KnownFinding) ends() (time.Time, error) {
	if f.Until == "" {
		return time.Time{}, nil
	}
	day, err := time.Parse(time.DateOnly, f.Until)
	if err != nil {
		return time.Time{}, err
	}
	return day.AddDate(0, 0, 1), nil
}

// Acknowledge marks the findings that the baseline knows, and notes which of its entries
// have expired or are not found any more. Objects that are denied by nothing else count
// as known.
func (t *Result) Acknowledge(b *Baseline, now time.Time) {
	entries := make(map[string]*KnownFinding, len(b.Findings))
	var expired []string
	for i := range b.Findings {
		f := &b.Findings[i]
		if end, err := f.ends(); err == nil && !end.IsZero() && !now.Before(end) {
			expired = append(expired, f.ID)
			continue
		}
		entries[f.ID] = f
	}
	found := map[string]bool{}
	for i := range t.Results {
		o := &t.Results[i]
		for j := range o.Findings {
			f := &o.Findings[j]
			found[f.ID] = true
			f.Known = entries[f.ID] != nil
		}
		if o.Decision == policies.Deny && !o.refused() {
			t.Summary.Denied--
			t.Summary.Known++
		}
	}
	expired = slices.DeleteFunc(expired, func(id string) bool { return !found[id] }) // which are told below
	if len(expired) > 0 {
		t.Notes = append(t.Notes, "expired in the baseline, and no longer let pass: "+strings.Join(expired, ", "))
	}
	var gone []string
	for _, f := range b.Findings {
		if !found[f.ID] {
			gone = append(gone, f.ID+" ("+f.Object+")")
		}
	}
	if len(gone) > 0 {
		t.Notes = append(t.Notes, fmt.Sprintf("%s of the baseline can be removed, for nothing of the kind is found any more: %s", entriesText(len(gone)), strings.Join(gone, ", ")))
	}
}

func entriesText(n int) string {
	if n == 1 {
		return "1 entry"
	}
	return fmt.Sprintf("%d entries", n)
}

// refused reports whether the object is denied by a finding that no baseline knows.
func (o *ObjectResult) refused() bool {
	return slices.ContainsFunc(o.Findings, func(f Finding) bool { return f.refuses() })
}

// Baseline returns the baseline that knows everything by which something is denied.
// Entries of an old one keep their ends.
func (t *Result) Baseline(old *Baseline) *Baseline {
	until := map[string]string{}
	if old != nil {
		for _, f := range old.Findings {
			until[f.ID] = f.Until
		}
	}
	b := &Baseline{
		TypeMeta: metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion().String(), Kind: baselineKind},
		Findings: []KnownFinding{},
	}
	for i := range t.Results {
		o := &t.Results[i]
		for j := range o.Findings {
			f := &o.Findings[j]
			if f.Action == v1alpha1.Deny {
				b.Findings = append(b.Findings, KnownFinding{ID: f.ID, Object: o.Object.text(), Finding: f.text(), Until: until[f.ID]})
			}
		}
	}
	slices.SortFunc(b.Findings, func(x, y KnownFinding) int {
		return cmp.Or(strings.Compare(x.Object, y.Object), strings.Compare(x.Finding, y.Finding), strings.Compare(x.ID, y.ID))
	})
	b.Findings = slices.CompactFunc(b.Findings, func(x, y KnownFinding) bool { return x.ID == y.ID })
	return b
}

// Save writes the baseline to a file.
func (b *Baseline) Save(path string) error {
	text, err := yaml.Marshal(b)
	if err != nil {
		return fmt.Errorf("write the baseline: %w", err)
	}
	const head = "# Findings that meshvakt check lets pass. Each may have an end: until: \"2026-12-31\"\n"
	return os.WriteFile(path, append([]byte(head), text...), 0o644) //nolint:gosec // it is checked in beside the manifests
}

func (r *ObjectReference) text() string {
	name := r.Name
	if r.Namespace != "" {
		name = r.Namespace + "/" + name
	}
	return r.Kind + " " + name
}

// text is the finding on one line, without the way out.
func (f *Finding) text() string {
	field := f.Field
	if field != "" {
		field += ": "
	}
	return fmt.Sprintf("%s%s [%s]", field, f.Message, f.Code)
}
