package webhook

import (
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/policies"
)

// The bounds of what is answered, in runes. Those of warnings are the API
// server's: above 4,096 in all it cuts every warning down to 256.
const (
	maxFindings        = 100 // in a message and as causes; the rest is counted
	maxFindingRunes    = 2048
	maxWarningRunes    = 256
	maxWarningsRunes   = 4096
	maxAnnotationRunes = 2048
	maxErrorRunes      = 1024
)

// denialText is the message of a refusal: whose rules, and one finding per line.
func denialText(denials []policies.Ruling) string {
	var guards []string
	for _, r := range denials {
		guards = append(guards, r.Guards...)
	}
	slices.Sort(guards)
	guards = slices.Compact(guards)
	for i, g := range guards {
		guards[i] = fmt.Sprintf("%q", g)
	}
	var b strings.Builder
	whose := "the rules of Meshvakt itself"
	if len(guards) > 0 {
		whose = plural(len(guards), "MeshGuard") + " " + strings.Join(guards, ", ")
	}
	fmt.Fprintf(&b, "violates %s (%s)", whose, count(len(denials), "finding"))
	for _, r := range denials[:min(len(denials), maxFindings)] {
		b.WriteString("\n")
		b.WriteString(clip(oneLine(r.Text()), maxFindingRunes))
	}
	if more := len(denials) - maxFindings; more > 0 {
		fmt.Fprintf(&b, "\nand %s", count(more, "more finding"))
	}
	return b.String()
}

// warnings are the findings that the user is told of without being refused,
// within the API server's limits: it cuts every warning down to 256 runes once
// all together pass 4,096. Up to there they are given whole.
func warnings(list []policies.Ruling) []string {
	var whole []string
	used := 0
	for i := range list {
		if a := list[i].Action; a == v1alpha1.Warn || a == policies.Excepted {
			text := warningText(&list[i])
			used += utf8.RuneCountInString(text)
			whole = append(whole, text)
		}
	}
	if used <= maxWarningsRunes {
		return whole
	}
	return clipAll(whole)
}

// clipAll cuts every warning to what the API server would leave of it, and counts
// those for which there is no room.
func clipAll(whole []string) []string {
	var out []string
	used := 0
	for i, text := range whole {
		text = clip(text, maxWarningRunes)
		used += utf8.RuneCountInString(text)
		left := len(whole) - i
		// Unless this is the last one, room for the count must remain.
		if used > maxWarningsRunes-maxWarningRunes && left > 1 || used > maxWarningsRunes {
			return append(out, count(left, "more finding")+" not shown")
		}
		out = append(out, text)
	}
	return out
}

// warningText is a finding on one line. Where the API server may cut it, what
// helps the user comes first.
func warningText(r *policies.Ruling) string {
	f := &r.Finding
	if e := r.Exception; e != nil {
		return oneLine(fmt.Sprintf("[%s] let pass until %s by GuardException %s: %s", f.Reason.Code, e.Spec.ExpiresAt.UTC().Format(time.RFC3339), e.Name, bareText(f)))
	}
	text := oneLine(f.Text())
	if utf8.RuneCountInString(text) <= maxWarningRunes {
		return text
	}
	if f.Remedy != "" {
		text = oneLine("[" + f.Reason.Code + "] " + f.Remedy + "; " + bareText(f))
	}
	return text
}

// bareText is a finding without the way out.
func bareText(f *policies.Finding) string {
	bare := *f
	bare.Remedy = ""
	return bare.Text()
}

// oneLine blanks out control characters and what is not UTF-8. Values in
// messages come from objects, and the messages go to terminals, into logs and
// into HTTP headers.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == '\u2028' || r == '\u2029' {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
}

// clip cuts s to at most limit runes, the last being an ellipsis if it was cut.
func clip(s string, limit int) string {
	if len(s) <= limit || utf8.RuneCountInString(s) <= limit {
		return s
	}
	runes := []rune(s)
	return string(runes[:limit-1]) + "…"
}

func count(n int, what string) string {
	return fmt.Sprintf("%d %s", n, plural(n, what))
}

func plural(n int, what string) string {
	if n == 1 {
		return what
	}
	return what + "s"
}
