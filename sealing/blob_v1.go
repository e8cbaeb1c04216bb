package sealing

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/binary"

	"github.com/google/go-tpm/tpm2"

	"github.com/sledvault/sledvault/tpm"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/reason"
)

const (
	blobMagic   = "svblob"
	blobVersion = 1
	maxPart     = 1024 // bytes of one part of a blob
	pointLen    = 65   // 04, x, y
)

// BlobInfo is a blob's content (sealing.md §3).
type BlobInfo struct {
	Public       []byte // TPM2B_PUBLIC without its size: TPMT_PUBLIC of the sealed object
	Private      []byte // TPM2B_PRIVATE without its size: encrypted by the TPM
	PolicyKey    *ecdsa.PublicKey
	CounterKey   *ecdsa.PublicKey
	CounterIndex uint32
}

func (b *BlobInfo) encode() (Blob, error) {
	policy, err := b.PolicyKey.Bytes()
	if err != nil {
		return nil, usage("policy key: %v", err)
	}
	counter, err := b.CounterKey.Bytes()
	if err != nil {
		return nil, usage("counter key: %v", err)
	}
	out := append(make([]byte, 0, 1024), blobMagic...)
	out = binary.BigEndian.AppendUint16(out, blobVersion)
	out = appendPart(out, b.Public)
	out = appendPart(out, b.Private)
	out = append(append(out, policy...), counter...)
	return binary.BigEndian.AppendUint32(out, b.CounterIndex), nil
}

func appendPart(b, part []byte) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(part))), part...)
}

func blobError(format string, args ...any) error {
	return reason.New(CodeBlob, hintBlob, "sealing: blob: "+format, args...)
}

// DecodeBlob reads a blob. It says nothing about whose it is.
func DecodeBlob(b Blob) (*BlobInfo, error) {
	r := parts{b: b}
	if string(r.take(len(blobMagic))) != blobMagic {
		return nil, blobError("wrong first bytes")
	}
	if v := r.u16(); v != blobVersion {
		return nil, blobError("version %d, want %d: written by a newer release?", v, blobVersion)
	}
	info := &BlobInfo{Public: r.part(), Private: r.part()}
	policy, counter := r.take(pointLen), r.take(pointLen)
	info.CounterIndex = r.u32()
	if r.short || len(r.b) != 0 {
		return nil, blobError("%d bytes do not fit its lengths", len(b))
	}
	var err error
	if info.PolicyKey, err = ecdsa.ParseUncompressedPublicKey(elliptic.P256(), policy); err != nil {
		return nil, blobError("policy key: %v", err)
	}
	if info.CounterKey, err = ecdsa.ParseUncompressedPublicKey(elliptic.P256(), counter); err != nil {
		return nil, blobError("counter key: %v", err)
	}
	return info, nil
}

// sealedTemplate is the public area of the sealed object, without its unique part. UserWithAuth stays clear: with it the
// auth value alone would open the object. NoDA: the auth value has 256 bits, guessing is no danger, lockouts are.
func sealedTemplate(policy []byte) tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgKeyedHash, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, AdminWithPolicy: true, NoDA: true},
		AuthPolicy:       tpm2.TPM2BDigest{Buffer: policy},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgKeyedHash, &tpm2.TPMSKeyedHashParms{
			Scheme: tpm2.TPMTKeyedHashScheme{Scheme: tpm2.TPMAlgNull},
		}),
	}
}

// verified is a blob that was made for this sled, this rack and the pinned counter.
type verified struct {
	*BlobInfo
	raw     Blob
	ref     [32]byte
	keyName []byte // of the policy key
	counter tpm.Counter
}

// verify checks everything about a blob that can be checked without the TPM.
func verify(p Params, pins Pins, rack ident.RackID, raw Blob) (*verified, error) {
	info, err := DecodeBlob(raw)
	if err != nil {
		return nil, err
	}
	v := &verified{BlobInfo: info, raw: bytes.Clone(raw), ref: policyRef(rack, p.Baseboard)}
	if v.counter, err = tpm.CounterAt(info.CounterIndex, info.CounterKey); err != nil {
		return nil, blobError("counter: %v", err)
	}
	if !bytes.Equal(v.counter.Name, pins.CounterName) {
		return nil, blobError("made for another counter: have %x, want %x", v.counter.Name, pins.CounterName)
	}
	if v.keyName, err = policyKeyName(info.PolicyKey); err != nil {
		return nil, err
	}
	pub, err := tpm2.Unmarshal[tpm2.TPMTPublic](info.Public)
	if err != nil {
		return nil, blobError("public area: %v", err)
	}
	want := sealedTemplate(sealPolicy(v.keyName, v.ref))
	want.Unique = pub.Unique
	if pub.Type != tpm2.TPMAlgKeyedHash || !bytes.Equal(tpm2.Marshal(want), info.Public) {
		return nil, blobError("public area is not that of a seal for %s of rack %s", p.Baseboard, rack)
	}
	return v, nil
}

// parts takes fields off a byte slice; once it runs short all results are empty.
type parts struct {
	b     []byte
	short bool
}

func (r *parts) take(n int) []byte {
	if r.short || len(r.b) < n {
		r.short = true
		return nil
	}
	out := r.b[:n:n]
	r.b = r.b[n:]
	return out
}

func (r *parts) u16() uint16 {
	if b := r.take(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (r *parts) u32() uint32 {
	if b := r.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (r *parts) u64() uint64 {
	if b := r.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func (r *parts) part() []byte {
	n := int(r.u16())
	if n == 0 || n > maxPart {
		r.short = true
	}
	return r.take(n)
}
