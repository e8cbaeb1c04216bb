//go:build linux && !amd64

package ptrace

// old calls do not exist on newer architectures.
var old, look = map[uint64]string{}, map[uint64]string{} //nolint:gochecknoglobals // tables that nobody changes
