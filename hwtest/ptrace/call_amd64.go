package ptrace

import "golang.org/x/sys/unix"

// old calls exist on this architecture beside the newer ones that take a folder's descriptor.
var old = map[uint64]string{ //nolint:gochecknoglobals // a table that nobody changes
	unix.SYS_RENAME: "rename", unix.SYS_UNLINK: "unlink", unix.SYS_MKDIR: "mkdir", unix.SYS_RMDIR: "rmdir", unix.SYS_CREAT: "creat",
	unix.SYS_OPEN: "open", unix.SYS_LINK: "link", unix.SYS_SYMLINK: "symlink", unix.SYS_CHMOD: "chmod", unix.SYS_CHOWN: "chown",
}

var look = map[uint64]string{ //nolint:gochecknoglobals // a table that nobody changes
	unix.SYS_STAT: "stat", unix.SYS_LSTAT: "lstat", unix.SYS_NEWFSTATAT: "fstatat", unix.SYS_READLINK: "readlink", unix.SYS_ACCESS: "access",
	unix.SYS_FORK: "fork", unix.SYS_VFORK: "vfork",
}
