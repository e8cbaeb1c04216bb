package sealing

import (
	"context"
	"crypto/rand"
	"errors"
	"maps"
	"slices"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/sledvault/sledvault/tpm"
	"github.com/sledvault/sledvault/tpm/tpmtest"
	"github.com/sledvault/sledvault/vault/reason"
)

// errKilled is what a dead daemon sees of its TPM.
var errKilled = errors.New("killed")

// pace is every how many commands a daemon is killed beside those that change what the TPM keeps.
const pace = 8

// killAt kills the daemon at the n-th point: the TPM has executed the command, and nobody gets the answer. It tells whether
// the daemon lived. In between only sessions and transient objects come and go, which a new daemon flushes unseen.
func (s *sled) killAt(n int) (lived func() bool) {
	left, sent := n, 0
	s.bus.Intercept(func(cmd []byte, pass func([]byte) ([]byte, error)) ([]byte, error) {
		if left <= 0 {
			return nil, errKilled
		}
		rsp, err := pass(cmd)
		if sent++; lasting(cmd) || sent%pace == 0 {
			left--
		}
		if left <= 0 {
			return nil, errKilled
		}
		return rsp, err
	})
	return func() bool { return left > 0 }
}

// lasting tells a command that changes what the TPM keeps without power.
func lasting(cmd []byte) bool {
	return slices.ContainsFunc([]tpm2.TPMCC{
		tpm2.TPMCCNVDefineSpace, tpm2.TPMCCNVUndefineSpace, tpm2.TPMCCNVIncrement, tpm2.TPMCCNVWrite, tpm2.TPMCCEvictControl,
	}, func(cc tpm2.TPMCC) bool { return tpmtest.Is(cmd, cc) })
}

// restart is a new daemon on the same TPM.
func (s *sled) restart() {
	s.tb.Helper()
	s.bus.Intercept(nil)
	s.dut = s.bus.Open()
	s.p.TPM = s.dut
}

// life is an enrolment of a daemon, from its first look at the TPM to the keys that it leaves there.
func (s *sled) life(ctx context.Context, claim Claim) (*Unsealed, error) {
	first, err := Look(ctx, s.p, s.pins.SRKName)
	if err != nil {
		return nil, err
	}
	if first.Claim != nil {
		if first.PCRs, err = State(ctx, s.p); err != nil {
			return nil, err
		}
	}
	s.p.Measured = first.PCRs
	e, err := Begin(ctx, s.p)
	if err != nil {
		return nil, err
	}
	defer e.Destroy()
	d, err := e.Describe(ctx, [32]byte{9})
	if err != nil {
		return nil, err
	}
	id, enc, err := tpm.MakeCredential(rand.Reader, d.EKPublic, d.AKName, make([]byte, 32))
	if err != nil {
		return nil, err
	}
	if _, err := e.Activate(ctx, id, enc); err != nil {
		return nil, err
	}
	s.pins = Pins{SRKName: d.SRKName, EKName: d.EKName, AKName: d.AKName, CounterName: d.CounterName}
	u, err := e.Finish(ctx, testRack, claim)
	if err != nil {
		return nil, err
	}
	return u, KeepKeys(ctx, s.p, s.pins)
}

// TestKilledEnrolment kills the daemon in the middle of an enrolment, of a new sled and of one that was enrolled before.
// Whatever the TPM holds then, the next daemon can read it and enrol, and the seal opens.
func TestKilledEnrolment(t *testing.T) {
	t.Parallel()
	for name, again := range map[string]bool{"new": false, "again": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSled(t)
			n := 1
			for ; s.killed(n, again); n++ {
				s.afterKill(n)
			}
			if n < 10 {
				t.Errorf("killed at %d points", n-1)
			}
		})
	}
}

// killed makes an enrolment in which the daemon is killed at the n-th point; false if it is over before. Again says that the
// sled was enrolled before.
func (s *sled) killed(n int, again bool) bool {
	s.tb.Helper()
	ctx := context.Background()
	if err := Reset(ctx, s.p); err != nil {
		s.tb.Fatal(err)
	}
	if again {
		u, err := s.life(ctx, s.claim())
		if err != nil {
			s.tb.Fatalf("before kill %d: %v", n, err)
		}
		u.Destroy()
	}
	lived := s.killAt(n)
	u, err := s.life(ctx, s.claim())
	if u != nil {
		u.Destroy()
	}
	if lived() != (err == nil) {
		s.tb.Fatalf("kill %d: lived %v: %v", n, lived(), err)
	}
	s.restart()
	return err != nil
}

// afterKill enrols with whatever is left, and opens the seal.
func (s *sled) afterKill(n int) {
	s.tb.Helper()
	ctx := context.Background()
	u, err := s.life(ctx, s.claim())
	if err != nil {
		s.tb.Errorf("after kill %d: enrolled again: %s: %v", n, reason.CodeOf(err), err)
		return
	}
	defer u.Destroy()
	approvals := u.WithTickets(ctx, s.approve(u, s.counter(u)))
	s.restart()
	if claim, err := ReadClaim(ctx, s.p); err != nil || claim == nil || *claim != s.claim() {
		s.tb.Errorf("after kill %d: claim %+v, %v", n, claim, err)
	}
	opened, err := s.open(u.Blob(), approvals)
	if err != nil {
		s.tb.Errorf("after kill %d: open: %v", n, err)
		return
	}
	if boot, _ := opened.State(); !maps.Equal(boot, s.p.Measured) {
		s.tb.Errorf("after kill %d: opened for %x, measured %x", n, boot, s.p.Measured)
	}
	tpmtest.NothingLoaded(s.tb, s.dut)
}
