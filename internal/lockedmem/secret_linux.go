//go:build linux && (amd64 || arm64 || riscv64)

package lockedmem

import (
	"errors"

	"golang.org/x/sys/unix"
)

// mapSecret maps memory that the kernel takes out of its own map. Such pages are locked and never dumped. A child
// process does not get them.
func mapSecret(n int) (mapping, error) {
	fd, err := unix.MemfdSecret(unix.O_CLOEXEC) // O_CLOEXEC, not FD_CLOEXEC, which the call refuses
	if err != nil {
		return mapping{}, err
	}
	defer func() { _ = unix.Close(fd) }() // the mapping keeps the memory
	if err := unix.Ftruncate(fd, int64(n)); err != nil {
		return mapping{}, err
	}
	b, err := unix.Mmap(fd, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return mapping{}, err
	}
	if err := unix.Madvise(b, unix.MADV_DONTFORK); err != nil {
		return mapping{}, errors.Join(err, unix.Munmap(b))
	}
	return mapping{b, MemfdSecret, true, func() error { return unix.Munmap(b) }}, nil
}
