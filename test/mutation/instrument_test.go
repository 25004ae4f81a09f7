package mutation

import (
	"cmp"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"strings"
)

// mutant is one way in which the policies could be otherwise.
type mutant struct {
	// key names it without a line number, so that it outlives changes elsewhere:
	// file, function, what is changed.
	key  string
	line int
}

// instrumenter writes the mutation points into the source of one file after the
// other.
type instrumenter struct {
	mutants []mutant
	keys    map[string]int

	set   *token.FileSet
	file  string
	text  string
	in    string // the function
	edits []edit
	// types are those of literals whose type is left out.
	types map[*ast.CompositeLit]ast.Expr
	// skipped are expressions without mutation points.
	skipped map[ast.Node]bool
}

// edit is text to insert. Of what starts at one place the outer comes first, of what
// ends there the inner; order is that of the walk, from the outside in.
type edit struct {
	at    int
	end   bool
	order int
	text  string
}

// provision is the function that judges no request, but tells a controller what to do.
// TestProvisioner holds it.
const provision = "NeedsProvision"

const pointPackage = "github.com/meshvakt/meshvakt/test/mutation/point"

// instrument returns the source with a question at each mutation point.
func (i *instrumenter) instrument(file, text string) (string, error) {
	i.set, i.file, i.text, i.edits = token.NewFileSet(), file, text, nil
	i.types, i.skipped = map[*ast.CompositeLit]ast.Expr{}, map[ast.Node]bool{}
	parsed, err := parser.ParseFile(i.set, file, text, parser.SkipObjectResolution)
	if err != nil {
		return "", err
	}
	for _, d := range parsed.Decls {
		if f, ok := d.(*ast.FuncDecl); ok && f.Body != nil && f.Name.Name != provision {
			i.in = f.Name.Name
			ast.Inspect(f.Body, i.visit)
		}
	}
	if len(i.edits) == 0 {
		return text, nil
	}
	i.insert(parsed.Name.End(), true, fmt.Sprintf("; import point %q", pointPackage))
	slices.SortStableFunc(i.edits, func(a, b edit) int {
		if c := cmp.Compare(a.at, b.at); c != 0 {
			return c
		}
		if a.end != b.end {
			return map[bool]int{true: -1, false: 1}[a.end]
		}
		if a.end {
			return cmp.Compare(b.order, a.order)
		}
		return cmp.Compare(a.order, b.order)
	})
	var out strings.Builder
	done := 0
	for _, e := range i.edits {
		out.WriteString(text[done:e.at] + e.text)
		done = e.at
	}
	out.WriteString(text[done:])
	return out.String(), nil
}

func (i *instrumenter) insert(pos token.Pos, end bool, text string) {
	i.edits = append(i.edits, edit{i.set.Position(pos).Offset, end, len(i.edits), text})
}

// wrap puts an expression into a call of a function of package point.
func (i *instrumenter) wrap(from, to token.Pos, call, after string) {
	i.insert(from, false, call)
	i.insert(to, true, after)
}

// add counts a mutant and returns its number.
func (i *instrumenter) add(n ast.Node, what string) int {
	key := fmt.Sprintf("%s %s: %s", i.file, i.in, what)
	i.keys[key]++
	if again := i.keys[key]; again > 1 {
		key += fmt.Sprintf(" (%d)", again)
	}
	i.mutants = append(i.mutants, mutant{key, i.set.Position(n.Pos()).Line})
	return len(i.mutants)
}

// source is the text of a node on one line.
func (i *instrumenter) source(n ast.Node) string {
	text := strings.Join(strings.Fields(i.raw(n)), " ")
	if len(text) > 90 {
		text = strings.ToValidUTF8(text[:90], "") + "…"
	}
	return text
}

func (i *instrumenter) raw(n ast.Node) string {
	return i.text[i.set.Position(n.Pos()).Offset:i.set.Position(n.End()).Offset]
}

func (i *instrumenter) visit(n ast.Node) bool {
	if i.skipped[n] {
		return false
	}
	switch n := n.(type) {
	case *ast.IfStmt:
		i.condition("if", n.Cond)
	case *ast.ForStmt:
		i.skipped[n.Cond] = true // a mutant must end
	case *ast.SwitchStmt:
		i.cases(n)
	case *ast.BinaryExpr:
		i.operands(n)
	case *ast.CompositeLit:
		i.literal(n)
	case *ast.CallExpr:
		i.call(n)
	case *ast.ExprStmt:
		i.statement(n)
	}
	return true
}

func (i *instrumenter) condition(word string, c ast.Expr) {
	text := i.source(c)
	never, always := i.add(c, "never "+word+" "+text), i.add(c, "always "+word+" "+text)
	i.wrap(c.Pos(), c.End(), fmt.Sprintf("point.If(%d, %d, ", never, always), ")")
}

func (i *instrumenter) cases(n *ast.SwitchStmt) {
	byDefault := slices.ContainsFunc(n.Body.List, func(s ast.Stmt) bool { return s.(*ast.CaseClause).List == nil })
	for _, s := range n.Body.List {
		clause := s.(*ast.CaseClause)
		if len(clause.Body) == 0 && !byDefault {
			continue // it only says that nothing is to be done
		}
		for _, e := range clause.List {
			if n.Tag == nil {
				i.condition("case", e)
				continue
			}
			i.wrap(e.Pos(), e.End(), fmt.Sprintf("point.Case(%d, ", i.add(e, "no case "+i.source(e))), ")")
		}
	}
}

func (i *instrumenter) operands(n *ast.BinaryExpr) {
	call, joins := map[token.Token]string{token.LAND: "And", token.LOR: "Or"}[n.Op]
	if !joins {
		return
	}
	for _, o := range []ast.Expr{n.X, n.Y} {
		if b, ok := o.(*ast.BinaryExpr); ok && b.Op == n.Op {
			continue // its operands are those of a longer chain
		}
		number := i.add(o, "without "+i.source(o)+" in "+i.source(n))
		i.wrap(o.Pos(), o.End(), fmt.Sprintf("point.%s(%d, ", call, number), ")")
	}
}

// described reports whether a field of a policy is one that the corpus does not read,
// like the lists of reasons: the registration of the webhook and the documents do, and
// have tests of their own.
func described(key ast.Expr) bool {
	name, ok := key.(*ast.Ident)
	return ok && slices.Contains([]string{"Citations", "Reasons", "Versions", "OnlyIfChanged"}, name.Name)
}

// literal mutates lists and maps; of structs it only looks into the fields.
func (i *instrumenter) literal(n *ast.CompositeLit) {
	typ := n.Type
	elided := typ == nil
	if elided {
		typ = i.types[n]
	}
	var elem ast.Expr
	switch t := typ.(type) {
	case *ast.ArrayType:
		elem = t.Elt
		if i.source(elem) == "Reason" {
			return
		}
	case *ast.MapType:
		elem = t.Value
	default:
		for _, e := range n.Elts {
			if kv, ok := e.(*ast.KeyValueExpr); ok && described(kv.Key) {
				i.skipped[kv.Value] = true
			}
		}
		return
	}
	for _, e := range n.Elts {
		if kv, ok := e.(*ast.KeyValueExpr); ok {
			e = kv.Value
		}
		if c, ok := e.(*ast.CompositeLit); ok && c.Type == nil {
			i.types[c] = elem
		}
	}
	if len(n.Elts) == 0 {
		return
	}
	if a, ok := typ.(*ast.ArrayType); ok && a.Len != nil {
		// An array of as many as stand there serves as well as a list.
		i.insert(a.Len.Pos(), false, "/*")
		i.insert(a.Len.End(), true, "*/")
	}
	first := len(i.mutants) + 1
	call, after := fmt.Sprintf("point.List(%d, ", first), ")"
	var keys []string
	for _, e := range n.Elts {
		i.add(e, "no entry "+i.source(e))
		if kv, ok := e.(*ast.KeyValueExpr); ok {
			keys = append(keys, i.source(kv.Key))
		}
	}
	if len(keys) > 0 {
		call, after = fmt.Sprintf("point.Map(%d, ", first), ", "+strings.Join(keys, ", ")+")"
	}
	if elided {
		call += i.source(typ)
	}
	i.wrap(n.Pos(), n.End(), call, after)
}

// call mutates what is appended, and what makes different spellings one.
func (i *instrumenter) call(n *ast.CallExpr) {
	switch name := i.source(n.Fun); {
	case name == "append" && n.Ellipsis.IsValid():
		last := n.Args[len(n.Args)-1]
		i.wrap(last.Pos(), last.End(), fmt.Sprintf("point.All(%d, ", i.add(last, "no entries "+i.source(last))), ")")
	case name == "append":
		first := len(i.mutants) + 1
		for _, a := range n.Args[1:] {
			i.add(a, "no entry "+i.source(a))
		}
		i.wrap(n.Args[1].Pos(), n.Args[len(n.Args)-1].End(), fmt.Sprintf("point.Items(%d, ", first), ")...")
	case name == "strings.EqualFold":
		i.wrap(n.Pos(), n.End(), fmt.Sprintf("point.Raw(%d, ", i.add(n, "with case minded "+i.source(n))), ", "+i.raw(n.Args[0])+" == "+i.raw(n.Args[1])+")")
	case slices.Contains([]string{"strings.ToUpper", "strings.TrimSpace", "strings.TrimPrefix", "strings.TrimSuffix", "path.Clean"}, name):
		i.wrap(n.Pos(), n.End(), fmt.Sprintf("point.Raw(%d, ", i.add(n, "not "+i.source(n))), ", "+i.raw(n.Args[0])+")")
	}
}

// statement mutates calls of one rule by another.
func (i *instrumenter) statement(n *ast.ExprStmt) {
	c, ok := n.X.(*ast.CallExpr)
	if !ok {
		return
	}
	name := i.source(c.Fun)
	name = name[strings.LastIndex(name, ".")+1:]
	for _, rule := range []string{"judge", "refuse", "remark", "notInMesh", "once", "add"} {
		if strings.HasPrefix(name, rule) {
			i.wrap(n.Pos(), n.End(), fmt.Sprintf("if point.Off(%d) { ", i.add(n, "no call "+i.source(n))), " }")
			return
		}
	}
}
