// Package peertest holds an in-memory network and a stand-in for the attested channel, for tests of vault/peer and of
// what drives it. Both work under testing/synctest. Next: peer_test.go of vault/peer.
package peertest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
)

// Network carries connections between addresses in memory. The zero value is ready.
type Network struct {
	mu        sync.Mutex
	listeners map[netip.AddrPort]*listener
	ports     uint16
	dials     map[netip.AddrPort]int
}

// Listen implements the transport of vault/peer.
func (n *Network) Listen(_ context.Context, addr netip.AddrPort) (net.Listener, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.listeners[addr] != nil {
		return nil, fmt.Errorf("listen %s: %w", addr, syscall.EADDRINUSE)
	}
	if n.listeners == nil {
		n.listeners = map[netip.AddrPort]*listener{}
	}
	l := &listener{n: n, addr: addr, conns: make(chan net.Conn), done: make(chan struct{})}
	n.listeners[addr] = l
	return l, nil
}

// Dial implements the transport of vault/peer.
func (n *Network) Dial(ctx context.Context, local netip.Addr, to netip.AddrPort) (net.Conn, error) {
	n.mu.Lock()
	l := n.listeners[to]
	if n.dials == nil {
		n.dials = map[netip.AddrPort]int{}
	}
	n.dials[to]++
	n.ports++
	from := netip.AddrPortFrom(local, 10000+n.ports)
	n.mu.Unlock()
	if l == nil {
		return nil, fmt.Errorf("dial %s: %w", to, syscall.ECONNREFUSED)
	}
	near, far := net.Pipe()
	select {
	case l.conns <- conn{far, to, from}:
		return conn{near, from, to}, nil
	case <-l.done:
		return nil, fmt.Errorf("dial %s: %w", to, syscall.ECONNREFUSED)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Dials is how often an address was dialed.
func (n *Network) Dials(to netip.AddrPort) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.dials[to]
}

type conn struct {
	net.Conn
	local, remote netip.AddrPort
}

func (c conn) LocalAddr() net.Addr  { return net.TCPAddrFromAddrPort(c.local) }
func (c conn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.remote) }

type listener struct {
	n     *Network
	addr  netip.AddrPort
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error {
	err := errors.New("closed twice")
	l.once.Do(func() {
		close(l.done)
		l.n.mu.Lock()
		delete(l.n.listeners, l.addr)
		l.n.mu.Unlock()
		err = nil
	})
	return err
}

func (l *listener) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.addr) }
