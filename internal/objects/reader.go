package objects

import (
	"fmt"
	"iter"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
	"k8s.io/apimachinery/pkg/api/resource"
)

// reader goes through JSON that has been checked: it is well formed and in UTF-8,
// and no name stands twice in an object. It reads the values it is asked for, and
// passes over all others, which no decoder into a type does as fast. Strings that it
// returns are parts of the text where they can be.
//
// The first error stays, and ends all that goes on. Text that is not well formed
// after all is an error too, if what is wrong is in the way.
type reader struct {
	text string
	at   int
	err  error
}

// next is the first byte of what comes, 0 at the end of the text.
func (r *reader) next() byte {
	for ; r.at < len(r.text); r.at++ {
		switch c := r.text[r.at]; c {
		case ' ', '\t', '\n', '\r':
		default:
			return c
		}
	}
	return 0
}

// expect passes over one byte of the grammar.
func (r *reader) expect(c byte, what string) bool {
	if r.err != nil {
		return false
	}
	if r.next() != c {
		r.fail(what)
		return false
	}
	r.at++
	return true
}

func (r *reader) fail(want string) {
	if r.err == nil {
		r.err = fmt.Errorf("at byte %d there is no %s", r.at, want)
	}
}

// null passes over a null, which leaves everything as it is.
func (r *reader) null() bool {
	if r.next() != 'n' {
		return false
	}
	r.skip()
	return true
}

// fields goes through the names of an object. The value of each must be read or
// skipped before the next. Null has no fields.
func (r *reader) fields() iter.Seq[string] {
	return func(yield func(string) bool) {
		if r.null() || !r.expect('{', "object") {
			return
		}
		for r.next() != '}' {
			name := r.quoted()
			if !r.expect(':', "colon") || !yield(name) || r.err != nil {
				return
			}
			if r.next() == ',' {
				r.at++
			}
		}
		r.at++
	}
}

// list reads the elements of a list.
func list[T any](r *reader, into *[]T, read func(*reader, *T)) {
	if r.null() || !r.expect('[', "list") {
		return
	}
	elements := []T{}
	for r.next() != ']' {
		var element T
		if cap(elements) == 0 {
			elements = make([]T, 0, 4)
		}
		elements = append(elements, element)
		if read(r, &elements[len(elements)-1]); r.err != nil {
			return
		}
		if r.next() == ',' {
			r.at++
		}
	}
	r.at++
	*into = elements
}

// pointer reads a value that may be absent.
func pointer[T any](r *reader, into **T, read func(*reader, *T)) {
	if r.null() {
		return
	}
	*into = new(T)
	read(r, *into)
}

// presence reads of an object only that it is there.
func presence[T any](r *reader, _ *T) {
	if r.null() {
		return
	}
	if r.next() != '{' {
		r.fail("object")
	}
	r.skip()
}

// stringValue reads a string.
func stringValue[S ~string](r *reader, into *S) {
	if !r.null() {
		*into = S(r.quoted())
	}
}

// integer reads a whole number that is written as one.
func integer[I int32 | int64](r *reader, into *I) {
	if r.null() {
		return
	}
	r.next()
	start := r.at
	r.literal()
	n, err := strconv.ParseInt(r.text[start:r.at], 10, 64)
	if err != nil || int64(I(n)) != n {
		r.at = start
		r.fail("whole number that fits")
	}
	*into = I(n)
}

func boolean(r *reader, into *bool) {
	if r.null() {
		return
	}
	r.next()
	start := r.at
	r.literal()
	switch r.text[start:r.at] {
	case "true":
		*into = true
	case "false":
		*into = false
	default:
		r.at = start
		r.fail("boolean")
	}
}

// quantity reads a quantity, which is written as a string or as a number.
func quantity(r *reader, into *resource.Quantity) {
	if r.null() {
		return
	}
	r.next()
	start := r.at
	var text string
	if r.next() == '"' {
		text = r.quoted()
	} else {
		r.literal()
		text = r.text[start:r.at]
	}
	q, err := resource.ParseQuantity(strings.TrimSpace(text)) // as its UnmarshalJSON does
	if r.err != nil {
		return
	}
	if err != nil {
		r.at = start
		r.fail("quantity")
		return
	}
	*into = q
}

// quoted reads a string that is there.
func (r *reader) quoted() string {
	if r.err != nil || r.next() != '"' {
		r.fail("string")
		return ""
	}
	start := r.at
	escaped := r.string()
	if r.err != nil {
		return ""
	}
	if !escaped {
		return r.text[start+1 : r.at-1]
	}
	plain, err := jsontext.AppendUnquote(nil, r.text[start:r.at])
	if err != nil {
		r.err = err
	}
	return string(plain)
}

// string passes over a string, and reports whether something in it is escaped.
func (r *reader) string() (escaped bool) {
	for i := r.at + 1; i < len(r.text); i++ {
		switch r.text[i] {
		case '\\':
			escaped = true
			i++
		case '"':
			r.at = i + 1
			return escaped
		}
	}
	r.fail("end of the string")
	return false
}

// literal passes over a number, true, false or null.
func (r *reader) literal() {
	for ; r.at < len(r.text); r.at++ {
		switch r.text[r.at] {
		case ',', ':', ']', '}', ' ', '\t', '\n', '\r':
			return
		}
	}
}

// skip passes over a value.
func (r *reader) skip() {
	for depth := 0; r.err == nil; {
		switch c := r.next(); c {
		case '{', '[':
			depth++
			r.at++
		case '}', ']':
			depth--
			r.at++
		case '"':
			r.string()
		case ',', ':':
			r.at++
		case 0:
			r.fail("value")
		default:
			r.literal()
		}
		if depth <= 0 {
			return
		}
	}
}
