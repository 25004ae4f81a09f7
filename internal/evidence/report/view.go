package report

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/meshvakt/meshvakt/internal/evidence/verify"
)

// maxRows is how many rows a table of the page has. The CSV export has all.
const maxRows = 500

// maxMonths is how many have a column each on a page of paper.
const maxMonths = 14

// part is a run of text within a cell, on a line of its own. Class is one of the style sheet.
type part struct{ Text, Class string }

// cell is one of a table.
type cell struct {
	Parts  []part
	Number bool
	Nowrap bool
}

// table is a section with a register in it.
type table struct {
	ID, Title, Lead, Empty string
	Columns                []string
	Numbers                []bool // of columns, which are set to the right
	Rows                   [][]cell
	More                   string
}

func text(s string) cell { return cell{Parts: []part{{s, ""}}} }

func number(s string) cell { return cell{Parts: []part{{s, ""}}, Number: true} }

func nowrap(s string) cell { return cell{Parts: []part{{s, ""}}, Nowrap: true} }

func code(s string) cell { return cell{Parts: []part{{s, "code"}}} }

// record is a reference to one, as ref has it.
func record(s string) cell { return cell{Parts: []part{{s, "code"}}, Nowrap: len(s) <= 12} }

// parts leaves empty ones out.
func parts(list ...part) cell {
	return cell{Parts: slices.DeleteFunc(list, func(p part) bool { return p.Text == "" })}
}

// view is a report in one language.
type view struct {
	*report
	l language
}

// cluster is the short name of one: its place among the sorted UIDs.
func (v view) cluster(uid string) string {
	if i := slices.Index(v.clusters, uid); i >= 0 {
		return "C" + strconv.Itoa(i+1)
	}
	return shown(uid, 64)
}

// ref names a record.
func (v view) ref(origin string, seq int64) string {
	i := slices.IndexFunc(v.logs, func(l verify.Log) bool { return l.Origin == origin })
	switch {
	case i < 0 && origin == "":
		return ""
	case i < 0 && seq < 0:
		return shown(origin, 300)
	case i < 0:
		return shown(origin, 300) + "#" + strconv.FormatInt(seq, 10)
	case seq < 0:
		return "L" + strconv.Itoa(i+1)
	}
	return fmt.Sprintf("L%d#%d", i+1, seq)
}

// replica is that of a log, by its name and cluster.
func (v view) replica(origin string) string {
	for _, l := range v.logs {
		if l.Origin == origin {
			return l.Replica
		}
	}
	return ""
}

// where is a namespace with the cluster that it is in.
func (v view) where(cluster, namespace string) cell {
	return parts(part{namespace, "name"}, part{v.cluster(cluster), "quiet"})
}

// why is the reason of an interval: the verifier's own sentence, in the language of the page where that has it.
func (v view) why(text string) string {
	if text == uncovered {
		return v.l.text("uncovered")
	}
	if known, is := v.l["said."+text]; is {
		return known
	}
	const seenAround = " (nobody saw it; the same before and after)"
	if before, is := strings.CutSuffix(text, seenAround); is {
		return v.why(before) + v.l["said."+seenAround]
	}
	said := strings.Split(text, "; ")
	for i, sentence := range said {
		known, is := v.l["said."+sentence]
		for _, begin := range []string{"a port takes ", "replicas saw what cannot both be: "} {
			if rest, begins := strings.CutPrefix(sentence, begin); begins {
				known, is = v.l["said."+begin]+rest, true
			}
		}
		if is {
			said[i] = known
		}
	}
	return v.l.prose(strings.Join(said, "; "))
}

// kind is the last part of group/version/Kind.
func kind(gvk string) string { return gvk[strings.LastIndexByte(gvk, '/')+1:] }

func (v view) table(id string, columns ...string) table {
	t := table{ID: id, Title: v.l.text(id), Lead: v.l.text(id + ".lead"), Empty: v.l.text(id + ".empty")}
	// Where there is no log, that nothing is in it says nothing.
	if len(v.logs) == 0 {
		t.Empty = v.l.text("noLogs")
	}
	for _, c := range columns {
		t.Columns = append(t.Columns, v.l.text("col."+c))
	}
	return t
}

// fill makes the rows of a table from a list, as many as are shown.
func fill[T any](v view, t table, list []T, row func(T) []cell) table {
	for i, e := range list {
		if i == maxRows {
			t.More = v.l.text("more", v.l.int(len(list)-maxRows))
			break
		}
		t.Rows = append(t.Rows, row(e))
	}
	return v.finish(t)
}

// finish makes whatever came in harmless, whether a verifier has checked it or not.
func (v view) finish(t table) table {
	const most = 1000
	for _, row := range t.Rows {
		for _, c := range row {
			for i := range c.Parts {
				c.Parts[i].Text = shown(c.Parts[i].Text, most)
			}
		}
	}
	t.Numbers = make([]bool, len(t.Columns))
	for i := range t.Columns {
		t.Numbers[i] = len(t.Rows) > 0 && t.Rows[len(t.Rows)-1][i].Number
	}
	return t
}

// foundTable has the problems first, then the records that are newer than the verifier, then the findings.
func (v view) foundTable() table {
	problem := func(word string) func(verify.Problem) []cell {
		return func(p verify.Problem) []cell {
			return []cell{parts(part{v.l.text(word), "flag"}), text(""), text(""), text(v.l.prose(p.What)), record(v.ref(p.Log, p.Seq))}
		}
	}
	t := v.table("findings", "code", "where", "time", "text", "record")
	t = fill(v, t, v.Result.Problems, problem("problem"))
	t = fill(v, t, v.Result.Newer, problem("newer"))
	return fill(v, t, v.findings, func(f verify.Finding) []cell {
		return []cell{parts(part{v.l.word("finding", f.Code), ""}, part{f.Code, "quiet code"}), v.where(f.Cluster, f.Namespace), v.span(f.From, f.To), text(v.l.prose(f.What)), record(v.ref(f.Log, f.Seq))}
	})
}

// span is one time or two.
func (v view) span(from, to time.Time) cell {
	switch {
	case from.IsZero():
		return text("")
	case to.IsZero() || to.Equal(from):
		return nowrap(v.l.instant(from))
	}
	c := parts(part{v.l.instant(from), ""}, part{v.l.instant(to), ""})
	c.Nowrap = true
	return c
}

// unobserved are all intervals but those observed, of all namespaces, and moments of which it is not known when they
// were.
func (v view) unobserved() table {
	type line struct {
		namespace
		verify.Interval
		atLeast time.Duration
	}
	var lines []line
	for _, n := range v.namespaces {
		from := len(lines)
		for _, in := range n.intervals {
			if in.Grade != verify.Observed {
				lines = append(lines, line{n, in, 0})
			}
		}
		for _, m := range n.moments {
			lines = append(lines, line{n, verify.Interval{From: m.From, To: m.To, Grade: verify.Violated, Why: m.Why}, m.AtLeast})
		}
		slices.SortStableFunc(lines[from:], func(a, b line) int { return a.From.Compare(b.From) })
	}
	t := v.table("intervals", "namespace", "grade", "from", "to", "duration", "mode", "why")
	if len(v.namespaces) == 0 {
		t.Empty = v.l.text("timeline.empty")
	}
	return fill(v, t, lines, func(in line) []cell {
		why := []part{{v.why(in.Why), ""}}
		for _, e := range in.Exceptions {
			why = append(why, part{shown(e, 64), "quiet code"})
		}
		mode := in.Mode
		if mode == "" {
			mode = "–"
		}
		length := v.l.duration(in.To.Sub(in.From), up)
		if in.atLeast > 0 {
			length = v.l.text("atLeast", v.l.duration(in.atLeast, down))
			why = append(why, part{v.l.text("sometime"), "quiet"})
		}
		return []cell{v.where(in.cluster, in.name), parts(part{v.l.word("grade", string(in.Grade)), "grade k-" + class(in.Grade)}), nowrap(v.l.instant(in.From)), nowrap(v.l.instant(in.To)),
			number(length), text(mode), parts(why...)}
	})
}

func (v view) gapTable() table {
	return fill(v, v.table("gaps", "replica", "of", "cause", "from", "to", "duration", "unlogged", "record"), v.gaps, func(g verify.Gap) []cell {
		n := v.l.number(unlogged(g))
		switch {
		case g.Of != "decisions":
			n = "–"
		case !g.Exact && unlogged(g) == 0:
			n = v.l.text("uncounted")
		case !g.Exact:
			n = v.l.text("atLeast", n)
		}
		counts := []part{{n, ""}}
		for _, c := range g.Counts {
			counts = append(counts, part{v.l.number(c.N) + " × " + v.l.word("verdict", c.Verdict) + " " + kind(c.GVK), "quiet"})
		}
		return []cell{parts(part{v.replica(g.Log), "name"}, part{v.cluster(g.Cluster), "quiet"}), text(v.l.word("of", g.Of)), text(v.l.word("cause", g.Cause)), nowrap(v.l.instant(g.From)), nowrap(v.l.instant(g.To)),
			number(v.l.duration(g.To.Sub(g.From), up)), {Parts: counts, Number: true}, record(v.ref(g.Log, g.Seq))}
	})
}

func (v view) exceptionTable() table {
	return fill(v, v.table("exceptions", "namespace", "people", "rules", "reason", "term", "ended", "used"), v.exceptions, func(e verify.Exception) []cell {
		same := ""
		if selfApproved(e) {
			same = v.l.text("samePerson")
		}
		approver := v.l.subject(e.Approver)
		if e.Approver == "" {
			approver = ""
		}
		granted := v.l.instant(e.Granted)
		if e.Granted.IsZero() {
			granted = v.l.text("notGranted")
		}
		var rules []part
		for _, rule := range e.Rules {
			rules = append(rules, part{shown(rule, 96), "code"})
		}
		if more := e.RulesN - min(e.RulesN, uint64(len(e.Rules))); more > 0 {
			rules = append(rules, part{"+ " + v.l.number(more), ""})
		}
		ended := parts(part{v.l.word("ended", e.Ended), ""})
		if e.Ended == "" {
			ended = text(v.l.text("ended.stands"))
		} else {
			ended.Parts = append(ended.Parts, part{v.l.instant(e.End), ""})
		}
		if e.EndedBy != "" {
			ended.Parts = append(ended.Parts, part{v.l.subject(e.EndedBy), "quiet code"})
		}
		return []cell{parts(part{e.Namespace, "name"}, part{v.cluster(e.Cluster), "quiet"}, part{shown(e.UID, 64), "quiet code"}),
			parts(part{v.l.subject(e.By), "code"}, part{approver, "code"}, part{same, "flag"}, part{v.l.word("approval", e.Approval), "quiet"}),
			parts(rules...), parts(part{v.l.prose(e.Reference), "said name"}, part{v.l.prose(e.Reason), "said"}),
			parts(part{granted, ""}, part{v.l.instant(e.Until), ""}), ended, v.usesOf(e)}
	})
}

// usesOf says whether an exception was used, when first and last, by whom and for what.
func (v view) usesOf(e verify.Exception) cell {
	if e.Used == 0 && e.Standing == 0 {
		return parts(part{v.l.text("unused"), ""})
	}
	list := []part{{v.l.text("used", v.l.number(e.Used)), ""}}
	if e.Used > 0 {
		list = append(list, part{v.l.text("fromTo", v.l.instant(e.FirstUsed), v.l.instant(e.LastUsed)), "quiet"})
	}
	for _, u := range e.Uses {
		list = append(list, part{v.l.number(u.N) + " × " + kind(u.GVK), ""}, part{v.l.subject(u.By), "quiet code"})
	}
	if more := e.UsesN - len(e.Uses); more > 0 {
		list = append(list, part{"+ " + v.l.int(more), ""})
	}
	if e.Standing > 0 {
		list = append(list, part{v.l.text("standing", v.l.number(e.Standing)), ""}, part{v.l.text("fromTo", v.l.instant(e.StandingFrom), v.l.instant(e.StandingTo)), "quiet"})
	}
	return parts(list...)
}

// refusalCounts has a column for each month, where there are few enough and all refusals are listed.
func (v view) refusalCounts() table {
	months := v.months()
	if len(months) > maxMonths || v.refusedMore > 0 {
		months = nil
	}
	t := v.table("refusals", "namespace", "rule")
	for _, m := range months {
		t.Columns = append(t.Columns, v.l.month(m.from))
	}
	t.Columns = append(t.Columns, v.l.text("col.total"))
	var rows [][]refusedBy
	for i, c := range v.counts {
		if before := i - 1; before < 0 || v.counts[before].cluster != c.cluster || v.counts[before].namespace != c.namespace || v.counts[before].rule != c.rule {
			rows = append(rows, nil)
		}
		rows[len(rows)-1] = append(rows[len(rows)-1], c)
	}
	return fill(v, t, rows, func(counts []refusedBy) []cell {
		row := []cell{v.where(counts[0].cluster, counts[0].namespace), code(counts[0].rule)}
		total := uint64(0)
		for _, c := range counts {
			total += c.n
		}
		for _, m := range months {
			n := uint64(0)
			for _, c := range counts {
				if c.month.Year() == m.from.Year() && c.month.Month() == m.from.Month() {
					n += c.n
				}
			}
			row = append(row, number(v.l.number(n)))
		}
		return append(row, number(v.l.number(total)))
	})
}

func (v view) refusalList() table {
	t := fill(v, v.table("refusals.list", "time", "namespace", "what", "rules", "by", "record"), v.refusals, func(d verify.Refusal) []cell {
		verdict := part{}
		if d.Verdict != "deny" {
			verdict = part{v.l.word("verdict", d.Verdict), "flag"}
		}
		return []cell{nowrap(v.l.instant(d.At)), v.where(d.Cluster, d.Namespace), parts(part{d.Operation + " " + kind(d.GVK), ""}, part{d.Name, "quiet code"}, verdict),
			code(strings.Join(d.Rules, " ")), code(v.l.subject(d.By)), record(v.ref(d.Log, d.Seq))}
	})
	if v.refusedMore > 0 {
		t.More = v.l.text("unlisted", v.l.number(v.refusedMore+uint64(len(v.refusals)-len(t.Rows))))
	}
	return t
}

func (v view) changeTable() table {
	return fill(v, v.table("changes", "time", "object", "what", "by", "why", "record"), v.changes, func(c verify.Change) []cell {
		weaker, unasked := "", ""
		if c.Weaker {
			weaker = v.l.text("weaker")
		}
		if c.Request == "" {
			unasked = v.l.text("unasked")
		}
		return []cell{nowrap(v.l.instant(c.At)), parts(part{kind(c.GVK), ""}, part{c.Name, "name"}, part{v.cluster(c.Cluster), "quiet"}),
			parts(part{v.l.word("what", c.What), ""}, part{weaker, "flag"}, part{unasked, "quiet"}), code(v.l.subject(c.By)), parts(part{v.l.prose(c.Reason), "said"}), record(v.ref(c.Log, c.Seq))}
	})
}
