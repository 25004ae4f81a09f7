package record

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"strings"
	"testing"
)

func TestWhoStaysInClear(t *testing.T) {
	p := testNames()
	for user, want := range map[string]SubjectKind{
		"system:serviceaccount:kube-system:job-controller": ServiceAccount,
		"system:node:node-a.example.org":                   Node,
		"":                                                 Unknown,
		"ola@example.org":                                  User,
		"system:serviceaccount:kube-system":                User,
		"system:serviceaccount:kube-system:a:b":            User,
		"system:serviceaccount:Ola:nordmann":               User,
		"system:serviceaccount:a:ola nordmann":             User,
		"system:node:":                                     User,
		"system:node:" + strings.Repeat("a", 254):          User,
		"system:admin":                                     User,
		"øyvind\x00":                                       User,
	} {
		s := p.Subject(user)
		if s.Kind != want {
			t.Errorf("%q: got %s; want %s", user, s.Kind, want)
		}
		if (want == User) != strings.HasPrefix(s.ID, "p1:") || want != User && s.ID != user {
			t.Errorf("%q: got %q", user, s.ID)
		}
		c := &codec{}
		if c.braces(s.fields); c.err != nil {
			t.Errorf("%q: cannot be written: %v", user, c.err)
		}
	}
	for groupName, clear := range map[string]bool{"system:masters": true, "platform": false, "system:Ola": false, "system:": false, "system:serviceaccounts:shop": true} {
		got := p.Group(groupName)
		if (got == groupName) != clear || !group().holds(got) {
			t.Errorf("group %q: got %q", groupName, got)
		}
	}
}

// The construction, written down a second time.
func TestPseudonymsAreMadeAsDocumented(t *testing.T) {
	want := func(field, value string) string {
		k := testKey()
		m := hmac.New(sha256.New, k[:])
		m.Write([]byte(field))
		m.Write([]byte{0})
		m.Write([]byte(value))
		return strings.ToLower(strings.TrimRight(base32.StdEncoding.EncodeToString(m.Sum(nil)[:16]), "="))
	}
	p := testNames()
	for got, want := range map[string]string{
		p.Subject("ola").ID:         "p1:" + want("user", "ola"),
		p.Group("ola"):              "p1:" + want("group", "ola"),
		p.Object("v1/Pod", "", "a"): "h:" + want("object", "v1/Pod\x00\x00a"),
		p.Digest([]byte("ola")):     "h:" + want("digest", "ola"),
	} {
		if got != want {
			t.Errorf("got %s; want %s", got, want)
		}
	}
}

func TestPseudonymsTellNothingTogether(t *testing.T) {
	p := testNames()
	other := NewPseudonymiser(Key{1})
	all := []string{
		p.Subject("ola").ID, p.Group("ola"), p.Digest([]byte("ola")), p.Object("ola", "", ""), other.Subject("ola").ID,
		p.Object("v1/Pod", "a", "b"), p.Object("v1/Pod", "", "a/b"), p.Object("v1/Pod", "a/b", ""), p.Object("v1/Service", "a", "b"),
	}
	seen := map[string]bool{}
	for _, s := range all {
		_, raw, _ := strings.Cut(s, ":")
		if seen[raw] {
			t.Errorf("%s is there twice", s)
		}
		seen[raw] = true
	}
	if p.Subject("ola") != NewPseudonymiser(testKey()).Subject("ola") {
		t.Error("the same name under the same key is another")
	}
}

func TestKeys(t *testing.T) {
	if _, err := NewKey(bytes.NewReader(make([]byte, 31))); err == nil {
		t.Error("made a key of 31 bytes")
	}
	k := testKey()
	if !keyID().holds(k.ID()) || k.ID() == (Key{}).ID() || strings.Contains(k.ID(), "kkkk") {
		t.Errorf("ID %s", k.ID())
	}
	broken := errors.New("no randomness")
	if _, err := NewBoot(failing{broken}); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	if id, err := NewBoot(randomness()); err != nil || !bootID().holds(id) {
		t.Errorf("boot ID %q, %v", id, err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// 26 digits of base32 have room for 130 bits; the two that are not used are always 0.
func TestThereIsOneSpellingOfAPseudonym(t *testing.T) {
	good, r := testNames().Digest(nil), digest()
	if !r.admits(good) {
		t.Fatal(good)
	}
	last := strings.IndexByte("abcdefghijklmnopqrstuvwxyz234567", good[len(good)-1])
	for _, wrong := range []string{
		good[:len(good)-1] + string("abcdefghijklmnopqrstuvwxyz234567"[last+1]),
		strings.ToUpper(good), "H" + good[1:], good + "a", good[:len(good)-1], good + "======", "h:", strings.Replace(good, "h:", "p1:", 1),
		good[:10] + "\n" + good[11:], "h:" + strings.Repeat("\n", 26),
	} {
		if r.admits(wrong) {
			t.Errorf("%q passes", wrong)
		}
	}
}
