//go:build !heapsecrets

package secret

// wipes is false in a build that shows what a search of memory finds (lockedmem.HeapSecrets).
const wipes = true
