package check

import (
	"fmt"
	"io"
	"strings"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
)

// WriteGitHub prints the findings as commands by which a workflow of GitHub Actions shows
// them at their lines. Whatever comes from manifests is escaped, so that no name in one
// is a command of its own.
//
// Source: GitHub, workflow commands for GitHub Actions; the toolkit's @actions/core.
func (t *Result) WriteGitHub(w io.Writer) error {
	var b strings.Builder
	// GitHub shows the first ten of a kind only.
	for _, level := range []string{"error", "warning", "notice"} {
		for i := range t.Results {
			o := &t.Results[i]
			for _, f := range o.distinct() {
				if githubLevel(f) == level {
					writeAnnotation(&b, level, o, f)
				}
			}
		}
	}
	for _, n := range t.Notes {
		fmt.Fprintf(&b, "::notice title=meshvakt check::%s\n", escapeData(n))
	}
	b.WriteString(t.Summary.text() + "\n")
	_, err := io.WriteString(w, b.String())
	return err
}

func githubLevel(f *Finding) string {
	switch {
	case f.refuses():
		return "error"
	case f.Action == v1alpha1.Warn:
		return "warning"
	}
	return "notice"
}

func writeAnnotation(b *strings.Builder, level string, o *ObjectResult, f *Finding) {
	var properties []string
	if o.File != "" {
		properties = append(properties, "file="+escapeProperty(o.File))
		if line := f.lineIn(o); line > 0 {
			properties = append(properties, fmt.Sprintf("line=%d", line))
		}
	}
	title := f.Code + " " + f.Reason
	text := o.Object.text() + ": " + f.textWithRemedy()
	if !f.refuses() && f.standing() != "" {
		text += " (" + f.standing() + ")"
	}
	properties = append(properties, "title="+escapeProperty(title))
	fmt.Fprintf(b, "::%s %s::%s\n", level, strings.Join(properties, ","), escapeData(text))
}

func escapeData(text string) string {
	return strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A").Replace(text)
}

func escapeProperty(text string) string {
	return strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A", ":", "%3A", ",", "%2C").Replace(text)
}

// refuses reports whether the finding denies its object, and no baseline knows it.
func (f *Finding) refuses() bool { return f.Action == v1alpha1.Deny && !f.Known }

// standing says what becomes of a finding that does not refuse.
func (f *Finding) standing() string {
	switch {
	case f.Exception != "":
		return "let pass by GuardException " + f.Exception
	case f.Known:
		return "known to the baseline"
	}
	return strings.ToLower(string(f.Action))
}
