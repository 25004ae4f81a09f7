package report

import (
	"archive/zip"
	"bytes"
	"encoding/csv"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/meshvakt/meshvakt/internal/evidence/verify"
)

// File is one of several that an export has.
type File struct {
	Name string
	Data []byte
}

// register is a table for programs: in no language, and with all rows.
type register struct {
	name    string
	columns []string
	rows    [][]string
}

// CSV makes a file of each register, as RFC 4180 has it. Names and order of the columns are permanent; new ones come
// at the end.
func CSV(in Input) ([]File, error) {
	r, err := narrow(in)
	if err != nil {
		return nil, err
	}
	var files []File
	for _, reg := range r.registers() {
		var b bytes.Buffer
		w := csv.NewWriter(&b)
		w.UseCRLF = true
		if err := w.Write(reg.columns); err != nil {
			return nil, fmt.Errorf("write %s.csv: %w", reg.name, err)
		}
		for _, row := range reg.rows {
			for i := range row {
				row[i] = harmless(row[i])
			}
			if err := w.Write(row); err != nil {
				return nil, fmt.Errorf("write %s.csv: %w", reg.name, err)
			}
		}
		w.Flush()
		files = append(files, File{reg.name + ".csv", b.Bytes()})
	}
	return files, nil
}

// Zip writes files into one archive. They have no times, so that the same files give the same bytes.
func Zip(w io.Writer, files []File) error {
	z := zip.NewWriter(w)
	for _, f := range files {
		to, err := z.Create(f.Name)
		if err == nil {
			_, err = to.Write(f.Data)
		}
		if err != nil {
			return fmt.Errorf("put %s into the archive: %w", f.Name, err)
		}
	}
	if err := z.Close(); err != nil {
		return fmt.Errorf("finish the archive: %w", err)
	}
	return nil
}

// harmless keeps a spreadsheet from taking what people have written for a formula, which could send the rest of the
// table somewhere. Control characters are made visible, line breaks with them.
func harmless(s string) string {
	s = shown(s, len(s))
	if s != "" && strings.ContainsRune("=+-@＝＋－＠", []rune(s)[0]) {
		return "'" + s
	}
	return s
}

func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339Nano)
}

// seconds has nothing rounded.
func seconds(d time.Duration) string { return strconv.FormatFloat(d.Seconds(), 'f', -1, 64) }

func count(n uint64) string { return strconv.FormatUint(n, 10) }

func seq(n int64) string {
	if n < 0 {
		return ""
	}
	return strconv.FormatInt(n, 10)
}

func rows[T any](list []T, row func(T) []string) [][]string {
	all := make([][]string, 0, len(list))
	for _, e := range list {
		all = append(all, row(e))
	}
	return all
}

func (r *report) registers() []register {
	return []register{
		r.logRegister(),
		{"problems", []string{"kind", "log", "seq", "text"}, append(
			rows(r.Result.Problems, func(p verify.Problem) []string { return []string{"problem", p.Log, seq(p.Seq), p.What} }),
			rows(r.Result.Newer, func(p verify.Problem) []string { return []string{"newer", p.Log, seq(p.Seq), p.What} })...)},
		{"findings", []string{"code", "cluster", "namespace", "from", "to", "log", "seq", "text"}, rows(r.findings, func(f verify.Finding) []string {
			return []string{f.Code, f.Cluster, f.Namespace, stamp(f.From), stamp(f.To), f.Log, seq(f.Seq), f.What}
		})},
		r.namespaceRegister(),
		r.intervalRegister(),
		r.momentRegister(),
		{"gaps", []string{"cluster", "log", "seq", "of", "cause", "from", "to", "seconds", "exact", "unlogged"}, rows(r.gaps, func(g verify.Gap) []string {
			return []string{g.Cluster, g.Log, seq(g.Seq), g.Of, g.Cause, stamp(g.From), stamp(g.To), seconds(g.To.Sub(g.From)), strconv.FormatBool(g.Exact), count(unlogged(g))}
		})},
		r.exceptionRegister(),
		{"refusals", []string{"cluster", "namespace", "at", "verdict", "operation", "gvk", "object", "by", "rules", "log", "seq"}, rows(r.refusals, func(d verify.Refusal) []string {
			return []string{d.Cluster, d.Namespace, stamp(d.At), d.Verdict, d.Operation, d.GVK, d.Name, d.By, strings.Join(d.Rules, " "), d.Log, seq(d.Seq)}
		})},
		{"refusal-counts", []string{"cluster", "namespace", "rule", "month", "n"}, rows(r.counts, func(c refusedBy) []string {
			m := ""
			if !c.month.IsZero() {
				m = c.month.Format("2006-01")
			}
			return []string{c.cluster, c.namespace, c.rule, m, count(c.n)}
		})},
		{"changes", []string{"cluster", "at", "gvk", "namespace", "name", "what", "weaker", "by", "request", "reason", "log", "seq"}, rows(r.changes, func(c verify.Change) []string {
			return []string{c.Cluster, stamp(c.At), c.GVK, c.Namespace, c.Name, c.What, strconv.FormatBool(c.Weaker), c.By, c.Request, c.Reason, c.Log, seq(c.Seq)}
		})},
		{"runs", []string{"cluster", "replica", "boot", "pod", "node", "version", "binary", "policies", "durability", "mode", "started", "last", "ended"}, rows(r.runs, func(n verify.Run) []string {
			return []string{n.Cluster, n.Replica, n.Boot, n.Pod, n.Node, n.Version, n.Binary, n.Policies, n.Durability, n.Mode, stamp(n.Started), stamp(n.Last), n.Ended}
		})},
		{"remediations", []string{"cluster", "namespace", "what", "gvk", "object", "outcome", "tries", "after", "found", "done", "log", "seq"}, rows(r.fixes, func(m verify.Remediation) []string {
			return []string{m.Cluster, m.Namespace, m.What, m.GVK, m.Name, m.Outcome, count(m.Tries), stamp(m.After), stamp(m.Found), stamp(m.Done), m.Log, seq(m.Seq)}
		})},
		{"keys", []string{"cluster", "at", "what", "for", "id", "origin", "by", "why", "records", "log", "seq"}, rows(r.keys, func(k verify.Key) []string {
			return []string{k.Cluster, stamp(k.At), k.What, k.For, k.ID, k.Origin, k.By, k.Why, count(k.N), k.Log, seq(k.Seq)}
		})},
	}
}

func (r *report) logRegister() register {
	return register{"logs", []string{"origin", "cluster", "replica", "shard", "size", "root", "key", "trust", "witnesses", "closed", "from", "to", "pseudonyms", "unlogged", "beats", "maxErrorSeconds", "unsynchronisedBeats", "declaredBeats", "declaredClock", "clockJumps"},
		rows(r.logs, func(l verify.Log) []string {
			var witnesses []string
			for _, c := range l.Cosignatures {
				witnesses = append(witnesses, c.Witness+" "+stamp(c.At))
			}
			return []string{l.Origin, l.Cluster, l.Replica, l.Shard, count(l.Size), l.Root, l.Key, l.Trust, strings.Join(witnesses, "; "), strconv.FormatBool(l.Closed), stamp(l.From), stamp(l.To),
				l.Pseudonyms, count(l.Unlogged), count(l.Clock.Beats), seconds(l.Clock.MaxError), count(l.Clock.Unsynchronised), count(l.Clock.Declared), declared(l.Clock), count(l.Clock.Jumps)}
		})}
}

func (r *report) namespaceRegister() register {
	columns := []string{"cluster", "namespace", "answer", "from", "to"}
	for _, g := range shownGrades() {
		columns = append(columns, class(g)+"Seconds")
	}
	return register{"namespaces", columns, rows(r.namespaces, func(n namespace) []string {
		row := []string{n.cluster, n.name, string(n.verdict), stamp(r.From), stamp(r.To)}
		s := n.sums(r.From, r.To)
		for _, g := range shownGrades() {
			row = append(row, seconds(s[g]))
		}
		return row
	})}
}

func (r *report) intervalRegister() register {
	reg := register{name: "intervals", columns: []string{"cluster", "namespace", "from", "to", "seconds", "grade", "mode", "outside", "why", "exceptions"}}
	for _, n := range r.namespaces {
		reg.rows = append(reg.rows, rows(n.intervals, func(in verify.Interval) []string {
			why := in.Why
			if why == uncovered {
				why = "no log tells of this time"
			}
			return []string{n.cluster, n.name, stamp(in.From), stamp(in.To), seconds(in.To.Sub(in.From)), string(in.Grade), in.Mode, strconv.FormatBool(in.Outside), why, strings.Join(in.Exceptions, " ")}
		})...)
	}
	return reg
}

// momentRegister is no part of the intervals, whose seconds are those of the period.
func (r *report) momentRegister() register {
	reg := register{name: "moments", columns: []string{"cluster", "namespace", "from", "to", "atLeastSeconds", "grade", "why"}}
	for _, n := range r.namespaces {
		reg.rows = append(reg.rows, rows(n.moments, func(m verify.Moment) []string {
			return []string{n.cluster, n.name, stamp(m.From), stamp(m.To), seconds(m.AtLeast), string(verify.Violated), m.Why}
		})...)
	}
	return reg
}

// declared lists what operators say of a clock.
func declared(c verify.Clock) string {
	list := make([]string, 0, len(c.Declarations))
	for _, d := range c.Declarations {
		list = append(list, seconds(d.MaxError)+" s: "+d.Source)
	}
	return strings.Join(list, "; ")
}

func (r *report) exceptionRegister() register {
	return register{"exceptions", []string{"cluster", "namespace", "uid", "name", "requester", "approver", "samePerson", "approval", "rules", "rulesN", "ticket", "reason", "requested", "granted", "until", "end", "ended", "endedBy", "used", "firstUsed", "lastUsed", "usedBy", "standing", "standingFrom", "standingTo"},
		rows(r.exceptions, func(e verify.Exception) []string {
			return []string{e.Cluster, e.Namespace, e.UID, e.Name, e.By, e.Approver, strconv.FormatBool(selfApproved(e)), e.Approval, strings.Join(e.Rules, " "), count(e.RulesN),
				e.Reference, e.Reason, stamp(e.Requested), stamp(e.Granted), stamp(e.Until), stamp(e.End), e.Ended, e.EndedBy, count(e.Used), stamp(e.FirstUsed), stamp(e.LastUsed), usedBy(e), count(e.Standing), stamp(e.StandingFrom), stamp(e.StandingTo)}
		})}
}

// usedBy lists who has used an exception, for which kind and how often.
func usedBy(e verify.Exception) string {
	list := make([]string, 0, len(e.Uses))
	for _, u := range e.Uses {
		list = append(list, u.By+" "+u.GVK+" "+count(u.N))
	}
	if more := e.UsesN - len(e.Uses); more > 0 {
		list = append(list, "+"+strconv.Itoa(more))
	}
	return strings.Join(list, "; ")
}
