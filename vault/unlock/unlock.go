// Package unlock opens encrypted disks with the keys that the quorum yields.
//
// It owns one small interface, [Backend], and its LUKS2 implementation over cryptsetup. It refuses any disk whose header
// is not what was recorded when the disk was formatted or adopted, and says which part changed. Keys leave their locked
// pages only through a pipe straight to cryptsetup (run.go). It persists nothing: a [Record] goes to the caller's ledger.
//
// Read next: luks2.go (the way a disk opens), header.go and metadata.go (what is believed of a header), docs/disks.md.
package unlock

import (
	"cmp"
	"context"
	"errors"
	"path/filepath"
	"regexp"
	"time"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/keys"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
)

// Backend is one way of encrypting disks. Calls for different disks may run in parallel; calls for one disk may not.
type Backend interface {
	// Inspect reads what the disk says of itself. No key is needed and nothing in the answer is trusted.
	Inspect(context.Context, Disk) (Header, error)
	// Format encrypts a disk under the key and returns what to record. See [FormatOptions] for what it refuses.
	Format(context.Context, Disk, FormatOptions, secret.DiskKey, ident.Epoch, ident.RackID) (Record, error)
	// Open checks the disk against its record and opens it. Failures come both as error and inside the result.
	Open(context.Context, Disk, Record, secret.DiskKey) (Result, error)
	// Close takes the mapping away; a disk that is not mapped is no error.
	Close(context.Context, Disk) error
}

// Disk says where a disk is and who it is.
type Disk struct {
	ID       string    // the operator's name: letters, digits, "_", ".", "-"; at most 64
	Backend  string    // [BackendLUKS2]
	Path     string    // absolute path of a block device or regular file; links are followed
	Identity keys.Disk // decides the key
	Mapping  string    // device-mapper name; "" means "sledvault-" + ID
}

// BackendLUKS2 names the back end of this package.
const BackendLUKS2 = "luks2"

var diskName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$`)

// MappingName is the device-mapper name the disk gets.
func (d Disk) MappingName() string { return cmp.Or(d.Mapping, "sledvault-"+d.ID) }

// Validate refuses names and paths that could not be passed to a command safely (docs/disks.md §1).
func (d Disk) Validate() error {
	switch {
	case !diskName.MatchString(d.ID):
		return reason.New(CodeConfig, hintConfig, "unlock: disk id: have %.80q, want up to 64 letters, digits or _ . -", d.ID)
	case d.Mapping != "" && !diskName.MatchString(d.Mapping):
		return reason.New(CodeConfig, hintConfig, "unlock: disk %s: mapping: have %.80q, want up to 64 letters, digits or _ . -", d.ID, d.Mapping)
	case !filepath.IsAbs(d.Path):
		return reason.New(CodeConfig, hintConfig, "unlock: disk %s: path: have %.80q, want an absolute path", d.ID, d.Path)
	case d.Backend != BackendLUKS2:
		return reason.New(CodeConfig, hintConfig, "unlock: disk %s: back end: have %.40q, want %q", d.ID, d.Backend, BackendLUKS2)
	}
	return nil
}

// Pin is one recorded property of a header.
type Pin struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Record is what was true when the disk was formatted, adopted or given a new key. The caller keeps it in its ledger.
type Record struct {
	Epoch   ident.Epoch `json:"epoch"`    // whose secret the key came from
	KeySlot int         `json:"key_slot"` // where the header keeps that key
	Pins    []Pin       `json:"pins"`     // in the order of [PinNames]
}

// Header is what a disk says of itself. Only its pins, compared with a record, decide anything.
type Header struct {
	UUID  string       // of the LUKS2 header
	Slots []int        // key slots in use, ascending
	Pins  []Pin        // in the order of [PinNames]
	Rack  ident.RackID // from our token; zero if there is none
	Epoch ident.Epoch  // from our token; 0 if there is none
	Slot  int          // key slot of our token; -1 if there is none
}

// The states of a disk.
const (
	StateUnlocked    = "unlocked"    // mapped: the plain device exists
	StateKeyProved   = "key-proved"  // the key fits; this machine has no device-mapper to map with
	StateAbsent      = "absent"      // nothing at the path
	StateUnformatted = "unformatted" // nothing encrypted there yet
	StateFailed      = "failed"      // see the code
)

// How a key was proved.
const (
	ProofMapped         = "mapped"
	ProofTestPassphrase = "test-passphrase"
)

// Result is the outcome of one open, for status and the command line.
type Result struct {
	ID      string      `json:"id"`
	Backend string      `json:"backend"`
	State   string      `json:"state"`
	Proof   string      `json:"proof,omitempty"` // how the key was proved
	Epoch   ident.Epoch `json:"epoch,omitempty"`
	Mapping string      `json:"mapping,omitempty"` // path of the plain device, if there is one
	Note    string      `json:"note,omitempty"`
	MS      float64     `json:"ms"`
	Code    reason.Code `json:"code,omitempty"`
	Error   string      `json:"error,omitempty"`
	Hint    string      `json:"hint,omitempty"`
}

// fail turns an error into the failed form of the result.
func (r Result) fail(err error, took time.Duration) Result {
	r.MS, r.State = millis(took), StateFailed
	r.Code, r.Error, r.Hint = cmp.Or(reason.CodeOf(err), CodeTool), err.Error(), reason.HintOf(err)
	switch r.Code {
	case CodeAbsent:
		r.State = StateAbsent
	case CodeUnformatted:
		r.State = StateUnformatted
	}
	return r
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// FormatOptions say how to format.
type FormatOptions struct {
	// KeepData encrypts what is there in place. The last 32 MiB of the disk must be unused: they make room for the header.
	KeepData bool
	// Resume, with KeepData, goes on with an encryption in place that was interrupted. Only for a disk that never had a
	// record: it lets cryptsetup act on what the header says.
	Resume bool
	// Overwrite gives up whatever is there, an encrypted disk included. Without it a known signature is refused.
	Overwrite bool
	// SectorSize of the encryption: 512 or 4096 bytes; 0 takes 4096 if the device's own sectors allow, else 512.
	SectorSize int
}

// ReduceBytes is how much of the end of a disk KeepData needs.
const ReduceBytes = 32 << 20

var errNil = errors.New("unlock: no key given")
