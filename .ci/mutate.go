// Mutate compiles every mutant of a package into one test binary and runs its tests once for each:
// go run .ci/mutate.go PACKAGE...
//
// A mutant is one operator changed: comparisons negated and moved by one, && and || exchanged, + and -, * and /, ++ and
// --. An environment variable says which one is active, so that nothing is compiled twice: minutes instead of the hours of
// gremlins, with the same mutants but for those of constants and of shifts. Conditions of case clauses are included.
package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// conditions lists what each operator of a condition becomes.
var conditions = map[token.Token][]string{
	token.LSS: {"<=", ">="}, token.LEQ: {"<", ">"}, token.GTR: {">=", "<="}, token.GEQ: {">", "<"},
	token.EQL: {"!="}, token.NEQ: {"=="}, token.LAND: {"||"}, token.LOR: {"&&"},
}

// helpers goes into the package. Both sides of a condition stay closures, so that nothing is evaluated that would not be.
const helpers = `package %s

import (
	"os"
	"strconv"
)

var mutantActive, _ = strconv.Atoi(os.Getenv("MUTANT"))

func mutantIf(id int, mutant, plain func() bool) bool {
	if id == mutantActive {
		return mutant()
	}
	return plain()
}

func mutantDo(id int, mutant, plain func()) {
	if id == mutantActive {
		mutant()
	} else {
		plain()
	}
}

func mutantSum[T ~int | ~uint | ~int64 | ~uint64 | ~uint32 | ~uint16 | ~uint8](id int, op string, a, b T) T {
	if id == mutantActive {
		op = map[string]string{"+": "-", "-": "+", "*": "/", "/": "*"}[op]
	}
	switch op {
	case "+":
		return a + b
	case "-":
		return a - b
	case "*":
		return a * b
	}
	return a / b
}
`

// insertion is text that goes into a file. Of those at one place, ends come first, and the wider beginning before the
// narrower.
type insertion struct {
	at, span int // span is negative for a beginning
	text     string
}

type mutator struct {
	mutants []string        // what each is; its number is the place plus one
	texts   map[string]bool // "file:line" where + joins texts, which have no other operator, or stands in an array's length
	fset    *token.FileSet
	src     []byte
	name    string
	out     []insertion
}

func (m *mutator) offset(p token.Pos) int { return m.fset.Position(p).Offset }

// text is the source of a node on one line, so that lines keep their numbers.
func (m *mutator) text(n ast.Node) string {
	return strings.ReplaceAll(string(m.src[m.offset(n.Pos()):m.offset(n.End())]), "\n", " ")
}

func (m *mutator) add(p token.Pos, from, to string) int {
	at := m.fset.Position(p)
	m.mutants = append(m.mutants, fmt.Sprintf("%s:%d:%d: %s for %s", m.name, at.Line, at.Column, to, from))
	return len(m.mutants)
}

func (m *mutator) around(n ast.Node, before, after string) {
	from, to := m.offset(n.Pos()), m.offset(n.End())
	m.out = append(m.out, insertion{from, from - to, before}, insertion{to, to - from, after})
}

// node inserts the mutants of one expression or statement. A mutant uses the operands as they were written.
func (m *mutator) node(n ast.Node) bool {
	switch n := n.(type) {
	case *ast.BinaryExpr:
		op := n.Op.String()
		if others := conditions[n.Op]; others != nil {
			before := ""
			for _, o := range others {
				before += fmt.Sprintf("mutantIf(%d, func() bool { return (%s) %s (%s) }, func() bool { return ", m.add(n.OpPos, op, o), m.text(n.X), o, m.text(n.Y))
			}
			m.around(n, before, strings.Repeat(" })", len(others)))
			return true
		}
		arithmetic := n.Op == token.ADD || n.Op == token.SUB || n.Op == token.MUL || n.Op == token.QUO
		if arithmetic && !m.texts[fmt.Sprintf("%s:%d", m.name, m.fset.Position(n.Pos()).Line)] {
			m.around(n, fmt.Sprintf("mutantSum(%d, %q, ", m.add(n.OpPos, op, map[string]string{"+": "-", "-": "+", "*": "/", "/": "*"}[op]), op), ")")
			m.out = append(m.out, insertion{m.offset(n.OpPos), 0, ", /*"}, insertion{m.offset(n.OpPos) + len(op), 0, "*/"})
		}
	case *ast.IncDecStmt:
		op, other := n.Tok.String(), "--"
		if n.Tok == token.DEC {
			other = "++"
		}
		x := m.text(n.X)
		m.around(n, fmt.Sprintf("mutantDo(%d, func() { %s%s }, func() { %s%s }) /*", m.add(n.TokPos, op, other), x, other, x, op), "*/")
	}
	return true
}

// file returns a file with its mutants, and the name of its package.
func (m *mutator) file(path string) (string, string) {
	var err error
	m.src, err = os.ReadFile(path)
	check(err)
	m.fset, m.name, m.out = token.NewFileSet(), filepath.Base(path), nil
	f, err := parser.ParseFile(m.fset, path, m.src, parser.ParseComments)
	check(err)
	for _, d := range f.Decls {
		if d, ok := d.(*ast.FuncDecl); ok && d.Body != nil {
			ast.Inspect(d.Body, m.node)
		}
	}
	slices.SortStableFunc(m.out, func(a, b insertion) int {
		begins := func(i insertion) int { return cmp.Compare(0, i.span) }
		return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(begins(a), begins(b)), cmp.Compare(a.span, b.span))
	})
	var out strings.Builder
	last := 0
	for _, i := range m.out {
		out.Write(m.src[last:i.at])
		out.WriteString(i.text)
		last = i.at
	}
	out.Write(m.src[last:])
	return out.String(), f.Name.Name
}

// build compiles the tests of the package in dir with all mutants. Where + joins texts or stands in a constant, the compiler
// says so, some places at a time; those lines are left as they are in the next try.
func build(dir, work string) (binary string, mutants []string) {
	texts := map[string]bool{}
	for {
		binary, mutants, errs := try(dir, work, texts)
		if errs == "" {
			return binary, mutants
		}
		before := len(texts)
		for _, m := range notNumbers.FindAllStringSubmatch(errs, -1) {
			texts[m[1]] = true
		}
		if len(texts) == before {
			fail(errs)
		}
	}
}

var notNumbers = regexp.MustCompile(`(?m)([^/\s]+\.go:[0-9]+):[0-9]+: .*(?:string does not satisfy|string missing in|must be constant)`)

func try(dir, work string, texts map[string]bool) (binary string, mutants []string, errs string) {
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	check(err)
	m, replace, name := &mutator{texts: texts}, map[string]string{}, ""
	put := func(path, text string) {
		replace[path] = filepath.Join(work, filepath.Base(path))
		check(os.WriteFile(replace[path], []byte(text), 0o600))
	}
	for _, f := range files {
		if strings.HasSuffix(f, "_test.go") {
			continue
		}
		var text string
		text, name = m.file(f)
		put(f, text)
	}
	put(filepath.Join(dir, "mutants_of_this_run.go"), fmt.Sprintf(helpers, name))
	overlay := filepath.Join(work, "overlay.json")
	text, err := json.Marshal(map[string]any{"Replace": replace})
	check(err)
	check(os.WriteFile(overlay, text, 0o600))
	binary = filepath.Join(work, "mutants.test")
	out, err := exec.Command("go", "test", "-overlay", overlay, "-vet=off", "-gcflags=-e", "-c", "-o", binary, dir).CombinedOutput()
	if err != nil {
		errs = string(out)
	}
	return binary, m.mutants, errs
}

// passes runs the tests with one mutant active; 0 is none.
func passes(binary, dir string, mutant int) bool {
	c := exec.Command(binary, "-test.failfast", "-test.timeout=2m")
	c.Dir, c.Env = dir, append(os.Environ(), "MUTANT="+strconv.Itoa(mutant))
	return c.Run() == nil
}

func mutate(pkg string) {
	dir, err := filepath.Abs(pkg)
	check(err)
	work, err := os.MkdirTemp("", "mutate")
	check(err)
	defer func() { _ = os.RemoveAll(work) }()
	failures := filepath.Join(dir, "testdata", "rapid") // what property tests keep of a failure; here of a mutant's
	if _, err := os.Stat(failures); err == nil {
		fail(failures + " is there already")
	}
	defer func() { _ = os.RemoveAll(failures) }()
	binary, mutants := build(dir, work)
	if !passes(binary, dir, 0) {
		fail(pkg + ": the tests fail without a mutant")
	}
	killed := 0
	for i, what := range mutants {
		if passes(binary, dir, i+1) {
			fmt.Println(what, "lived")
		} else {
			killed++
		}
	}
	fmt.Printf("%s: %d mutants, %d killed: %.1f %%\n", pkg, len(mutants), killed, 100*float64(killed)/float64(max(1, len(mutants))))
}

func main() {
	if len(os.Args) < 2 {
		fail("usage: go run .ci/mutate.go PACKAGE...")
	}
	for _, pkg := range os.Args[1:] {
		mutate(pkg)
	}
}

func check(err error) {
	if err != nil {
		fail(err.Error())
	}
}

func fail(text string) {
	fmt.Fprintln(os.Stderr, "mutate:", text)
	os.Exit(1)
}
