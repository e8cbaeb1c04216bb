package vault

import (
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/sledvault/sledvault/vault/reason"
)

// lockName is the file in each state folder that a running daemon holds locked.
const lockName = "sledvaultd.lock"

// folderLocks keep a second daemon off the state folders.
type folderLocks []*os.File

// lockFolders locks the state folders. A folder that is not there, or whose medium is read-only, full or broken, is the
// ledger's business, not ours: the sled runs on the other one.
func lockFolders(dirs []string) (folderLocks, error) {
	var locks folderLocks
	for _, dir := range dirs {
		f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
		if cannotWrite(err) { // what is there can be locked all the same
			if f, err = os.Open(filepath.Join(dir, lockName)); cannotWrite(err) {
				continue
			}
		}
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			locks.release()
			return nil, reason.Wrap(err, "state-folder", "the state folders must belong to the daemon's user", "vault: open %s", dir)
		}
		locks = append(locks, f)
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			locks.release()
			return nil, reason.New("state-folder-busy", "stop the other sledvaultd", "vault: another sledvaultd runs on %s", dir)
		}
	}
	return locks, nil
}

// cannotWrite reports whether an error is a medium's, not one of owner or mode.
func cannotWrite(err error) bool {
	return errors.Is(err, unix.EROFS) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EIO)
}

func (l folderLocks) release() {
	for _, f := range l {
		_ = unix.Flock(int(f.Fd()), unix.LOCK_UN) // a child between fork and exec may still hold the file
		_ = f.Close()
	}
}
