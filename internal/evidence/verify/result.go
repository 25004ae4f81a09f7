package verify

import "time"

// Result is what a set of logs proves. It is the same for the same logs, in whatever order
// they are given: all lists are sorted, and nothing in it is of the machine that verifies.
type Result struct {
	Logs []Log `json:"logs"`
	// Problems are faults of integrity: what is in the logs proves nothing while there is one.
	Problems []Problem `json:"problems"`
	// Newer are records that a newer Meshvakt has written. They are neither right nor wrong.
	Newer []Problem `json:"newer"`
	// Findings are what the logs, which are sound, tell against the control.
	Findings   []Finding  `json:"findings"`
	Namespaces []Timeline `json:"namespaces"`

	Gaps         []Gap         `json:"gaps"`
	Exceptions   []Exception   `json:"exceptions"`
	Refusals     Refusals      `json:"refusals"`
	Changes      []Change      `json:"changes"`
	Remediations []Remediation `json:"remediations"`
	Runs         []Run         `json:"runs"`
	Keys         []Key         `json:"keys"`
	Claims       []Answer      `json:"claims"`
	// Audit is how logs and the audit log of the API server agree, nil where none was given.
	Audit *AuditLog `json:"audit,omitempty"`
}

// AuditLog is an audit log that logs were held against.
type AuditLog struct {
	// Cluster is the UID of the one that its receipts are of, empty without any.
	Cluster string    `json:"cluster"`
	Events  uint64    `json:"events"`
	From    time.Time `json:"from"`
	To      time.Time `json:"to"`
	// Receipts are the records that the API server was told of. Those that are not as it was told are Problems.
	Receipts uint64 `json:"receipts"`
	// Decisions are those in the logs that fall into its time, and Untold those of them that it does not have.
	Decisions uint64 `json:"decisions"`
	Untold    uint64 `json:"untold"`
	// Used: it is complete enough to tell of times that no replica saw. Why says what it lacks.
	Used bool   `json:"used"`
	Why  string `json:"why"`
}

// Log is one verified log: a shard of one replica.
type Log struct {
	Origin  string `json:"origin"`
	Cluster string `json:"cluster"`
	Replica string `json:"replica"`
	Shard   string `json:"shard"`
	Size    uint64 `json:"size"`
	Root    string `json:"root"` // base64, as in the checkpoint
	// Key is the verifier key whose signature the checkpoint was believed for, and Trust where
	// it came from: see the constants.
	Key   string `json:"key"`
	Trust string `json:"trust"`
	// Checkpoint is the signed note as it was found.
	Checkpoint   string        `json:"checkpoint"`
	Cosignatures []Cosignature `json:"cosignatures"`
	PrevOrigin   string        `json:"prevOrigin"`
	PrevSize     uint64        `json:"prevSize"`
	Closed       bool          `json:"closed"`
	Next         string        `json:"next"`
	Boots        []string      `json:"boots"`
	// From and To are the times of the first and the last record.
	From       time.Time   `json:"from"`
	To         time.Time   `json:"to"`
	Kinds      []KindCount `json:"kinds"`
	Pseudonyms string      `json:"pseudonyms"`
	Clock      Clock       `json:"clock"`
	Unlogged   uint64      `json:"unlogged"` // answers that left no record, by its gaps
}

// Where the key of a log is known from. Only of the first can be said who has written the log.
const (
	TrustGiven   = "given"   // by whoever verifies, in a policy or as a key
	TrustChained = "chained" // announced by a log whose key was given
	TrustOwn     = "own"     // by the log itself: proves that it is whole, not whose it is
)

// Cosignature is what a witness has signed, and when.
type Cosignature struct {
	Witness string    `json:"witness"`
	At      time.Time `json:"at"`
}

// KindCount counts records of one kind.
type KindCount struct {
	Kind string `json:"kind"`
	N    uint64 `json:"n"`
}

// Clock is how good the clock behind the times of a log was.
type Clock struct {
	Beats          uint64        `json:"beats"`
	MaxError       time.Duration `json:"maxErrorNs"`
	Unsynchronised uint64        `json:"unsynchronised"` // beats
	Jumps          uint64        `json:"jumps"`          // where wall clock and monotonic clock disagree
	// Declared are the unsynchronised beats whose error is what the operator has declared, and not what anything has
	// measured; Declarations are what was declared, believed or not.
	Declared     uint64        `json:"declared"`
	Declarations []Declaration `json:"declarations"`
}

// Declaration is what an operator says about a clock.
type Declaration struct {
	Source   string        `json:"source"`
	MaxError time.Duration `json:"maxErrorNs"`
}

// Problem is a fault in a log, at a record unless Seq is -1.
type Problem struct {
	Log  string `json:"log"` // its origin; as it was given where that is not known
	Seq  int64  `json:"seq"`
	What string `json:"what"`
}

// Finding is something that is not as it should be. Code is one of the constants.
type Finding struct {
	Code      string    `json:"code"`
	Cluster   string    `json:"cluster"`
	Namespace string    `json:"namespace"` // where it is about one
	Log       string    `json:"log"`
	Seq       int64     `json:"seq"` // -1 where it is not about one record
	From      time.Time `json:"from"`
	To        time.Time `json:"to"`
	What      string    `json:"what"`
}

// The codes of findings.
const (
	FindingTail         = "unsealed-receipts"      // the API server was told of records that the log does not have yet, or not any more
	FindingUnexplained  = "unexplained-change"     // a change without a request that was allowed
	FindingSelfApproved = "self-approved"          // who asked for an exception has approved it
	FindingMissingLog   = "missing-log"            // a replica that others have seen and whose log is not here
	FindingCounters     = "counters"               // more was counted than is in the log, or less
	FindingNotAsked     = "not-asked"              // the API server did not ask the webhook
	FindingHook         = "hook"                   // a webhook configuration is missing, or is changed without a record
	FindingClock        = "clock"                  // wall clock and monotonic clock disagree
	FindingDisagreement = "replicas-disagree"      // two replicas say for certain what cannot both be
	FindingWeakened     = "control-weakened"       // the control itself was weakened
	FindingBreakGlass   = "break-glass"            // allowed without a record at the time
	FindingMissingShard = "missing-shard"          // a log that another says comes before or behind it
	FindingMemory       = "durability-memory"      // records were answered for before they were stored
	FindingNoPrevious   = "no-exception-request"   // an exception that was granted and not, in these logs, asked for
	FindingNotInForce   = "exception-not-in-force" // an exception let something pass when it was not granted, or not any more
)

// Grade is how well it is known how a namespace stood.
type Grade string

// The grades, best first.
const (
	Observed        Grade = "OBSERVED"
	ObservedByAudit Grade = "OBSERVED-BY-AUDIT"
	Inferred        Grade = "INFERRED"
	Excepted        Grade = "EXCEPTED"
	Unknown         Grade = "UNKNOWN"
	Violated        Grade = "VIOLATED"
)

// Grades returns all of them, in the order in which they are shown.
func Grades() []Grade {
	return []Grade{Observed, ObservedByAudit, Inferred, Excepted, Unknown, Violated}
}

// Timeline is how one guarded namespace stood, without a hole from the first to the last
// time of which its cluster's logs tell.
type Timeline struct {
	Cluster   string     `json:"cluster"`
	Namespace string     `json:"namespace"`
	Intervals []Interval `json:"intervals"`
	Moments   []Moment   `json:"moments"`
	KPI       KPI        `json:"kpi"`
}

// Moment is that the namespace was violated between two times, both of which are Unknown, for that long at least. It
// is not known when in between.
type Moment struct {
	From    time.Time     `json:"from"`
	To      time.Time     `json:"to"`
	AtLeast time.Duration `json:"atLeastNs"`
	// Why is as that of a Violated interval.
	Why string `json:"why"`
}

// Interval is a time, its end not in it, of one grade.
type Interval struct {
	From  time.Time `json:"from"`
	To    time.Time `json:"to"`
	Grade Grade     `json:"grade"`
	// Mode is the weakest that applied to any workload and port: STRICT, PERMISSIVE, DISABLE,
	// or empty where it is not known.
	Mode string `json:"mode"`
	// Outside: there were running pods outside of the mesh.
	Outside bool `json:"outside"`
	// Unguarded: no guard selected the namespace, or there was none. Such time is Unknown, and no part of a KPI.
	Unguarded bool `json:"unguarded"`
	// Why is empty for Observed, and otherwise one line of text.
	Why string `json:"why"`
	// Exceptions are the UIDs of those that make it Excepted.
	Exceptions []string `json:"exceptions"`
}

// KPI sums up a timeline.
type KPI struct {
	Total     time.Duration   `json:"totalNs"`
	Durations []GradeDuration `json:"durations"` // of all grades, in their order
	// Violations counts intervals, and LongestViolation is the longest of them.
	Violations       int           `json:"violations"`
	LongestViolation time.Duration `json:"longestViolationNs"`
	// Unexplained, Refused and Remediated count what happened in the namespace.
	Unexplained int    `json:"unexplained"`
	Refused     uint64 `json:"refused"`
	Remediated  int    `json:"remediated"`
}

// GradeDuration is how long a grade held, all in all.
type GradeDuration struct {
	Grade    Grade         `json:"grade"`
	Duration time.Duration `json:"durationNs"`
}

// Gap is a time of which a log says itself that it does not tell everything.
type Gap struct {
	Cluster string     `json:"cluster"`
	Log     string     `json:"log"`
	Seq     int64      `json:"seq"`
	Of      string     `json:"of"`
	Cause   string     `json:"cause"`
	From    time.Time  `json:"from"`
	To      time.Time  `json:"to"`
	Exact   bool       `json:"exact"`
	Counts  []GapCount `json:"counts"`
	Others  uint64     `json:"others"`
}

// GapCount counts answers that left no record.
type GapCount struct {
	Verdict string `json:"verdict"`
	GVK     string `json:"gvk"`
	N       uint64 `json:"n"`
}

// Exception is one line of the register of exceptions.
type Exception struct {
	Cluster   string `json:"cluster"`
	UID       string `json:"uid"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"` // a pseudonym
	// Rules to Reference are empty where the request is not in these logs.
	Rules     []string `json:"rules"`
	RulesN    uint64   `json:"rulesN"`
	Approval  string   `json:"approval"`
	Reason    string   `json:"reason"`
	Reference string   `json:"reference"`
	// By and Approver are pseudonyms, or service accounts.
	By       string `json:"by"`
	Approver string `json:"approver"`
	// Requested and Granted are zero where it was not. It applied from Granted to End, which is
	// Until unless somebody ended it, but for times in which no guard took it.
	Requested time.Time `json:"requested"`
	Granted   time.Time `json:"granted"`
	Until     time.Time `json:"until"`
	End       time.Time `json:"end"`
	Ended     string    `json:"ended"` // expired, revoked, shortened, deleted; empty where it goes on
	EndedBy   string    `json:"endedBy"`
	// Used counts the requests that it let pass, FirstUsed and LastUsed are zero where there was none.
	Used      uint64    `json:"used"`
	FirstUsed time.Time `json:"firstUsed"`
	LastUsed  time.Time `json:"lastUsed"`
	// Uses has the MaxUses most frequent by requester and kind; UsesN counts all there are.
	Uses  []Use `json:"uses"`
	UsesN int   `json:"usesN"`
	// Standing is how many objects were found standing by it, the most at once, in scans from StandingFrom to StandingTo.
	Standing     uint64    `json:"standing"`
	StandingFrom time.Time `json:"standingFrom"`
	StandingTo   time.Time `json:"standingTo"`
}

// MaxUses is how many uses of an exception are listed one by one.
const MaxUses = 16

// Use is what one subject did with objects of one kind by an exception.
type Use struct {
	By    string    `json:"by"`
	GVK   string    `json:"gvk"`
	N     uint64    `json:"n"`
	First time.Time `json:"first"`
	Last  time.Time `json:"last"`
	// Log and Seq are of the record of the first.
	Log string `json:"log"`
	Seq int64  `json:"seq"`
}

// Refusals are the requests that were denied.
type Refusals struct {
	Total  uint64         `json:"total"`
	Errors uint64         `json:"errors"` // could not be judged
	Counts []RefusalCount `json:"counts"`
	// List has the first MaxRefusals by time; Total counts all.
	List []Refusal `json:"list"`
}

// MaxRefusals is how many refusals are listed one by one.
const MaxRefusals = 1000

// RefusalCount counts refused requests that broke one rule in one namespace.
type RefusalCount struct {
	Cluster   string `json:"cluster"`
	Namespace string `json:"namespace"`
	Rule      string `json:"rule"`
	N         uint64 `json:"n"`
}

// Refusal is one refused request.
type Refusal struct {
	Cluster   string    `json:"cluster"`
	Log       string    `json:"log"`
	Seq       int64     `json:"seq"`
	At        time.Time `json:"at"`
	Operation string    `json:"operation"`
	GVK       string    `json:"gvk"`
	Namespace string    `json:"namespace"`
	Name      string    `json:"name"` // a pseudonym
	By        string    `json:"by"`
	Rules     []string  `json:"rules"`
	Verdict   string    `json:"verdict"` // deny or error
}

// Change is one of the control itself. Each replica tells of it; Log and Seq are of the first that did.
type Change struct {
	Cluster   string    `json:"cluster"`
	Log       string    `json:"log"`
	Seq       int64     `json:"seq"`
	At        time.Time `json:"at"`
	GVK       string    `json:"gvk"`
	Namespace string    `json:"namespace"`
	Name      string    `json:"name"`
	What      string    `json:"what"`
	Weaker    bool      `json:"weaker"`
	By        string    `json:"by"`
	Request   string    `json:"request"` // empty where it is not known by which it came
	Reason    string    `json:"reason"`
	Seen      int       `json:"seen"` // how often it was told
}

// Remediation is something that Meshvakt has put right, or could not.
type Remediation struct {
	Cluster   string    `json:"cluster"`
	Log       string    `json:"log"`
	Seq       int64     `json:"seq"`
	What      string    `json:"what"`
	GVK       string    `json:"gvk"`
	Namespace string    `json:"namespace"`
	Name      string    `json:"name"`
	Outcome   string    `json:"outcome"`
	Tries     uint64    `json:"tries"`
	After     time.Time `json:"after"` // zero where it is not known
	Found     time.Time `json:"found"`
	Done      time.Time `json:"done"`
}

// Run is one start of a replica's process, to its end.
type Run struct {
	Cluster    string    `json:"cluster"`
	Replica    string    `json:"replica"`
	Boot       string    `json:"boot"`
	Pod        string    `json:"pod"`
	Node       string    `json:"node"`
	Version    string    `json:"version"`
	Binary     string    `json:"binary"`
	Policies   string    `json:"policies"`
	Durability string    `json:"durability"`
	Mode       string    `json:"mode"`
	Started    time.Time `json:"started"`
	Last       time.Time `json:"last"`
	// Ended is terminated, failed, or crashed where another start follows without a stop; empty
	// where the log ends before the process.
	Ended  string   `json:"ended"`
	Counts Counters `json:"counts"` // as last told
}

// Counters are of the requests of one run.
type Counters struct {
	In       uint64 `json:"in"`
	Written  uint64 `json:"written"`
	Admitted uint64 `json:"admitted"`
	Unlogged uint64 `json:"unlogged"`
}

// Key is what became of a key.
type Key struct {
	Cluster string    `json:"cluster"`
	Log     string    `json:"log"`
	Seq     int64     `json:"seq"`
	At      time.Time `json:"at"`
	What    string    `json:"what"` // created, destroyed or used
	For     string    `json:"for"`  // pseudonyms or log
	ID      string    `json:"id"`   // of the key of pseudonyms, or the verifier key of a log
	Origin  string    `json:"origin"`
	By      string    `json:"by"`
	Why     string    `json:"why"`
	N       uint64    `json:"n"` // records found, where it was used
}

// Claim is a statement about namespaces in a time, for logs to prove.
type Claim struct {
	Text string `json:"text"` // as it was given
	MTLS string `json:"mtls"`
	// Cluster is empty for all. Namespaces is sorted; "*" is all that were guarded in the time.
	Cluster    string    `json:"cluster"`
	Namespaces []string  `json:"namespaces"`
	From       time.Time `json:"from"`
	To         time.Time `json:"to"`
	// AcceptInferred: that nothing has changed from before a hole to behind it is enough.
	AcceptInferred bool `json:"acceptInferred"`
}

// Verdict is what comes of a claim.
type Verdict string

// The verdicts.
const (
	Holds         Verdict = "holds"
	IsViolated    Verdict = "violated"
	NotProvable   Verdict = "not provable"
	NotTrusted    Verdict = "integrity failure"
	NothingToTell Verdict = "no such namespace"
)

// Answer is what the logs say to a claim.
type Answer struct {
	Claim   Claim   `json:"claim"`
	Verdict Verdict `json:"verdict"`
	// Why is the reason where it is not the namespaces'.
	Why string `json:"why"`
	// Clusters are all that the claim is about, those of which a log is missing too.
	Clusters   []ClusterAnswer   `json:"clusters"`
	Namespaces []NamespaceAnswer `json:"namespaces"`
}

// ClusterAnswer is the part of an Answer about one cluster.
type ClusterAnswer struct {
	Cluster string  `json:"cluster"`
	Verdict Verdict `json:"verdict"`
	// Why is the reason where it is not the namespaces'.
	Why string `json:"why"`
	// Namespaces are those that the claim is about; for Failed of them it does not hold.
	Namespaces int `json:"namespaces"`
	Failed     int `json:"failed"`
}

// NamespaceAnswer is the part of an Answer about one namespace of one cluster.
type NamespaceAnswer struct {
	Cluster   string          `json:"cluster"`
	Namespace string          `json:"namespace"`
	Verdict   Verdict         `json:"verdict"`
	Durations []GradeDuration `json:"durations"`
	// Intervals are those that speak against the claim, and Moments too. A moment that may lie outside of the claimed
	// time is none of them.
	Intervals []Interval `json:"intervals"`
	Moments   []Moment   `json:"moments"`
}
