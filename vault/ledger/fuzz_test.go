package ledger

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"testing"

	"github.com/sledvault/sledvault/vault/secret"
	"github.com/sledvault/sledvault/vault/wire"
)

// FuzzDecodeFile: no panic, and what is accepted is written again as it was.
func FuzzDecodeFile(f *testing.F) {
	good := &File{Rack: testRack, Baseboard: testID, Epoch: 1, Sequence: 2, Generation: 3, Blob: []byte("b"), Approvals: [][]byte{{1}}, Ciphertext: make([]byte, 40)}
	raw, err := good.AppendTo(nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw[:len(raw)-sumLen])
	f.Fuzz(func(t *testing.T, body []byte) {
		sealed := sum(body) // past the checksum, or nothing would get there
		file, err := DecodeFile(sealed)
		if err != nil {
			return
		}
		again, err := file.AppendTo(nil)
		if err != nil || !bytes.Equal(again, sealed) {
			t.Fatalf("%v: have %x, want %x", err, again, sealed)
		}
		key := secret.SealKey{}
		if _, err := file.decrypt(secret.Heap{}, key); err == nil {
			t.Fatal("opened without a key")
		}
	})
}

// FuzzObserved: no panic in the plaintext's decoder, which only the sled itself writes.
func FuzzObserved(f *testing.F) {
	enc, _, err := codec()
	if err != nil {
		f.Fatal(err)
	}
	o := Observed{Peers: map[string]Seen{"aa": {1, 2, 3, 4, [32]byte{5}}, "bb": {1, 2, 3, 4, [32]byte{}}}, Alarms: []Alarm{{Code: "c"}}, Releases: []Release{{Disk: "d"}}, Reasons: []Reason{{Code: "r"}}}
	raw, err := enc.Marshal(o.bounded())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Fuzz(func(t *testing.T, b []byte) {
		if o, err := parseObserved(b); err == nil {
			if _, err := enc.Marshal(o.bounded()); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// FuzzNetworkFile: what is accepted has a generation and a blob that may be sent on, and is what was written.
func FuzzNetworkFile(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x00\x00\x00\x00\x01blob"))
	f.Add(make([]byte, 8))
	f.Add([]byte("short"))
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := parseNetwork(b)
		if err != nil {
			return
		}
		again := append(binary.BigEndian.AppendUint64(nil, n.Generation), n.Blob...)
		if n.Generation == 0 || len(n.Blob) > wire.MaxNetworkBlob || !bytes.Equal(again, b) {
			t.Fatalf("generation %d, %d bytes", n.Generation, len(n.Blob))
		}
	})
}

func TestDecodeFileRefusals(t *testing.T) {
	t.Parallel()
	good := func() *File {
		return &File{Rack: testRack, Baseboard: testID, Sequence: 2, Blob: []byte("b"), Approvals: [][]byte{{1}}, Ciphertext: make([]byte, 40)}
	}
	raw, err := good().AppendTo(nil)
	if err != nil {
		t.Fatal(err)
	}
	for n := range raw { // every cut and every flipped byte
		if _, err := DecodeFile(raw[:n]); err == nil {
			t.Errorf("cut to %d bytes: accepted", n)
		}
		bad := bytes.Clone(raw)
		bad[n] ^= 0x10
		if _, err := DecodeFile(bad); err == nil {
			t.Errorf("byte %d flipped: accepted", n)
		}
	}
	if _, err := DecodeFile(append(bytes.Clone(raw), 0)); err == nil {
		t.Error("trailing byte: accepted")
	}
	for name, change := range map[string]func(*File){
		"no blob":        func(f *File) { f.Blob = nil },
		"large blob":     func(f *File) { f.Blob = make([]byte, maxBlob+1) },
		"no approval":    func(f *File) { f.Approvals = nil },
		"many approvals": func(f *File) { f.Approvals = make([][]byte, maxApprovals+1) },
		"empty approval": func(f *File) { f.Approvals = [][]byte{nil} },
		"sequence 0":     func(f *File) { f.Sequence = 0 },
		"no ciphertext":  func(f *File) { f.Ciphertext = make([]byte, tagLen) },
		"no serial":      func(f *File) { f.Baseboard.Serial = "" },
	} {
		f := good()
		change(f)
		if _, err := f.AppendTo(nil); err == nil {
			t.Errorf("%s: written", name)
		}
	}
	newer := bytes.Clone(raw[:len(raw)-sumLen])
	newer[len(ledgerMagic)+1] = 2
	if _, err := DecodeFile(sum(newer)); err == nil {
		t.Error("version 2: accepted")
	}
}

// sum appends the checksum.
func sum(body []byte) []byte {
	s := sha256.Sum256(body)
	return slices.Concat(body, s[:])
}
