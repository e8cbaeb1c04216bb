package enroll

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"slices"
	"testing"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
)

var rack = ident.RackID{0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x46, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff}

func board(serial string) ident.Baseboard { return ident.Baseboard{Part: "p", Serial: serial} }

// testKey is a key with a seed of one repeated byte.
func testKey(t testing.TB, c byte) Key {
	t.Helper()
	k, err := NewKey(secret.Heap{}, bytes.NewReader(bytes.Repeat([]byte{c}, 32)))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// area is a made-up TPMT_PUBLIC whose name algorithm is SHA-256.
func area(what string) []byte {
	return append([]byte{0x00, 0x23, 0x00, 0x0b, 0x00, 0x05, 0x00, 0x72}, what...)
}

func nvArea(what string) []byte {
	b := []byte{0x01, 0x80, 0x10, 0x01, 0x00, 0x0b}
	b = binary.BigEndian.AppendUint32(b, 0x00060018)
	return append(append(b, 0, 0, 0, 8), what...)
}

// record is a valid record of a TPM whose keys derive from its name.
func record(t testing.TB, serial, device string) Record {
	t.Helper()
	name := func(b []byte) []byte {
		n, err := PublicName(b)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	counter, err := NVName(nvArea(device))
	if err != nil {
		t.Fatal(err)
	}
	ak, srk := area("ak "+device), area("srk "+device)
	return Record{
		Baseboard: board(serial), EKName: name(area("ek " + device)), AKPublic: ak, AKName: name(ak), SRKPublic: srk,
		SRKName: name(srk), CounterName: counter, Counter: 7, Firmware: &Firmware{Manufacturer: "IBM", Version: 3, Minimum: 2},
		ResetCount: 5, PCRs: map[int][][32]byte{0: {sha256.Sum256([]byte(device))}}, Kind: KindTPM,
	}
}

// firstSet is a signed set of three sleds p:1 to p:3 with the TPMs a to c.
func firstSet(t testing.TB) *Set {
	t.Helper()
	s := NewSet(rack, testKey(t, 1).PublicKey(), testKey(t, 2).PublicKey())
	s.Generation = 4
	for i, dev := range []string{"a", "b", "c"} {
		put(t, s, record(t, string(rune('1'+i)), dev))
	}
	signBy(t, s, testKey(t, 1))
	return s
}

func put(t testing.TB, s *Set, r Record) {
	t.Helper()
	if err := s.Put(r); err != nil {
		t.Fatal(err)
	}
}

func signBy(t testing.TB, s *Set, k Key) {
	t.Helper()
	if err := s.Sign(k); err != nil {
		t.Fatal(err)
	}
}

func wantCode(t testing.TB, err error, code reason.Code) {
	t.Helper()
	if have := reason.CodeOf(err); have != code || (code == "") != (err == nil) {
		t.Errorf("have code %q (%v), want %q", have, err, code)
	}
}

func TestSetRoundTrip(t *testing.T) {
	t.Parallel()
	s := firstSet(t)
	s = s.Next()
	removed := s.Records[2].Clone()
	removed.Removed = 9
	put(t, s, removed)
	s.PutManifest(Manifest{ID: "release-1", Rules: []byte{0xa0}, MinRelease: 3})
	byManifest := record(t, "4", "d")
	byManifest.PCRs, byManifest.Manifest, byManifest.EKCertificate = nil, "release-1", bytes.Repeat([]byte{9}, 32)
	put(t, s, byManifest)
	put(t, s, Record{Baseboard: board("5"), Kind: KindDICE})
	signBy(t, s, testKey(t, 1))
	b := s.Encode()
	d, err := DecodeSet(b)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(d.Encode(), b) || d.Digest() != sha256.Sum256(b) {
		t.Error("encoding again differs")
	}
	if r, ok := d.Find(board("3")); !ok || r.Live() || r.Removed != 9 {
		t.Errorf("removed sled: have %v, %v", r, ok)
	}
	if _, ok := d.Find(board("9")); ok {
		t.Error("found a sled that is not there")
	}
	if r, ok := d.FindEK(byManifest.EKName); !ok || r.Baseboard != board("4") {
		t.Error("EK not found")
	}
	if _, ok := d.FindEK(nil); ok {
		t.Error("an empty EK matches")
	}
	if m, ok := d.FindManifest("release-1"); !ok || m.MinRelease != 3 {
		t.Error("manifest not found")
	}
	wantCode(t, d.VerifyFirst(Fingerprint(testKey(t, 1).PublicKey())), "")
	wantCode(t, d.VerifyFirst(Fingerprint(testKey(t, 2).PublicKey())), CodeFingerprint)
	wantCode(t, VerifySuccessor(firstSet(t), d), "")
}

// TestFrozenSet holds the bytes of version 1. A failure means: revert, every enrolled sled has such a file.
func TestFrozenSet(t *testing.T) {
	t.Parallel()
	s := NewSet(rack, testKey(t, 1).PublicKey(), testKey(t, 2).PublicKey())
	put(t, s, Record{Baseboard: board("1"), Kind: KindDICE})
	signBy(t, s, testKey(t, 1))
	if have := hex.EncodeToString(s.Encode()); have != frozenSet {
		t.Errorf("have %s", have)
	}
	r := record(t, "1", "a")
	r.EKCertificate, r.Replaces, r.Removed = bytes.Repeat([]byte{3}, 32), bytes.Repeat([]byte{4}, 32), 12
	if have := hex.EncodeToString(r.Encode()); have != frozenRecord {
		t.Errorf("have %s", have)
	}
}

func TestDecodeSetRefuses(t *testing.T) {
	t.Parallel()
	good := firstSet(t).Encode()
	if _, err := DecodeSet(good); err != nil {
		t.Fatal(err)
	}
	for n := range good {
		if _, err := DecodeSet(good[:n]); err == nil {
			t.Fatalf("accepted the first %d bytes", n)
		}
	}
	_, err := DecodeSet(append(bytes.Clone(good), 0))
	wantCode(t, err, CodeFormat)
	_, err = DecodeSet(make([]byte, MaxSet+1))
	wantCode(t, err, CodeLimit)
	_, err = DecodeSet(bytes.Replace(good, []byte("enrolment/v1"), []byte("enrolment/v2"), 1))
	wantCode(t, err, CodeFormat)
	// A non-shortest generation.
	_, err = DecodeSet(bytes.Replace(good, []byte{0x02, 0x04, 0x03}, []byte{0x02, 0x18, 0x04, 0x03}, 1))
	wantCode(t, err, CodeFormat)

	for name, c := range map[string]struct {
		change func(*Set)
		code   reason.Code
	}{
		"generation 0": {func(s *Set) { s.Generation = 0 }, CodeFormat},
		"rack zero":    {func(s *Set) { s.Rack = ident.RackID{} }, CodeRack},
		"short key":    {func(s *Set) { s.MembershipKey = s.MembershipKey[:31] }, CodeKey},
		"equal keys":   {func(s *Set) { s.RecoveryKey = s.MembershipKey }, CodeKey},
		"order":        {func(s *Set) { slices.Reverse(s.Records) }, CodeDuplicate},
		"twice":        {func(s *Set) { s.Records[1] = s.Records[0] }, CodeDuplicate},
		"one EK twice": {func(s *Set) { s.Records[1].EKName = s.Records[0].EKName }, CodeDuplicate},
		"one AK twice": {func(s *Set) {
			s.Records[1].AKPublic, s.Records[1].AKName = s.Records[0].AKPublic, s.Records[0].AKName
		}, CodeDuplicate},
		"baseboard":        {func(s *Set) { s.Records[0].Baseboard.Part = "a b" }, CodeRecord},
		"AK Name":          {func(s *Set) { s.Records[0].AKName = s.Records[1].AKName }, CodeRecord},
		"EK Name":          {func(s *Set) { s.Records[0].EKName = s.Records[0].EKName[:33] }, CodeRecord},
		"no EK":            {func(s *Set) { s.Records[0].EKName = nil }, CodeRecord},
		"no policy":        {func(s *Set) { s.Records[0].PCRs = nil }, CodeRecord},
		"two policies":     {func(s *Set) { s.Records[0].Manifest = "m" }, CodeRecord},
		"unknown manifest": {func(s *Set) { s.Records[0].PCRs, s.Records[0].Manifest = nil, "m" }, CodeRecord},
		"register 24":      {func(s *Set) { s.Records[0].PCRs[24] = s.Records[0].PCRs[0] }, CodeRecord},
		"register, none":   {func(s *Set) { s.Records[0].PCRs[1] = nil }, CodeRecord},
		"register, twice":  {func(s *Set) { s.Records[0].PCRs[0] = append(s.Records[0].PCRs[0], s.Records[0].PCRs[0]...) }, CodeRecord},
		"replaces":         {func(s *Set) { s.Records[0].Replaces = []byte{1} }, CodeRecord},
		"kind":             {func(s *Set) { s.Records[0].Kind = "none" }, CodeRecord},
		"dice with EK":     {func(s *Set) { s.Records[0].Kind = KindDICE }, CodeRecord},
		"no firmware":      {func(s *Set) { s.Records[0].Firmware = nil }, CodeRecord},
		"unsigned":         {func(s *Set) { s.signature = nil }, CodeSignature},
		"manifests": {func(s *Set) {
			s.Manifests = []Manifest{{ID: "b"}, {ID: "a"}}
		}, CodeFormat},
	} {
		s := firstSet(t)
		c.change(s)
		_, err := DecodeSet(s.Encode())
		if have := reason.CodeOf(err); have != c.code {
			t.Errorf("%s: have %q (%v), want %q", name, have, err, c.code)
		}
	}
}

func TestSuccessor(t *testing.T) {
	t.Parallel()
	old := firstSet(t)
	hash := func(i int) []byte { h := old.Records[i].Hash(); return h[:] }
	for name, c := range map[string]struct {
		change func(*Set)
		by     byte // key that signs; 0 the membership key
		code   reason.Code
	}{
		"nothing":           {func(*Set) {}, 0, ""},
		"by the recovery":   {func(*Set) {}, 2, CodeSignature},
		"by a stranger":     {func(*Set) {}, 3, CodeSignature},
		"other rack":        {func(s *Set) { s.Rack[0]++ }, 0, CodeRack},
		"older":             {func(s *Set) { s.Generation = 3 }, 0, CodeStale},
		"a leap":            {func(s *Set) { s.Generation = 1 << 60 }, 0, ""},
		"fork":              {func(s *Set) { s.Generation = old.Generation; s.MinClientGeneration = 9 }, 0, CodeFork},
		"the same":          {func(s *Set) { s.Generation = old.Generation }, 0, CodeUnchanged},
		"new key":           {func(s *Set) { s.MembershipKey = testKey(t, 3).PublicKey() }, 2, ""},
		"new key, by old":   {func(s *Set) { s.MembershipKey = testKey(t, 3).PublicKey() }, 0, CodeSignature},
		"new key, by new":   {func(s *Set) { s.MembershipKey = testKey(t, 3).PublicKey() }, 3, CodeSignature},
		"new recovery":      {func(s *Set) { s.RecoveryKey = testKey(t, 3).PublicKey() }, 2, ""},
		"recovery, by old":  {func(s *Set) { s.RecoveryKey = testKey(t, 3).PublicKey() }, 0, CodeSignature},
		"clients revoked":   {func(s *Set) { s.MinClientGeneration = 2 }, 0, ""},
		"clients revived":   {func(s *Set) { s.MinClientGeneration = 0 }, 0, CodeClientOld},
		"a sled more":       {func(s *Set) { put(t, s, record(t, "4", "d")) }, 0, ""},
		"a sled less":       {func(s *Set) { s.Records = s.Records[1:] }, 0, CodeVanished},
		"removed":           {func(s *Set) { s.Records[0].Removed = 7 }, 0, ""},
		"policy":            {func(s *Set) { s.Records[0].PCRs[3] = [][32]byte{{1}}; s.Records[0].Firmware.Minimum = 3 }, 0, ""},
		"other firmware":    {func(s *Set) { s.Records[0].Firmware.Version = 9 }, 0, CodeTakeover},
		"other counter":     {func(s *Set) { s.Records[0].Counter = 9 }, 0, CodeTakeover},
		"invented replaces": {func(s *Set) { s.Records[0].Replaces = hash(1) }, 0, CodeTakeover},
		"enrolled again, after an attempt that this sled has not seen": {func(s *Set) {
			s.Records[0].Counter, s.Records[0].Replaces = 9, hash(1)
		}, 0, ""},
		"TPM changed, other hash": {func(s *Set) {
			r := record(t, "1", "new")
			r.Replaces = hash(1)
			put(t, s, r)
		}, 0, CodeTakeover},
		"TPM changed": {func(s *Set) {
			r := record(t, "1", "new")
			r.Replaces = hash(0)
			put(t, s, r)
		}, 0, ""},
		"board changed": {func(s *Set) {
			s.Records[0].Removed = 7
			r := record(t, "4", "a")
			r.Replaces = hash(0)
			put(t, s, r)
		}, 0, ""},
		"board changed, by the removed form": {func(s *Set) {
			s.Records[0].Removed = 7
			h := s.Records[0].Hash()
			r := record(t, "4", "a")
			r.Replaces = h[:]
			put(t, s, r)
		}, 0, ""},
	} {
		s := old.Next()
		c.change(s)
		// Sign without the checks of Sign, as a broken controller would.
		s.signature, _ = sign(testKey(t, max(c.by, 1)), s.SigningBytes())
		err := VerifySuccessor(old, s)
		if have := reason.CodeOf(err); have != c.code {
			t.Errorf("%s: have %q (%v), want %q", name, have, err, c.code)
		}
	}
	// A removed sled returns only with a new record.
	gone := old.Next()
	gone.Records[0].Removed = 7
	signBy(t, gone, testKey(t, 1))
	back := gone.Next()
	back.Records[0].Removed = 0
	signBy(t, back, testKey(t, 1))
	wantCode(t, VerifySuccessor(gone, back), CodeTakeover)
	h := gone.Records[0].Hash()
	back.Records[0].Replaces = h[:]
	signBy(t, back, testKey(t, 1))
	wantCode(t, VerifySuccessor(gone, back), "")
	// One that was enrolled again may name a record that this sled has not seen: the attempt broke off, or this sled was off.
	again := func(s *Set, removed, counter uint64) {
		s.Records[0].Removed, s.Records[0].Counter, s.Records[0].Replaces = ident.Epoch(removed), counter, bytes.Repeat([]byte{9}, 32)
		signBy(t, s, testKey(t, 1))
	}
	again(back, 0, 9)
	wantCode(t, VerifySuccessor(gone, back), "")
	again(back, 11, 9) // and removed again meanwhile
	wantCode(t, VerifySuccessor(gone, back), "")
	back.Records[0].EKName = bytes.Clone(back.Records[0].EKName)
	back.Records[0].EKName[33] ^= 1 // another TPM
	again(back, 0, 9)
	wantCode(t, VerifySuccessor(gone, back), CodeTakeover)
}

func TestSignNeedsEd25519(t *testing.T) {
	t.Parallel()
	wantCode(t, firstSet(t).Sign(nil), CodeKey)
	_, priv, _ := ed25519.GenerateKey(nil)
	wantCode(t, firstSet(t).Sign(priv), "") // any crypto.Signer with an Ed25519 key will do
}

func FuzzDecodeSet(f *testing.F) {
	f.Add(firstSet(f).Encode())
	s := NewSet(rack, testKey(f, 1).PublicKey(), testKey(f, 2).PublicKey())
	s.Manifests = []Manifest{{ID: "m", Rules: []byte{1}}}
	signBy(f, s, testKey(f, 1))
	f.Add(s.Encode())
	f.Add([]byte{0xa9})
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := DecodeSet(b)
		if err != nil {
			if reason.CodeOf(err) == "" {
				t.Fatalf("no code: %v", err)
			}
			return
		}
		if !bytes.Equal(s.Encode(), b) {
			t.Fatal("encoding again differs")
		}
		_ = VerifySuccessor(s, s)
	})
}

func BenchmarkSet(b *testing.B) {
	s := NewSet(rack, testKey(b, 1).PublicKey(), testKey(b, 2).PublicKey())
	for i := range 32 {
		put(b, s, record(b, string(rune('A'+i)), string(rune('A'+i))))
	}
	signBy(b, s, testKey(b, 1))
	n := s.Next()
	signBy(b, n, testKey(b, 1))
	envelope := n.Encode()
	b.Run("decode", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := DecodeSet(envelope); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("successor", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := VerifySuccessor(s, n); err != nil {
				b.Fatal(err)
			}
		}
	})
}
