package tpm_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"sync"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/sledvault/sledvault/tpm"
	"github.com/sledvault/sledvault/tpm/tpmtest"
)

// TestRandomAuth: no auth value holds a zero byte, and all are different.
func TestRandomAuth(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for range 10_000 {
		a, err := tpm.RandomAuth(rand.Reader, 32)
		if err != nil {
			t.Fatal(err)
		}
		if len(a) != 32 || bytes.IndexByte(a, 0) >= 0 || seen[string(a)] {
			t.Fatalf("auth value %x", a)
		}
		seen[string(a)] = true
	}
	for _, n := range []int{-1, 0, 33} {
		if _, err := tpm.RandomAuth(rand.Reader, n); err == nil {
			t.Errorf("auth value of %d bytes", n)
		}
	}
	zeros := bytes.NewReader(append(make([]byte, 40), 1, 2, 3, 4))
	if a, err := tpm.RandomAuth(zeros, 4); err != nil || !bytes.Equal(a, []byte{1, 2, 3, 4}) {
		t.Errorf("have %x, %v", a, err)
	}
	if _, err := tpm.RandomAuth(bytes.NewReader(make([]byte, 5)), 4); err == nil {
		t.Error("a reader that ran dry gave an auth value")
	}
}

// TestLibraryCutsAuth shows the defect of go-tpm that RandomAuth works around: an HMAC key is cut at the auth value's
// first zero byte. When this test fails, go-tpm has been mended (its pull request 446) and the rule can go.
func TestLibraryCutsAuth(t *testing.T) {
	t.Parallel()
	dut := tpmtest.New(t).Open()
	write := func(auth []byte) error {
		return dut.Do(t.Context(), func(s *tpm.Session) error {
			srk, err := s.SRK(nil)
			if err != nil {
				return err
			}
			public := tpm2.TPMSNVPublic{
				NVIndex: tpmtest.ClaimIndex, NameAlg: tpm2.TPMAlgSHA256, DataSize: 8,
				Attributes: tpm2.TPMANV{NT: tpm2.TPMNTOrdinary, AuthWrite: true, AuthRead: true, NoDA: true},
			}
			if _, err := (tpm2.NVDefineSpace{
				AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: s.Encrypting(srk, tpm.In)},
				Auth:       tpm2.TPM2BAuth{Buffer: auth}, PublicInfo: tpm2.New2B(public),
			}).Execute(s); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = s.UndefineIndex(tpmtest.ClaimIndex) }()
			name, err := tpm2.NVName(&public)
			if err != nil {
				return err
			}
			_, err = tpm2.NVWrite{
				AuthHandle: tpm2.AuthHandle{Handle: tpmtest.ClaimIndex, Name: *name, Auth: s.HMAC(srk, 0, auth)},
				NVIndex:    tpm2.NamedHandle{Handle: tpmtest.ClaimIndex, Name: *name},
				Data:       tpm2.TPM2BMaxNVBuffer{Buffer: make([]byte, 8)},
			}.Execute(s)
			return err
		})
	}
	if err := write([]byte{1, 2, 3, 4}); err != nil {
		t.Errorf("ordinary auth value: %v", err)
	}
	if err := write([]byte{1, 0, 3, 4}); err == nil {
		t.Error("go-tpm takes auth values with zero bytes now: drop the rule of RandomAuth")
	}
}

// TestTwoTPMs: nothing of one TPM is accepted for the other.
func TestTwoTPMs(t *testing.T) {
	t.Parallel()
	a, b := tpmtest.New(t).Open(), tpmtest.New(t).Open()
	var srk, ek, ak tpm.Key
	keys := func(s *tpm.Session) (err error) {
		if srk, err = s.SRK(nil); err != nil {
			return err
		}
		if ek, err = s.EK(nil); err != nil {
			return err
		}
		ak, err = s.AK(nil)
		return err
	}
	tpmtest.Do(t, a, keys)
	tpmtest.Do(t, b, func(s *tpm.Session) error {
		if _, err := s.SRK(srk.Name.Buffer); !errors.Is(err, tpm.ErrPinned) {
			t.Errorf("SRK: %v", err)
		}
		if _, err := s.EK(ek.Name.Buffer); !errors.Is(err, tpm.ErrPinned) {
			t.Errorf("EK: %v", err)
		}
		if _, err := s.AK(ak.Name.Buffer); !errors.Is(err, tpm.ErrPinned) {
			t.Errorf("AK: %v", err)
		}
		return nil
	})
	id, enc, err := tpm.MakeCredential(rand.Reader, ek.Marshal(), ak.Name.Buffer, make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	theirs := ak.Name.Buffer
	tpmtest.Do(t, b, func(s *tpm.Session) error {
		if err := keys(s); err != nil {
			return err
		}
		if bytes.Equal(theirs, ak.Name.Buffer) {
			t.Error("two TPMs have one AK")
		}
		if _, err := s.ActivateCredential(ak, ek, id, enc); err == nil {
			t.Error("credential for one TPM was activated by the other")
		}
		return nil
	})
}

// TestReset: a power cycle raises the reset count in quotes and clears PCRs; counters and keys stay, also when the TPM
// is killed.
func TestReset(t *testing.T) {
	t.Parallel()
	dut := tpmtest.New(t)
	bus := dut.Open()
	key, sign := tpmtest.NewKey(t)
	var srkName []byte
	var c tpm.Counter
	var value uint64
	type seen struct {
		resets uint32
		pcr    [32]byte
	}
	look := func() (v seen) {
		tpmtest.Do(t, bus, func(s *tpm.Session) error {
			srk, err := s.SRK(srkName)
			if err != nil {
				return err
			}
			srkName = srk.Name.Buffer
			pcrs, err := s.ReadPCRs(srk, []int{7})
			if err != nil {
				return err
			}
			ak, err := s.AK(nil)
			if err != nil {
				return err
			}
			b, _, err := s.Quote(ak, [32]byte{}, []int{7})
			if err != nil {
				return err
			}
			attest, err := tpm2.Unmarshal[tpm2.TPMSAttest](b)
			if err != nil {
				return err
			}
			if value != 0 {
				if have, err := s.ReadCounter(srk, c); err != nil || have != value {
					t.Errorf("counter: have %d, %v, want %d", have, err, value)
				}
			}
			v = seen{attest.ClockInfo.ResetCount, pcrs[7]}
			return nil
		})
		return v
	}
	start := look()
	tpmtest.Do(t, bus, func(s *tpm.Session) error {
		srk, err := s.SRK(srkName)
		if err != nil {
			return err
		}
		if c, err = s.DefineCounter(srk, tpmtest.CounterIndex, key); err != nil {
			return err
		}
		if value, err = s.ReadCounter(srk, c); err != nil {
			return err
		}
		if value, err = s.Increment(srk, c, value, sign); err != nil {
			return err
		}
		return s.ExtendPCR(7, [32]byte{1})
	})
	if v := look(); v.resets != start.resets || v.pcr == start.pcr {
		t.Errorf("after extend: %+v, before %+v", v, start)
	}
	dut.PowerCycle()
	if v := look(); v.resets != start.resets+1 || v.pcr != start.pcr {
		t.Errorf("after power cycle: %+v, want one reset more than %+v", v, start)
	}
	dut.Kill()
	if err := bus.Do(t.Context(), makeSRK); err == nil {
		t.Error("a killed TPM answered")
	}
	dut.Restart()
	if v := look(); v.resets <= start.resets+1 || v.pcr != start.pcr {
		t.Errorf("after kill: %+v, want more resets than %+v", v, start)
	}
}

// TestConcurrent: many callers share one TPM with three slots.
func TestConcurrent(t *testing.T) {
	t.Parallel()
	dut := tpmtest.New(t)
	bus := dut.Open()
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			err := bus.Do(t.Context(), func(s *tpm.Session) error {
				srk, err := s.SRK(nil)
				if err != nil {
					return err
				}
				_, err = s.ReadPCRs(srk, []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9})
				return err
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if l := dut.Loaded(); len(l) != 0 {
		t.Errorf("left loaded: %x", l)
	}
}

// TestLockout: the settings of the lockout hierarchy arrive, and only with its auth value.
func TestLockout(t *testing.T) {
	t.Parallel()
	dut := tpmtest.New(t)
	bus := dut.Open()
	auth := mustAuth(t)
	dut.Register(auth)
	want := tpm.LockParameters{MaxTries: 32, RecoveryTime: 7200, LockoutRecovery: 86400}
	tpmtest.Do(t, bus, func(s *tpm.Session) error {
		srk, err := s.SRK(nil)
		if err != nil {
			return err
		}
		if err := s.SetLockoutAuth(srk, auth); err != nil {
			return err
		}
		if err := s.SetLockParameters(srk, auth, want); err != nil {
			return err
		}
		if err := s.DisableClear(srk, auth); err != nil {
			return err
		}
		if err := s.ResetLock(srk, auth); err != nil {
			return err
		}
		if err := s.ResetLock(srk, mustAuth(t)); !errors.Is(err, tpm.ErrRC) {
			t.Errorf("wrong lockout auth: %v", err)
		}
		rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapTPMProperties, Property: 0x20f, PropertyCount: 3}.Execute(s)
		if err != nil {
			return err
		}
		props, err := rsp.CapabilityData.Data.TPMProperties()
		if err != nil {
			return err
		}
		var have [3]uint32
		for i, p := range props.TPMProperty {
			have[i] = p.Value
		}
		if have != [3]uint32{want.MaxTries, want.RecoveryTime, want.LockoutRecovery} {
			t.Errorf("have %v, want %+v", have, want)
		}
		if _, err := (tpm2.Clear{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHLockout, Auth: s.HMAC(srk, 0, auth)}}).Execute(s); err == nil {
			t.Error("the TPM was cleared by software")
		}
		return nil
	})
	if l := dut.Loaded(); len(l) != 0 {
		t.Errorf("left loaded: %x", l)
	}
}

// TestEKCertificate: a certificate longer than one NV read, padded as vendors do.
func TestEKCertificate(t *testing.T) {
	t.Parallel()
	bus := tpmtest.New(t).Open()
	der := append([]byte{0x30, 0x82, 0x04, 0x54}, bytes.Repeat([]byte{0xc5}, 0x454)...)
	for _, c := range []struct {
		stored, want []byte
		ok           bool
	}{
		{append(bytes.Clone(der), bytes.Repeat([]byte{0xff}, 400)...), der, true},
		{der, der, true},
		{bytes.Repeat([]byte{0xff}, 64), nil, true},
		{der[:100], nil, false},
	} {
		tpmtest.Do(t, bus, func(s *tpm.Session) error {
			if cert, err := s.EKCertificate(); err != nil || cert != nil {
				t.Errorf("TPM without certificate: %x, %v", cert, err)
			}
			index := tpm2.TPMHandle(0x01c0000a)
			name := provision(t, s, index, c.stored)
			cert, err := s.EKCertificate()
			if !bytes.Equal(cert, c.want) || (err == nil) != c.ok {
				t.Errorf("have %d bytes, %v, want %d", len(cert), err, len(c.want))
			}
			_, err = tpm2.NVUndefineSpace{AuthHandle: tpm2.TPMRHOwner, NVIndex: tpm2.NamedHandle{Handle: index, Name: name}}.Execute(s)
			return err
		})
	}
}

// provision stores a certificate as a TPM's maker does and returns the name of the index.
func provision(t *testing.T, s *tpm.Session, index tpm2.TPMHandle, data []byte) tpm2.TPM2BName {
	t.Helper()
	public := tpm2.TPMSNVPublic{
		NVIndex: index, NameAlg: tpm2.TPMAlgSHA256, DataSize: uint16(len(data)),
		Attributes: tpm2.TPMANV{NT: tpm2.TPMNTOrdinary, OwnerWrite: true, OwnerRead: true, AuthRead: true, NoDA: true},
	}
	if _, err := (tpm2.NVDefineSpace{AuthHandle: tpm2.TPMRHOwner, PublicInfo: tpm2.New2B(public)}).Execute(s); err != nil {
		t.Fatal(err)
	}
	for at := 0; at < len(data); at += 256 {
		name, err := tpm2.NVName(&public)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := (tpm2.NVWrite{
			AuthHandle: tpm2.TPMRHOwner, NVIndex: tpm2.NamedHandle{Handle: index, Name: *name},
			Data: tpm2.TPM2BMaxNVBuffer{Buffer: data[at:min(at+256, len(data))]}, Offset: uint16(at),
		}).Execute(s); err != nil {
			t.Fatal(err)
		}
		public.Attributes.Written = true
	}
	name, err := tpm2.NVName(&public)
	if err != nil {
		t.Fatal(err)
	}
	return *name
}

// BenchmarkIncrement is the whole of a protected save's TPM work.
func BenchmarkIncrement(b *testing.B) {
	dut := tpmtest.New(b)
	bus := dut.Open()
	key, sign := tpmtest.NewKey(b)
	var c tpm.Counter
	var value uint64
	turn := func(f func(*tpm.Session, tpm.Key) error) {
		err := bus.Do(b.Context(), func(s *tpm.Session) error {
			srk, err := s.SRK(nil)
			if err != nil {
				return err
			}
			return f(s, srk)
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	turn(func(s *tpm.Session, srk tpm.Key) (err error) {
		if c, err = s.DefineCounter(srk, tpmtest.CounterIndex, key); err != nil {
			return err
		}
		value, err = s.ReadCounter(srk, c)
		return err
	})
	before := dut.Commands()
	for b.Loop() {
		turn(func(s *tpm.Session, srk tpm.Key) (err error) {
			value, err = s.Increment(srk, c, value, sign)
			return err
		})
	}
	b.ReportMetric(float64(dut.Commands()-before)/float64(b.N), "commands/op")
}

// BenchmarkQuote is what one batch of evidence costs.
func BenchmarkQuote(b *testing.B) {
	bus := tpmtest.New(b).Open()
	for b.Loop() {
		err := bus.Do(b.Context(), func(s *tpm.Session) error {
			ak, err := s.AK(nil)
			if err != nil {
				return err
			}
			_, _, err = s.Quote(ak, [32]byte{}, []int{0, 1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 14})
			return err
		})
		if err != nil {
			b.Fatal(err)
		}
	}
}
