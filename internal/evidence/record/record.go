package record

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"
	"unicode/utf8"
)

// Version is of the format. A field more, or one that means something else, is another version; another kind is not.
const Version = 1

// Errors that a verifier answers in a way of its own: what it reads was written by a newer Meshvakt, and neither
// holds nor is broken.
var (
	ErrUnknownVersion = errors.New("a version of the format that is not known here")
	ErrUnknownKind    = errors.New("a kind of record that is not known here")
)

// Hash is the SHA-256 of a record as it is stored, without the newline behind it; or of something else, where a
// field says so.
type Hash [32]byte

func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// HashOf is the hash of a stored line.
func HashOf(line []byte) Hash { return sha256.Sum256(line) }

// Salt makes the hash of a record say nothing about it to whoever has the hash alone: most records could be guessed.
type Salt [16]byte

// Kind is of a record.
type Kind string

// Head is what all records begin with.
type Head struct {
	// Seq counts from 0 in each shard, so it is the index in the log too.
	Seq  uint64
	Prev Hash
	Salt Salt
	// Time is the wall clock's, as are all times in bodies. It may be wrong and go back, so no body must have its times
	// in any order: what happened while the clock was set could not be recorded.
	Time time.Time
	// Mono is since the start of the process, in whole microseconds: nanoseconds would leave what JSON can count
	// exactly after 104 days. It does not go back while Boot stays the same.
	Mono time.Duration
	// Boot is another for each start of the process.
	Boot string
}

// Body is what a record says beyond its Head: a pointer to one of the types of this package.
type Body interface {
	Kind() Kind
	fields(c *codec)
}

// Record is one line of evidence.
type Record struct {
	Head
	Body Body
}

// Encode returns the line of r, without a newline. An error is a *FieldError, or tells that the line gets too long.
func Encode(r Record) ([]byte, error) {
	if r.Body == nil {
		return nil, &FieldError{"kind", "be there"}
	}
	c := &codec{buf: make([]byte, 0, 1024)}
	kind := r.Body.Kind()
	c.braces(func(c *codec) {
		r.fields(c, &kind)
		r.Body.fields(c)
	})
	if c.err != nil {
		return nil, c.err
	}
	if len(c.buf) > MaxLine {
		return nil, fmt.Errorf("record of kind %s has %d bytes; must have at most %d", kind, len(c.buf), MaxLine)
	}
	return c.buf, nil
}

// Check reports whether body has a place in the format, as Encode would.
func Check(body Body) error {
	c := &codec{buf: make([]byte, 0, 1024)}
	c.braces(body.fields)
	return c.err
}

// Parse reads a line, without a newline. With ErrUnknownKind the Head is there all the same, so that a chain can be
// followed over records of a newer Meshvakt.
func Parse(line []byte) (Record, error) {
	if len(line) > MaxLine {
		return Record{}, fmt.Errorf("record has %d bytes; must have at most %d", len(line), MaxLine)
	}
	if !utf8.Valid(line) {
		return Record{}, errors.New("record is not UTF-8")
	}
	c := &codec{buf: line, reading: true}
	var r Record
	var kind Kind
	unknown := false
	c.braces(func(c *codec) {
		r.fields(c, &kind)
		if c.err != nil {
			return
		}
		if r.Body = newBody(kind); r.Body == nil {
			unknown = true
			return
		}
		r.Body.fields(c)
	})
	switch {
	case unknown:
		return Record{Head: r.Head}, fmt.Errorf("record %d: %w", r.Seq, ErrUnknownKind)
	case c.err != nil:
		return Record{}, c.err
	case c.at != len(line):
		return Record{}, errors.New("record does not end after its object")
	}
	return r, nil
}

func (h *Head) fields(c *codec, kind *Kind) {
	v := uint64(Version)
	c.number("v", &v)
	if c.err == nil && v != Version {
		c.err = ErrUnknownVersion
	}
	c.text("kind", (*string)(kind), kindName())
	c.number("seq", &h.Seq)
	c.binary("prev", h.Prev[:])
	c.binary("salt", h.Salt[:])
	c.instant("t", &h.Time)
	mono := uint64(h.Mono / time.Microsecond)
	c.require(c.reading || h.Mono >= 0 && h.Mono%time.Microsecond == 0, "mono", "be whole microseconds since the start")
	c.numberTo("mono", &mono, uint64(maxMono/time.Microsecond))
	h.Mono = time.Duration(mono) * time.Microsecond
	c.text("boot", &h.Boot, bootID())
}

// maxMono is 285 years, and still a time.Duration.
const maxMono = maxNumber * time.Microsecond
