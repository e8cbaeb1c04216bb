package enroll

import (
	"bytes"
	"crypto/ed25519"
	"maps"
	"slices"

	"github.com/sledvault/sledvault/vault/ident"
)

// VerifyFirst checks the first set that a sled is given: signed by its own membership key, whose fingerprint the sled's
// configuration names.
func (s *Set) VerifyFirst(fingerprint string) error {
	want, err := ParseFingerprint(fingerprint)
	if err != nil {
		return err
	}
	if have := Fingerprint(s.MembershipKey); have != want {
		return refuse(CodeFingerprint, "compare [claim] fingerprint in the sled's configuration with what sledvault rack new printed",
			"set: have membership key %s, want %s", have, want)
	}
	return s.verify(s.MembershipKey)
}

// VerifyHeld checks a set that the rack's own folder holds: it names the given membership key, which signed it, or, if
// that key has just replaced another, the recovery key did (enrolment.md §4): its own or, if that was replaced as well, the
// one of a set before it. It trusts the folder for the recovery key.
func (s *Set) VerifyHeld(fingerprint string, before ...*Set) error {
	err := s.VerifyFirst(fingerprint)
	if err == nil || Fingerprint(s.MembershipKey) != fingerprint {
		return err
	}
	follows := func(old *Set) bool { return Rekeys(old, s) && VerifySuccessor(old, s) == nil }
	if s.verify(s.RecoveryKey) == nil || slices.ContainsFunc(before, follows) {
		return nil
	}
	return err
}

// Rekeys reports whether new names another membership key or recovery key than old. Who signed it is checked by
// [VerifySuccessor]: for such a set, the recovery key.
func Rekeys(old, new *Set) bool {
	return !bytes.Equal(old.MembershipKey, new.MembershipKey) || !bytes.Equal(old.RecoveryKey, new.RecoveryKey)
}

func (s *Set) verify(key ed25519.PublicKey) error {
	if len(key) != ed25519.PublicKeySize || len(s.signature) != ed25519.SignatureSize || !ed25519.Verify(key, s.SigningBytes(), s.signature) {
		return refuse(CodeSignature, hintController, "set: generation %d is not signed by %s", s.Generation, Fingerprint(key))
	}
	return nil
}

// VerifySuccessor checks that a sled which holds old may adopt new (enrolment.md §4). old was verified before.
//
//   - other rack: [CodeRack]; lower generation: [CodeStale]; same generation: [CodeUnchanged], or [CodeFork] if the
//     content differs.
//   - signed by old's membership key, or by old's recovery key if either key changes.
//   - no record vanishes, and none passes to another device unless it names the one it replaces.
//   - client certificates are not revived, unless the recovery key signs.
func VerifySuccessor(old, new *Set) error {
	switch {
	case old.Rack != new.Rack:
		return refuse(CodeRack, "check the address: it belongs to another rack", "set: have rack %s, want %s", new.Rack, old.Rack)
	case new.Generation < old.Generation:
		return refuse(CodeStale, hintController, "set: have generation %d, want more than %d", new.Generation, old.Generation)
	case new.Generation == old.Generation && new.Digest() == old.Digest():
		return refuse(CodeUnchanged, "", "set: generation %d is held already", old.Generation)
	case new.Generation == old.Generation:
		return refuse(CodeFork, hintFork, "set: generation %d with other content than the one held", old.Generation)
	}
	if err := new.Validate(); err != nil {
		return err
	}
	signer := old.MembershipKey
	rekeyed := Rekeys(old, new)
	if rekeyed {
		signer = old.RecoveryKey
	}
	if err := new.verify(signer); err != nil {
		return err
	}
	if !rekeyed && new.MinClientGeneration < old.MinClientGeneration {
		return refuse(CodeClientOld, hintController, "set: least client generation: have %d, want at least %d", new.MinClientGeneration, old.MinClientGeneration)
	}
	return checkTakeover(old, new)
}

// checkTakeover compares the records of two sets.
func checkTakeover(old, new *Set) error {
	hashes := earlier(old, new)
	for i := range old.Records {
		was := &old.Records[i]
		is, ok := new.Find(was.Baseboard)
		if !ok {
			return refuse(CodeVanished, "mark the record as removed instead", "set: the record of %s is gone", was.Baseboard)
		}
		if err := checkChange(was, is); err != nil {
			return err
		}
	}
	for i := range new.Records {
		is := &new.Records[i]
		if _, ok := old.Find(is.Baseboard); ok {
			continue
		}
		was := sharesDevice(old, is)
		named := func(o *Record) bool {
			_, ok := hashes[o.Baseboard][string(is.Replaces)]
			return ok
		}
		if len(was) > 0 && !slices.ContainsFunc(was, named) {
			return refuse(CodeTakeover, hintReplace, "set: the TPM of %s is enrolled as %s", was[0].Baseboard, is.Baseboard)
		}
	}
	return nil
}

// earlier lists the hashes by which a record of old may be named: as it was, and as it is now that it is removed.
func earlier(old, new *Set) map[ident.Baseboard]map[string]struct{} {
	out := map[ident.Baseboard]map[string]struct{}{}
	add := func(r *Record) {
		h := r.Hash()
		if out[r.Baseboard] == nil {
			out[r.Baseboard] = map[string]struct{}{}
		}
		out[r.Baseboard][string(h[:])] = struct{}{}
	}
	for i := range old.Records {
		add(&old.Records[i])
	}
	for i := range new.Records {
		if !new.Records[i].Live() {
			add(&new.Records[i])
		}
	}
	return out
}

// sharesDevice returns the records in old that name a key of the given record's TPM.
func sharesDevice(old *Set, r *Record) (out []*Record) {
	for i := range old.Records {
		o := &old.Records[i]
		for _, p := range [][2][]byte{{o.EKName, r.EKName}, {o.AKName, r.AKName}, {o.SRKName, r.SRKName}} {
			if len(p[0]) > 0 && bytes.Equal(p[0], p[1]) {
				out = append(out, o)
				break
			}
		}
	}
	return out
}

// checkChange compares two records of one baseboard. What belongs to the device may only change, and a removed sled
// only return, in a record that names the earlier one.
func checkChange(was, is *Record) error {
	hash := was.Hash()
	if bytes.Equal(is.Replaces, hash[:]) {
		return nil
	}
	switch {
	case reenrolled(was, is):
		return nil
	case !sameDevice(was, is):
		return refuse(CodeTakeover, hintReplace, "set: the record of %s names another device and does not replace the earlier record", was.Baseboard)
	case !bytes.Equal(was.Replaces, is.Replaces):
		return refuse(CodeTakeover, hintReplace, "set: the record of %s replaces a record that is not the earlier one", was.Baseboard)
	case !was.Live() && is.Removed != was.Removed:
		return refuse(CodeTakeover, "enroll the sled again: sledvault rack enroll", "set: the removed sled %s returns without a new record", was.Baseboard)
	}
	return nil
}

// reenrolled reports whether a sled was enrolled again with its own TPM: a removed one too, and it may have been removed
// once more. Which earlier record the new one names does not matter then: an enrolment that broke off leaves a set that
// some sleds have seen and others have not, and no single hash could be right for both.
func reenrolled(was, is *Record) bool {
	return was.Kind == is.Kind && len(is.Replaces) != 0 && len(was.EKName) != 0 &&
		bytes.Equal(was.EKName, is.EKName) && !sameDevice(was, is)
}

// sameDevice compares everything that was proved at enrolment. Policy (manifest, pinned registers, least firmware) is
// the operator's to change.
func sameDevice(a, b *Record) bool {
	fa, fb := a.Firmware, b.Firmware
	if (fa == nil) != (fb == nil) || (fa != nil && (fa.Manufacturer != fb.Manufacturer || fa.Version != fb.Version)) {
		return false
	}
	return a.Kind == b.Kind && a.Counter == b.Counter && a.ResetCount == b.ResetCount &&
		slices.EqualFunc([][]byte{a.EKName, a.EKCertificate, a.AKPublic, a.AKName, a.SRKPublic, a.SRKName, a.CounterName},
			[][]byte{b.EKName, b.EKCertificate, b.AKPublic, b.AKName, b.SRKPublic, b.SRKName, b.CounterName}, bytes.Equal)
}

// SamePolicy reports whether two records of one sled demand the same measurements.
func SamePolicy(a, b *Record) bool {
	return a.Manifest == b.Manifest && maps.EqualFunc(a.PCRs, b.PCRs, slices.Equal[[][32]byte])
}
