package vault

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sledvault/sledvault/vault/reason"
)

// TestLockFolders: a second daemon is refused; a folder that is not there, or on a medium that cannot be written, is
// passed over, and one that another user owns is not.
func TestLockFolders(t *testing.T) {
	t.Parallel()
	dirs := []string{t.TempDir(), t.TempDir()}
	first, err := lockFolders(append(dirs, filepath.Join(dirs[0], "absent")))
	if err != nil || len(first) != 2 {
		t.Fatalf("have %d locks, %v", len(first), err)
	}
	if _, err := lockFolders(dirs[1:]); reason.CodeOf(err) != "state-folder-busy" {
		t.Errorf("a second daemon: have %v", err)
	}
	first.release()
	if os.Geteuid() != 0 {
		return
	}
	for name, prepare := range map[string]func(dir string) error{
		"read-only, new":    func(string) error { return nil },
		"read-only, locked": func(dir string) error { return os.WriteFile(filepath.Join(dir, lockName), nil, 0o600) },
	} {
		dir := t.TempDir()
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
			t.Logf("no mounts here: %v", err)
			return
		}
		t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
		if err := prepare(dir); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			t.Fatal(err)
		}
		locks, err := lockFolders([]string{dir, dirs[0]})
		if err != nil || len(locks) == 0 {
			t.Errorf("%s: have %d locks, %v", name, len(locks), err)
		}
		if name == "read-only, locked" {
			if _, err := lockFolders([]string{dir}); reason.CodeOf(err) != "state-folder-busy" {
				t.Errorf("%s: a second daemon: have %v", name, err)
			}
		}
		locks.release()
	}
}
