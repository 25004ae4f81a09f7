package preflight

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
)

// The measures of the table, in columns.
const (
	tableWidth  = 100
	resultWidth = 9
	checkWidth  = 24
)

// WriteJSON prints the report for machines.
func (r *Report) WriteJSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(r)
}

// WriteTable prints the report for people.
func (r *Report) WriteTable(w io.Writer, coloured bool) error {
	t := table{coloured: coloured}
	if len(r.MissingRights) > 0 {
		t.lines("", "", "The user lacks these rights, and what needs them is Unknown below; --print-rbac prints roles with all of them:")
		for _, right := range r.MissingRights {
			t.lines("  ", "  ", right.String())
		}
		t.b.WriteString("\n")
	}
	fmt.Fprintf(&t.b, "%-*s%-*s%s\n", resultWidth, "RESULT", checkWidth, "CHECK", "FOUND")
	for i := range r.Checks {
		t.check(&r.Checks[i])
	}
	if r.Forecast != nil {
		t.forecast(r.Forecast)
	}
	s := r.Summary
	fmt.Fprintf(&t.b, "\n%d checks: %d pass, %d warn, %d fail, %d unknown\n", len(r.Checks), s.Pass, s.Warn, s.Fail, s.Unknown)
	t.lines("", "", r.verdict())
	_, err := io.WriteString(w, t.b.String())
	return err
}

// verdict is the report in one sentence.
func (r *Report) verdict() string {
	switch {
	case r.Summary.Result == Fail && r.breaks():
		refused := 0
		for _, k := range r.Forecast.Kinds {
			refused += k.Refused
		}
		return fmt.Sprintf("Enforcing now would break running work: it would refuse %s of %s; mend what fails first.",
			counted(refused, "object", "objects"), counted(r.Forecast.Namespaces.Refused, "namespace", "namespaces"))
	case r.Summary.Result == Fail:
		return "The cluster is not ready; mend what fails first."
	case r.Summary.Result == Unknown:
		return "Nothing is known to be in the way, but not everything could be looked at."
	}
	return "Nothing is in the way."
}

// breaks reports whether it is the guard that is in the way.
func (r *Report) breaks() bool {
	for i := range r.Checks {
		if r.Checks[i].Result == Fail && strings.HasPrefix(r.Checks[i].ID, "forecast-") {
			return true
		}
	}
	return false
}

type table struct {
	b        strings.Builder
	coloured bool
}

func (t *table) check(c *Check) {
	indent := strings.Repeat(" ", resultWidth+checkWidth)
	word := strings.ToUpper(string(c.Result))
	if c.Result == Pass {
		word = "pass"
	}
	head := t.colour(c.Result, fmt.Sprintf("%-*s", resultWidth, word)) + fmt.Sprintf("%-*s", checkWidth, c.ID)
	t.lines(head, indent, c.Found)
	if c.Result == Unknown {
		return // what is to be done stands on top
	}
	if c.Must != "" {
		t.lines(indent, indent, "must "+c.Must)
	}
	if c.Remedy != "" {
		t.lines(indent, indent, "fix: "+c.Remedy)
	}
	for _, d := range c.Details {
		t.lines(indent+"- ", indent+"  ", d)
	}
}

func (t *table) colour(r Result, text string) string {
	if !t.coloured {
		return text
	}
	code := map[Result]string{Pass: "32", Warn: "33", Fail: "31;1", Unknown: "35"}[r]
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

func (t *table) forecast(f *Forecast) {
	if len(f.Findings) > 0 {
		fmt.Fprintf(&t.b, "\nWhat %s would say if everything were applied anew\n\n", f.subject())
		fmt.Fprintf(&t.b, "%7s  %-9s%-20s%-7s%s\n", "OBJECTS", "ACTION", "KIND", "CODE", "REASON")
	}
	for i := range f.Findings {
		c := &f.Findings[i]
		outdated := ""
		if c.Outdated > 0 {
			outdated = fmt.Sprintf(", %d only outdated", c.Outdated)
		}
		fmt.Fprintf(&t.b, "%7d  %-9s%-20s%-7s%s (%s)%s\n", c.Objects, strings.ToLower(string(c.Action)), c.Kind, c.Code, c.Reason, c.Policy, outdated)
		if c.Action != v1alpha1.Deny && i > 0 && f.Findings[0].Action == v1alpha1.Deny {
			continue // what refuses comes first, and is enough to read
		}
		const indent = "         "
		e := &c.Examples[0]
		field := e.Field
		if field != "" {
			field += ": "
		}
		t.lines(indent+"e.g. ", indent+"  ", e.Object+": "+field+e.Message)
		remedy := e.Remedy
		if c.Outdated == c.Objects {
			remedy = "replace them, for what makes them makes pods that pass: kubectl rollout restart"
		}
		if remedy != "" {
			t.lines(indent+"fix: ", indent+"  ", remedy)
		}
		for _, more := range c.Examples[1:] {
			t.lines(indent+"also ", indent+"  ", more.Object)
		}
	}
	if len(f.Worst) > 0 {
		var parts []string
		for _, n := range f.Worst {
			name := n.Namespace
			if name == "" {
				name = "(cluster)"
			}
			parts = append(parts, fmt.Sprintf("%s %d", name, n.Refused))
		}
		t.b.WriteString("\n")
		t.lines("", "  ", "Refusals by namespace: "+strings.Join(parts, ", "))
	}
	for i, n := range f.Notes {
		if i == 0 {
			t.b.WriteString("\n")
		}
		t.lines("note: ", "  ", n)
	}
}

func (f *Forecast) subject() string {
	if len(f.Guards) == 1 {
		return fmt.Sprintf("MeshGuard %q", f.Guards[0])
	}
	return "MeshGuards " + quoted(f.Guards)
}

// lines writes a text after a head, folded at the width of the table. Colours take no
// room.
func (t *table) lines(first, rest, text string) {
	line := first
	width := visible(first)
	empty := true
	for _, word := range strings.Fields(text) {
		for {
			room := tableWidth - width
			if !empty {
				room--
			}
			if len([]rune(word)) <= room {
				break
			}
			if !empty {
				t.b.WriteString(line + "\n")
				line, width, empty = rest, visible(rest), true
				continue
			}
			runes := []rune(word)
			t.b.WriteString(line + string(runes[:room]) + "\n")
			word = string(runes[room:])
			line, width = rest, visible(rest)
		}
		if !empty {
			line += " "
			width++
		}
		line += word
		width += len([]rune(word))
		empty = false
	}
	t.b.WriteString(strings.TrimRight(line, " ") + "\n")
}

// visible is how many columns a head takes.
func visible(text string) int {
	n, escape := 0, false
	for _, r := range text {
		switch {
		case r == '\x1b':
			escape = true
		case escape:
			escape = r != 'm'
		default:
			n++
		}
	}
	return n
}
