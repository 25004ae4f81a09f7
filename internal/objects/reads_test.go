package objects

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/meshvakt/meshvakt/"

// fieldsRead returns the fields of the types of pods that the code of some of our
// packages names, as "Type.Field".
func fieldsRead(t testing.TB, packages ...string) map[string]bool {
	t.Helper()
	exports, sources := compiled(t, packages)
	fset := token.NewFileSet()
	imports := importer.ForCompiler(fset, "gc", func(path string) (io.ReadCloser, error) {
		return os.Open(exports[path])
	})
	found := map[string]bool{}
	for path, files := range sources {
		info := &types.Info{Selections: map[*ast.SelectorExpr]*types.Selection{}}
		if _, err := (&types.Config{Importer: imports}).Check(path, fset, parse(t, fset, files), info); err != nil {
			t.Fatal(err)
		}
		for _, s := range info.Selections {
			note(s, found)
		}
	}
	return found
}

// ofPods reports whether a type belongs to pods, and is not just a number or a time.
func ofPods(pkg, name string) bool {
	return pkg == "k8s.io/api/core/v1" || pkg == "k8s.io/apimachinery/pkg/apis/meta/v1" && (name == "ObjectMeta" || name == "OwnerReference")
}

// note adds the fields on the way of a selection: those of embedded structs are
// passed through without being named.
func note(s *types.Selection, found map[string]bool) {
	at := s.Recv()
	for _, i := range s.Index() {
		if p, ok := at.Underlying().(*types.Pointer); ok {
			at = p.Elem()
		}
		fields, ok := at.Underlying().(*types.Struct)
		if !ok || i >= fields.NumFields() || s.Kind() != types.FieldVal {
			return
		}
		if named, ok := at.(*types.Named); ok && named.Obj().Pkg() != nil && ofPods(named.Obj().Pkg().Path(), named.Obj().Name()) {
			found[named.Obj().Name()+"."+fields.Field(i).Name()] = true
		}
		at = fields.Field(i).Type()
	}
}

// compiled asks the go command for the export data of all that the packages import,
// and for their source files.
func compiled(t testing.TB, packages []string) (exports map[string]string, sources map[string][]string) {
	t.Helper()
	args := []string{"list", "-export", "-deps", "-json=ImportPath,Export,Dir,GoFiles"}
	for _, p := range packages {
		args = append(args, module+p)
	}
	out, err := exec.Command("go", args...).Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	exports, sources = map[string]string{}, map[string][]string{}
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p struct {
			ImportPath, Export, Dir string
			GoFiles                 []string
		}
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return exports, sources
		} else if err != nil {
			t.Fatal(err)
		}
		exports[p.ImportPath] = p.Export
		if name, ours := strings.CutPrefix(p.ImportPath, module); ours && slices.Contains(packages, name) {
			for _, f := range p.GoFiles {
				sources[p.ImportPath] = append(sources[p.ImportPath], filepath.Join(p.Dir, f))
			}
		}
	}
}

func parse(t testing.TB, fset *token.FileSet, files []string) []*ast.File {
	t.Helper()
	var parsed []*ast.File
	for _, name := range files {
		f, err := parser.ParseFile(fset, name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		parsed = append(parsed, f)
	}
	return parsed
}
