package lockedmem

import (
	"fmt"

	"golang.org/x/sys/unix"
)

func measures() []measure {
	return []measure{
		{"no-core-files", func() error { return unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}) }, coreLimit},
		{"not-dumpable", func() error { return unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) }, dumpable},
	}
}

func coreLimit() (bool, string) {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &l); err != nil {
		return false, err.Error()
	}
	return l.Cur == 0 && l.Max == 0, fmt.Sprintf("limit %d, at most %d", l.Cur, l.Max)
}

func dumpable() (bool, string) {
	v, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	if err != nil {
		return false, err.Error()
	}
	return v == 0, fmt.Sprintf("dumpable %d", v)
}
