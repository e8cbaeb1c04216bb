package lrtq

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"

	"pgregory.net/rapid"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/secret"
)

var errDisk = errors.New("disk full")

func rackID() ident.RackID {
	return ident.RackID{0, 0x11, 0x22, 0x33, 0x44, 0x55, 0x46, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff}
}

func pc(name string) Board { return Board{Kind: PC, Identifier: name, Model: "p"} }

// flight is a message on its way.
type flight struct {
	from, to *sled
	m        Message
}

// sled is a node with its disk.
type sled struct {
	id    Board
	node  *Node
	disk  State // what was saved last; nodes are started from clones of it
	calls map[Call]Reply
	saves int
}

// cluster is a rack with one queue for all messages, as the reference's trace was recorded with.
type cluster struct {
	t      rapid.TB
	sleds  []*sled
	queue  []flight
	links  map[[2]Board]bool
	seed   byte
	starts byte
	fail   *sled // whose next save fails
	seen   func(*sled, Effects)
}

func newCluster(t rapid.TB, seed byte, names ...string) *cluster {
	t.Helper()
	c := &cluster{t: t, links: map[[2]Board]bool{}, seed: seed, seen: func(*sled, Effects) {}}
	for _, n := range names {
		s := &sled{id: pc(n), calls: map[Call]Reply{}}
		c.sleds = append(c.sleds, s)
		c.start(s)
	}
	return c
}

func (c *cluster) sled(name string) *sled {
	for _, s := range c.sleds {
		if s.id.Identifier == name {
			return s
		}
	}
	return nil
}

func (c *cluster) at(b Board) *sled {
	for _, s := range c.sleds {
		if s.id == b {
			return s
		}
	}
	return nil
}

func cloneState(t rapid.TB, st State) State {
	t.Helper()
	if _, ok := st.Common(); ok {
		p, err := st.Package.Clone(secret.Heap{})
		if err != nil {
			t.Fatal(err)
		}
		st.Package = p
	}
	st.Given = maps.Clone(st.Given)
	return st
}

// start makes a node from the sled's disk.
func (c *cluster) start(s *sled) {
	c.t.Helper()
	c.starts++
	n, err := New(Config{ID: s.id, Rand: rand.NewChaCha8([32]byte{c.seed, c.starts}), Alloc: secret.Heap{}}, cloneState(c.t, s.disk))
	if err != nil {
		c.t.Fatal(err)
	}
	s.node = n
}

func (c *cluster) crash(s *sled) {
	s.node.Close()
	s.node = nil
	for _, o := range c.sleds {
		if o != s {
			c.disconnect(s, o)
		}
	}
}

func link(a, b Board) [2]Board {
	if a.Compare(b) > 0 {
		a, b = b, a
	}
	return [2]Board{a, b}
}

func (c *cluster) connect(a, b *sled) {
	c.t.Helper()
	if a != b && a.node != nil && b.node != nil && !c.links[link(a.id, b.id)] {
		c.links[link(a.id, b.id)] = true
		c.do(a, PeerUp{b.id})
		c.do(b, PeerUp{a.id})
	}
}

func (c *cluster) connectAll() {
	c.t.Helper()
	for i, a := range c.sleds {
		for _, b := range c.sleds[i+1:] {
			c.connect(a, b)
		}
	}
}

func (c *cluster) disconnect(a, b *sled) (lost int) {
	if !c.links[link(a.id, b.id)] {
		return 0
	}
	delete(c.links, link(a.id, b.id))
	before := len(c.queue)
	c.queue = slices.DeleteFunc(c.queue, func(f flight) bool { return link(f.from.id, f.to.id) == link(a.id, b.id) })
	for _, s := range []*sled{a, b} {
		o := map[*sled]*sled{a: b, b: a}[s]
		if s.node != nil {
			c.do(s, PeerDown{o.id})
		}
	}
	return before - len(c.queue)
}

// step gives a sled one input; err is what Step or the save refused.
func (c *cluster) step(s *sled, in Input) (Effects, error) {
	out, err := s.node.Step(in)
	if err != nil {
		return Effects{}, err
	}
	fx, err := out.Durable(func(st State) error {
		if c.fail == s {
			c.fail = nil
			return errDisk
		}
		s.disk, s.saves = cloneState(c.t, st), s.saves+1
		return nil
	})
	if err != nil {
		return fx, err
	}
	for _, e := range fx.Send {
		if to := c.at(e.To); to != nil && c.links[link(s.id, to.id)] {
			c.queue = append(c.queue, flight{s, to, e.Message})
		} else {
			c.t.Errorf("%s sends %s to %s, which is not connected", s.id, KindOf(e.Message), e.To)
		}
	}
	for _, r := range fx.Replies {
		if _, twice := s.calls[r.Call]; twice {
			c.t.Errorf("%s: call %d was answered twice", s.id, r.Call)
		}
		s.calls[r.Call] = r
	}
	c.seen(s, fx)
	return fx, nil
}

func (c *cluster) do(s *sled, in Input) Effects {
	c.t.Helper()
	fx, err := c.step(s, in)
	if err != nil {
		c.t.Fatalf("%s: %T: %v", s.id, in, err)
	}
	return fx
}

// deliver takes the oldest message to its receiver.
func (c *cluster) deliver() (flight, Effects) {
	c.t.Helper()
	f := c.queue[0]
	c.queue = c.queue[1:]
	return f, c.do(f.to, PeerMessage{f.from.id, f.m})
}

func (c *cluster) deliverAll() {
	c.t.Helper()
	for count := 0; len(c.queue) > 0; count++ {
		if count > 100_000 {
			c.t.Fatal("messages go round for ever")
		}
		c.deliver()
	}
}

func (c *cluster) tick(n int) {
	c.t.Helper()
	for range n {
		for _, s := range c.sleds {
			if s.node != nil {
				c.do(s, Tick{})
			}
		}
	}
}

// found makes a rack of the named sleds, the first being the founder.
func (c *cluster) found(names ...string) {
	c.t.Helper()
	var members []Board
	for _, n := range names {
		members = append(members, pc(n))
	}
	c.do(c.sled(names[0]), InitRack{Call: 1000, RackID: rackID(), Members: members})
	c.deliverAll()
	if r, ok := c.sled(names[0]).calls[1000]; !ok || r.Err != nil {
		c.t.Fatalf("founding: %v, answered %v", r.Err, ok)
	}
}

// load has a sled load the secret and returns its bytes.
func (c *cluster) load(s *sled, call Call) []byte {
	c.t.Helper()
	c.do(s, LoadSecret{call})
	c.deliverAll()
	r, ok := s.calls[call]
	if !ok || r.Err != nil {
		c.t.Fatalf("%s: load: %v, answered %v", s.id, r.Err, ok)
	}
	return raw(c.t, r.Secret)
}

func names(n int) (out []string) {
	for i := range n {
		out = append(out, fmt.Sprintf("%02d", i))
	}
	return out
}
