package record

import (
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// rule is what a string in a record must be.
type rule struct {
	most     int // in bytes
	optional bool
	what     string
	holds    func(string) bool
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
	return rule{most, false, "letters, digits and -._ alone", func(s string) bool { return madeOf(s, "-._") }}
}

// path is a token with slashes, such as a group, version and kind, or an origin.
func path(most int) rule {
	return rule{most, false, "letters, digits and -._/ alone", func(s string) bool { return madeOf(s, "-._/") }}
}

// name is a name in clear: of a node, a guard or a configuration, which are not named after persons.
func name() rule {
	return rule{253, false, "a name of Kubernetes", func(s string) bool { return s == strings.ToLower(s) && madeOf(s, "-.:") }}
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
	return rule{maxProse * utf8.UTFMax, false, "text of at most " + strconv.Itoa(maxProse) + " characters", func(s string) bool {
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
	return rule{most, false, "printable ASCII", func(s string) bool {
		return s != "" && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' })
	}}
}

func oneOf(words ...string) rule {
	return rule{32, false, "one of " + strings.Join(words, ", "), func(s string) bool { return slices.Contains(words, s) }}
}

// keyed is an HMAC with what it is in front.
func keyed(prefix string) rule {
	return rule{len(prefix) + 26, false, strconv.Quote(prefix) + " and 128 bits in lower-case base32", func(s string) bool {
		rest, ok := strings.CutPrefix(s, prefix)
		if !ok || len(rest) != 26 || rest != strings.ToLower(rest) {
			return false
		}
		raw, err := alphabet().DecodeString(rest)
		// 26 digits have room for two bits more, which must not make a second way to write the same.
		return err == nil && alphabet().EncodeToString(raw) == rest
	}}
}

func digest() rule { return keyed(prefixDigest) }

func bootID() rule {
	return rule{32, false, "32 digits of lower-case hexadecimal", func(s string) bool {
		return len(s) == 32 && strings.Trim(s, "0123456789abcdef") == ""
	}}
}

func kindName() rule {
	return rule{32, false, "lower-case letters and dots", func(s string) bool {
		return s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz.") == ""
	}}
}
