package report

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meshvakt/meshvakt/internal/evidence/verify"
)

// empty is a period of which the logs tell nothing.
func empty() Input {
	return Input{Result: &verify.Result{}, From: at("2026-07-01T00:00:00Z"), To: at("2026-10-01T00:00:00Z")}
}

// broken has a fault in one log, so that none of it counts.
func broken() Input {
	in := rich()
	in.Result.Problems = []verify.Problem{{Log: in.Result.Logs[0].Origin, Seq: 4711, What: "prev is not the hash of record 4710"}}
	return in
}

func oscalText(t *testing.T, in Input) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := OSCAL(&b, in); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestExports(t *testing.T) {
	golden(t, "rich.oscal.json", oscalText(t, rich()))
	golden(t, "empty.oscal.json", oscalText(t, empty()))
	golden(t, "broken.oscal.json", oscalText(t, broken()))
	files, err := CSV(rich())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		golden(t, "csv/"+f.Name, f.Data)
	}
	var names []string
	entries, err := os.ReadDir(filepath.Join("testdata", "csv"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if len(names) != len(files) {
		t.Errorf("testdata/csv has %q; must have %d files", names, len(files))
	}
}

// TestSameInputSameBytes over maps, and over the order that a zip is written in.
func TestSameInputSameBytes(t *testing.T) {
	all := func() []byte {
		var b bytes.Buffer
		b.WriteString(html(t, rich(), "en"))
		b.Write(oscalText(t, rich()))
		files, err := CSV(rich())
		if err != nil {
			t.Fatal(err)
		}
		if err := Zip(&b, files); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	first := all()
	for range 20 {
		if !bytes.Equal(all(), first) {
			t.Fatal("two reports of the same input differ")
		}
	}
}

// TestCatalogues have the same texts, with the same places for values, and none that nothing shows.
func TestCatalogues(t *testing.T) {
	en, err := newLanguage("en")
	if err != nil {
		t.Fatal(err)
	}
	for _, tag := range Languages() {
		l, err := newLanguage(tag)
		if err != nil {
			t.Fatal(err)
		}
		for key, text := range l {
			if strings.TrimSpace(text) == "" && key != "thousands" {
				t.Errorf("%s: %q is empty", tag, key)
			}
			if _, there := en[key]; !there {
				t.Errorf("%s: %q is not in en", tag, key)
			}
			if strings.Count(text, "%s") != strings.Count(en[key], "%s") {
				t.Errorf("%s: %q has %q; must have as many values as %q", tag, key, text, en[key])
			}
		}
		if len(l) != len(en) {
			t.Errorf("%s has %d texts; must have %d, as en", tag, len(l), len(en))
		}
	}
	used := usedKeys(t)
	for key := range en {
		if !used(key) {
			t.Errorf("nothing shows %q", key)
		}
	}
}

// usedKeys knows the keys that the sources name, and those made of a group and a word.
func usedKeys(t *testing.T) func(string) bool {
	t.Helper()
	var sources strings.Builder
	paths, err := filepath.Glob("*")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range paths {
		if strings.HasSuffix(p, "_test.go") || !strings.HasSuffix(p, ".go") && p != "page.html" {
			continue
		}
		text, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		sources.Write(text)
	}
	text := sources.String()
	groups := regexp.MustCompile(`(?:word\("|text\(")([a-z]+)(?:", |\.")`).FindAllStringSubmatch(text, -1)
	return func(key string) bool {
		for _, suffix := range []string{"", ".lead", ".empty", ".text", ".ref", ".asks", ".shows", ".not"} {
			base, is := strings.CutSuffix(key, suffix)
			if is && strings.Contains(text, `"`+base+`"`) {
				return true
			}
		}
		if strings.HasPrefix(key, "said.") {
			return true // see TestTheVerifierSaysSo
		}
		group, word, is := strings.Cut(key, ".")
		if !is {
			return false
		}
		word = strings.TrimSuffix(word, ".text")
		if group == "col" || group == "control" {
			for _, suffix := range []string{".ref", ".asks", ".shows", ".not"} {
				word = strings.TrimSuffix(word, suffix)
			}
			return strings.Contains(text, `"`+word+`"`)
		}
		return slices.ContainsFunc(groups, func(m []string) bool { return m[1] == group })
	}
}

// TestTheVerifierSaysSo: the sentences that are translated are those of the verifier, as they are.
func TestTheVerifierSaysSo(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "verify", "intervals.go"))
	if err != nil {
		t.Fatal(err)
	}
	nb, err := newLanguage("nb")
	if err != nil {
		t.Fatal(err)
	}
	for key := range nb {
		if sentence, is := strings.CutPrefix(key, "said."); is && !strings.Contains(string(text), `"`+sentence) {
			t.Errorf("the verifier does not say %q", sentence)
		}
	}
	sentences := regexp.MustCompile(`Why(?:: |\s=\s|,\s=\s|\s\+=\s)(?:[^"\n]*, )?"([^"]+)"`).FindAllStringSubmatch(string(text), -1)
	if len(sentences) < 6 {
		t.Errorf("found only %q in the verifier", sentences)
	}
	for _, m := range sentences {
		if _, is := nb["said."+m[1]]; !is {
			t.Errorf("the verifier says %q, which is not translated", m[1])
		}
	}
	r, err := narrow(rich())
	if err != nil {
		t.Fatal(err)
	}
	v := view{r, nb}
	for text, want := range map[string]string{
		"a port takes PERMISSIVE; pods run outside of the mesh":              "en port tar imot PERMISSIVE; poder kjører utenfor nettet (mesh)",
		"a port takes DISABLE (nobody saw it; the same before and after)":    "en port tar imot DISABLE (ingen så det; det samme før og etter)",
		"nobody saw it, and not all was the same before and after":           "ingen så det, og ikke alt var det samme før og etter",
		"something that a newer verifier says; pods run outside of the mesh": "something that a newer verifier says; poder kjører utenfor nettet (mesh)",
	} {
		if got := v.why(text); got != want {
			t.Errorf("%q is shown as %q; want %q", text, got, want)
		}
	}
}

// TestEveryFindingHasAName in the catalogues.
func TestEveryFindingHasAName(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "verify", "result.go"))
	if err != nil {
		t.Fatal(err)
	}
	en, err := newLanguage("en")
	if err != nil {
		t.Fatal(err)
	}
	codes := regexp.MustCompile(`Finding[A-Z]\w+ += "([a-z-]+)"`).FindAllStringSubmatch(string(text), -1)
	if len(codes) < 13 {
		t.Fatalf("found only %q in the verifier", codes)
	}
	for _, m := range codes {
		if _, is := en["finding."+m[1]]; !is {
			t.Errorf("%q has no name", m[1])
		}
	}
}

// TestALogThatCannotBeRead leaves nothing to report on but that.
func TestALogThatCannotBeRead(t *testing.T) {
	in := empty()
	in.Result.Problems = []verify.Problem{{Log: "x.zip", Seq: -1, What: "zip: not a valid zip file"}}
	text := html(t, in, "en")
	for _, want := range []string{"v-broken", "<b>broken</b>", "not a valid zip file", "x.zip"} {
		if !strings.Contains(text, want) {
			t.Errorf("the page does not say %q", want)
		}
	}
}

// TestEveryWordHasAText in every language: no page shows the key of one.
func TestEveryWordHasAText(t *testing.T) {
	for _, tag := range Languages() {
		for _, in := range []Input{rich(), empty(), broken()} {
			text := html(t, in, tag)
			for _, m := range regexp.MustCompile(`>((?:grade|figure|control|col|trust|verify|headline|answer|what|outcome|cause|of|run|key|for|why|ended|approval|finding|limits|framework)\.[a-zA-Z0-9.-]+)<`).FindAllStringSubmatch(text, -1) {
				t.Errorf("%s: the page shows %q", tag, m[1])
			}
			if strings.Contains(text, "%!") {
				t.Errorf("%s: a text has more or fewer values than places", tag)
			}
		}
	}
}

// TestSharesNeverRoundUp at the borders that count.
func TestSharesNeverRoundUp(t *testing.T) {
	const quarter = 92 * 24 * time.Hour
	for _, c := range []struct {
		part, whole time.Duration
		want        int64
	}{{quarter, quarter, 10000}, {quarter - 1, quarter, 9999}, {quarter - 41*time.Second, quarter, 9999}, {0, quarter, 0}, {0, 0, 0}, {1, quarter, 0}, {quarter / 2, quarter, 5000}} {
		if got := share(c.part, c.whole); got != c.want {
			t.Errorf("share of %s in %s is %d; want %d", c.part, c.whole, got, c.want)
		}
	}
	l, err := newLanguage("nb")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		d    time.Duration
		r    rounding
		want string
	}{{41 * time.Second, up, "41 s"}, {90*time.Minute + 1, up, "1 h 30 min 1 s"}, {90*time.Minute + 999*time.Millisecond, down, "1 h 30 min"}, {1, up, "0,001 s"}, {1, down, "0 s"}, {2200 * 24 * time.Hour, up, "2 200 d"}} {
		if got := strings.ReplaceAll(l.duration(c.d, c.r), "\u00a0", " "); got != c.want {
			t.Errorf("%s is shown as %q; want %q", c.d, got, c.want)
		}
	}
}

// TestNothingIsLeftOut of a period: what no log tells of is unknown.
func TestNothingIsLeftOut(t *testing.T) {
	in := rich()
	// The logs of one end early.
	in.Result.Namespaces[1].Intervals[0].To = at("2026-09-30T23:59:58Z")
	r, err := narrow(in)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range r.namespaces {
		end := in.From
		for _, i := range n.intervals {
			if !i.From.Equal(end) || !i.From.Before(i.To) {
				t.Errorf("%s: after %s comes %s to %s", n.name, end, i.From, i.To)
			}
			end = i.To
		}
		if !end.Equal(in.To) {
			t.Errorf("%s ends at %s", n.name, end)
		}
		if s := n.sums(in.From, in.To); s.whole()+s[unguarded] != in.To.Sub(in.From) {
			t.Errorf("%s: the grades come to %s", n.name, s.whole())
		}
	}
	i := slices.IndexFunc(r.namespaces, func(n namespace) bool { return n.name == "klinikk" })
	if first := r.namespaces[i].intervals[0]; first.Grade != verify.Unknown || first.Why != uncovered {
		t.Errorf("time before the first record is %+v", first)
	}
}

// TestTheAnswerIsTheWorst of any namespace, and there is none where a log is broken.
func TestTheAnswerIsTheWorst(t *testing.T) {
	change := func(f func(*Input)) Input {
		in := rich()
		f(&in)
		return in
	}
	holding := func(in *Input) {
		in.Namespaces = []string{"journal"}
		in.Result.Claims[0].Verdict = verify.Holds
	}
	for name, c := range map[string]struct {
		in   Input
		want string
	}{
		"violated": {rich(), "violated"},
		"unknown":  {change(func(in *Input) { in.Namespaces = []string{"betaling", "journal"} }), "notProvable"},
		"holds":    {change(holding), "holds"},
		"broken":   {change(func(in *Input) { holding(in); in.Result.Problems = broken().Result.Problems }), "broken"},
		"newer":    {change(func(in *Input) { holding(in); in.Result.Newer = broken().Result.Problems }), "newer"},
		"empty":    {empty(), "empty"},
		"own key": {change(func(in *Input) {
			holding(in)
			in.Result.Logs[0].Trust = verify.TrustOwn
			in.Result.Claims[0].Verdict, in.Result.Claims[0].Why = verify.NotProvable, "the key is known from the log itself"
		}), "notProvable"},
		"another is missing": {change(func(in *Input) {
			holding(in)
			in.Result.Claims[0].Verdict, in.Result.Claims[0].Why = verify.NotProvable, "no log tells of namespace x"
		}), "notProvable"},
		"no claim": {change(func(in *Input) { holding(in); in.Result.Claims = nil }), "notProvable"},
		"a claim about less": {change(func(in *Input) {
			holding(in)
			in.Result.Claims[0].Claim.From = in.From.Add(time.Second)
		}), "notProvable"},
		"inferred": {change(func(in *Input) {
			holding(in)
			for i := range in.Result.Namespaces {
				if in.Result.Namespaces[i].Namespace == "journal" {
					in.Result.Namespaces[i].Intervals[0].Grade = verify.Inferred
				}
			}
		}), "inferred"},
	} {
		r, err := narrow(c.in)
		if err != nil {
			t.Fatal(err)
		}
		if got := r.headline(r.totals()); got != c.want {
			t.Errorf("%s: the answer is %q; want %q", name, got, c.want)
		}
		if !strings.Contains(html(t, c.in, "en"), "v-"+c.want) {
			t.Errorf("%s: the page does not say so", name)
		}
		// Nor does a namespace hold on the word of a log alone; that another is missing does not touch it.
		if of := r.namespaces; name == "own key" && of[0].verdict != verify.NotProvable || name == "another is missing" && of[0].verdict != verify.Holds {
			t.Errorf("%s: the answer for the namespace is %q", name, of[0].verdict)
		}
	}
}

// TestAGapIsSeen however short it is, and on top of what is less grave.
func TestAGapIsSeen(t *testing.T) {
	l, err := newLanguage("en")
	if err != nil {
		t.Fatal(err)
	}
	s := scale{at("2026-07-01T00:00:00Z"), at("2026-10-01T00:00:00Z")}
	hole := at("2026-08-01T00:00:00Z")
	bars := s.bars(l, []verify.Interval{
		{From: s.from, To: hole, Grade: verify.Observed}, {From: hole, To: hole.Add(time.Second), Grade: verify.Violated},
		{From: hole.Add(time.Second), To: hole.Add(42 * time.Second), Grade: verify.Unknown}, {From: hole.Add(42 * time.Second), To: s.to, Grade: verify.Observed},
	})
	if n := len(bars); n != 4 || bars[3].Class != "g-violated" || bars[2].Class != "g-unknown" {
		t.Fatalf("drawn as %+v", bars)
	}
	for _, b := range bars[2:] {
		if b.W != "4.00" {
			t.Errorf("%s is %s wide; want the minimum", b.Class, b.W)
		}
	}
	// At the very end too, within the drawing.
	last := s.bars(l, []verify.Interval{{From: s.to.Add(-time.Second), To: s.to, Grade: verify.Unknown}})
	if last[0].X != "476.00" || last[0].W != "4.00" {
		t.Errorf("at the end it is drawn as %+v", last[0])
	}
}

// TestPeopleCannotWriteThePage nor the terminal, the spreadsheet or the direction of reading.
func TestPeopleCannotWriteThePage(t *testing.T) {
	in := rich()
	hostile := "</td><script>alert(1)</script>\u202etxt\u2066\x1b[2J\r\n\x00" + strings.Repeat("a", 5000)
	in.Result.Exceptions[0].Reason = hostile
	in.Result.Exceptions[0].Reference = "@SUM(1)"
	in.Result.Changes[0].Reason = hostile
	in.Result.Findings[0].What = hostile
	in.Result.Namespaces[0].Intervals[1].Why = hostile
	in.Result.Keys[1].Why = hostile
	in.Result.Logs[0].Checkpoint = hostile
	in.Result.Changes[1].Name, in.Result.Runs[0].Version, in.Result.Refusals.List[0].Name, in.Result.Namespaces[2].Namespace = hostile, hostile, hostile, hostile
	in.Result.Problems = []verify.Problem{{Log: hostile, Seq: 1, What: hostile}}
	for _, tag := range Languages() {
		text := html(t, in, tag)
		for _, bad := range []string{"<script", "\u202e", "\u2066", "\x1b", "\x00", strings.Repeat("a", 1100)} {
			if strings.Contains(text, bad) {
				t.Errorf("%s: the page has %q", tag, bad)
			}
		}
	}
	files, err := CSV(in)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		all, err := csv.NewReader(bytes.NewReader(f.Data)).ReadAll()
		if err != nil {
			t.Errorf("%s: %v", f.Name, err)
		}
		for _, row := range all {
			for _, field := range row {
				if field != "" && strings.ContainsAny(field[:1], "=+-@\t\r\n") || strings.ContainsAny(field, "\x00\x1b\u202e\n") {
					t.Errorf("%s: a field is %q", f.Name, field)
				}
			}
		}
	}
	if text := oscalText(t, in); !json.Valid(text) || bytes.Contains(text, []byte("\u202e")) {
		t.Error("the OSCAL document has what people have written as it is")
	}
}

// TestThePageNeedsNothing from elsewhere.
func TestThePageNeedsNothing(t *testing.T) {
	text := html(t, rich(), "en")
	for _, bad := range []string{"src=", "@import", "<link", "<script", "url(http", "ZgotmplZ"} {
		if strings.Contains(text, bad) {
			t.Errorf("the page has %q", bad)
		}
	}
	ids := map[string]int{}
	for _, m := range regexp.MustCompile(` id="([^"]+)"`).FindAllStringSubmatch(text, -1) {
		ids[m[1]]++
	}
	for id, n := range ids {
		if n != 1 {
			t.Errorf("%d elements have the id %q", n, id)
		}
	}
	for _, m := range regexp.MustCompile(`(?:href="#|url\(#)([^")]+)`).FindAllStringSubmatch(text, -1) {
		if ids[m[1]] == 0 {
			t.Errorf("nothing has the id %q, which is linked to", m[1])
		}
	}
}

// TestLongListsEnd on the page, which says so, and not in the export.
func TestLongListsEnd(t *testing.T) {
	in := rich()
	one := in.Result.Refusals.List[0]
	in.Result.Refusals.List = nil
	for i := range 1000 {
		one.Seq = int64(i)
		in.Result.Refusals.List = append(in.Result.Refusals.List, one)
	}
	in.Result.Refusals.Total, in.Result.Refusals.Errors = 123456, 0
	in.Result.Refusals.Counts = []verify.RefusalCount{{Cluster: clusterA, Namespace: "betaling", Rule: "MV103", N: 123456}}
	text := html(t, in, "en")
	for _, want := range []string{"<b>123,456</b>", "122,956 more were counted"} {
		if !strings.Contains(text, want) {
			t.Errorf("the page does not say %q", want)
		}
	}
	files, err := CSV(in)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if n := bytes.Count(f.Data, []byte("\r\n")); f.Name == "refusals.csv" && n != 1001 {
			t.Errorf("refusals.csv has %d lines", n)
		}
	}
}

// TestOSCALNeverRoundsUp: what is not observed, broken or signed by nobody known is not satisfied.
func TestOSCALNeverRoundsUp(t *testing.T) {
	states := func(in Input) map[string]string {
		var d oscalDocument
		if err := json.Unmarshal(oscalText(t, in), &d); err != nil {
			t.Fatal(err)
		}
		m := map[string]string{}
		for _, r := range d.Results.Results {
			for _, f := range r.Findings {
				m[fmt.Sprintf("%.2s %s", strings.TrimPrefix(r.Title, "Cluster "), f.Title)] = f.Target.Status.State + " " + f.Target.Status.Reason
			}
		}
		return m
	}
	got := states(rich())
	for title, want := range map[string]string{
		"1f mtls-strict of namespace journal":              "satisfied pass",
		"1f observation-complete of namespace journal":     "satisfied pass",
		"1f mtls-strict of namespace betaling":             "not-satisfied other",
		"1f observation-complete of namespace betaling":    "not-satisfied other",
		"1f mtls-strict of namespace portal":               "not-satisfied fail",
		"1f mtls-strict of namespace legacy":               "not-satisfied other",
		"1f observation-complete of namespace legacy":      "satisfied pass",
		"1f exceptions-two-persons of cluster " + clusterA: "not-satisfied fail",
		"9a exceptions-two-persons of cluster " + clusterB: "satisfied pass",
		"1f log-integrity of cluster " + clusterA:          "satisfied pass",
		"9a log-integrity of cluster " + clusterB:          "not-satisfied other",
	} {
		if got[title] != want {
			t.Errorf("%s: %q; want %q", title, got[title], want)
		}
	}
	for title, state := range states(broken()) {
		if !strings.HasPrefix(state, "not-satisfied") {
			t.Errorf("with a broken log, %s is %s", title, state)
		}
	}
	in := rich()
	in.Result.Logs[0].Trust = verify.TrustOwn
	if state := states(in)["1f log-integrity of cluster "+clusterA]; state != "not-satisfied other" {
		t.Errorf("with a key of its own, a log's integrity is %s", state)
	}
}

func TestWhatIsNoReport(t *testing.T) {
	in := rich()
	in.From = in.To
	if err := HTML(&bytes.Buffer{}, in, "en"); err == nil || !strings.Contains(err.Error(), "must end after it begins") {
		t.Errorf("a period of no length: %v", err)
	}
	if err := HTML(&bytes.Buffer{}, rich(), "de"); err == nil || err.Error() != `language "de"; must be one of en, nb` {
		t.Errorf("a language that there is not: %v", err)
	}
	if err := OSCAL(&bytes.Buffer{}, Input{}); err == nil {
		t.Error("no result at all is taken for one")
	}
}
