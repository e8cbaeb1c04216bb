package keys

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/crypto/chacha20poly1305"
	"pgregory.net/rapid"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/secret"
)

// counted fails after some allocations and counts what was not given back.
type counted struct {
	left int
	open atomic.Int64
}

var errNoPages = errors.New("no pages")

func (c *counted) Alloc(n int) ([]byte, func(), error) {
	if c.left--; c.left < 0 {
		return nil, nil, errNoPages
	}
	c.open.Add(1)
	return make([]byte, n), func() { c.open.Add(-1) }, nil
}

var testRack = ident.RackID{0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x46, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff}

// ascending gives 32 bytes that count up.
func ascending(from byte) []byte {
	b := make([]byte, 32)
	for i := range b {
		b[i] = from + byte(i)
	}
	return b
}

func TestNewRackSecret(t *testing.T) {
	t.Parallel()
	zeros, good := make([]byte, 32), ascending(0)
	for _, c := range []struct {
		name string
		rand []byte
		want error
	}{
		{"first draw", good, nil},
		{"one zero draw", slices.Concat(zeros, good), nil},
		{"only zeros", make([]byte, 32*maxDraws), ErrRandom},
		{"short", good[:31], io.ErrUnexpectedEOF},
		{"nothing", nil, io.EOF},
	} {
		a := &counted{left: 1}
		s, err := NewRackSecret(a, bytes.NewReader(c.rand))
		if !errors.Is(err, c.want) {
			t.Errorf("%s: have %v, want %v", c.name, err, c.want)
		}
		if err == nil {
			if reveal(t, s) != hex.EncodeToString(good) {
				t.Errorf("%s: wrong bytes", c.name)
			}
			s.Destroy()
		}
		if a.open.Load() != 0 {
			t.Errorf("%s: %d allocations left", c.name, a.open.Load())
		}
	}
}

// The examples of protocol.md §3 and §4.
func TestDocumentedExamples(t *testing.T) {
	t.Parallel()
	old := OldSecrets{1: rackSecret(t, bytes.Repeat([]byte{0x11}, 32)), 2: rackSecret(t, ascending(0x20))}
	e, err := Encrypt(bytes.NewReader(bytes.Repeat([]byte{0x5a}, 32)), rackSecret(t, ascending(0x80)), testRack, 3, old)
	if err != nil {
		t.Fatal(err)
	}
	prk, err := NewPRK(secret.Heap{}, rackSecret(t, ascending(0x20)), Salt(testRack))
	if err != nil {
		t.Fatal(err)
	}
	key, err := DiskKey(secret.Heap{}, prk, Disk{"1b96", "WUS4C6432DSP3X3", "A079E3D1"})
	if err != nil {
		t.Fatal(err)
	}
	salt := Salt(testRack)
	doc, err := os.ReadFile("../../docs/protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{
		"data": hex.EncodeToString(e.Data), "salt": hex.EncodeToString(salt[:]), "prk": reveal(t, prk), "disk key": reveal(t, key),
	} {
		if !bytes.Contains(doc, []byte("`"+value+"`")) {
			t.Errorf("%s: %s is not in protocol.md", name, value)
		}
	}
}

// Encryption and back; wrong rack, epoch, secret, salt or any changed or missing byte fails.
func TestOldSecretsRoundTrip(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		bytes32 := func(name string) []byte { return rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, name) }
		take := func(b []byte) secret.RackSecret {
			s, err := secret.Take[secret.RackSecretKind](secret.Heap{}, slices.Clone(b))
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		epoch := ident.Epoch(rapid.Uint64Range(1, math.MaxUint64).Draw(t, "epoch"))
		old, want := OldSecrets{}, map[ident.Epoch][]byte{}
		for _, e := range rapid.SliceOfNDistinct(rapid.Uint64Range(0, uint64(epoch)-1), 1, 12, rapid.ID).Draw(t, "epochs") {
			b := bytes32("old")
			old[ident.Epoch(e)], want[ident.Epoch(e)] = take(b), b
		}
		raw, rack := bytes32("secret"), ident.RackID(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "rack"))
		sec := take(raw)
		enc, err := Encrypt(bytes.NewReader(bytes32("salt")), sec, rack, epoch, old)
		if err != nil || len(enc.Data) != recordSize*len(old)+chacha20poly1305.Overhead {
			t.Fatalf("have %d bytes, %v", len(enc.Data), err)
		}
		got, err := Decrypt(secret.Heap{}, enc, sec, rack, epoch)
		if err != nil || len(got) != len(want) {
			t.Fatalf("have %d secrets, %v", len(got), err)
		}
		for e, b := range want {
			if !got[e].Equal(take(b)) {
				t.Fatalf("epoch %d differs", e)
			}
		}
		bit := rapid.IntRange(0, 255).Draw(t, "bit")
		flip := func(b []byte) []byte {
			b = slices.Clone(b)
			b[bit/8%len(b)] ^= 1 << (bit % 8)
			return b
		}
		changedData, changedSalt := enc, enc
		changedData.Data = flip(enc.Data)
		changedSalt.Salt = [32]byte(flip(enc.Salt[:]))
		shorter := enc
		shorter.Data = enc.Data[:rapid.IntRange(0, len(enc.Data)-1).Draw(t, "length")]
		for name, err := range map[string]error{
			"rack":   second(Decrypt(secret.Heap{}, enc, sec, ident.RackID(flip(rack[:])), epoch)),
			"epoch":  second(Decrypt(secret.Heap{}, enc, sec, rack, epoch^1<<(bit%64))),
			"secret": second(Decrypt(secret.Heap{}, enc, take(flip(raw)), rack, epoch)),
			"data":   second(Decrypt(secret.Heap{}, changedData, sec, rack, epoch)),
			"salt":   second(Decrypt(secret.Heap{}, changedSalt, sec, rack, epoch)),
			"length": second(Decrypt(secret.Heap{}, shorter, sec, rack, epoch)),
		} {
			if !errors.Is(err, ErrAEAD) {
				t.Fatalf("wrong %s: %v", name, err)
			}
		}
	})
}

func second[T any](_ T, err error) error { return err }

func TestEncryptRefuses(t *testing.T) {
	t.Parallel()
	sec, short := rackSecret(t, ascending(1)), rackSecret(t, ascending(1)[:31])
	one := OldSecrets{1: sec}
	many := OldSecrets{}
	for e := range ident.Epoch(MaxOldSecrets + 1) {
		many[e] = sec
	}
	full := maps.Clone(many)
	delete(full, 0)
	salt := make([]byte, 32)
	for _, c := range []struct {
		name  string
		rand  []byte
		sec   secret.RackSecret
		epoch ident.Epoch
		old   OldSecrets
		want  error
	}{
		{"nothing to encrypt", salt, sec, 2, nil, ErrNoSecrets},
		{"as many as allowed", salt, sec, math.MaxUint64, full, nil},
		{"too many", salt, sec, math.MaxUint64, many, ErrTooMany},
		{"own epoch", salt, sec, 1, one, ErrNotOlder},
		{"later epoch", salt, sec, 0, one, ErrNotOlder},
		{"short salt", salt[:9], sec, 2, one, io.ErrUnexpectedEOF},
		{"no new secret", salt, secret.RackSecret{}, 2, one, secret.ErrEmpty},
		{"short new secret", salt, short, 2, one, secret.ErrLength},
		{"empty old secret", salt, sec, 2, OldSecrets{1: {}}, secret.ErrEmpty},
		{"short old secret", salt, sec, 2, OldSecrets{1: short}, secret.ErrLength},
	} {
		e, err := Encrypt(bytes.NewReader(c.rand), c.sec, testRack, c.epoch, c.old)
		if !errors.Is(err, c.want) || err != nil && e.Data != nil {
			t.Errorf("%s: have %v and %d bytes, want %v", c.name, err, len(e.Data), c.want)
		}
	}
}

// seal encrypts any records, as a hostile coordinator could.
func seal(t testing.TB, sec secret.RackSecret, epoch ident.Epoch, records []byte) (e EncryptedSecrets) {
	t.Helper()
	if err := withKey(e.Salt, sec, testRack, epoch, func(key []byte) error {
		aead, err := chacha20poly1305.New(key)
		e.Data = aead.Seal(nil, make([]byte, chacha20poly1305.NonceSize), records, nil)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return e
}

func records(epochs ...ident.Epoch) (b []byte) {
	for _, e := range epochs {
		b = append(binary.BigEndian.AppendUint64(b, uint64(e)), ascending(byte(e))...)
	}
	return b
}

func TestDecryptRefuses(t *testing.T) {
	t.Parallel()
	sec := rackSecret(t, ascending(1))
	for _, c := range []struct {
		name    string
		records []byte
		epoch   ident.Epoch
		want    error
	}{
		{"none", nil, 5, nil},
		{"epoch 0", records(0, 1), 5, nil},
		{"one byte short", records(1, 2)[:79], 5, ErrInvalidLength},
		{"one byte", []byte{1}, 5, ErrInvalidLength},
		{"same epoch twice", records(1, 1), 5, ErrEpochOrder},
		{"descending", records(3, 1), 5, ErrEpochOrder},
		{"own epoch", records(1, 5), 5, ErrEpochOrder},
		{"later epoch", records(6), 5, ErrEpochOrder},
		{"highest epoch", records(math.MaxUint64), math.MaxUint64, ErrEpochOrder},
		{"epoch 0 of epoch 0", records(0), 0, ErrEpochOrder},
		{"highest but one", records(math.MaxUint64 - 1), math.MaxUint64, nil},
	} {
		a := &counted{left: 100}
		got, err := Decrypt(a, seal(t, sec, c.epoch, c.records), sec, testRack, c.epoch)
		if !errors.Is(err, c.want) {
			t.Errorf("%s: have %v, want %v", c.name, err, c.want)
		}
		if got.Destroy(); a.open.Load() != 0 {
			t.Errorf("%s: %d allocations left", c.name, a.open.Load())
		}
	}
	huge := EncryptedSecrets{Data: make([]byte, MaxOldSecrets*recordSize+17)}
	if _, err := Decrypt(&counted{}, huge, sec, testRack, 5); !errors.Is(err, ErrTooMany) {
		t.Errorf("too many: %v", err)
	}
	for _, s := range []secret.RackSecret{{}, rackSecret(t, ascending(1)[:16])} {
		if _, err := Decrypt(secret.Heap{}, EncryptedSecrets{Data: make([]byte, 56)}, s, testRack, 5); !errors.Is(err, secret.ErrEmpty) && !errors.Is(err, secret.ErrLength) {
			t.Errorf("secret of %d bytes: %v", s.Len(), err)
		}
	}
	for left := range 4 {
		a := &counted{left: left}
		if _, err := Decrypt(a, seal(t, sec, 5, records(1, 2, 3)), sec, testRack, 5); !errors.Is(err, errNoPages) || a.open.Load() != 0 {
			t.Errorf("%d allocations: %v, %d left", left, err, a.open.Load())
		}
	}
}

func TestDecryptErrorNames(t *testing.T) {
	t.Parallel()
	for e, want := range map[DecryptError]string{ErrAEAD: "aead", ErrInvalidLength: "invalid_length", ErrEpochOrder: "epoch_order", "other": "other"} {
		if e.Name() != want || !strings.HasPrefix(e.Error(), "keys: ") {
			t.Errorf("%s: %s", e.Name(), e.Error())
		}
	}
}

func TestOldSecretsClone(t *testing.T) {
	t.Parallel()
	o := OldSecrets{3: rackSecret(t, ascending(3)), 1: rackSecret(t, ascending(1))}
	c, err := o.Clone(secret.Heap{})
	if err != nil {
		t.Fatal(err)
	}
	o.Destroy()
	o.Destroy()
	if len(o) != 0 || !slices.Equal(c.Epochs(), []ident.Epoch{1, 3}) || reveal(t, c[3]) != hex.EncodeToString(ascending(3)) {
		t.Errorf("have %v after the source was destroyed", c.Epochs())
	}
	a := &counted{left: 1}
	if _, err := c.Clone(a); !errors.Is(err, errNoPages) || a.open.Load() != 0 {
		t.Errorf("clone without memory: %v, %d left", err, a.open.Load())
	}
}

func TestDiskValidate(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", MaxDiskField)
	for _, c := range []struct {
		d  Disk
		ok bool
	}{
		{Disk{"1b96", "WUS4C6432DSP3X3", "A079E3D1"}, true},
		{Disk{"a", " b ", "ü"}, true},
		{Disk{long, long, long}, true},
		{Disk{}, false},
		{Disk{"", "b", "c"}, false},
		{Disk{"a", "", "c"}, false},
		{Disk{"a", "b", ""}, false},
		{Disk{long + "x", "b", "c"}, false},
		{Disk{"a", "b\n", "c"}, false},
		{Disk{"a", "b", "c\x00"}, false},
		{Disk{"a", "\xff", "c"}, false},
	} {
		if err := c.d.Validate(); (err == nil) != c.ok || err != nil && !errors.Is(err, ErrDisk) {
			t.Errorf("%.40q: %v", c.d.String(), err)
		}
	}
}

func TestDerivationRefuses(t *testing.T) {
	t.Parallel()
	disk := Disk{"a", "b", "c"}
	if _, err := NewPRK(secret.Heap{}, secret.RackSecret{}, [32]byte{}); !errors.Is(err, secret.ErrEmpty) {
		t.Errorf("no rack secret: %v", err)
	}
	if _, err := NewPRK(secret.Heap{}, rackSecret(t, make([]byte, 33)), [32]byte{}); !errors.Is(err, secret.ErrLength) {
		t.Errorf("long rack secret: %v", err)
	}
	short, err := secret.Take[secret.PRKKind](secret.Heap{}, make([]byte, 31))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := DiskKey(secret.Heap{}, short, disk); !errors.Is(err, secret.ErrLength) {
		t.Errorf("short key: %v", err)
	}
	if _, err := DiskKey(secret.Heap{}, secret.PRK{}, disk); !errors.Is(err, secret.ErrEmpty) {
		t.Errorf("no key: %v", err)
	}
	prk, err := NewPRK(secret.Heap{}, rackSecret(t, ascending(0)), [32]byte{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := DiskKey(&counted{}, prk, disk); !errors.Is(err, errNoPages) {
		t.Errorf("no memory: %v", err)
	}
}

// FuzzDecrypt gives the decoder records that pass the tag, and data that does not.
func FuzzDecrypt(f *testing.F) {
	f.Add(records(1, 2), uint64(3))
	f.Add(records(2, 1), uint64(3))
	f.Add([]byte{1, 2, 3}, uint64(0))
	f.Fuzz(func(t *testing.T, raw []byte, epoch uint64) {
		sec := rackSecret(t, ascending(1))
		got, err := Decrypt(secret.Heap{}, seal(t, sec, ident.Epoch(epoch), raw), sec, testRack, ident.Epoch(epoch))
		if err == nil && len(got) > 0 { // what is accepted encodes to the same bytes
			again, err := encryptDerandomized([32]byte{}, sec, testRack, ident.Epoch(epoch), got)
			if err != nil || !bytes.Equal(again.Data, seal(t, sec, ident.Epoch(epoch), raw).Data) {
				t.Errorf("encoded again: %v", err)
			}
		}
		if _, err := Decrypt(secret.Heap{}, EncryptedSecrets{Data: raw}, sec, testRack, ident.Epoch(epoch)); err == nil {
			t.Error("forged")
		}
	})
}

func benchOld(b *testing.B) (secret.RackSecret, OldSecrets) {
	b.Helper()
	old := OldSecrets{}
	for e := range ident.Epoch(10) {
		old[e] = rackSecret(b, ascending(byte(e)))
	}
	return rackSecret(b, ascending(99)), old
}

// BenchmarkEncrypt encrypts ten older secrets.
func BenchmarkEncrypt(b *testing.B) {
	sec, old := benchOld(b)
	for b.Loop() {
		if _, err := encryptDerandomized([32]byte{}, sec, testRack, 10, old); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkDecrypt decrypts ten older secrets.
func BenchmarkDecrypt(b *testing.B) {
	sec, old := benchOld(b)
	e, err := encryptDerandomized([32]byte{}, sec, testRack, 10, old)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		got, err := Decrypt(secret.Heap{}, e, sec, testRack, 10)
		if err != nil {
			b.Fatal(err)
		}
		got.Destroy()
	}
}

// BenchmarkDiskKey derives the key of one disk.
func BenchmarkDiskKey(b *testing.B) {
	prk, err := NewPRK(secret.Heap{}, rackSecret(b, ascending(0)), [32]byte{})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		k, err := DiskKey(secret.Heap{}, prk, Disk{"1b96", "WUS4C6432DSP3X3", "A079E3D1"})
		if err != nil {
			b.Fatal(err)
		}
		k.Destroy()
	}
}

// Errors that reach a log must not carry what they are about.
func TestErrorsHoldNoSecrets(t *testing.T) {
	t.Parallel()
	raw := bytes.Repeat([]byte("Qz7#"), 8)
	sec := rackSecret(t, raw[:31])
	for _, err := range []error{
		second(NewPRK(secret.Heap{}, sec, [32]byte{})),
		second(Encrypt(bytes.NewReader(make([]byte, 32)), sec, testRack, 2, OldSecrets{1: sec})),
		second(Decrypt(secret.Heap{}, EncryptedSecrets{Data: make([]byte, 56)}, sec, testRack, 2)),
	} {
		if text := fmt.Sprintf("%v %+v %#v", err, err, err); strings.Contains(text, "Qz7#") || strings.Contains(text, hex.EncodeToString(raw[:4])) {
			t.Errorf("shows the secret: %s", text)
		}
	}
}
