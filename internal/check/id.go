package check

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"strconv"
	"strings"
)

// identify gives the findings of an object their IDs. An ID is the same wherever and
// whenever the same is found: it is made of what was found, the object, and the field,
// and not of texts, files, lines, or the order of anything. Where elements of a list have
// names, these stand for their positions. It is a promise: baselines and code scanning
// keep IDs for years.
//
// Of several findings that agree in all of it, the second and further ones, in the order
// of their texts, are told apart by their number.
func identify(o *ObjectResult, raw []byte) {
	var object any
	if len(o.Findings) == 0 || json.Unmarshal(raw, &object) != nil {
		return
	}
	seen := map[string][]string{}
	for i := range o.Findings {
		f := &o.Findings[i]
		parts := []string{"1", f.Code, f.Reason, o.Object.Kind, o.Object.Namespace, o.Object.Name, stableField(object, f.Field)}
		key := strings.Join(parts, "\x00")
		// The same finding by two actions is one.
		number := indexOrAppend(seen, key, f.Message)
		if number > 0 {
			key += "\x00" + strconv.Itoa(number)
		}
		sum := sha256.Sum256([]byte(key))
		f.ID = hex.EncodeToString(sum[:8])
	}
}

func indexOrAppend(seen map[string][]string, key, message string) int {
	for i, m := range seen[key] {
		if m == message {
			return i
		}
	}
	seen[key] = append(seen[key], message)
	return len(seen[key]) - 1
}

// step is one part of a field's path: a name, or what stands in brackets.
type step struct {
	text    string
	bracket bool
}

// steps takes a path apart: spec.containers[0].env, metadata.labels[istio.io/rev].
func steps(field string) []step {
	var list []step
	for field != "" {
		if field[0] == '[' {
			end := strings.IndexByte(field, ']')
			if end < 0 {
				return append(list, step{field, false})
			}
			list = append(list, step{field[1:end], true})
			field = strings.TrimPrefix(field[end+1:], ".")
			continue
		}
		end := strings.IndexAny(field, ".[")
		if end < 0 {
			return append(list, step{field, false})
		}
		list = append(list, step{field[:end], false})
		field = strings.TrimPrefix(field[end:], ".")
	}
	return list
}

// stableField is the path with names in the place of positions, where there are any.
func stableField(object any, field string) string {
	var b strings.Builder
	at := object
	for i, s := range steps(field) {
		text := s.text
		list, isList := at.([]any)
		switch {
		case s.bracket && isList:
			n, err := strconv.Atoi(s.text)
			at = nil
			if err == nil && n >= 0 && n < len(list) {
				at = list[n]
				if name := nameIn(list, n); name != "" {
					text = name
				}
			}
		default:
			fields, _ := at.(map[string]any)
			at = fields[s.text]
		}
		switch {
		case s.bracket:
			b.WriteString("[" + text + "]")
		case i > 0:
			b.WriteString("." + text)
		default:
			b.WriteString(text)
		}
	}
	return b.String()
}

// nameIn is the name of an element of a list, "" where it has none of its own.
func nameIn(list []any, n int) string {
	name := nameOf(list[n])
	for i := range list {
		if i != n && nameOf(list[i]) == name {
			return ""
		}
	}
	return name
}

func nameOf(element any) string {
	fields, _ := element.(map[string]any)
	name, _ := fields["name"].(string)
	return name
}
