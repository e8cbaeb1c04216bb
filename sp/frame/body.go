package frame

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// LengthError says that a reply's body has not the length its kind demands. It is final: a resend cannot mend it.
type LengthError struct {
	Kind       ReplyKind
	Have, Want int
}

func (e *LengthError) Error() string {
	return fmt.Sprintf("frame: %v reply: have %d body bytes, want %d", e.Kind, e.Have, e.Want)
}

// Lengths of bodies.
const (
	TextLen     = 51 // width of model and serial
	IdentityLen = TextLen + 4 + TextLen
	StatusLen   = 16
)

// CheckLength returns a *[LengthError] unless body has exactly the wanted length.
func CheckLength(kind ReplyKind, body []byte, want int) error {
	if len(body) != want {
		return &LengthError{Kind: kind, Have: len(body), Want: want}
	}
	return nil
}

// Identity is the body of an Identity reply. The fields are NUL padded text.
type Identity struct {
	Model    [TextLen]byte
	Revision uint32
	Serial   [TextLen]byte
}

// NewIdentity fills the fields; text beyond [TextLen] bytes is refused.
func NewIdentity(model string, revision uint32, serial string) (Identity, error) {
	if len(model) > TextLen || len(serial) > TextLen {
		return Identity{}, fmt.Errorf("frame: identity: have %d and %d bytes, want at most %d", len(model), len(serial), TextLen)
	}
	id := Identity{Revision: revision}
	copy(id.Model[:], model)
	copy(id.Serial[:], serial)
	return id, nil
}

// Append appends the 106 bytes of the body.
func (id Identity) Append(dst []byte) []byte {
	dst = append(dst, id.Model[:]...)
	dst = binary.LittleEndian.AppendUint32(dst, id.Revision)
	return append(dst, id.Serial[:]...)
}

// ParseIdentity reads a body of exactly 106 bytes.
func ParseIdentity(body []byte) (Identity, error) {
	if err := CheckLength(IdentityReply, body, IdentityLen); err != nil {
		return Identity{}, err
	}
	var id Identity
	copy(id.Model[:], body)
	id.Revision = binary.LittleEndian.Uint32(body[TextLen:])
	copy(id.Serial[:], body[TextLen+4:])
	return id, nil
}

// Text returns a field up to its first NUL, or all of it. Clean is false if there was no NUL or if anything but NUL
// followed the first one.
func Text(field [TextLen]byte) (text string, clean bool) {
	end := bytes.IndexByte(field[:], 0)
	if end < 0 {
		return string(field[:]), false
	}
	return string(field[:end]), len(bytes.Trim(field[end:], "\x00")) == 0
}

// StatusRestarted is bit 0 of the status word: the service processor's task started and was not yet acknowledged.
const StatusRestarted uint64 = 1

// Status is the body of a Status reply. Unknown bits are to be ignored.
type Status struct{ Status, Startup uint64 }

// Append appends the 16 bytes of the body.
func (s Status) Append(dst []byte) []byte {
	return binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(dst, s.Status), s.Startup)
}

// ParseStatus reads a body of exactly 16 bytes.
func ParseStatus(body []byte) (Status, error) {
	if err := CheckLength(StatusReply, body, StatusLen); err != nil {
		return Status{}, err
	}
	return Status{binary.LittleEndian.Uint64(body), binary.LittleEndian.Uint64(body[8:])}, nil
}

// Key names a value that the service processor keeps for the host.
type Key uint8

// The keys.
const (
	KeyPing Key = iota
	KeyInstallinatorImageID
	KeyInventorySize
	KeyEtcSystem
	KeyDtraceConf
)

// KeyResult is the first byte of a KeyLookupResult.
type KeyResult uint8

// The results of a lookup.
const (
	KeyOK KeyResult = iota
	KeyInvalid
	KeyNoValue
	KeyTooLong
)

// String is the result's name.
func (r KeyResult) String() string {
	names := [...]string{"Ok", "InvalidKey", "NoValueForKey", "MaxResponseLenTooShort"}
	if int(r) < len(names) {
		return names[r]
	}
	return fmt.Sprintf("KeyResult(%d)", uint8(r))
}

// Pong is the value of [KeyPing].
const Pong = "pong"

// Lookup is the body of a KeyLookup request.
type Lookup struct {
	Key    Key
	MaxLen uint16 // longest value that the host accepts
}

// Append appends the 3 bytes of the body.
func (l Lookup) Append(dst []byte) []byte {
	return binary.LittleEndian.AppendUint16(append(dst, byte(l.Key)), l.MaxLen)
}

// ParseLookup reads the fixed fields of a KeyLookup request; data after them is ignored, as the service processor does.
func ParseLookup(body []byte) (Lookup, error) {
	if len(body) < 3 {
		return Lookup{}, ErrShort
	}
	return Lookup{Key(body[0]), binary.LittleEndian.Uint16(body[1:])}, nil
}

// ParseKeyResult reads a KeyLookupResult: the value aliases the body and is empty unless the result is [KeyOK].
func ParseKeyResult(body []byte) (KeyResult, []byte, error) {
	if len(body) < 1 {
		return 0, nil, &LengthError{Kind: KeyLookupResult, Have: 0, Want: 1}
	}
	r := KeyResult(body[0])
	if r != KeyOK && len(body) != 1 {
		return r, nil, &LengthError{Kind: KeyLookupResult, Have: len(body), Want: 1}
	}
	return r, body[1:], nil
}
