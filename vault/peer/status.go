package peer

import (
	"cmp"
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/sledvault/sledvault/rot/channel"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/reason"
)

// The states of an address and of a connection.
const (
	StateSelf        = "self"        // our own address
	StateWaiting     = "waiting"     // the peer dials us
	StateBackoff     = "back-off"    // the last try failed; waiting for the next
	StateConnecting  = "connecting"  // we dial, or shake hands with a peer that we dialed
	StateAccepting   = "accepting"   // shaking hands with a peer that dialed us
	StateEstablished = "established" // usable
)

// Status is what the manager knows, for people and for the command line. Times are ages in milliseconds.
type Status struct {
	Listen      netip.AddrPort `json:"listen"`
	Addresses   []Address      `json:"addresses"`
	Connections []Connection   `json:"connections"`
	Refusals    []Refusal      `json:"refusals"` // the last one per address, until a connection to it has lasted a ping interval
	Totals      Totals         `json:"totals"`
}

// Address is one address that was given to SetPeers.
type Address struct {
	Addr     netip.AddrPort `json:"addr"`
	State    string         `json:"state"`
	Dial     bool           `json:"dial"` // we dial it; otherwise the peer does
	Attempts uint64         `json:"attempts"`
}

// Connection is one that is being made or is usable.
type Connection struct {
	State         string           `json:"state"`
	Conn          ConnID           `json:"conn,omitempty"`
	Peer          *ident.Baseboard `json:"peer,omitempty"` // known once established
	Addr          netip.AddrPort   `json:"addr"`
	Dialed        bool             `json:"dialed"`
	SinceMS       int64            `json:"since_ms"`
	LastMessageMS int64            `json:"last_message_ms,omitempty"` // age of the last complete message
	Capabilities  []string         `json:"capabilities,omitempty"`
	ClockSafe     bool             `json:"clock_safe"` // as the peer's TPM reports; decides nothing
	Removed       bool             `json:"removed,omitempty"`
	Queued        int              `json:"queued"` // frames waiting to be written
}

// Refusal is why a connection could not be made or had to end.
type Refusal struct {
	Addr   string      `json:"addr"`
	Peer   string      `json:"peer,omitempty"`
	ByPeer bool        `json:"by_peer"` // the peer refused us; otherwise we refused the peer, or could not reach it
	Code   reason.Code `json:"code"`    // as given by whoever refused
	Text   string      `json:"text"`
	Hint   string      `json:"hint,omitempty"`
	Count  uint64      `json:"count"`
	AgeMS  int64       `json:"age_ms"`

	at time.Time
}

// Totals count since the manager was made.
type Totals struct {
	Accepted    uint64 `json:"accepted"` // TCP connections taken
	Knocks      uint64 `json:"knocks"`   // of these, closed before a byte came
	Established uint64 `json:"established"`
	Replaced    uint64 `json:"replaced"`
	Ended       uint64 `json:"ended"`
	Refused     uint64 `json:"refused"` // connections and handshakes that failed, either way
}

// maxRefusals bounds what is kept: strangers may come from any address.
const maxRefusals = 256

// refuse keeps and counts why something failed, unless it failed only because it was told to end.
func (m *Manager) refuse(ctx context.Context, addr netip.AddrPort, err error) {
	if ctx.Err() != nil {
		return
	}
	m.cfg.Reasons.CountError(CodeHandshake, addr.Addr().String(), err)
	m.keep(addr, ident.Baseboard{}, err)
}

// keep makes err the last refusal of an address.
func (m *Manager) keep(addr netip.AddrPort, peer ident.Baseboard, err error) {
	r := Refusal{Code: cmp.Or(reason.CodeOf(err), CodeHandshake), Text: clip(err.Error()), Hint: reason.HintOf(err), Count: 1, at: time.Now()}
	if !peer.IsZero() {
		r.Peer = peer.String()
	}
	if by, ok := errors.AsType[*channel.Refusal](err); ok {
		r.ByPeer, r.Code, r.Peer, r.Text = true, by.Code, by.By, clip(by.Error())
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.totals.Refused++
	r.Addr = m.place(addr)
	if old, ok := m.refusals[r.Addr]; ok {
		r.Count += old.Count
	} else if len(m.refusals) >= maxRefusals {
		m.forgetOldest()
	}
	m.refusals[r.Addr] = r
}

func clip(s string) string { return s[:min(len(s), 512)] }

// forgetOldest makes room; refusals of peers' addresses go last. The lock is held.
func (m *Manager) forgetOldest() {
	oldest, known := "", true
	for k, r := range m.refusals {
		a, err := netip.ParseAddrPort(k)
		is := err == nil && m.peers[a] != nil
		if oldest == "" || (known && !is) || (known == is && r.at.Before(m.refusals[oldest].at)) {
			oldest, known = k, is
		}
	}
	delete(m.refusals, oldest)
}

// place names an address in the list of refusals: the peer's listen address where it can be told, else the IP address. The
// port of an accepted connection says nothing. The lock is held.
func (m *Manager) place(addr netip.AddrPort) string {
	if m.peers[addr] != nil {
		return addr.String()
	}
	found := netip.AddrPort{}
	for a := range m.peers {
		if a.Addr() == addr.Addr() {
			if found.IsValid() { // several sleds behind one address
				return addr.Addr().String()
			}
			found = a
		}
	}
	if found.IsValid() {
		return found.String()
	}
	return addr.Addr().String()
}

// forgive forgets the refusal of an address whose connection has lasted for a while. One that comes and goes keeps it.
func (m *Manager) forgive(c *conn) {
	if c.forgiven {
		return
	}
	c.forgiven = true
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.refusals, m.place(c.addr))
}

// Status may be called at any time and does not wait for anything.
func (m *Manager) Status() Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := Status{Listen: m.self, Addresses: []Address{}, Connections: []Connection{}, Refusals: []Refusal{}, Totals: m.totals}
	for _, t := range m.sortedPeers() {
		s.Addresses = append(s.Addresses, Address{t.addr, cmp.Or(t.state, StateWaiting), t.dial, t.attempts})
	}
	for h := range m.shaking {
		state := StateConnecting
		if h.accepted {
			state = StateAccepting
		}
		s.Connections = append(s.Connections, Connection{State: state, Addr: h.addr, Dialed: !h.accepted, SinceMS: age(h.since)})
	}
	for _, c := range m.established {
		s.Connections = append(s.Connections, c.status())
	}
	slices.SortFunc(s.Connections, func(a, b Connection) int {
		return cmp.Or(cmp.Compare(a.Conn, b.Conn), compareAddr(a.Addr, b.Addr))
	})
	for _, r := range m.refusals {
		r.AgeMS = age(r.at)
		s.Refusals = append(s.Refusals, r)
	}
	slices.SortFunc(s.Refusals, func(a, b Refusal) int { return cmp.Compare(a.Addr, b.Addr) })
	return s
}

func (c *conn) status() Connection {
	peer := c.att.Peer
	out := Connection{
		State: StateEstablished, Conn: c.id, Peer: &peer, Addr: c.addr, Dialed: c.dialed, SinceMS: age(c.since),
		LastMessageMS: (time.Since(c.since) - time.Duration(c.lastMsg.Load())).Milliseconds(),
		Capabilities:  slices.Clone(c.att.Capabilities), Removed: c.att.Removed, Queued: len(c.frames),
	}
	verdict := c.att.Verdict
	if c.att.Latest != nil {
		verdict = c.att.Latest()
	}
	if verdict != nil {
		out.ClockSafe = verdict.ClockSafe
	}
	return out
}

func age(t time.Time) int64 { return time.Since(t).Milliseconds() }
