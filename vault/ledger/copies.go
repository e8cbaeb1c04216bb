package ledger

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"

	"github.com/sledvault/sledvault/vault/ident"
)

// CopyState says what was found in one place.
type CopyState uint8

// The states of a copy, from nothing to good.
const (
	CopyUnknown  CopyState = iota
	CopyNoMedium           // the folder cannot be opened
	CopyAbsent             // the folder is there, the file is not
	CopyDamaged            // the file cannot be read or is no ledger of a version we know
	CopyForeign            // it belongs to another sled or rack
	CopySealed             // the TPM does not open it
	CopyAltered            // it opens, but outside and inside do not fit
	CopyStale              // older than the counter
	CopyFuture             // too far ahead of the counter
	CopyFailed             // the last write to it failed
	CopyOK
)

// String is the state's name in status and errors.
func (s CopyState) String() string {
	names := [...]string{"unknown", "no medium", "absent", "damaged", "foreign", "sealed", "altered", "stale", "future", "failed", "ok"}
	return names[min(int(s), len(names)-1)]
}

// MarshalText gives the name.
func (s CopyState) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// CopyReport says what was found in one place, and why it is not used.
type CopyReport struct {
	State      CopyState   `json:"state"`
	Reason     string      `json:"reason,omitempty"`
	Sequence   uint64      `json:"sequence"` // as written on the outside; 0 if unreadable
	Generation uint64      `json:"generation"`
	Epoch      ident.Epoch `json:"epoch"`
}

// String is the state with its reason.
func (c CopyReport) String() string {
	if c.Reason == "" {
		return c.State.String()
	}
	return c.State.String() + " (" + c.Reason + ")"
}

// found is one copy as read from its medium.
type found struct {
	CopyReport
	raw  []byte
	file *File // nil unless it could be decoded and is ours
}

func (f *found) refuse(s CopyState, err error) { f.State, f.Reason = s, err.Error() }

// read looks at one copy from outside.
func (c *Config) read(dir folder) (f found) {
	raw, err := dir.Read(LedgerFile, MaxFile)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		f.State = CopyAbsent
		return f
	case err != nil:
		f.refuse(CopyDamaged, err)
		return f
	}
	file, err := DecodeFile(raw)
	if err != nil {
		f.refuse(CopyDamaged, err)
		return f
	}
	f.raw, f.Sequence, f.Generation, f.Epoch = raw, file.Sequence, file.Generation, file.Epoch
	if file.Baseboard != c.Baseboard || file.Rack != c.Rack {
		f.refuse(CopyForeign, fmt.Errorf("belongs to %s of rack %s", file.Baseboard, file.Rack))
		return f
	}
	f.file = file
	return f
}

// setAside renames a file that is about to be replaced but may still be wanted: another sled's copy, which came with a
// swapped medium, and a damaged one. A foreign copy keeps its own name for ever; of damaged ones the last is kept.
func setAside(dir folder, f found) error {
	name := LedgerFile + ".damaged"
	if f.State == CopyForeign {
		sum := sha256.Sum256(f.raw)
		name = LedgerFile + ".foreign-" + hex.EncodeToString(sum[:8])
	}
	if err := dir.Rename(LedgerFile, name); err != nil {
		return err
	}
	return dir.SyncDir()
}
