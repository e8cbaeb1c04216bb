package sealing

import (
	"bytes"
	"errors"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/sledvault/sledvault/tpm"
	"github.com/sledvault/sledvault/tpm/tpmtest"
	"github.com/sledvault/sledvault/vault/secret"
)

// TestAttack: what somebody on the TPM's bus, on its media, or with its owner's rights can do. Slugs as in
// docs/threat-model.md. In all of them the tap of tpmtest also looks for key, seed and auth values on the bus.
func TestAttack(t *testing.T) {
	t.Parallel()
	t.Run("tpm-bus", attackBus)
	t.Run("blind-increment", attackIncrement)
	t.Run("nv-redefine", attackRedefine)
	t.Run("wiped-state", attackWiped)
	t.Run("spliced-approval", attackSplice)
	t.Run("planted-blob", attackPlanted)
	t.Run("moved-tpm", attackMoved)
}

const (
	decryptFlag = 0x20 // parameter of the command is encrypted
	encryptFlag = 0x40 // parameter of the answer is encrypted
)

// clearing takes a session flag out of every command of one kind.
func clearing(cc tpm2.TPMCC, handles int, flag byte) func([]byte) []byte {
	return func(cmd []byte) []byte {
		if tpmtest.Is(cmd, cc) {
			for _, at := range tpmtest.SessionFlags(cmd, handles) {
				cmd[at] &^= flag
			}
		}
		return cmd
	}
}

// flipping changes one bit in the answers to one kind of command, counted from the end if at is negative.
func flipping(cc tpm2.TPMCC, at int) func(cmd, rsp []byte) []byte {
	return func(cmd, rsp []byte) []byte {
		if !tpmtest.Is(cmd, cc) || tpmtest.Code(rsp) != 0 {
			return rsp
		}
		if at < 0 {
			rsp[len(rsp)+at] ^= 1
		} else {
			rsp[at] ^= 1
		}
		return rsp
	}
}

// failing answers one kind of command with an error code, without passing it on.
func failing(cc tpm2.TPMCC, rc tpm2.TPMRC) tpmtest.Interceptor {
	return func(cmd []byte, pass func([]byte) ([]byte, error)) ([]byte, error) {
		if tpmtest.Is(cmd, cc) {
			return tpmtest.ErrorAnswer(rc), nil
		}
		return pass(cmd)
	}
}

func attackBus(t *testing.T) {
	s := newSled(t)
	u := s.enrol()
	approvals := s.approve(u, s.counter(u))
	refused := func(name string) {
		t.Helper()
		if _, err := s.open(u.Blob(), approvals); err == nil {
			t.Errorf("%s: opened", name)
		}
		s.bus.Interpose(nil, nil)
		s.bus.Intercept(nil)
		if _, err := s.open(u.Blob(), approvals); err != nil {
			t.Fatalf("after %s: %v", name, err)
		}
	}
	fresh := func() { // a start of the daemon: no key is kept
		s.dut = s.bus.Open()
		s.p.TPM = s.dut
	}
	for name, f := range map[string]func([]byte) []byte{
		"unseal in clear": clearing(tpm2.TPMCCUnseal, 1, encryptFlag),
		"another storage key": func(cmd []byte) []byte {
			if tpmtest.Is(cmd, tpm2.TPMCCCreatePrimary) {
				// One bit of the template's unique field gives another key.
				i := bytes.LastIndex(cmd, make([]byte, 32))
				cmd[i] ^= 1
			}
			return cmd
		},
	} {
		fresh()
		s.bus.Interpose(f, nil)
		refused(name)
	}
	for name, f := range map[string]func(cmd, rsp []byte) []byte{
		"altered secret":   flipping(tpm2.TPMCCUnseal, 20),
		"altered counter":  flipping(tpm2.TPMCCNVRead, 10+4+2+7),
		"altered PCRs":     flipping(tpm2.TPMCCPCRRead, 10+4+4+10+4+2+5),
		"altered key":      flipping(tpm2.TPMCCCreatePrimary, 80),
		"altered session":  flipping(tpm2.TPMCCStartAuthSession, -1),
		"altered ticket":   flipping(tpm2.TPMCCVerifySignature, -1),
		"altered MAC":      flipping(tpm2.TPMCCUnseal, -1),
		"replayed unseal":  replaying(tpm2.TPMCCUnseal),
		"replayed counter": replaying(tpm2.TPMCCNVRead),
	} {
		fresh()
		s.bus.Interpose(nil, f)
		if name[:6] == "replay" {
			if _, err := s.open(u.Blob(), approvals); err != nil { // to be recorded
				t.Fatal(err)
			}
		}
		refused(name)
	}
	for _, cc := range []tpm2.TPMCC{
		tpm2.TPMCCUnseal, tpm2.TPMCCNVRead, tpm2.TPMCCPolicyNV, tpm2.TPMCCPolicyAuthorize, tpm2.TPMCCLoad, tpm2.TPMCCCreatePrimary, tpm2.TPMCCPCRRead,
	} {
		fresh()
		s.bus.Intercept(failing(cc, tpm2.TPMRCPolicyFail))
		refused("forged error")
	}
	attackKept(t, s, refused)
	replayedState(t, s, u, approvals)
	attackEnrolment(t, s)
	tpmtest.NothingLoaded(t, s.dut)
}

// attackKept: a key that is kept between turns gets the interposer no further than one that is made.
func attackKept(t *testing.T, s *sled, refused func(string)) {
	t.Helper()
	s.bus.Interpose(nil, flipping(tpm2.TPMCCContextLoad, 13))
	refused("another handle for the kept key")
	s.bus.Intercept(failing(tpm2.TPMCCContextLoad, tpm2.TPMRCHandle))
	if err := s.dut.Do(t.Context(), func(ts *tpm.Session) error { _, err := ts.SRK(s.pins.SRKName); return err }); err != nil {
		t.Errorf("a kept key that does not load is not made again: %v", err)
	}
	s.bus.Intercept(nil)
}

// replayedState: the platform state that the host sees is the approved one of before, the TPM's is another.
func replayedState(t *testing.T, s *sled, u *Unsealed, approvals []Approval) {
	t.Helper()
	s.bus.Interpose(nil, replaying(tpm2.TPMCCPCRRead))
	if _, err := s.open(u.Blob(), approvals); err != nil { // to be recorded
		t.Fatal(err)
	}
	s.extend(7, "evil")
	if _, err := s.open(u.Blob(), approvals); err == nil {
		t.Error("replayed PCRs: opened")
	}
	s.bus.Interpose(nil, nil)
	s.reboot("one")
	if _, err := s.open(u.Blob(), approvals); err != nil {
		t.Fatalf("after replayed PCRs: %v", err)
	}
}

// replaying records the first answer to one kind of command and gives it to the later ones.
func replaying(cc tpm2.TPMCC) func(cmd, rsp []byte) []byte {
	var old []byte
	return func(cmd, rsp []byte) []byte {
		if !tpmtest.Is(cmd, cc) {
			return rsp
		}
		if old == nil {
			old = bytes.Clone(rsp)
		}
		return bytes.Clone(old)
	}
}

// attackEnrolment: the seal is made with a session that hides the secret, or not at all.
func attackEnrolment(t *testing.T, s *sled) {
	t.Helper()
	for _, cc := range []tpm2.TPMCC{tpm2.TPMCCCreate, tpm2.TPMCCNVDefineSpace} {
		e, err := Begin(t.Context(), s.p)
		if err != nil {
			t.Fatal(err)
		}
		s.register(e.key.Use)
		s.register(e.seed.Use)
		s.bus.Interpose(clearing(cc, 1, decryptFlag), nil)
		if _, err := e.Finish(t.Context(), testRack, s.claim()); err == nil {
			t.Errorf("command %x without encryption: enrolled", uint32(cc))
		}
		s.bus.Interpose(nil, nil)
		if _, err := e.Finish(t.Context(), testRack, s.claim()); err == nil {
			t.Error("one enrolment finished twice")
		}
	}
	s.enrol()
}

// attackIncrement: answers to NV_Increment are lost, forged and repeated.
func attackIncrement(t *testing.T) {
	s := newSled(t)
	u := s.enrol()
	ctx := t.Context()
	c := s.counter(u)
	on := func(answer func(rsp []byte) ([]byte, error), passed bool) {
		s.bus.Intercept(func(cmd []byte, pass func([]byte) ([]byte, error)) ([]byte, error) {
			if !tpmtest.Is(cmd, tpm2.TPMCCNVIncrement) {
				return pass(cmd)
			}
			var rsp []byte
			if passed {
				var err error
				if rsp, err = pass(cmd); err != nil {
					return nil, err
				}
			}
			return answer(rsp)
		})
	}
	errorCode := func([]byte) ([]byte, error) { return tpmtest.ErrorAnswer(tpm2.TPMRCNVRate), nil }

	on(errorCode, true) // it counted, and says that it failed
	if v, err := u.Increment(ctx, c); err != nil || v != c+1 {
		t.Errorf("answer lost: have %d, %v, want %d", v, err, c+1)
	}
	on(errorCode, false) // it never got there
	if v, err := u.Increment(ctx, c+1); err == nil || v != c+1 {
		t.Errorf("command dropped: have %d, %v", v, err)
	}
	success := []byte{0x80, 0x02, 0, 0, 0, 19, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0}
	on(func([]byte) ([]byte, error) { return bytes.Clone(success), nil }, false) // forged success
	if v, err := u.Increment(ctx, c+1); err == nil || v != c+1 {
		t.Errorf("forged success: have %d, %v", v, err)
	}
	s.bus.Intercept(nil)
	if v, err := u.Increment(ctx, c); !errors.Is(err, tpm.ErrMoved) || v != c+1 {
		t.Errorf("repeated by a caller who lost the answer: have %d, %v", v, err)
	}
	if got := s.counter(u); got != c+1 {
		t.Errorf("counter %d, want %d: exactly one increment", got, c+1)
	}
	// The newest approval still opens.
	if _, err := s.open(u.Blob(), s.approve(u, c+1)); err != nil {
		t.Error(err)
	}
}

// attackRedefine: the owner of the TPM deletes the counter and makes it again, the same or another.
func attackRedefine(t *testing.T) {
	s := newSled(t)
	u := s.enrol()
	c := s.counter(u)
	approvals := s.approve(u, c+1)
	s.increment(u)
	old := s.approve(u, c) // of an epoch from which this sled was expunged since
	redefine := func(key any) {
		t.Helper()
		tpmtest.Do(t, s.dut, func(x *tpm.Session) error {
			srk, err := x.SRK(nil)
			if err != nil {
				return err
			}
			if err := x.UndefineIndex(DefaultCounterIndex); err != nil {
				return err
			}
			if key == nil { // the very same, from what stands in the blob in clear
				_, err = x.DefineCounter(srk, DefaultCounterIndex, u.v.CounterKey)
				return err
			}
			own, _ := tpmtest.NewKey(t)
			_, err = x.DefineCounter(srk, DefaultCounterIndex, own)
			return err
		})
	}
	redefine("another key")
	for _, a := range [][]Approval{approvals, old} {
		if _, err := s.open(u.Blob(), a); err == nil {
			t.Error("opened with a stranger's counter")
		}
	}
	redefine(nil)
	if got := s.counter(u); got <= c+1 {
		t.Errorf("made again, the counter starts at %d: below %d", got, c+2)
	}
	for _, a := range [][]Approval{approvals, old} {
		if _, err := s.open(u.Blob(), a); !errors.Is(err, ErrApproval) {
			t.Errorf("with the counter made again: %v", err)
		}
	}
}

// attackWiped: state folders are emptied so that the sled looks new. The TPM remembers, and only the owner of the seed
// can make it remember something else.
func attackWiped(t *testing.T) {
	s := newSled(t)
	u := s.enrol()
	u.Destroy()
	s.p.AuthDirs = [2]string{t.TempDir(), t.TempDir()}
	s.reboot("one")
	if c, err := ReadClaim(t.Context(), s.p); err != nil || c == nil || *c != s.claim() {
		t.Errorf("claim %+v, %v", c, err)
	}
	guess, err := tpm.RandomAuth(s.p.Rand, authLen)
	if err != nil {
		t.Fatal(err)
	}
	forged := s.claim()
	forged.SetGeneration = 0
	for range 40 { // no lockout either: the index is exempt
		err := s.dut.Do(t.Context(), func(x *tpm.Session) error {
			srk, err := x.SRK(nil)
			if err != nil {
				return err
			}
			return x.WriteIndex(srk, s.p.claimIndexDefault(), guess, forged.encode(), false)
		})
		if err == nil {
			t.Fatal("claim written with a guessed auth value")
		}
	}
	if c, err := ReadClaim(t.Context(), s.p); err != nil || c == nil || *c != s.claim() {
		t.Errorf("claim %+v, %v", c, err)
	}
	s.bus.Interpose(nil, flipping(tpm2.TPMCCNVRead, 10+4+2+3))
	if c, err := ReadClaim(t.Context(), s.p); err == nil {
		t.Errorf("altered claim was believed: %+v", c)
	}
}

func (p Params) claimIndexDefault() tpm.Index {
	q, _ := p.checked()
	return q.claimIndex()
}

// attackSplice: approvals of other states, sequences, sleds and racks are put together with our blob. The TPM itself is
// asked too, past our own checks.
func attackSplice(t *testing.T) {
	s, other := newSled(t), newSled(t)
	u, stranger := s.enrol(), other.enrol()
	c := s.counter(u)
	old := s.approve(u, c)
	s.increment(u)
	if _, err := s.open(u.Blob(), old); !errors.Is(err, ErrApproval) {
		t.Errorf("outlived approval: %v", err)
	}
	for _, a := range [][]Approval{other.approve(stranger, 1<<40), {[]byte("svappr")}, {nil}} {
		if _, err := s.open(u.Blob(), a); !errors.Is(err, ErrApproval) {
			t.Errorf("foreign approval: %v", err)
		}
	}
	raise := func(raw Approval, sequence uint64) *approval {
		info, err := DecodeApproval(raw)
		if err != nil {
			t.Fatal(err)
		}
		if sequence != 0 {
			info.Sequence = sequence
		}
		policy, err := approvedPolicy(info.PCRs, u.v.counter.Name, info.Sequence)
		if err != nil {
			t.Fatal(err)
		}
		return &approval{info, policy}
	}
	for name, a := range map[string]*approval{
		"outlived":                 raise(old[0], 0),
		"raised without signature": raise(old[0], c+9),
		"signed by another sled":   raise(other.approve(stranger, c+9)[0], 0),
	} {
		v := &Unsealed{p: u.p, pins: u.pins, rack: u.rack, v: u.v}
		err := u.do(t.Context(), func(x *tpm.Session, srk tpm.Key) error { return v.unseal(x, srk, u.auth, a) })
		if err == nil {
			t.Errorf("the TPM opened with an approval %s", name)
		}
	}
	// The right approval with a wrong auth value: an interposer that satisfies the PCRs gets no further, and no lockout.
	good := raise(s.approve(u, c+1)[0], 0)
	wrong, err := secret.New[secret.AuthValueKind](secret.Heap{}, authLen, func(b []byte) error { copy(b, bytes.Repeat([]byte{7}, authLen)); return nil })
	if err != nil {
		t.Fatal(err)
	}
	for range 40 {
		v := &Unsealed{p: u.p, pins: u.pins, rack: u.rack, v: u.v}
		if err := u.do(t.Context(), func(x *tpm.Session, srk tpm.Key) error { return v.unseal(x, srk, wrong, good) }); err == nil {
			t.Fatal("opened with a wrong auth value")
		}
	}
	v := &Unsealed{p: u.p, pins: u.pins, rack: u.rack, v: u.v}
	if err := u.do(t.Context(), func(x *tpm.Session, srk tpm.Key) error { return v.unseal(x, srk, u.auth, good) }); err != nil {
		t.Errorf("the right one: %v", err)
	}
	v.Destroy()
}

// attackPlanted: somebody with the TPM's owner rights and the disks seals a key of his own choice, under a policy key of
// his own, and puts the blob beside a ledger that he has made up.
func attackPlanted(t *testing.T) {
	s := newSled(t)
	u := s.enrol()
	evil := &Unsealed{p: u.p, pins: u.pins, rack: u.rack, boot: u.boot}
	var err error
	if evil.key, err = secret.Random[secret.SealKeyKind](secret.Heap{}, s.p.Rand, keyLen); err != nil {
		t.Fatal(err)
	}
	if evil.seed, err = secret.Random[secret.SeedKind](secret.Heap{}, s.p.Rand, seedLen); err != nil {
		t.Fatal(err)
	}
	if evil.auth, err = u.auth.Clone(secret.Heap{}); err != nil {
		t.Fatal(err)
	}
	defer evil.Destroy()
	if err := evil.seal(t.Context(), u.v.counter); err != nil { // names the real counter: everything in clear fits
		t.Fatal(err)
	}
	if _, err := s.open(evil.Blob(), s.approve(evil, s.counter(u))); !errors.Is(err, ErrSeed) {
		t.Errorf("planted blob: %v", err)
	}
}

// attackMoved: disks move to another sled, or the TPM is exchanged.
func attackMoved(t *testing.T) {
	s, other := newSled(t), newSled(t)
	u := s.enrol()
	other.enrol()
	approvals := s.approve(u, s.counter(u))
	p := other.p
	p.AuthDirs = s.p.AuthDirs
	if _, err := Open(t.Context(), p, s.pins, testRack, u.Blob(), approvals); !errors.Is(err, tpm.ErrPinned) {
		t.Errorf("another TPM: %v", err)
	}
	if err := CheckPins(t.Context(), p, s.pins); !errors.Is(err, tpm.ErrPinned) {
		t.Errorf("pins of another TPM: %v", err)
	}
	if _, err := Open(t.Context(), p, other.pins, testRack, u.Blob(), approvals); !errors.Is(err, ErrBlob) {
		t.Errorf("another sled's blob: %v", err)
	}
}
