package record

import (
	"cmp"
	"time"
)

// maxGVK is for group/version/Kind, of 253, 63 and 63 letters.
const maxGVK = 253 + 63 + 63 + 2

// ownGVK is for the kinds that Meshvakt itself watches, of which the longest has 66.
const ownGVK = 96

func verdict() rule { return oneOf("allow", "deny", "error") }

// Object is one object, by what can be said of it without its name and body.
type Object struct {
	GVK       string
	Namespace string // empty for cluster-scoped ones
	// Name is Pseudonymiser.Object; empty for objects whose name the API server has yet to make.
	Name string
	// UID is empty where a request had none.
	UID        string
	Generation uint64
	// Digest is Pseudonymiser.Digest of what Meshvakt reads of the object, which is more than its generation
	// counts: labels too. Decision and State take the same, so that a change that was seen finds the request
	// that made it. Empty after a deletion.
	Digest string
}

func (o *Object) fields(c *codec) {
	c.text("gvk", &o.GVK, path(maxGVK))
	c.text("ns", &o.Namespace, namespace().orEmpty())
	c.text("name", &o.Name, digest().orEmpty())
	c.text("uid", &o.UID, token(64).orEmpty())
	c.number("gen", &o.Generation)
	c.text("digest", &o.Digest, digest().orEmpty())
}

// Decision is one answer: each refusal, each request that could not be judged, and each change of what the mesh, a
// guard or an exception is made of. Dry runs leave none.
//
// It has no field path, message or value of a finding: those are parts of the object. The code with the policies
// (Boot.Policies) and guards in force says which rule it was.
type Decision struct {
	// Request is the UID of the request, by which the API server's own audit log has it too.
	Request     string
	Operation   string
	Subresource string
	Object      Object
	By          Subject
	// Groups has at most 16; GroupsN counts all.
	Groups  []string
	GroupsN uint64
	// Rules has at most 64; RulesN counts all findings.
	Rules  []Rule
	RulesN uint64
	// Guards is the digest of the guards in force.
	Guards  string
	Verdict string
	// Exceptions are the UIDs of those without which the verdict would be another, at most 8; ExceptionsN counts all.
	Exceptions  []string
	ExceptionsN uint64
	// BreakGlass: it was allowed although no record could be made of it at the time, to one of the break-glass group.
	BreakGlass bool
	// Micros is how long judging took.
	Micros uint64
}

// Rule counts the findings of one code that one thing was done with.
type Rule struct {
	Code   string
	Action string
	N      uint64
}

// Kind is that of a Decision.
func (*Decision) Kind() Kind { return KindDecision }

func (d *Decision) fields(c *codec) {
	c.text("req", &d.Request, token(64))
	c.text("op", &d.Operation, oneOf("CREATE", "UPDATE", "DELETE", "CONNECT"))
	c.text("sub", &d.Subresource, token(63).orEmpty())
	c.object("obj", d.Object.fields)
	c.object("by", d.By.fields)
	list(c, "groups", 16, &d.Groups, cmp.Compare[string], func(c *codec, s *string) { c.text("", s, group()) })
	counted(c, "groupsN", &d.GroupsN, len(d.Groups))
	list(c, "rules", 64, &d.Rules, func(a, b Rule) int {
		return cmp.Or(cmp.Compare(a.Code, b.Code), cmp.Compare(a.Action, b.Action))
	}, func(c *codec, r *Rule) {
		c.object("", func(c *codec) {
			c.text("code", &r.Code, token(16))
			c.text("action", &r.Action, oneOf("deny", "warn", "audit", "excepted"))
			c.number("n", &r.N)
		})
	})
	counted(c, "rulesN", &d.RulesN, len(d.Rules))
	c.text("guards", &d.Guards, digest())
	c.text("verdict", &d.Verdict, verdict())
	list(c, "exceptions", 8, &d.Exceptions, cmp.Compare[string], func(c *codec, s *string) { c.text("", s, token(64)) })
	counted(c, "exceptionsN", &d.ExceptionsN, len(d.Exceptions))
	c.flag("breakGlass", &d.BreakGlass)
	c.number("us", &d.Micros)
}

// counted goes through the number of all of which a list before it has some.
func counted(c *codec, name string, n *uint64, listed int) {
	c.number(name, n)
	c.require(*n >= uint64(listed), name, "count at least what is listed")
}

// Admitted counts compliant workloads of one owner and one template that were let in without more ado. Each of its
// own would be most of the log and say the same. It is written when its minute is over, so a crash loses at most a
// minute of it; Counters tell of that.
type Admitted struct {
	Namespace string
	// OwnerGVK and Owner are of the controller; the pod's own kind and no name where there is none.
	OwnerGVK string
	Owner    string
	// Template is the digest of what the pods had in common; empty where nothing says.
	Template string
	// Guards is the digest of the guards in force. When they change within the minute, there are two records.
	Guards string
	From   time.Time
	To     time.Time
	N      uint64
}

// Kind is that of an Admitted.
func (*Admitted) Kind() Kind { return KindAdmitted }

func (a *Admitted) fields(c *codec) {
	c.text("ns", &a.Namespace, namespace())
	c.text("ownerGvk", &a.OwnerGVK, path(maxGVK))
	c.text("owner", &a.Owner, digest().orEmpty())
	c.text("template", &a.Template, digest().orEmpty())
	c.text("guards", &a.Guards, digest())
	c.instant("from", &a.From)
	c.instant("to", &a.To)
	c.number("n", &a.N)
	c.require(a.N > 0, "n", "be at least 1")
}

// Remediation is something that Meshvakt itself has put right, or could not. The requests that it makes are
// decisions as those of anybody else; this says why it made them, and how long there was what had to be put right.
type Remediation struct {
	// What is restored for a policy of the mesh, provisioned for one that was not there, own for an object of Meshvakt's.
	What    string
	Object  Object
	Outcome string
	Tries   uint64
	// After and Found are the bounds of the beginning, Done is the end of it or, where it failed, of the last try.
	After time.Time
	Found time.Time
	Done  time.Time
}

// Kind is that of a Remediation.
func (*Remediation) Kind() Kind { return KindRemediation }

func (r *Remediation) fields(c *codec) {
	c.text("what", &r.What, oneOf("restored", "provisioned", "own"))
	c.object("obj", r.Object.fields)
	c.text("outcome", &r.Outcome, oneOf("done", "failed", "givenUp"))
	c.number("tries", &r.Tries)
	c.instant("after", &r.After)
	c.instant("found", &r.Found)
	c.instant("done", &r.Done)
}
