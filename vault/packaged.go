//go:build packaged

package vault

// Packaged says that this program was built with the tag packaged, for real sleds: it refuses every relaxation.
const Packaged = true
