package vault

import (
	"github.com/sledvault/sledvault/internal/lockedmem"
	"github.com/sledvault/sledvault/vault/reason"
)

// CodeHeapSecrets marks a build whose secrets lie on the heap.
const CodeHeapSecrets reason.Code = "relax-heap-secrets" // the daemon was built to leave secrets on the heap, and carries a version

// CheckBuild refuses a build that leaves secrets on the heap if it carries a version, as packages do.
func CheckBuild(version, unreleased string) error {
	if lockedmem.HeapSecrets && version != unreleased {
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
