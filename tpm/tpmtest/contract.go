package tpmtest

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/sledvault/sledvault/tpm"
)

// The NV indices that the contract suite uses. On a real device they are removed first, so nothing of value may lie there.
const (
	CounterIndex = 0x01800f51
	ClaimIndex   = 0x01800f52
)

// debugPCR may be extended at will: it means nothing to anybody.
const debugPCR = 16

// Run is the contract suite: what every TPM and every transport must do. Open is called once per subtest and must close
// the TPM with the test. It touches no persistent object, and no index but its own two.
func Run(t *testing.T, open func(testing.TB) *tpm.TPM) {
	t.Helper()
	for _, c := range []struct {
		name string
		f    func(*testing.T, *tpm.TPM)
	}{
		{"properties", testProperties},
		{"primaries", testPrimaries},
		{"pinned-names", testPinned},
		{"pcrs", testPCRs},
		{"seal", testSeal},
		{"counter", testCounter},
		{"index", testIndex},
		{"quote", testQuote},
		{"certify", testCertify},
		{"credential", testCredential},
		{"context", testContext},
		{"failures", testFailures},
		{"turn", testTurn},
	} {
		t.Run(c.name, func(t *testing.T) {
			dut := open(t)
			c.f(t, dut)
			NothingLoaded(t, dut)
		})
	}
}

// Do runs f in one turn and ends the test on an error.
func Do(tb testing.TB, dut *tpm.TPM, f func(*tpm.Session) error) {
	tb.Helper()
	if err := dut.Do(context.Background(), f); err != nil { //nolint:usetesting // clean-ups use it too
		tb.Fatal(err)
	}
}

// NothingLoaded fails the test if objects or sessions are left in the TPM.
func NothingLoaded(tb testing.TB, dut *tpm.TPM) {
	tb.Helper()
	Do(tb, dut, func(s *tpm.Session) error {
		l, err := s.Leftovers()
		if len(l) != 0 {
			tb.Errorf("left loaded: %x", l)
		}
		return err
	})
}

// NewKey makes a policy key and its signer.
func NewKey(tb testing.TB) (*ecdsa.PublicKey, tpm.Signer) {
	tb.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return &k.PublicKey, func(digest []byte) (r, s []byte, err error) {
		a, b, err := ecdsa.Sign(rand.Reader, k, digest)
		if err != nil {
			return nil, nil, err
		}
		return a.Bytes(), b.Bytes(), nil
	}
}

func testProperties(t *testing.T, dut *tpm.TPM) {
	p := dut.Properties()
	if p.Manufacturer == "" || p.NVBufferMax < 64 {
		t.Errorf("properties %+v", p)
	}
	t.Logf("%+v, software %v", p, dut.Software())
}

// testPrimaries: the same templates give the same keys every time, so nothing needs to be stored in the TPM.
func testPrimaries(t *testing.T, dut *tpm.TPM) {
	var names [2][3][]byte
	for i := range names {
		Do(t, dut, func(s *tpm.Session) error {
			for j, make := range []func([]byte) (tpm.Key, error){s.SRK, s.EK, s.AK} {
				k, err := make(names[0][j]) // pinned the second time
				if err != nil {
					return err
				}
				names[i][j] = k.Name.Buffer
				if n, err := tpm.KeyName(k.Marshal()); err != nil || !bytes.Equal(n, k.Name.Buffer) {
					t.Errorf("name of key %d: %x (%v), want %x", j, n, err, k.Name.Buffer)
				}
			}
			return nil
		})
	}
	if bytes.Equal(names[0][0], names[0][1]) || bytes.Equal(names[0][1], names[0][2]) {
		t.Error("two keys of one name")
	}
}

func testPinned(t *testing.T, dut *tpm.TPM) {
	wrong := append([]byte{0, 11}, bytes.Repeat([]byte{7}, 32)...)
	Do(t, dut, func(s *tpm.Session) error {
		for _, make := range []func([]byte) (tpm.Key, error){s.SRK, s.EK, s.AK} {
			if _, err := make(wrong); !errors.Is(err, tpm.ErrPinned) {
				t.Errorf("have %v, want a refusal", err)
			}
			if _, err := make(nil); err != nil {
				return err
			}
			if _, err := make(wrong); !errors.Is(err, tpm.ErrPinned) {
				t.Errorf("second time: have %v, want a refusal", err)
			}
			if _, err := make([]byte{}); !errors.Is(err, tpm.ErrPinned) {
				t.Errorf("empty name: have %v, want a refusal", err)
			}
		}
		return nil
	})
}

func testPCRs(t *testing.T, dut *tpm.TPM) {
	all := make([]int, 24)
	for i := range all {
		all[i] = i
	}
	event := sha256.Sum256([]byte("event"))
	Do(t, dut, func(s *tpm.Session) error {
		srk, err := s.SRK(nil)
		if err != nil {
			return err
		}
		before, err := s.ReadPCRs(srk, all)
		if err != nil {
			return err
		}
		if len(before) != len(all) {
			t.Errorf("have %d PCRs, want %d", len(before), len(all))
		}
		if err := s.ExtendPCR(debugPCR, event); err != nil {
			return err
		}
		after, err := s.ReadPCRs(srk, []int{debugPCR, 0, debugPCR})
		if err != nil {
			return err
		}
		old := before[debugPCR]
		if want := sha256.Sum256(append(old[:], event[:]...)); after[debugPCR] != want || after[0] != before[0] || len(after) != 2 {
			t.Errorf("after extend: have %x, want %x in PCR %d and no other change", after, want, debugPCR)
		}
		for _, bad := range [][]int{nil, {24}, {-1}} {
			if _, err := s.ReadPCRs(srk, bad); err == nil {
				t.Errorf("PCRs %v were read", bad)
			}
		}
		return nil
	})
}

func testContext(t *testing.T, dut *tpm.TPM) {
	ctx, cancel := context.WithCancel(context.Background())
	err := dut.Do(ctx, func(s *tpm.Session) error {
		if _, err := s.SRK(nil); err != nil {
			return err
		}
		if err := dut.Do(ended(t), func(*tpm.Session) error { return nil }); err == nil {
			t.Error("two turns at once")
		}
		cancel()
		_, err := s.AK(nil)
		return err
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("have %v, want a cancelled turn", err)
	}
}

// ended is a context that has ended: a caller that does not want to wait.
func ended(t *testing.T) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx
}

// testFailures: a turn that fails half-way, with everything loaded, leaves nothing behind; a dead session does nothing.
func testFailures(t *testing.T, dut *tpm.TPM) {
	failing := errors.New("half-way")
	var kept *tpm.Session
	for range 4 { // more often than there are slots
		err := dut.Do(t.Context(), func(s *tpm.Session) error {
			kept = s
			srk, err := s.SRK(nil)
			if err != nil {
				return err
			}
			if _, _, err := tpm2.HMACSession(s, tpm2.TPMAlgSHA256, 32, tpm2.Salted(srk.Handle, srk.Public)); err != nil {
				return err
			}
			key, _ := NewKey(t)
			if _, err := s.LoadPolicyKey(key); err != nil {
				return err
			}
			return failing
		})
		if !errors.Is(err, failing) {
			t.Fatal(err)
		}
	}
	func() {
		defer func() { _ = recover() }()
		_ = dut.Do(t.Context(), func(s *tpm.Session) error {
			if _, err := s.SRK(nil); err != nil {
				return err
			}
			panic("the caller's own fault")
		})
	}()
	if _, err := kept.SRK(nil); err == nil {
		t.Error("a session works after its turn")
	}
}

// testTurn: the calls of a turn share its keys, one that fails leaves nothing behind for the next, and others wait.
func testTurn(t *testing.T, dut *tpm.TPM) {
	failing := errors.New("half-way")
	err := dut.Turn(t.Context(), func(ctx context.Context) error {
		var first tpm2.TPMHandle
		for i := range 4 { // more often than there are slots
			if err := dut.Do(ctx, func(s *tpm.Session) error {
				srk, err := s.SRK(nil)
				if err != nil {
					return err
				}
				if i == 0 {
					first = srk.Handle
				}
				if srk.Handle != first {
					t.Errorf("call %d: another storage root key at 0x%08x, want 0x%08x", i, uint32(srk.Handle), uint32(first))
				}
				_, err = s.Kept(srk)
				return err
			}); err != nil {
				return err
			}
			if err := dut.Do(ctx, func(s *tpm.Session) error {
				key, _ := NewKey(t)
				if _, err := s.LoadPolicyKey(key); err != nil {
					return err
				}
				return failing
			}); !errors.Is(err, failing) {
				t.Errorf("call %d: have %v, want its own error", i, err)
			}
		}
		if err := dut.Do(ended(t), func(*tpm.Session) error { return nil }); err == nil {
			t.Error("another caller had the TPM meanwhile")
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
