package vault_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/sledvault/sledvault/vault"
	"github.com/sledvault/sledvault/vault/reason"
)

// FuzzConfig: a configuration file is read or refused with its reason and what to do; what is read is valid.
func FuzzConfig(f *testing.F) {
	f.Add([]byte("[state]\ncopies = [\"/a\", \"/b\"]\n[sp]\nport = \"/dev/ttyS1\"\n"))
	f.Add([]byte("[unlock]\ndeadline = \"-1s\"\n"))
	f.Add([]byte("[tpm]\npcrs = [0, 0]\ncounter_index = 99999999999999999999\n"))
	f.Add([]byte("relax = [\"no-tpm\"]\n[[disk]]\nid = \"a\"\n"))
	path := filepath.Join(f.TempDir(), "sledvaultd.toml")
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := vault.LoadConfig(path)
		if err != nil {
			if reason.CodeOf(err) != vault.CodeConfig || reason.HintOf(err) == "" || len(err.Error()) > 4000 {
				t.Fatalf("have %v", err)
			}
			return
		}
		if err := c.Validate(); err != nil {
			t.Fatalf("accepted, and not valid: %v", err)
		}
	})
}
