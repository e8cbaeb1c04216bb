package quorumtest

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestDocumented: the documents have every invariant, every fault and every suspension, in the code's words.
func TestDocumented(t *testing.T) {
	t.Parallel()
	protocol, testing := read(t, "protocol.md"), read(t, "testing.md")
	for i := range invariants {
		if row := fmt.Sprintf("| %s | %s |", i, i.Meaning()); !strings.Contains(protocol, row) {
			t.Errorf("protocol.md §12 lacks %s", row)
		}
	}
	for f := range faults {
		if row := fmt.Sprintf("| %s | %s |", f, f.Meaning()); !strings.Contains(testing, row) {
			t.Errorf("testing.md §9.1 lacks %s", row)
		}
	}
	for _, v := range Verdicts() {
		if !suspensionIn(testing, v) {
			t.Errorf("testing.md §9.1 lacks that %s suspends %s: %s", v.Fault, v.Invariant, v.Reason)
		}
	}
}

func suspensionIn(doc string, v Verdict) bool {
	for line := range strings.Lines(doc) {
		cells := strings.Split(line, " | ")
		if len(cells) != 4 || cells[0] != "| "+v.Fault.String() || strings.TrimSuffix(strings.TrimSpace(cells[3]), " |") != v.Reason {
			continue
		}
		where := map[Scope]string{SuspendedAt: "its sleds", Suspended: "the rack"}[v.Scope]
		for rule := range strings.SplitSeq(cells[1], ", ") {
			if rule == v.Invariant.String() && cells[2] == where {
				return true
			}
		}
	}
	return false
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile("../../../docs/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
