package api_test

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestRoutesAreDocumented: local-api.md §6 lists exactly the routes that exist, with role and access.
func TestRoutesAreDocumented(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("../../docs/local-api.md")
	must(t, err)
	want := map[string]bool{}
	for p, d := range routeDocs() {
		role := ""
		if d.role != "" {
			role = fmt.Sprintf(" `%s`", d.role)
		}
		access := d.access
		if access != "" {
			access = " " + access
		}
		want[fmt.Sprintf("| `%s` |%s |%s |", p, role, access)] = true
	}
	for line := range strings.Lines(string(b)) {
		if !strings.Contains(line, " /v1/") || !strings.HasPrefix(line, "| `") {
			continue
		}
		cells := strings.SplitAfterN(line, "|", 5)
		if row := strings.Join(cells[:4], ""); !want[row] {
			t.Errorf("documented, and not so: %s", row)
		} else {
			delete(want, row)
		}
	}
	for row := range want {
		t.Errorf("not documented: %s", row)
	}
}
