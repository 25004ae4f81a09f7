// Package point is what instrumented policies ask at each of their mutation points:
// whether the mutant of this number is the one that is tried. Nothing but the test
// of package mutation compiles it into policies.
//
// Arguments are evaluated whether the mutant is active or not. Policies are pure, so
// that this changes no outcome.
package point

import (
	"maps"
	"reflect"
	"slices"
)

// active is the mutant that is tried; 0 is none. Only one is tried at a time in a
// process.
var active int

// record notes which mutants the code comes by, while it is not nil.
var record []bool

// Record starts to note which of the mutants the code comes by, and returns the notes.
func Record(mutants int) []bool {
	record = make([]bool, mutants+1)
	return record
}

func note(mutants ...int) {
	for _, n := range mutants {
		if record != nil {
			record[n] = true
		}
	}
}

// Activate makes a mutant the one that is tried.
func Activate(mutant int) { active, record = mutant, nil }

// Off reports whether mutant n is not the one that is tried; the statement behind it
// is the mutation point.
func Off(n int) bool {
	note(n)
	return active != n
}

// If is a condition that is never true under one mutant, and always under another.
func If(never, always int, condition bool) bool {
	note(never, always)
	return active != never && (condition || active == always)
}

// And is an operand of && that the mutant drops.
func And(n int, operand bool) bool {
	note(n)
	return active == n || operand
}

// Or is an operand of || that the mutant drops.
func Or(n int, operand bool) bool {
	note(n)
	return active != n && operand
}

// List is a list whose entry i mutant first+i drops.
func List[S ~[]E, E any](first int, list S) S {
	for i := range list {
		note(first + i)
	}
	if i := active - first; i >= 0 && i < len(list) {
		return slices.Delete(slices.Clone(list), i, i+1)
	}
	return list
}

// Items is List for what is appended one by one.
func Items[E any](first int, items ...E) []E { return List(first, items) }

// All is a list that the mutant empties.
func All[S ~[]E, E any](n int, list S) S {
	note(n)
	if active == n {
		return nil
	}
	return list
}

// Map is a map from which mutant first+i drops the key that stands at i in keys.
func Map[M ~map[K]V, K comparable, V any](first int, m M, keys ...K) M {
	for i := range keys {
		note(first + i)
	}
	if i := active - first; i >= 0 && i < len(keys) {
		m = maps.Clone(m)
		delete(m, keys[i])
	}
	return m
}

// Case is a value of a switch that under the mutant no subject has.
func Case[T comparable](n int, value T) T {
	note(n)
	if active != n {
		return value
	}
	v := reflect.New(reflect.TypeFor[T]()).Elem()
	switch {
	case v.CanUint():
		v.SetUint(1<<v.Type().Bits() - 1)
	case v.CanInt():
		v.SetInt(-1)
	default:
		v.SetString("\x00no subject")
	}
	return v.Interface().(T)
}

// Raw is a value that the mutant leaves as it was written.
func Raw[T any](n int, normal, raw T) T {
	note(n)
	if active == n {
		return raw
	}
	return normal
}
