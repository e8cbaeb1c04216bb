//go:build linux

package ptrace

import (
	"bytes"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Call is one system call. Its methods look into the process that makes it, which must stand still: inside the functions
// given to [Attach].
type Call struct {
	PID, TID int
	Number   uint64    // unix.SYS_…
	Args     [6]uint64 // as the kernel gets them
	Result   int64     // after the call; negative: an errno
}

// FD says what a descriptor of the process leads to, as /proc has it; "" if it is not open.
func (c Call) FD(n uint64) string {
	s, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", c.TID, int32(n)))
	if err != nil {
		return ""
	}
	return s
}

// Memory reads at most n bytes of the process, fewer where they end.
func (c Call) Memory(at uint64, n int) []byte {
	b := make([]byte, n)
	got, err := unix.ProcessVMReadv(c.TID, []unix.Iovec{iovec(b)}, []unix.RemoteIovec{{Base: uintptr(at), Len: n}}, 0)
	if err != nil {
		return nil
	}
	return b[:got]
}

func iovec(b []byte) (v unix.Iovec) {
	if len(b) > 0 {
		v.Base = &b[0]
	}
	v.SetLen(len(b))
	return v
}

// Text reads a string that ends with a zero byte.
func (c Call) Text(at uint64) string {
	b := c.Memory(at, unix.PathMax)
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}

// Name is the call's name for those that [Call.Lasting] tells apart, otherwise its number.
func (c Call) Name() string {
	if n := lasting[c.Number]; n != "" {
		return n
	}
	if n := passing[c.Number]; n != "" {
		return n
	}
	return fmt.Sprintf("call %d", c.Number)
}

// lasting calls change what outlives the process, or what others see of it.
var lasting = map[uint64]string{ //nolint:gochecknoglobals // a table that nobody changes
	unix.SYS_WRITE: "write", unix.SYS_PWRITE64: "pwrite", unix.SYS_WRITEV: "writev", unix.SYS_SENDTO: "sendto", unix.SYS_SENDMSG: "sendmsg",
	unix.SYS_FSYNC: "fsync", unix.SYS_FDATASYNC: "fdatasync", unix.SYS_FTRUNCATE: "ftruncate", unix.SYS_FALLOCATE: "fallocate",
	unix.SYS_RENAMEAT: "renameat", unix.SYS_RENAMEAT2: "renameat2", unix.SYS_UNLINKAT: "unlinkat", unix.SYS_MKDIRAT: "mkdirat",
	unix.SYS_LINKAT: "linkat", unix.SYS_SYMLINKAT: "symlinkat", unix.SYS_FCHMOD: "fchmod", unix.SYS_FCHMODAT: "fchmodat", unix.SYS_FCHOWN: "fchown",
	unix.SYS_FLOCK: "flock", unix.SYS_IOCTL: "ioctl", unix.SYS_CONNECT: "connect", unix.SYS_EXECVE: "execve", unix.SYS_MSYNC: "msync",
	unix.SYS_SENDFILE: "sendfile", unix.SYS_COPY_FILE_RANGE: "copy_file_range", unix.SYS_SYNC_FILE_RANGE: "sync_file_range",
	unix.SYS_PWRITEV: "pwritev", unix.SYS_PWRITEV2: "pwritev2", unix.SYS_TRUNCATE: "truncate", unix.SYS_SHUTDOWN: "shutdown",
	unix.SYS_IO_URING_ENTER: "io_uring_enter", unix.SYS_IO_SUBMIT: "io_submit", unix.SYS_SPLICE: "splice", unix.SYS_KILL: "kill",
}

// passing calls look at files and sockets, and change nothing that is left when the process is gone.
var passing = map[uint64]string{ //nolint:gochecknoglobals // a table that nobody changes
	unix.SYS_OPENAT: "openat", unix.SYS_OPENAT2: "openat2", unix.SYS_CLOSE: "close", unix.SYS_READ: "read", unix.SYS_PREAD64: "pread",
	unix.SYS_READLINKAT: "readlinkat", unix.SYS_FSTAT: "fstat", unix.SYS_STATX: "statx", unix.SYS_GETDENTS64: "getdents", unix.SYS_LSEEK: "lseek",
	unix.SYS_FCNTL: "fcntl", unix.SYS_RECVFROM: "recvfrom", unix.SYS_RECVMSG: "recvmsg", unix.SYS_SOCKET: "socket", unix.SYS_BIND: "bind",
	unix.SYS_LISTEN: "listen", unix.SYS_ACCEPT4: "accept", unix.SYS_CLONE: "clone", unix.SYS_WAITID: "waitid", unix.SYS_WAIT4: "wait",
}

// Lasting reports whether the call may change what outlives the process or what others see of it, by its number alone. The
// opening of a file that it may create is one.
func (c Call) Lasting() bool {
	if c.Number == unix.SYS_OPENAT {
		return c.Args[2]&unix.O_CREAT != 0
	}
	return lasting[c.Number] != "" || old[c.Number] != ""
}

// Visible reports whether the call deals with files, sockets or processes at all. All others belong to the scheduler, the
// memory and the clock of the process itself.
func (c Call) Visible() bool { return c.Lasting() || passing[c.Number] != "" || look[c.Number] != "" }

// String is the call with what it deals with, for messages.
func (c Call) String() string {
	switch c.Number {
	case unix.SYS_OPENAT, unix.SYS_UNLINKAT, unix.SYS_MKDIRAT:
		return c.Name() + " " + c.Text(c.Args[1])
	case unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2:
		return c.Name() + " " + c.Text(c.Args[1]) + " " + c.Text(c.Args[3])
	}
	return c.Name() + " " + c.FD(c.Args[0])
}
