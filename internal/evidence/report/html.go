package report

import (
	"embed"
	"fmt"
	"html/template"
	"io"
	"strings"
	"time"
)

//go:embed page.html page.css
var embeddedPage embed.FS

// page is what page.html shows.
type page struct {
	Lang, Title, Subtitle string
	Size                  string
	Others                []fact
	Why                   string
	Style                 template.CSS
	Contents              []link
	Verdict, Headline     string
	OwnKey                bool
	Figures               []figure
	Found                 table
	Scope                 []fact
	Charts                []chart
	Ticks                 []tick
	Legend                []legend
	MinimumWidth          string
	Months                table
	Registers             []table
	Mapping               []frameworkView
	Limits                []string
	Commands, Again       string
	Logs                  []logView
}

// legend explains a grade.
type legend struct{ Class, Name, Text string }

// HTML writes the page, which needs no other file, no script and no network.
func HTML(w io.Writer, in Input, tag string) error {
	r, err := narrow(in)
	if err != nil {
		return err
	}
	l, err := newLanguage(tag)
	if err != nil {
		return err
	}
	v := view{r, l}
	style, err := embeddedPage.ReadFile("page.css")
	if err != nil {
		return fmt.Errorf("read the style sheet: %w", err)
	}
	t, err := template.New("page.html").Funcs(template.FuncMap{"t": l.text}).ParseFS(embeddedPage, "page.html")
	if err != nil {
		return fmt.Errorf("parse the page: %w", err)
	}
	p := v.page()
	p.Style = template.CSS(style) //nolint:gosec // it is this package's own file
	if err := t.Execute(w, p); err != nil {
		return fmt.Errorf("write the page: %w", err)
	}
	return nil
}

func (v view) page() page {
	l := v.l
	headline := v.headline(v.totals())
	p := page{
		Lang: l["lang"], Title: l.text("title"), Subtitle: l.text("subtitle", l.moment(v.From), l.moment(v.To)),
		Size: l.text("size", l.int(len(v.clusters)), l.int(len(v.logs)), l.int(len(v.namespaces))), Others: v.others(),
		Verdict: headline, Headline: l.text("headline." + headline), OwnKey: v.ownKey(),
		Figures: v.figures(), Found: v.foundTable(), Scope: v.scope(), Charts: v.charts(), Ticks: scale{v.From, v.To}.ticks(l),
		MinimumWidth: l.text("timeline.lead", l.text("timeline.width")), Months: v.monthTable(),
		Registers: []table{v.unobserved(), v.gapTable(), v.exceptionTable(), v.refusalCounts()},
		Commands:  v.commands(), Again: v.again(), Logs: v.logViews(),
	}
	if len(v.refusals) > 0 {
		p.Registers = append(p.Registers, v.refusalList())
	}
	p.Registers = append(p.Registers, v.changeTable(), v.runTable(), v.fixTable(), v.clockTable(), v.keyTable())
	for _, g := range shownGrades() {
		p.Legend = append(p.Legend, legend{class(g), l.text("grade." + string(g)), l.text("grade." + string(g) + ".text")})
	}
	if v.answer != nil && v.answer.Why != "" {
		p.Why = l.prose(v.answer.Why)
	}
	for _, id := range limits() {
		p.Limits = append(p.Limits, l.text("limits."+id))
	}
	for _, id := range []string{"summary", "findings", "scope", "timeline"} {
		p.Contents = append(p.Contents, link{id, l.text(id)})
	}
	if p.Months.ID != "" {
		p.Contents = append(p.Contents, link{p.Months.ID, p.Months.Title})
	}
	for _, t := range p.Registers {
		p.Contents = append(p.Contents, link{t.ID, t.Title})
	}
	for _, id := range []string{"controls", "limits", "verify"} {
		p.Contents = append(p.Contents, link{id, l.text(id)})
	}
	p.Mapping = v.mapping(p.Contents)
	return p
}

// moment is a date where it is midnight, as most borders of periods are.
func (l language) moment(t time.Time) string {
	if t.UTC().Truncate(24 * time.Hour).Equal(t) {
		return l.date(t)
	}
	return l.instant(t)
}

func (v view) scope() []fact {
	l := v.l
	asked := l.text("all")
	if len(v.Namespaces) > 0 {
		asked = shown(strings.Join(v.Namespaces, ", "), 4000)
	}
	facts := []fact{
		{l.text("scope.period"), l.instant(v.From) + " – " + l.instant(v.To) + " (UTC)", ""},
		{l.text("scope.asked"), asked, ""},
	}
	for _, uid := range v.clusters {
		var replicas []string
		for _, log := range v.logs {
			if log.Cluster == uid && (len(replicas) == 0 || replicas[len(replicas)-1] != shown(log.Replica, 253)) {
				replicas = append(replicas, shown(log.Replica, 253))
			}
		}
		names := 0
		for _, n := range v.namespaces {
			if n.cluster == uid {
				names++
			}
		}
		facts = append(facts, fact{l.text("scope.cluster", v.cluster(uid)), l.text("scope.cluster.text", shown(uid, 64), strings.Join(replicas, ", "), l.int(names)), ""})
	}
	if a := v.Result.Audit; a != nil {
		use := l.text("scope.audit.used")
		if !a.Used {
			use = l.text("scope.audit.unused", l.prose(a.Why))
		}
		facts = append(facts, fact{l.text("scope.audit"), l.text("scope.audit.text", l.number(a.Receipts), l.number(a.Untold), l.number(a.Decisions)) + " " + use, ""})
	}
	return append(facts,
		fact{l.text("scope.what"), l.text("scope.what.text"), ""},
		fact{l.text("scope.excluded"), l.text("scope.excluded.text"), ""})
}

// told are the flags that say whom to believe, and what clocks.
func (v view) told(keys []string, trustLogKey bool) string {
	var flags strings.Builder
	if v.Told.Policy {
		flags.WriteString(" \\\n  --policy trust.policy")
	}
	for _, key := range keys {
		fmt.Fprintf(&flags, " \\\n  --key '%s'", strings.ReplaceAll(shown(key, 600), "'", ""))
	}
	if trustLogKey {
		flags.WriteString(" --trust-log-key")
	}
	if v.AcceptInferred {
		flags.WriteString(" --accept-inferred")
	}
	if v.Told.MaxClockError != "" {
		flags.WriteString(" --max-clock-error " + v.Told.MaxClockError)
	}
	if v.Told.NoDeclaredClock {
		flags.WriteString(" --no-declared-clock")
	}
	if v.Told.AuditLog {
		flags.WriteString(" \\\n  --audit-log audit.log")
	}
	return flags.String()
}

func (v view) period() string {
	return "--from " + v.From.UTC().Format(time.RFC3339Nano) + " --to " + v.To.UTC().Format(time.RFC3339Nano)
}

// claim is what the answer of the page is to.
func (r *report) claim() string {
	if len(r.Namespaces) == 0 {
		return "mtls=STRICT,namespace=*"
	}
	return "mtls=STRICT,namespace=" + strings.Join(r.Namespaces, ",namespace=")
}

// commands check the answer of the page, by the keys on it unless there is a policy.
func (v view) commands() string {
	keys := v.Told.Keys
	if !v.Told.Policy && len(keys) == 0 {
		for _, log := range v.logs {
			keys = append(keys, log.Key)
		}
	}
	return "meshvakt evidence verify *.zip --claim '" + v.claim() + "' \\\n  " + v.period() + v.told(keys, false)
}

// again makes the same page.
func (v view) again() string {
	flags := " --lang " + v.l["lang"]
	for _, n := range v.Namespaces {
		flags += " --namespace " + n
	}
	return "meshvakt evidence report *.zip -o html" + flags + " \\\n  " + v.period() + v.told(v.Told.Keys, v.Told.TrustLogKey)
}
