package controller_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sledvault/sledvault/vault/rack/controller"
	"github.com/sledvault/sledvault/vault/reason"
)

// FuzzRackFile: what people write is read or refused with a reason, and what is read obeys the rules of rack.md §1.
func FuzzRackFile(f *testing.F) {
	name := "00" + strings.Repeat("ab", 33)
	f.Add([]byte("name = \"lab\"\n"))
	f.Add([]byte("name = \"lab\"\nthreshold = 2\n\n[[sled]]\npart = \"p\"\nserial = \"1\"\nunderlay = \"[fd00::1]:7632\"\nek_name = \"" + name + "\"\n"))
	f.Add([]byte("name = \"lab\"\nname = \"lab\"\n[[sled"))
	path := filepath.Join(f.TempDir(), "rack.toml")
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		file, err := controller.Load(path)
		if err != nil {
			if reason.CodeOf(err) != controller.CodeRackFile || reason.HintOf(err) == "" || len(err.Error()) > 2000 {
				t.Fatalf("have %v", err)
			}
			return
		}
		seen := map[string]bool{}
		for _, s := range file.Sleds {
			if found, ok := file.Find(s.Baseboard()); !ok || found.Label() != s.Label() || s.Label() == "" || seen[s.Baseboard().String()] {
				t.Fatalf("sled %q is not found, or twice", s.Label())
			}
			seen[s.Baseboard().String()] = true
		}
	})
}
