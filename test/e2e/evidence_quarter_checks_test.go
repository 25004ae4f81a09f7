package e2e

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
	"github.com/meshvakt/meshvakt/internal/evidence/verify"
	"github.com/meshvakt/meshvakt/internal/evidence/volume"
)

// expected are findings that the script brings about: so many of a code, about a namespace or none, in a time.
type expected struct {
	code, namespace string
	from, to        time.Time
	least, most     int
}

// anyNumber is for how many there may be of what a few replicas tell, one after the other, in one time.
const anyNumber = 1000

// finds says what is to be found of what was done since a time.
func (q *quarter) finds(code, namespace string, since time.Time, least, most int) {
	q.expected = append(q.expected, expected{code, q.names[namespace], since.Add(-borderOfQuarter), q.time().Add(2 * clockErrorOfQuarter), least, most})
}

// weakened says that each replica will tell, at its next beat at the latest, that the registration has gone.
func (q *quarter) weakened() {
	q.finds(verify.FindingWeakened, "", q.time(), 2, 2)
	q.expected[len(q.expected)-1].to = q.time().Add(beatOfQuarter)
}

// verify holds what the ordinary verifier says of the logs against what is known.
func (q *quarter) verify() {
	t := q.t
	from, to := beginning().Add(beatOfQuarter), endOfQuarter().Add(15*time.Hour)
	o := &oracleOfQuarter{deeds: q.deeds, beat: beatOfQuarter, begun: beginning(), replicas: len(q.watchers)}
	dirs := []string{q.watchers[0].dir, q.watchers[1].dir}
	result, exit := q.result(dirs, from, to, "*")
	want := 0
	for name, ns := range q.names {
		at := slices.IndexFunc(result.Namespaces, func(l verify.Timeline) bool { return l.Namespace == ns })
		if at < 0 {
			t.Errorf("nothing is said of namespace %s", name)
			continue
		}
		t.Logf("namespace %s: %d intervals agree", name, o.compare(t, name, &result.Namespaces[at], from, to))
		if m := result.Namespaces[at].Moments; len(m) > 0 {
			t.Errorf("namespace %s: moments %+v; the script has none", name, m)
		}
		if o.verdict(ns, from, to, false) == verify.IsViolated {
			want = 1
		}
	}
	if exit != want {
		t.Errorf("the exit status is %d; must be %d", exit, want)
	}
	q.claims(o, dirs, from, to)
	q.findings(result)
	q.register(result)
	q.incidents(result)
	q.logs(result)
	q.reports(dirs, from, to)
	q.bundles(o)
}

// result is what `meshvakt evidence verify` says of a claim, and its exit status.
func (q *quarter) result(inputs []string, from, to time.Time, namespace string, more ...string) (*verify.Result, int) {
	t := q.t
	t.Helper()
	args := append([]string{"evidence", "verify", "--trust-log-key", "--max-clock-error", "100ms", "-o", "json",
		"--claim", "mtls=STRICT,namespace=" + namespace, "--from", from.Format(time.RFC3339), "--to", to.Format(time.RFC3339)}, more...)
	cmd := exec.CommandContext(t.Context(), binary, append(args, inputs...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	var r verify.Result
	must(t, json.Unmarshal(out, &r))
	if len(r.Problems) > 0 {
		t.Fatalf("the logs are not whole: %+v", r.Problems)
	}
	return &r, cmd.ProcessState.ExitCode()
}

// claims are answered as the oracle would, for each namespace, strictly and with what is inferred.
func (q *quarter) claims(o *oracleOfQuarter, dirs []string, from, to time.Time) {
	exits := map[verify.Verdict]int{verify.Holds: 0, verify.IsViolated: 1, verify.NotProvable: 2}
	seen := map[int]bool{}
	for name, ns := range q.names {
		for _, infer := range []bool{false, true} {
			var more []string
			if infer {
				more = []string{"--accept-inferred"}
			}
			want := exits[o.verdict(ns, from, to, infer)]
			seen[want] = true
			if _, exit := q.result(dirs, from, to, ns, more...); exit != want {
				q.t.Errorf("namespace %s, accept inferred %t: the exit status is %d; must be %d", name, infer, exit, want)
			}
		}
	}
	if len(seen) != len(exits) {
		q.t.Errorf("only the exit statuses %v have come up", seen)
	}
}

// findings must be those that the script brings about, and no other.
func (q *quarter) findings(result *verify.Result) {
	t, met := q.t, make([]int, len(q.expected))
	ours := append([]string{"", q.idle}, mapValues(q.names)...)
	for _, f := range result.Findings {
		if !slices.Contains(ours, f.Namespace) {
			continue // of other tests' namespaces, which may be going away still
		}
		at := slices.IndexFunc(q.expected, func(e expected) bool {
			return e.code == f.Code && e.namespace == f.Namespace && !f.From.Before(e.from) && !f.To.After(e.to)
		})
		if at < 0 {
			t.Errorf("finding %s %s from %s to %s: %s; the script has nothing of it", f.Code, f.Namespace, f.From, f.To, f.What)
			continue
		}
		met[at]++
	}
	for i, e := range q.expected {
		if met[i] < e.least || met[i] > e.most {
			t.Errorf("%d findings %s %s from %s to %s; must be %d to %d", met[i], e.code, e.namespace, e.from, e.to, e.least, e.most)
		}
	}
}

func mapValues(m map[string]string) (list []string) {
	for _, v := range m {
		list = append(list, v)
	}
	return list
}

// register is that of exceptions: who has asked and approved, how it was used, how and when it ended.
func (q *quarter) register(result *verify.Result) {
	t := q.t
	want := map[string]string{q.names["excepted"]: "expired", q.names["revoked"]: "revoked", q.idle: ""}
	for _, e := range result.Exceptions {
		how, ours := want[e.Namespace]
		if !ours {
			t.Errorf("an exception in namespace %s, in which there was none", e.Namespace)
			continue
		}
		delete(want, e.Namespace)
		if e.Reference != "SEC-1234" || e.By == "" {
			t.Errorf("exception of %s: %+v", e.Namespace, e)
		}
		if e.Namespace == q.idle {
			if !e.Granted.IsZero() || e.Used != 0 {
				t.Errorf("one that nobody has approved: %+v", e)
			}
			continue
		}
		var granted, end time.Time
		for _, d := range q.deeds {
			switch {
			case d.namespace != e.Namespace:
			case d.what == excepted:
				granted, end = d.at, d.until
			case d.what == ended:
				end = d.at
			}
		}
		if e.Ended != how || !e.End.Equal(end) || !e.Granted.Equal(granted) || e.Approver == "" || e.Approver == e.By || e.Used == 0 {
			t.Errorf("exception of %s: %+v; must be granted at %s by another, used, and %s at %s", e.Namespace, e, granted, how, end)
		}
	}
	if len(want) > 0 {
		t.Errorf("no exceptions in %v", want)
	}
}

// incidents are refusals, what was put right, and what was answered without a record.
func (q *quarter) incidents(result *verify.Result) {
	t := q.t
	refused := map[string]uint64{}
	for _, c := range result.Refusals.Counts {
		refused[c.Namespace] += c.N
	}
	if n := refused[q.names["proper"]]; n < 2 {
		t.Errorf("%d refusals in the namespace of proper changes; must be of two requests", n)
	}
	restored := slices.DeleteFunc(slices.Clone(result.Remediations), func(r verify.Remediation) bool { return r.What != "restored" })
	if len(restored) != 1 || restored[0].Namespace != q.names["restored"] || restored[0].Outcome != "done" {
		t.Errorf("put right was %+v; must be the one namespace that has it", restored)
	}
	for _, g := range result.Gaps {
		t.Logf("gap of %s by %s from %s to %s, exact %t: %+v", g.Of, g.Cause, g.From.Format(time.DateTime), g.To.Format(time.DateTime), g.Exact, g.Counts)
	}
	counted := uint64(0)
	for _, g := range result.Gaps {
		for _, c := range g.Counts {
			if g.Of == "decisions" && g.Cause == "io" {
				counted += c.N
			}
		}
	}
	if counted < q.unlogged {
		t.Errorf("gaps count %d answers without a record; must be %d at least", counted, q.unlogged)
	}
}

// logs are two for each replica, each going on from the one before, and say that their times are made up.
func (q *quarter) logs(result *verify.Result) {
	t := q.t
	var shards []string
	for _, l := range result.Logs {
		shards = append(shards, l.Replica+" "+l.Shard)
		if l.Closed != (l.Shard == "2024q3") || l.Shard == "2024q4" && l.PrevOrigin == "" {
			t.Errorf("log %+v", l)
		}
	}
	if want := []string{"meshvakt-0 2024q3", "meshvakt-0 2024q4", "meshvakt-1 2024q3", "meshvakt-1 2024q4"}; !slices.Equal(shards, want) {
		t.Errorf("logs %q; must be %q", shards, want)
	}
	for _, r := range result.Runs {
		if !strings.Contains(r.Version, record.SimulatedTime) {
			t.Errorf("a start of %q does not say that its time is simulated", r.Version)
		}
	}
	periods := map[string]bool{}
	for _, k := range result.Keys {
		if k.What == "created" && k.For == "pseudonyms" {
			periods[k.ID] = true
		}
	}
	if len(periods) != 2 {
		t.Errorf("%d keys of pseudonyms; must be one for each quarter", len(periods))
	}
}

// reports render, for people and for programs.
func (q *quarter) reports(dirs []string, from, to time.Time) {
	t, out := q.t, q.t.TempDir()
	for _, flags := range [][]string{
		{"-o", "html", "--lang", "en", "--out", filepath.Join(out, "en.html")},
		{"-o", "html", "--lang", "nb", "--out", filepath.Join(out, "nb.html")},
		{"-o", "csv", "--out", filepath.Join(out, "csv.zip")},
		{"-o", "oscal", "--out", filepath.Join(out, "oscal.json")},
	} {
		args := append(append([]string{"evidence", "report", "--trust-log-key", "--max-clock-error", "100ms",
			"--from", from.Format(time.RFC3339), "--to", to.Format(time.RFC3339)}, flags...), dirs...)
		if text, err := exec.CommandContext(t.Context(), binary, args...).CombinedOutput(); err != nil {
			t.Errorf("%v: %v\n%s", flags, err, text)
		}
		text, err := os.ReadFile(flags[len(flags)-1])
		must(t, err)
		for name, ns := range q.names {
			if filepath.Ext(flags[len(flags)-1]) == ".html" && !strings.Contains(string(text), ns) {
				t.Errorf("%v: namespace %s is not in the report", flags, name)
			}
		}
	}
}

// bundles of the quarter that is over carry a claim about it by themselves.
func (q *quarter) bundles(o *oracleOfQuarter) {
	t := q.t
	var bundles []string
	for _, w := range q.watchers {
		bundles = append(bundles, volume.Dir(w.dir).Bundle("2024q3"))
	}
	from, to := beginning().Add(beatOfQuarter), endOfQuarter().Add(-24*time.Hour)
	ns := q.names["quiet"]
	if v := o.verdict(ns, from, to, true); v != verify.Holds {
		t.Fatalf("the oracle says that the quiet namespace %s", v)
	}
	result, exit := q.result(bundles, from, to, ns, "--accept-inferred")
	if exit != 0 {
		t.Errorf("of the bundles, the exit status is %d: %+v", exit, result.Claims)
	}
	if _, exit := q.result(bundles[:1], from, to, ns, "--accept-inferred"); exit != 2 {
		t.Errorf("with the bundle of one replica, the exit status is %d; must be 2", exit)
	}
	if !slices.ContainsFunc(result.Findings, func(f verify.Finding) bool { return f.Code == verify.FindingMissingShard }) {
		t.Errorf("nothing says that the quarter after is missing: %+v", result.Findings)
	}
}
