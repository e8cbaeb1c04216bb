package peer

import (
	"bytes"
	"cmp"
	"context"
	"net"
	"net/netip"
)

// TCP is the ordinary [Transport].
type TCP struct{}

// Listen implements [Transport].
func (TCP) Listen(ctx context.Context, addr netip.AddrPort) (net.Listener, error) {
	var c net.ListenConfig
	return c.Listen(ctx, "tcp", addr.String())
}

// Dial implements [Transport]. Dialing from our own listen address lets the other side know whose handshake it counts.
func (TCP) Dial(ctx context.Context, local netip.Addr, to netip.AddrPort) (net.Conn, error) {
	var d net.Dialer
	if local.IsValid() && !local.IsUnspecified() && local.Is4() == to.Addr().Is4() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(local, 0))
	}
	return d.DialContext(ctx, "tcp", to.String())
}

// remoteAddr is the other end's address, or the zero value if it is not an IP address.
func remoteAddr(c net.Conn) netip.AddrPort {
	a := c.RemoteAddr()
	if a == nil {
		return netip.AddrPort{}
	}
	p, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.AddrPort{}
	}
	return normal(p)
}

// normal gives one form to each address: IPv4 without the IPv6 prefix.
func normal(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

// compareAddr orders listen addresses as 16 bytes of IP, then port. The greater one dials (docs/peers.md §2).
func compareAddr(a, b netip.AddrPort) int {
	x, y := a.Addr().As16(), b.Addr().As16()
	return cmp.Or(bytes.Compare(x[:], y[:]), cmp.Compare(a.Port(), b.Port()))
}
