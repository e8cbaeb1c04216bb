// Package lrtqnet speaks the older scheme with a rack's other sleds: plain TCP, nobody proves anything.
//
// It owns the connections and the goroutine that owns the scheme's node (vault/lrtq), which holds the sled's own share
// and no spare one. Whoever connects from an address of the configuration and names the rack is given that share: that
// is the scheme. So it is off unless the operator asks for it, and ends with the first commit of the trust quorum; it
// accepts no address that is not configured, bounds handshakes, connections and queues, and counts every refusal.
//
// Implements docs/lrtq.md §4 and docs/wire.md §10.
package lrtqnet

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/sledvault/sledvault/vault/lrtq"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
	"github.com/sledvault/sledvault/vault/wire"
)

// Port is where sleds of the older scheme listen.
const Port = 12347

// Reasons of this package.
const (
	CodeListen    reason.Code = "lrtq-listen"     // the address for the older scheme cannot be opened
	CodeStranger  reason.Code = "lrtq-stranger"   // a connection from an address that is not configured
	CodeBusy      reason.Code = "lrtq-busy"       // too many connections or handshakes
	CodeHandshake reason.Code = "lrtq-handshake"  // a peer that did not say who it is, in time and in form
	CodeDirection reason.Code = "lrtq-direction"  // a peer that dialled although its address is the lower one, or says that it is somebody else
	CodeClosed    reason.Code = "lrtq-connection" // a connection ended; the text says why
	CodeUnserved  reason.Code = "lrtq-unserved"   // a message that is not passed on: network configurations of the older scheme
	CodeQueue     reason.Code = "lrtq-queue"      // a peer that does not take what it is sent
	CodeEnded     reason.Code = "lrtq-ended"      // the older scheme is not served any more
)

// Limits of connections.
const (
	maxConns      = 64
	maxHandshakes = 16
	maxPerAddr    = 8 // handshakes and connections of one IP address
	queueLength   = 8 // frames to one peer
)

// Timing is how long things take. A zero field stands for its default.
type Timing struct {
	Tick      time.Duration // of the node; default 250 ms
	Ping      time.Duration // default 1 s
	Idle      time.Duration // how long a peer may be silent, or not take what it is sent; default 10 s
	Handshake time.Duration // default 10 s
	Retry     time.Duration // before the next attempt to dial, doubled up to 30 times that; default 1 s
}

func (t Timing) orDefault() Timing {
	for _, f := range []struct{ v, d *time.Duration }{
		{&t.Tick, new(250 * time.Millisecond)},
		{&t.Ping, new(time.Second)},
		{&t.Idle, new(10 * time.Second)},
		{&t.Handshake, new(10 * time.Second)},
		{&t.Retry, new(time.Second)},
	} {
		if *f.v <= 0 {
			*f.v = *f.d
		}
	}
	return t
}

// Config is what a server is made of.
type Config struct {
	ID      lrtq.Board
	Listen  netip.AddrPort   // IPv6; peers order sleds by it
	Peers   []netip.AddrPort // the other sleds; the own address may be among them
	Package lrtq.Package     // the server owns it from [New] on, also if that fails
	Alloc   secret.Allocator
	Rand    io.Reader
	Reasons *reason.Log
	Log     *slog.Logger
	Timing  Timing
}

// Server is the sled in the older scheme.
type Server struct {
	cfg    Config
	node   *lrtq.Node // owned by Run's goroutine, like the two below
	conns  map[lrtq.Board]*conn
	calls  map[lrtq.Call]chan lrtq.Reply
	ln     net.Listener
	events chan event
	ended  chan struct{} // closed when Run has returned

	mu          sync.Mutex
	status      lrtq.Status
	perAddr     map[netip.Addr]int
	handshaking int
	lastCall    lrtq.Call
}

// event is one thing that happens to the owner: exactly one field is set.
type event struct {
	up     *conn
	down   *conn
	from   *conn // with msg
	msg    lrtq.Message
	load   *request
	forget *request
}

// request is a load that somebody waits for.
type request struct {
	call  lrtq.Call
	reply chan lrtq.Reply // room for one
}

// New makes a server; nothing is opened yet. Errors: those of [lrtq.New].
func New(cfg Config) (*Server, error) {
	node, err := lrtq.New(lrtq.Config{ID: cfg.ID, Rand: cfg.Rand, Alloc: cfg.Alloc, Limits: lrtq.Limits{Peers: maxConns}},
		lrtq.State{Phase: lrtq.Learned, Package: lrtq.SharePackage{Common: cfg.Package}})
	if err != nil {
		cfg.Package.Destroy()
		return nil, err
	}
	cfg.Timing = cfg.Timing.orDefault()
	return &Server{
		cfg: cfg, node: node, conns: map[lrtq.Board]*conn{}, calls: map[lrtq.Call]chan lrtq.Reply{}, events: make(chan event, 16),
		ended: make(chan struct{}), status: node.Status(), perAddr: map[netip.Addr]int{},
	}, nil
}

// Listen opens the address.
func (s *Server) Listen(ctx context.Context) error {
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", s.cfg.Listen.String())
	if err != nil {
		return reason.Wrap(err, CodeListen, "check [lrtq] listen in the configuration", "lrtq: listen")
	}
	s.ln = ln
	return nil
}

// Run serves until ctx ends, and returns when nothing of it runs any more and its share is wiped. It returns an error if
// the node stopped.
func (s *Server) Run(parent context.Context) error {
	ctx, cancel := context.WithCancel(parent)
	var wg sync.WaitGroup
	defer func() {
		cancel()
		if s.ln != nil {
			_ = s.ln.Close()
		}
		close(s.ended)
		wg.Wait()
		for len(s.events) > 0 { // nobody sends any more
			lrtq.Destroy((<-s.events).msg)
		}
		s.node.Close()
		s.setStatus(lrtq.Status{Phase: "ended", Peers: []string{}})
	}()
	if s.ln != nil {
		wg.Go(func() { s.accept(ctx, &wg) })
	}
	for _, p := range s.cfg.Peers {
		if compareAddr(s.cfg.Listen, p) > 0 {
			wg.Go(func() { s.dialAgain(ctx, p) })
		}
	}
	tick := time.NewTicker(s.cfg.Timing.Tick)
	defer tick.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			err = s.step(lrtq.Tick{})
		case e := <-s.events:
			err = s.handle(e)
		}
		if err != nil {
			return fmt.Errorf("lrtq: %w", err)
		}
	}
}

// compareAddr orders listen addresses: the greater one dials.
func compareAddr(a, b netip.AddrPort) int {
	x, y := a.Addr().As16(), b.Addr().As16()
	return cmp.Or(bytes.Compare(x[:], y[:]), cmp.Compare(a.Port(), b.Port()))
}

func (s *Server) handle(e event) error {
	switch {
	case e.up != nil:
		return s.up(e.up)
	case e.down != nil:
		if s.conns[e.down.id] != e.down { // replaced before
			return nil
		}
		delete(s.conns, e.down.id)
		return s.step(lrtq.PeerDown{Peer: e.down.id})
	case e.from != nil:
		if s.conns[e.from.id] != e.from {
			lrtq.Destroy(e.msg)
			return nil
		}
		return s.step(lrtq.PeerMessage{From: e.from.id, Message: e.msg})
	case e.load != nil:
		s.calls[e.load.call] = e.load.reply
		out, err := s.node.Step(lrtq.LoadSecret{Call: e.load.call})
		if isStopped(err) {
			return err
		}
		if err != nil {
			s.answer(lrtq.Reply{Call: e.load.call, Err: err})
			return nil //nolint:nilerr // the caller has the error, the server goes on
		}
		return s.release(out)
	case e.forget != nil:
		delete(s.calls, e.forget.call)
		select {
		case r := <-e.forget.reply:
			r.Secret.Destroy()
		default:
		}
	}
	return nil
}

func isStopped(err error) bool {
	_, ok := errors.AsType[*lrtq.StoppedError](err)
	return ok
}

// up takes a connection in. A newer one of the same sled replaces the older.
func (s *Server) up(c *conn) error {
	if old := s.conns[c.id]; old != nil {
		old.close()
	} else if len(s.conns) >= maxConns {
		s.cfg.Reasons.Count(CodeBusy, c.id.String(), fmt.Sprintf("have %d connections", maxConns))
		c.close()
		return nil
	}
	s.conns[c.id] = c
	return s.step(lrtq.PeerUp{Peer: c.id})
}

func (s *Server) step(in lrtq.Input) error {
	out, err := s.node.Step(in)
	if err != nil {
		return err // no input but a load is refused
	}
	return s.release(out)
}

// release does what a step asks for. Nothing changes a learned sled's state, so nothing is saved.
func (s *Server) release(out lrtq.Output) error {
	fx, err := out.Durable(func(lrtq.State) error { return errors.New("a learned sled's state changed") })
	if err != nil {
		return err
	}
	for _, e := range fx.Send {
		s.send(e)
	}
	for _, r := range fx.Replies {
		s.answer(r)
	}
	for _, n := range fx.Notes {
		s.note(n)
	}
	s.setStatus(s.node.Status())
	return nil
}

func (s *Server) send(e lrtq.Envelope) {
	frame, err := wire.AppendLRTQFrame(nil, wire.LRTQ{Message: e.Message})
	lrtq.Destroy(e.Message)
	if c := s.conns[e.To]; err == nil && c != nil {
		select {
		case c.out <- frame:
			return
		default:
			s.cfg.Reasons.Count(CodeQueue, e.To.String(), fmt.Sprintf("%d messages wait already", queueLength))
			c.close()
		}
	}
	clear(frame)
}

func (s *Server) answer(r lrtq.Reply) {
	ch := s.calls[r.Call]
	delete(s.calls, r.Call)
	if ch == nil {
		r.Secret.Destroy()
		return
	}
	ch <- r // buffered: one reply per call
}

// note counts what was refused, and every share that was given away.
func (s *Server) note(n lrtq.Note) {
	peer := ""
	if n.Peer != (lrtq.Board{}) {
		peer = n.Peer.String()
	}
	if !lrtq.Transition(n.Code) || n.Code == lrtq.CodeShareGiven {
		s.cfg.Reasons.Count(n.Code, peer, cmp.Or(n.Text, string(n.Kind)))
	}
	s.cfg.Log.Info("older scheme", "code", n.Code, "peer", peer, "kind", n.Kind, "text", n.Text)
}

func (s *Server) setStatus(st lrtq.Status) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status = st
}

// Load collects shares from the peers and gives the scheme's secret, owned by the caller. Errors: those of the node;
// [CodeEnded]; that of ctx.
func (s *Server) Load(ctx context.Context) (secret.RackSecret, error) {
	s.mu.Lock()
	s.lastCall++
	r := &request{s.lastCall, make(chan lrtq.Reply, 1)}
	s.mu.Unlock()
	if err := s.tell(ctx, event{load: r}); err != nil {
		return secret.RackSecret{}, err
	}
	select {
	case rep := <-r.reply:
		return rep.Secret, rep.Err
	case <-s.ended:
		return secret.RackSecret{}, errEnded()
	case <-ctx.Done():
		_ = s.tell(context.Background(), event{forget: r})
		return secret.RackSecret{}, ctx.Err()
	}
}

func errEnded() error {
	return reason.Later(CodeEnded, "", "lrtq: the older scheme is not served any more")
}

// tell hands an event to the owner.
func (s *Server) tell(ctx context.Context, e event) error {
	select {
	case s.events <- e:
		return nil
	case <-s.ended:
		return errEnded()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Status is what can be seen, without secrets.
type Status struct {
	Listen      string         `json:"listen"`
	Node        lrtq.Status    `json:"node"`
	Handshaking int            `json:"handshaking"`
	Addresses   map[string]int `json:"addresses"` // connections and handshakes by IP address
}

// Status describes the server.
func (s *Server) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := Status{Listen: s.cfg.Listen.String(), Node: s.status, Handshaking: s.handshaking, Addresses: map[string]int{}}
	for _, a := range slices.SortedFunc(maps.Keys(s.perAddr), netip.Addr.Compare) {
		out.Addresses[a.String()] = s.perAddr[a]
	}
	return out
}
