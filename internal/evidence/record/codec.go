package record

import (
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

const (
	// MaxLine is how long a record may be, in bytes and without the newline behind it.
	MaxLine = 16 << 10
	// maxNumber is the largest integer that every JSON implementation reads exactly.
	maxNumber = 1<<53 - 1
	// timeLayout has all nine digits always, so that there is one way to write an instant.
	timeLayout = "2006-01-02T15:04:05.000000000Z"
)

// FieldError says which field of a record breaks which rule. It never has the value, which may be what must not
// get into a log.
type FieldError struct {
	Field string
	Must  string
}

func (e *FieldError) Error() string { return e.Field + ": must " + e.Must }

// codec goes through the fields of a record in their one order, and either writes them or reads them. After the
// first error it does nothing more.
type codec struct {
	buf     []byte
	at      int // reading: what is next in buf
	reading bool
	first   bool // no member of the open object or list yet
	path    []step
	err     error
}

type step struct {
	name  string
	index int // in a list, otherwise -1
}

func (c *codec) fail(name, must string) {
	if c.err != nil {
		return
	}
	var b strings.Builder
	for _, s := range append(c.path, step{name, -1}) {
		switch {
		case s.index >= 0:
			b.WriteString("[" + strconv.Itoa(s.index) + "]")
		case s.name == "":
		case b.Len() == 0:
			b.WriteString(s.name)
		default:
			b.WriteString("." + s.name)
		}
	}
	c.err = &FieldError{b.String(), must}
}

// require is for rules between fields. It holds when writing and when reading.
func (c *codec) require(holds bool, name, must string) {
	if !holds {
		c.fail(name, must)
	}
}

// literal writes s, or reads exactly that.
func (c *codec) literal(s string) bool {
	if !c.reading {
		c.buf = append(c.buf, s...)
		return true
	}
	if len(c.buf)-c.at < len(s) || string(c.buf[c.at:c.at+len(s)]) != s {
		return false
	}
	c.at += len(s)
	return true
}

// member begins a member of an object or, without a name, an element of a list.
func (c *codec) member(name string) bool {
	if c.err != nil {
		return false
	}
	ok := c.first || c.literal(",")
	c.first = false
	if name != "" {
		ok = ok && c.literal(`"`) && c.literal(name) && c.literal(`":`)
	}
	if !ok {
		c.fail(name, "be the next field, once and without blanks")
	}
	return ok
}

func (c *codec) object(name string, fields func(*codec)) {
	if !c.member(name) {
		return
	}
	c.path = append(c.path, step{name, -1})
	c.braces(fields)
	c.path = c.path[:len(c.path)-1]
}

func (c *codec) braces(fields func(*codec)) {
	if !c.literal("{") {
		c.fail("", "be an object")
		return
	}
	c.first = true
	fields(c)
	if c.err == nil && !c.literal("}") {
		c.fail("", "end after its last field")
	}
	c.first = false
}

// list goes through a list of at most most elements. If order is given, they are in that order and none is twice.
// An empty list is read as nil.
func list[T any](c *codec, name string, most int, items *[]T, order func(a, b T) int, each func(*codec, *T)) {
	if !c.member(name) {
		return
	}
	c.path = append(c.path, step{name, -1})
	defer func() { c.path = c.path[:len(c.path)-1] }()
	if !c.literal("[") {
		c.fail("", "be a list")
		return
	}
	c.first = true
	if c.reading {
		*items = nil
	}
	for i := 0; c.err == nil; i++ {
		if c.reading && c.literal("]") || !c.reading && i == len(*items) {
			break
		}
		if i == most {
			c.fail("", "have at most "+strconv.Itoa(most)+" elements")
			return
		}
		if c.reading {
			var zero T
			*items = append(*items, zero)
		}
		c.path = append(c.path, step{"", i})
		each(c, &(*items)[i])
		if order != nil && i > 0 && c.err == nil {
			c.require(order((*items)[i-1], (*items)[i]) < 0, "", "be sorted, and none twice")
		}
		c.path = c.path[:len(c.path)-1]
	}
	if !c.reading && c.err == nil {
		c.literal("]")
	}
	c.first = false
}

// text goes through a string that keeps to r.
func (c *codec) text(name string, v *string, r rule) {
	if !c.member(name) {
		return
	}
	if c.reading {
		s, ok := c.quoted()
		if !ok {
			c.fail(name, "be a string, escaped in the one way")
			return
		}
		*v = s
	} else {
		c.buf = appendQuoted(c.buf, *v)
	}
	switch {
	case *v == "" && r.optional:
	case len(*v) > r.most:
		c.fail(name, "be at most "+strconv.Itoa(r.most)+" bytes long")
	case !utf8.ValidString(*v):
		c.fail(name, "be UTF-8")
	case !r.admits(*v):
		c.fail(name, "be "+r.String())
	}
}

// escaped are the characters that are written as \u00xx: those that would end the line, or move a terminal's cursor.
func escaped(b byte) bool { return b < 0x20 || b == 0x7f }

func appendQuoted(buf []byte, s string) []byte {
	const digits = "0123456789abcdef"
	buf = append(buf, '"')
	for i := range len(s) {
		switch b := s[i]; {
		case b == '"' || b == '\\':
			buf = append(buf, '\\', b)
		case escaped(b):
			buf = append(buf, '\\', 'u', '0', '0', digits[b>>4], digits[b&15])
		default:
			buf = append(buf, b)
		}
	}
	return append(buf, '"')
}

func (c *codec) quoted() (string, bool) {
	if !c.literal(`"`) {
		return "", false
	}
	start := c.at
	var out []byte // only when there is an escape
	for c.at < len(c.buf) {
		switch b := c.buf[c.at]; {
		case b == '"':
			c.at++
			if out == nil {
				return string(c.buf[start : c.at-1]), true
			}
			return string(out), true
		case escaped(b):
			return "", false
		case b == '\\':
			if out == nil {
				out = append(make([]byte, 0, 64), c.buf[start:c.at]...)
			}
			plain, n, ok := unescape(c.buf[c.at:])
			if !ok {
				return "", false
			}
			out = append(out, plain)
			c.at += n
		default:
			if out != nil {
				out = append(out, b)
			}
			c.at++
		}
	}
	return "", false
}

// unescape reads the escape that b begins with, and takes none that appendQuoted does not write.
func unescape(b []byte) (plain byte, n int, ok bool) {
	if len(b) >= 2 && (b[1] == '"' || b[1] == '\\') {
		return b[1], 2, true
	}
	if len(b) < 6 || string(b[:4]) != `\u00` {
		return 0, 0, false
	}
	var v [1]byte
	if _, err := hex.Decode(v[:], b[4:6]); err != nil || !escaped(v[0]) || hex.EncodeToString(v[:]) != string(b[4:6]) {
		return 0, 0, false
	}
	return v[0], 6, true
}

func (c *codec) number(name string, v *uint64) { c.numberTo(name, v, maxNumber) }

func (c *codec) numberTo(name string, v *uint64, most uint64) {
	if !c.member(name) {
		return
	}
	if c.reading {
		start := c.at
		for c.at < len(c.buf) && c.buf[c.at] >= '0' && c.buf[c.at] <= '9' {
			c.at++
		}
		digits := c.buf[start:c.at]
		n, err := strconv.ParseUint(string(digits), 10, 64)
		if err != nil || len(digits) > 1 && digits[0] == '0' {
			c.fail(name, "be an integer from 0, in digits alone")
			return
		}
		*v = n
	} else {
		c.buf = strconv.AppendUint(c.buf, *v, 10)
	}
	if *v > most {
		c.fail(name, fmt.Sprintf("be at most %d", most))
	}
}

func (c *codec) flag(name string, v *bool) {
	if !c.member(name) {
		return
	}
	if !c.reading {
		c.buf = strconv.AppendBool(c.buf, *v)
		return
	}
	if *v = c.literal("true"); !*v && !c.literal("false") {
		c.fail(name, "be true or false")
	}
}

// instant goes through a point of time, to the nanosecond and in UTC.
func (c *codec) instant(name string, v *time.Time) {
	if !c.member(name) {
		return
	}
	if !c.reading {
		if u := v.UTC(); u.Year() < 1970 || u.Year() > 9999 {
			c.fail(name, "lie between the years 1970 and 9999")
			return
		}
		c.buf = append(v.UTC().AppendFormat(append(c.buf, '"'), timeLayout), '"')
		return
	}
	s, ok := c.quoted()
	t, err := time.Parse(timeLayout, s)
	if !ok || err != nil || t.Format(timeLayout) != s || t.Year() < 1970 {
		c.fail(name, "be a time in UTC with nine digits of a second and Z")
		return
	}
	*v = t
}

// binary goes through bytes of a fixed length, in lower-case hexadecimal as sha256sum prints them.
func (c *codec) binary(name string, v []byte) {
	if !c.member(name) {
		return
	}
	if !c.reading {
		c.buf = append(hex.AppendEncode(append(c.buf, '"'), v), '"')
		return
	}
	s, ok := c.quoted()
	if !ok || len(s) != hex.EncodedLen(len(v)) || strings.ToLower(s) != s {
		c.fail(name, fmt.Sprintf("be %d digits of lower-case hexadecimal", hex.EncodedLen(len(v))))
		return
	}
	if _, err := hex.Decode(v, []byte(s)); err != nil {
		c.fail(name, fmt.Sprintf("be %d digits of lower-case hexadecimal", hex.EncodedLen(len(v))))
	}
}
