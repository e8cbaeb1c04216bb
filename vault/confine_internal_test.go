package vault

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/sledvault/sledvault/internal/landlock"
)

// TestConfinement: only what is named is open, but for a device that is still to come; and nothing opens the root.
func TestConfinement(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	disk := filepath.Join(dir, "disk")
	if err := os.WriteFile(disk, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c := DefaultConfig()
	c.State.Copies = []string{"/var/lib/sledvault/a", "/mnt/b"}
	c.SP.Port, c.TPM.Device, c.TPM.EventLog = "/dev/null", "unix:/run/tpm/sock", "/nothing"
	c.Disks = []DiskConfig{{ID: "data0", Path: disk}}
	ledger := filepath.Join(dir, "bootstore-fsm-state.json")
	if err := os.WriteFile(ledger, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c.LRTQ.Ledgers = []string{ledger, "/media/gone/bootstore-fsm-state.json"}
	open := func(c Config, mapper bool, path string) landlock.Access {
		var a landlock.Access
		for _, r := range confinement(c, mapper) {
			if r.Path == path {
				a |= r.Access
			}
		}
		return a
	}
	for path, want := range map[string]landlock.Access{
		"/": 0, "/etc": 0, "/dev": 0, "/root": 0, "/dev/mapper": 0, "/usr": landlock.Read | landlock.Execute, "/run/tpm": landlock.Read,
		"/mnt/b": landlock.Read | landlock.Write | landlock.Make, disk: landlock.Read | landlock.Write | landlock.Device,
		ledger: landlock.Read, dir: 0, "/media/gone": landlock.Read,
	} {
		if have := open(c, false, path); have != want {
			t.Errorf("%s: have %05b, want %05b", path, have, want)
		}
	}
	devices := landlock.Read | landlock.Write | landlock.Device
	if have := open(c, true, "/dev"); have != devices {
		t.Errorf("with device-mapper /dev: have %05b, want %05b", have, devices)
	}
	c.Disks = slices.Concat(c.Disks, []DiskConfig{{ID: "late", Path: "/dev/disk/by-id/not-there-yet"}})
	if have := open(c, false, "/dev"); have != devices {
		t.Errorf("with a disk to come /dev: have %05b, want %05b", have, devices)
	}
}
