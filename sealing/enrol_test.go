package sealing

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"math/big"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/sledvault/sledvault/tpm"
	"github.com/sledvault/sledvault/tpm/tpmtest"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/reason"
)

// TestDescribe: everything a controller needs to pin this TPM is there, hangs together, and is bound to its question.
func TestDescribe(t *testing.T) {
	t.Parallel()
	s := newSled(t)
	s.p.QuotePCRs = []int{0, 1, 2, 3, 4, 5, 6, 7, 11, 12, 14}
	e, err := Begin(t.Context(), s.p)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Destroy()
	extra := sha256.Sum256([]byte("nonce and exporter"))
	d, err := e.Describe(t.Context(), extra)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range []struct{ public, name []byte }{{d.EKPublic, d.EKName}, {d.AKPublic, d.AKName}, {d.SRKPublic, d.SRKName}} {
		if name, err := tpm.KeyName(k.public); err != nil || !bytes.Equal(name, k.name) {
			t.Errorf("name %x of a public area, %v, want %x", name, err, k.name)
		}
	}
	nv, err := tpm2.Unmarshal[tpm2.TPMSNVPublic](d.CounterPublic)
	if err != nil {
		t.Fatal(err)
	}
	if name, err := tpm2.NVName(nv); err != nil || !bytes.Equal(name.Buffer, d.CounterName) {
		t.Errorf("counter's name %x, %v, want %x", name.Buffer, err, d.CounterName)
	}
	if c, err := signed(t, d, d.CertifySRK, extra).Attested.Certify(); err != nil || !bytes.Equal(c.Name.Buffer, d.SRKName) {
		t.Errorf("certified %+v, %v", c, err)
	}
	if c, err := signed(t, d, d.CertifyCounter, extra).Attested.NV(); err != nil || !bytes.Equal(c.IndexName.Buffer, d.CounterName) {
		t.Errorf("certified %+v, %v", c, err)
	}
	q := signed(t, d, d.Quote, extra)
	h := sha256.New()
	for _, n := range s.p.QuotePCRs {
		v := d.PCRs[n]
		h.Write(v[:])
	}
	if quote, err := q.Attested.Quote(); err != nil || !bytes.Equal(quote.PCRDigest.Buffer, h.Sum(nil)) || q.ClockInfo.ResetCount != d.ResetCount {
		t.Errorf("quote %+v, %v", quote, err)
	}
	secret := []byte("activation secret of 32 bytes...")
	id, enc, err := tpm.MakeCredential(rand.Reader, d.EKPublic, d.AKName, secret)
	if err != nil {
		t.Fatal(err)
	}
	s.bus.Register(secret)
	if got, err := e.Activate(t.Context(), id, enc); err != nil || !bytes.Equal(got, secret) {
		t.Errorf("activated %x, %v", got, err)
	}
	tpmtest.NothingLoaded(t, s.dut)
}

// signed checks a statement against the described AK.
func signed(t *testing.T, d Description, st Statement, extra [32]byte) *tpm2.TPMSAttest {
	t.Helper()
	pub, err := tpm2.Unmarshal[tpm2.TPMTPublic](d.AKPublic)
	if err != nil {
		t.Fatal(err)
	}
	params, err := pub.Parameters.ECCDetail()
	if err != nil {
		t.Fatal(err)
	}
	point, err := pub.Unique.ECC()
	if err != nil {
		t.Fatal(err)
	}
	key, err := tpm2.ECDSAPub(params, point)
	if err != nil {
		t.Fatal(err)
	}
	sig, err := tpm2.Unmarshal[tpm2.TPMTSignature](st.Signature)
	if err != nil {
		t.Fatal(err)
	}
	e, err := sig.Signature.ECDSA()
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256(st.Attest)
	if !ecdsa.Verify(key, digest[:], new(big.Int).SetBytes(e.SignatureR.Buffer), new(big.Int).SetBytes(e.SignatureS.Buffer)) {
		t.Error("statement is not the AK's")
	}
	a, err := tpm2.Unmarshal[tpm2.TPMSAttest](st.Attest)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a.ExtraData.Buffer, extra[:]) {
		t.Error("statement is not bound to the question")
	}
	return a
}

// TestBrokenOff: an enrolment that breaks off leaves a counter, which the next one replaces; the claim stays until the
// end, so that a sled that lost its seal never looks new.
func TestBrokenOff(t *testing.T) {
	t.Parallel()
	s := newSled(t)
	old := s.enrol()
	c := s.counter(old)
	var last *Enrolment
	for range 3 {
		e, err := Begin(t.Context(), s.p)
		if err != nil {
			t.Fatal(err)
		}
		last = e
		e.Destroy()
		if claim, err := ReadClaim(t.Context(), s.p); err != nil || claim == nil {
			t.Fatalf("claim %+v, %v", claim, err)
		}
	}
	if _, err := last.Finish(t.Context(), testRack, s.claim()); reason.CodeOf(err) != CodeOrder {
		t.Errorf("finished after it was given up: %v", err)
	}
	u := s.enrol()
	if got := s.counter(u); got <= c {
		t.Errorf("counter %d, want more than the old %d", got, c)
	}
	if bytes.Equal(u.CounterName(), old.CounterName()) {
		t.Error("two enrolments with one counter name")
	}
	e, err := Begin(t.Context(), s.p)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Destroy()
	if _, err := e.Finish(t.Context(), ident.RackID{}, Claim{}); reason.CodeOf(err) != CodeUsage {
		t.Errorf("no rack: %v", err)
	}
	s.p.AuthDirs[1] += "/missing"
	e2, err := Begin(t.Context(), s.p)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e2.Finish(t.Context(), testRack, s.claim()); !errors.Is(err, ErrAuth) {
		t.Errorf("one medium missing: %v", err)
	}
}
