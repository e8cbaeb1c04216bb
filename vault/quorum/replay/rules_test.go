package replay_test

import (
	"os"
	"strings"
	"testing"

	"github.com/sledvault/sledvault/vault/quorum/replay"
)

// TestRulesAreDocumented: every name under which a replay counts deviations is explained, and no other.
func TestRulesAreDocumented(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("../../../docs/protocol.md")
	ok(t, err)
	_, section, _ := strings.Cut(string(b), "\n## 11 ")
	section, _, _ = strings.Cut(section, "\n## ")
	_, table, _ := strings.Cut(section, "| Name |")
	for _, r := range replay.Rules() {
		if !strings.Contains(table, "\n| `"+string(r)+"` |") {
			t.Errorf("docs/protocol.md §11 does not explain %s", r)
		}
	}
	if have, want := strings.Count(table, "\n| `"), len(replay.Rules()); have != want {
		t.Errorf("docs/protocol.md §11 explains %d names, want %d", have, want)
	}
}
