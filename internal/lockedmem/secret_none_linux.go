//go:build linux && !(amd64 || arm64 || riscv64)

package lockedmem

import "golang.org/x/sys/unix"

// mapSecret fails: this architecture has no memfd_secret.
func mapSecret(int) (mapping, error) { return mapping{}, unix.ENOSYS }
