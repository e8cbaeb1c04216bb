//go:build linux

package simrack_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	simrack "github.com/sledvault/sledvault/hwtest/sim/rack"
)

// loopback collects what a rack's sleds say to each other: the payload of every TCP connection and direction.
type loopback struct {
	fd    int
	net   netip.Prefix // of the rack
	done  sync.WaitGroup
	end   netip.AddrPort // where the last packet goes
	flows map[[12]byte][]byte
}

// listenLoopback begins to collect. Nil means that this process may not listen.
func listenLoopback(t *testing.T, r *simrack.Rack) *loopback {
	t.Helper()
	all := uint16(unix.ETH_P_ALL)
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(all<<8|all>>8))
	if errors.Is(err, unix.EPERM) {
		t.Log("not root: traffic is not searched")
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all<<8 | all>>8, Ifindex: lo.Index}); err != nil {
		t.Fatal(err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20); err != nil { // root of a container may not
		t.Logf("a small buffer for packets: %v", err)
	}
	at := netip.MustParseAddrPort(r.Sled(0).Peer)
	l := &loopback{fd: fd, net: netip.PrefixFrom(at.Addr(), 24).Masked(), flows: map[[12]byte][]byte{}}
	b := at.Addr().As4()
	b[3] = 253 // of no sled
	l.end = netip.AddrPortFrom(netip.AddrFrom4(b), 9)
	l.done.Go(l.collect)
	t.Cleanup(func() { _ = unix.Close(fd) })
	return l
}

func (l *loopback) collect() {
	buf := make([]byte, 1<<17)
	for {
		n, from, err := unix.Recvfrom(l.fd, buf, 0)
		if err != nil {
			return
		}
		if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Pkttype == unix.PACKET_OUTGOING { // seen again when it arrives
			continue
		}
		if !l.packet(buf[:n]) {
			return
		}
	}
}

// packet keeps the payload of one IPv4 packet. It reports false at the last one.
func (l *loopback) packet(b []byte) bool {
	if len(b) < 20 || b[0]>>4 != 4 {
		return true
	}
	head := int(b[0]&15) * 4
	to := netip.AddrFrom4([4]byte(b[16:20]))
	if !l.net.Contains(to) || len(b) < head+20 {
		return true
	}
	if b[9] == unix.IPPROTO_UDP {
		return to != l.end.Addr()
	}
	if b[9] != unix.IPPROTO_TCP {
		return true
	}
	key := [12]byte(append(append([]byte{}, b[12:20]...), b[head:head+4]...))
	skip := head + int(b[head+12]>>4)*4
	if skip < len(b) {
		l.flows[key] = append(l.flows[key], b[skip:]...)
	}
	return true
}

// stop ends the collection, after a copy of the key was said aloud and heard, and returns a folder with one file per
// direction of a connection; "" where nothing was collected.
func (l *loopback) stop(t *testing.T, key []byte) (dir string) {
	t.Helper()
	if l == nil {
		return ""
	}
	aloud := netip.AddrPortFrom(l.end.Addr(), 0)
	port := say(t, aloud.String(), key)
	c, err := net.Dial("udp", l.end.String())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(make([]byte, 64)); err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	l.done.Wait()
	if st, err := unix.GetsockoptTpacketStats(l.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS); err != nil || st.Drops > 0 {
		t.Logf("%d packets were missed (%v)", st.Drops, err)
	}
	dir, planted := t.TempDir(), t.TempDir()
	peers, heard := 0, 0
	for k, b := range l.flows {
		to := dir
		switch src, dst := binary.BigEndian.Uint16(k[8:]), binary.BigEndian.Uint16(k[10:]); {
		case dst == port || src == port:
			to = planted
			heard += len(b)
		case dst == 12349 || src == 12349:
			peers += len(b)
		}
		if err := os.WriteFile(filepath.Join(to, fmt.Sprintf("%x", k)), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if peers < 10000 {
		t.Errorf("control: %d bytes of peers were heard: nothing was searched", peers)
	}
	found := strings.Join(search(t, planted, [][]byte{key}), "\n")
	for form := range needles(key) {
		if !strings.Contains(found, form) {
			t.Errorf("control: a key as %s was said aloud (%d bytes heard) and is not found", form, heard)
		}
	}
	t.Logf("traffic: %d connections and directions, %d bytes of peers", len(l.flows), peers)
	return dir
}

// say sends a key in every form through a connection of its own and returns its port.
func say(t *testing.T, addr string, key []byte) (port uint16) {
	t.Helper()
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	got := make(chan error, 1)
	go func() {
		c, err := ln.Accept()
		if err == nil {
			_, err = io.Copy(io.Discard, c)
			_ = c.Close()
		}
		got <- err
	}()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range needles(key) {
		if _, err := c.Write(append(n, '\n')); err != nil {
			t.Fatal(err)
		}
	}
	_ = c.Close()
	if err := <-got; err != nil {
		t.Fatal(err)
	}
	return netip.MustParseAddrPort(ln.Addr().String()).Port()
}
