// Package sealing binds a sled's secrets to its TPM and to the software it booted.
//
// It owns what is sealed (a key-encryption key and a seed, 64 bytes), under which policy (platform state and counter,
// approved by a key derived from the seed, and an auth value that never crosses the TPM's bus), the bytes of blobs and
// approvals with their versions, the counter against rollback, and the claim index by which a TPM remembers its rack.
// It refuses a platform state without measurements, a TPM that is not the pinned one, and a key whose seed does not
// belong to the pinned counter. It decides nothing on an error code of the TPM: those are not authenticated.
//
// Begin with [Open]; a new sled goes through [Begin] and [Enrolment.Finish]. What is encrypted under the key is package
// vault/ledger. Implements sealing.md.
package sealing

import (
	"context"
	"io"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"github.com/sledvault/sledvault/tpm"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
)

// Blob is a sealed key in its wire form (sealing.md §3). It is not secret. [DecodeBlob] looks inside.
type Blob = []byte

// Approval is the signed permission for one platform state to open a blob, in its wire form (sealing.md §4). It is not
// secret. [DecodeApproval] looks inside.
type Approval = []byte

// DefaultPCRs are the sealing PCRs: firmware, option ROMs, secure boot, kernel image, kernel command line and
// shim's keys.
func DefaultPCRs() []int { return []int{0, 2, 7, 11, 12, 14} }

// Default NV indices, in the owner's range.
const (
	DefaultCounterIndex = 0x01805c01
	DefaultClaimIndex   = 0x01805c02
)

// Params says with what and for whom to seal.
type Params struct {
	TPM          *tpm.TPM
	Alloc        secret.Allocator
	Rand         io.Reader // keys, seeds, auth values
	Baseboard    ident.Baseboard
	PCRs         []int     // sealing PCRs; nil means DefaultPCRs
	CounterIndex uint32    // 0 means DefaultCounterIndex
	ClaimIndex   uint32    // 0 means DefaultClaimIndex
	AuthDirs     [2]string // state folders; each holds a copy of the auth value
	// Measured is what [Look] gave when the daemon started: the state that the next start will show. Firmware and
	// init systems go on measuring while the sled runs. nil means the values of the moment.
	Measured map[int][32]byte
	// QuotePCRs is what Describe quotes; nil means PCRs.
	QuotePCRs []int
	// Reasons counts damaged copies of the auth value; may be nil.
	Reasons *reason.Log
	// OncePerBoot approves the state at the opening only, not the one at the time of a save: with PCRs that change
	// while the sled runs, a restart of the daemon then cannot open the seal again until the next boot.
	OncePerBoot bool
}

// maxPCRs bounds a selection: values stand in approvals.
const maxPCRs = 24

func (p Params) checked() (Params, error) {
	if p.TPM == nil || p.Alloc == nil || p.Rand == nil {
		return p, usage("params lack TPM, allocator or randomness")
	}
	if err := p.Baseboard.Validate(); err != nil {
		return p, err
	}
	if p.PCRs == nil {
		p.PCRs = DefaultPCRs()
	}
	p.PCRs = slices.Compact(slices.Sorted(slices.Values(p.PCRs)))
	if len(p.PCRs) == 0 || len(p.PCRs) > maxPCRs || slices.ContainsFunc(p.PCRs, func(n int) bool { return n < 0 || n > 15 }) {
		return p, usage("sealing PCRs %v: want some of 0 to 15; the others can be reset by software", p.PCRs)
	}
	if p.QuotePCRs == nil {
		p.QuotePCRs = p.PCRs
	}
	if p.CounterIndex == 0 {
		p.CounterIndex = DefaultCounterIndex
	}
	if p.ClaimIndex == 0 {
		p.ClaimIndex = DefaultClaimIndex
	}
	if p.CounterIndex == p.ClaimIndex {
		return p, usage("counter and claim in one index 0x%08x", p.ClaimIndex)
	}
	return p, nil
}

// Pins are the Names of this sled's TPM objects, from its own enrolment record. Whatever answers under another Name is
// not our TPM.
type Pins struct {
	SRKName     []byte
	EKName      []byte // checked by CheckPins
	AKName      []byte // checked by CheckPins
	CounterName []byte // with the Written bit
}

// CheckPins makes all three keys and compares their Names. Errors: tpm-pinned-name and those of package tpm.
func CheckPins(ctx context.Context, p Params, pins Pins) error {
	p, err := p.checked()
	if err != nil {
		return err
	}
	return p.TPM.Do(ctx, func(s *tpm.Session) error {
		for _, k := range []struct {
			make func([]byte) (tpm.Key, error)
			name []byte
		}{{s.SRK, pins.SRKName}, {s.EK, pins.EKName}, {s.AK, pins.AKName}} {
			if len(k.name) == 0 {
				return usage("a pinned name is missing")
			}
			if _, err := k.make(k.name); err != nil {
				return err
			}
		}
		return nil
	})
}

// KeepKeys leaves storage root key and attestation key of the pins in the TPM's own memory (sealing.md §6), after an
// enrolment. An error does no harm: the keys are made at each start then.
func KeepKeys(ctx context.Context, p Params, pins Pins) error {
	if len(pins.SRKName) == 0 || len(pins.AKName) == 0 {
		return usage("pinned names of SRK and AK are missing")
	}
	return p.TPM.Do(ctx, func(s *tpm.Session) error { return s.Persist(pins.SRKName, pins.AKName) })
}

// ReadCounter reads the counter of the pins, authenticated, without opening the seal.
func ReadCounter(ctx context.Context, p Params, pins Pins) (value uint64, err error) {
	if p, err = p.checked(); err != nil {
		return 0, err
	}
	if len(pins.SRKName) == 0 || len(pins.CounterName) == 0 {
		return 0, usage("pinned names of SRK and counter are missing")
	}
	err = p.TPM.Do(ctx, func(s *tpm.Session) error {
		srk, err := s.SRK(pins.SRKName)
		if err != nil {
			return err
		}
		value, err = s.ReadCounter(srk, tpm.Counter{Index: tpm2.TPMHandle(p.CounterIndex), Name: pins.CounterName})
		return err
	})
	return value, err
}

func usage(format string, args ...any) error {
	e := reason.New(CodeUsage, "", "sealing: "+format, args...)
	e.Remedy = reason.Usage
	return e
}
