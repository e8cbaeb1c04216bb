package tpm

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/binary"
	"errors"

	"github.com/google/go-tpm/tpm2"
)

// digest is a policy digest in the making. A policy starts from 32 zero bytes; each assertion hashes itself on top.
type digest [32]byte

func (d digest) extend(cc tpm2.TPMCC, parts ...[]byte) digest {
	h := sha256.New()
	h.Write(d[:])
	h.Write(binary.BigEndian.AppendUint32(nil, uint32(cc)))
	for _, p := range parts {
		h.Write(p)
	}
	return digest(h.Sum(nil))
}

func (d digest) hash(more []byte) digest {
	return sha256.Sum256(append(d[:], more...))
}

func policyCommand(d digest, cc tpm2.TPMCC) digest {
	return d.extend(tpm2.TPMCCPolicyCommandCode, binary.BigEndian.AppendUint32(nil, uint32(cc)))
}

// PolicyKey is the public area under which a software ECDSA P-256 key authorises policies: signing only, no scheme but
// ECDSA with SHA-256. Its Name is part of the policy digests.
func PolicyKey(key *ecdsa.PublicKey) (tpm2.TPMTPublic, error) {
	if key == nil {
		return tpm2.TPMTPublic{}, usage("no policy key")
	}
	point, err := key.Bytes() // 04, x, y
	if err != nil || len(point) != 65 {
		return tpm2.TPMTPublic{}, usage("policy key is not on P-256")
	}
	return ecdsaTemplate(tpm2.TPMAObject{UserWithAuth: true, SignEncrypt: true}, point[1:33], point[33:]), nil
}

// LoadPolicyKey loads the public part of a policy key.
func (s *Session) LoadPolicyKey(key *ecdsa.PublicKey) (Key, error) {
	pub, err := PolicyKey(key)
	if err != nil {
		return Key{}, err
	}
	name, err := tpm2.ObjectName(&pub)
	if err != nil {
		return Key{}, usage("policy key: %v", err)
	}
	rsp, err := run(s, "load policy key", tpm2.LoadExternal{InPublic: tpm2.New2B(pub), Hierarchy: tpm2.TPMRHOwner})
	if err != nil {
		return Key{}, err
	}
	return Key{Handle: rsp.ObjectHandle, Name: *name, Public: pub}, nil
}

// Signer signs a SHA-256 digest with ECDSA P-256; r and s are big-endian, at most 32 bytes.
type Signer func(digest []byte) (r, s []byte, err error)

// Signature puts the two numbers into the TPM's form, 32 bytes each.
func Signature(r, s []byte) (tpm2.TPMTSignature, error) {
	if len(r) == 0 || len(r) > 32 || len(s) == 0 || len(s) > 32 {
		return tpm2.TPMTSignature{}, usage("signature of %d and %d bytes, want 32", len(r), len(s))
	}
	pad := func(b []byte) tpm2.TPM2BECCParameter {
		out := make([]byte, 32)
		copy(out[32-len(b):], b)
		return tpm2.TPM2BECCParameter{Buffer: out}
	}
	return tpm2.TPMTSignature{
		SigAlg: tpm2.TPMAlgECDSA,
		Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgECDSA, &tpm2.TPMSSignatureECC{
			Hash: tpm2.TPMAlgSHA256, SignatureR: pad(r), SignatureS: pad(s),
		}),
	}, nil
}

// errSigner marks the caller's own failure inside a policy callback.
var errSigner = errors.New("tpm: signer failed")
