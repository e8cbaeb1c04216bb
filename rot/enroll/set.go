// Package enroll says who belongs to a rack.
//
// It owns the enrolment set (the signed list of sleds with the devices that prove them), the membership key that signs
// it, the grants, commit certificates and client certificates which that key issues, and the formats of the claim
// flow. It refuses sets that are not signed by the right key, that go back, fork, or hand a sled's identity to another
// device without saying so. It does no I/O but key files; what a TPM signed is judged by package rot.
//
// Implements docs/enrolment.md. Read next: record.go, successor.go, key.go, authority.go, client.go, claim.go.
package enroll

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/sha256"
	"slices"
	"unicode/utf8"

	"github.com/sledvault/sledvault/vault/ident"
)

// setDomain begins every envelope and everything that the membership key signs about it.
const setDomain = "sledvault/enrolment/v1"

// Set is the enrolment set of one rack (enrolment.md §2). A decoded set is well formed; who signed it is checked by
// [Set.VerifyFirst] or [VerifySuccessor].
type Set struct {
	Rack          ident.RackID
	Generation    uint64 // from 1; every change adds one or more
	MembershipKey ed25519.PublicKey
	RecoveryKey   ed25519.PublicKey
	// MinClientGeneration refuses client certificates of lower generations.
	MinClientGeneration uint32
	Records             []Record // ascending by baseboard; a baseboard has one record
	Manifests           []Manifest
	signature           []byte
	envelope            []byte // what was decoded; nil once a method has changed the set
}

// Manifest is one reference manifest: which measurements sleds may show.
type Manifest struct {
	ID         string
	Rules      []byte // the manifest's deterministic encoding (evidence.md §8)
	MinRelease uint64 // lower releases are refused
}

type manifestWire struct {
	_          struct{} `cbor:",toarray"`
	ID         string
	Rules      []byte
	MinRelease uint64
}

type setWire struct {
	Domain        string         `cbor:"0,keyasint"`
	Rack          [16]byte       `cbor:"1,keyasint"`
	Generation    uint64         `cbor:"2,keyasint"`
	MembershipKey []byte         `cbor:"3,keyasint"`
	RecoveryKey   []byte         `cbor:"4,keyasint"`
	MinClient     uint32         `cbor:"5,keyasint"`
	Records       []recordWire   `cbor:"6,keyasint"`
	Manifests     []manifestWire `cbor:"7,keyasint"`
	Signature     []byte         `cbor:"8,keyasint,omitempty"`
}

// NewSet makes the first, unsigned set of a rack, without records.
func NewSet(rack ident.RackID, membership, recovery ed25519.PublicKey) *Set {
	return &Set{Rack: rack, Generation: 1, MembershipKey: bytes.Clone(membership), RecoveryKey: bytes.Clone(recovery), MinClientGeneration: 1}
}

// Next makes the unsigned successor of a set: a deep copy with the next generation.
func (s *Set) Next() *Set {
	n := *s
	n.Generation++
	n.signature, n.envelope = nil, nil
	n.MembershipKey, n.RecoveryKey = bytes.Clone(s.MembershipKey), bytes.Clone(s.RecoveryKey)
	n.Records = make([]Record, len(s.Records))
	for i := range s.Records {
		n.Records[i] = s.Records[i].Clone()
	}
	n.Manifests = slices.Clone(s.Manifests)
	return &n
}

func (s *Set) wire() setWire {
	w := setWire{
		Domain: setDomain, Rack: s.Rack, Generation: s.Generation, MembershipKey: s.MembershipKey,
		RecoveryKey: s.RecoveryKey, MinClient: s.MinClientGeneration, Signature: s.signature,
	}
	for i := range s.Records {
		w.Records = append(w.Records, s.Records[i].wire())
	}
	for _, m := range s.Manifests {
		w.Manifests = append(w.Manifests, manifestWire{ID: m.ID, Rules: m.Rules, MinRelease: m.MinRelease})
	}
	return w
}

// Encode gives the envelope: deterministic CBOR, signature included.
func (s *Set) Encode() []byte { return encode(s.wire()) }

// Envelope is [Set.Encode] for a set that nobody changes any more, without encoding it again if it came from [DecodeSet]. The
// result belongs to the set.
func (s *Set) Envelope() []byte {
	if s.envelope != nil {
		return s.envelope
	}
	return s.Encode()
}

// Digest is the SHA-256 of the envelope.
func (s *Set) Digest() [32]byte { return sha256.Sum256(s.Encode()) }

// SigningBytes is what the signature covers: the envelope without it.
func (s *Set) SigningBytes() []byte {
	w := s.wire()
	w.Signature = nil
	return encode(w)
}

// Sign signs the set. The key is the membership key of the set before, or the recovery key of the set before when a key
// changes; for a first set it is its own membership key.
func (s *Set) Sign(key crypto.Signer) error {
	if err := s.Validate(); err != nil {
		return err
	}
	sig, err := sign(key, s.SigningBytes())
	if err != nil {
		return err
	}
	s.signature, s.envelope = sig, nil
	if n := len(s.Encode()); n > MaxSet {
		s.signature = nil
		return refuse(CodeLimit, "", "set: have %d bytes, want at most %d", n, MaxSet)
	}
	return nil
}

// DecodeSet reads an envelope strictly. It does not check who signed it.
func DecodeSet(b []byte) (*Set, error) {
	if len(b) > MaxSet {
		return nil, refuse(CodeLimit, hintController, "set: have %d bytes, want at most %d", len(b), MaxSet)
	}
	var w setWire
	if err := decode(b, &w); err != nil {
		return nil, err
	}
	if w.Domain != setDomain {
		return nil, refuse(CodeFormat, hintController, "set: have version %.40q, want %q", w.Domain, setDomain)
	}
	if len(w.Signature) != ed25519.SignatureSize {
		return nil, refuse(CodeSignature, hintController, "set: have a signature of %d bytes, want %d", len(w.Signature), ed25519.SignatureSize)
	}
	s := &Set{
		Rack: w.Rack, Generation: w.Generation, MembershipKey: w.MembershipKey, RecoveryKey: w.RecoveryKey,
		MinClientGeneration: w.MinClient, signature: w.Signature,
	}
	for i := range w.Records {
		if w.Records[i].Version != RecordVersion {
			return nil, refuse(CodeFormat, "run a newer release", "record %d: have version %d, want %d", i, w.Records[i].Version, RecordVersion)
		}
		s.Records = append(s.Records, w.Records[i].record())
	}
	for _, m := range w.Manifests {
		s.Manifests = append(s.Manifests, Manifest{m.ID, m.Rules, m.MinRelease})
	}
	if err := s.Validate(); err != nil {
		return nil, err
	}
	s.envelope = bytes.Clone(b) // the only encoding of what was read
	return s, nil
}

// Validate refuses a set that contradicts itself.
func (s *Set) Validate() error {
	switch {
	case s.Rack.IsZero():
		return refuse(CodeRack, "", "set: the rack id is zero")
	case s.Generation == 0:
		return refuse(CodeFormat, "", "set: have generation 0, want at least 1")
	case len(s.MembershipKey) != ed25519.PublicKeySize || len(s.RecoveryKey) != ed25519.PublicKeySize:
		return refuse(CodeKey, "", "set: have keys of %d and %d bytes, want %d", len(s.MembershipKey), len(s.RecoveryKey), ed25519.PublicKeySize)
	case bytes.Equal(s.MembershipKey, s.RecoveryKey):
		return refuse(CodeKey, "", "set: membership key and recovery key are the same")
	case len(s.Records) > MaxRecords || len(s.Manifests) > MaxManifests:
		return refuse(CodeLimit, "", "set: have %d records and %d manifests, want at most %d and %d", len(s.Records), len(s.Manifests), MaxRecords, MaxManifests)
	}
	for i, m := range s.Manifests {
		if m.ID == "" || len(m.ID) > maxText || !utf8.ValidString(m.ID) || (i > 0 && s.Manifests[i-1].ID >= m.ID) {
			return refuse(CodeFormat, "", "manifest %d: want ids of 1 to %d bytes, ascending", i, maxText)
		}
	}
	for i := range s.Records {
		if err := s.Records[i].Validate(); err != nil {
			return err
		}
		if i > 0 && s.Records[i-1].Baseboard.Compare(s.Records[i].Baseboard) >= 0 {
			return refuse(CodeDuplicate, "", "records are not ascending at %s", s.Records[i].Baseboard)
		}
		if m := s.Records[i].Manifest; m != "" && s.manifest(m) < 0 {
			return refuse(CodeRecord, "", "record of %s: manifest %q is not in the set", s.Records[i].Baseboard, m)
		}
	}
	return s.checkDevices()
}

// checkDevices refuses one device in two records: the same endorsement or attestation key proves one sled only. A
// record of a sled whose board was changed stays, removed, and the new one names it.
func (s *Set) checkDevices() error {
	seen := map[string]*Record{}
	for i := range s.Records {
		r := &s.Records[i]
		for _, name := range [][]byte{r.EKName, r.AKName, r.SRKName} {
			if len(name) == 0 {
				continue
			}
			o := seen[string(name)]
			if o != nil && !follows(r, o) && !follows(o, r) {
				return refuse(CodeDuplicate, hintReplace, "records of %s and %s name the same TPM", o.Baseboard, r.Baseboard)
			}
			if o == nil || r.Live() {
				seen[string(name)] = r
			}
		}
	}
	return nil
}

// follows reports whether a record was made in place of one that is removed.
func follows(later, earlier *Record) bool { return !earlier.Live() && len(later.Replaces) != 0 }

func (s *Set) manifest(id string) int {
	return slices.IndexFunc(s.Manifests, func(m Manifest) bool { return m.ID == id })
}

// Find returns the record of a baseboard, removed or not. It is the set's own: do not change it.
func (s *Set) Find(id ident.Baseboard) (*Record, bool) {
	i, ok := slices.BinarySearchFunc(s.Records, id, func(r Record, id ident.Baseboard) int { return r.Baseboard.Compare(id) })
	if !ok {
		return nil, false
	}
	return &s.Records[i], true
}

// FindEK returns the record of an endorsement key, the live one if there are two.
func (s *Set) FindEK(name []byte) (found *Record, ok bool) {
	for i := range s.Records {
		r := &s.Records[i]
		if len(name) > 0 && bytes.Equal(r.EKName, name) && (found == nil || r.Live()) {
			found = r
		}
	}
	return found, found != nil
}

// FindManifest returns a manifest by its id.
func (s *Set) FindManifest(id string) (Manifest, bool) {
	if i := s.manifest(id); i >= 0 {
		return s.Manifests[i], true
	}
	return Manifest{}, false
}

// Put adds a record, or replaces the record of the same baseboard. Whether the successor's readers will accept it is
// [VerifySuccessor]'s to say; a changed device needs Replaces.
func (s *Set) Put(r Record) error {
	if err := r.Validate(); err != nil {
		return err
	}
	r = r.Clone()
	i, ok := slices.BinarySearchFunc(s.Records, r.Baseboard, func(o Record, id ident.Baseboard) int { return o.Baseboard.Compare(id) })
	if ok {
		s.Records[i] = r
	} else {
		s.Records = slices.Insert(s.Records, i, r)
	}
	s.signature, s.envelope = nil, nil
	return nil
}

// PutManifest adds a manifest, or replaces the one with the same id.
func (s *Set) PutManifest(m Manifest) {
	i, ok := slices.BinarySearchFunc(s.Manifests, m.ID, func(o Manifest, id string) int { return bytes.Compare([]byte(o.ID), []byte(id)) })
	if ok {
		s.Manifests[i] = m
	} else {
		s.Manifests = slices.Insert(s.Manifests, i, m)
	}
	s.signature, s.envelope = nil, nil
}
