package check

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/meshvakt/meshvakt/policies"
)

// WriteJSON prints the result for machines.
func (t *Result) WriteJSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(t)
}

// WriteTable prints the result for people.
func (t *Result) WriteTable(w io.Writer) error {
	var b strings.Builder
	kinds := 0
	for i := range t.Results {
		kinds = max(kinds, len(t.Results[i].Object.Kind))
	}
	for i := range t.Results {
		t.Results[i].write(&b, kinds)
	}
	if len(t.Results) > 0 {
		b.WriteString("\n")
	}
	if len(t.Overhead) > 0 {
		if err := writeOverhead(&b, t.Overhead); err != nil {
			return err
		}
		b.WriteString("\n")
	}
	for _, n := range t.Notes {
		fmt.Fprintf(&b, "note: %s\n", n)
	}
	if len(t.Notes) > 0 {
		b.WriteString("\n")
	}
	b.WriteString(t.Summary.text() + "\n")
	_, err := io.WriteString(w, b.String())
	return err
}

func (o *ObjectResult) write(b *strings.Builder, kinds int) {
	name := strings.TrimPrefix(o.Object.text(), o.Object.Kind+" ")
	decision := strings.ToUpper(string(o.Decision))
	if o.Decision == policies.Deny && !o.refused() {
		decision = "KNOWN"
	}
	fmt.Fprintf(b, "%-5s  %-6s  %-*s  %s\n", decision, o.operation, kinds, o.Object.Kind, name)
	for _, f := range o.Findings {
		field := f.Field
		if field != "" {
			field += ": "
		}
		by := ""
		switch {
		case f.Exception != "":
			by = " by GuardException " + f.Exception
		case f.Known:
			by = ", known"
		}
		fmt.Fprintf(b, "       %s%s [%s %s%s]\n", field, f.Message, f.Code, strings.ToLower(string(f.Action)), by)
		if f.Remedy != "" {
			fmt.Fprintf(b, "       fix: %s\n", f.Remedy)
		}
	}
	for _, p := range o.Patch {
		fmt.Fprintf(b, "       Meshvakt sets %s: %s\n", p.Path, valueText(p.Value))
	}
}

// valueText is a value of a patch as JSON.
func valueText(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(v)
	}
	return string(text)
}

func (s Summary) text() string {
	word := "objects"
	if s.Objects == 1 {
		word = "object"
	}
	text := fmt.Sprintf("%d %s: %d allowed, %d warned, %d denied", s.Objects, word, s.Allowed, s.Warned, s.Denied)
	if s.Known > 0 {
		text += fmt.Sprintf(", %d denied by known findings alone", s.Known)
	}
	if s.Skipped > 0 {
		text += fmt.Sprintf(", %d not judged", s.Skipped)
	}
	return text
}
