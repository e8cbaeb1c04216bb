package lrtq

import (
	"errors"
	"math/big"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/sledvault/sledvault/vault/secret"
)

// FuzzCombine cuts its input into shares of 33 bytes; the last one may be shorter. No panic; what is accepted agrees
// with the twin and with another order of the shares.
func FuzzCombine(f *testing.F) {
	for _, v := range load(f).CombineEdgeCases {
		var in []byte
		for _, s := range v.Shares {
			in = append(in, s...)
		}
		f.Add(in)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) > 33*40 {
			return
		}
		var shares []Share
		values := map[byte]*big.Int{}
		for c := range slices.Chunk(in, 33) {
			shares = append(shares, share(t, c))
			values[c[0]] = little(c[1:])
		}
		s, err := Combine(secret.Heap{}, shares)
		if err != nil {
			if _, ok := errors.AsType[CombineError](err); !ok && !errors.Is(err, secret.ErrEmpty) {
				t.Fatalf("an error without a type: %v", err)
			}
			return
		}
		if want := littleBytes(slowCombine(values)); !slices.Equal(raw(t, s), want) {
			t.Fatalf("have %x, want %x", raw(t, s), want)
		}
		slices.Reverse(shares)
		if again, err := Combine(secret.Heap{}, shares); err != nil || !again.Equal(s) {
			t.Fatalf("another secret in reverse order: %v", err)
		}
	})
}

// tape turns fuzz input into choices.
type tape struct{ b []byte }

func (t *tape) next() int {
	if len(t.b) == 0 {
		return 0
	}
	v := t.b[0]
	t.b = t.b[1:]
	return int(v)
}

// FuzzStep gives a sled of a live rack arbitrary inputs made of true and invented parts. Whatever comes, it must not panic,
// nor stop, nor end up with a state that it would not start from, nor say anything to whom it is not connected.
func FuzzStep(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20})
	f.Add([]byte("found, load, learn, tick, and everything once more in another order"))
	packages, _ := testPackages(f, 4)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 300 {
			b = b[:300]
		}
		in := &tape{b}
		st := State{}
		if i := in.next() % 6; i < 4 {
			st = cloneState(t, State{Phase: InitialMember, Package: packages[i]})
		} else if i == 4 {
			st = cloneState(t, State{Phase: Learned, Package: SharePackage{Common: packages[2].Common}})
		}
		n, err := New(Config{ID: pc("00"), Rand: rand.NewChaCha8([32]byte{3}), Alloc: secret.Heap{}, Limits: Limits{Peers: 3}}, st)
		if err != nil {
			t.Fatal(err)
		}
		up := map[Board]bool{}
		for len(in.b) > 0 {
			input := invent(n, packages, in)
			out, err := n.Step(input)
			if stopped, ok := errors.AsType[*StoppedError](err); ok {
				t.Fatal(stopped)
			}
			if err != nil {
				continue
			}
			fx, err := out.Durable(func(st State) error { return st.Validate() })
			if err != nil {
				t.Fatal(err)
			}
			switch i := input.(type) {
			case PeerUp:
				up[i.Peer] = true
			case PeerDown:
				delete(up, i.Peer)
			}
			for _, e := range fx.Send {
				if !up[e.To] {
					t.Fatalf("%s sent to %s, which is not connected", KindOf(e.Message), e.To)
				}
			}
			if s := n.Status(); len(s.Peers) > 3 || len(s.Running) > 6 {
				t.Fatalf("remembers %d peers and %d requests", len(s.Peers), len(s.Running))
			}
		}
	})
}

func invent(n *Node, packages []SharePackage, in *tape) Input {
	peer := pc(names(8)[in.next()%8])
	id := RequestID{byte(in.next() % 3)}
	if tr := n.tracked; len(tr) > 0 && in.next()%2 == 0 {
		id = tr[in.next()%len(tr)].id
	}
	switch in.next() % 12 {
	case 0, 1:
		return PeerUp{peer}
	case 2:
		return PeerDown{peer}
	case 3:
		return Tick{}
	case 4:
		return LoadSecret{Call(in.next())}
	case 5:
		return StartLearning{}
	case 6:
		return InitRack{RackID: rackID(), Members: []Board{pc("00"), peer, pc("07")}}
	}
	p, err := packages[in.next()%len(packages)].Clone(secret.Heap{})
	if err != nil {
		return nil
	}
	switch in.next() {
	case 1:
		p.Common.Share.X++
	case 2:
		p.Common.Digests = p.Common.Digests[:2]
	case 3:
		p.Common.Threshold = 0
	case 4:
		p.Common.Share = Share{}
	}
	messages := []Message{
		Request{id, Init{p}},
		Request{id, GetShare{rackID()}},
		Request{id, Learn{}},
		Response{id, InitAck{}},
		Response{id, ShareReply{p.Common.Share}},
		Response{id, LearnReply{p.Common}},
		Response{id, Refusal{Why: StillLearning}},
		Request{ID: id},
		Response{Request: id},
		nil,
	}
	return PeerMessage{peer, messages[in.next()%len(messages)]}
}
