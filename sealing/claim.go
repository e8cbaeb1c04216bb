package sealing

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"

	"github.com/google/go-tpm/tpm2"

	"github.com/sledvault/sledvault/tpm"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/reason"
)

// Claim is what the TPM remembers of the rack it belongs to (sealing.md §7).
type Claim struct {
	Version       uint8
	Rack          ident.RackID
	KeyDigest     [32]byte // SHA-256 of the membership public key
	SetGeneration uint64
	SetDigest     [32]byte // SHA-256 of the enrolment envelope
}

const (
	claimVersion = 1
	claimSize    = 1 + 16 + 32 + 8 + 32
)

func (c Claim) encode() []byte {
	b := append(make([]byte, 0, claimSize), claimVersion)
	b = append(append(b, c.Rack[:]...), c.KeyDigest[:]...)
	b = binary.BigEndian.AppendUint64(b, c.SetGeneration)
	return append(b, c.SetDigest[:]...)
}

func decodeClaim(b []byte) (*Claim, error) {
	if len(b) != claimSize || b[0] != claimVersion {
		return nil, reason.New(CodeClaim, hintClaim, "sealing: claim index of %d bytes, version %d, want %d bytes, version %d", len(b), b[:min(1, len(b))], claimSize, claimVersion)
	}
	c := &Claim{Version: b[0]}
	r := parts{b: b[1:]}
	copy(c.Rack[:], r.take(16))
	copy(c.KeyDigest[:], r.take(32))
	c.SetGeneration = r.u64()
	copy(c.SetDigest[:], r.take(32))
	return c, nil
}

func (p Params) claimIndex() tpm.Index {
	return tpm.Index{Index: tpm2.TPMHandle(p.ClaimIndex), Size: claimSize}
}

// First is what a start learns of a TPM before it has any name to pin.
type First struct {
	SRKName []byte
	Claim   *Claim           // nil: none, or one that was never written
	PCRs    map[int][32]byte // for Params.Measured; nil if there is a claim
}

// Look reads the claim index and, where there is none, the sealing PCRs, in one turn: only an enrolment asks for them, the
// opening of a seal leaves them to the TPM. The keys need not be enrolled yet, so the values are only as good as the bus.
// SRKName is what the state folders say of the storage root key, if they say anything. Otherwise as [ReadClaim].
func Look(ctx context.Context, p Params, srkName []byte) (f First, err error) {
	if p, err = p.checked(); err != nil {
		return f, err
	}
	err = p.TPM.Do(ctx, func(s *tpm.Session) error {
		srk, err := s.FirstSRK(srkName)
		if err != nil {
			return err
		}
		f.SRKName = bytes.Clone(srk.Name.Buffer)
		if f.Claim, err = readClaim(s, srk, p); err != nil || f.Claim != nil {
			return err
		}
		f.PCRs, err = s.ReadPCRs(srk, p.PCRs)
		return err
	})
	return f, err
}

// State reads the sealing PCRs, for Params.Measured of a sled that lost its seal and is to be enrolled again.
func State(ctx context.Context, p Params) (pcrs map[int][32]byte, err error) {
	if p, err = p.checked(); err != nil {
		return nil, err
	}
	err = p.TPM.Do(ctx, func(s *tpm.Session) error {
		srk, err := s.SRK(nil)
		if err != nil {
			return err
		}
		pcrs, err = s.ReadPCRs(srk, p.PCRs)
		return err
	})
	return pcrs, err
}

func readClaim(s *tpm.Session, srk tpm.Key, p Params) (*Claim, error) {
	raw, err := s.ReadIndex(srk, p.claimIndex())
	if errors.Is(err, tpm.ErrAbsent) || errors.Is(err, tpm.ErrEmpty) { // empty: an enrolment was cut off before its first write
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return decodeClaim(raw)
}

// ReadClaim reads the claim index; nil means that there is none, or one that was never written.
//
// A claim that is read is the TPM's: the session binds the index's Name. That there is none is an error code of the TPM,
// which anybody on the bus can forge, and an owner can delete the index: absence never proves that a sled is new. It may
// only lead to an enrolment, which the controller authorises, never to trust in anything.
func ReadClaim(ctx context.Context, p Params) (claim *Claim, err error) {
	if p, err = p.checked(); err != nil {
		return nil, err
	}
	err = p.TPM.Do(ctx, func(s *tpm.Session) error {
		srk, err := s.SRK(nil) // before the enrolment record is read there is nothing to pin to
		if err != nil {
			return err
		}
		claim, err = readClaim(s, srk, p)
		return err
	})
	return claim, err
}

// WriteClaim replaces what the TPM remembers. A missing index is defined anew.
func (u *Unsealed) WriteClaim(ctx context.Context, c Claim) error {
	auth, err := claimAuth(u.p.Alloc, u.seed)
	if err != nil {
		return err
	}
	defer auth.Destroy()
	return u.do(ctx, func(s *tpm.Session, srk tpm.Key) error {
		return auth.Use(func(a []byte) error { return putClaim(s, srk, u.p.claimIndex(), a, c) })
	})
}

func putClaim(s *tpm.Session, srk tpm.Key, x tpm.Index, auth []byte, c Claim) error {
	err := s.WriteIndex(srk, x, auth, c.encode(), false)
	if err == nil {
		return nil
	}
	if errors.Is(err, tpm.ErrAbsent) {
		if err := s.DefineIndex(srk, x, auth); err != nil {
			return err
		}
	}
	// Newly defined, or defined by an enrolment that was cut off before its first write.
	if first := s.WriteIndex(srk, x, auth, c.encode(), true); first != nil {
		return errors.Join(err, first)
	}
	return nil
}

// replaceClaim removes an index whose auth value is lost, and writes a new one.
func replaceClaim(s *tpm.Session, srk tpm.Key, x tpm.Index, auth []byte, c Claim) error {
	if err := remove(s, uint32(x.Index)); err != nil {
		return err
	}
	return putClaim(s, srk, x, auth, c)
}

// remove deletes an index if it is there.
func remove(s *tpm.Session, index uint32) error {
	if err := s.UndefineIndex(index); err != nil && !errors.Is(err, tpm.ErrAbsent) {
		return err
	}
	return nil
}

// Reset un-claims the TPM: counter and claim index go, and with the counter every sealed copy becomes useless for ever.
// It is a local act of the operator. The index numbers come from the params; files are the caller's.
func Reset(ctx context.Context, p Params) error {
	p, err := p.checked()
	if err != nil {
		return err
	}
	return p.TPM.Do(ctx, func(s *tpm.Session) error {
		return errors.Join(remove(s, p.CounterIndex), remove(s, p.ClaimIndex))
	})
}
