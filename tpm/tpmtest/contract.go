package tpmtest

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"math/big"
	"slices"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

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
	if err := dut.Do(context.Background(), f); err != nil {
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
		got, err := sealUnseal(s, srk, secret, auth)
		if err == nil && !bytes.Equal(got, secret) {
			t.Errorf("unsealed %x, want %x", got, secret)
		}
		return err
	})
}

func sealUnseal(s *tpm.Session, srk tpm.Key, secret, auth []byte) ([]byte, error) {
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
	out, err := tpm2.Unseal{ItemHandle: tpm2.AuthHandle{
		Handle: obj.ObjectHandle, Name: obj.Name,
		Auth: s.Policy(srk, tpm.Out, auth, func(t transport.TPM, h tpm2.TPMISHPolicy, _ tpm2.TPM2BNonce) error {
			_, err := tpm2.PolicyAuthValue{PolicySession: h}.Execute(t)
			return err
		}),
	}}.Execute(s)
	if err != nil {
		return nil, err
	}
	return out.OutData.Buffer, s.Flush(obj.ObjectHandle)
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
		if err := dut.Do(context.Background(), remove); err != nil {
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
		if _, err := s.ReadIndex(srk, x); err == nil {
			t.Error("read before the first write")
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

// verify checks a signature of the attestation key and returns what was signed.
func verify(t *testing.T, ak tpm.Key, attest, sig []byte, extra [32]byte) *tpm2.TPMSAttest {
	t.Helper()
	params, err := ak.Public.Parameters.ECCDetail()
	if err != nil {
		t.Fatal(err)
	}
	point, err := ak.Public.Unique.ECC()
	if err != nil {
		t.Fatal(err)
	}
	pub, err := tpm2.ECDSAPub(params, point)
	if err != nil {
		t.Fatal(err)
	}
	s, err := tpm2.Unmarshal[tpm2.TPMTSignature](sig)
	if err != nil {
		t.Fatal(err)
	}
	e, err := s.Signature.ECDSA()
	if err != nil {
		t.Fatal(err)
	}
	d := sha256.Sum256(attest)
	if !ecdsa.Verify(pub, d[:], new(big.Int).SetBytes(e.SignatureR.Buffer), new(big.Int).SetBytes(e.SignatureS.Buffer)) {
		t.Fatal("signature does not verify")
	}
	a, err := tpm2.Unmarshal[tpm2.TPMSAttest](attest)
	if err != nil {
		t.Fatal(err)
	}
	if a.Magic != tpm2.TPMGeneratedValue || !bytes.Equal(a.ExtraData.Buffer, extra[:]) {
		t.Fatalf("magic %x, extra data %x, want %x", a.Magic, a.ExtraData.Buffer, extra)
	}
	return a
}

func testQuote(t *testing.T, dut *tpm.TPM) {
	extra := sha256.Sum256([]byte("nonce"))
	pcrs := []int{0, 7, 11, debugPCR}
	Do(t, dut, func(s *tpm.Session) error {
		srk, err := s.SRK(nil)
		if err != nil {
			return err
		}
		values, err := s.ReadPCRs(srk, pcrs)
		if err != nil {
			return err
		}
		ak, err := s.AK(nil)
		if err != nil {
			return err
		}
		attest, sig, err := s.Quote(ak, extra, pcrs)
		if err != nil {
			return err
		}
		a := verify(t, ak, attest, sig, extra)
		q, err := a.Attested.Quote()
		if err != nil {
			return err
		}
		h := sha256.New()
		for _, p := range pcrs {
			v := values[p]
			h.Write(v[:])
		}
		if !bytes.Equal(q.PCRDigest.Buffer, h.Sum(nil)) {
			t.Errorf("PCR digest %x, want %x", q.PCRDigest.Buffer, h.Sum(nil))
		}
		if a.FirmwareVersion != dut.Properties().Firmware {
			t.Errorf("firmware version %x in the quote, %x as property", a.FirmwareVersion, dut.Properties().Firmware)
		}
		return nil
	})
}

func testCertify(t *testing.T, dut *tpm.TPM) {
	removed(t, dut, CounterIndex)
	extra := sha256.Sum256([]byte("certify"))
	key, _ := NewKey(t)
	Do(t, dut, func(s *tpm.Session) error {
		srk, err := s.SRK(nil)
		if err != nil {
			return err
		}
		c, err := s.DefineCounter(srk, CounterIndex, key)
		if err != nil {
			return err
		}
		value, err := s.ReadCounter(srk, c)
		if err != nil {
			return err
		}
		ak, err := s.AK(nil)
		if err != nil {
			return err
		}
		attest, sig, err := s.CertifyCounter(ak, c, extra)
		if err != nil {
			return err
		}
		nv, err := verify(t, ak, attest, sig, extra).Attested.NV()
		if err != nil {
			return err
		}
		if got := new(big.Int).SetBytes(nv.NVContents.Buffer).Uint64(); got != value || !bytes.Equal(nv.IndexName.Buffer, c.Name) {
			t.Errorf("certified %d of %x, want %d of %x", got, nv.IndexName.Buffer, value, c.Name)
		}
		if attest, sig, err = s.Certify(ak, srk, extra); err != nil {
			return err
		}
		obj, err := verify(t, ak, attest, sig, extra).Attested.Certify()
		if err == nil && !bytes.Equal(obj.Name.Buffer, srk.Name.Buffer) {
			t.Errorf("certified %x, want %x", obj.Name.Buffer, srk.Name.Buffer)
		}
		return err
	})
}

func testCredential(t *testing.T, dut *tpm.TPM) {
	secret := []byte("a credential of 32 bytes exactly")
	Do(t, dut, func(s *tpm.Session) error {
		ek, err := s.EK(nil)
		if err != nil {
			return err
		}
		ak, err := s.AK(nil)
		if err != nil {
			return err
		}
		id, enc, err := tpm.MakeCredential(rand.Reader, ek.Marshal(), ak.Name.Buffer, secret)
		if err != nil {
			return err
		}
		got, err := s.ActivateCredential(ak, ek, id, enc)
		if err != nil || !bytes.Equal(got, secret) {
			t.Errorf("activated %x, %v", got, err)
		}
		other := slices.Concat(ak.Name.Buffer[:33], []byte{ak.Name.Buffer[33] ^ 1})
		if id, enc, err = tpm.MakeCredential(rand.Reader, ek.Marshal(), other, secret); err != nil {
			return err
		}
		if _, err := s.ActivateCredential(ak, ek, id, enc); err == nil {
			t.Error("credential for another key was activated")
		}
		_, err = s.EKCertificate() // most software TPMs have none
		return err
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
		err := dut.Do(context.Background(), func(s *tpm.Session) error {
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
		_ = dut.Do(context.Background(), func(s *tpm.Session) error {
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
