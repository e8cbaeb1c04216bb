package tpm_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/sledvault/sledvault/tpm"
	"github.com/sledvault/sledvault/tpm/tpmtest"
)

// TestAttack holds the attacks on a TPM's bus, by their names in the threat model.
func TestAttack(t *testing.T) {
	t.Parallel()
	t.Run("tpm-bus", func(t *testing.T) {
		t.Run("sniffer", attackSniffer)
		t.Run("clear-encrypt-flag", attackClearFlag)
		t.Run("swap-srk", attackSwapSRK)
		t.Run("replay-answer", attackReplay)
		t.Run("forge-error", attackForgeError)
		t.Run("alter-value", attackAlterValue)
		t.Run("strip-sessions", attackStripSessions)
		t.Run("garbage", attackGarbage)
	})
	t.Run("blind-increment", attackBlindIncrement)
}

// scene is a TPM with a counter, and the names pinned before the attacker came.
type scene struct {
	*tpmtest.TPM
	bus     *tpm.TPM
	counter tpm.Counter
	value   uint64
	sign    tpm.Signer
	srk     []byte
}

func newScene(t *testing.T) *scene {
	t.Helper()
	t.Parallel()
	sc := &scene{TPM: tpmtest.New(t)}
	sc.bus = sc.Open()
	key, sign := tpmtest.NewKey(t)
	sc.sign = sign
	tpmtest.Do(t, sc.bus, func(s *tpm.Session) error {
		srk, err := s.SRK(nil)
		if err != nil {
			return err
		}
		sc.srk = srk.Name.Buffer
		if sc.counter, err = s.DefineCounter(srk, tpmtest.CounterIndex, key); err != nil {
			return err
		}
		sc.value, err = s.ReadCounter(srk, sc.counter)
		return err
	})
	return sc
}

// turn runs f with the pinned SRK.
func (sc *scene) turn(f func(*tpm.Session, tpm.Key) error) error {
	return sc.bus.Do(context.Background(), func(s *tpm.Session) error {
		srk, err := s.SRK(sc.srk)
		if err != nil {
			return err
		}
		return f(s, srk)
	})
}

// healthy ends every attack: with the attacker gone, nothing is left loaded and the counter stands where it should.
func (sc *scene) healthy(t *testing.T, want uint64) {
	t.Helper()
	sc.Intercept(nil)
	if err := sc.turn(func(s *tpm.Session, srk tpm.Key) error {
		v, err := s.ReadCounter(srk, sc.counter)
		if v != want {
			t.Errorf("counter: have %d, want %d", v, want)
		}
		return err
	}); err != nil {
		t.Error(err)
	}
	if l := sc.Loaded(); len(l) != 0 {
		t.Errorf("left loaded: %x", l)
	}
}

// attackSniffer: no secret shows in the traffic of any function that handles one.
func attackSniffer(t *testing.T) {
	sc := newScene(t)
	auth, data, credential, sealed := mustAuth(t), mustAuth(t), mustAuth(t), mustAuth(t)
	for _, secret := range [][]byte{auth, data, credential, sealed} {
		sc.Register(secret)
	}
	x := tpm.Index{Index: tpmtest.ClaimIndex, Size: 32}
	err := sc.turn(func(s *tpm.Session, srk tpm.Key) error {
		if err := s.DefineIndex(srk, x, auth); err != nil {
			return err
		}
		if err := s.WriteIndex(srk, x, auth, data, true); err != nil {
			return err
		}
		if got, err := tpmtest.SealUnseal(s, srk, sealed, auth); err != nil || !bytes.Equal(got, sealed) {
			t.Errorf("unsealed %x, %v", got, err)
		}
		ek, err := s.EK(nil)
		if err != nil {
			return err
		}
		ak, err := s.AK(nil)
		if err != nil {
			return err
		}
		id, enc, err := tpm.MakeCredential(rand.Reader, ek.Marshal(), ak.Name.Buffer, credential)
		if err != nil {
			return err
		}
		got, err := s.ActivateCredential(ak, ek, id, enc)
		if err != nil || !bytes.Equal(got, credential) {
			t.Errorf("credential %x, %v", got, err)
		}
		if err := s.SetLockoutAuth(srk, auth); err != nil {
			return err
		}
		return s.SetLockParameters(srk, auth, tpm.LockParameters{MaxTries: 32, RecoveryTime: 7200, LockoutRecovery: 86400})
	})
	if err != nil {
		t.Fatal(err)
	}
	sc.healthy(t, sc.value)
	tapWorks(t, sc)
}

// tapWorks: the tap would have seen a secret, had there been one.
func tapWorks(t *testing.T, sc *scene) {
	t.Helper()
	if l := sc.Leaks(); len(l) != 0 {
		t.Fatalf("on the bus: %v", l)
	}
	shown := mustAuth(t)
	sc.Register(shown)
	tpmtest.Do(t, sc.bus, func(s *tpm.Session) error { return s.ExtendPCR(16, [32]byte(shown)) })
	if l := sc.Leaks(); len(l) != 1 {
		t.Errorf("tap saw %d leaks, want 1", len(l))
	}
}

func mustAuth(t *testing.T) []byte {
	t.Helper()
	a, err := tpm.RandomAuth(rand.Reader, 32)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// attackClearFlag: the interposer asks the TPM to answer in clear, or to take a parameter as clear. The flags are under
// the HMAC.
func attackClearFlag(t *testing.T) {
	sc := newScene(t)
	auth := mustAuth(t)
	x := tpm.Index{Index: tpmtest.ClaimIndex, Size: 32}
	if err := sc.turn(func(s *tpm.Session, srk tpm.Key) error { return s.DefineIndex(srk, x, auth) }); err != nil {
		t.Fatal(err)
	}
	const encrypt, decrypt = 0x40, 0x20
	cleared := 0
	sc.Intercept(func(cmd []byte, pass func([]byte) ([]byte, error)) ([]byte, error) {
		handles := map[tpm2.TPMCC]int{tpm2.TPMCCNVWrite: 2, tpm2.TPMCCActivateCredential: 2, tpm2.TPMCCNVDefineSpace: 1, tpm2.TPMCCUnseal: 1}
		for cc, n := range handles {
			if tpmtest.Is(cmd, cc) {
				for _, at := range tpmtest.SessionFlags(cmd, n) {
					if cmd[at]&(encrypt|decrypt) != 0 {
						cmd[at] &^= encrypt | decrypt
						cleared++
					}
				}
			}
		}
		return pass(cmd)
	})
	for name, f := range map[string]func(*tpm.Session, tpm.Key) error{
		"write": func(s *tpm.Session, srk tpm.Key) error { return s.WriteIndex(srk, x, auth, make([]byte, 32), true) },
		"define": func(s *tpm.Session, srk tpm.Key) error {
			return s.DefineIndex(srk, tpm.Index{Index: 0x01800f53, Size: 8}, auth)
		},
		"unseal": func(s *tpm.Session, srk tpm.Key) error { _, err := tpmtest.SealUnseal(s, srk, auth, auth); return err },
		"activate": func(s *tpm.Session, _ tpm.Key) error {
			ek, err := s.EK(nil)
			if err != nil {
				return err
			}
			ak, err := s.AK(nil)
			if err != nil {
				return err
			}
			id, enc, err := tpm.MakeCredential(rand.Reader, ek.Marshal(), ak.Name.Buffer, auth)
			if err != nil {
				return err
			}
			_, err = s.ActivateCredential(ak, ek, id, enc)
			return err
		},
	} {
		if err := sc.turn(f); err == nil {
			t.Errorf("%s succeeded with its flag cleared", name)
		}
	}
	if cleared < 4 { // more where the TPM asks for a retry
		t.Errorf("cleared %d flags, want at least 4", cleared)
	}
	sc.healthy(t, sc.value)
}

// attackSwapSRK: the interposer answers with a key of its own where the SRK is asked for. The Name is pinned.
func attackSwapSRK(t *testing.T) {
	sc := newScene(t)
	other := tpmtest.New(t)
	sc.bus = sc.Open() // one that has no key yet
	sc.Intercept(func(cmd []byte, pass func([]byte) ([]byte, error)) ([]byte, error) {
		if tpmtest.Is(cmd, tpm2.TPMCCCreatePrimary) {
			if _, err := pass(cmd); err != nil {
				return nil, err
			}
			return other.Send(cmd)
		}
		return pass(cmd)
	})
	err := sc.turn(func(*tpm.Session, tpm.Key) error {
		t.Error("the interposer's key was taken for the SRK")
		return nil
	})
	if !errors.Is(err, tpm.ErrPinned) {
		t.Errorf("have %v, want a refusal", err)
	}
	sc.healthy(t, sc.value)
}

// attackReplay: an old answer, recorded when the counter was lower, is given again.
func attackReplay(t *testing.T) {
	sc := newScene(t)
	var old []byte
	sc.Intercept(func(cmd []byte, pass func([]byte) ([]byte, error)) ([]byte, error) {
		if !tpmtest.Is(cmd, tpm2.TPMCCNVRead) {
			return pass(cmd)
		}
		if old != nil {
			return old, nil
		}
		rsp, err := pass(cmd)
		old = rsp
		return rsp, err
	})
	read := func(s *tpm.Session, srk tpm.Key) error { _, err := s.ReadCounter(srk, sc.counter); return err }
	if err := sc.turn(read); err != nil {
		t.Fatal(err)
	}
	if err := sc.turn(read); !errors.Is(err, tpm.ErrAnswer) {
		t.Errorf("have %v, want a refused answer", err)
	}
	err := sc.turn(func(s *tpm.Session, srk tpm.Key) error {
		_, err := s.ReadCounter(srk, sc.counter)
		if !errors.Is(err, tpm.ErrAnswer) {
			t.Errorf("first read: %v", err)
		}
		_, err = s.ReadCounter(srk, sc.counter)
		return err
	})
	if !errors.Is(err, tpm.ErrAnswer) {
		t.Errorf("second read: %v", err)
	}
	sc.healthy(t, sc.value)
}

// attackForgeError: anybody can answer with an error code. It stays an error, whichever code it is, and nothing leaks.
func attackForgeError(t *testing.T) {
	sc := newScene(t)
	codes := []tpm2.TPMRC{tpm2.TPMRCHandle, tpm2.TPMRCPolicyFail, tpm2.TPMRCAuthFail, tpm2.TPMRCInitialize, tpm2.TPMRCNVUninitialized, 0xffffffff}
	for _, rc := range codes {
		for _, executed := range []bool{false, true} {
			for _, cc := range []tpm2.TPMCC{tpm2.TPMCCCreatePrimary, tpm2.TPMCCStartAuthSession, tpm2.TPMCCNVRead, tpm2.TPMCCPCRRead} {
				if cc == tpm2.TPMCCCreatePrimary {
					sc.Intercept(nil)
					sc.bus = sc.Open() // one that has no key yet
				}
				sc.Intercept(func(cmd []byte, pass func([]byte) ([]byte, error)) ([]byte, error) {
					if !tpmtest.Is(cmd, cc) {
						return pass(cmd)
					}
					if executed {
						if _, err := pass(cmd); err != nil {
							return nil, err
						}
					}
					return tpmtest.ErrorAnswer(rc), nil
				})
				err := sc.turn(func(s *tpm.Session, srk tpm.Key) error {
					if _, err := s.ReadCounter(srk, sc.counter); err != nil {
						return err
					}
					_, err := s.ReadPCRs(srk, []int{0, 7})
					return err
				})
				if err == nil {
					t.Errorf("error code 0x%x for command 0x%x became a success", uint32(rc), uint32(cc))
				}
			}
		}
	}
	sc.healthy(t, sc.value)
}

// attackAlterValue: the counter's value and a PCR are altered on their way to the host.
func attackAlterValue(t *testing.T) {
	sc := newScene(t)
	for _, c := range []struct {
		cc   tpm2.TPMCC
		call func(*tpm.Session, tpm.Key) error
	}{
		{tpm2.TPMCCNVRead, func(s *tpm.Session, srk tpm.Key) error { _, err := s.ReadCounter(srk, sc.counter); return err }},
		{tpm2.TPMCCPCRRead, func(s *tpm.Session, srk tpm.Key) error { _, err := s.ReadPCRs(srk, []int{0}); return err }},
	} {
		for offset := 16; offset <= 23; offset++ { // within the parameters of either answer
			sc.Intercept(func(cmd []byte, pass func([]byte) ([]byte, error)) ([]byte, error) {
				rsp, err := pass(cmd)
				if err == nil && tpmtest.Is(cmd, c.cc) && len(rsp) > offset {
					rsp[offset] ^= 1
				}
				return rsp, err
			})
			if err := sc.turn(c.call); err == nil {
				t.Errorf("command 0x%x: answer altered at %d was believed", uint32(c.cc), offset)
			}
		}
	}
	sc.healthy(t, sc.value)
}

// attackStripSessions: the interposer reads with a session of its own and hands the answer on without ours.
func attackStripSessions(t *testing.T) {
	sc := newScene(t)
	sc.Intercept(func(cmd []byte, pass func([]byte) ([]byte, error)) ([]byte, error) {
		if !tpmtest.Is(cmd, tpm2.TPMCCNVRead) {
			return pass(cmd)
		}
		n := tpm2.TPM2BName{Buffer: sc.counter.Name}
		rsp, err := tpm2.NVRead{
			AuthHandle: tpm2.AuthHandle{Handle: sc.counter.Index, Name: n, Auth: tpm2.PasswordAuth(nil)},
			NVIndex:    tpm2.NamedHandle{Handle: sc.counter.Index, Name: n}, Size: 8,
		}.Execute(passer(pass))
		if err != nil {
			return nil, err
		}
		body := tpm2.Marshal(rsp.Data)
		out := binary.BigEndian.AppendUint16(nil, uint16(tpm2.TPMSTNoSessions))
		out = binary.BigEndian.AppendUint32(out, uint32(10+len(body)))
		return append(binary.BigEndian.AppendUint32(out, 0), body...), nil
	})
	err := sc.turn(func(s *tpm.Session, srk tpm.Key) error { _, err := s.ReadCounter(srk, sc.counter); return err })
	if !errors.Is(err, tpm.ErrAnswer) {
		t.Errorf("have %v, want a refused answer", err)
	}
	sc.healthy(t, sc.value)
}

type passer func([]byte) ([]byte, error)

func (p passer) Send(cmd []byte) ([]byte, error) { return p(cmd) }

// attackGarbage: answers that are no frames, or frames full of noise, give errors and no panic.
func attackGarbage(t *testing.T) {
	sc := newScene(t)
	noise := make([]byte, 300)
	_, _ = io.ReadFull(rand.Reader, noise)
	for _, answer := range [][]byte{nil, {}, {0x80}, make([]byte, 10), frame(nil), frame(noise), frame(noise[:5]), frame(make([]byte, 200)), frame(bytes.Repeat([]byte{0xff}, 64))} {
		for _, cc := range []tpm2.TPMCC{tpm2.TPMCCCreatePrimary, tpm2.TPMCCStartAuthSession, tpm2.TPMCCNVRead, tpm2.TPMCCQuote, tpm2.TPMCCGetCapability} {
			sc.Intercept(func(cmd []byte, pass func([]byte) ([]byte, error)) ([]byte, error) {
				if tpmtest.Is(cmd, cc) {
					return answer, nil
				}
				return pass(cmd)
			})
			err := sc.turn(func(s *tpm.Session, srk tpm.Key) error {
				if _, err := s.ReadCounter(srk, sc.counter); err != nil {
					return err
				}
				ak, err := s.AK(nil)
				if err != nil {
					return err
				}
				if _, _, err = s.Quote(ak, [32]byte{}, []int{0}); err != nil {
					return err
				}
				_, err = s.Leftovers()
				return err
			})
			if err == nil {
				t.Errorf("answer %x to command 0x%x was believed", answer, uint32(cc))
			}
		}
	}
	sc.healthy(t, sc.value)
}

// frame is a well-formed answer that claims success.
func frame(body []byte) []byte {
	out := binary.BigEndian.AppendUint16(nil, uint16(tpm2.TPMSTSessions))
	out = binary.BigEndian.AppendUint32(out, uint32(10+len(body)))
	return append(binary.BigEndian.AppendUint32(out, 0), body...)
}

// attackBlindIncrement: the answer to NV_Increment is lost, forged or invented. The counter never moves twice, and the
// caller is never told that it moved when it did not.
func attackBlindIncrement(t *testing.T) {
	lost := errors.New("bus went silent")
	for name, c := range map[string]struct {
		pass   bool // the command reaches the TPM
		answer []byte
		err    error
		moves  uint64
		ok     bool // the call may report success
	}{
		"lost":               {pass: true, err: lost, moves: 1, ok: true},
		"never-sent":         {err: lost},
		"forged-retry":       {pass: true, answer: tpmtest.ErrorAnswer(tpm2.TPMRCRetry), moves: 1, ok: true},
		"forged-failure":     {pass: true, answer: tpmtest.ErrorAnswer(tpm2.TPMRCFailure), moves: 1, ok: true},
		"swallowed-success":  {answer: frame(append(make([]byte, 4), 0, 0, 1, 0, 0))},
		"swallowed-failure":  {answer: tpmtest.ErrorAnswer(tpm2.TPMRCNVRate)},
		"swallowed-no-frame": {answer: []byte{1}},
	} {
		t.Run(name, func(t *testing.T) {
			sc := newScene(t)
			first := true
			sc.Intercept(func(cmd []byte, pass func([]byte) ([]byte, error)) ([]byte, error) {
				if !tpmtest.Is(cmd, tpm2.TPMCCNVIncrement) || !first {
					return pass(cmd)
				}
				first = false
				if c.pass {
					if _, err := pass(cmd); err != nil {
						return nil, err
					}
				}
				return c.answer, c.err
			})
			increment := func(s *tpm.Session, srk tpm.Key) error {
				v, err := s.Increment(srk, sc.counter, sc.value, sc.sign)
				if err == nil && v != sc.value+1 {
					t.Errorf("success at %d, want %d", v, sc.value+1)
				}
				return err
			}
			if err := sc.turn(increment); (err == nil) != c.ok {
				t.Errorf("have %v, want success %v", err, c.ok)
			}
			sc.healthy(t, sc.value+c.moves)
			// Whoever asks again, from what he knows, moves it to the next value and no further.
			if err := sc.turn(increment); (err == nil) != (c.moves == 0) {
				t.Errorf("again: %v", err)
			}
			sc.healthy(t, sc.value+1)
		})
	}
}
