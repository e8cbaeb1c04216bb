package lockedmem

import (
	"errors"

	"golang.org/x/sys/unix"
)

// platformMapper prefers memfd_secret for every mapping and falls back where the kernel or a limit refuses.
func platformMapper() mapper {
	return func(n int) (mapping, error) {
		if m, err := mapSecret(n); err == nil {
			return m, nil
		}
		return mapAnonymous(n)
	}
}

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

// mapAnonymous maps ordinary pages. They stay out of core files and empty in a child process, or the call fails; that
// they cannot be locked is no failure, because a small memory limit must not keep a disk closed.
func mapAnonymous(n int) (mapping, error) {
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return mapping{}, err
	}
	for _, advice := range []int{unix.MADV_DONTDUMP, unix.MADV_WIPEONFORK} {
		if err := unix.Madvise(b, advice); err != nil {
			return mapping{}, errors.Join(err, unix.Munmap(b))
		}
	}
	locked := unix.Mlock(b) == nil
	return mapping{b, Mapped, locked, func() error { return unix.Munmap(b) }}, nil
}
