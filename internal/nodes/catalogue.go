// Package nodes knows which nodes have CPU of their own and which of them a pod can
// land on, as pure functions over what nodes and pods say.
package nodes

import (
	_ "embed"
	"errors"
	"fmt"
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

// Catalogue classifies instance types.
type Catalogue struct{ entries []Entry }

// Entry is what a provider says about some of its instance types.
type Entry struct {
	Provider string `json:"provider"`
	// Class is Shared or Dedicated.
	Class string `json:"class"`
	// Types are whole names; "*" stands for any characters, and case does not matter.
	Types  []string `json:"types"`
	Source string   `json:"source"`
	Note   string   `json:"note,omitempty"`
}

// NewCatalogue reads the catalogue that is built in.
func NewCatalogue() (*Catalogue, error) { return ParseCatalogue(catalogueYAML) }

// ParseCatalogue reads a catalogue in the form of catalogue.yaml. It errs on entries
// that lack something, fields that are not known, and types that stand in two classes.
func ParseCatalogue(text []byte) (*Catalogue, error) {
	c := &Catalogue{}
	if err := yaml.UnmarshalStrict(text, &c.entries); err != nil {
		return nil, fmt.Errorf("read the catalogue of instance types: %w", err)
	}
	var errs []error
	classes := map[string]string{}
	for i := range c.entries {
		e := &c.entries[i]
		if e.Provider == "" || e.Source == "" || len(e.Types) == 0 || e.Class != "Shared" && e.Class != "Dedicated" {
			errs = append(errs, fmt.Errorf("entry %d of the catalogue of instance types, %s: provider, class (Shared or Dedicated), types and source must be set", i+1, e.Provider))
		}
		for _, t := range e.Types {
			if strings.Trim(t, "*") == "" {
				errs = append(errs, fmt.Errorf("entry %d of the catalogue of instance types: type %q stands for everything", i+1, t))
			}
			if other, ok := classes[strings.ToLower(t)]; ok && other != e.Class {
				errs = append(errs, fmt.Errorf("instance type %q is both Shared and Dedicated", t))
			}
			classes[strings.ToLower(t)] = e.Class
		}
	}
	return c, errors.Join(errs...)
}

// Class returns the class of an instance type, as label node.kubernetes.io/instance-type
// names it, and the entry that says so; nil for Unknown. Where entries of both classes
// match, the type is Burstable: a proxy that waits for CPU costs more than a node that
// is left out.
func (c *Catalogue) Class(instanceType string) (Class, *Entry) {
	var found *Entry
	for i := range c.entries {
		e := &c.entries[i]
		if !e.matches(instanceType) {
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

// classify returns the class by the labels of a node, and by which of them.
func (c *Catalogue) classify(labels map[string]string) (class Class, by string) {
	t := instanceType(labels)
	if t == "" {
		return Unknown, ""
	}
	class, _ = c.Class(t)
	return class, "instance type " + t
}

func (e *Entry) matches(instanceType string) bool {
	for _, t := range e.Types {
		if match(strings.ToLower(t), strings.ToLower(instanceType)) {
			return true
		}
	}
	return false
}

// match reports whether the name is what the pattern stands for, from end to end.
func match(pattern, name string) bool {
	parts := strings.Split(pattern, "*")
	rest, ok := strings.CutPrefix(name, parts[0])
	if !ok || len(parts) == 1 {
		return ok && rest == ""
	}
	last := parts[len(parts)-1]
	for _, part := range parts[1 : len(parts)-1] {
		_, after, found := strings.Cut(rest, part)
		if !found {
			return false
		}
		rest = after
	}
	return strings.HasSuffix(rest, last)
}
