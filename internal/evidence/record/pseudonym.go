package record

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"fmt"
	"io"
	"strings"
)

const (
	prefixPerson = "p1:"
	prefixDigest = "h:"
	prefixKey    = "k:"

	serviceAccountPrefix = "system:serviceaccount:"
	nodePrefix           = "system:node:"
	systemPrefix         = "system:"

	base32Digits = "abcdefghijklmnopqrstuvwxyz234567"
)

func base32Encoding() *base32.Encoding {
	return base32.NewEncoding(base32Digits).WithPadding(base32.NoPadding)
}

// Key makes the pseudonyms of one shard. All replicas share it, or the verifier could not find what one of them
// decided in what another has seen. Whoever has it can try names; once it is destroyed nobody can.
type Key [32]byte

// NewKey takes a key from random.
func NewKey(random io.Reader) (Key, error) {
	var k Key
	if _, err := io.ReadFull(random, k[:]); err != nil {
		return Key{}, fmt.Errorf("read randomness for a pseudonym key: %w", err)
	}
	return k, nil
}

// ID names the key without telling anything of it, so that it may be published.
func (k Key) ID() string {
	sum := sha256.Sum256(append([]byte("meshvakt pseudonym key\x00"), k[:]...))
	return prefixKey + hex.EncodeToString(sum[:16])
}

// Pseudonymiser turns names into what may stand in a record. The field is part of what is hashed, so that a
// person and an object of the same name have nothing in common.
type Pseudonymiser struct{ key Key }

// NewPseudonymiser returns the one that works with key.
func NewPseudonymiser(key Key) Pseudonymiser { return Pseudonymiser{key} }

// Subject is who has done something: a service account or node in clear, everybody else by pseudonym.
type Subject struct {
	Kind SubjectKind
	ID   string
}

// SubjectKind says how the ID of a Subject is to be read.
type SubjectKind string

// The kinds of subjects. Unknown is for changes that a watch has shown and no request.
const (
	User           SubjectKind = "user"
	ServiceAccount SubjectKind = "sa"
	Node           SubjectKind = "node"
	Unknown        SubjectKind = "unknown"
)

// Subject takes the user name of a request. What only looks like a service account or a node is a user.
func (p Pseudonymiser) Subject(user string) Subject {
	switch {
	case user == "":
		return Subject{Kind: Unknown}
	case isServiceAccount(user):
		return Subject{ServiceAccount, user}
	case isNode(user):
		return Subject{Node, user}
	}
	return Subject{User, p.mac(prefixPerson, "user", user)}
}

// Group takes a group of a request's user. Groups that Kubernetes reserves for itself stay in clear, for they
// name rights and no persons.
func (p Pseudonymiser) Group(group string) string {
	if isSystemGroup(group) {
		return group
	}
	return p.mac(prefixPerson, "group", group)
}

// Object takes the name of an object, which people choose and name after people.
func (p Pseudonymiser) Object(gvk, namespace, name string) string {
	return p.mac(prefixDigest, "object", gvk+"\x00"+namespace+"\x00"+name)
}

// Digest takes the canonical form of what is read of an object. It is keyed, for a plain hash of a spec with few
// possible values tells the spec.
func (p Pseudonymiser) Digest(canonical []byte) string {
	return p.mac(prefixDigest, "digest", string(canonical))
}

// mac is unambiguous, for no field has a NUL in it.
func (p Pseudonymiser) mac(prefix, field, value string) string {
	m := hmac.New(sha256.New, p.key[:])
	m.Write([]byte(field + "\x00" + value))
	return prefix + base32Encoding().EncodeToString(m.Sum(nil)[:16])
}

func isServiceAccount(s string) bool {
	rest, ok := strings.CutPrefix(s, serviceAccountPrefix)
	namespace, account, two := strings.Cut(rest, ":")
	return ok && two && isName(namespace) && isName(account)
}

func isNode(s string) bool {
	rest, ok := strings.CutPrefix(s, nodePrefix)
	return ok && isName(rest)
}

func isSystemGroup(s string) bool {
	rest, ok := strings.CutPrefix(s, systemPrefix)
	return ok && len(s) <= 253 && rest == strings.ToLower(rest) && madeOf(rest, "-.:")
}

func isPerson(s string) bool {
	rest, ok := strings.CutPrefix(s, prefixPerson)
	return ok && isMAC(rest)
}

func isName(s string) bool { return len(s) <= 253 && s == strings.ToLower(s) && madeOf(s, "-.") }

func (s *Subject) fields(c *codec) {
	c.text("kind", (*string)(&s.Kind), oneOf(string(User), string(ServiceAccount), string(Node), string(Unknown)))
	c.text("id", &s.ID, rule{most: len(serviceAccountPrefix) + 2*253 + 1, optional: true, what: "what its kind says", holds: func(id string) bool {
		switch s.Kind {
		case User:
			return isPerson(id)
		case ServiceAccount:
			return isServiceAccount(id)
		case Node:
			return isNode(id)
		}
		return false
	}})
	c.require((s.ID == "") == (s.Kind == Unknown), "id", "be empty if, and only if, the kind is unknown")
}

// group is a pseudonym, or a group of Kubernetes' own.
func group() rule {
	return rule{most: 253, what: "a pseudonym or a group of Kubernetes' own", holds: func(s string) bool {
		return isSystemGroup(s) || isPerson(s)
	}}
}

func keyID() rule {
	return rule{most: len(prefixKey) + 32, what: `"k:" and 32 digits of lower-case hexadecimal`, holds: func(s string) bool {
		rest, ok := strings.CutPrefix(s, prefixKey)
		return ok && bootID().holds(rest)
	}}
}
