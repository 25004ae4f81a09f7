// Package nodes knows which nodes have CPU of their own and which of them a pod can
// land on, as pure functions over what nodes and pods say.
package nodes

import (
	_ "embed"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// Class says whether a node has its CPU to itself.
type Class string

// The classes. Burstable is CPU that is shared with others or paid for by credits.
const (
	Burstable Class = "Burstable"
	Dedicated Class = "Dedicated"
	Unknown   Class = "Unknown"
)

//go:embed catalogue.yaml
var catalogueYAML []byte

// Catalogue classifies nodes by their instance types, and by what other labels their
// providers set.
type Catalogue struct{ entries []Entry }

// Entry is what a provider says about some of its machines.
type Entry struct {
	Provider string `json:"provider"`
	// Class is Shared or Dedicated.
	Class string `json:"class"`
	// Types are whole names; "*" stands for any characters, and case does not matter.
	Types []string `json:"types,omitempty"`
	// Labels are values of labels, as types are, by the keys of the labels. They are for
	// nodes whose type tells nothing.
	Labels map[string][]string `json:"labels,omitempty"`
	Source string              `json:"source"`
	// LabelSource is where the labels are described, Source what the class follows from.
	LabelSource string `json:"labelSource,omitempty"`
	Note        string `json:"note,omitempty"`

	types  []pattern
	labels []labelPatterns
}

// labelPatterns are the values of one label.
type labelPatterns struct {
	key    string
	values []pattern
}

// NewCatalogue reads the catalogue that is built in.
func NewCatalogue() (*Catalogue, error) { return ParseCatalogue(catalogueYAML) }

// ParseCatalogue reads a catalogue in the form of catalogue.yaml. It errs on entries
// that lack something, fields that are not known, and types and labels that stand in
// two classes.
func ParseCatalogue(text []byte) (*Catalogue, error) {
	c := &Catalogue{}
	if err := yaml.UnmarshalStrict(text, &c.entries); err != nil {
		return nil, fmt.Errorf("read the catalogue of instance types: %w", err)
	}
	var errs []error
	classes := map[string]string{}
	for i := range c.entries {
		e := &c.entries[i]
		if e.Provider == "" || e.Source == "" || len(e.Types)+len(e.Labels) == 0 || e.Class != "Shared" && e.Class != "Dedicated" {
			errs = append(errs, fmt.Errorf("entry %d of the catalogue of instance types, %s: provider, class (Shared or Dedicated), types or labels, and source must be set", i+1, e.Provider))
		}
		if (e.LabelSource == "") != (len(e.Labels) == 0) {
			errs = append(errs, fmt.Errorf("entry %d of the catalogue of instance types, %s: labels and labelSource must be set together", i+1, e.Provider))
		}
		if err := e.compile(classes); err != nil {
			errs = append(errs, fmt.Errorf("entry %d of the catalogue of instance types, %s: %w", i+1, e.Provider, err))
		}
	}
	return c, errors.Join(errs...)
}

// compile reads the patterns of the entry, and notes what class each of them is of.
func (e *Entry) compile(classes map[string]string) error {
	var errs []error
	read := func(what string, texts []string) (list []pattern) {
		for _, t := range texts {
			if strings.Trim(t, "*") == "" {
				errs = append(errs, fmt.Errorf("%s %q stands for everything", what, t))
			}
			name := what + " " + strings.ToLower(t)
			if other, ok := classes[name]; ok && other != e.Class {
				errs = append(errs, fmt.Errorf("%s %q is both Shared and Dedicated", what, t))
			}
			classes[name] = e.Class
			list = append(list, newPattern(t))
		}
		return list
	}
	e.types = read("type", e.Types)
	for _, key := range slices.Sorted(maps.Keys(e.Labels)) {
		if key == "" || len(e.Labels[key]) == 0 {
			errs = append(errs, fmt.Errorf("label %q: key and values must be set", key))
		}
		e.labels = append(e.labels, labelPatterns{key, read("label "+key, e.Labels[key])})
	}
	return errors.Join(errs...)
}

// Class returns the class of an instance type, as label node.kubernetes.io/instance-type
// names it, and the entry that says so; nil for Unknown. Where entries of both classes
// match, the type is Burstable: a proxy that waits for CPU costs more than a node that
// is left out.
func (c *Catalogue) Class(instanceType string) (Class, *Entry) {
	instanceType = strings.ToLower(instanceType)
	return c.worst(func(e *Entry) bool { return matchesAny(e.types, instanceType) })
}

// worst returns the class of the entries that match, and the first that says so.
func (c *Catalogue) worst(matches func(*Entry) bool) (Class, *Entry) {
	var found *Entry
	for i := range c.entries {
		e := &c.entries[i]
		if found != nil && e.Class == found.Class || !matches(e) {
			continue
		}
		if e.Class == "Shared" {
			return Burstable, e
		}
		found = e
	}
	if found != nil {
		return Dedicated, found
	}
	return Unknown, nil
}

// classify returns the class by the labels of a node: by its instance type, or else by
// what other labels say.
func (c *Catalogue) classify(labels map[string]string) Verdict {
	looked := "no instance type"
	if t := instanceType(labels); t != "" {
		looked = "instance type " + t
		if class, e := c.Class(t); e != nil {
			return Verdict{class, FromInstanceType, looked}
		}
	}
	class, e := c.worst(func(e *Entry) bool { return e.label(labels) != "" })
	if e == nil {
		return Verdict{Unknown, FromNothing, looked}
	}
	key := e.label(labels)
	return Verdict{class, FromLabel, fmt.Sprintf("label %s=%s", key, labels[key])}
}

// label is the key of the first label that the entry is about, "" if there is none.
func (e *Entry) label(labels map[string]string) string {
	for _, l := range e.labels {
		if value, ok := labels[l.key]; ok && matchesAny(l.values, strings.ToLower(value)) {
			return l.key
		}
	}
	return ""
}

func matchesAny(list []pattern, lower string) bool {
	return slices.ContainsFunc(list, func(p pattern) bool { return p.matches(lower) })
}

// pattern is what stands between the "*" of a pattern, in lower case.
type pattern []string

func newPattern(text string) pattern { return strings.Split(strings.ToLower(text), "*") }

// matches reports whether the name, in lower case, is what the pattern stands for, from
// end to end.
func (p pattern) matches(lower string) bool {
	rest, ok := strings.CutPrefix(lower, p[0])
	if !ok || len(p) == 1 {
		return ok && rest == ""
	}
	last := len(p) - 1
	for _, part := range p[1:last] {
		_, after, found := strings.Cut(rest, part)
		if !found {
			return false
		}
		rest = after
	}
	return strings.HasSuffix(rest, p[last])
}
