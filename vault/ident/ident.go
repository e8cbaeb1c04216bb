// Package ident names things: sleds, racks and configurations.
//
// It owns the identities that every other package passes around, their order and their text forms, so that no two
// packages can disagree about them. It refuses identities that could not survive the trip through a certificate, a
// command line or a log line. It does no I/O.
package ident

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/uuid"
)

// Baseboard identifies a sled by its main board. It is the identity of a node everywhere in the protocol.
type Baseboard struct {
	Part   string // part number; the service processor calls it "model"
	Serial string // serial number
}

// MaxField is the longest part or serial number in bytes: the width of the service processor's fields.
const MaxField = 51

// ErrBaseboard says that a text is not a usable baseboard identity.
var ErrBaseboard = errors.New("ident: baseboard must be PART:SERIAL in printable ASCII without blank or colon, 1 to 51 bytes each")

// ParseBaseboard reads the text form "part:serial". Exactly one colon is allowed.
func ParseBaseboard(s string) (Baseboard, error) {
	part, serial, ok := strings.Cut(s, ":")
	b := Baseboard{Part: part, Serial: serial}
	if !ok {
		return Baseboard{}, fmt.Errorf("%w: have %.120q", ErrBaseboard, s)
	}
	if err := b.Validate(); err != nil {
		return Baseboard{}, err
	}
	return b, nil
}

// Validate reports whether both fields are usable (protocol.md §1).
func (b Baseboard) Validate() error {
	for _, f := range []string{b.Part, b.Serial} {
		if len(f) == 0 || len(f) > MaxField || strings.ContainsFunc(f, func(r rune) bool { return r <= ' ' || r > '~' || r == ':' }) {
			return fmt.Errorf("%w: have %.120q", ErrBaseboard, b.String())
		}
	}
	return nil
}

// String is the text form "part:serial".
func (b Baseboard) String() string { return b.Part + ":" + b.Serial }

// IsZero reports whether b is unset.
func (b Baseboard) IsZero() bool { return b == Baseboard{} }

// Compare orders baseboards by part, then serial, byte by byte. This order assigns share indices (protocol.md §1).
func (b Baseboard) Compare(o Baseboard) int {
	return cmp.Or(strings.Compare(b.Part, o.Part), strings.Compare(b.Serial, o.Serial))
}

// MarshalText gives the text form, for JSON and TOML.
func (b Baseboard) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// UnmarshalText reads the text form.
func (b *Baseboard) UnmarshalText(t []byte) (err error) {
	*b, err = ParseBaseboard(string(t))
	return err
}

// SortBaseboards returns the baseboards in protocol order, without changing its argument.
func SortBaseboards(in []Baseboard) []Baseboard {
	out := slices.Clone(in)
	slices.SortFunc(out, Baseboard.Compare)
	return out
}

// RackID is the UUID of a rack, constant for the life of one trust quorum.
type RackID [16]byte

// ParseRackID reads the hyphenated form of a rack id.
func ParseRackID(s string) (RackID, error) {
	if len(s) != 36 {
		return RackID{}, fmt.Errorf("ident: rack id must be a hyphenated UUID: have %.60q", s)
	}
	u, err := uuid.Parse(s)
	if err != nil {
		return RackID{}, fmt.Errorf("ident: rack id must be a hyphenated UUID: have %.60q", s)
	}
	return RackID(u), nil
}

// String is the hyphenated lower-case form.
func (r RackID) String() string { return uuid.UUID(r).String() }

// IsZero reports whether r is the nil UUID.
func (r RackID) IsZero() bool { return r == RackID{} }

// MarshalText gives the hyphenated form.
func (r RackID) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads the hyphenated form.
func (r *RackID) UnmarshalText(t []byte) (err error) {
	*r, err = ParseRackID(string(t))
	return err
}

// Epoch numbers the configurations of one rack. It only grows; an aborted epoch is skipped, never reused.
type Epoch uint64

// Threshold is the number of shares that rebuild a rack secret.
type Threshold uint8
