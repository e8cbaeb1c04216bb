package wire

import (
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
)

// LedgerState is everything that a sled must not forget: the plaintext of its ledger (wire.md §7, ledger.md).
type LedgerState struct {
	Sequence   uint64 // equals the counter of the hardware; stands outside the ciphertext too
	Generation uint64 // counts saves
	Quorum     quorum.State
	// SetGeneration and SetDigest name the enrolment set that this state was saved with.
	SetGeneration uint64
	SetDigest     [32]byte
	Disks         []DiskRecord // ascending by ID
	// BreakGlass is the place for shares of the newest committed rack secret that people hold. Empty in version 1.
	BreakGlass []byte
}

// DiskRecord is what a sled remembers about one disk.
type DiskRecord struct {
	ID                    string // the disk's name in config and API; unique
	Backend               string // luks2, zfs, keysocket, volume, raw
	Vendor, Model, Serial string // identity that the disk's key is derived for
	Epoch                 ident.Epoch
	HeaderPins            []Pin // what a header must show before it is used, in the back end's order
	KeySlot               int   // slot of the current key; -1 when the back end has none
	State                 string
}

// Pin is one recorded property of a disk's header.
type Pin struct{ Name, Value string }

// MaxState is the largest encoded state in bytes.
const MaxState = 64 << 20

const (
	maxDisks    = 1024
	maxPins     = 64
	maxDiskText = 1024
	maxPinValue = 64 << 10
	maxBreak    = 1 << 20
)

// EncodeState writes the state in the newest version, into pages of exactly its size.
func EncodeState(a secret.Allocator, s LedgerState) (secret.Plaintext, error) {
	emit := func(w *writer) { w.stateV1(s) }
	n, err := measure(MaxState, emit)
	if err != nil {
		return secret.Plaintext{}, err
	}
	return secret.New[secret.PlaintextKind](a, n, func(b []byte) error {
		w := writer{b: b[:0:n]}
		emit(&w)
		switch {
		case w.err != nil:
			return w.err
		case w.n != n:
			return reason.New(CodeEncode, "", "wire: encode state: have %d bytes, measured %d", w.n, n)
		}
		return nil
	})
}

// DecodeState reads a state of any known version from its pages. Shares are copied into pages from a.
func DecodeState(a secret.Allocator, p secret.Plaintext) (s LedgerState, err error) {
	err = p.Use(func(b []byte) error {
		s, err = DecodeStateBytes(a, b)
		return err
	})
	return s, err
}

// DecodeStateBytes is [DecodeState] for bytes that the caller wipes. If it refuses, no share remains.
func DecodeStateBytes(a secret.Allocator, b []byte) (LedgerState, error) {
	if len(b) > MaxState {
		return LedgerState{}, reason.New(CodeTooLarge, hintState, "wire: decode state: have %d bytes, want at most %d", len(b), MaxState)
	}
	r := reader{b: b, alloc: a, strict: true, state: true, path: []string{"state"}}
	n := r.want(majMap)
	if k := r.uint(); r.err == nil && k != 0 {
		r.fail(CodeVersion, "have key %d first, want key 0: the version", k)
	}
	version := r.text(64)
	var s LedgerState
	switch {
	case r.err != nil:
	case version == stateV1:
		s = r.stateV1(n)
	default:
		r.fail(CodeVersion, "have version %.64q, want %q", version, stateV1)
	}
	if err := r.finish(); err != nil {
		return LedgerState{}, err
	}
	return s, nil
}
