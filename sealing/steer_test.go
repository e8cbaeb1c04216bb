package sealing

import (
	"bytes"
	"maps"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/sledvault/sledvault/tpm"
	"github.com/sledvault/sledvault/tpm/tpmtest"
)

// TestSteeredOpening: an interposer shows the host the registers of the version before, and has the TPM take the approval
// of the version that really runs. A host that believes it would go on approving the old version for ever: an update would
// never be committed. Where more than one state is approved, the registers are read so that nobody can forge them.
func TestSteeredOpening(t *testing.T) {
	t.Parallel()
	s := newSled(t)
	u := s.enrol()
	c := s.counter(u)
	old, _ := u.State()
	var shown []byte // the answer to a read of the registers under the old version
	s.bus.Interpose(nil, func(cmd, rsp []byte) []byte {
		if tpmtest.Is(cmd, tpm2.TPMCCPCRRead) {
			shown = rsp
		}
		return rsp
	})
	tpmtest.Do(t, s.dut, func(x *tpm.Session) error { _, err := x.QuotedPCRs(DefaultPCRs()); return err })
	s.bus.Interpose(nil, nil)

	s.reboot("two")
	next, err := State(t.Context(), s.p)
	if err != nil {
		t.Fatal(err)
	}
	if err := u.Stage(next); err != nil {
		t.Fatal(err)
	}
	u.p.OncePerBoot = true // the old version and the staged one, not the state of the moment
	approvals := s.approve(u, c)
	if len(approvals) != 2 {
		t.Fatalf("%d approvals, want 2", len(approvals))
	}
	s.bus.Intercept(steer(t, u, shown, approvals[0], approvals[1]))
	v, err := s.open(u.Blob(), approvals)
	s.bus.Intercept(nil)
	if err != nil {
		t.Fatalf("not opened: %v", err) // a denial would be no harm, but it is not what happens
	}
	if boot, _ := v.State(); !maps.Equal(boot, next) {
		t.Errorf("opened for another state than the running one; for the old one: %v", maps.Equal(boot, old))
	}
	tpmtest.NothingLoaded(t, s.dut)
}

// steer is the interposer: it puts the approval of what runs in place of the one that the host chooses.
func steer(t *testing.T, u *Unsealed, shown []byte, chosen, runs Approval) tpmtest.Interceptor {
	t.Helper()
	from, to := pieces(t, u, chosen), pieces(t, u, runs)
	return func(cmd []byte, pass func([]byte) ([]byte, error)) ([]byte, error) {
		switch {
		case tpmtest.Is(cmd, tpm2.TPMCCPCRRead) && cmd[1] == byte(tpm2.TPMSTNoSessions&0xff):
			return bytes.Clone(shown), nil
		case tpmtest.Is(cmd, tpm2.TPMCCVerifySignature), tpmtest.Is(cmd, tpm2.TPMCCPolicyAuthorize), tpmtest.Is(cmd, tpm2.TPMCCPolicyNV):
			for i := range from {
				cmd = bytes.ReplaceAll(cmd, from[i], to[i])
			}
		}
		return pass(cmd)
	}
}

// pieces are the parts of an approval as they pass the bus.
func pieces(t *testing.T, u *Unsealed, raw Approval) [][]byte {
	t.Helper()
	info, err := DecodeApproval(raw)
	if err != nil {
		t.Fatal(err)
	}
	policy, err := info.check(u.v)
	if err != nil {
		t.Fatal(err)
	}
	return [][]byte{policy, approvalDigest(policy, u.v.ref), info.R[:], info.S[:], operand(info.Sequence)}
}
