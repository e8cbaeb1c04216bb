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
