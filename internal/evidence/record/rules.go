package record

import (
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// rule is what a string in a record must be: one of words, prefix with an HMAC behind it, or what holds says. Rules
// are made anew for each field of each record, so they are values in which nothing is put together before it is needed.
type rule struct {
	most     int // in bytes
	optional bool
	what     string
	holds    func(string) bool
	words    []string
	prefix   string
}

func (r *rule) admits(s string) bool {
	switch {
	case r.words != nil:
		return slices.Contains(r.words, s)
	case r.prefix != "":
		rest, ok := strings.CutPrefix(s, r.prefix)
		return ok && isMAC(rest)
	}
	return r.holds(s)
}

func (r *rule) String() string {
	switch {
	case r.words != nil:
		return "one of " + strings.Join(r.words, ", ")
	case r.prefix != "":
		return strconv.Quote(r.prefix) + " and 128 bits in lower-case base32"
	}
	return r.what
}

func (r rule) orEmpty() rule {
	r.optional = true
	return r
}

func madeOf(s, others string) bool {
	for i := range len(s) {
		b := s[i]
		if (b < 'a' || b > 'z') && (b < 'A' || b > 'Z') && (b < '0' || b > '9') && strings.IndexByte(others, b) < 0 {
			return false
		}
	}
	return s != ""
}

// token is an identifier that a machine has made.
func token(most int) rule {
	return rule{most: most, what: "letters, digits and -._ alone", holds: func(s string) bool { return madeOf(s, "-._") }}
}

// path is a token with slashes, such as a group, version and kind, or an origin.
func path(most int) rule {
	return rule{most: most, what: "letters, digits and -._/ alone", holds: func(s string) bool { return madeOf(s, "-._/") }}
}

// name is a name in clear: of a node, a guard or a configuration, which are not named after persons.
func name() rule {
	return rule{most: 253, what: "a name of Kubernetes", holds: func(s string) bool { return s == strings.ToLower(s) && madeOf(s, "-.:") }}
}

// namespace is the name of one, in clear.
func namespace() rule {
	r := name()
	r.most = 63
	return r
}

// maxProse is in characters, as the API server counts them.
const maxProse = 500

// prose is what a person has written. Only its length is bounded.
func prose() rule {
	return rule{most: maxProse * utf8.UTFMax, what: "text of at most 500 characters", holds: func(s string) bool {
		return s != "" && utf8.RuneCountInString(s) <= maxProse
	}}
}

// Excerpt is for ConfigChanged.Reason: the first 500 characters of text, and how many it has.
func Excerpt(text string) (string, uint64) {
	n := 0
	for i := range text {
		if n == maxProse {
			return text[:i], uint64(utf8.RuneCountInString(text))
		}
		n++
	}
	return text, uint64(n)
}

// visible is one line of printable ASCII, such as a version or a key of a signed note.
func visible(most int) rule {
	return rule{most: most, what: "printable ASCII", holds: func(s string) bool {
		return s != "" && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' })
	}}
}

func oneOf(words ...string) rule {
	return rule{most: 32, words: words}
}

// keyed is an HMAC with what it is in front.
func keyed(prefix string) rule { return rule{most: len(prefix) + 26, prefix: prefix} }

// isMAC tells whether s is 128 bits in lower-case base32. 26 digits have room for two bits more, which must be 0: they
// must not make a second way to write the same.
func isMAC(s string) bool {
	if len(s) != 26 {
		return false
	}
	for i := range len(s) {
		if strings.IndexByte(base32Digits, s[i]) < 0 {
			return false
		}
	}
	return strings.IndexByte(base32Digits, s[25])%4 == 0
}

func digest() rule { return keyed(prefixDigest) }

func bootID() rule {
	return rule{most: 32, what: "32 digits of lower-case hexadecimal", holds: func(s string) bool {
		return len(s) == 32 && strings.Trim(s, "0123456789abcdef") == ""
	}}
}

func kindName() rule {
	return rule{most: 32, what: "lower-case letters and dots", holds: func(s string) bool {
		return s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz.") == ""
	}}
}
