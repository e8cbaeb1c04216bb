package sealing

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"github.com/sledvault/sledvault/tpm"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/reason"
)

const refLabel = "sledvault/pcr-policy/v1"

// policyRef ties approvals to one sled of one rack: a signature made for another is worth nothing.
func policyRef(rack ident.RackID, b ident.Baseboard) [32]byte {
	return sha256.Sum256(slices.Concat([]byte(refLabel), rack[:], []byte(b.String())))
}

func hash(parts ...[]byte) []byte {
	h := sha256.New()
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum(nil)
}

func code(cc tpm2.TPMCC) []byte { return binary.BigEndian.AppendUint32(nil, uint32(cc)) }

// sealPolicy is the authPolicy of the sealed object: PolicyAuthorize(key, ref), then PolicyAuthValue. PolicyAuthorize
// forgets what came before it, so the platform state stands in the approval and the auth value stands after.
func sealPolicy(keyName []byte, ref [32]byte) []byte {
	d := hash(hash(make([]byte, 32), code(tpm2.TPMCCPolicyAuthorize), keyName), ref[:])
	return hash(d, code(tpm2.TPMCCPolicyAuthValue))
}

// approvedPolicy is what an approval signs: PolicyPCR(values), then PolicyNV(counter <= sequence).
func approvedPolicy(values map[int][32]byte, counterName []byte, sequence uint64) ([]byte, error) {
	pcrs := slices.Sorted(maps.Keys(values))
	sel, err := tpm.Selection(pcrs)
	if err != nil {
		return nil, err
	}
	digest := sha256.New()
	for _, n := range pcrs {
		v := values[n]
		digest.Write(v[:])
	}
	d := hash(make([]byte, 32), code(tpm2.TPMCCPolicyPCR), tpm2.Marshal(sel), digest.Sum(nil))
	args := hash(operand(sequence), []byte{0, 0}, binary.BigEndian.AppendUint16(nil, uint16(tpm2.TPMEOUnsignedLE)))
	return hash(d, code(tpm2.TPMCCPolicyNV), args, counterName), nil
}

// operand is the sequence as PolicyNV compares it: counter (operation) operand.
func operand(sequence uint64) []byte { return binary.BigEndian.AppendUint64(nil, sequence) }

// approvalDigest is what the policy key signs.
func approvalDigest(approved []byte, ref [32]byte) []byte { return hash(approved, ref[:]) }

// policyKeyName is the Name under which the TPM knows a policy key.
func policyKeyName(key *ecdsa.PublicKey) ([]byte, error) {
	pub, err := tpm.PolicyKey(key)
	if err != nil {
		return nil, err
	}
	name, err := tpm2.ObjectName(&pub)
	if err != nil {
		return nil, usage("policy key: %v", err)
	}
	return name.Buffer, nil
}

// measured refuses platform states that anybody could make: a PCR of the firmware's that nothing was extended into, or
// that stands at its reset value of ones.
func measured(values map[int][32]byte) error {
	var empty []int
	for n, v := range values {
		if n <= 7 && (v == [32]byte{} || bytes.Count(v[:], []byte{0xff}) == len(v)) {
			empty = append(empty, n)
		}
	}
	if len(empty) == 0 {
		return nil
	}
	slices.Sort(empty)
	return reason.New(CodeUnmeas, hintUnmeas, "sealing: no measurement in PCR %v", empty)
}

// differing names the PCRs in which two states differ, for people.
func differing(have, want map[int][32]byte) string {
	var diff []int
	for n, v := range want {
		if have[n] != v {
			diff = append(diff, n)
		}
	}
	slices.Sort(diff)
	return fmt.Sprint(diff)
}
