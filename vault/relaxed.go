package vault

import (
	"slices"
	"strings"

	"github.com/BurntSushi/toml"

	"github.com/sledvault/sledvault/internal/lockedmem"
	"github.com/sledvault/sledvault/vault/reason"
)

// Reasons of relaxations that a build does not have or must not have.
const (
	CodeHeapSecrets   reason.Code = "relax-heap-secrets" // the daemon was built to leave secrets on the heap, and carries a version or is packaged
	CodeRelaxPackaged reason.Code = "relax-packaged"     // the configuration asks a packaged daemon for a relaxation; such a daemon has none
)

// CheckBuild refuses a build that leaves secrets on the heap if it is packaged or carries a version, as packages do.
func CheckBuild(version, unreleased string) error {
	if lockedmem.HeapSecrets && (Packaged || version != unreleased) {
		return reason.New(CodeHeapSecrets, "build it again without -tags heapsecrets",
			"vault: version %s keeps secrets on the heap: a build for a test of memory, not for a sled", version)
	}
	return nil
}

// builtRelaxed lists the relaxations that are no choice of the configuration, but of whoever built the program.
func builtRelaxed() []string {
	if lockedmem.HeapSecrets {
		return []string{"heap-secrets"}
	}
	return nil
}

// checkRelaxed refuses a configuration that asks for a relaxation, by its name, in a program that was built without any:
// one that this version does not know as well, rather than as an unknown key. The file is as read, and may be nil.
func (c *Config) checkRelaxed(file *toml.MetaData) error {
	if !Packaged {
		return nil
	}
	asked := c.Relax.Names()
	if file != nil {
		for _, k := range file.Undecoded() {
			if name, ok := strings.CutPrefix(k.String(), "relax."); ok && !slices.Contains(asked, name) {
				asked = append(asked, name)
			}
		}
	}
	if len(asked) == 0 {
		return nil
	}
	return reason.New(CodeRelaxPackaged, "take it out of [relax]; for tests and the demo build without -tags packaged",
		"config: [relax] %s: this program was built for real sleds and accepts no relaxation", strings.Join(asked, ", "))
}
