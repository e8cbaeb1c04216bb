package wire

import (
	"bytes"
	"testing"

	"github.com/fxamacker/cbor/v2"

	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/reason"
)

// FuzzDecode: no panic, no secret left behind, and what is accepted survives a trip through the encoder.
func FuzzDecode(f *testing.F) {
	var v cborVectors
	loadJSON(f, "cbor.json", &v)
	for _, m := range v.Wire {
		f.Add(unhex(f, m.Frame)[4:])
	}
	for _, m := range v.Peer {
		f.Add(unhex(f, m.Frame)[4:])
	}
	for _, m := range ownMessages() {
		f.Add(mustEncode(f, m))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		a := &counted{}
		m, err := Decode(a, b)
		if err != nil {
			if reason.CodeOf(err) == "" || a.live() != 0 {
				t.Fatalf("%v: %d secrets remain", err, a.live())
			}
			return
		}
		if err := cbor.Wellformed(b); err != nil {
			t.Fatalf("accepted what is not CBOR: %v", err)
		}
		once, err := Encode(nil, m)
		if c, ok := m.(NetworkConfig); ok && len(c.Blob) > MaxNetworkBlob && reason.CodeOf(err) == CodeLength {
			return // read, so that the receiver can say what is wrong with it, and never sent
		}
		if err != nil {
			t.Fatal(err)
		}
		again, err := Decode(a, once)
		if err != nil {
			t.Fatal(err)
		}
		twice, err := Encode(nil, again)
		if err != nil || !bytes.Equal(once, twice) {
			t.Fatalf("%v\n%x\n%x", err, once, twice)
		}
		if Ours(m) && !bytes.Equal(b, once) {
			t.Fatalf("a second form of one of our messages\n%x\n%x", b, once)
		}
	})
}

// FuzzDecodeState: what is accepted is exactly what the encoder writes.
func FuzzDecodeState(f *testing.F) {
	f.Add(encodeState(f, testState(f)))
	f.Add(encodeState(f, LedgerState{}))
	f.Fuzz(func(t *testing.T, b []byte) {
		a := &counted{}
		s, err := DecodeStateBytes(a, b)
		if err != nil {
			if reason.CodeOf(err) == "" || a.live() != 0 {
				t.Fatalf("%v: %d secrets remain", err, a.live())
			}
			return
		}
		if !bytes.Equal(encodeState(t, s), b) {
			t.Fatal("encoding again differs")
		}
	})
}

// FuzzReadFrame: a frame that is read is the one that was sent.
func FuzzReadFrame(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x05\x64Ping"))
	f.Add([]byte("\x00\x00\x00\x00"))
	f.Add([]byte("\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := &greedy{r: bytes.NewReader(b)}
		p, err := ReadFrame(r, nil)
		if r.most > max(firstRead, 2*len(b)) {
			t.Fatalf("%d bytes of input make room for %d", len(b), r.most)
		}
		if err == nil && !bytes.Equal(p, b[4:4+len(p)]) {
			t.Fatal("payload differs")
		}
	})
}

// FuzzConfigurationJSON: what is accepted survives a trip through the encoder.
func FuzzConfigurationJSON(f *testing.F) {
	for _, c := range []*quorum.Configuration{config1(), config2(), nil} {
		b, err := EncodeConfigurationJSON(c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := DecodeConfigurationJSON(b)
		if err != nil || c == nil {
			return
		}
		once, err := EncodeConfigurationJSON(c)
		if err != nil {
			t.Fatal(err)
		}
		again, err := DecodeConfigurationJSON(once)
		if err != nil || !again.Equal(c) {
			t.Fatalf("%v\n%s\n%s", err, b, once)
		}
	})
}

func BenchmarkPrepare(b *testing.B) {
	c := config2()
	c.Members = nil
	for i := range 32 {
		c.Members = append(c.Members, quorum.Member{ID: board(string(rune('A' + i)))})
	}
	m := TQ{quorum.Message{RackID: rackR, Kind: quorum.Prepare{Config: c, Share: shareSH(b)}}}
	buf := make([]byte, 0, 8192)
	b.Run("encode", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := Encode(buf, m); err != nil {
				b.Fatal(err)
			}
		}
	})
	p := mustEncode(b, m)
	b.Run("decode", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			d, err := Decode(&counted{}, p)
			if err != nil {
				b.Fatal(err)
			}
			Destroy(d)
		}
	})
}
