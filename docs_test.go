package sledvault_test

import (
	"fmt"
	"go/ast"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// bootPath is how a reader gets from "the machine boots" to "the disk opens". README.md lists it, and each file names
// its neighbours in its first line.
var bootPath = []string{
	"README.md", "cmd/sledvaultd/main.go", "vault/boot.go", "sp/identity.go", "sealing/open.go", "vault/driver.go",
	"vault/quorum/node.go", "vault/keys/disk.go", "vault/api/unlock.go",
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestBootPath(t *testing.T) {
	t.Parallel()
	readme := read(t, bootPath[0])
	rows := regexp.MustCompile("(?m)^\\| (\\d) \\| \\[`([^`]+)`\\]").FindAllStringSubmatch(readme, -1)
	if len(rows) != len(bootPath) {
		t.Errorf("README.md lists %d files, want %d", len(rows), len(bootPath))
	}
	for i, row := range rows {
		if row[1] != fmt.Sprint(i+1) || i < len(bootPath) && row[2] != bootPath[i] {
			t.Errorf("README.md: row %d names %s as number %s", i+1, row[2], row[1])
		}
	}
	for i, file := range bootPath[1:] {
		want := fmt.Sprintf("// Boot path %d/%d: after %s", i+2, len(bootPath), bootPath[i])
		if i+2 < len(bootPath) {
			want += ", before " + bootPath[i+2]
		}
		if have, _, _ := strings.Cut(read(t, file), "\n"); have != want+"." {
			t.Errorf("%s begins %q, want %q", file, have, want+".")
		}
	}
}

// TestBootSteps: every step of the boot stands in boot-path.md, in its order.
func TestBootSteps(t *testing.T) {
	t.Parallel()
	steps := regexp.MustCompile(`(?m)^\tStep\w+\s+= "([a-z]+)"`).FindAllStringSubmatch(read(t, "vault/stage.go"), -1)
	doc, last := read(t, "docs/boot-path.md"), 0
	if len(steps) < 5 {
		t.Fatalf("vault/stage.go: found %d steps", len(steps))
	}
	for _, s := range steps {
		at := strings.Index(doc, " `"+s[1]+"`\n")
		if at < last {
			t.Errorf("boot-path.md has no section of step %s, or not in its place", s[1])
		}
		last = max(at, last)
	}
}

// documents lists what people read.
func documents(t *testing.T) []string {
	t.Helper()
	var out []string
	for _, pattern := range []string{"*.md", "docs/*.md", "docs/adr/*.md", "docs/model/*.md", "vault/quorum/*.md"} {
		m, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, m...)
	}
	return out
}

var (
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile(`(?m)^#+ (.+)$`)
	fence   = regexp.MustCompile("(?ms)^```.*?^```$")
)

// anchor is the name that a heading gets when it is shown.
func anchor(h string) string {
	h = strings.ToLower(strings.TrimSpace(h))
	return strings.ReplaceAll(regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(h, ""), " ", "-")
}

func TestLinks(t *testing.T) {
	t.Parallel()
	for _, file := range documents(t) {
		for _, m := range link.FindAllStringSubmatch(fence.ReplaceAllString(read(t, file), ""), -1) {
			target, fragment, _ := strings.Cut(m[1], "#")
			if strings.Contains(target, "://") {
				continue
			}
			path := file
			if target != "" {
				path = filepath.Join(filepath.Dir(file), target)
			}
			fi, err := os.Stat(path)
			if err != nil {
				t.Errorf("%s: link to %s: %v", file, m[1], err)
				continue
			}
			if fragment == "" || fi.IsDir() || !strings.HasSuffix(path, ".md") {
				continue
			}
			if !slices.ContainsFunc(heading.FindAllStringSubmatch(read(t, path), -1), func(h []string) bool { return anchor(h[1]) == fragment }) {
				t.Errorf("%s: link to %s: no such heading", file, m[1])
			}
		}
	}
}

// TestDocumentsIndexed: docs/README.md links every document.
func TestDocumentsIndexed(t *testing.T) {
	t.Parallel()
	index := read(t, "docs/README.md")
	for _, file := range documents(t) {
		rel, err := filepath.Rel("docs", file)
		if err != nil {
			t.Fatal(err)
		}
		if file != "docs/README.md" && file != "README.md" && !strings.Contains(index, "("+filepath.ToSlash(rel)+")") {
			t.Errorf("docs/README.md does not link %s", rel)
		}
	}
}

// systemFolders are where absolute paths in documents and scripts may lie, and the roots of URLs.
var systemFolders = []string{
	"bin", "boot", "dev", "etc", "lib", "media", "mnt", "opt", "proc", "root", "run", "sbin", "srv", "sys", "tmp", "usr", "var",
	"v1", "enroll", "status", "attest", "absolute",
}

// TestNoForeignPaths: the tree speaks of no machine that it was written on.
func TestNoForeignPaths(t *testing.T) {
	t.Parallel()
	absolute := regexp.MustCompile("(?m)(?:^|[\\s\"'`(=:])/([a-z][a-z0-9]+)/[a-z]")
	files := append(documents(t), "Makefile", ".ci/run", ".ci/fuzz", ".ci/model", ".ci/vuln")
	for _, pattern := range []string{"docs/man/*", "packaging/*", "cmd/*/*.go", "vault/*.go", "vault/*/*.go", "sealing/*.go", "sp/*.go", "rot/*.go", "rot/*/*.go", "tpm/*.go", "internal/*/*.go"} {
		m, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, m...)
	}
	for _, file := range files {
		if fi, err := os.Stat(file); err != nil || fi.IsDir() || strings.HasSuffix(file, "_test.go") {
			continue
		}
		for _, m := range absolute.FindAllStringSubmatch(read(t, file), -1) {
			if !slices.Contains(systemFolders, m[1]) {
				t.Errorf("%s names the path /%s/…", file, m[1])
			}
		}
	}
}

// TestReadme: it stays short, and the command that the gate takes from it stands alone on its line.
func TestReadme(t *testing.T) {
	t.Parallel()
	readme := read(t, "README.md")
	if n := strings.Count(readme, "\n"); n > 150 {
		t.Errorf("README.md has %d lines, want at most 150", n)
	}
	const check, demo = "go run ./cmd/sledvault doctor --install && go test ./...", "go run ./cmd/sledvault demo --install"
	taken := regexp.MustCompile(`(?m)^go run .*doctor --install && go test.*$`).FindAllString(readme, -1) // as .ci/run does
	if len(taken) != 1 || taken[0] != check {
		t.Errorf("README.md: .ci/run would take %q, want one line %q", taken, check)
	}
	if !strings.Contains(readme, "\n"+demo+"\n") {
		t.Errorf("README.md: no line %q", demo)
	}
	gate := read(t, ".ci/run")
	for _, run := range []string{"README.md | head -n 1)", "/sledvault\" demo", "CGO_ENABLED=0 go build -trimpath -tags packaged"} {
		if !strings.Contains(gate, run) {
			t.Errorf(".ci/run no longer contains %q and so does not run the commands of README.md", run)
		}
	}
	for _, block := range regexp.MustCompile("(?ms)^ *```([a-z]*)\n(.*?)^ *```$").FindAllStringSubmatch(readme, -1) {
		if block[1] == "toml" { // loaded as a configuration there
			continue
		}
		for line := range strings.Lines(block[2]) {
			switch line = strings.TrimSpace(line); {
			case line == check, line == demo, line == "CGO_ENABLED=0 go build -trimpath -tags packaged -o dist/ ./cmd/...": // run by .ci/run, the demo in its built form
			case strings.HasPrefix(line, "sledvault "): // checked against the command line: cmd/sledvault/docs_test.go
			case strings.ContainsAny(line, "─│▼"): // the picture
			default:
				t.Errorf("README.md: nothing runs or checks %q", line)
			}
		}
	}
}

// TestDependencies: every module that our own code imports stands in dependencies.md, and nothing else does.
func TestDependencies(t *testing.T) {
	t.Parallel()
	modules := regexp.MustCompile(`(?m)^(?:require )?\s*([a-z][^\s]+\.[^\s]+) v\S+`).FindAllStringSubmatch(read(t, "go.mod"), -1)
	used := map[string]bool{}
	collect := func(_ string, file *ast.File) {
		for _, imp := range file.Imports {
			path, best := strings.Trim(imp.Path.Value, `"`), ""
			for _, m := range modules {
				if (path == m[1] || strings.HasPrefix(path, m[1]+"/")) && len(m[1]) > len(best) {
					best = m[1]
				}
			}
			if best != "" {
				used[best] = true
			} else if first, _, _ := strings.Cut(path, "/"); strings.Contains(first, ".") && !strings.HasPrefix(path, module) {
				t.Errorf("%s is imported and not in go.mod", path)
			}
		}
	}
	goFiles(t, false, collect)
	goFiles(t, true, collect)
	listed := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z0-9]+\\.[^`]+)` \\|").FindAllStringSubmatch(read(t, "docs/dependencies.md"), -1) {
		listed[m[1]] = true
	}
	for _, m := range slices.Sorted(maps.Keys(used)) {
		if !listed[m] {
			t.Errorf("docs/dependencies.md does not say what %s is for", m)
		}
	}
	for _, m := range slices.Sorted(maps.Keys(listed)) {
		if !used[m] {
			t.Errorf("docs/dependencies.md lists %s, which nothing imports", m)
		}
	}
}

const threatModel = "docs/threat-model.md"

// attackTests finds every subtest: name → where it is. named are those that stand directly in a TestAttack.
func attackTests(t *testing.T) (out map[string][]string, named map[string]bool) {
	t.Helper()
	out, named = map[string][]string{}, map[string]bool{}
	goFiles(t, true, func(folder string, file *ast.File) {
		for _, decl := range file.Decls {
			f, ok := decl.(*ast.FuncDecl)
			if !ok || !strings.HasPrefix(f.Name.Name, "Test") {
				continue
			}
			ast.Inspect(f, func(n ast.Node) bool {
				slug := subtest(n)
				if where := "`" + folder + "` " + f.Name.Name; slug != "" && !slices.Contains(out[slug], where) {
					out[slug] = append(out[slug], where)
				}
				return true
			})
			for _, stmt := range f.Body.List {
				if e, ok := stmt.(*ast.ExprStmt); ok && f.Name.Name == "TestAttack" {
					named[subtest(e.X)] = true
				}
			}
		}
	})
	delete(named, "")
	return out, named
}

// subtest is the name in a call of t.Run, "" for anything else.
func subtest(n ast.Node) string {
	call, ok := n.(*ast.CallExpr)
	if !ok || len(call.Args) != 2 || !strings.HasSuffix(typeName(call.Fun), ".Run") {
		return ""
	}
	name, _ := stringOf(call.Args[0])
	return name
}

// TestAttackTable: the table of attacks says for each which test of that name exists.
func TestAttackTable(t *testing.T) {
	t.Parallel()
	tests, named := attackTests(t)
	raw := read(t, threatModel)
	row := regexp.MustCompile("(?m)^\\| `([a-z0-9-]+)` \\| (.*) \\|(.*?)\\|$")
	listed := map[string]bool{}
	doc := row.ReplaceAllStringFunc(raw, func(line string) string {
		m := row.FindStringSubmatch(line)
		listed[m[1]] = true
		where := "none yet"
		if found := tests[m[1]]; len(found) > 0 {
			slices.Sort(found)
			where = strings.Join(found, ", ")
		}
		return fmt.Sprintf("| `%s` | %s | %s |", m[1], m[2], where)
	})
	for slug := range named {
		if slug, _, _ = strings.Cut(slug, "/"); !listed[slug] && !strings.Contains(slug, " ") {
			t.Errorf("%s: no row for the attack %s of %v", threatModel, slug, tests[slug])
		}
	}
	if *update {
		if err := os.WriteFile(threatModel, []byte(doc), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if doc != raw {
		t.Errorf("%s is behind the tests; run: go test -run AttackTable . -update\n%s", threatModel, firstDifference(raw, doc))
	}
}
