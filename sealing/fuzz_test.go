package sealing

import (
	"bytes"
	"testing"
)

// FuzzDecodeBlob: no panic, and what is accepted is written again as it was.
func FuzzDecodeBlob(f *testing.F) {
	seed := fixedSeed(f)
	key, err := publicKey(seed, labelPolicy)
	if err != nil {
		f.Fatal(err)
	}
	good, err := (&BlobInfo{Public: []byte("p"), Private: []byte("q"), PolicyKey: key, CounterKey: key, CounterIndex: 1}).encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Fuzz(func(t *testing.T, b []byte) {
		info, err := DecodeBlob(b)
		if err != nil {
			return
		}
		if again, err := info.encode(); err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%v: have %x, want %x", err, again, b)
		}
		// Nothing that a decoder accepts may panic further on.
		_, _ = verify(Params{Baseboard: testID}, Pins{CounterName: nil}, testRack, b)
	})
}

// FuzzDecodeApproval: as above.
func FuzzDecodeApproval(f *testing.F) {
	f.Add((&ApprovalInfo{Sequence: 1, PCRs: fixedPCRs()}).encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		info, err := DecodeApproval(b)
		if err != nil {
			return
		}
		if again := info.encode(); !bytes.Equal(again, b) {
			t.Fatalf("have %x, want %x", again, b)
		}
	})
}

// FuzzDecodeClaim: as above.
func FuzzDecodeClaim(f *testing.F) {
	f.Add(Claim{Rack: testRack}.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := decodeClaim(b); err == nil && !bytes.Equal(c.encode(), b) {
			t.Fatalf("have %x, want %x", c.encode(), b)
		}
	})
}

func TestMalformed(t *testing.T) {
	t.Parallel()
	approval := (&ApprovalInfo{Sequence: 1, PCRs: fixedPCRs()}).encode()
	for n := range approval {
		if _, err := DecodeApproval(approval[:n]); err == nil {
			t.Errorf("approval cut to %d bytes: accepted", n)
		}
	}
	claim := Claim{}.encode()
	for n := range claim {
		if _, err := decodeClaim(claim[:n]); err == nil {
			t.Errorf("claim cut to %d bytes: accepted", n)
		}
	}
	claim[0] = 2
	if _, err := decodeClaim(claim); err == nil {
		t.Error("claim of version 2: accepted")
	}
	for _, pcrs := range [][]int{{}, {16}, {-1}, {23}} {
		if _, err := (Params{PCRs: pcrs}).checked(); err == nil {
			t.Errorf("PCRs %v: accepted", pcrs)
		}
	}
}

func BenchmarkSeal(b *testing.B) {
	s := newSled(b)
	u := s.enrol()
	for b.Loop() {
		if err := u.seal(b.Context(), u.v.counter); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkOpen(b *testing.B) {
	s := newSled(b)
	u := s.enrol()
	approvals := s.approve(u, s.counter(u))
	for b.Loop() {
		v, err := Open(b.Context(), s.p, s.pins, testRack, u.Blob(), approvals)
		if err != nil {
			b.Fatal(err)
		}
		v.Destroy()
	}
}

func BenchmarkApprove(b *testing.B) {
	s := newSled(b)
	u := s.enrol()
	for b.Loop() {
		s.approve(u, 7)
	}
}

func BenchmarkIncrement(b *testing.B) {
	s := newSled(b)
	u := s.enrol()
	c := s.counter(u)
	for b.Loop() {
		v, err := u.Increment(b.Context(), c)
		if err != nil {
			b.Fatal(err)
		}
		c = v
	}
}

func BenchmarkEnrol(b *testing.B) {
	s := newSled(b)
	for b.Loop() {
		e, err := Begin(b.Context(), s.p)
		if err != nil {
			b.Fatal(err)
		}
		u, err := e.Finish(b.Context(), testRack, s.claim())
		if err != nil {
			b.Fatal(err)
		}
		u.Destroy()
	}
}
