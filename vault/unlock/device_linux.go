package unlock

import (
	"io"
	"io/fs"
	"os"
	"syscall"
)

// sameNode reports whether two paths lead to one device or file.
func sameNode(a, b fs.FileInfo) bool {
	x, ok1 := a.Sys().(*syscall.Stat_t)
	y, ok2 := b.Sys().(*syscall.Stat_t)
	if ok1 && ok2 && a.Mode()&fs.ModeDevice != 0 && b.Mode()&fs.ModeDevice != 0 {
		return x.Rdev == y.Rdev
	}
	return os.SameFile(a, b)
}

// deviceSize is the size in bytes of a file or block device.
func deviceSize(f *os.File) (int64, error) { return f.Seek(0, io.SeekEnd) }

// blockSize is the smallest unit that suits the device, from the file system's or the device's own answer.
func blockSize(f *os.File) int {
	st, err := f.Stat()
	if err != nil {
		return 512
	}
	if s, ok := st.Sys().(*syscall.Stat_t); ok && s.Blksize >= 4096 {
		return 4096
	}
	return 512
}
