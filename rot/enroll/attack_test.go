package enroll

import (
	"crypto/x509"
	"testing"
)

func TestAttack(t *testing.T) {
	t.Parallel()
	t.Run("identity-takeover", func(t *testing.T) {
		t.Parallel()
		old := firstSet(t)
		hash := func(s *Set, i int) []byte { h := s.Records[i].Hash(); return h[:] }
		for name, change := range map[string]func(*Set){
			"another TPM registers as an enrolled sled": func(s *Set) { put(t, s, record(t, "2", "thief")) },
			"an enrolled TPM registers as a new sled": func(s *Set) {
				s.Records[0].Removed = 5
				put(t, s, record(t, "4", "a"))
			},
			"an enrolled AK registers under another EK": func(s *Set) {
				r := record(t, "4", "d")
				r.AKPublic, r.AKName = s.Records[0].AKPublic, s.Records[0].AKName
				s.Records[0].Removed = 5
				put(t, s, r)
			},
			"two sleds exchange TPMs": func(s *Set) {
				s.Records[0].Baseboard, s.Records[1].Baseboard = s.Records[1].Baseboard, s.Records[0].Baseboard
				s.Records[0], s.Records[1] = s.Records[1], s.Records[0]
			},
			"the record is dropped, to come back later with another TPM": func(s *Set) { s.Records = s.Records[1:] },
			"a new TPM names another sled's record": func(s *Set) {
				r := record(t, "2", "thief")
				r.Replaces = hash(old, 0)
				put(t, s, r)
			},
			"a moved TPM names another sled's record": func(s *Set) {
				s.Records[0].Removed = 5
				r := record(t, "4", "a")
				r.Replaces = hash(old, 1)
				put(t, s, r)
			},
			"the TPM's keys are exchanged under the same EK": func(s *Set) {
				r := record(t, "2", "thief")
				r.EKName = s.Records[1].EKName
				put(t, s, r)
			},
			"the evidence becomes weaker": func(s *Set) { put(t, s, Record{Baseboard: board("2"), Kind: KindDICE}) },
		} {
			s := old.Next()
			change(s)
			// Even the membership key cannot do it silently.
			s.signature, _ = sign(testKey(t, 1), s.SigningBytes())
			d, err := DecodeSet(s.Encode())
			if err != nil {
				t.Logf("%s: refused as a set: %v", name, err)
				continue
			}
			if err := VerifySuccessor(old, d); err == nil {
				t.Errorf("%s: accepted", name)
			}
		}
		// A stranger's set, however well made, does not replace the one that is held.
		s := old.Next()
		signBy(t, s, testKey(t, 9))
		wantCode(t, VerifySuccessor(old, s), CodeSignature)
	})
	t.Run("stranger-claims", func(t *testing.T) {
		t.Parallel()
		named := Fingerprint(testKey(t, 1).PublicKey())
		stranger := testKey(t, 9)
		// With his own key all through.
		wantCode(t, VerifyClaimant(issue(t, stranger, 1), named), CodeFingerprint)
		// With the right key's certificate, which is public, behind his own leaf.
		chain := issue(t, stranger, 1)
		chain[1] = issue(t, testKey(t, 1), 1)[1]
		wantCode(t, VerifyClaimant(chain, named), CodeClient)
		// With that certificate as his own.
		wantCode(t, VerifyClaimant([]*x509.Certificate{chain[1], chain[1]}, named), CodeClient)
		wantCode(t, VerifyClaimant(chain[1:], named), CodeClient)
		wantCode(t, VerifyClaimant(nil, named), CodeClient)
		// On a sled whose config names nobody.
		wantCode(t, VerifyClaimant(issue(t, stranger, 1), ""), CodeFingerprint)

		// The set he brings is refused too: signed by another key, or not by the key that it names.
		s := NewSet(rack, stranger.PublicKey(), testKey(t, 8).PublicKey())
		signBy(t, s, stranger)
		wantCode(t, s.VerifyFirst(named), CodeFingerprint)
		s = NewSet(rack, testKey(t, 1).PublicKey(), testKey(t, 8).PublicKey())
		signBy(t, s, stranger)
		wantCode(t, s.VerifyFirst(named), CodeSignature)
		wantCode(t, s.VerifyFirst(""), CodeFingerprint)
	})
}
