package peer

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/sledvault/sledvault/vault/reason"
)

// target is one known address of a peer.
type target struct {
	addr   netip.AddrPort
	dial   bool // we dial it: it is below our own
	cancel context.CancelCauseFunc
	again  chan struct{} // cuts a back-off short

	// Guarded by Manager.mu, for status.
	state    string
	attempts uint64
	kicked   time.Time
}

// maxAddresses bounds the set of known addresses; a rack has 32 sleds.
const maxAddresses = 1024

// SetPeers replaces the set of known listen addresses; our own may be among them. Dialed connections to addresses that
// left the set are closed, accepted ones stay. New addresses are dialed, or knocked at, at once. What is beyond
// [maxAddresses] is left out and counted.
func (m *Manager) SetPeers(addrs []netip.AddrPort) {
	m.mu.Lock()
	defer m.mu.Unlock()
	want := map[netip.AddrPort]bool{}
	for _, a := range addrs {
		if len(want) >= maxAddresses {
			m.cfg.Reasons.Count(CodeAddresses, "", fmt.Sprintf("have %d addresses, want at most %d", len(addrs), maxAddresses))
			break
		}
		if a = normal(a); a.IsValid() {
			want[a] = true
		}
	}
	for a, t := range m.peers {
		if !want[a] {
			delete(m.peers, a)
			if t.cancel != nil {
				t.cancel(reason.Later(CodeRemoved, "", "peer: %s was taken out of the set of peers", a))
			}
		}
	}
	for a := range want {
		if m.peers[a] == nil {
			t := &target{addr: a, again: make(chan struct{}, 1)}
			m.peers[a] = t
			m.startTarget(t)
		}
	}
}

// Redial cuts every back-off short: for a sled that has just adopted a newer enrolment set, by which peers that refused
// each other may now agree.
func (m *Manager) Redial() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, t := range m.peers {
		t.kick()
	}
}

func (t *target) kick() {
	select {
	case t.again <- struct{}{}:
	default:
	}
}

// startTarget starts what an address needs. The lock is held; before Run nothing is started.
func (m *Manager) startTarget(t *target) {
	if m.ctx == nil || m.stopped {
		return
	}
	order := compareAddr(t.addr, m.self)
	t.dial = order < 0
	ctx, cancel := context.WithCancelCause(m.ctx)
	t.cancel = cancel
	switch {
	case order == 0:
		t.state = StateSelf
		cancel(nil)
	case t.dial:
		t.state = StateConnecting
		m.spawnLocked(func() { defer cancel(nil); m.dialLoop(ctx, t) })
	default:
		t.state = StateWaiting
		m.spawnLocked(func() { defer cancel(nil); m.knock(ctx, t) })
	}
}

// knock opens a connection to a peer that dials us, and closes it: it tells a peer whose back-off has grown while we were
// away that we are back (docs/peers.md §3). If nobody answers, the peer is not up and will dial by itself when it is.
func (m *Manager) knock(ctx context.Context, t *target) {
	ctx, cancel := context.WithTimeout(ctx, m.cfg.Limits.Connect)
	defer cancel()
	if c, err := m.cfg.Transport.Dial(ctx, m.self.Addr(), t.addr); err == nil {
		_ = c.Close()
	}
}

// kickGap is the least time between two knocks that are heeded, so that a stranger with a peer's address cannot make us
// dial without end.
const kickGap = 250 * time.Millisecond

// knocked acts on a knock from an IP address: a back-off towards it is cut short, and a connection to it, which may be left
// over from before the peer lost its power, is pinged, so that the peer's reset ends it now.
func (m *Manager) knocked(from netip.Addr) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, t := range m.peers {
		if !t.dial || t.addr.Addr() != from || (!t.kicked.IsZero() && time.Since(t.kicked) < kickGap) {
			continue
		}
		t.kicked = time.Now()
		if t.state != StateEstablished {
			t.kick()
			continue
		}
		for _, c := range m.established {
			if c.addr == t.addr {
				c.probe()
			}
		}
	}
}

// dialLoop keeps one connection to an address until ctx ends. A connection that lasted resets the back-off; one that
// ended at once does not, or two sleds that cannot agree would shake hands without end.
func (m *Manager) dialLoop(ctx context.Context, t *target) {
	failures := 0
	for ctx.Err() == nil {
		lasted := m.dialOnce(ctx, t)
		if ctx.Err() != nil {
			return
		}
		if lasted >= m.cfg.Limits.Ping {
			failures = 0
		}
		delay := m.jitter(m.backoff(failures))
		failures++
		m.setState(t, StateBackoff)
		timer := time.NewTimer(delay)
		select {
		case <-timer.C:
		case <-t.again:
			failures = 0
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

func (m *Manager) backoff(failures int) time.Duration {
	return min(m.cfg.Limits.BackoffMin<<min(failures, 20), m.cfg.Limits.BackoffMax)
}

func (m *Manager) setState(t *target, s string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t.state = s
	if s == StateConnecting {
		t.attempts++
	}
}

// dialOnce connects, shakes hands and serves. It returns how long the connection was established.
func (m *Manager) dialOnce(ctx context.Context, t *target) time.Duration {
	m.setState(t, StateConnecting)
	raw, err := m.connect(ctx, t.addr)
	if err != nil {
		m.refuse(ctx, t.addr, err)
		return 0
	}
	att, err := m.shake(ctx, raw, t.addr, false)
	if err != nil {
		m.refuse(ctx, t.addr, err)
		return 0
	}
	m.setState(t, StateEstablished)
	select {
	case <-t.again: // a knock from before
	default:
	}
	start := time.Now()
	m.serve(ctx, att, t.addr, true)
	return time.Since(start)
}

// known reports whether an IP address is one of a peer's. The lock is held.
func (m *Manager) known(ip netip.Addr) bool {
	for a := range m.peers {
		if a.Addr() == ip {
			return true
		}
	}
	return false
}

// sortedPeers lists the targets by address. The lock is held.
func (m *Manager) sortedPeers() []*target {
	out := make([]*target, 0, len(m.peers))
	for _, t := range m.peers {
		out = append(out, t)
	}
	slices.SortFunc(out, func(a, b *target) int { return compareAddr(a.addr, b.addr) })
	return out
}
