package peer

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sledvault/sledvault/vault/reason"
)

// handshake is one in progress.
type handshake struct {
	addr     netip.AddrPort
	accepted bool
	since    time.Time
	gen      uint64 // of Manager.gen when it began
}

// acceptLoop accepts until the listener is closed. A failing accept (no file descriptors left) is counted and tried again.
func (m *Manager) acceptLoop(ctx context.Context, l net.Listener) {
	delay := 5 * time.Millisecond
	for {
		raw, err := l.Accept()
		if err == nil {
			delay = 5 * time.Millisecond
			m.admit(ctx, raw)
			continue
		}
		if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			return
		}
		_ = m.count("", reason.Wrap(err, CodeAccept, hintListen, "peer: accept"))
		timer := time.NewTimer(delay)
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
		delay = min(2*delay, time.Second)
	}
}

// admit starts the handshake of an accepted connection if the limits allow it.
func (m *Manager) admit(ctx context.Context, raw net.Conn) {
	addr := remoteAddr(raw)
	m.knocked(addr.Addr())
	m.mu.Lock()
	m.totals.Accepted++
	same, all, strangers := 0, 0, 0
	for h := range m.shaking {
		if h.accepted {
			all++
			if h.addr.Addr() == addr.Addr() {
				same++
			}
			if !m.known(h.addr.Addr()) {
				strangers++
			}
		}
	}
	lim := m.cfg.Limits
	var refused error
	switch {
	case same >= lim.PerAddress:
		refused = reason.Later(CodeHandshakes, hintHandshake, "peer: handshakes from %s: have %d, want at most %d", addr.Addr(), same, lim.PerAddress)
	case all >= lim.Handshakes:
		refused = reason.Later(CodeHandshakes, hintHandshake, "peer: handshakes: have %d, want at most %d", all, lim.Handshakes)
	case strangers >= (lim.Handshakes+1)/2 && !m.known(addr.Addr()):
		// Half of the room is kept for addresses of peers, so that strangers cannot keep the rack apart.
		refused = reason.Later(CodeHandshakes, hintHandshake, "peer: handshakes from unknown addresses: have %d, want at most %d", strangers, (lim.Handshakes+1)/2)
	case m.stopped:
		refused = reason.Later(CodeStopped, "", "peer: stopping")
	default:
		h := &handshake{addr, true, time.Now(), m.gen}
		m.shaking[h] = struct{}{}
		m.spawnLocked(func() { m.accepted(ctx, raw, h) })
	}
	m.mu.Unlock()
	if refused != nil {
		_ = raw.Close()
		m.refuse(ctx, addr, refused)
	}
}

// accepted shakes hands and serves.
func (m *Manager) accepted(ctx context.Context, raw net.Conn, h *handshake) {
	counted := &counting{Conn: raw}
	att, err := m.shakeAs(ctx, counted, h)
	if err != nil {
		if counted.read.Load() == 0 && isEnd(err) {
			m.mu.Lock()
			m.totals.Knocks++ // nobody said anything: a knock, or a port scan
			m.mu.Unlock()
			return
		}
		m.refuse(ctx, h.addr, err)
		return
	}
	m.serve(ctx, att, h.addr, false)
}

func isEnd(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.ErrClosedPipe) || errors.Is(err, syscall.ECONNRESET)
}

// counting counts what a connection has received.
type counting struct {
	net.Conn
	read atomic.Int64
}

func (c *counting) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.read.Add(int64(n))
	return n, err
}

// connect dials with its deadline.
func (m *Manager) connect(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, m.cfg.Limits.Connect)
	defer cancel()
	raw, err := m.cfg.Transport.Dial(ctx, m.Addr().Addr(), to)
	if err != nil {
		e := reason.Wrap(err, CodeConnect, hintConnect, "peer: connect to %s", to)
		e.Remedy = reason.Retry
		return nil, e
	}
	return raw, nil
}

// shake runs a handshake that we started or accepted.
func (m *Manager) shake(ctx context.Context, raw net.Conn, addr netip.AddrPort, accepted bool) (*Attested, error) {
	m.mu.Lock()
	h := &handshake{addr, accepted, time.Now(), m.gen}
	m.shaking[h] = struct{}{}
	m.mu.Unlock()
	return m.shakeAs(ctx, raw, h)
}

// shakeAs runs a handshake under its deadline. The deadline on the connection holds even if the channel does not look at
// its context.
func (m *Manager) shakeAs(ctx context.Context, raw net.Conn, h *handshake) (*Attested, error) {
	defer func() {
		m.mu.Lock()
		delete(m.shaking, h)
		m.mu.Unlock()
	}()
	ctx, cancel := context.WithTimeout(ctx, m.cfg.Limits.Handshake)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = raw.SetDeadline(time.Unix(1, 0)) }) // long past: ends every wait
	defer stop()
	begin := m.cfg.Channel.Dial
	if h.accepted {
		begin = m.cfg.Channel.Accept
	}
	att, err := begin(ctx, raw)
	if err == nil && !stop() { // the deadline closed it in the last moment
		err = ctx.Err()
	}
	if err == nil {
		att.gen = h.gen
		return att, nil
	}
	_ = raw.Close()
	if reason.CodeOf(err) != "" {
		return nil, err
	}
	code, hint := CodeHandshake, hintHandshake
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		code, hint = CodeTimeout, hintTimeout
	}
	e := reason.Wrap(err, code, hint, "peer: handshake with %s", h.addr)
	e.Remedy = reason.Retry
	return nil, e
}
