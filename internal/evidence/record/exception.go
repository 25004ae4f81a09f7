package record

import (
	"cmp"
	"time"
)

// ExceptionRequested is a GuardException that was asked for, told anew in each shard, by each start of the process and
// after each Gap of observation, as ExceptionGranted is: a shard can be read by itself. It has the terms, which cannot change once approved but
// to end earlier; what follows names the exception by the same Object.
//
// Reason and Reference are in clear, for a register without them is none. People write them, so they may have names
// in them; they are the only such fields together with ConfigChanged.Reason and KeyUsed.Reason.
type ExceptionRequested struct {
	Object Object
	By     Subject
	// Rules are policies, or policy/Reason, at most 64; RulesN counts all, and Object.Digest is over all.
	Rules  []string
	RulesN uint64
	// Selector is the digest of what it applies to.
	Selector  string
	Approval  string
	Reason    string
	Reference string
	Until     time.Time
}

// Kind is that of an ExceptionRequested.
func (*ExceptionRequested) Kind() Kind { return KindExceptionRequested }

func (e *ExceptionRequested) fields(c *codec) {
	c.object("obj", e.Object.fields)
	c.object("by", e.By.fields)
	list(c, "rules", 64, &e.Rules, cmp.Compare[string], func(c *codec, s *string) { c.text("", s, path(96)) })
	counted(c, "rulesN", &e.RulesN, len(e.Rules))
	c.text("selector", &e.Selector, digest())
	c.text("approval", &e.Approval, oneOf("TwoPerson", "None"))
	c.text("why", &e.Reason, prose())
	c.text("ticket", &e.Reference, prose())
	c.instant("until", &e.Until)
}

// ExceptionGranted is when one began to apply. Whether By may approve what For has asked for is for the verifier to
// judge: a record of an approval that should not have been must be possible above all.
type ExceptionGranted struct {
	Object Object
	By     Subject
	For    Subject
	Until  time.Time
}

// Kind is that of an ExceptionGranted.
func (*ExceptionGranted) Kind() Kind { return KindExceptionGranted }

func (e *ExceptionGranted) fields(c *codec) {
	c.object("obj", e.Object.fields)
	c.object("by", e.By.fields)
	c.object("for", e.For.fields)
	c.instant("until", &e.Until)
}

// ExceptionUsed counts what was found standing by one within a time. Requests that one has let pass have a Decision each,
// which names it; that is all there is of them.
type ExceptionUsed struct {
	Object Object
	How    string
	From   time.Time
	To     time.Time
	N      uint64
}

// Kind is that of an ExceptionUsed.
func (*ExceptionUsed) Kind() Kind { return KindExceptionUsed }

func (e *ExceptionUsed) fields(c *codec) {
	c.object("obj", e.Object.fields)
	c.text("how", &e.How, oneOf("admission", "standing"))
	c.instant("from", &e.From)
	c.instant("to", &e.To)
	c.number("n", &e.N)
	c.require(e.N > 0, "n", "be at least 1")
}

// ExceptionRevoked is one that was ended by somebody: revoked, shortened or deleted.
type ExceptionRevoked struct {
	Object Object
	By     Subject
	How    string
	// Until is its new end.
	Until time.Time
}

// Kind is that of an ExceptionRevoked.
func (*ExceptionRevoked) Kind() Kind { return KindExceptionRevoked }

func (e *ExceptionRevoked) fields(c *codec) {
	c.object("obj", e.Object.fields)
	c.object("by", e.By.fields)
	c.text("how", &e.How, oneOf("revoked", "shortened", "deleted"))
	c.instant("until", &e.Until)
}

// ExceptionExpired is one that has come to its end. It ended at Until, also where this is written later or not at all.
type ExceptionExpired struct {
	Object Object
	Until  time.Time
}

// Kind is that of an ExceptionExpired.
func (*ExceptionExpired) Kind() Kind { return KindExceptionExpired }

func (e *ExceptionExpired) fields(c *codec) {
	c.object("obj", e.Object.fields)
	c.instant("until", &e.Until)
}
