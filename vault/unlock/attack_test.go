package unlock

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sledvault/sledvault/internal/rig"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/keys"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
)

// victim is a formatted disk whose header tests may forge.
type victim struct {
	l    *LUKS2
	d    Disk
	r    Record
	key  secret.DiskKey
	good []byte
}

func newVictim(t *testing.T) victim {
	t.Helper()
	rig.Need(t, "cryptsetup")
	key, err := secret.Take[secret.DiskKeyKind](secret.Heap{}, bytes.Repeat([]byte{1}, 32))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "disk")
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, 4<<20)); err != nil {
		t.Fatal(err)
	}
	v := victim{l: New(Config{Mapper: t.TempDir()}), key: key, d: Disk{
		ID: "d0", Backend: BackendLUKS2, Path: path, Identity: keys.Disk{Vendor: "1b96", Model: "M", Serial: "S"},
	}}
	if v.r, err = v.l.Format(t.Context(), v.d, FormatOptions{SectorSize: 512}, key, 1, ident.RackID{1}); err != nil {
		t.Fatal(err)
	}
	if v.good, err = os.ReadFile(path); err != nil {
		t.Fatal(err)
	}
	return v
}

// forge gives the disk a header with other metadata and right checksums, in both copies.
func (v victim) forge(t *testing.T, edit func(string) string) {
	t.Helper()
	raw, err := readHeader(bytes.NewReader(v.good), "d0")
	if err != nil {
		t.Fatal(err)
	}
	text := edit(string(raw.json))
	if text == string(raw.json) {
		t.Fatal("the edit changed nothing")
	}
	area := make([]byte, raw.size-binarySize)
	copy(area, text)
	out := bytes.Clone(v.good)
	m := metadata{raw: raw}
	for i, magic := range []string{magicFirst, magicSecond} {
		at := uint64(i) * raw.size
		copy(out[at:], m.copyAt(at, magic, area))
	}
	if err := os.WriteFile(v.d.Path, out, 0o600); err != nil {
		t.Fatal(err)
	}
}

func swap(old, new string) func(string) string {
	return func(s string) string { return strings.ReplaceAll(s, old, new) }
}

func swapLast(old, new string) func(string) string {
	return func(s string) string {
		if i := strings.LastIndex(s, old); i >= 0 {
			return s[:i] + new + s[i+len(old):]
		}
		return s
	}
}

func TestAttack(t *testing.T) {
	t.Run("fs-confusion", attackConfusion)
	t.Run("luks-header-malleable", func(t *testing.T) {
		t.Parallel()
		v := newVictim(t)
		for _, c := range []struct {
			name string
			edit func(string) string
			code reason.Code
			say  string
		}{
			{"data cipher null", swapLast(`"encryption":"aes-xts-plain64"`, `"encryption":"cipher_null-ecb"`), CodeRefused, "segment 0"},
			{"key slot cipher null", func(s string) string {
				return strings.Replace(s, `"encryption":"aes-xts-plain64"`, `"encryption":"cipher_null-ecb"`, 1)
			}, CodeRefused, "key slot 0 area"},
			{"linear segment", swap(`"type":"crypt"`, `"type":"linear"`), CodeRefused, "linear"},
			{"data moved", swap(`"offset":"3145728"`, `"offset":"3149824"`), CodeChanged, "segment-offset"},
			{"data over the header", swap(`"offset":"3145728"`, `"offset":"16384"`), CodeRefused, "offset"},
			{"iv moved", swap(`"iv_tweak":"0"`, `"iv_tweak":"8"`), CodeChanged, "segment-iv-tweak"},
			{"sector size", swap(`"sector_size":512`, `"sector_size":4096`), CodeChanged, "sector-size"},
			{"other volume key", swap(`"digest":"`, `"digest":"AAAA`), CodeChanged, "volume-key-digest"},
			{"digest iterations", swapLast(`"iterations":`, `"iterations":9`), CodeChanged, "digest-iterations"},
			{"no digest", swap(`"digests":{"0"`, `"digests":{"1"`), CodeRefused, "digests"},
			{"second segment", swap(`"segments":{`, `"segments":{"1":{},`), CodeRefused, "segments"},
			{"discard flag", swap(`"json_size"`, `"flags":["allow-discards"],"json_size"`), CodeChanged, "flags"},
			{"unknown requirement", swap(`"json_size"`, `"requirements":{"mandatory":["zoned"]},"json_size"`), CodeRefused, "zoned"},
			{"integrity", swap(`"sector_size":512`, `"sector_size":512,"integrity":{"type":"none"}`), CodeRefused, "integrity"},
			{"memory bomb", swap(`"kdf":{"type":"pbkdf2","hash":"sha256","iterations":1000`, `"kdf":{"type":"argon2id","time":4,"memory":4194304,"cpus":4`), CodeRefused, "memory"},
			{"key twice", swap(`"json_size"`, `"json_size":"1","json_size"`), CodeDamaged, "twice"},
			{"key in another case", swap(`"json_size"`, `"JSON_SIZE":"1","json_size"`), CodeRefused, "JSON_SIZE"},
			{"text behind", func(s string) string { return s + "{}" }, CodeDamaged, "end"},
			{"deep", swap(`"tokens":{`, `"tokens":{"9":`+strings.Repeat("[", 100)+strings.Repeat("]", 100)+`,`), CodeDamaged, "deep"},
			{"area outside", swap(`"offset":"32768"`, `"offset":"8192"`), CodeRefused, "area"},
		} {
			v.forge(t, c.edit)
			_, err := v.l.Open(t.Context(), v.d, v.r, v.key)
			if reason.CodeOf(err) != c.code || !strings.Contains(err.Error(), c.say) {
				t.Errorf("%s: have %q: %v; want %q naming %s", c.name, reason.CodeOf(err), err, c.code, c.say)
			}
		}
	})

	t.Run("luks-header-malleable/exchanged", func(t *testing.T) {
		t.Parallel()
		// A thief puts a header of his own making, under the right key even, in place of ours.
		v, other := newVictim(t), newVictim(t)
		if err := os.WriteFile(v.d.Path, other.good, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := v.l.Open(t.Context(), v.d, v.r, v.key)
		if reason.CodeOf(err) != CodeChanged {
			t.Fatalf("have %v, want %q", err, CodeChanged)
		}
	})

	t.Run("luks-header-malleable/private copy", func(t *testing.T) {
		t.Parallel()
		// What cryptsetup opens holds nothing that was not checked: no tokens, one slot, and it cannot be written.
		v := newVictim(t)
		m := v.metadata(t)
		f, err := m.privateCopy(bytes.NewReader(v.good), "d0", 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt([]byte{1}, 0); err == nil {
			t.Error("the private copy can be written")
		}
		raw, err := readHeader(f, "d0")
		if err != nil || bytes.Contains(raw.json, []byte(tokenType)) {
			t.Fatalf("have %s, %v", raw.json, err)
		}
		again, err := parseMetadata(raw, "d0")
		if err != nil || !slices.Equal(again.pins, m.pins) {
			t.Fatalf("have %v, %v", again, err)
		}
	})

	t.Run("luks-reencrypt-recovery", func(t *testing.T) {
		t.Parallel()
		v := newVictim(t)
		for name, edit := range map[string]func(string) string{
			"requirement": swap(`"json_size"`, `"requirements":{"mandatory":["online-reencrypt-v2"]},"json_size"`),
			"old form":    swap(`"json_size"`, `"requirements":{"mandatory":["online-reencrypt"]},"json_size"`),
			"key slot":    swap(`"keyslots":{`, `"keyslots":{"1":{"type":"reencrypt","mode":"decrypt"},`),
			"segment":     swap(`"sector_size":512`, `"sector_size":512,"flags":["in-reencryption"]`),
		} {
			v.forge(t, edit)
			_, err := v.l.Open(t.Context(), v.d, v.r, v.key)
			if reason.CodeOf(err) != CodeReencrypt {
				t.Errorf("%s: have %v, want %q", name, err, CodeReencrypt)
			}
			_, err = v.l.Adopt(t.Context(), v.d, v.key, 1)
			if reason.CodeOf(err) != CodeReencrypt {
				t.Errorf("%s: adopt: have %v, want %q", name, err, CodeReencrypt)
			}
			after, err := os.ReadFile(v.d.Path)
			if err != nil || !bytes.Equal(after[v.metadata(t).segmentOffset:], v.good[v.metadata(t).segmentOffset:]) {
				t.Errorf("%s: the data was touched: %v", name, err)
			}
		}
	})
}

func (v victim) metadata(t *testing.T) *metadata {
	t.Helper()
	raw, err := readHeader(bytes.NewReader(v.good), "d0")
	if err != nil {
		t.Fatal(err)
	}
	m, err := parseMetadata(raw, "d0")
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestDiskValidate(t *testing.T) {
	t.Parallel()
	ok := Disk{ID: "nvme0", Backend: BackendLUKS2, Path: "/dev/nvme0n1"}
	if err := ok.Validate(); err != nil {
		t.Fatal(err)
	}
	for _, edit := range []func(*Disk){
		func(d *Disk) { d.ID = "" }, func(d *Disk) { d.ID = "-x" }, func(d *Disk) { d.ID = "a/b" },
		func(d *Disk) { d.ID = strings.Repeat("a", 65) }, func(d *Disk) { d.Mapping = "../x" },
		func(d *Disk) { d.Path = "--help" }, func(d *Disk) { d.Path = "" }, func(d *Disk) { d.Backend = "zfs" },
	} {
		d := ok
		edit(&d)
		if err := d.Validate(); reason.CodeOf(err) != CodeConfig {
			t.Errorf("%+v: have %v, want %q", d, err, CodeConfig)
		}
	}
}

// FuzzHeader: no header makes the parser panic, and what it accepts can be written and read again with equal pins.
func FuzzHeader(f *testing.F) {
	f.Add([]byte(`{"keyslots":{},"tokens":{},"segments":{"0":{"type":"crypt","offset":"4194304","size":"dynamic","iv_tweak":"0",` +
		`"encryption":"aes-xts-plain64","sector_size":512}},"digests":{"0":{"type":"pbkdf2","keyslots":[],"segments":["0"],"hash":"sha256",` +
		`"iterations":1000,"salt":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","digest":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}},` +
		`"config":{"json_size":"12288","keyslots_size":"1048576"}}`))
	f.Add([]byte(`{"config":{"requirements":{"mandatory":["online-reencrypt-v2"]}}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		m, err := parseMetadata(rawHeader{size: 16384, json: text}, "d0")
		if err != nil {
			if reason.CodeOf(err) == "" {
				t.Fatalf("untyped: %v", err)
			}
			return
		}
		area, err := m.reduced(nil)
		if err != nil {
			return
		}
		dev := append(m.copyAt(0, magicFirst, area), m.copyAt(16384, magicSecond, area)...)
		raw, err := readHeader(bytes.NewReader(dev), "d0")
		if err != nil {
			t.Fatal(err)
		}
		// Key slots were left out, and with them their names in the digest.
		if again, err := parseMetadata(raw, "d0"); err != nil || !slices.Equal(again.pins, m.pins) {
			t.Fatalf("have %v, want %v: %v", again, m.pins, err)
		}
	})
}

// FuzzHeaderBytes: any beginning of a disk is read as a header or refused with a reason. Sizes and offsets come from the
// bytes; the checksums are made to hold, or nothing behind them would be reached.
func FuzzHeaderBytes(f *testing.F) {
	good := make([]byte, 2*minCopy)
	for i, magic := range []string{magicFirst, magicSecond} {
		bin := good[i*minCopy:]
		copy(bin, magic)
		binary.BigEndian.PutUint16(bin[offVersion:], 2)
		binary.BigEndian.PutUint64(bin[offSize:], minCopy)
		binary.BigEndian.PutUint64(bin[offSeq:], uint64(i))
		binary.BigEndian.PutUint64(bin[offSelf:], uint64(i)*minCopy)
		copy(bin[offAlg:], "sha256")
		copy(bin[binarySize:], "{}")
	}
	f.Add(good[:binarySize+100], uint16(0), uint64(0))
	f.Add(good[:binarySize+100], uint16(offSize), uint64(1)<<63)
	f.Add([]byte{}, uint16(offSelf), uint64(7))
	f.Fuzz(func(t *testing.T, head []byte, at uint16, word uint64) {
		dev := bytes.Clone(good)
		copy(dev, head)
		if int(at)+8 <= minCopy {
			binary.BigEndian.PutUint64(dev[minCopy+int(at):], word)
		}
		for i := range 2 {
			h := dev[i*minCopy:][:minCopy]
			sum := checksum(h[:binarySize], h[binarySize:])
			copy(h[offSum:], sum[:])
		}
		h, err := readHeader(bytes.NewReader(dev), "d0")
		if err != nil {
			if reason.CodeOf(err) == "" {
				t.Fatalf("untyped: %v", err)
			}
			return
		}
		if h.size < minCopy || h.size > maxCopy || len(h.bin) != binarySize || uint64(len(h.json)) >= h.size-binarySize {
			t.Fatalf("have %d bytes, %d of metadata", h.size, len(h.json))
		}
		if _, err := parseMetadata(h, "d0"); err != nil && reason.CodeOf(err) == "" {
			t.Fatalf("untyped: %v", err)
		}
	})
}
