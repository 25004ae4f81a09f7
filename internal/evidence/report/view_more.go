package report

import (
	"strconv"
	"strings"

	"github.com/meshvakt/meshvakt/internal/evidence/verify"
)

func (v view) runTable() table {
	return fill(v, v.table("runs", "replica", "from", "to", "ended", "version"), v.runs, func(r verify.Run) []cell {
		ended := parts(part{v.l.word("run", r.Ended), ""})
		switch r.Ended {
		case "":
			ended = text(v.l.text("run.goesOn"))
		case "crashed", "failed":
			ended.Parts[0].Class = "flag"
		}
		return []cell{parts(part{r.Replica, "name"}, part{v.cluster(r.Cluster), "quiet"}), nowrap(v.l.instant(r.Started)), nowrap(v.l.instant(r.Last)), ended,
			parts(part{r.Version, ""}, part{v.l.text("binary", short(r.Binary)), "quiet code"}, part{v.l.text("policies", short(r.Policies)), "quiet code"})}
	})
}

// short is as much of a hash as tells it from others by eye.
func short(hash string) string { return hash[:min(len(hash), 16)] }

func (v view) fixTable() table {
	return fill(v, v.table("remediations", "namespace", "what", "bounds", "done", "outcome", "record"), v.fixes, func(m verify.Remediation) []cell {
		bounds := v.span(m.After, m.Found)
		if m.After.IsZero() {
			bounds = parts(part{v.l.instant(m.After), ""}, part{v.l.instant(m.Found), ""})
			bounds.Nowrap = true
		}
		outcome := part{v.l.word("outcome", m.Outcome), ""}
		if m.Outcome != "done" {
			outcome.Class = "flag"
		}
		return []cell{v.where(m.Cluster, m.Namespace), parts(part{v.l.word("remediation", m.What), ""}, part{kind(m.GVK), "quiet"}), bounds, nowrap(v.l.instant(m.Done)),
			parts(outcome, part{v.l.text("tries", v.l.number(m.Tries)), "quiet"}), record(v.ref(m.Log, m.Seq))}
	})
}

func (v view) clockTable() table {
	t := fill(v, v.table("clocks", "replica", "log", "beats", "maxError", "unsync", "back"), v.logs, func(l verify.Log) []cell {
		return []cell{parts(part{l.Replica, "name"}, part{v.cluster(l.Cluster), "quiet"}), record(v.ref(l.Origin, -1)), number(v.l.number(l.Clock.Beats)), number(v.l.duration(l.Clock.MaxError, up)),
			v.unsynchronised(l.Clock), number(v.l.number(l.Clock.Jumps))}
	})
	return t
}

// unsynchronised says at how many beats the kernel did not vouch for the clock, and who did, if anybody.
func (v view) unsynchronised(c verify.Clock) cell {
	list := []part{{v.l.number(c.Unsynchronised), ""}}
	for _, d := range c.Declarations {
		list = append(list, part{v.l.text("clock.declared", v.l.duration(d.MaxError, up)), ""}, part{shown(d.Source, 128), "said"})
	}
	switch {
	case c.Declared > 0:
		list = append(list, part{v.l.text("clock.believed", v.l.number(c.Declared)), "quiet"})
	case len(c.Declarations) > 0:
		list = append(list, part{v.l.text("clock.notBelieved"), "quiet"})
	}
	return cell{Parts: list, Number: true}
}

func (v view) keyTable() table {
	return fill(v, v.table("keys", "time", "what", "key", "why", "by", "record"), v.keys, func(k verify.Key) []cell {
		why := []part{{v.l.prose(k.Why), "said"}}
		if k.What == "destroyed" {
			why = []part{{v.l.word("why", k.Why), ""}}
		}
		if k.What == "used" {
			why = append(why, part{v.l.text("key.records", v.l.number(k.N)), "quiet"})
		}
		by := code(v.l.subject(k.By))
		if k.What == "created" {
			by = text("")
		}
		return []cell{nowrap(v.l.instant(k.At)), text(v.l.word("key", k.What)), parts(part{v.l.word("for", k.For), ""}, part{shown(k.ID, 400), "code"}, part{shown(k.Origin, 300), "quiet code"}),
			parts(why...), by, record(v.ref(k.Log, k.Seq))}
	})
}

// monthTable has a column for each month; a period of too many has a report for each year.
func (v view) monthTable() table {
	months := v.months()
	if len(months) < 2 || len(months) > maxMonths || len(v.namespaces) == 0 {
		return table{}
	}
	t := table{ID: "by-month", Title: v.l.text("months.title"), Lead: v.l.text("months.lead"), Columns: []string{v.l.text("col.namespace")}}
	for _, m := range months {
		t.Columns = append(t.Columns, v.l.month(m.from))
	}
	return fill(v, t, v.namespaces, func(n namespace) []cell {
		row := []cell{v.where(n.cluster, n.name)}
		for _, m := range months {
			s := n.sums(m.from, m.to)
			text := "–"
			if s.whole() > 0 {
				text = v.l.percent(share(s.seen(), s.whole()))
			}
			row = append(row, number(text))
		}
		return row
	})
}

// lane is a namespace in the timeline.
type lane struct {
	Name, Share, Label string
	Verdict, Word      string
	Bars               []bar
}

// chart is the timeline of one cluster.
type chart struct {
	Title string
	Lanes []lane
}

func (v view) charts() []chart {
	s := scale{v.From, v.To}
	var list []chart
	for _, uid := range v.clusters {
		c := chart{Title: v.cluster(uid) + " (" + shown(uid, 64) + ")"}
		for i := range v.namespaces {
			n := &v.namespaces[i]
			if n.cluster != uid {
				continue
			}
			sum := n.sums(v.From, v.To)
			c.Lanes = append(c.Lanes, lane{
				Name: shown(n.name, 64), Share: v.l.percent(share(sum.seen(), sum.whole())), Verdict: verdictClass(n.verdict), Word: v.l.word("answer", verdictClass(n.verdict)),
				Label: v.l.text("timeline.bar", shown(n.name, 64), v.l.duration(sum.seen(), down), v.l.duration(sum.whole()-sum.seen(), up)), Bars: s.bars(v.l, n.intervals),
			})
		}
		if len(c.Lanes) > 0 {
			list = append(list, c)
		}
	}
	return list
}

// verdictClass is the word of a verdict in the style sheet and the catalogue.
func verdictClass(v verify.Verdict) string {
	switch v {
	case verify.Holds:
		return "holds"
	case verify.IsViolated:
		return "violated"
	case verify.NotTrusted:
		return "broken"
	}
	return "notProvable"
}

// figure is one of the numbers of the summary.
type figure struct{ Name, Value, Detail, Class string }

func (v view) figures() []figure {
	t, l := v.totals(), v.l
	bad := func(is bool) string {
		if is {
			return "bad"
		}
		return ""
	}
	remarkable := func(is bool) string {
		if is {
			return "remarkable"
		}
		return ""
	}
	answers := l.text("figure.answers.detail", l.int(t.verdicts[verify.Holds]), l.int(len(v.namespaces)-t.verdicts[verify.Holds]-t.verdicts[verify.IsViolated]), l.int(t.verdicts[verify.IsViolated]))
	integrity, lowest := l.text("figure.integrity.ok"), l.percent(t.lowest)
	switch {
	case len(v.Result.Problems) > 0:
		integrity = l.text("figure.integrity.bad")
	case len(v.logs) == 0:
		integrity = "–"
	}
	if len(v.namespaces) == 0 {
		lowest = "–"
	}
	unlogged, detail := l.number(t.unlogged), l.text("figure.unlogged.detail")
	if t.inexact {
		detail = l.text("figure.unlogged.inexact")
	}
	refused := uint64(len(v.refusals)) + v.refusedMore
	bite := l.text("figure.refused.detail")
	if refused == 0 {
		bite = l.text("figure.refused.none")
	}
	unexplained := v.found(verify.FindingUnexplained)
	return []figure{
		{l.text("figure.answers"), l.int(len(v.namespaces)), answers, ""},
		{l.text("figure.lowest"), lowest, l.text("figure.lowest.detail"), ""},
		{l.text("figure.violated"), l.duration(t.violated, up), l.text("figure.sum.detail"), bad(t.violated > 0)},
		{l.text("figure.unknown"), l.duration(t.unknown, up), l.text("figure.unknown.detail", l.duration(t.longest, up)), ""},
		{l.text("figure.excepted"), l.duration(t.excepted, up), l.text("figure.sum.detail"), ""},
		{l.text("figure.exceptions"), l.int(t.granted), l.text("figure.exceptions.detail", l.int(t.selfGranted)), remarkable(t.selfGranted > 0)},
		{l.text("figure.unexplained"), l.int(unexplained), l.text("figure.unexplained.detail"), bad(unexplained > 0)},
		{l.text("figure.unlogged"), unlogged, detail, ""},
		{l.text("figure.refused"), l.number(refused), bite, ""},
		{l.text("figure.weaker"), l.int(t.weaker), l.text("figure.weaker.detail"), bad(t.weaker > 0)},
		{l.text("figure.findings"), l.int(len(v.findings)), l.text("figure.findings.detail"), ""},
		{l.text("figure.integrity"), integrity, l.text("figure.integrity.detail", l.int(len(v.logs)), l.number(t.entries)), bad(len(v.Result.Problems) > 0)},
	}
}

// others names the namespaces whose answer is not the best one, the worst first.
func (v view) others() []fact {
	const most = 12
	var list []fact
	for _, verdict := range []verify.Verdict{verify.IsViolated, verify.NotProvable} {
		var names []string
		for _, n := range v.namespaces {
			if verdictClass(n.verdict) == verdictClass(verdict) {
				names = append(names, shown(n.name, 64)+" ("+v.cluster(n.cluster)+")")
			}
		}
		if len(names) > most {
			names = append(names[:most], v.l.text("andMore", v.l.int(len(names)-most)))
		}
		if len(names) > 0 {
			list = append(list, fact{v.l.text("answer." + verdictClass(verdict)), strings.Join(names, ", "), "a-" + verdictClass(verdict)})
		}
	}
	return list
}

// fact is a name with what is said of it.
type fact struct{ Name, Value, Class string }

// logView is what somebody needs to compare a log with what they have from elsewhere.
type logView struct {
	Title, Checkpoint string
	Facts             []fact
}

// lines are those of a note, which a log's key and witnesses have signed.
func lines(note string) string {
	const most = 40
	list := strings.Split(strings.TrimSuffix(note, "\n"), "\n")
	if len(list) > most {
		list = append(list[:most], "…")
	}
	for i := range list {
		list[i] = shown(list[i], 600)
	}
	return strings.Join(list, "\n")
}

func (v view) logViews() []logView {
	var list []logView
	for i, l := range v.logs {
		state, witnesses := v.l.text("verify.open"), v.l.text("verify.witnesses.none")
		if l.Closed {
			state = v.l.text("verify.closed")
		}
		for j, c := range l.Cosignatures {
			if j == 0 {
				witnesses = ""
			} else {
				witnesses += "; "
			}
			witnesses += shown(c.Witness, 200) + " (" + v.l.instant(c.At) + ")"
		}
		list = append(list, logView{"L" + strconv.Itoa(i+1), lines(l.Checkpoint), []fact{
			{v.l.text("verify.origin"), shown(l.Origin, 300), "code"},
			{v.l.text("verify.size"), v.l.number(l.Size), ""},
			{v.l.text("verify.root"), shown(l.Root, 100), "code"},
			{v.l.text("verify.key"), shown(l.Key, 600), "code"},
			{v.l.text("verify.trust"), v.l.word("trust", l.Trust), ""},
			{v.l.text("verify.witnesses"), witnesses, ""},
			{v.l.text("verify.covers"), v.l.instant(l.From) + " – " + v.l.instant(l.To) + ", " + state, ""},
			{v.l.text("verify.pseudonyms"), shown(l.Pseudonyms, 64), "code"},
		}})
	}
	return list
}
