package landlock

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What the accesses are in the kernel's terms.
const (
	readBits    = unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR
	executeBits = unix.LANDLOCK_ACCESS_FS_EXECUTE
	writeBits   = unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_TRUNCATE
	makeBits    = unix.LANDLOCK_ACCESS_FS_MAKE_REG | unix.LANDLOCK_ACCESS_FS_MAKE_DIR | unix.LANDLOCK_ACCESS_FS_MAKE_SOCK |
		unix.LANDLOCK_ACCESS_FS_MAKE_FIFO | unix.LANDLOCK_ACCESS_FS_MAKE_SYM | unix.LANDLOCK_ACCESS_FS_MAKE_CHAR |
		unix.LANDLOCK_ACCESS_FS_MAKE_BLOCK | unix.LANDLOCK_ACCESS_FS_REMOVE_FILE | unix.LANDLOCK_ACCESS_FS_REMOVE_DIR
	deviceBits = unix.LANDLOCK_ACCESS_FS_IOCTL_DEV

	// fileBits are what a rule for something other than a folder may hold.
	fileBits = unix.LANDLOCK_ACCESS_FS_READ_FILE | executeBits | writeBits | deviceBits
)

// handled is everything that a kernel of that ABI can deny. Moving files between folders (REFER) is always denied.
func handled(abi int) uint64 {
	all := uint64(readBits | executeBits | unix.LANDLOCK_ACCESS_FS_WRITE_FILE | makeBits)
	if abi >= 2 {
		all |= unix.LANDLOCK_ACCESS_FS_REFER
	}
	if abi >= 3 {
		all |= unix.LANDLOCK_ACCESS_FS_TRUNCATE
	}
	if abi >= 5 {
		all |= unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
	}
	return all
}

func (a Access) bits() (b uint64) {
	for access, bits := range map[Access]uint64{Read: readBits, Execute: executeBits, Write: writeBits, Make: makeBits, Device: deviceBits} {
		if a&access != 0 {
			b |= bits
		}
	}
	return b
}

// Restrict denies this process, and all it starts, every file that no rule allows. It cannot be undone; a second call can
// only take more away. Rules whose path is not there are skipped. After an error nothing has changed.
func Restrict(rules []Rule) (Result, error) {
	version, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return Result{}, fmt.Errorf("%w: the kernel says: %w", ErrUnsupported, errno)
	}
	res := Result{ABI: int(version)}
	all := handled(res.ABI)
	attr := unix.LandlockRulesetAttr{Handled_access_fs: all}
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr.Handled_access_fs), 0) //nolint:gosec // the kernel takes the address of a struct
	if errno != 0 {
		return Result{}, fmt.Errorf("landlock: make the rule set: %w", errno)
	}
	defer func() { _ = unix.Close(int(fd)) }()
	for _, r := range rules {
		switch err := add(int(fd), r, all); {
		case errors.Is(err, fs.ErrNotExist):
			res.Skipped = append(res.Skipped, r.Path)
		case err != nil:
			return Result{}, fmt.Errorf("landlock: rule for %s: %w", r.Path, err)
		}
	}
	if err := NoNewPrivileges(); err != nil { // the kernel demands it of whoever is not root
		return Result{}, err
	}
	if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_LANDLOCK_RESTRICT_SELF, fd, 0, 0); errno != 0 {
		return Result{}, allThreads(errno, "restrict")
	}
	return res, nil
}

// add puts one rule into the set.
func add(set int, r Rule, all uint64) error {
	fd, err := unix.Open(r.Path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	allowed := r.Access.bits() & all
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		allowed &= fileBits
	}
	if allowed == 0 {
		return nil
	}
	attr := unix.LandlockPathBeneathAttr{Allowed_access: allowed, Parent_fd: int32(fd)}
	if _, _, errno := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(set), unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&attr)), 0, 0, 0); errno != 0 { //nolint:gosec // as above
		return errno
	}
	return nil
}

// NoNewPrivileges gives up, for all threads and for every child, what files with special rights would add.
func NoNewPrivileges() error {
	if _, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0); errno != 0 {
		return allThreads(errno, "no new privileges")
	}
	return nil
}

// allThreads explains an error. A program with cgo has threads that the runtime does not know.
func allThreads(errno syscall.Errno, what string) error {
	if errors.Is(errno, syscall.ENOTSUP) {
		return fmt.Errorf("%w: %s: this program was built with cgo", ErrUnsupported, what)
	}
	return fmt.Errorf("landlock: %s: %w", what, errno)
}

// Privileges reports whether [NoNewPrivileges] is in force, as the kernel says.
func Privileges() (fixed bool, err error) {
	v, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
	return v == 1, err
}
