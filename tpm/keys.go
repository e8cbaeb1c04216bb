package tpm

import (
	"bytes"
	"errors"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"github.com/sledvault/sledvault/vault/reason"
)

// Key is a key loaded in the TPM. The handle is good until the end of Do.
type Key struct {
	Handle tpm2.TPMHandle
	Name   tpm2.TPM2BName // computed here from the public part, never taken from the TPM
	Public tpm2.TPMTPublic
}

// Marshal returns the public part as a TPMT_PUBLIC.
func (k Key) Marshal() []byte { return tpm2.Marshal(k.Public) }

// named is the key as a handle that needs no authorisation.
func (k Key) named() tpm2.NamedHandle { return tpm2.NamedHandle{Handle: k.Handle, Name: k.Name} }

func (k Key) with(auth tpm2.Session) tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: k.Handle, Name: k.Name, Auth: auth}
}

type keyKind int

const (
	srkKind keyKind = iota
	ekKind
	akKind
)

const keyKinds = int(akKind) + 1

// handles are where a key may lie in the TPM's own memory, by the TCG's ranges: the two usual places of a storage root key
// and of an ECC endorsement key, and one of ours for the attestation key.
func (k keyKind) handles() []tpm2.TPMHandle {
	switch k {
	case srkKind:
		return []tpm2.TPMHandle{0x81000001, 0x81000002}
	case ekKind:
		return []tpm2.TPMHandle{0x81010002}
	case akKind:
		return []tpm2.TPMHandle{0x81015c01}
	}
	return nil
}

// SRK makes the storage root key: ECC P-256, TCG template, owner hierarchy. A persistent copy is used if it has the pinned
// Name. Pinned is the Name from the enrolment record; nil means first contact: whatever answers is believed, and the
// caller must pin it. Another Name refuses with [ErrPinned].
func (s *Session) SRK(pinned []byte) (Key, error) {
	return s.key(srkKind, "SRK", pinned, tpm2.TPMRHOwner, tpm2.ECCSRKTemplate)
}

// EK makes the endorsement key: ECC P-256, TCG template L-2. Pinned as for [Session.SRK].
func (s *Session) EK(pinned []byte) (Key, error) {
	return s.key(ekKind, "EK", pinned, tpm2.TPMRHEndorsement, tpm2.ECCEKTemplate)
}

// AK makes the attestation key: ECDSA P-256 with SHA-256, restricted, a primary of the endorsement hierarchy, because for
// keys of the owner hierarchy a TPM scrambles reset counters and firmware version. Pinned as for [Session.SRK].
func (s *Session) AK(pinned []byte) (Key, error) {
	return s.key(akKind, "AK", pinned, tpm2.TPMRHEndorsement, AKTemplate())
}

// AKTemplate is the template of the attestation key. NoDA: its auth value is empty, there is nothing to guess; without it
// every power cut after a quote would count as a failed guess, and a few of them lock the TPM.
func AKTemplate() tpm2.TPMTPublic {
	return ecdsaTemplate(tpm2.TPMAObject{
		FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true, Restricted: true, SignEncrypt: true,
	}, make([]byte, 32), make([]byte, 32))
}

func ecdsaTemplate(attrs tpm2.TPMAObject, x, y []byte) tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256, ObjectAttributes: attrs,
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			Scheme: tpm2.TPMTECCScheme{
				Scheme:  tpm2.TPMAlgECDSA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256}),
			},
			CurveID: tpm2.TPMECCNistP256,
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: x}, Y: tpm2.TPM2BECCParameter{Buffer: y},
		}),
	}
}

// FirstSRK is [Session.SRK] before anything can be pinned, for a sled whose files say which key to expect: a persistent copy
// with that Name spares making the key. It is believed no more than what SRK(nil) makes.
func (s *Session) FirstSRK(expected []byte) (Key, error) {
	if k, ok := s.persistent(srkKind, expected); ok {
		s.keys[srkKind] = k
		return k, nil
	}
	return s.SRK(nil)
}

// Persist leaves the pinned storage root key and attestation key in the TPM's own memory, each at the first of its places
// that is free, so that no start and no quote makes or loads them. What others put there is left alone. It needs an empty
// owner auth and room in the TPM; without them everything works, more slowly.
func (s *Session) Persist(srk, ak []byte) (err error) {
	for _, k := range []struct {
		kind keyKind
		what string
		make func([]byte) (Key, error)
		name []byte
	}{{srkKind, "SRK", s.SRK, srk}, {akKind, "AK", s.AK, ak}} {
		key, failed := k.make(k.name)
		if failed == nil {
			failed = s.evict(k.kind, k.what, key)
		}
		err = errors.Join(err, failed)
	}
	return err
}

// evict copies a key to a persistent handle, unless it comes from one.
func (s *Session) evict(kind keyKind, what string, k Key) (err error) {
	if k.Handle>>24 == persistentFirst>>24 {
		return nil
	}
	if s.t.handles, err = s.list(persistentFirst); err != nil {
		return err
	}
	places := kind.handles()
	i := slices.IndexFunc(places, func(h tpm2.TPMHandle) bool { return !slices.Contains(s.t.handles, h) })
	if i < 0 {
		return reason.New(CodeHandles, "nothing needs to be done: the key is made at each start", "tpm: persist %s: its handles are taken", what)
	}
	if _, err := run(s, "persist "+what, tpm2.EvictControl{
		Auth: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}, ObjectHandle: k.named(), PersistentHandle: places[i],
	}); err != nil {
		return err
	}
	s.t.handles = append(s.t.handles, places[i])
	return nil
}

func (s *Session) key(kind keyKind, what string, pinned []byte, hierarchy tpm2.TPMHandle, template tpm2.TPMTPublic) (Key, error) {
	if k := s.keys[kind]; k.Handle != 0 {
		return k, k.check(what, pinned)
	}
	if k, ok := s.persistent(kind, pinned); ok {
		s.keys[kind] = k
		return k, nil
	}
	if k, ok := s.recall(kind, pinned); ok {
		s.keys[kind] = k
		return k, nil
	}
	k, err := s.primary(what, hierarchy, template)
	if err != nil {
		return Key{}, err
	}
	if err := k.check(what, pinned); err != nil {
		_ = s.Flush(k.Handle) // the refusal is what counts
		return Key{}, err
	}
	s.keep(kind, k)
	s.keys[kind] = k
	return k, nil
}

// kept is a primary key that was made before. Loading its context costs a TPM a fraction of making it anew. The context is
// encrypted by the TPM and dies with its reset; nothing of it stays loaded.
type kept struct {
	key     Key // its handle is no longer good
	context tpm2.TPMSContext
}

// keep saves the context of a key. A TPM that cannot goes on making its keys.
func (s *Session) keep(kind keyKind, k Key) {
	rsp, err := run(s, "save context", tpm2.ContextSave{SaveHandle: k.Handle})
	if err == nil {
		s.t.kept[kind] = &kept{key: k, context: rsp.Context}
	}
}

// recall loads a kept key with the pinned Name; first contact never gets one. Whatever answers to the load, a session
// salted to the public part that was checked when the key was made works only if the TPM holds the private part.
func (s *Session) recall(kind keyKind, pinned []byte) (Key, bool) {
	c := s.t.kept[kind]
	if c == nil || pinned == nil || !bytes.Equal(pinned, c.key.Name.Buffer) {
		return Key{}, false
	}
	rsp, err := run(s, "load context", tpm2.ContextLoad{Context: c.context})
	if err != nil || rsp.LoadedHandle>>24 != transientFirst>>24 {
		s.t.kept[kind] = nil // the TPM was reset: the key is made again
		return Key{}, false
	}
	k := c.key
	k.Handle = rsp.LoadedHandle
	return k, true
}

// check compares the Name with the pinned one.
func (k Key) check(what string, pinned []byte) error {
	if pinned == nil || bytes.Equal(pinned, k.Name.Buffer) {
		return nil
	}
	return reason.New(CodePinned, hintPinned, "tpm: %s: have name %x, want %x", what, k.Name.Buffer, clip(pinned))
}

func clip(b []byte) []byte { return b[:min(len(b), 66)] }

// persistent looks for the key of a Name at its persistent handles. That the handle's public part has the Name is enough: a
// session salted to it works, and a quote verifies, only if the TPM holds the private part. So a key that was found is
// looked for again only after a turn that failed.
func (s *Session) persistent(kind keyKind, name []byte) (Key, bool) {
	if name == nil {
		return Key{}, false
	}
	if k := s.t.found[kind]; k.Handle != 0 && bytes.Equal(k.Name.Buffer, name) {
		return k, true
	}
	for _, h := range kind.handles() {
		if !slices.Contains(s.t.handles, h) {
			continue
		}
		rsp, err := run(s, "read public", tpm2.ReadPublic{ObjectHandle: h})
		if err != nil {
			continue
		}
		if k, err := newKey(h, &rsp.OutPublic); err == nil && bytes.Equal(k.Name.Buffer, name) {
			s.t.found[kind] = k
			return k, true
		}
	}
	return Key{}, false
}

// primary makes a primary key from a template.
func (s *Session) primary(what string, hierarchy tpm2.TPMHandle, template tpm2.TPMTPublic) (Key, error) {
	rsp, err := run(s, "create "+what, tpm2.CreatePrimary{PrimaryHandle: hierarchy, InPublic: tpm2.New2B(template)})
	if err != nil {
		return Key{}, err
	}
	k, err := newKey(rsp.ObjectHandle, &rsp.OutPublic)
	if err == nil {
		err = sameTemplate(k.Public, template)
	}
	if err != nil {
		_ = s.Flush(rsp.ObjectHandle) // the refusal is what counts
		return Key{}, fail("create "+what, err)
	}
	return k, nil
}

func newKey(h tpm2.TPMHandle, public *tpm2.TPM2BPublic) (Key, error) {
	pub, err := public.Contents()
	if err != nil {
		return Key{}, err
	}
	name, err := tpm2.ObjectName(pub)
	if err != nil {
		return Key{}, err
	}
	return Key{Handle: h, Name: *name, Public: *pub}, nil
}

// sameTemplate refuses a key that differs from its template in more than the public point.
func sameTemplate(have, want tpm2.TPMTPublic) error {
	have.Unique = want.Unique
	if !bytes.Equal(tpm2.Marshal(have), tpm2.Marshal(want)) {
		return reason.New(CodeAnswer, hintAnswer, "tpm: key does not follow its template")
	}
	return nil
}

// KeyName computes the Name of a TPMT_PUBLIC: 2 bytes of hash algorithm, then the digest.
func KeyName(public []byte) ([]byte, error) {
	pub, err := parsePublic(public)
	if err != nil {
		return nil, err
	}
	name, err := tpm2.ObjectName(pub)
	if err != nil {
		return nil, reason.Wrap(err, CodeUsage, "", "tpm: public area")
	}
	return name.Buffer, nil
}

// parsePublic reads a TPMT_PUBLIC that others sent. Only the canonical form will do: go-tpm ignores trailing bytes.
func parsePublic(public []byte) (*tpm2.TPMTPublic, error) {
	pub, err := tpm2.Unmarshal[tpm2.TPMTPublic](public)
	if err != nil {
		return nil, reason.Wrap(err, CodeUsage, "", "tpm: public area")
	}
	if !bytes.Equal(tpm2.Marshal(*pub), public) {
		return nil, usage("public area is not in canonical form")
	}
	return pub, nil
}
