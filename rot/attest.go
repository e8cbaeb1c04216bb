package rot

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
)

// Numbers of TPM 2.0 Part 2 that attestations carry.
const (
	tpmGenerated     = 0xff544347
	stAttestNV       = 0x8014
	stAttestCertify  = 0x8017
	stAttestQuote    = 0x8018
	algECC           = 0x0023
	algSHA256        = 0x000b
	algNull          = 0x0010
	algECDSA         = 0x0018
	curveP256        = 0x0003
	akAttributes     = 1<<1 | 1<<4 | 1<<5 | 1<<6 | 1<<16 | 1<<18 // fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, restricted, sign
	attrNoDA         = 1 << 10
	pcrSelectBytes   = 3
	maxPCR           = 8*pcrSelectBytes - 1
	maxTPMStructure  = 2048
	maxNVContents    = 64
	maxNameOrDigest  = 66
	counterNVLength  = 8
	pcrSelectionBits = 8
)

// Clock is the TPMS_CLOCK_INFO of an attestation.
type Clock struct {
	Milliseconds             uint64
	ResetCount, RestartCount uint32
	Safe                     bool // reported, never required (evidence.md §6)
}

// Attest is a parsed TPMS_ATTEST. Exactly one of Quote, Certify and NV is set, by Type.
type Attest struct {
	Type      uint16
	Signer    []byte // qualified name: informational
	Extra     []byte
	Clock     Clock
	Firmware  uint64
	Selection []int  // quote: the PCRs of the SHA-256 bank, ascending
	PCRDigest []byte // quote: digest of their values
	Name      []byte // certify: name of the object; NV: name of the index
	NVOffset  uint16
	NVData    []byte
}

// reader walks a TPM structure. All integers are big endian. After the first error it only returns zero values.
type reader struct {
	b   []byte
	err error
}

var errShort = errors.New("structure is cut short")

func (r *reader) take(n int) []byte {
	if r.err != nil {
		return nil
	}
	if n > len(r.b) {
		r.err = errShort
		return nil
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) u8() uint8 {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) u16() uint16 {
	if b := r.take(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (r *reader) u32() uint32 {
	if b := r.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (r *reader) u64() uint64 {
	if b := r.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

// sized reads a TPM2B of at most limit bytes.
func (r *reader) sized(limit int) []byte {
	n := int(r.u16())
	if r.err == nil && n > limit {
		r.fail("sized buffer: have %d bytes, want at most %d", n, limit)
	}
	return r.take(n)
}

func (r *reader) want(what string, have, want uint32) {
	if r.err == nil && have != want {
		r.fail("%s: have %#x, want %#x", what, have, want)
	}
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf(format, args...)
	}
}

func (r *reader) end() error {
	if r.err == nil && len(r.b) != 0 {
		r.fail("%d trailing bytes", len(r.b))
	}
	return r.err
}

// errAttestType says that a structure is not the attestation that was asked for; errSelection that a quote covers
// other banks or none.
var (
	errAttestType = errors.New("not the attestation that was asked for")
	errSelection  = errors.New("want exactly one PCR selection, of the SHA-256 bank")
)

// parseAttest reads a TPMS_ATTEST of one type. Trailing bytes, another magic or another type are refused.
func parseAttest(b []byte, wantType uint16) (*Attest, error) {
	if len(b) > maxTPMStructure {
		return nil, fmt.Errorf("attestation: have %d bytes, want at most %d", len(b), maxTPMStructure)
	}
	r := &reader{b: b}
	magic, typ := r.u32(), r.u16()
	if r.err == nil && (magic != tpmGenerated || typ != wantType) {
		return nil, fmt.Errorf("%w: have magic %#x type %#x, want %#x type %#x", errAttestType, magic, typ, uint32(tpmGenerated), wantType)
	}
	a := &Attest{Type: typ, Signer: r.sized(maxNameOrDigest + 4), Extra: r.sized(maxNameOrDigest)}
	a.Clock = Clock{Milliseconds: r.u64(), ResetCount: r.u32(), RestartCount: r.u32()}
	a.Clock.Safe = r.yesNo()
	a.Firmware = r.u64()
	switch typ {
	case stAttestQuote:
		a.Selection = r.selection()
		a.PCRDigest = r.sized(maxNameOrDigest)
	case stAttestCertify:
		a.Name = r.sized(maxNameOrDigest)
		r.sized(maxNameOrDigest) // qualified name: informational
	case stAttestNV:
		a.Name = r.sized(maxNameOrDigest)
		a.NVOffset = r.u16()
		a.NVData = r.sized(maxNVContents)
	}
	if err := r.end(); err != nil {
		return nil, fmt.Errorf("attestation: %w", err)
	}
	return a, nil
}

func (r *reader) yesNo() bool {
	v := r.u8()
	if v > 1 {
		r.fail("yes/no: have %d, want 0 or 1", v)
	}
	return v == 1
}

// selection reads a TPML_PCR_SELECTION that holds exactly one selection of the SHA-256 bank.
func (r *reader) selection() (pcrs []int) {
	if banks := r.u32(); r.err == nil && banks != 1 {
		r.err = fmt.Errorf("%w: have %d selections", errSelection, banks)
	}
	bank, size := r.u16(), r.u8()
	if r.err == nil && (bank != algSHA256 || size != pcrSelectBytes) {
		r.err = fmt.Errorf("%w: have bank %#x with a bitmap of %d bytes", errSelection, bank, size)
	}
	for i, bits := range r.take(pcrSelectBytes) {
		for bit := range pcrSelectionBits {
			if bits&(1<<bit) != 0 {
				pcrs = append(pcrs, pcrSelectionBits*i+bit)
			}
		}
	}
	return pcrs
}

// parseSignature reads a TPMT_SIGNATURE: ECDSA over SHA-256.
func parseSignature(b []byte) (rs, ss *big.Int, err error) {
	r := &reader{b: b}
	r.want("signature algorithm", uint32(r.u16()), algECDSA)
	r.want("signature hash", uint32(r.u16()), algSHA256)
	x, y := r.sized(32), r.sized(32)
	if err := r.end(); err != nil {
		return nil, nil, fmt.Errorf("signature: %w", err)
	}
	return new(big.Int).SetBytes(x), new(big.Int).SetBytes(y), nil
}

// publicKey reads a TPMT_PUBLIC of an attestation key: exactly the attributes of one, P-256, ECDSA with SHA-256.
func publicKey(b []byte) (*ecdsa.PublicKey, error) {
	if len(b) > maxTPMStructure {
		return nil, fmt.Errorf("public area: have %d bytes, want at most %d", len(b), maxTPMStructure)
	}
	r := &reader{b: b}
	r.want("key type", uint32(r.u16()), algECC)
	r.want("name algorithm", uint32(r.u16()), algSHA256)
	// noDA may be set: it says that a wrong auth value, which this key has none of, does not count as a guess.
	r.want("attributes", r.u32()&^attrNoDA, akAttributes)
	r.sized(maxNameOrDigest) // policy: covered by the Name
	r.want("symmetric algorithm", uint32(r.u16()), algNull)
	r.want("signing scheme", uint32(r.u16()), algECDSA)
	r.want("signing hash", uint32(r.u16()), algSHA256)
	r.want("curve", uint32(r.u16()), curveP256)
	r.want("key derivation", uint32(r.u16()), algNull)
	x, y := r.sized(32), r.sized(32)
	if err := r.end(); err != nil {
		return nil, fmt.Errorf("public area: %w", err)
	}
	point := make([]byte, 65)
	point[0] = 4
	copy(point[33-len(x):], x)
	copy(point[65-len(y):], y)
	key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point)
	if err != nil {
		return nil, errors.New("public area: not a point of the curve")
	}
	return key, nil
}

// CheckAKPublic reads the public area (TPMT_PUBLIC) of an attestation key and returns its Name. It must be a restricted
// P-256 signing key that was made inside its TPM and can never leave it (evidence.md §3).
func CheckAKPublic(pub []byte) (name []byte, err error) {
	if _, err := publicKey(pub); err != nil {
		return nil, refuseBecause(err, CodeAK, "attestation key refused")
	}
	return nameOf(pub), nil
}

// nameOf computes the Name of a public area: the name algorithm, then the digest.
func nameOf(pub []byte) []byte {
	d := sha256.Sum256(pub)
	return append([]byte{algSHA256 >> 8, algSHA256 & 0xff}, d[:]...)
}
