// Boot path 5/9: after sp/identity.go, before vault/driver.go.

package sealing

import (
	"context"
	"errors"
	"maps"
	"slices"

	"github.com/sledvault/sledvault/tpm"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
)

// Open opens the seal of an enrolled sled: once per boot.
//
// The blob is checked against the enrolment record before the TPM sees it. Of the approvals, one is used that was signed
// by this sled for the platform state of the moment and that the counter has not outlived; the TPM checks all of that
// again. What comes out must hold the seed that the pinned counter's key was derived from, so a blob that somebody else
// sealed in this TPM is refused.
//
// Errors: seal-blob, seal-approval, seal-pcr (naming the PCRs that changed), seal-auth, seal-unseal, seal-seed, and those
// of package tpm. None of them is proof of anything: the caller keeps what it has.
func Open(ctx context.Context, p Params, pins Pins, rack ident.RackID, blob Blob, approvals []Approval) (*Unsealed, error) {
	p, err := p.checked()
	if err != nil {
		return nil, err
	}
	if len(pins.SRKName) == 0 || len(pins.CounterName) == 0 || rack.IsZero() {
		return nil, usage("pinned names or rack id are missing")
	}
	v, err := verify(p, pins, rack, blob)
	if err != nil {
		return nil, err
	}
	auths, err := readAuth(p)
	if err != nil {
		return nil, err
	}
	defer destroyAll(auths)
	u := &Unsealed{p: p, pins: pins, rack: rack, v: v}
	err = u.do(ctx, func(s *tpm.Session, srk tpm.Key) error { return u.open(s, srk, auths, approvals) })
	if err != nil {
		u.Destroy()
		return nil, err
	}
	return u, nil
}

func destroyAll(auths []secret.AuthValue) {
	for _, a := range auths {
		a.Destroy()
	}
}

func (u *Unsealed) open(s *tpm.Session, srk tpm.Key, auths []secret.AuthValue, approvals []Approval) error {
	counter, err := s.ReadCounter(srk, u.v.counter)
	if err != nil {
		return reason.Wrap(err, CodeCounter, hintApproval, "sealing: read counter")
	}
	u.opened = counter
	live, refusals := admitted(u.v, counter, approvals)
	read := s.QuotedPCRs
	if several(live) {
		read = func(pcrs []int) (map[int][32]byte, error) { return s.ReadPCRs(srk, pcrs) }
	}
	state, err := read(u.p.PCRs)
	if err != nil {
		return err
	}
	chosen, staged, err := choose(live, refusals, state, read)
	if err != nil {
		return err
	}
	var errs []error
	for _, auth := range auths {
		if err := u.unseal(s, srk, auth, chosen); err != nil {
			errs = append(errs, err)
			continue
		}
		u.boot, u.staged = maps.Clone(chosen.info.PCRs), staged
		if u.auth, err = auth.Clone(u.p.Alloc); err != nil {
			return err
		}
		repairAuth(u.p, auth)
		return nil
	}
	return errors.Join(errs...)
}

// approval is one that was checked and fits the moment.
type approval struct {
	info   *ApprovalInfo
	policy []byte // what was signed
}

// admitted sorts out the approvals that this sled signed and that the counter has not outlived.
func admitted(v *verified, counter uint64, approvals []Approval) (live []*approval, refusals []error) {
	for _, raw := range approvals {
		info, err := DecodeApproval(raw)
		if err != nil {
			refusals = append(refusals, err)
			continue
		}
		policy, err := info.check(v)
		switch {
		case err != nil:
			refusals = append(refusals, err)
		case info.Sequence < counter:
			refusals = append(refusals, approvalError("outlived: have sequence %d, want at least the counter's %d", info.Sequence, counter))
		default:
			live = append(live, &approval{info, policy})
		}
	}
	return live, refusals
}

// several reports whether more than one state is approved. The state at the opening is approved again with every save, so
// it must be the one that runs. Policy commands cross the bus without a session: who forges the registers there, and
// exchanges the approval under way, would choose among the approved states. So the registers must be the TPM's own word
// then, which costs a session. If there is only one, nobody on the bus has another to put in its place (sealing.md §8 on who
// writes the disks as well).
func several(live []*approval) bool {
	return slices.ContainsFunc(live, func(a *approval) bool { return !maps.Equal(a.info.PCRs, live[0].info.PCRs) })
}

// choose finds the approval for the state of the moment; the highest sequence wins. It also returns the state of a staged
// approval that is still to come, nil if there is none.
func choose(live []*approval, refusals []error, state map[int][32]byte, read registers) (best *approval, staged map[int][32]byte, err error) {
	for _, a := range live {
		same, have, err := fits(read, state, a.info.PCRs)
		switch {
		case err != nil:
			return nil, nil, err
		case same && (best == nil || a.info.Sequence > best.info.Sequence || (a.info.Sequence == best.info.Sequence && maps.Equal(a.info.PCRs, state))):
			best = a // of equals, the one over the configured PCRs: so a new selection takes over
		case same:
		case a.info.Staged:
			staged = a.info.PCRs
		default:
			refusals = append(refusals, reason.New(CodePCR, hintPCR, "sealing: platform state not approved: PCR %s changed", differing(have, a.info.PCRs)))
		}
	}
	if best != nil {
		return best, staged, nil
	}
	if len(refusals) == 0 {
		return nil, nil, approvalError("none for this state: have %d", len(live))
	}
	// The most telling one first: a changed PCR, if there is one.
	for _, r := range refusals {
		if errors.Is(r, ErrPCR) {
			return nil, nil, r
		}
	}
	return nil, nil, errors.Join(refusals...)
}

// registers is a way to read PCRs.
type registers func(pcrs []int) (map[int][32]byte, error)

// fits compares a platform state with an approved one, reading PCRs that the configuration no longer names.
func fits(read registers, state, want map[int][32]byte) (bool, map[int][32]byte, error) {
	var missing []int
	for n := range want {
		if _, ok := state[n]; !ok {
			missing = append(missing, n)
		}
	}
	if len(missing) > 0 {
		more, err := read(missing)
		if err != nil {
			return false, nil, err
		}
		state = maps.Clone(state)
		maps.Copy(state, more)
	}
	for n, v := range want {
		if state[n] != v {
			return false, state, nil
		}
	}
	return true, state, nil
}
