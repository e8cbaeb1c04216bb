package tpmtest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"slices"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/sledvault/sledvault/tpm"
)

// testSeal: the session types fit together as sealing uses them, within three object slots.
func testSeal(t *testing.T, dut *tpm.TPM) {
	secret := []byte("thirty-two bytes of a sealed key")
	auth, err := tpm.RandomAuth(rand.Reader, 32)
	if err != nil {
		t.Fatal(err)
	}
	Do(t, dut, func(s *tpm.Session) error {
		srk, err := s.SRK(nil)
		if err != nil {
			return err
		}
		got, err := SealUnseal(s, srk, secret, auth)
		if err == nil && !bytes.Equal(got, secret) {
			t.Errorf("unsealed %x, want %x", got, secret)
		}
		return err
	})
}

// SealUnseal seals a secret under an auth value in the way package sealing does, opens it again and returns what came out.
func SealUnseal(s *tpm.Session, srk tpm.Key, secret, auth []byte) ([]byte, error) {
	calc, err := tpm2.NewPolicyCalculator(tpm2.TPMAlgSHA256)
	if err != nil {
		return nil, err
	}
	if err := (tpm2.PolicyAuthValue{}).Update(calc); err != nil {
		return nil, err
	}
	blob, err := tpm2.Create{
		ParentHandle: tpm2.AuthHandle{Handle: srk.Handle, Name: srk.Name, Auth: s.Encrypting(srk, tpm.In)},
		InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
			UserAuth: tpm2.TPM2BAuth{Buffer: auth},
			Data:     tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: secret}),
		}},
		InPublic: tpm2.New2B(tpm2.TPMTPublic{
			Type: tpm2.TPMAlgKeyedHash, NameAlg: tpm2.TPMAlgSHA256,
			ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, AdminWithPolicy: true, NoDA: true},
			AuthPolicy:       tpm2.TPM2BDigest{Buffer: calc.Hash().Digest},
		}),
	}.Execute(s)
	if err != nil {
		return nil, err
	}
	obj, err := tpm2.Load{
		ParentHandle: tpm2.AuthHandle{Handle: srk.Handle, Name: srk.Name, Auth: s.Encrypting(srk, tpm.In)},
		InPrivate:    blob.OutPrivate, InPublic: blob.OutPublic,
	}.Execute(s)
	if err != nil {
		return nil, err
	}
	var got []byte
	auths := s.Policy(srk, tpm.Out, auth, func(t transport.TPM, h tpm2.TPMISHPolicy, _ tpm2.TPM2BNonce) error {
		_, err := tpm2.PolicyAuthValue{PolicySession: h}.Execute(t)
		return err
	})
	err = s.Unseal(tpm2.NamedHandle{Handle: obj.ObjectHandle, Name: obj.Name}, auths, func(b []byte) error {
		got = bytes.Clone(b)
		return nil
	})
	return got, errors.Join(err, s.Flush(obj.ObjectHandle))
}

// removed makes sure that an index is not there, now and after the test.
func removed(t *testing.T, dut *tpm.TPM, index uint32) {
	t.Helper()
	remove := func(s *tpm.Session) error {
		if ok, err := s.IndexExists(index); err != nil || !ok {
			return err
		}
		return s.UndefineIndex(index)
	}
	Do(t, dut, remove)
	t.Cleanup(func() {
		if err := dut.Do(context.Background(), remove); err != nil { //nolint:usetesting // a clean-up: the context of the test is over
			t.Errorf("remove index: %v", err)
		}
	})
}

func testCounter(t *testing.T, dut *tpm.TPM) {
	removed(t, dut, CounterIndex)
	key, sign := NewKey(t)
	_, stranger := NewKey(t)
	var c tpm.Counter
	var last uint64
	Do(t, dut, func(s *tpm.Session) error {
		srk, err := s.SRK(nil)
		if err != nil {
			return err
		}
		if _, err := s.ReadCounter(srk, tpm.Counter{Index: CounterIndex, Name: make([]byte, 34)}); !errors.Is(err, tpm.ErrAbsent) {
			t.Errorf("read before definition: %v", err)
		}
		if c, err = s.DefineCounter(srk, CounterIndex, key); err != nil {
			return err
		}
		if _, err := s.DefineCounter(srk, CounterIndex, key); !errors.Is(err, tpm.ErrExists) {
			t.Errorf("defined twice: %v", err)
		}
		if last, err = s.ReadCounter(srk, c); err != nil {
			return err
		}
		for range 3 {
			v, err := s.Increment(srk, c, last, sign)
			if err != nil || v != last+1 {
				t.Fatalf("have %d, %v, want %d", v, err, last+1)
			}
			last = v
		}
		if v, err := s.Increment(srk, c, last-1, sign); !errors.Is(err, tpm.ErrMoved) || v != last {
			t.Errorf("increment from the past: %d, %v", v, err)
		}
		if v, err := s.Increment(srk, c, last, stranger); err == nil || v != last {
			t.Errorf("increment by a stranger: %d, %v", v, err)
		}
		failing := errors.New("no key today")
		if _, err := s.Increment(srk, c, last, func([]byte) (_, _ []byte, err error) { return nil, nil, failing }); !errors.Is(err, failing) {
			t.Errorf("signer's error is lost: %v", err)
		}
		return nil
	})
	counterAgain(t, dut, c, last)
}

// counterAgain: a counter that is removed and defined anew starts above the old one.
func counterAgain(t *testing.T, dut *tpm.TPM, c tpm.Counter, last uint64) {
	t.Helper()
	Do(t, dut, func(s *tpm.Session) error {
		srk, err := s.SRK(nil)
		if err != nil {
			return err
		}
		wrong := c
		wrong.Name = slices.Concat(c.Name[:33], []byte{c.Name[33] ^ 1})
		if _, err := s.ReadCounter(srk, wrong); err == nil {
			t.Error("counter was read under another name")
		}
		if v, err := s.ReadCounter(srk, c); err != nil || v != last {
			t.Errorf("have %d, %v, want %d", v, err, last)
		}
		if err := s.UndefineIndex(CounterIndex); err != nil {
			return err
		}
		if c, err = s.DefineCounter(srk, CounterIndex, c.Key); err != nil {
			return err
		}
		if v, err := s.ReadCounter(srk, c); err != nil || v <= last {
			t.Errorf("defined anew: have %d, %v, want more than %d", v, err, last)
		}
		return nil
	})
}

func testIndex(t *testing.T, dut *tpm.TPM) {
	removed(t, dut, ClaimIndex)
	x := tpm.Index{Index: ClaimIndex, Size: 64}
	data := bytes.Repeat([]byte("claimed!"), 8)
	auth, err := tpm.RandomAuth(rand.Reader, 32)
	if err != nil {
		t.Fatal(err)
	}
	other, err := tpm.RandomAuth(rand.Reader, 32)
	if err != nil {
		t.Fatal(err)
	}
	Do(t, dut, func(s *tpm.Session) error {
		srk, err := s.SRK(nil)
		if err != nil {
			return err
		}
		if _, err := s.ReadIndex(srk, x); !errors.Is(err, tpm.ErrAbsent) {
			t.Errorf("read before definition: %v", err)
		}
		if err := s.DefineIndex(srk, x, auth); err != nil {
			return err
		}
		if err := s.DefineIndex(srk, x, auth); !errors.Is(err, tpm.ErrExists) {
			t.Errorf("defined twice: %v", err)
		}
		if _, err := s.ReadIndex(srk, x); !errors.Is(err, tpm.ErrEmpty) {
			t.Errorf("read before the first write: %v", err)
		}
		if err := s.WriteIndex(srk, x, auth, data, true); err != nil {
			return err
		}
		if err := s.WriteIndex(srk, x, other, make([]byte, 64), false); err == nil {
			t.Error("written with a wrong auth value")
		}
		got, err := s.ReadIndex(srk, x)
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("read %q, %v", got, err)
		}
		return s.WriteIndex(srk, x, auth, data, false)
	})
}
