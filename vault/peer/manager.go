package peer

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/reason"
)

// Manager keeps the connections. Its methods may be called from any goroutine.
type Manager struct {
	cfg   Config
	start time.Time
	queue *queue

	mu          sync.Mutex
	ctx         context.Context // of Run; nil before
	stopped     bool
	wg          sync.WaitGroup
	listener    net.Listener
	self        netip.AddrPort // as bound
	peers       map[netip.AddrPort]*target
	shaking     map[*handshake]struct{}
	established map[ident.Baseboard]*conn
	refusals    map[string]Refusal // by address, the last one each
	lastID      ConnID
	gen         uint64 // counts Refresh: a handshake that saw an older one has shown old evidence
	totals      Totals
}

// New makes a manager. Nothing happens before [Manager.Run].
func New(c Config) (*Manager, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	c = c.withDefaults()
	return &Manager{
		cfg: c, start: time.Now(), queue: newQueue(c.Limits.Events, c.Reasons),
		self: normal(c.Listen), peers: map[netip.AddrPort]*target{}, shaking: map[*handshake]struct{}{},
		established: map[ident.Baseboard]*conn{}, refusals: map[string]Refusal{},
	}, nil
}

// Listen binds the listening socket; Run does it if it has not been done. Port 0 takes a free one, see [Manager.Addr].
func (m *Manager) Listen(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.listener != nil {
		return nil
	}
	l, err := m.cfg.Transport.Listen(ctx, m.cfg.Listen)
	if err != nil {
		return m.count("", reason.Wrap(err, CodeListen, hintListen, "peer: listen on %s", m.cfg.Listen))
	}
	m.listener = l
	if a, err := netip.ParseAddrPort(l.Addr().String()); err == nil {
		m.self = normal(a)
	}
	return nil
}

// Addr is the address that peers dial: as configured, or as bound after [Manager.Listen].
func (m *Manager) Addr() netip.AddrPort {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.self
}

// Run serves until ctx ends, then closes everything and returns when every goroutine has ended and the events are
// drained. It may be called once.
func (m *Manager) Run(ctx context.Context) error {
	if err := m.Listen(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	m.mu.Lock()
	m.ctx = ctx
	listener := m.listener
	for _, t := range m.peers {
		m.startTarget(t)
	}
	m.mu.Unlock()

	// The pump outlives the connections, so that it wipes what they leave behind.
	var pump sync.WaitGroup
	pumping, stopPump := context.WithCancel(context.WithoutCancel(ctx))
	defer stopPump()
	pump.Go(func() { m.queue.pump(pumping) })
	m.spawn(func() { m.acceptLoop(ctx, listener) })
	<-ctx.Done()
	m.mu.Lock()
	m.stopped = true
	m.mu.Unlock()
	_ = listener.Close()
	m.wg.Wait()
	stopPump()
	pump.Wait()
	return nil
}

// spawn starts a goroutine that Run waits for, or nothing if Run is ending. The lock must not be held.
func (m *Manager) spawn(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.spawnLocked(f)
}

func (m *Manager) spawnLocked(f func()) {
	if !m.stopped {
		m.wg.Go(f)
	}
}

// Events yields what happens, in order, and is closed when Run ends. One reader. A reader that stops makes connections wait, then end.
func (m *Manager) Events() <-chan Event { return m.queue.out }

// count records an error under its code and returns it.
func (m *Manager) count(peer string, err error) error {
	m.cfg.Reasons.CountError(CodeHandshake, peer, err)
	return err
}

// install makes a connection the one of its peer. The older one, if any, is ended without a Down.
func (m *Manager) install(c *conn) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stopped {
		return reason.Later(CodeStopped, "", "peer: stopping")
	}
	if c.att.Peer == m.cfg.Self {
		return reason.New(CodeSelf, hintSelf, "peer: %s at %s has our own identity", c.att.Peer, c.addr)
	}
	if old := m.established[c.att.Peer]; old != nil {
		old.replaced.Store(true)
		m.totals.Replaced++
		m.cfg.Reasons.Count(CodeReplaced, c.att.Peer.String(), "a newer connection was accepted")
		old.end(reason.Later(CodeReplaced, "", "peer: connection %d to %s: replaced by a newer one", old.id, c.att.Peer))
	}
	m.established[c.att.Peer] = c
	if c.att.gen != m.gen && c.refreshable() {
		m.spawnLocked(func() { m.refreshOrEnd(c.ctx, c) })
	}
	m.totals.Established++
	m.queue.push(item{Up{c.att.Peer, c.id, c.att.Capabilities, c.att.Verdict, c.att.Removed}, c})
	m.queue.kick()
	return nil
}

// remove ends the record of a connection and tells the driver, unless a newer one took its place.
func (m *Manager) remove(c *conn, cause error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.established[c.att.Peer] != c {
		return
	}
	delete(m.established, c.att.Peer)
	m.totals.Ended++
	m.queue.push(item{Down{c.att.Peer, c.id, cause}, c})
}

// jitter spreads a delay over its upper half.
func (m *Manager) jitter(d time.Duration) time.Duration {
	var b [2]byte
	m.mu.Lock()
	_, err := m.cfg.Rand.Read(b[:])
	m.mu.Unlock()
	if err != nil {
		return d // no jitter is no harm
	}
	return d/2 + d/2*time.Duration(uint16(b[0])<<8|uint16(b[1]))/65536
}
