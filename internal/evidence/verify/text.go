package verify

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// maxListed is how many intervals, findings and problems are told one by one to people. All are in the JSON.
const maxListed = 20

// WriteText tells a result to people.
func (r *Result) WriteText(w io.Writer) error {
	p := &printer{w: w}
	for i := range r.Claims {
		p.claim(&r.Claims[i])
	}
	if len(r.Claims) == 0 {
		for i := range r.Namespaces {
			t := &r.Namespaces[i]
			p.line("namespace %s, cluster %s: %s", t.Namespace, t.Cluster, durations(t.KPI.Durations))
			p.intervals(t.Intervals, false, "    ")
			p.moments(t.Moments, "    ")
		}
	}
	p.logs(r)
	p.exceptions(r.Exceptions)
	p.audit(r)
	p.problems("PROBLEM", r.Problems)
	p.problems("NEWER", r.Newer)
	for i, f := range r.Findings {
		if i == maxListed {
			p.line("... and %d findings more; -o json has all", len(r.Findings)-maxListed)
			break
		}
		where := f.Log
		if f.Seq >= 0 {
			where = fmt.Sprintf("%s#%d", f.Log, f.Seq)
		}
		if f.Namespace != "" {
			where = strings.TrimSpace(where + " namespace " + f.Namespace)
		}
		p.line("FINDING %s: %s (%s%s)", f.Code, f.What, where, period(f.From, f.To))
	}
	p.summary(r)
	return p.err
}

type printer struct {
	w   io.Writer
	err error
}

func (p *printer) line(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintln(p.w, Tame(fmt.Sprintf(format, args...)))
	}
}

// Tame escapes in a line what could move a cursor or turn the direction of a line: what is told of a bundle that is not as it must be
// has names from it that nobody has signed.
func Tame(line string) string {
	if !strings.ContainsFunc(line, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return line
	}
	var b strings.Builder
	for _, r := range line {
		switch quoted := strconv.QuoteRune(r); {
		case unicode.IsPrint(r):
			b.WriteRune(r)
		case r == '\n': // as between errors that are told together
			b.WriteString("; ")
		default:
			b.WriteString(quoted[1 : len(quoted)-1])
		}
	}
	return b.String()
}

func (p *printer) claim(a *Answer) {
	c := &a.Claim
	p.line("claim %s, %s to %s: %s", c.Text, stamp(c.From), stamp(c.To), strings.ToUpper(string(a.Verdict)))
	if a.Why != "" && !slices.ContainsFunc(a.Clusters, func(c ClusterAnswer) bool { return len(a.Clusters) > 1 && c.Why == a.Why }) {
		p.line("  %s", a.Why)
	}
	if len(a.Clusters) > 1 {
		p.fleet(a)
		return
	}
	for i := range a.Namespaces {
		p.namespace(&a.Namespaces[i], "  ")
	}
}

func (p *printer) namespace(n *NamespaceAnswer, indent string) {
	p.line("%snamespace %s, cluster %s: %s: %s", indent, n.Namespace, n.Cluster, n.Verdict, durations(n.Durations))
	p.intervals(n.Intervals, true, indent+"  ")
	p.moments(n.Moments, indent+"  ")
}

// fleet tells of many clusters: each in one line, the worst first, and of those that do not hold which
// namespaces do not.
func (p *printer) fleet(a *Answer) {
	counts := map[Verdict]int{}
	for _, c := range a.Clusters {
		counts[c.Verdict]++
	}
	var told []string
	order := []Verdict{IsViolated, NotProvable, Holds, NothingToTell}
	for _, v := range order {
		if counts[v] > 0 {
			told = append(told, fmt.Sprintf("%d %s", counts[v], v))
		}
	}
	p.line("  %d clusters: %s", len(a.Clusters), strings.Join(told, ", "))
	for _, v := range order {
		for _, c := range a.Clusters {
			if c.Verdict != v {
				continue
			}
			p.line("  cluster %s: %s%s", c.Cluster, strings.ToUpper(string(c.Verdict)), c.because())
			listed := 0
			for i := range a.Namespaces {
				n := &a.Namespaces[i]
				if n.Cluster != c.Cluster || n.Verdict == Holds {
					continue
				}
				if listed++; listed <= maxListed {
					p.namespace(n, "    ")
				}
			}
			if listed > maxListed {
				p.line("    ... and %d namespaces more; -o json has all", listed-maxListed)
			}
		}
	}
}

func (c *ClusterAnswer) because() string {
	switch {
	case c.Why != "":
		return ", " + c.Why
	case c.Failed > 0:
		return fmt.Sprintf(", %d of %d %s", c.Failed, c.Namespaces, plural(c.Namespaces, "namespace"))
	case c.Namespaces > 0:
		return fmt.Sprintf(", %d %s", c.Namespaces, plural(c.Namespaces, "namespace"))
	}
	return ""
}

func (p *printer) intervals(list []Interval, all bool, indent string) {
	n := 0
	for i := range list {
		in := &list[i]
		if !all && in.Grade == Observed {
			continue
		}
		if n++; n > maxListed {
			continue
		}
		why := in.Why
		if len(in.Exceptions) > 0 {
			why += ", by exception " + strings.Join(in.Exceptions, ", ")
		}
		p.line("%s%s %s (%s to %s) %s", indent, in.Grade, length(in.To.Sub(in.From)), stamp(in.From), stamp(in.To), why)
	}
	if n > maxListed {
		p.line("%s... and %d more; -o json has all", indent, n-maxListed)
	}
}

func requests(n uint64) string {
	if n == 1 {
		return "1 request"
	}
	return fmt.Sprintf("%d requests", n)
}

func (p *printer) audit(r *Result) {
	a := r.Audit
	if a == nil {
		return
	}
	p.line("audit log of cluster %s: %d events%s; it names records of these logs %d times", a.Cluster, a.Events, period(a.From, a.To), a.Receipts)
	if a.Decisions > 0 {
		p.line("  of %d decisions in its time it lacks %d", a.Decisions, a.Untold)
	}
	inferred := slices.ContainsFunc(r.Namespaces, func(t Timeline) bool {
		return slices.ContainsFunc(t.Intervals, func(in Interval) bool { return in.Grade == Inferred })
	})
	if !a.Used && inferred {
		p.line("  it tells nothing of times that no replica saw: %s", a.Why)
	}
}

func (p *printer) moments(list []Moment, indent string) {
	for i, m := range list {
		if i == maxListed {
			p.line("%s... and %d more; -o json has all", indent, len(list)-maxListed)
			return
		}
		p.line("%s%s for at least %s, some time between %s and %s: %s", indent, Violated, length(m.AtLeast), stamp(m.From), stamp(m.To), m.Why)
	}
}

func (p *printer) logs(r *Result) {
	for i := range r.Logs {
		l := &r.Logs[i]
		state := "open"
		if l.Closed {
			state = "closed"
		}
		p.line("log %s: %d records, root %s, %s, witnesses %d, clock off by at most %s", l.Origin, l.Size, l.Root, state, len(l.Cosignatures), l.Clock.MaxError)
		if c := &l.Clock; c.Declared > 0 {
			for _, d := range c.Declarations {
				p.line("  its kernel does not vouch for the clock; the operator declares at most %s, %q, which %d of %d beats go by", d.MaxError, d.Source, c.Declared, c.Beats)
			}
		}
		switch l.Trust {
		case TrustOwn:
			p.line("  its key is known from the log itself: it is shown to be whole, and not who has written it")
		case TrustChained:
			p.line("  its key was announced by the log before it")
		}
	}
}

// exceptions says who got them, and whether they were used.
func (p *printer) exceptions(list []Exception) {
	for i := range list {
		if i == maxListed {
			p.line("... and %d exceptions more; -o json has all", len(list)-maxListed)
			return
		}
		e := &list[i]
		if e.Granted.IsZero() {
			p.line("exception %s, namespace %s: asked for by %s, not granted", e.UID, e.Namespace, cmp.Or(e.By, "somebody"))
		} else {
			p.line("exception %s, namespace %s: asked for by %s, granted by %s, %s to %s, %q", e.UID, e.Namespace, cmp.Or(e.By, "somebody"), cmp.Or(e.Approver, "nobody"), stamp(e.Granted), stamp(e.End), e.Reference)
		}
		switch {
		case e.Used > 0:
			p.line("  used by %s, %s to %s", requests(e.Used), stamp(e.FirstUsed), stamp(e.LastUsed))
		case e.Standing == 0:
			p.line("  not used")
		}
		if e.Standing > 0 {
			p.line("  at most %d objects stood by it at once, %s to %s", e.Standing, stamp(e.StandingFrom), stamp(e.StandingTo))
		}
		for _, u := range e.Uses {
			p.line("    %s about %s by %s, from %s#%d on", requests(u.N), u.GVK, cmp.Or(u.By, "somebody"), u.Log, u.Seq)
		}
	}
}

func (p *printer) problems(word string, list []Problem) {
	for i, x := range list {
		if i == maxListed {
			p.line("... and %d more; -o json has all", len(list)-maxListed)
			return
		}
		at := ""
		if x.Seq >= 0 {
			at = fmt.Sprintf("#%d", x.Seq)
		}
		p.line("%s %s%s: %s", word, x.Log, at, x.What)
	}
}

func (p *printer) summary(r *Result) {
	var records, unlogged uint64
	unexplained := 0
	for i := range r.Logs {
		records += r.Logs[i].Size
		unlogged += r.Logs[i].Unlogged
	}
	for i := range r.Findings {
		if r.Findings[i].Code == FindingUnexplained {
			unexplained++
		}
	}
	p.line("logs %d, records %d, problems %d, findings %d, refused %d, answers without a record %d, unexplained changes %d",
		len(r.Logs), records, len(r.Problems), len(r.Findings), r.Refusals.Total, unlogged, unexplained)
}

func plural(n int, word string) string {
	if n == 1 {
		return word
	}
	return word + "s"
}

// durations leaves out what did not occur.
func durations(list []GradeDuration) string {
	var parts []string
	for _, d := range list {
		if d.Duration > 0 {
			parts = append(parts, fmt.Sprintf("%s %s", d.Grade, length(d.Duration)))
		}
	}
	if len(parts) == 0 {
		return "not guarded in this time"
	}
	return strings.Join(parts, ", ")
}

// length has days, which hours alone make hard to read over a quarter.
func length(d time.Duration) string {
	const day = 24 * time.Hour
	if d < day {
		return d.String()
	}
	return fmt.Sprintf("%dd%s", d/day, d%day)
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

func period(from, to time.Time) string {
	switch {
	case from.IsZero():
		return ""
	case !to.After(from):
		return ", " + stamp(from)
	}
	return ", " + stamp(from) + " to " + stamp(to)
}
