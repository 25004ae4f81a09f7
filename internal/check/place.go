package check

import (
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// place finds the lines of fields in the file of a document. The text is read once more
// for it, which is only worth it where something was found.
type place struct {
	root *yaml.Node
	line int // of the file, where the text begins
}

func (d *Document) place() *place {
	p := &place{line: d.line}
	var doc yaml.Node
	// Positions in lists are not those in the object alone, which is all that is known.
	if d.text == "" || d.inList || yaml.Unmarshal([]byte(d.text), &doc) != nil || len(doc.Content) == 0 {
		return p
	}
	p.root = doc.Content[0]
	return p
}

// of is the line of a field, or of the innermost one around it that is there; 0 when it
// cannot be told.
func (p *place) of(field string) int {
	if p.root == nil {
		return 0
	}
	at, line := p.root, p.root.Line
	for _, s := range steps(field) {
		for at.Kind == yaml.AliasNode {
			at = at.Alias
		}
		next, keyLine := child(at, s)
		if next == nil {
			break
		}
		at, line = next, keyLine
	}
	return p.line + line - 1
}

// child is what a step leads to, and the line where it begins.
func child(at *yaml.Node, s step) (*yaml.Node, int) {
	switch at.Kind {
	case yaml.SequenceNode:
		n, err := strconv.Atoi(s.text)
		if err == nil && n >= 0 && n < len(at.Content) {
			return at.Content[n], at.Content[n].Line
		}
		for _, e := range at.Content {
			if v, _ := child(e, step{text: "name"}); v != nil && v.Value == s.text {
				return e, e.Line
			}
		}
	case yaml.MappingNode:
		for i := 0; i+1 < len(at.Content); i += 2 {
			if at.Content[i].Value == s.text {
				return at.Content[i+1], at.Content[i].Line
			}
		}
	}
	return nil, 0
}

// File is the file that the object stands in; "" for one that does not come from a file.
func (d *Document) File() string {
	if d.line == 0 {
		return ""
	}
	file, _, _ := strings.Cut(d.Origin, ": document ")
	return file
}

// Line is where the object's document begins in its file, 0 where there is none.
func (d *Document) Line() int {
	if d.line == 0 {
		return 0
	}
	return part{d.text, d.line}.begins()
}
