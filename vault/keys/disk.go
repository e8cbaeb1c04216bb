// Boot path 8/9: after vault/quorum/node.go, before vault/api/unlock.go.

package keys

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/sledvault/sledvault/vault/secret"
)

// Disk names a disk as its controller does. The three texts, byte for byte, decide its key: they must come from one
// place, always the same, and from the hardware rather than from anything written on the disk.
type Disk struct {
	Vendor string `json:"vendor"` // PCI vendor id of the controller, lower-case hex without prefix or padding: "1b96"
	Model  string `json:"model"`  // product name as reported, not trimmed
	Serial string `json:"serial"` // serial number as reported, not trimmed
}

// MaxDiskField is the longest of the three texts in bytes. NVMe ends at 40, SCSI descriptors at 252.
const MaxDiskField = 255

// ErrDisk says that a disk's identity is not usable.
var ErrDisk = errors.New("keys: disk identity: vendor, model and serial must each be 1 to 255 bytes of printable UTF-8")

// Validate reports whether the identity can name a disk: every text is present, bounded and printable.
func (d Disk) Validate() error {
	for _, f := range []string{d.Vendor, d.Model, d.Serial} {
		if len(f) == 0 || len(f) > MaxDiskField || !utf8.ValidString(f) || strings.ContainsFunc(f, func(r rune) bool { return !unicode.IsPrint(r) }) {
			return fmt.Errorf("%w: have %.120q", ErrDisk, d.String())
		}
	}
	return nil
}

// String shows the three texts, for people; it is not a key of anything.
func (d Disk) String() string { return d.Vendor + "/" + d.Model + "/" + d.Serial }

// DiskKey derives the key of one disk at the epoch whose pseudo-random key is p (protocol.md §4).
func DiskKey(a secret.Allocator, p secret.PRK, d Disk) (secret.DiskKey, error) {
	if err := d.Validate(); err != nil {
		return secret.DiskKey{}, err
	}
	return diskKey(a, p, d)
}

// diskInfo begins the derivation's context. The texts follow without separators: fixed by the disks that exist.
const diskInfo = "U.2-zfs-"

func diskKey(a secret.Allocator, p secret.PRK, d Disk) (out secret.DiskKey, err error) {
	err = p.Use(func(prk []byte) error {
		if len(prk) != Size {
			return fmt.Errorf("keys: disk key: %w: have %d bytes, want %d", secret.ErrLength, len(prk), Size)
		}
		out, err = secret.Take[secret.DiskKeyKind](a, expand(prk, diskInfo+d.Vendor+d.Model+d.Serial))
		return err
	})
	return out, err
}
