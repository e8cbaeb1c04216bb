package sealing

import (
	"bytes"
	"context"
	"maps"
	"slices"
	"sync"

	"github.com/google/go-tpm/tpm2"

	"github.com/sledvault/sledvault/tpm"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
)

// Unsealed is an opened seal: the key, and what it takes to approve platform states and to move the counter. It is safe
// for concurrent use. Destroy it when the daemon ends.
type Unsealed struct {
	p    Params
	pins Pins
	rack ident.RackID
	v    *verified
	key  secret.SealKey
	seed secret.Seed
	auth secret.AuthValue
	boot map[int][32]byte // the state at the opening

	opened uint64 // the counter at the opening

	mu     sync.Mutex
	staged map[int][32]byte // a state that is to come; nil if none
}

// do runs f with the TPM to itself and the pinned storage root key.
func (u *Unsealed) do(ctx context.Context, f func(*tpm.Session, tpm.Key) error) error {
	return u.p.TPM.Do(ctx, func(s *tpm.Session) error {
		srk, err := s.SRK(u.pins.SRKName)
		if err != nil {
			return err
		}
		return f(s, srk)
	})
}

// Key is the key of the ledger. It stays the receiver's.
func (u *Unsealed) Key() secret.SealKey { return u.key }

// Blob is the sealed form of the key.
func (u *Unsealed) Blob() Blob { return bytes.Clone(u.v.raw) }

// CounterName is the pinned Name of the counter.
func (u *Unsealed) CounterName() []byte { return bytes.Clone(u.v.counter.Name) }

// Destroy wipes key, seed and auth value.
func (u *Unsealed) Destroy() {
	u.key.Destroy()
	u.seed.Destroy()
	u.auth.Destroy()
}

// Approve signs what may open the blob while the counter is at most sequence: the state at the opening, the state of the
// moment if it differs, and with sequence+1 a staged one. All approvals are new: what is not signed again dies with the
// next increment.
func (u *Unsealed) Approve(ctx context.Context, sequence uint64) (out []Approval, err error) {
	err = u.p.TPM.Do(ctx, func(s *tpm.Session) error {
		states, err := u.states(s, sequence)
		if err != nil {
			return err
		}
		for i := range states {
			if err := u.sign(&states[i]); err != nil {
				return err
			}
			out = append(out, states[i].encode())
		}
		return nil
	})
	return out, err
}

// Approves reports whether approvals that stand somewhere are what [Unsealed.Approve] would sign now.
func (u *Unsealed) Approves(ctx context.Context, sequence uint64, have []Approval) (bool, error) {
	var states []ApprovalInfo
	if err := u.p.TPM.Do(ctx, func(s *tpm.Session) (err error) {
		states, err = u.states(s, sequence)
		return err
	}); err != nil || len(states) != len(have) {
		return false, err
	}
	for _, raw := range have {
		a, err := DecodeApproval(raw)
		if err != nil {
			return false, nil //nolint:nilerr // it is no approval, so others must be signed
		}
		if _, err := a.check(u.v); err != nil {
			return false, nil //nolint:nilerr // the same
		}
		if !slices.ContainsFunc(states, func(s ApprovalInfo) bool {
			return s.Sequence == a.Sequence && s.Staged == a.Staged && maps.Equal(s.PCRs, a.PCRs)
		}) {
			return false, nil
		}
	}
	return true, nil
}

// states lists what may open the blob while the counter is at most sequence. No two of them are equal.
func (u *Unsealed) states(s *tpm.Session, sequence uint64) ([]ApprovalInfo, error) {
	states := []ApprovalInfo{{Sequence: sequence, PCRs: u.boot}}
	if !u.p.OncePerBoot {
		now, err := u.moment(s)
		if err != nil {
			return nil, err
		}
		if now != nil {
			states = append(states, ApprovalInfo{Sequence: sequence, PCRs: now})
		}
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.staged != nil && !maps.Equal(u.staged, u.boot) {
		states = append(states, ApprovalInfo{Sequence: sequence + 1, PCRs: u.staged, Staged: true})
	}
	return states, nil
}

// moment is the platform state now, nil if it is still the one at the opening. Only a state that is to be approved needs to
// be the TPM's own word: whoever hides a change on the bus keeps it from being approved, and nothing more.
func (u *Unsealed) moment(s *tpm.Session) (map[int][32]byte, error) {
	now, err := s.QuotedPCRs(u.p.PCRs)
	if err != nil || maps.Equal(now, u.boot) {
		return nil, err
	}
	srk, err := s.SRK(u.pins.SRKName)
	if err != nil {
		return nil, err
	}
	if now, err = s.ReadPCRs(srk, u.p.PCRs); err != nil || maps.Equal(now, u.boot) {
		return nil, err
	}
	return now, nil
}

// WithTickets has the TPM verify approvals and puts its tickets beside the signatures, so that the next start need not. Where
// the TPM does not, the approval stays as it is and is verified at every start.
func (u *Unsealed) WithTickets(ctx context.Context, approvals []Approval) []Approval {
	out := slices.Clone(approvals)
	_ = u.p.TPM.Do(ctx, func(s *tpm.Session) error { // what failed has no ticket
		for i, raw := range approvals {
			info, err := DecodeApproval(raw)
			if err != nil {
				return err
			}
			policy, err := info.check(u.v)
			if err != nil {
				return err
			}
			t, err := ticket(s, u.v, &approval{info, policy})
			if err != nil {
				return err
			}
			if info.Ticket = t.Digest.Buffer; t.Hierarchy == tpm2.TPMRHOwner && len(info.Ticket) <= maxTicket {
				out[i] = info.encode()
			}
		}
		return nil
	})
	return out
}

// sign checks and signs one approval.
func (u *Unsealed) sign(a *ApprovalInfo) error {
	if err := measured(a.PCRs); err != nil {
		return err
	}
	policy, err := approvedPolicy(a.PCRs, u.v.counter.Name, a.Sequence)
	if err != nil {
		return err
	}
	r, s, err := sign(u.seed, u.p.Rand, labelPolicy, approvalDigest(policy, u.v.ref))
	if err != nil {
		return err
	}
	a.R, a.S = [32]byte(r), [32]byte(s)
	return nil
}

// Stage names a platform state that the next boot may show, before an update of firmware or kernel. It takes effect with
// the approvals of the next save. nil takes a staged state back.
func (u *Unsealed) Stage(values map[int][32]byte) error {
	if values != nil {
		if len(values) != len(u.p.PCRs) {
			return usage("staged state has %d PCRs, want %d", len(values), len(u.p.PCRs))
		}
		for _, n := range u.p.PCRs {
			if _, ok := values[n]; !ok {
				return usage("staged state lacks PCR %d", n)
			}
		}
		if err := measured(values); err != nil {
			return err
		}
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.staged = maps.Clone(values)
	return nil
}

// State is the platform state at the opening, and the staged one or nil.
func (u *Unsealed) State() (boot, staged map[int][32]byte) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return maps.Clone(u.boot), maps.Clone(u.staged)
}

// Opened is what the counter read when the seal was opened, authenticated.
func (u *Unsealed) Opened() uint64 { return u.opened }

// Counter reads the counter, authenticated.
func (u *Unsealed) Counter(ctx context.Context) (value uint64, err error) {
	err = u.do(ctx, func(s *tpm.Session, srk tpm.Key) error {
		value, err = s.ReadCounter(srk, u.v.counter)
		return err
	})
	return value, err
}

// Increment moves the counter from the given value by one and returns what it has then. It is read before and after, both
// authenticated: an answer that was lost, delayed or forged never counts twice, and never counts for an increment.
func (u *Unsealed) Increment(ctx context.Context, from uint64) (value uint64, err error) {
	err = u.do(ctx, func(s *tpm.Session, srk tpm.Key) error {
		value, err = s.Increment(srk, u.v.counter, from, incrementer(u.seed, u.p.Rand))
		return err
	})
	return value, err
}

// TestUnseal opens a blob with its approvals, as the next start will, and compares what comes out with what is in use.
func (u *Unsealed) TestUnseal(ctx context.Context, blob Blob, approvals []Approval) error {
	v, err := verify(u.p, u.pins, u.rack, blob)
	if err != nil {
		return err
	}
	t := &Unsealed{p: u.p, pins: u.pins, rack: u.rack, v: v}
	defer t.Destroy()
	err = u.do(ctx, func(s *tpm.Session, srk tpm.Key) error {
		return t.open(s, srk, []secret.AuthValue{u.auth}, approvals)
	})
	if err != nil {
		return err
	}
	if !t.key.Equal(u.key) || !t.seed.Equal(u.seed) {
		return reason.New(CodeSeed, hintSeed, "sealing: the blob holds another secret than the one in use")
	}
	return nil
}
