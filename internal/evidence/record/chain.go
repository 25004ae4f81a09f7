package record

import (
	"errors"
	"fmt"
	"io"
	"time"
)

// ErrBroken is wrapped by what Chain.Follow finds wrong with a record's place in the chain, as opposed to its form.
var ErrBroken = errors.New("chain of records is broken")

// Chain is the end of a shard, to which the next record is to be added. It is a value: Next and Follow return the
// Chain behind the new record and leave the one before as it was, so a record that could not be stored is undone
// by not taking over what Next has returned. One writer at a time goes on with it.
type Chain struct {
	size uint64 // records so far
	last Hash   // of the last one, or what the Genesis has as Prev
	boot string
	mono time.Duration
	// expect is the one kind that may come next, or empty.
	expect Kind
	closed bool
}

// Link is a record that was added.
type Link struct {
	Line []byte // without a newline
	Seq  uint64
	Hash Hash
}

// NewBoot takes the ID of a start of the process from random.
func NewBoot(random io.Reader) (string, error) {
	var id Salt
	if _, err := io.ReadFull(random, id[:]); err != nil {
		return "", fmt.Errorf("read randomness for a boot ID: %w", err)
	}
	return fmt.Sprintf("%x", id), nil
}

// Begin returns the chain of a new shard. Before is the hash of the last record of the shard before, or zero.
func Begin(before Hash) Chain { return Chain{last: before, expect: KindGenesis} }

// Resume returns the chain that ends with line, for a process that goes on where another has ended. It trusts the
// line: whether all before is sound is for a verifier to say. A last record of a newer Meshvakt will do.
func Resume(line []byte) (Chain, error) {
	r, err := Parse(line)
	if err != nil && !errors.Is(err, ErrUnknownKind) {
		return Chain{}, fmt.Errorf("resume the chain: %w", err)
	}
	return Chain{size: r.Seq}.behind(r, line), nil
}

// Size is the number of records, and the Seq of the next.
func (c Chain) Size() uint64 { return c.size }

// Last is the hash of the last record.
func (c Chain) Last() Hash { return c.last }

// Closed tells that no record may follow.
func (c Chain) Closed() bool { return c.closed }

// Next adds a record. Its mono is raised to the last one's where it lies before: of two callers that have looked at
// the clock at once either may come first, and the order of the chain is the one that counts.
func (c Chain) Next(body Body, boot string, now time.Time, mono time.Duration, random io.Reader) (Link, Chain, error) {
	if body == nil {
		return Link{}, c, &FieldError{"kind", "be there"}
	}
	r := Record{Head: Head{Seq: c.size, Prev: c.last, Time: now, Mono: mono.Truncate(time.Microsecond), Boot: boot}, Body: body}
	if boot == c.boot {
		r.Mono = max(r.Mono, c.mono)
	}
	if _, err := io.ReadFull(random, r.Salt[:]); err != nil {
		return Link{}, c, fmt.Errorf("read randomness for a salt: %w", err)
	}
	if err := c.admits(r, body.Kind()); err != nil {
		return Link{}, c, err
	}
	line, err := Encode(r)
	if err != nil {
		return Link{}, c, fmt.Errorf("encode record %d: %w", c.size, err)
	}
	next := c.behind(r, line)
	return Link{line, c.size, next.last}, next, nil
}

// Follow reads a line as the next record, as a verifier does. What it finds wrong with the form is what Parse finds,
// and with the place wraps ErrBroken. A record of an unknown kind has its place checked like any other; the Chain
// behind it is returned along with ErrUnknownKind.
func (c Chain) Follow(line []byte) (Record, Chain, error) {
	r, err := Parse(line)
	if err != nil && !errors.Is(err, ErrUnknownKind) {
		return Record{}, c, fmt.Errorf("record %d: %w", c.size, err)
	}
	kind := Kind("")
	if r.Body != nil {
		kind = r.Body.Kind()
	}
	if broken := c.admits(r, kind); broken != nil {
		return Record{}, c, broken
	}
	return r, c.behind(r, line), err
}

// admits tells whether r may come next.
func (c Chain) admits(r Record, kind Kind) error {
	broken := func(what string) error { return fmt.Errorf("record %d: %s: %w", c.size, what, ErrBroken) }
	isBoot := kind == KindBoot
	switch {
	case c.closed:
		return broken("follows the close of the shard")
	case r.Seq != c.size:
		return broken("has another sequence number")
	case r.Prev != c.last:
		return broken("has the hash of another record as that before it")
	case c.expect != "" && kind != c.expect:
		return broken("is not of kind " + string(c.expect))
	case c.size > 0 && kind == KindGenesis:
		return broken("is a second genesis")
	case c.size > 0 && r.Boot != c.boot && !isBoot:
		return broken("is of another start of the process, and not a boot")
	case c.size > 0 && r.Boot == c.boot && r.Mono < c.mono:
		return broken("was made before the one before it")
	case c.size > 1 && r.Boot == c.boot && isBoot:
		return broken("is a second boot of one start")
	}
	if g, ok := r.Body.(*Genesis); ok && (g.PrevSize == 0) != (r.Prev == Hash{}) {
		return broken("has a shard before it without its hash, or a hash without a shard")
	}
	return nil
}

// behind returns the chain with r at its end.
func (c Chain) behind(r Record, line []byte) Chain {
	next := Chain{size: c.size + 1, last: HashOf(line), boot: r.Boot, mono: r.Mono}
	switch r.Body.(type) {
	case *Genesis:
		next.expect = KindBoot
	case *Close:
		next.closed = true
	}
	return next
}
