package tpm_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/sledvault/sledvault/tpm"
	"github.com/sledvault/sledvault/tpm/tpmtest"
	"github.com/sledvault/sledvault/vault/reason"
)

// evict makes a loaded object persistent.
func evict(t *testing.T, s *tpm.Session, k tpm.Key, at tpm2.TPMHandle) {
	t.Helper()
	if _, err := (tpm2.EvictControl{
		Auth: tpm2.TPMRHOwner, ObjectHandle: &tpm2.NamedHandle{Handle: k.Handle, Name: k.Name}, PersistentHandle: at,
	}).Execute(s); err != nil {
		t.Fatal(err)
	}
}

// TestPersistent: a persistent SRK is used if it has the pinned Name, and a stranger's key in its place is left alone.
func TestPersistent(t *testing.T) {
	t.Parallel()
	dut := tpmtest.New(t)
	var srk tpm.Key
	tpmtest.Do(t, dut.Open(), func(s *tpm.Session) (err error) {
		if srk, err = s.SRK(nil); err != nil {
			return err
		}
		evict(t, s, srk, 0x81000002)
		other := tpm2.RSASRKTemplate
		rsp, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(other)}.Execute(s)
		if err != nil {
			return err
		}
		evict(t, s, tpm.Key{Handle: rsp.ObjectHandle, Name: rsp.Name}, 0x81000001)
		return nil
	})
	key, _ := tpmtest.NewKey(t)
	bus := dut.Open()
	for _, pinned := range [][]byte{srk.Name.Buffer, nil} {
		tpmtest.Do(t, bus, func(s *tpm.Session) error {
			k, err := s.SRK(pinned)
			if err != nil {
				return err
			}
			if persistent := k.Handle == 0x81000002; persistent != (pinned != nil) || !bytes.Equal(k.Name.Buffer, srk.Name.Buffer) {
				t.Errorf("handle 0x%08x, name %x, want %x", uint32(k.Handle), k.Name.Buffer, srk.Name.Buffer)
			}
			if err := s.Flush(k.Handle); err != nil {
				return err
			}
			k, err = s.SRK(pinned)
			if err != nil {
				return err
			}
			if _, err := s.ReadPCRs(k, []int{0}); err != nil {
				return err
			}
			if pinned != nil {
				_, err = s.DefineCounter(k, tpmtest.CounterIndex, key)
			}
			return err
		})
	}
	tpmtest.Do(t, bus, func(s *tpm.Session) error {
		wrong := bytes.Clone(srk.Name.Buffer)
		wrong[5] ^= 1
		if _, err := s.SRK(wrong); !errors.Is(err, tpm.ErrPinned) {
			t.Errorf("have %v, want a refusal", err)
		}
		return nil
	})
	if l := dut.Loaded(); len(l) != 0 {
		t.Errorf("left loaded: %x", l)
	}
}

// TestKeyName: only a canonical public area has a name.
func TestKeyName(t *testing.T) {
	t.Parallel()
	public := tpm2.Marshal(tpm2.ECCEKTemplate)
	if _, err := tpm.KeyName(public); err != nil {
		t.Error(err)
	}
	for _, bad := range [][]byte{nil, {0}, public[:len(public)-1], append(bytes.Clone(public), 0), bytes.Repeat([]byte{0xff}, 200)} {
		if _, err := tpm.KeyName(bad); err == nil {
			t.Errorf("%x has a name", bad)
		}
	}
}

// TestMakeCredentialRefuses: only to a key of the endorsement template, and only what fits.
func TestMakeCredentialRefuses(t *testing.T) {
	t.Parallel()
	ek := tpm2.Marshal(withPoint(t, tpm2.ECCEKTemplate))
	name := make([]byte, 34)
	if _, _, err := tpm.MakeCredential(rand.Reader, ek, name, make([]byte, 32)); err != nil {
		t.Error(err)
	}
	for what, c := range map[string]struct{ ek, secret []byte }{
		"no point":       {tpm2.Marshal(tpm2.ECCEKTemplate), make([]byte, 32)}, // zeros are not on the curve
		"storage key":    {tpm2.Marshal(withPoint(t, tpm2.ECCSRKTemplate)), make([]byte, 32)},
		"no key":         {nil, make([]byte, 32)},
		"long secret":    {ek, make([]byte, 33)},
		"empty secret":   {ek, nil},
		"trailing bytes": {append(bytes.Clone(ek), 0), make([]byte, 32)},
	} {
		if _, _, err := tpm.MakeCredential(rand.Reader, c.ek, name, c.secret); err == nil {
			t.Errorf("%s: accepted", what)
		}
	}
}

// withPoint puts a public point into a template.
func withPoint(tb testing.TB, template tpm2.TPMTPublic) tpm2.TPMTPublic {
	tb.Helper()
	key, _ := tpmtest.NewKey(tb)
	pub, err := tpm.PolicyKey(key)
	if err != nil {
		tb.Fatal(err)
	}
	template.Unique = pub.Unique
	return template
}

// FuzzAnswers feeds answers that an interposer may invent to every function that reads one. Nothing may panic, and no
// read may succeed.
func FuzzAnswers(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0})
	f.Add(frame(bytes.Repeat([]byte{0, 1}, 100)))
	key, sign := tpmtest.NewKey(f)
	srk := tpm.Key{Handle: 0x80000001, Public: withPoint(f, tpm2.ECCSRKTemplate)}
	f.Fuzz(func(t *testing.T, body []byte) {
		if len(body) > 4000 {
			return
		}
		dut, err := tpm.New(fake(func([]byte) ([]byte, error) { return frame(body), nil }), false)
		if err != nil {
			t.Fatal(err)
		}
		_ = dut.Do(t.Context(), func(s *tpm.Session) error {
			ak, _ := s.AK(nil)
			_, _ = s.SRK(nil)
			_, _ = s.EK(nil)
			_, _ = s.EKCertificate()
			_, _, _ = s.Quote(ak, [32]byte{}, []int{0, 23})
			_, _ = s.Leftovers()
			c, err := tpm.CounterAt(tpmtest.CounterIndex, key)
			if err != nil {
				t.Fatal(err)
			}
			_, _, _ = s.CertifyCounter(ak, c, [32]byte{})
			if _, err := s.ReadCounter(srk, c); err == nil {
				t.Error("an invented counter was believed")
			}
			if _, err := s.Increment(srk, c, 0, sign); err == nil {
				t.Error("an invented increment was believed")
			}
			if _, err := s.ReadPCRs(srk, []int{0}); err == nil {
				t.Error("invented PCRs were believed")
			}
			if _, err := s.ReadIndex(srk, tpm.Index{Index: tpmtest.ClaimIndex, Size: 8}); err == nil {
				t.Error("an invented index was believed")
			}
			_, _ = s.ActivateCredential(ak, srk, body, body)
			if err := s.Unseal(tpm2.NamedHandle{Handle: 0x80000002}, s.HMAC(srk, tpm.Out, nil), func([]byte) error { return nil }); err == nil {
				t.Error("an invented secret was believed")
			}
			return nil
		})
	})
}

// TestKeptKeys: a pinned key is made once per opening and then loaded; a reset has it made again.
func TestKeptKeys(t *testing.T) {
	t.Parallel()
	bus := tpmtest.New(t)
	dut := bus.Open()
	var made, loaded int
	bus.Interpose(func(cmd []byte) []byte {
		if tpmtest.Is(cmd, tpm2.TPMCCCreatePrimary) {
			made++
		}
		if tpmtest.Is(cmd, tpm2.TPMCCContextLoad) {
			loaded++
		}
		return cmd
	}, nil)
	var name []byte
	turn := func() {
		t.Helper()
		tpmtest.Do(t, dut, func(s *tpm.Session) error {
			k, err := s.AK(name)
			if err != nil {
				return err
			}
			name = k.Name.Buffer
			_, _, err = s.Quote(k, [32]byte{1}, []int{0})
			return err
		})
		tpmtest.NothingLoaded(t, dut)
	}
	for range 3 {
		turn()
	}
	if made != 1 || loaded != 2 {
		t.Errorf("have %d keys made and %d loaded, want 1 and 2", made, loaded)
	}
	bus.PowerCycle()
	turn()
	turn()
	if made != 2 || loaded != 4 {
		t.Errorf("after a reset: have %d keys made and %d loads, want 2 and 4", made, loaded)
	}
}

// TestPersist: keys in the TPM's own memory are found by their Names and cost nothing afterwards; whatever else lies there, and
// whatever the bus says of it, the pinned key is used.
func TestPersist(t *testing.T) {
	t.Parallel()
	bus := tpmtest.New(t)
	dut := bus.Open()
	var srk, ak []byte
	tpmtest.Do(t, dut, func(s *tpm.Session) error {
		k, err := s.SRK(nil)
		if err != nil {
			return err
		}
		srk = bytes.Clone(k.Name.Buffer)
		// Somebody else's key in the first place: an EK, say.
		if k, err = s.EK(nil); err != nil {
			return err
		}
		evict(t, s, k, 0x81000001)
		k, err = s.AK(nil)
		ak = bytes.Clone(k.Name.Buffer)
		return err
	})
	use := func(s *tpm.Session) error { // what a start does: a salted session and a quote
		k, err := s.FirstSRK(srk)
		if err != nil {
			return err
		}
		if !bytes.Equal(k.Name.Buffer, srk) {
			t.Errorf("have key %x, want %x", k.Name.Buffer, srk)
		}
		if _, err := s.Kept(k); err != nil {
			return err
		}
		if k, err = s.AK(ak); err != nil {
			return err
		}
		_, _, err = s.Quote(k, [32]byte{1}, []int{0})
		return err
	}
	commands := func(want int) {
		t.Helper()
		before := bus.Commands()
		tpmtest.Do(t, dut, use)
		if n := bus.Commands() - before; n != want {
			t.Errorf("have %d commands, want %d", n, want)
		}
		tpmtest.NothingLoaded(t, dut)
	}
	for range 2 {
		tpmtest.Do(t, dut, func(s *tpm.Session) error { return s.Persist(srk, ak) })
		tpmtest.NothingLoaded(t, dut)
	}
	commands(3) // session, quote, flush
	bus.PowerCycle()
	dut = bus.Open()
	commands(2 + 1 + 3) // the places of the SRK and of the AK are looked at
	commands(3)

	bus.Interpose(nil, func(cmd, rsp []byte) []byte { // the bus shows another key: it is made instead
		if tpmtest.Is(cmd, tpm2.TPMCCReadPublic) {
			rsp[60] ^= 1
		}
		return rsp
	})
	dut = bus.Open()
	tpmtest.Do(t, dut, use)
	bus.Interpose(nil, nil)

	dut = bus.Open()
	tpmtest.Do(t, dut, use)
	tpmtest.Do(t, bus.Open(), func(s *tpm.Session) error { // somebody removes them behind our back
		k, err := s.SRK(srk)
		if err != nil {
			return err
		}
		evict(t, s, k, k.Handle)
		return nil
	})
	if err := dut.Do(t.Context(), use); err == nil {
		t.Error("a key that is gone was used")
	}
	tpmtest.Do(t, dut, use)
	if err := dut.Do(t.Context(), func(s *tpm.Session) error { _, err := s.SRK(ak); return err }); !errors.Is(err, tpm.ErrPinned) {
		t.Errorf("another pinned name: %v", err)
	}
	// Both places taken: nothing is pushed out.
	tpmtest.Do(t, dut, func(s *tpm.Session) error {
		k, err := s.EK(nil)
		if err != nil {
			return err
		}
		evict(t, s, k, 0x81000002)
		return nil
	})
	if err := dut.Do(t.Context(), func(s *tpm.Session) error { return s.Persist(srk, ak) }); reason.CodeOf(err) != tpm.CodeHandles {
		t.Errorf("both places taken: %v", err)
	}
	tpmtest.Do(t, dut, use)
}
