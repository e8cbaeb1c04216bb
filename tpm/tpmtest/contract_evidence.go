package tpmtest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"math/big"
	"slices"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/sledvault/sledvault/tpm"
)

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
