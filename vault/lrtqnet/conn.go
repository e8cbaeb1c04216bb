package lrtqnet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/sledvault/sledvault/vault/lrtq"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/wire"
)

// conn is an established connection.
type conn struct {
	net.Conn
	id   lrtq.Board
	out  chan []byte // frames, which the writer wipes
	once sync.Once
	gone chan struct{}
}

func (c *conn) close() {
	c.once.Do(func() {
		close(c.gone)
		_ = c.Close()
	})
}

// accept takes connections until the listener is closed.
func (s *Server) accept(ctx context.Context, wg *sync.WaitGroup) {
	for {
		c, err := s.ln.Accept()
		if ctx.Err() != nil {
			if err == nil {
				_ = c.Close()
			}
			return
		}
		if err != nil { // out of descriptors, say: it passes
			s.cfg.Reasons.CountError(CodeBusy, "", err)
			pause(ctx, s.cfg.Timing.Retry)
			continue
		}
		addr, err := s.admit(c.RemoteAddr())
		if err != nil {
			s.cfg.Reasons.CountError(CodeStranger, addr.String(), err)
			_ = c.Close()
			continue
		}
		wg.Go(func() {
			defer s.leave(addr)
			s.serve(ctx, c, addr.String(), s.mayDialUs)
		})
	}
}

// admit lets in only addresses of the configuration, and only so many of each.
func (s *Server) admit(remote net.Addr) (netip.Addr, error) {
	ap, err := netip.ParseAddrPort(remote.String())
	if err != nil {
		return netip.Addr{}, reason.New(CodeStranger, "", "lrtq: %.60q is no address", remote)
	}
	addr := ap.Addr().WithZone("").Unmap()
	if !slices.ContainsFunc(s.cfg.Peers, func(p netip.AddrPort) bool { return p.Addr().WithZone("") == addr }) {
		return addr, reason.New(CodeStranger, "add the sled to [lrtq] peers if it is one of this rack", "lrtq: %s is not among the configured peers", addr)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.handshaking >= maxHandshakes || s.perAddr[addr] >= maxPerAddr {
		return addr, reason.New(CodeBusy, "", "lrtq: %d handshakes, %d connections of this address", s.handshaking, s.perAddr[addr])
	}
	s.handshaking++
	s.perAddr[addr]++
	return addr, nil
}

func (s *Server) shaken() { s.mu.Lock(); defer s.mu.Unlock(); s.handshaking-- }

func (s *Server) leave(addr netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.perAddr[addr]--; s.perAddr[addr] == 0 {
		delete(s.perAddr, addr)
	}
}

// mayDialUs refuses a peer that should have waited for us to dial.
func (s *Server) mayDialUs(id wire.LRTQIdentify) error {
	if compareAddr(id.Addr, s.cfg.Listen) < 0 {
		return reason.New(CodeDirection, "", "lrtq: %s listens on %s, below ours: it must not dial", id.ID, id.Addr)
	}
	return nil
}

// dialAgain keeps a connection to one peer, until ctx ends.
func (s *Server) dialAgain(ctx context.Context, to netip.AddrPort) {
	wait := s.cfg.Timing.Retry
	for ctx.Err() == nil {
		d := net.Dialer{Timeout: s.cfg.Timing.Handshake}
		c, err := d.DialContext(ctx, "tcp", to.String())
		if err == nil {
			s.mu.Lock()
			s.handshaking++
			s.perAddr[to.Addr()]++
			s.mu.Unlock()
			established := s.serve(ctx, c, to.String(), func(id wire.LRTQIdentify) error {
				if id.Addr != to {
					return reason.New(CodeDirection, "", "lrtq: %s answers at %s and says that it listens on %s", id.ID, to, id.Addr)
				}
				return nil
			})
			s.leave(to.Addr())
			if established {
				wait = s.cfg.Timing.Retry
			}
		}
		pause(ctx, wait)
		wait = min(2*wait, 30*s.cfg.Timing.Retry)
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// serve runs one connection from its handshake to its end. It reports whether the handshake succeeded.
func (s *Server) serve(ctx context.Context, nc net.Conn, who string, check func(wire.LRTQIdentify) error) (established bool) {
	c := &conn{Conn: nc, out: make(chan []byte, queueLength), gone: make(chan struct{})}
	stop := context.AfterFunc(ctx, c.close)
	defer stop()
	defer c.close()
	id, err := s.handshake(nc)
	s.shaken()
	if err == nil {
		err = check(id)
	}
	if err == nil && id.ID == s.cfg.ID {
		err = reason.New(CodeDirection, "", "lrtq: %s says that it is this sled", who)
	}
	if err != nil {
		if ctx.Err() == nil {
			s.cfg.Reasons.CountError(CodeHandshake, who, reason.Wrap(err, codeOr(err, CodeHandshake), "", "lrtq: handshake"))
		}
		return false
	}
	c.id = id.ID
	if s.tell(ctx, event{up: c}) != nil {
		return true
	}
	var wg sync.WaitGroup
	wg.Go(func() { s.write(c) })
	err = s.read(ctx, c)
	c.close()
	wg.Wait()
	if ctx.Err() == nil {
		s.cfg.Reasons.CountError(CodeClosed, c.id.String(), err)
		_ = s.tell(ctx, event{down: c})
	}
	return true
}

func codeOr(err error, or reason.Code) reason.Code {
	if c := reason.CodeOf(err); c != "" {
		return c
	}
	return or
}

// handshake says who we are and reads who the peer says it is, within one deadline.
func (s *Server) handshake(c net.Conn) (wire.LRTQIdentify, error) {
	if err := c.SetDeadline(time.Now().Add(s.cfg.Timing.Handshake)); err != nil {
		return wire.LRTQIdentify{}, err
	}
	hello, err := wire.AppendLRTQHandshake(nil, wire.LRTQIdentify{ID: s.cfg.ID, Addr: s.cfg.Listen})
	if err != nil {
		return wire.LRTQIdentify{}, err
	}
	if _, err := c.Write(hello); err != nil {
		return wire.LRTQIdentify{}, err
	}
	id, err := wire.ReadLRTQHandshake(c)
	if err == nil {
		err = c.SetDeadline(time.Time{})
	}
	return id, err
}

// read hands messages to the owner until the connection ends. A peer that says nothing for too long is gone.
func (s *Server) read(ctx context.Context, c *conn) error {
	buf := make([]byte, 0, 64<<10)
	for {
		if err := c.SetReadDeadline(time.Now().Add(s.cfg.Timing.Idle)); err != nil {
			return err
		}
		payload, err := wire.ReadLRTQFrame(c, buf)
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("lrtq: closed by the peer: %w", err)
		}
		if err != nil {
			return err
		}
		m, err := wire.DecodeLRTQ(s.cfg.Alloc, payload)
		clear(payload)
		if err != nil {
			return err
		}
		switch m := m.(type) {
		case wire.Ping:
		case wire.NetworkConfig:
			s.cfg.Reasons.Count(CodeUnserved, c.id.String(), fmt.Sprintf("network configuration %d", m.Generation))
		case wire.LRTQ:
			if err := s.tell(ctx, event{from: c, msg: m.Message}); err != nil {
				wire.DestroyLRTQ(m)
				return err
			}
		}
	}
}

// write sends frames, and pings in between, until the connection is closed.
func (s *Server) write(c *conn) {
	defer c.close()
	ping := time.NewTicker(s.cfg.Timing.Ping)
	defer ping.Stop()
	beat, err := wire.AppendLRTQFrame(nil, wire.Ping{})
	for err == nil {
		frame, secretly := beat, false
		select {
		case <-c.gone:
			c.drain()
			return
		case <-ping.C:
		case frame = <-c.out:
			secretly = true
		}
		if err = c.SetWriteDeadline(time.Now().Add(s.cfg.Timing.Idle)); err == nil {
			_, err = c.Write(frame)
		}
		if secretly {
			clear(frame)
		}
	}
	c.drain()
}

// drain wipes what was not sent.
func (c *conn) drain() {
	for {
		select {
		case f := <-c.out:
			clear(f)
		default:
			return
		}
	}
}
