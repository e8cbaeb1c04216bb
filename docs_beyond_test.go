package sledvault_test

import (
	"fmt"
	"go/ast"
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestBeyond: each row of protocol.md §14 names tests and stories that exist, or says with a dash that nothing was done.
func TestBeyond(t *testing.T) {
	t.Parallel()
	_, table, found := strings.Cut(read(t, "docs/protocol.md"), "\n## 14 Beyond the reference\n")
	if !found {
		t.Fatal("docs/protocol.md has no section 14")
	}
	tests := map[string]bool{}
	goFiles(t, true, func(folder string, file *ast.File) {
		for _, d := range file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil {
				tests[folder+" "+f.Name.Name] = true
			}
		}
	})
	_, attacks := attackTests(t)
	rows := regexp.MustCompile(`(?m)^\| ([0-9]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$`).FindAllStringSubmatch(table, -1)
	if len(rows) != 26 {
		t.Errorf("have %d rows, want 26", len(rows))
	}
	for i, row := range rows {
		if row[1] != fmt.Sprint(i+1) {
			t.Errorf("row %d has the number %s", i+1, row[1])
		}
		names := regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(row[4], -1)
		if len(names) == 0 && !strings.HasPrefix(row[3], "–: ") {
			t.Errorf("row %s: nothing holds it, and it does not say why", row[1])
		}
		for _, n := range names {
			folder, name, isTest := strings.Cut(n[1], " ")
			if !isTest { // a story
				if _, err := os.Stat("vault/quorum/testdata/" + n[1] + ".txt"); err != nil {
					t.Errorf("row %s: %v", row[1], err)
				}
				continue
			}
			name, attack, _ := strings.Cut(name, "/")
			if !tests[folder+" "+name] || attack != "" && !attacks[attack] {
				t.Errorf("row %s names %s, which does not exist", row[1], n[1])
			}
		}
	}
}
