//go:build heapsecrets

package lockedmem

// HeapSecrets says that this program was built with the tag heapsecrets: secrets lie on the Go heap and are never wiped.
// Such a build shows that a search of memory finds what is there to find. It protects nothing.
const HeapSecrets = true
