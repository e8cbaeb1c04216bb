package quorumtest

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/secret"
)

// Cluster is a set of sleds with a controller's key and a network that moves only when told to.
// Messages keep their order within a connection; a connection that breaks loses what is on its way.
type Cluster struct {
	Auth  Authority
	Sleds []*Sled
	// Alloc is for nodes that start from now on.
	Alloc secret.Allocator
	// Save decides the fate of each save; nil saves always. Whatever it returns, the disk holds what it stored.
	Save func(s *Sled, st quorum.State) error
	// Seen gets the effects of every step after they are released and before they are sent; may be nil.
	Seen func(s *Sled, fx *quorum.Effects)
	// Refused is told of inputs that were refused or could not be stored; may be nil.
	Refused func(s *Sled, err error)
	// Wire may alter a message on its way to the network; nil leaves all as they are.
	Wire func(from, to *Sled, m quorum.Message) quorum.Message
	// Watch is told of every event; may be nil. See [Event].
	Watch func(Event)

	index map[ident.Baseboard]int
	queue [][]fifo // [from][to]
	conn  [][]bool // symmetric
	held  [][]bool // [from][to]: what is on its way does not arrive until the connection is made anew
	full  [][]bool // [from][to]: the next message finds its queue full
	busy  []pair   // pairs with messages on their way, in no particular order
	seed  uint64
	boots uint64

	events uint64 // told so far
}

// Sled is one simulated sled. Node is nil while it is down.
type Sled struct {
	Index        int
	ID           ident.Baseboard
	Node         *quorum.Node
	Disk         quorum.State
	Capabilities []string
	Authority    quorum.Authority // nil stands for the cluster's
}

// Up reports whether the sled runs.
func (s *Sled) Up() bool { return s.Node != nil }

type pair struct{ from, to int }

type fifo struct {
	msgs []quorum.Message
	at   int // place in busy + 1; 0 if empty
}

// RackID is the rack of every cluster.
func RackID() ident.RackID { return ident.RackID{0x5, 0x1, 0xed} }

// NewCluster makes sleds that are up and not connected. Part numbers are "sled"; names become serial numbers.
func NewCluster(seed uint64, names ...string) *Cluster {
	c := &Cluster{Auth: Authority{Key: seed, Rack: RackID()}, Alloc: secret.Heap{}, index: map[ident.Baseboard]int{}, seed: seed}
	for i, name := range names {
		s := &Sled{Index: i, ID: ident.Baseboard{Part: "sled", Serial: name}, Capabilities: []string{quorum.CapabilityAuthority}}
		c.Sleds = append(c.Sleds, s)
		c.index[s.ID] = i
		c.queue = append(c.queue, make([]fifo, len(names)))
		c.conn = append(c.conn, make([]bool, len(names)))
		c.held = append(c.held, make([]bool, len(names)))
		c.full = append(c.full, make([]bool, len(names)))
	}
	for _, s := range c.Sleds {
		if err := c.Start(s); err != nil {
			panic(err) // the state is empty and the identity ours
		}
	}
	return c
}

// Sled finds a sled by its serial number, or returns nil.
func (c *Cluster) Sled(name string) *Sled {
	if i, ok := c.index[ident.Baseboard{Part: "sled", Serial: name}]; ok {
		return c.Sleds[i]
	}
	return nil
}

// Find finds a sled by identity, or returns nil.
func (c *Cluster) Find(id ident.Baseboard) *Sled {
	if i, ok := c.index[id]; ok {
		return c.Sleds[i]
	}
	return nil
}

// Start boots a sled from its disk, without connections.
func (c *Cluster) Start(s *Sled) error {
	c.boots++
	var authority quorum.Authority = c.Auth
	if s.Authority != nil {
		authority = s.Authority
	}
	n, err := quorum.New(quorum.Config{
		ID: s.ID, Alloc: c.Alloc, Authority: authority,
		Rand: c.rand(c.boots<<8 | uint64(s.Index)),
	}, s.Disk)
	if err != nil {
		return err
	}
	s.Node = n
	c.emit(Event{Kind: EventStart, Sled: s})
	return nil
}

func (c *Cluster) rand(stream uint64) io.Reader { return randReader{rand.NewPCG(c.seed, stream)} }

// Rand is a stream of random bytes that no node reads.
func (c *Cluster) Rand() io.Reader { return c.rand(1 << 63) }

// randReader gives bytes cheaply; the secrets of a simulation need no more.
type randReader struct{ src *rand.PCG }

func (r randReader) Read(b []byte) (int, error) {
	for i := 0; i < len(b); i += 8 {
		v := r.src.Uint64()
		for j := i; j < min(i+8, len(b)); j++ {
			b[j] = byte(v)
			v >>= 8
		}
	}
	return len(b), nil
}

// Crash takes a sled down. Its connections break.
func (c *Cluster) Crash(s *Sled) {
	s.Node = nil
	c.emit(Event{Kind: EventCrash, Sled: s})
	for _, o := range c.Sleds {
		c.Disconnect(s, o)
	}
}

// Connected reports whether two sleds are connected.
func (c *Cluster) Connected(a, b *Sled) bool { return c.conn[a.Index][b.Index] }

// Disconnect breaks a connection and loses what is on its way.
func (c *Cluster) Disconnect(a, b *Sled) {
	if !c.conn[a.Index][b.Index] {
		return
	}
	c.conn[a.Index][b.Index], c.conn[b.Index][a.Index] = false, false
	c.held[a.Index][b.Index], c.held[b.Index][a.Index] = false, false
	c.full[a.Index][b.Index], c.full[b.Index][a.Index] = false, false
	c.drain(pair{a.Index, b.Index})
	c.drain(pair{b.Index, a.Index})
	for _, p := range [][2]*Sled{{a, b}, {b, a}} {
		if p[0].Up() {
			_ = c.Step(p[0], quorum.PeerDown{Peer: p[1].ID})
		}
	}
}

// Connect makes a new connection between two sleds that are up.
func (c *Cluster) Connect(a, b *Sled) {
	if a == b || !a.Up() || !b.Up() || c.conn[a.Index][b.Index] {
		return
	}
	c.conn[a.Index][b.Index], c.conn[b.Index][a.Index] = true, true
	for _, p := range [][2]*Sled{{a, b}, {b, a}} {
		if c.conn[a.Index][b.Index] { // a failed save of the first may have broken it already
			_ = c.Step(p[0], quorum.PeerUp{Peer: p[1].ID, Capabilities: p[1].Capabilities})
		}
	}
}

// ConnectAll connects all sleds that are up.
func (c *Cluster) ConnectAll() {
	for i, a := range c.Sleds {
		for _, b := range c.Sleds[i+1:] {
			c.Connect(a, b)
		}
	}
}

// ErrDown says that a sled does not run, or went down in this very step.
var ErrDown = errors.New("quorumtest: sled is down")

// Step gives a sled an input, saves, and puts its messages on the wire. A failed save takes the sled down. An
// *InvariantError that no failed save explains is returned as it is.
func (c *Cluster) Step(s *Sled, in quorum.Input) error {
	_, err := c.Do(s, in)
	return err
}

// Do is Step with the effects. Messages in them are on their way and must not be used.
func (c *Cluster) Do(s *Sled, in quorum.Input) (fx quorum.Effects, err error) {
	if !s.Up() {
		return fx, ErrDown
	}
	out, err := s.Node.Step(in)
	if err != nil {
		c.emitStep(s, in, nil, err)
		c.refuse(s, err)
		return fx, err
	}
	fx, err = out.Durable(func(st quorum.State) error {
		if c.Save != nil {
			return c.Save(s, st)
		}
		s.Disk = st
		return nil
	})
	if err != nil {
		c.emitStep(s, in, nil, err)
		c.refuse(s, err)
		c.Crash(s)
		return fx, fmt.Errorf("%w: %w", ErrDown, err)
	}
	c.emitStep(s, in, &fx, nil)
	if c.Seen != nil {
		c.Seen(s, &fx)
	}
	for _, e := range fx.Send {
		c.post(s, e)
	}
	return fx, nil
}

func (c *Cluster) refuse(s *Sled, err error) {
	if c.Refused != nil {
		c.Refused(s, err)
	}
}

func (c *Cluster) post(s *Sled, e quorum.Envelope) {
	to, ok := c.index[e.To]
	if !ok || !c.conn[s.Index][to] {
		destroy(e.Message.Kind)
		return
	}
	m := e.Message
	if c.Wire != nil {
		m = c.Wire(s, c.Sleds[to], m)
	}
	if c.full[s.Index][to] {
		destroy(m.Kind)
		c.Disconnect(s, c.Sleds[to])
		return
	}
	c.push(pair{s.Index, to}, m)
}

func (c *Cluster) push(p pair, m quorum.Message) {
	q := &c.queue[p.from][p.to]
	if q.at == 0 {
		c.busy = append(c.busy, p)
		q.at = len(c.busy)
	}
	q.msgs = append(q.msgs, m)
}

func (c *Cluster) pop(p pair) quorum.Message {
	q := &c.queue[p.from][p.to]
	m := q.msgs[0]
	if q.msgs = q.msgs[1:]; len(q.msgs) == 0 {
		c.idle(p)
	}
	return m
}

func (c *Cluster) drain(p pair) {
	q := &c.queue[p.from][p.to]
	for _, m := range q.msgs {
		destroy(m.Kind)
	}
	if q.at != 0 {
		c.idle(p)
	}
}

func (c *Cluster) idle(p pair) {
	q := &c.queue[p.from][p.to]
	last := c.busy[len(c.busy)-1]
	c.busy[q.at-1] = last
	c.queue[last.from][last.to].at = q.at
	c.busy = c.busy[:len(c.busy)-1]
	q.msgs, q.at = nil, 0
}

// Pending is the number of messages on their way from one sled to another.
func (c *Cluster) Pending(from, to *Sled) int { return len(c.queue[from.Index][to.Index].msgs) }

// Deliver delivers the oldest message from one sled to another, if there is one.
func (c *Cluster) Deliver(from, to *Sled) (m quorum.Message, ok bool, err error) {
	if c.Pending(from, to) == 0 {
		return m, false, nil
	}
	m = c.pop(pair{from.Index, to.Index})
	return m, true, c.Step(to, quorum.PeerMessage{From: from.ID, Message: m})
}

// DeliverAll delivers until nothing is on its way, in the order of sleds. The number of messages is returned.
func (c *Cluster) DeliverAll(each func(from, to *Sled, m quorum.Message)) (count int, err error) {
	for len(c.busy) > 0 {
		for _, to := range c.Sleds {
			for _, from := range c.Sleds {
				for c.Pending(from, to) > 0 {
					if each != nil {
						each(from, to, c.queue[from.Index][to.Index].msgs[0])
					}
					count++
					if _, _, err := c.Deliver(from, to); err != nil && !errors.Is(err, ErrDown) {
						return count, err
					}
				}
			}
		}
	}
	return count, nil
}

// Duplicate puts a second copy of the oldest message behind all others.
func (c *Cluster) Duplicate(from, to *Sled) {
	if c.Pending(from, to) > 0 {
		p := pair{from.Index, to.Index}
		c.push(p, CloneMessage(c.queue[p.from][p.to].msgs[0]))
	}
}

// Lose takes the oldest message off the wire while the connection stays, which no transport may do.
func (c *Cluster) Lose(from, to *Sled) (m quorum.Message, ok bool) {
	if c.Pending(from, to) == 0 {
		return m, false
	}
	m = c.pop(pair{from.Index, to.Index})
	destroy(m.Kind)
	return m, true
}

// Grant makes a signed grant for a request to one coordinator.
func (c *Cluster) Grant(coordinator *Sled, r quorum.Reconfigure) *quorum.Grant {
	g := &quorum.Grant{
		RackID: r.RackID, Epoch: r.Epoch, Coordinator: coordinator.ID, Members: ident.SortBaseboards(r.Members), Threshold: r.Threshold,
	}
	if r.LastCommitted != nil {
		g.LastCommitted = *r.LastCommitted
	}
	c.Auth.SignGrant(g)
	return g
}

// Request makes a granted request. last is 0 if nothing was committed.
func (c *Cluster) Request(coordinator *Sled, e, last ident.Epoch, k ident.Threshold, members ...*Sled) quorum.Reconfigure {
	r := quorum.Reconfigure{RackID: RackID(), Epoch: e, Threshold: k}
	if last != 0 {
		r.LastCommitted = &last
	}
	for _, m := range members {
		r.Members = append(r.Members, m.ID)
	}
	r.Grant = c.Grant(coordinator, r)
	return r
}
