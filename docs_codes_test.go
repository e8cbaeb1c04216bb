package sledvault_test

import (
	"cmp"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// operations holds one table of reason codes per area, between <!-- codes: FOLDER… --> and <!-- end -->. Code, meaning
// and next step come from the source; where the source is silent the cell is written by hand and kept by -update.
const operations = "docs/operations.md"

// code is one reason code as the source tells it.
type code struct {
	name, folder string
	means        string   // the constant's comment
	hints        []string // next steps given where the code is used
}

// sources reads what the reason codes of the tree are and mean.
type sources struct {
	codes map[string]*code
	ids   map[string]string            // "folder.CodeX" → code
	texts map[string]map[string]string // folder → name of a string constant → its value
}

// goFiles parses every Go file of the product, or its tests.
func goFiles(t *testing.T, tests bool, f func(folder string, file *ast.File)) {
	t.Helper()
	fset := token.NewFileSet()
	err := filepath.WalkDir(".", func(p string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && p != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "bin"):
			return fs.SkipDir
		case d.IsDir() && p != "." && isModule(p): // has dependencies of its own
			return fs.SkipDir
		case d.IsDir() || !strings.HasSuffix(p, ".go") || strings.HasSuffix(p, "_test.go") != tests:
			return nil
		}
		file, err := parser.ParseFile(fset, p, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		f(filepath.ToSlash(filepath.Dir(p)), file)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func isModule(folder string) bool {
	_, err := os.Stat(filepath.Join(folder, "go.mod"))
	return err == nil
}

// product tells folders whose codes an operator can meet from those of simulators and test doubles.
func product(folder string) bool {
	return !strings.HasPrefix(folder, "hwtest") && !strings.HasSuffix(folder, "test") && folder != "internal/rig"
}

func readCodes(t *testing.T) *sources {
	t.Helper()
	s := &sources{codes: map[string]*code{}, ids: map[string]string{}, texts: map[string]map[string]string{}}
	type parsed struct {
		folder string
		file   *ast.File
	}
	var files []parsed
	goFiles(t, false, func(folder string, file *ast.File) {
		if product(folder) {
			files = append(files, parsed{folder, file})
			s.constants(folder, file)
		}
	})
	for _, p := range files {
		s.uses(p.folder, p.file)
	}
	return s
}

// constants collects codes, alarms (counted under "alarm-" and the kind) and plain strings.
func (s *sources) constants(folder string, file *ast.File) {
	if s.texts[folder] == nil {
		s.texts[folder] = map[string]string{}
	}
	for _, decl := range file.Decls {
		g, ok := decl.(*ast.GenDecl)
		if !ok || g.Tok != token.CONST {
			continue
		}
		for _, spec := range g.Specs {
			v := spec.(*ast.ValueSpec)
			for i, val := range v.Values {
				text, ok := stringOf(val)
				if !ok {
					continue
				}
				doc := cmp.Or(v.Comment.Text(), v.Doc.Text())
				if doc == "" && len(g.Specs) == 1 {
					doc = g.Doc.Text()
				}
				switch typeName(v.Type) {
				case "reason.Code", "Code":
					s.ids[folder+"."+v.Names[i].Name] = s.add(text, folder, doc).name
				case "AlarmKind":
					if folder == "vault/quorum" { // vault/wire knows the reference's, too
						s.add("alarm-"+text, folder, v.Comment.Text())
					}
				default:
					s.texts[folder][v.Names[i].Name] = text
				}
			}
		}
	}
}

func (s *sources) add(name, folder, doc string) *code {
	c := s.codes[name]
	if c == nil {
		c = &code{name: name, folder: folder}
		s.codes[name] = c
	}
	if c.means == "" {
		c.means = strings.TrimSuffix(nameFirst.ReplaceAllString(strings.Join(strings.Fields(doc), " "), ""), ".")
	}
	return c
}

// nameFirst is how the comment of a constant that stands alone begins.
var nameFirst = regexp.MustCompile(`^[cC]ode[A-Z]\w* (marks|says that) `)

// uses collects codes that are written out where they are used, and the hints that go with every code.
func (s *sources) uses(folder string, file *ast.File) {
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.CallExpr:
			switch f := typeName(n.Fun); {
			case (f == "reason.New" || f == "reason.Later") && len(n.Args) > 2:
				s.hint(folder, n.Args[0], n.Args[1])
			case f == "reason.Wrap" && len(n.Args) > 3:
				s.hint(folder, n.Args[1], n.Args[2])
			case (strings.HasSuffix(f, "reasons.Count") || strings.HasSuffix(f, "reasons.CountError")) && len(n.Args) > 2:
				s.hint(folder, n.Args[0], nil)
			}
		case *ast.CompositeLit:
			var c, h ast.Expr
			for _, e := range n.Elts {
				if kv, ok := e.(*ast.KeyValueExpr); ok && typeName(n.Type) == "reason.Error" {
					switch typeName(kv.Key) {
					case "Code":
						c = kv.Value
					case "Hint":
						h = kv.Value
					}
				}
			}
			if c != nil {
				s.hint(folder, c, h)
			}
		case *ast.CaseClause: // func hint(c reason.Code) string { switch c { case CodeX: return "…" } }
			if len(n.Body) == 1 {
				if r, ok := n.Body[0].(*ast.ReturnStmt); ok && len(r.Results) == 1 {
					for _, c := range n.List {
						if _, literal := stringOf(c); !literal {
							s.hint(folder, c, r.Results[0])
						}
					}
				}
			}
		}
		return true
	})
}

func (s *sources) hint(folder string, codeExpr, hintExpr ast.Expr) {
	name, literal := stringOf(codeExpr)
	if literal {
		s.add(name, folder, "")
	} else if name = s.ids[folder+"."+typeName(codeExpr)]; name == "" {
		pkg, id, _ := strings.Cut(typeName(codeExpr), ".")
		for full, code := range s.ids {
			if dir, ident, _ := cutLast(full, "."); path.Base(dir) == pkg && ident == id {
				name = code
			}
		}
	}
	c := s.codes[name]
	if c == nil || hintExpr == nil {
		return
	}
	if h := s.eval(folder, hintExpr); h != "" && h != "…" && !slices.Contains(c.hints, h) {
		c.hints = append(c.hints, h)
	}
}

// eval gives the text of a hint. What is known only at run time stands as "…".
func (s *sources) eval(folder string, e ast.Expr) string {
	switch e := e.(type) {
	case *ast.BinaryExpr:
		return s.eval(folder, e.X) + s.eval(folder, e.Y)
	case *ast.Ident:
		if text, ok := s.texts[folder][e.Name]; ok {
			return text
		}
	}
	if text, ok := stringOf(e); ok {
		return text
	}
	return "…"
}

func stringOf(e ast.Expr) (string, bool) {
	if b, ok := e.(*ast.BinaryExpr); ok && b.Op == token.ADD {
		x, ok1 := stringOf(b.X)
		y, ok2 := stringOf(b.Y)
		return x + y, ok1 && ok2
	}
	l, ok := e.(*ast.BasicLit)
	if !ok || l.Kind != token.STRING {
		return "", false
	}
	text, err := strconv.Unquote(l.Value)
	return text, err == nil
}

// typeName writes names and selectors as in the source, "" for anything else.
func typeName(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return typeName(e.X) + "." + e.Sel.Name
	}
	return ""
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

var (
	codesRegion = regexp.MustCompile(`(?s)<!-- codes: ([^>]*?) -->\n(.*?)<!-- end -->`)
	codeRow     = regexp.MustCompile("(?m)^\\| `([^`]+)` \\| (.*?) \\| (.*?) \\|$")
)

// TestReasonCodes: every reason code that the program can give stands in operations.md, with its meaning and next step.
func TestReasonCodes(t *testing.T) {
	s := readCodes(t)
	raw, err := os.ReadFile(operations)
	if err != nil {
		t.Fatal(err)
	}
	placed := map[string]bool{}
	var silent []string
	doc := codesRegion.ReplaceAllStringFunc(string(raw), func(region string) string {
		m := codesRegion.FindStringSubmatch(region)
		byHand := map[string][]string{}
		for _, row := range codeRow.FindAllStringSubmatch(m[2], -1) {
			byHand[row[1]] = row[2:]
		}
		var b strings.Builder
		fmt.Fprintf(&b, "<!-- codes: %s -->\n| Code | Means | Next step |\n|---|---|---|\n", m[1])
		for _, name := range slices.Sorted(maps.Keys(s.codes)) {
			c := s.codes[name]
			if !slices.Contains(strings.Fields(m[1]), c.folder) {
				continue
			}
			placed[name] = true
			hand := append(byHand[name], "", "")
			means, next := cmp.Or(c.means, hand[0]), cmp.Or(strings.Join(c.hints, "; or: "), hand[1])
			if strings.TrimSpace(means) == "" {
				silent = append(silent, name)
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s |\n", name, cell(means), cell(next))
		}
		return b.String() + "<!-- end -->"
	})
	for name, c := range s.codes {
		if !placed[name] {
			t.Errorf("%s (%s): no section of %s holds the codes of this folder", name, c.folder, operations)
		}
	}
	if *update {
		if err := os.WriteFile(operations, []byte(doc), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if doc != string(raw) {
		t.Errorf("%s is behind the source; run: go test -run ReasonCodes . -update\n%s", operations, firstDifference(string(raw), doc))
	}
	if len(silent) > 0 {
		t.Errorf("codes without a meaning, in the source or by hand: %v", silent)
	}
}

func cell(s string) string { return strings.ReplaceAll(s, "|", "\\|") }

func firstDifference(have, want string) string {
	h, w := strings.Split(have, "\n"), strings.Split(want, "\n")
	for i := range min(len(h), len(w)) {
		if h[i] != w[i] {
			return fmt.Sprintf("line %d: have %s\nwant %s", i+1, h[i], w[i])
		}
	}
	return fmt.Sprintf("have %d lines, want %d", len(h), len(w))
}

// TestCodesNamed: what the other documents call a code is one, and every state has its row.
func TestCodesNamed(t *testing.T) {
	t.Parallel()
	s := readCodes(t)
	states := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^\tState\w+\s+State = "([a-z-]+)"`).FindAllStringSubmatch(read(t, "vault/api/types.go"), -1) {
		states[m[1]] = true
		if !strings.Contains(read(t, operations), "\n| `"+m[1]+"` | ") {
			t.Errorf("%s has no row for the state %s", operations, m[1])
		}
	}
	if len(states) < 6 {
		t.Fatalf("found %d states", len(states))
	}
	for _, m := range regexp.MustCompile("`([a-z]+(?:-[a-z]+)+)`").FindAllStringSubmatch(read(t, "docs/boot-path.md"), -1) {
		if s.codes[m[1]] == nil && !states[m[1]] {
			t.Errorf("boot-path.md names %s, which is neither a code nor a state", m[1])
		}
	}
}
