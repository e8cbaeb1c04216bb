//go:build !linux

package lockedmem

func measures() []measure {
	none := func() (bool, string) { return false, "not available on this system" }
	nothing := func() error { return nil }
	return []measure{{"no-core-files", nothing, none}, {"not-dumpable", nothing, none}}
}
