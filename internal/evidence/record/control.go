package record

import (
	"time"
	"unicode/utf8"
)

// ConfigChanged is a change of the control itself: guards, webhook configurations, definitions, rights, admission
// policies. One that was made while nobody was asked is here too, without a request and by nobody known, as soon as
// it is seen; that is what makes a bypass visible.
type ConfigChanged struct {
	GVK string
	// Namespace and Name are in clear: these are Meshvakt's own objects, and guards.
	Namespace       string
	Name            string
	UID             string
	ResourceVersion string
	// What is created, changed, deleted, or repaired where Meshvakt has put it back.
	What string
	// Before and After are digests; empty where there was, or is, none. What is found at the start of a process is no
	// change: a change during the stop shows between the last Beat before it and the first behind.
	Before string
	After  string
	// Found is when the watch told it. The record may be written up to some seconds later, behind the word of the one who
	// has put the object back.
	Found time.Time
	// Weaker: less is enforced than before. It is what Meshvakt makes of it; a verifier has the digests alone.
	Weaker bool
	By     Subject
	// Request is the UID of the request, if it came by one.
	Request string
	// Reason is what annotation meshvakt.io/change-reason said; empty where it is not asked for. The API server takes
	// one of any length: the record has the first 500 characters, and ReasonN counts all.
	Reason  string
	ReasonN uint64
}

// Kind is that of a ConfigChanged.
func (*ConfigChanged) Kind() Kind { return KindConfigChanged }

func (g *ConfigChanged) fields(c *codec) {
	c.text("gvk", &g.GVK, path(ownGVK))
	c.text("ns", &g.Namespace, namespace().orEmpty())
	c.text("name", &g.Name, name())
	c.text("uid", &g.UID, token(64).orEmpty())
	c.text("rv", &g.ResourceVersion, token(32).orEmpty())
	c.text("what", &g.What, oneOf("created", "changed", "deleted", "repaired"))
	c.text("before", &g.Before, digest().orEmpty())
	c.text("after", &g.After, digest().orEmpty())
	c.require(g.Before == "" || g.What != "created", "before", "be empty for what was created")
	c.require(g.After == "" || g.What != "deleted", "after", "be empty for what was deleted")
	c.instant("found", &g.Found)
	c.flag("weaker", &g.Weaker)
	c.object("by", g.By.fields)
	c.text("req", &g.Request, token(64).orEmpty())
	c.text("why", &g.Reason, prose().orEmpty())
	c.number("whyN", &g.ReasonN)
	n := uint64(utf8.RuneCountInString(g.Reason))
	c.require(g.ReasonN == n || n == maxProse && g.ReasonN > n, "whyN", "count the characters of why, of which 500 are there")
}

// KeyCreated is a key that is in use from here on: of pseudonyms, or of the log's signatures.
type KeyCreated struct {
	// For is pseudonyms or log.
	For string
	// ID is Key.ID for pseudonyms. For a key of the log, VerifierKey is the key itself in the form of signed notes
	// and ID is empty; it is announced in the shard before the one that it signs.
	ID          string
	VerifierKey string
}

// Kind is that of a KeyCreated.
func (*KeyCreated) Kind() Kind { return KindKeyCreated }

func (k *KeyCreated) fields(c *codec) {
	c.text("for", &k.For, keyUse())
	c.text("id", &k.ID, keyID().orEmpty())
	c.text("vkey", &k.VerifierKey, visible(512).orEmpty())
	c.require((k.For == "pseudonyms") == (k.ID != ""), "id", "be there for pseudonyms, and for them alone")
	c.require((k.For == "log") == (k.VerifierKey != ""), "vkey", "be there for a key of the log, and for it alone")
}

func keyUse() rule { return oneOf("pseudonyms", "log") }

// KeyDestroyed is the end of a key of pseudonyms, after which nobody can find out whom they stand for. It is in the
// shard that goes on, and names the one that is done with.
type KeyDestroyed struct {
	ID     string
	Origin string
	// Why is retention, or request where somebody else has taken it away before its time.
	Why string
	By  Subject
}

// Kind is that of a KeyDestroyed.
func (*KeyDestroyed) Kind() Kind { return KindKeyDestroyed }

func (k *KeyDestroyed) fields(c *codec) {
	c.text("id", &k.ID, keyID())
	c.text("origin", &k.Origin, path(255))
	c.text("why", &k.Why, oneOf("retention", "request"))
	c.object("by", k.By.fields)
}

// KeyUsed is somebody finding out what is held about a person. Whom it was about is not in it, or the record of an
// access request would be one more record about its subject.
type KeyUsed struct {
	ID     string
	Origin string
	By     Subject
	Reason string
	// N counts the records that were found.
	N uint64
}

// Kind is that of a KeyUsed.
func (*KeyUsed) Kind() Kind { return KindKeyUsed }

func (k *KeyUsed) fields(c *codec) {
	c.text("id", &k.ID, keyID())
	c.text("origin", &k.Origin, path(255))
	c.object("by", k.By.fields)
	c.text("why", &k.Reason, prose())
	c.number("n", &k.N)
}
