package objects

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/meshvakt/meshvakt/policies/facts"
)

// Operation is one operation of a JSON patch (RFC 6902).
//
// +kubebuilder:object:generate=false
type Operation struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	Value any    `json:"value"`
}

// Patch returns the operations that make the changes in the JSON of an object, which has
// been checked as Checked demands it. They are made from the text and not from types, so
// that nothing that the types do not know is lost, and they touch nothing but what
// changes: where something on the way to a value is missing, or null, it is added
// together with all that changes below it.
func Patch(object []byte, changes []facts.Change) ([]Operation, error) {
	if len(changes) == 0 {
		return nil, nil
	}
	text := string(object)
	var operations []Operation
	added := map[string]map[string]any{} // what operations add that more can go into
	for _, c := range changes {
		path, rest, op, err := reach(text, c.Path)
		if err != nil {
			return nil, fmt.Errorf("patch: %w", err)
		}
		if len(rest) == 0 {
			operations = append(operations, Operation{op, path, c.Value})
			continue
		}
		if into := added[path]; into != nil {
			put(into, rest, c.Value)
			continue
		}
		added[path] = map[string]any{}
		put(added[path], rest, c.Value)
		operations = append(operations, Operation{"add", path, added[path]})
	}
	return operations, nil
}

// reach follows a path as far as there is something, and returns the pointer to where
// it ends, or to the first field that is missing, with the rest of the path.
func reach(text string, path []string) (pointer string, rest []string, op string, err error) {
	r := &reader{text: text}
	var b strings.Builder
	for i, name := range path {
		b.WriteString("/" + escape(name))
		var there bool
		switch r.next() {
		case '{':
			there = r.enterField(name)
		case '[':
			if name == "-" && i == len(path)-1 {
				return b.String(), nil, "add", nil
			}
			if there = r.enterElement(name); !there && r.err == nil {
				return "", nil, "", fmt.Errorf("there is no element %s in the list at %s", name, strings.Join(path[:i], "."))
			}
		default:
			return "", nil, "", fmt.Errorf("there is nothing that could hold %s at %s", name, strings.Join(path[:i], "."))
		}
		if r.err != nil {
			return "", nil, "", r.err
		}
		if !there || r.next() == 'n' {
			return b.String(), path[i+1:], "add", nil
		}
	}
	if len(path) == 0 {
		return "", nil, "", errors.New("empty path")
	}
	return b.String(), nil, "replace", nil
}

// enterField stops at the value of a field of the object that comes, if it has it.
func (r *reader) enterField(name string) bool {
	for field := range r.fields() {
		if field == name {
			return true
		}
		r.skip()
	}
	return false
}

// enterElement stops at an element of the list that comes, if it has it.
func (r *reader) enterElement(number string) bool {
	n, err := strconv.Atoi(number)
	if err != nil || n < 0 || !r.expect('[', "list") {
		return false
	}
	for ; n > 0 && r.next() != ']' && r.err == nil; n-- {
		r.skip()
		if r.next() == ',' {
			r.at++
		}
	}
	return r.next() != ']'
}

// put sets a value below a new object.
func put(into map[string]any, path []string, value any) {
	for _, name := range path[:len(path)-1] {
		next, ok := into[name].(map[string]any)
		if !ok {
			next = map[string]any{}
			into[name] = next
		}
		into = next
	}
	into[path[len(path)-1]] = value
}

// escape writes a name as a token of a JSON pointer (RFC 6901).
func escape(name string) string {
	return strings.NewReplacer("~", "~0", "/", "~1").Replace(name)
}
