package lrtq

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/sledvault/sledvault/vault/ident"
)

// BoardKind tells the two forms of a board's identity apart.
type BoardKind uint8

// The kinds, in their order.
const (
	Gimlet BoardKind = iota // a sled of a rack; has a revision
	PC                      // anything else
)

// Board is the identity of a sled in the older scheme: what the trust quorum calls a baseboard, and the revision.
type Board struct {
	Kind       BoardKind
	Identifier string // the serial number
	Model      string // the part number
	Revision   uint32 // 0 for a PC
}

// Baseboard is the same sled's identity in the trust quorum.
func (b Board) Baseboard() ident.Baseboard {
	return ident.Baseboard{Part: b.Model, Serial: b.Identifier}
}

// Compare orders boards by kind, identifier, model and revision. Packages are handed out in this order.
func (b Board) Compare(o Board) int {
	return cmp.Or(cmp.Compare(b.Kind, o.Kind), strings.Compare(b.Identifier, o.Identifier), strings.Compare(b.Model, o.Model),
		cmp.Compare(b.Revision, o.Revision))
}

// Validate reports whether the identity is usable: as a baseboard, and without a revision if it is a PC.
func (b Board) Validate() error {
	if b.Kind > PC || b.Kind == PC && b.Revision != 0 {
		return fmt.Errorf("lrtq: board: have kind %d and revision %d", b.Kind, b.Revision)
	}
	return b.Baseboard().Validate()
}

// String is for people: kind, part, serial, and the revision of a gimlet.
func (b Board) String() string {
	if b.Kind == Gimlet {
		return fmt.Sprintf("gimlet-%s-r%d", b.Baseboard(), b.Revision)
	}
	return "pc-" + b.Baseboard().String()
}
