package enroll

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"maps"
	"slices"
	"unicode/utf8"

	"github.com/sledvault/sledvault/vault/ident"
)

// RecordVersion is the only version of a record so far.
const RecordVersion = 1

// The kinds of evidence that a record can demand.
const (
	KindTPM  = "tpm"
	KindDICE = "dice"
)

// Record binds one sled's baseboard to the device that proves it (enrolment.md §3). The EK is the anchor: everything else
// of the TPM was proved to live beside it when the sled was enrolled. Numbers in comments are the keys of the encoding.
type Record struct {
	Baseboard     ident.Baseboard // 2
	EKName        []byte          // 3: TPM Name of the endorsement key
	EKCertificate []byte          // 4: SHA-256 of its certificate; empty when the TPM has none
	AKPublic      []byte          // 5: TPMT_PUBLIC of the attestation key
	AKName        []byte          // 6
	SRKPublic     []byte          // 7: TPMT_PUBLIC of the storage root key
	SRKName       []byte          // 8
	CounterName   []byte          // 9: Name of the counter index, with the Written bit
	Counter       uint64          // 10: its value at enrolment
	Firmware      *Firmware       // 11
	ResetCount    uint32          // 12: at enrolment
	Manifest      string          // 13: id of the reference manifest, or
	// PCRs (15) pins registers by value: each must have one of its digests. Exactly one of Manifest and PCRs is set for a TPM.
	PCRs map[int][][32]byte
	// Replaces (14) is the hash of the earlier record when a TPM or a board was changed, or a lost seal was enrolled again.
	Replaces []byte
	Kind     string // 16: KindTPM or KindDICE
	// Removed (17) is the epoch at which the sled left; 0 while it is a member. The record stays, so that the sled can
	// still prove who it is and be given the proof of its removal, and nothing else.
	Removed ident.Epoch
}

// Firmware is what the TPM said about itself at enrolment.
type Firmware struct {
	_            struct{} `cbor:",toarray"`
	Manufacturer string
	Version      uint64
	Minimum      uint64 // lower versions are refused
}

type boardArray struct {
	_            struct{} `cbor:",toarray"`
	Part, Serial string
}

type recordWire struct {
	Version       uint64             `cbor:"1,keyasint"`
	Baseboard     boardArray         `cbor:"2,keyasint"`
	EKName        []byte             `cbor:"3,keyasint,omitempty"`
	EKCertificate []byte             `cbor:"4,keyasint,omitempty"`
	AKPublic      []byte             `cbor:"5,keyasint,omitempty"`
	AKName        []byte             `cbor:"6,keyasint,omitempty"`
	SRKPublic     []byte             `cbor:"7,keyasint,omitempty"`
	SRKName       []byte             `cbor:"8,keyasint,omitempty"`
	CounterName   []byte             `cbor:"9,keyasint,omitempty"`
	Counter       uint64             `cbor:"10,keyasint"`
	Firmware      *Firmware          `cbor:"11,keyasint,omitempty"`
	ResetCount    uint32             `cbor:"12,keyasint"`
	Manifest      string             `cbor:"13,keyasint,omitempty"`
	Replaces      []byte             `cbor:"14,keyasint,omitempty"`
	PCRs          map[int][][32]byte `cbor:"15,keyasint,omitempty"`
	Kind          string             `cbor:"16,keyasint"`
	Removed       uint64             `cbor:"17,keyasint,omitempty"`
}

func (r *Record) wire() recordWire {
	return recordWire{
		Version: RecordVersion, Baseboard: boardArray{Part: r.Baseboard.Part, Serial: r.Baseboard.Serial},
		EKName: r.EKName, EKCertificate: r.EKCertificate, AKPublic: r.AKPublic, AKName: r.AKName, SRKPublic: r.SRKPublic,
		SRKName: r.SRKName, CounterName: r.CounterName, Counter: r.Counter, Firmware: r.Firmware, ResetCount: r.ResetCount,
		Manifest: r.Manifest, Replaces: r.Replaces, PCRs: r.PCRs, Kind: r.Kind, Removed: uint64(r.Removed),
	}
}

func (w *recordWire) record() Record {
	return Record{
		Baseboard: ident.Baseboard{Part: w.Baseboard.Part, Serial: w.Baseboard.Serial},
		EKName:    w.EKName, EKCertificate: w.EKCertificate, AKPublic: w.AKPublic, AKName: w.AKName, SRKPublic: w.SRKPublic,
		SRKName: w.SRKName, CounterName: w.CounterName, Counter: w.Counter, Firmware: w.Firmware, ResetCount: w.ResetCount,
		Manifest: w.Manifest, Replaces: w.Replaces, PCRs: w.PCRs, Kind: w.Kind, Removed: ident.Epoch(w.Removed),
	}
}

// Encode gives the deterministic encoding.
func (r *Record) Encode() []byte { return encode(r.wire()) }

// Hash is the SHA-256 of the encoding: what a later record names in Replaces.
func (r *Record) Hash() [32]byte { return sha256.Sum256(r.Encode()) }

// Live reports whether the sled is, or may become, a member.
func (r *Record) Live() bool { return r.Removed == 0 }

// Clone copies the record and everything it points to.
func (r *Record) Clone() Record {
	c := *r
	for _, b := range []*[]byte{&c.EKName, &c.EKCertificate, &c.AKPublic, &c.AKName, &c.SRKPublic, &c.SRKName, &c.CounterName, &c.Replaces} {
		*b = bytes.Clone(*b)
	}
	if r.Firmware != nil {
		f := *r.Firmware
		c.Firmware = &f
	}
	c.PCRs = maps.Clone(r.PCRs)
	for k, v := range c.PCRs {
		c.PCRs[k] = slices.Clone(v)
	}
	return c
}

// Validate refuses a record that contradicts itself.
func (r *Record) Validate() error {
	if err := r.Baseboard.Validate(); err != nil {
		return refuse(CodeRecord, "", "record: %v", err)
	}
	bad := func(format string, args ...any) error {
		return refuse(CodeRecord, "", "record of %s: "+format, append([]any{r.Baseboard}, args...)...)
	}
	if n := len(r.EKCertificate); n != 0 && n != 32 {
		return bad("certificate digest: have %d bytes, want 32", n)
	}
	if n := len(r.Replaces); n != 0 && n != 32 {
		return bad("replaced record: have %d bytes, want 32", n)
	}
	if len(r.Manifest) > maxText || !utf8.ValidString(r.Manifest) {
		return bad("manifest id: have %d bytes, want text of at most %d", len(r.Manifest), maxText)
	}
	switch r.Kind {
	case KindTPM:
		return r.validateTPM(bad)
	case KindDICE:
		if len(r.EKName)+len(r.AKPublic)+len(r.AKName)+len(r.SRKPublic)+len(r.SRKName)+len(r.CounterName)+len(r.PCRs) != 0 ||
			r.Firmware != nil || r.Counter != 0 || r.ResetCount != 0 {
			return bad("kind dice with fields of a TPM")
		}
		return nil
	}
	return bad("kind: have %.20q, want %q or %q", r.Kind, KindTPM, KindDICE)
}

func (r *Record) validateTPM(bad func(string, ...any) error) error {
	if !validName(r.EKName) || !validName(r.CounterName) {
		return bad("EK or counter Name is not a TPM Name")
	}
	for _, k := range []struct {
		what         string
		public, name []byte
	}{{"AK", r.AKPublic, r.AKName}, {"SRK", r.SRKPublic, r.SRKName}} {
		if name, err := PublicName(k.public); err != nil || !bytes.Equal(name, k.name) {
			return bad("%s Name does not belong to its public area", k.what)
		}
	}
	if f := r.Firmware; f == nil || len(f.Manufacturer) > maxText || !utf8.ValidString(f.Manufacturer) {
		return bad("TPM manufacturer and firmware are missing")
	}
	if (r.Manifest == "") == (len(r.PCRs) == 0) {
		return bad("want either a manifest or pinned registers")
	}
	for pcr, allowed := range r.PCRs {
		if pcr < 0 || pcr >= maxPCRs || len(allowed) == 0 || len(allowed) > maxPinned ||
			!slices.IsSortedFunc(allowed, compareDigest) || len(slices.Compact(slices.Clone(allowed))) != len(allowed) {
			return bad("register %d: want 1 to %d ascending digests of a register below %d", pcr, maxPinned, maxPCRs)
		}
	}
	return nil
}

func compareDigest(a, b [32]byte) int { return bytes.Compare(a[:], b[:]) }

// The TPM's hash algorithms.
const (
	algSHA256 = 0x000b
	algSHA384 = 0x000c
	algSHA512 = 0x000d
)

// validName reports whether b looks like a TPM Name: algorithm, digest.
func validName(b []byte) bool {
	if len(b) < 2 {
		return false
	}
	size := map[uint16]int{algSHA256: 32, algSHA384: 48, algSHA512: 64}[binary.BigEndian.Uint16(b)]
	return size != 0 && len(b) == 2+size
}
