package wire

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"

	"github.com/sledvault/sledvault/vault/gfss"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/lrtq"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
)

func testState(t testing.TB) LedgerState {
	t.Helper()
	c2 := *testCertificate()
	c2.Epoch = 300
	return LedgerState{
		Sequence: 17, Generation: 1000, SetGeneration: 3, SetDigest: digestOf(0xee),
		Quorum: quorum.State{
			Configs:      map[ident.Epoch]*quorum.Configuration{1: config1(), 300: config2()},
			Shares:       map[ident.Epoch]gfss.Share{300: shareSH(t), 1: share(t, 3, bytes.Repeat([]byte{9}, 32)...)},
			Commits:      map[ident.Epoch]bool{1: true, 300: true},
			Certificates: map[ident.Epoch]*quorum.Certificate{1: testCertificate(), 300: &c2},
			Expunged:     &quorum.Expunged{Epoch: 301, From: board("2")},
		},
		Disks: []DiskRecord{
			{
				ID: "data0", Backend: "luks2", Vendor: "ACME", Model: "SSD 1", Serial: "S/N 7", Epoch: 300, KeySlot: 1, State: "in-use",
				HeaderPins: []Pin{{"cipher", "aes-xts-plain64"}, {"digest", "ab"}},
			},
			{ID: "tank", Backend: "zfs", KeySlot: -1},
		},
	}
}

// testOldState is a state that came from the older scheme.
func testOldState(t testing.TB) LedgerState {
	t.Helper()
	s := testState(t)
	s.Quorum.LRTQ = &lrtq.Package{
		RackID: config1().RackID, Threshold: 2, Share: share(t, 7, bytes.Repeat([]byte{5}, 32)...), Digests: [][32]byte{digestOf(0x11), digestOf(0x22), digestOf(0x33)},
	}
	return s
}

func encodeState(t testing.TB, s LedgerState) []byte {
	t.Helper()
	p, err := EncodeState(secret.Heap{}, s)
	if err != nil {
		t.Fatal(err)
	}
	var out []byte
	if err := p.Use(func(b []byte) error { out = bytes.Clone(b); return nil }); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestState(t *testing.T) {
	t.Parallel()
	for name, s := range map[string]LedgerState{"full": testState(t), "empty": {}, "older scheme": testOldState(t)} {
		p, err := EncodeState(secret.Heap{}, s)
		if err != nil {
			t.Fatal(err)
		}
		have, err := DecodeState(secret.Heap{}, p)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if d := diff(s, have); d != "" {
			t.Errorf("%s: %s", name, d)
		}
		if !bytes.Equal(encodeState(t, have), encodeState(t, s)) {
			t.Errorf("%s: encoding again differs", name)
		}
	}
}

// TestStatePages checks that a state is written once, into pages of its size.
func TestStatePages(t *testing.T) {
	t.Parallel()
	s := testState(t)
	a := &counted{}
	p, err := EncodeState(a, s)
	if err != nil || a.total() != 1 || p.Len() != len(encodeState(t, s)) {
		t.Errorf("have %d allocations, %v; want 1", a.total(), err)
	}
	if _, err := EncodeState(failing{}, s); err == nil {
		t.Error("encoded without memory")
	}
	if _, err := DecodeState(secret.Heap{}, secret.Plaintext{}); err == nil {
		t.Error("decoded nothing")
	}
}

func TestStateOfOlderSchemeRefuses(t *testing.T) {
	t.Parallel()
	good := encodeState(t, testOldState(t))
	at := bytes.LastIndex(good, []byte{keyLRTQ, 0x86, 0x50})
	a := &counted{}
	for name, change := range map[string]func([]byte){
		"another key":   func(b []byte) { b[at] = 12 },
		"epoch":         func(b []byte) { b[at+3+16] = 1 },
		"x":             func(b []byte) { b[at+3+16+2] = 0 },
		"digests order": func(b []byte) { b[len(b)-66] = 0x44 },
	} {
		b := bytes.Clone(good)
		change(b)
		if _, err := DecodeStateBytes(a, b); reason.CodeOf(err) == "" || a.live() != 0 {
			t.Errorf("%s: %v, %d secrets remain", name, err, a.live())
		}
	}
	for n := at; n < len(good); n++ {
		if _, err := DecodeStateBytes(a, good[:n]); err == nil || a.live() != 0 {
			t.Fatalf("the first %d bytes: %v, %d secrets remain", n, err, a.live())
		}
	}
	s := testOldState(t)
	s.Quorum.LRTQ.Digests[0], s.Quorum.LRTQ.Digests[1] = s.Quorum.LRTQ.Digests[1], s.Quorum.LRTQ.Digests[0]
	if _, err := EncodeState(secret.Heap{}, s); reason.CodeOf(err) != CodeOrder {
		t.Errorf("unsorted digests: %v", err)
	}
}

func TestStateRefuses(t *testing.T) {
	t.Parallel()
	good := encodeState(t, testState(t))
	a := &counted{}
	for n := range good {
		if _, err := DecodeStateBytes(a, good[:n]); reason.CodeOf(err) == "" || a.live() != 0 {
			t.Fatalf("the first %d bytes: %v, %d secrets remain", n, err, a.live())
		}
	}
	for _, c := range []struct {
		name     string
		from, to string
		code     reason.Code
	}{
		{"version", "state/v1", "state/v2", CodeVersion},
		{"long number", "\x01\x11\x02", "\x01\x18\x11\x02", CodeNotCanonical},
		{"key order", "\x01\x11\x02", "\x02\x11\x02", CodeOrder},
		{"share x", "\x83\x01\x03\x58", "\x83\x01\x00\x58", CodeRange},
		{"share epoch twice", "\x83\x19\x01\x2c\x02", "\x83\x01\x02\x58\x20", CodeDuplicate},
		{"disk twice", "\x64tank", "\x65data0", CodeDuplicate},
		{"disks not ascending", "\x64tank", "\x64aaaa", CodeOrder},
		{"commits", "\x05\x82\x01\x19\x01\x2c", "\x05\x82\x01\x01\x01\x2c", CodeDuplicate},
	} {
		b := bytes.Replace(good, []byte(c.from), []byte(c.to), 1)
		if bytes.Equal(b, good) {
			t.Fatalf("%s: nothing replaced", c.name)
		}
		_, err := DecodeStateBytes(a, b)
		if have := reason.CodeOf(err); have != c.code && c.name != "share epoch twice" || err == nil || a.live() != 0 {
			t.Errorf("%s: have %q (%v) and %d secrets, want %q", c.name, have, err, a.live(), c.code)
		}
		if reason.HintOf(err) == "" {
			t.Errorf("%s: no hint", c.name)
		}
	}
	_, err := DecodeStateBytes(a, append(bytes.Clone(good), 0))
	if reason.CodeOf(err) != CodeTrailing {
		t.Errorf("have %v, want %s", err, CodeTrailing)
	}
	for name, b := range map[string]string{"map of 12": "ac0072736c65647661756c742f73746174652f7631", "no version": "ab01", "nothing": "", "array": "80"} {
		if _, err := DecodeStateBytes(a, unhex(t, b)); reason.CodeOf(err) == "" {
			t.Errorf("%s: have %v, want a code", name, err)
		}
	}
}

func TestEncodeStateRefuses(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*LedgerState){
		"configuration under another epoch": func(s *LedgerState) { s.Quorum.Configs[2] = config1() },
		"no configuration":                  func(s *LedgerState) { s.Quorum.Configs[2] = nil },
		"certificate under another epoch":   func(s *LedgerState) { s.Quorum.Certificates[2] = testCertificate() },
		"no certificate":                    func(s *LedgerState) { s.Quorum.Certificates[2] = nil },
		"not committed":                     func(s *LedgerState) { s.Quorum.Commits[2] = false },
		"empty share":                       func(s *LedgerState) { s.Quorum.Shares[2] = gfss.Share{X: 1} },
		"disks":                             func(s *LedgerState) { s.Disks[0], s.Disks[1] = s.Disks[1], s.Disks[0] },
		"long text":                         func(s *LedgerState) { s.Disks[0].State = strings.Repeat("x", 1025) },
		"many pins":                         func(s *LedgerState) { s.Disks[0].HeaderPins = make([]Pin, 65) },
		"break glass":                       func(s *LedgerState) { s.BreakGlass = make([]byte, maxBreak+1) },
	} {
		s := testState(t)
		change(&s)
		if _, err := EncodeState(secret.Heap{}, s); reason.CodeOf(err) == "" {
			t.Errorf("%s: have %v, want a code", name, err)
		}
	}
}

// TestErrorsShowNoSecret spoils a state and a message all over and looks for share bytes in what the errors say.
func TestErrorsShowNoSecret(t *testing.T) {
	t.Parallel()
	y := bytes.Repeat([]byte{0xd7}, 32)
	st := encodeState(t, LedgerState{Quorum: quorum.State{Shares: map[ident.Epoch]gfss.Share{1: share(t, 3, y...)}}})
	msg := mustEncode(t, TQ{quorum.Message{RackID: rackR, Kind: quorum.ShareReply{Epoch: 1, Share: share(t, 3, y...)}}})
	look := func(err error) {
		if err == nil {
			return
		}
		for _, s := range []string{"d7", "D7", "215", "\xd7"} {
			if strings.Contains(err.Error(), s) {
				t.Fatalf("the error shows a byte of the share: %v", err)
			}
		}
	}
	for i := range msg {
		for _, c := range []byte{0x00, 0x20, 0x81, 0xa1, 0xff} {
			b := bytes.Clone(msg)
			b[i] = c
			_, err := Decode(secret.Heap{}, b)
			look(err)
		}
	}
	for i := range st {
		for _, c := range []byte{0x00, 0x20, 0x81, 0xa1, 0xff} {
			b := bytes.Clone(st)
			b[i] = c
			_, err := DecodeStateBytes(secret.Heap{}, b)
			look(err)
		}
	}
}

// TestFrozenState holds the bytes of version 1. A failure means: revert, or write version 2 beside it.
func TestFrozenState(t *testing.T) {
	t.Parallel()
	if have := hex.EncodeToString(encodeState(t, testState(t))); have != frozenState {
		t.Errorf("have %s", have)
	}
	s, err := DecodeStateBytes(secret.Heap{}, unhex(t, frozenState))
	if err != nil {
		t.Fatal(err)
	}
	if d := diff(testState(t), s); d != "" {
		t.Error(d)
	}
}
