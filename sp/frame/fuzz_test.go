package frame

import (
	"bytes"
	"testing"
)

func FuzzCOBS(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{1, 1, 1})
	f.Add(bytes.Repeat([]byte{7}, 600))
	f.Fuzz(func(t *testing.T, p []byte) {
		enc := AppendCOBS(nil, p)
		if bytes.IndexByte(enc, 0) >= 0 {
			t.Fatal("terminator inside the encoding")
		}
		if back, err := DecodeCOBS(nil, enc); err != nil || !bytes.Equal(back, p) {
			t.Fatalf("round trip: %x, %v", back, err)
		}
		if dec, err := DecodeCOBS(nil, p); err == nil && len(dec) > len(p) {
			t.Fatalf("decoded %d bytes from %d", len(dec), len(p))
		}
	})
}

func FuzzReply(f *testing.F) {
	good, _ := AppendReply(nil, Reply{Version, 1 | ReplyBit, Ack, nil})
	f.Add(good[:len(good)-1])
	f.Fuzz(func(t *testing.T, p []byte) {
		r, err := DecodeReply(p)
		if err != nil {
			return
		}
		enc, err := AppendReply(nil, r)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := DecodeReply(enc[:len(enc)-1]); err != nil || !bytes.Equal(again.Body, r.Body) || again.Seq != r.Seq || again.Kind != r.Kind {
			t.Fatalf("round trip: %+v, %v", again, err)
		}
		_, _ = ParseIdentity(r.Body)
		_, _ = ParseStatus(r.Body)
		_, _, _ = ParseKeyResult(r.Body)
	})
}

func FuzzRequest(f *testing.F) {
	good, _ := AppendRequest(nil, Request{Version, 1, KeyLookup, Lookup{KeyPing, 16}.Append(nil)})
	f.Add(good[:len(good)-1])
	f.Fuzz(func(t *testing.T, p []byte) {
		r, why := JudgeRequest(p)
		if why != Accepted {
			return
		}
		_, _ = ParseLookup(r.Body)
		enc, err := AppendRequest(nil, r)
		if err != nil {
			return // the service processor is laxer about length than a sender may be
		}
		if again, why := JudgeRequest(enc[:len(enc)-1]); why != Accepted || !bytes.Equal(again.Body, r.Body) {
			t.Fatalf("round trip: %+v, %v", again, why)
		}
	})
}

func FuzzDeframer(f *testing.F) {
	f.Add([]byte{0, 1, 2, 0, 3, 0, 0}, []byte{1, 2})
	f.Add(append(bytes.Repeat([]byte{9}, 5000), 0, 4, 0), []byte{250})
	f.Fuzz(func(t *testing.T, p, cuts []byte) {
		whole := NewDeframer(MaxFrame)
		want := frames(whole, p)
		cut := NewDeframer(MaxFrame)
		var have []Frame
		rest := p
		for i := 0; len(rest) > 0; i++ {
			n := len(rest)
			if len(cuts) > 0 {
				n = min(n, int(cuts[i%len(cuts)])+1)
			}
			have = append(have, frames(cut, rest[:n])...)
			rest = rest[n:]
		}
		if len(have) != len(want) || cut.Pending() != whole.Pending() || cut.Zeros() != whole.Zeros() || cap(cut.buf) > MaxFrame {
			t.Fatalf("chunks matter: %d frames, want %d", len(have), len(want))
		}
		for i := range have {
			if !bytes.Equal(have[i].Bytes, want[i].Bytes) || have[i].Dropped != want[i].Dropped {
				t.Fatalf("frame %d differs", i)
			}
		}
	})
}
