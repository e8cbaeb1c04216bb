package rot_test

import (
	"bytes"
	"reflect"
	"testing"

	"github.com/sledvault/sledvault/hwtest/sim/firmware"
	"github.com/sledvault/sledvault/rot"
)

// FuzzDecodeEvidence: no panic; what is accepted encodes to the same bytes; what was made for another request is refused.
func FuzzDecodeEvidence(f *testing.F) {
	x := frozenExpectation()
	good := frozenEvidence(f)
	want, err := rot.Appraise(good, request(1), x, rot.Seen{})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte{0xa0})
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := rot.DecodeEvidence(b)
		if err != nil {
			return
		}
		again, err := e.Encode()
		if err != nil || !bytes.Equal(again, b) {
			t.Errorf("accepted, but encodes differently: %v", err)
		}
		if _, err := rot.Appraise(b, request(2), x, rot.Seen{}); err == nil {
			t.Error("accepted for another request")
		}
		// An ECDSA signature has more than one encoding; what it proves has not.
		if v, err := rot.Appraise(b, request(1), x, rot.Seen{}); err == nil && !reflect.DeepEqual(v, want) {
			t.Error("evidence of something else accepted")
		}
	})
}

// FuzzEventLog: no panic; no log but the true one explains the registers, save for what extends nothing.
func FuzzEventLog(f *testing.F) {
	for _, o := range []firmware.Options{{}, {SHA1: true}, {Locality: 3}} {
		log, _ := bootLog(f, o)
		f.Add(log)
	}
	_, quoted := bootLog(f, firmware.Options{})
	sound, _ := bootLog(f, firmware.Options{})
	truth := parse(f, sound)
	m := rot.LearnManifest("m", truth, rot.DefaultPCRs(), 1)
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := rot.ParseEventLog(b)
		if err != nil {
			return
		}
		_, _ = l.SecureBoot()
		_ = m.Appraise(l)
		if l.Explains(quoted, nil) != nil {
			return
		}
		perPCR := func(l *rot.EventLog) map[int][][32]byte {
			out := map[int][][32]byte{}
			for _, e := range l.Events {
				out[e.PCR] = append(out[e.PCR], e.Digest)
			}
			return out
		}
		have, want := perPCR(l), perPCR(truth)
		for _, pcr := range rot.DefaultPCRs() {
			if len(have[pcr]) != len(want[pcr]) {
				t.Errorf("PCR %d explained by %d events, want %d", pcr, len(have[pcr]), len(want[pcr]))
			}
		}
	})
}

// FuzzAttestation: attestation, signature and key of a stranger: no panic, and only the true ones verify.
func FuzzAttestation(f *testing.F) {
	s := newSled(f, "A1")
	extra := [32]byte{1}
	q, err := s.tpm.Quote(f.Context(), extra, rot.DefaultPCRs())
	if err != nil {
		f.Fatal(err)
	}
	counter, counterSig, err := s.tpm.CertifyCounter(f.Context(), extra)
	if err != nil {
		f.Fatal(err)
	}
	certify, certifySig := s.tpm.Certify(extra, s.tpm.EKName())
	f.Add(q.Attest, q.Signature, s.tpm.AKPublic())
	f.Add(counter, counterSig, s.tpm.AKPublic())
	f.Add(certify, certifySig, s.tpm.AKPublic())
	f.Fuzz(func(t *testing.T, attest, sig, pub []byte) {
		_, _ = rot.CheckAKPublic(pub)
		genuine := bytes.Equal(pub, s.tpm.AKPublic())
		if _, err := rot.VerifyQuote(attest, sig, pub, extra, rot.DefaultPCRs(), q.PCRs); err == nil && genuine && !bytes.Equal(attest, q.Attest) {
			t.Error("another quote accepted")
		}
		if _, err := rot.VerifyCounter(attest, sig, pub, extra, s.tpm.CounterName()); err == nil && genuine && !bytes.Equal(attest, counter) {
			t.Error("another counter certificate accepted")
		}
		if err := rot.VerifyCertify(attest, sig, pub, extra, s.tpm.EKName()); err == nil && genuine && !bytes.Equal(attest, certify) {
			t.Error("another certificate accepted")
		}
		// The parsers behind the signature: sign whatever came, so that they are reached.
		own := s.tpm.Sign(attest)
		_, _ = rot.VerifyQuote(attest, own, s.tpm.AKPublic(), extra, rot.DefaultPCRs(), q.PCRs)
		_, _ = rot.VerifyCounter(attest, own, s.tpm.AKPublic(), extra, s.tpm.CounterName())
		_ = rot.VerifyCertify(attest, own, s.tpm.AKPublic(), extra, s.tpm.EKName())
	})
}

// FuzzManifest: no panic; what is accepted encodes to the same bytes.
func FuzzManifest(f *testing.F) {
	log, _ := bootLog(f, firmware.Options{})
	b, err := rot.EncodeManifest(rot.LearnManifest("m", parse(f, log), rot.DefaultPCRs(), 1))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := rot.DecodeManifest(b)
		if err != nil {
			return
		}
		if again, err := rot.EncodeManifest(m); err != nil || !bytes.Equal(again, b) {
			t.Errorf("accepted, but encodes differently: %v", err)
		}
	})
}
