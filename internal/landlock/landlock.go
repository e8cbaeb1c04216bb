// Package landlock takes away from this process every file that it has no business with, for good.
//
// [Restrict] asks the kernel's landlock, over the system calls alone: rules for folders and files, everything else denied, for
// all threads and for every child. It covers the file system only. Signals are left alone on purpose: each thread gets a
// domain of its own, and kernels before 6.15 would then stop the Go runtime from signalling its own threads. What a rule
// must cover is the caller's to know (vault/confine.go).
package landlock

import "errors"

// ErrUnsupported says that the kernel has no landlock, or that it is switched off, or that this program was built in a way
// that keeps it from changing all of its threads.
var ErrUnsupported = errors.New("landlock: not available")

// Access is what a rule allows below its path.
type Access uint8

// The accesses. They are sets and may be joined.
const (
	Read    Access = 1 << iota // read files, list folders
	Execute                    // run files; they must be readable, too
	Write                      // write and truncate files that exist
	Make                       // make and remove files, folders, sockets, links
	Device                     // ioctl on device files
)

// Rule allows something below a folder, or for one file.
type Rule struct {
	Path   string // links are followed once, now: what is put in its place later is another file
	Access Access
}

// Result says what is in force.
type Result struct {
	ABI     int      // of the kernel's landlock
	Skipped []string // paths of rules that are not there now, and so stay denied
}
