package gfss

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestAttack holds the answers to known attacks, by the names that docs/threat-model.md uses.
func TestAttack(t *testing.T) {
	t.Parallel()
	// Tables indexed by secret bytes leak them through the cache (CVE-2023-25000). There are none, and no branch in the
	// arithmetic looks at a secret. The statistical half is leak_test.go: go test -tags leak.
	t.Run("gf-cache-timing", func(t *testing.T) {
		t.Parallel()
		files, err := filepath.Glob("*.go")
		if err != nil {
			t.Fatal(err)
		}
		checked := 0
		for _, name := range files {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			checked++
			arithmetic := name == "field.go" || name == "poly.go"
			for _, fault := range inspect(t, name, nil, arithmetic) {
				t.Error(fault)
			}
		}
		if checked < 3 {
			t.Errorf("checked %d files only", checked)
		}
	})
	t.Run("gf-cache-timing control", func(t *testing.T) {
		t.Parallel()
		for _, src := range []string{
			"var table = [256]byte{}", "func f(a byte) byte { return table[a] }", "func f(b []byte, t []int) int { return t[b[0]] }",
			"func f(a byte) byte { if a != 0 { return 1 }; return 0 }", "func f(a byte) { for a > 0 { a-- } }",
			"func f(a byte) { switch a { case 1: } }", "func f(a word, t []word) []word { return t[a:] }",
			"func f(a, b byte) bool { return a > 1 && b > 1 }", "func f(a, b byte) byte { return a % b }",
		} {
			if len(inspect(t, "control.go", "package gfss\n"+src, true)) == 0 {
				t.Errorf("not noticed: %s", src)
			}
		}
	})
}

// public are the names in this package that never hold anything of a secret: positions, counts, lengths, share numbers.
var public = []string{"i", "j", "at", "from", "lane", "degree", "length", "n", "k", "block", "bits", "shares", "err", "nil", "min"}

// inspect lists what could make time depend on a secret: package-level tables, indices that are not public and, in the
// arithmetic, conditions that are not.
func inspect(t *testing.T, name string, src any, arithmetic bool) (faults []string) {
	t.Helper()
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, name, src, 0)
	if err != nil {
		t.Fatal(err)
	}
	fault := func(n ast.Node, format string, args ...any) {
		faults = append(faults, set.Position(n.Pos()).String()+": "+fmt.Sprintf(format, args...))
	}
	checkPublic := func(what string, e ast.Expr) {
		for _, id := range names(e) {
			if !slices.Contains(public, id) {
				fault(e, "%s depends on %s, which is not known to be public", what, id)
			}
		}
	}
	for _, d := range file.Decls {
		if g, ok := d.(*ast.GenDecl); ok && g.Tok == token.VAR {
			fault(g, "package-level variable")
		}
	}
	ast.Inspect(file, func(node ast.Node) bool {
		switch n := node.(type) {
		case *ast.IndexExpr:
			if !isKind(n.Index) {
				checkPublic("index", n.Index)
			}
		case *ast.SliceExpr:
			for _, e := range []ast.Expr{n.Low, n.High, n.Max} {
				checkPublic("slice bound", e)
			}
		}
		if !arithmetic {
			return true
		}
		switch n := node.(type) {
		case *ast.IfStmt:
			if n.Init == nil { // with one it is an error that is looked at
				checkPublic("condition", n.Cond)
			}
		case *ast.ForStmt:
			checkPublic("loop", n.Cond)
		case *ast.SwitchStmt:
			checkPublic("switch", n.Tag)
		case *ast.BinaryExpr:
			switch n.Op {
			case token.LAND, token.LOR, token.QUO, token.REM: // short circuits and division take time by value
				checkPublic("operand of "+n.Op.String(), n)
			}
		}
		return true
	})
	return faults
}

// names lists the identifiers of an expression; a length is public whatever it is the length of.
func names(e ast.Expr) (out []string) {
	if e == nil {
		return nil
	}
	ast.Inspect(e, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.CallExpr:
			f, ok := n.Fun.(*ast.Ident)
			return !ok || f.Name != "len"
		case *ast.Ident:
			out = append(out, n.Name)
		}
		return true
	})
	return out
}

// isKind reports whether an index is the type argument of a secret.
func isKind(e ast.Expr) bool {
	if id, ok := e.(*ast.Ident); ok {
		return id.Name == "K"
	}
	s, ok := e.(*ast.SelectorExpr)
	return ok && strings.HasSuffix(s.Sel.Name, "Kind")
}
