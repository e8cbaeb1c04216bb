//go:build !linux

package lockedmem

// platformMapper gives ordinary memory: the daemon runs on Linux, everything else is for development.
func platformMapper() mapper {
	return mapHeap
}
