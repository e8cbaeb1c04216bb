package rot

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"slices"
)

// DefaultPCRs is the selection of a quote: the firmware's registers, and those of shim and unified kernel images.
// GRUB hosts use 8 and 9 in place of 11 to 13.
func DefaultPCRs() []int { return []int{0, 1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 14} }

// firmwarePCRs is how many registers the firmware owns: PCR 0 to 7.
const firmwarePCRs = 8

const counterLabel = "sledvault/counter/v1"

// CounterExtra is the extraData of a counter certificate. A certificate gives a lower bound, so it needs no nonce.
func CounterExtra(akName []byte) [32]byte {
	return sha256.Sum256(append([]byte(counterLabel), akName...))
}

// VerifiedQuote is what a quote proves once its signature, its extraData and its PCR values were checked.
type VerifiedQuote struct {
	Clock    Clock
	Firmware uint64
	PCRs     map[int][32]byte
}

// VerifyQuote checks a quote made with a given extraData over exactly the PCRs asked for, against the values submitted
// in ascending order. The key must have passed [CheckAKPublic] and be the expected one.
func VerifyQuote(attest, sig, akPublic []byte, extra [32]byte, pcrs []int, values [][32]byte) (*VerifiedQuote, error) {
	a, err := verifyAttest(attest, sig, akPublic, stAttestQuote)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(a.Extra, extra[:]) {
		return nil, refuse(CodeBinding, "quote refused: it answers another request")
	}
	return checkPCRs(a, pcrs, values)
}

// checkPCRs compares the selection exactly, then the digest, then refuses registers that nobody extended.
func checkPCRs(a *Attest, pcrs []int, values [][32]byte) (*VerifiedQuote, error) {
	if err := checkSelection(pcrs); err != nil {
		return nil, err
	}
	if !slices.Equal(a.Selection, pcrs) {
		return nil, refuse(CodePCRSelection, "quote refused: have PCRs %v, want exactly %v", a.Selection, pcrs)
	}
	if len(values) != len(pcrs) {
		return nil, refuse(CodePCRDigest, "quote refused: have %d PCR values, want %d", len(values), len(pcrs))
	}
	h := sha256.New()
	out := make(map[int][32]byte, len(pcrs))
	for i, v := range values {
		h.Write(v[:])
		out[pcrs[i]] = v
	}
	if !bytes.Equal(a.PCRDigest, h.Sum(nil)) {
		return nil, refuse(CodePCRDigest, "quote refused: the submitted PCR values are not the quoted ones")
	}
	for i, pcr := range pcrs {
		if pcr < firmwarePCRs && (values[i] == [32]byte{} || values[i] == allOnes()) {
			return nil, refuse(CodePCRUnextended, "quote refused: PCR %d was never extended by the firmware", pcr)
		}
	}
	return &VerifiedQuote{Clock: a.Clock, Firmware: a.Firmware, PCRs: out}, nil
}

func allOnes() (v [32]byte) {
	for i := range v {
		v[i] = 0xff
	}
	return v
}

// lastStaticPCR is the last register that only a reset clears. Software may reset 16 and 23, a dynamic launch the others.
const lastStaticPCR = 15

// checkSelection refuses a selection that proves nothing: PCR 0 to 7 are always asked for, and none that can be reset.
func checkSelection(pcrs []int) error {
	for i, p := range pcrs {
		if p < 0 || p > lastStaticPCR || i > 0 && p <= pcrs[i-1] {
			return refuse(CodePCRSelection, "PCR selection refused: have %v, want ascending numbers up to 15", pcrs)
		}
	}
	for p := range firmwarePCRs {
		if !slices.Contains(pcrs, p) {
			return refuse(CodePCRSelection, "PCR selection refused: have %v, want at least PCR 0 to 7", pcrs)
		}
	}
	return nil
}

// VerifyCertify checks that the attestation key certified an object, and returns nothing more than that: the object
// with this Name lives in the same TPM.
func VerifyCertify(attest, sig, akPublic []byte, extra [32]byte, objectName []byte) error {
	a, err := verifyAttest(attest, sig, akPublic, stAttestCertify)
	if err != nil {
		return err
	}
	if !bytes.Equal(a.Extra, extra[:]) {
		return refuse(CodeBinding, "certified object refused: the certificate answers another request")
	}
	if len(objectName) == 0 || !bytes.Equal(a.Name, objectName) {
		return refuse(CodeAK, "certified object refused: have name %x, want %x", a.Name, objectName)
	}
	return nil
}

// CounterReading is what a counter certificate proves.
type CounterReading struct {
	Value uint64
	Clock Clock
}

// VerifyCounter checks a certificate of the whole counter index with a given Name.
func VerifyCounter(attest, sig, akPublic []byte, extra [32]byte, counterName []byte) (*CounterReading, error) {
	a, err := verifyAttest(attest, sig, akPublic, stAttestNV)
	if err != nil {
		return nil, refuseBecause(err, CodeCounter, "counter certificate refused")
	}
	switch {
	case !bytes.Equal(a.Extra, extra[:]):
		return nil, refuse(CodeCounter, "counter certificate refused: it was made for another purpose or key")
	case len(counterName) == 0 || !bytes.Equal(a.Name, counterName):
		return nil, refuse(CodeCounter, "counter certificate refused: have index %x, want %x", a.Name, counterName)
	case a.NVOffset != 0 || len(a.NVData) != counterNVLength:
		return nil, refuse(CodeCounter, "counter certificate refused: have offset %d and %d bytes, want offset 0 and %d bytes",
			a.NVOffset, len(a.NVData), counterNVLength)
	}
	return &CounterReading{Value: binary.BigEndian.Uint64(a.NVData), Clock: a.Clock}, nil
}

// verifyAttest checks key, signature, magic and type, in this order.
func verifyAttest(attest, sig, akPublic []byte, wantType uint16) (*Attest, error) {
	key, err := publicKey(akPublic)
	if err != nil {
		return nil, refuseBecause(err, CodeAK, "attestation key refused")
	}
	if err := verifySignature(key, attest, sig); err != nil {
		return nil, err
	}
	a, err := parseAttest(attest, wantType)
	if errors.Is(err, errSelection) {
		return nil, refuseBecause(err, CodePCRSelection, "quote refused")
	}
	if err != nil {
		return nil, refuseBecause(err, CodeAttestType, "attestation refused")
	}
	return a, nil
}

func verifySignature(key *ecdsa.PublicKey, signed, sig []byte) error {
	r, s, err := parseSignature(sig)
	if err != nil {
		return refuseBecause(err, CodeSignature, "attestation refused")
	}
	digest := sha256.Sum256(signed)
	if !ecdsa.Verify(key, digest[:], r, s) {
		return refuse(CodeSignature, "attestation refused: the attestation key did not sign it")
	}
	return nil
}
