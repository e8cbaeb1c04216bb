package sealing

import (
	"crypto/ecdsa"
	"encoding/binary"
	"maps"
	"math/big"
	"slices"

	"github.com/sledvault/sledvault/vault/reason"
)

const (
	approvalMagic   = "svappr"
	approvalVersion = 1
	flagStaged      = 1
)

// ApprovalInfo is an approval's content (sealing.md §4).
type ApprovalInfo struct {
	Sequence uint64           // the approval holds while the counter is at most this
	Staged   bool             // for a state that has not been booted yet
	PCRs     map[int][32]byte // SHA-256 bank
	R, S     [32]byte         // ECDSA P-256 by the policy key
	// Ticket is what this sled's TPM gave when it verified the signature, or nil. It spares the next start the check in the
	// TPM and is worth nothing elsewhere: the TPM knows its own tickets by a secret that only a clear changes.
	Ticket []byte
}

// maxTicket is the largest digest of a ticket, in bytes.
const maxTicket = 64

func (a *ApprovalInfo) encode() Approval {
	out := append(make([]byte, 0, 512), approvalMagic...)
	out = binary.BigEndian.AppendUint16(out, approvalVersion)
	flags := byte(0)
	if a.Staged {
		flags = flagStaged
	}
	out = binary.BigEndian.AppendUint64(append(out, flags), a.Sequence)
	out = append(out, byte(len(a.PCRs)))
	for _, n := range slices.Sorted(maps.Keys(a.PCRs)) {
		v := a.PCRs[n]
		out = append(append(out, byte(n)), v[:]...)
	}
	out = append(append(out, a.R[:]...), a.S[:]...)
	if len(a.Ticket) == 0 {
		return out
	}
	out = binary.BigEndian.AppendUint16(out, uint16(len(a.Ticket)))
	return append(out, a.Ticket...)
}

func approvalError(format string, args ...any) error {
	return reason.New(CodeApproval, hintApproval, "sealing: approval: "+format, args...)
}

// DecodeApproval reads an approval. It does not check the signature.
func DecodeApproval(b Approval) (*ApprovalInfo, error) {
	r := parts{b: b}
	if string(r.take(len(approvalMagic))) != approvalMagic {
		return nil, approvalError("wrong first bytes")
	}
	if v := r.u16(); v != approvalVersion {
		return nil, approvalError("version %d, want %d: written by a newer release?", v, approvalVersion)
	}
	flags := r.take(1)
	a := &ApprovalInfo{Sequence: r.u64(), PCRs: map[int][32]byte{}}
	count := r.take(1)
	if r.short || flags[0]&^flagStaged != 0 || count[0] == 0 || count[0] > maxPCRs {
		return nil, approvalError("malformed head")
	}
	a.Staged = flags[0] == flagStaged
	last := -1
	for range int(count[0]) {
		e := r.take(33)
		if r.short || int(e[0]) <= last || e[0] >= 24 {
			return nil, approvalError("malformed list of PCRs")
		}
		last = int(e[0])
		a.PCRs[last] = [32]byte(e[1:])
	}
	sig := r.take(64)
	if len(r.b) > 0 {
		n := int(r.u16())
		if a.Ticket = r.take(n); n == 0 || n > maxTicket {
			return nil, approvalError("ticket of %d bytes, want 1 to %d", n, maxTicket)
		}
	}
	if r.short || len(r.b) != 0 {
		return nil, approvalError("%d bytes do not fit its lengths", len(b))
	}
	a.R, a.S = [32]byte(sig[:32]), [32]byte(sig[32:])
	return a, nil
}

// check verifies the signature and returns the approved policy.
func (a *ApprovalInfo) check(v *verified) ([]byte, error) {
	approved, err := approvedPolicy(a.PCRs, v.counter.Name, a.Sequence)
	if err != nil {
		return nil, err
	}
	if !ecdsa.Verify(v.PolicyKey, approvalDigest(approved, v.ref), new(big.Int).SetBytes(a.R[:]), new(big.Int).SetBytes(a.S[:])) {
		return nil, approvalError("signature of sequence %d does not verify", a.Sequence)
	}
	return approved, nil
}
