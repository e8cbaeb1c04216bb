package tpm_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"testing"

	"github.com/sledvault/sledvault/tpm"
	"github.com/sledvault/sledvault/tpm/tpmtest"
)

const counterIndex = 0x01800100

func newKey(tb testing.TB) *ecdsa.PrivateKey {
	tb.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return k
}

func signer(k *ecdsa.PrivateKey) tpm.Signer {
	return func(digest []byte) (r, s []byte, err error) {
		a, b, err := ecdsa.Sign(rand.Reader, k, digest)
		if err != nil {
			return nil, nil, err
		}
		return a.Bytes(), b.Bytes(), nil
	}
}

// do runs f in one turn and fails the test on an error.
func do(tb testing.TB, t *tpm.TPM, f func(*tpm.Session) error) {
	tb.Helper()
	if err := t.Do(context.Background(), f); err != nil {
		tb.Fatal(err)
	}
}

func TestCounter(t *testing.T) {
	t.Parallel()
	dut := tpmtest.New(t)
	bus := dut.Open()
	key := newKey(t)
	do(t, bus, func(s *tpm.Session) error {
		srk, err := s.SRK(nil)
		if err != nil {
			return err
		}
		c, err := s.DefineCounter(srk, counterIndex, &key.PublicKey)
		if err != nil {
			return err
		}
		v, err := s.ReadCounter(srk, c)
		if err != nil {
			return err
		}
		next, err := s.Increment(srk, c, v, signer(key))
		if err != nil {
			return err
		}
		if next != v+1 {
			t.Errorf("have %d, want %d", next, v+1)
		}
		if _, err := s.DefineCounter(srk, counterIndex, &key.PublicKey); !errors.Is(err, tpm.ErrExists) {
			t.Errorf("second definition: %v", err)
		}
		return nil
	})
}
