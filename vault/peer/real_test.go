package peer_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/sledvault/sledvault/rot"
	"github.com/sledvault/sledvault/rot/channel"
	"github.com/sledvault/sledvault/rot/channel/channeltest"
	"github.com/sledvault/sledvault/rot/rottest"
	"github.com/sledvault/sledvault/vault/peer"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
)

// startReal runs a sled of a rack with the real channel on a loopback address of its own.
func startReal(tb testing.TB, s *channeltest.Sled, n int) *node {
	tb.Helper()
	x := &node{id: s.ID, reasons: reason.NewLog(), done: make(chan error, 1)}
	listen := netip.MustParseAddrPort(fmt.Sprintf("127.77.%d.%d:0", n/200, n%200+1))
	m, err := peer.New(peer.Config{Self: s.ID, Listen: listen, Channel: peer.Attest(s.Channel), Alloc: secret.Heap{}, Reasons: x.reasons})
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	x.Manager, x.stop = m, cancel
	if err := m.Listen(ctx); err != nil {
		tb.Fatal(err)
	}
	x.addr = m.Addr()
	go func() { x.done <- m.Run(ctx) }()
	tb.Cleanup(x.end)
	return x
}

func TestRealChannel(t *testing.T) {
	t.Parallel()
	r := channeltest.NewRack(t, 2)
	a, b := startReal(t, r.Sleds[0], 1), startReal(t, r.Sleds[1], 2)
	know(a, b)
	if up := next[peer.Up](t, a); up.Peer != b.id || up.Verdict == nil || up.Verdict.Facts.SetGeneration != 1 {
		t.Fatalf("have %+v", up)
	}
	next[peer.Up](t, b)
	if s := a.Status(); s.Connections[0].Addr.Addr() != b.addr.Addr() {
		t.Errorf("have %v: the dial did not come from the listen address", s.Connections[0].Addr)
	}
	// The counter moves; fresh evidence goes both ways on the same connection, then messages still pass.
	r.Sleds[0].Advance()
	a.Refresh(t.Context())
	r.Sleds[1].Advance()
	b.Refresh(t.Context())
	for _, x := range []struct{ from, to *node }{{a, b}, {b, a}} {
		if err := x.from.Send(x.to.id, tq(3)); err != nil {
			t.Fatal(err)
		}
		if m := next[peer.Message](t, x.to); epochOf(m) != 3 {
			t.Fatalf("have %+v", m)
		}
	}
	if s := r.Sleds[1].Seen(r.Sleds[0].TPM.EKName()); s.Sequence != r.Sleds[0].Facts.Get().LedgerSequence {
		t.Errorf("have sequence %d remembered", s.Sequence)
	}
	// It moves back: the peer refuses, and both sides say so.
	f := r.Sleds[0].Facts.Get()
	r.Sleds[0].TPM.Set(func(tpm *rottest.TPM) { tpm.Counter-- })
	f.LedgerSequence--
	r.Sleds[0].Facts.Set(f)
	r.Sleds[0].Prover.CounterMoved()
	a.Refresh(t.Context())
	da, db := next[peer.Down](t, a), next[peer.Down](t, b)
	if reason.CodeOf(da.Cause) != peer.CodeRefused || reason.CodeOf(db.Cause) != rot.CodeRollback {
		t.Errorf("have %v and %v", da.Cause, db.Cause)
	}
}

func TestRealRefusalNamesPeerAndCode(t *testing.T) {
	t.Parallel()
	r := channeltest.NewRack(t, 2)
	r.Sleds[1].TPM.Extend(14, [32]byte{1}) // another boot chain than enrolled
	a, b := startReal(t, r.Sleds[0], 11), startReal(t, r.Sleds[1], 12)
	know(a, b)
	waitStatus(t, b, func(s peer.Status) bool {
		return len(s.Refusals) == 1 && s.Refusals[0].ByPeer && s.Refusals[0].Code == rot.CodePCRPolicy && s.Refusals[0].Addr == a.addr.String()
	})
	waitStatus(t, a, func(s peer.Status) bool {
		return len(s.Refusals) == 1 && !s.Refusals[0].ByPeer && s.Refusals[0].Code == rot.CodePCRPolicy && s.Refusals[0].Addr == b.addr.String()
	})
}

func TestRealNewerSet(t *testing.T) {
	t.Parallel()
	r := channeltest.NewRack(t, 3)
	older := r.Set
	newer := older.Next()
	r.Publish(t, newer)
	r.Sleds[2].SetSet(r.Set)
	a, b, c := startReal(t, r.Sleds[0], 21), startReal(t, r.Sleds[1], 22), startReal(t, r.Sleds[2], 23)
	know(a, b, c)
	for _, x := range []*node{a, b, c} {
		next[peer.Up](t, x)
		next[peer.Up](t, x)
	}
	for i, s := range r.Sleds {
		if s.Set().Generation != newer.Generation {
			t.Errorf("sled %d holds generation %d, want %d", i, s.Set().Generation, newer.Generation)
		}
	}
}

// waitStatus waits for a state that only status shows. There is nothing to be notified by, so it looks again.
func waitStatus(tb testing.TB, x *node, ok func(peer.Status) bool) {
	tb.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for {
		if ok(x.Status()) {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			tb.Fatalf("%s: have %+v", x.id, x.Status())
		}
	}
}

func TestAttack(t *testing.T) {
	t.Run("unauthenticated-key-service", func(t *testing.T) {
		t.Parallel()
		// Whoever cannot show evidence gets no event, no message and no word of the protocol.
		r := channeltest.NewRack(t, 2)
		x := startReal(t, r.Sleds[0], 31)
		stranger := channeltest.NewSled(t, "STRANGER")
		stranger.SetSet(r.Set)
		for _, c := range []struct {
			name string
			try  func(net.Conn) error
		}{
			{"garbage", func(c net.Conn) error {
				junk := make([]byte, 1<<20)
				_, _ = rand.Read(junk)
				_, err := io.Copy(c, bytes.NewReader(junk))
				return err
			}},
			{"a frame without TLS", func(c net.Conn) error { _, err := c.Write([]byte{0, 0, 0, 5, 0x64, 'P', 'i', 'n', 'g'}); return err }},
			{"TLS without certificate", func(c net.Conn) error {
				return tls.Client(c, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"sledvault-peer/1"}}).Handshake()
			}},
			{"a sled of no rack", func(c net.Conn) error { _, err := stranger.Channel.Dial(t.Context(), c); return err }},
		} {
			before := x.Status().Totals.Refused
			raw, err := net.Dial("tcp", x.addr.String())
			if err != nil {
				t.Fatal(err)
			}
			tried := c.try(raw)
			_ = raw.Close()
			waitStatus(t, x, func(s peer.Status) bool { return s.Totals.Refused > before && len(s.Connections) == 0 })
			s := x.Status()
			if s.Totals.Established != 0 || s.Totals.Refused != before+1 || s.Refusals[0].Code == "" {
				t.Errorf("%s: have %+v (%v)", c.name, s, tried)
			}
		}
		if r.Sleds[0].TPM.Quotes != 0 {
			t.Errorf("the TPM made %d quotes for strangers", r.Sleds[0].TPM.Quotes)
		}
		select {
		case e := <-x.Events():
			t.Errorf("have %+v", e)
		default:
		}
		if x.reasons.Total(channel.CodeUnknownSled) != 1 || x.reasons.Total(channel.CodeTLS) < 2 {
			t.Errorf("have %+v", x.reasons.Entries())
		}
	})
}

func TestRealRack(t *testing.T) {
	t.Parallel()
	const n = 8
	r := channeltest.NewRack(t, n)
	var nodes []*node
	for i, s := range r.Sleds {
		nodes = append(nodes, startReal(t, s, 40+i))
	}
	begin := time.Now()
	know(nodes...)
	for _, x := range nodes {
		for range n - 1 {
			next[peer.Up](t, x)
		}
	}
	t.Logf("%d sleds, every pair attested: %v", n, time.Since(begin))
}

// BenchmarkMesh31 is one sled that meets 31 peers.
func BenchmarkMesh31(b *testing.B) {
	r := channeltest.NewRack(b, 32)
	for i := 0; b.Loop(); i++ {
		b.StopTimer()
		nodes := make([]*node, 0, 32)
		for j, s := range r.Sleds {
			nodes = append(nodes, startReal(b, s, 100+j))
		}
		hub := nodes[31]
		var all []netip.AddrPort
		for _, x := range nodes[:31] {
			all = append(all, x.addr)
		}
		b.StartTimer()
		hub.SetPeers(all)
		for range 31 {
			<-hub.Events()
		}
		b.StopTimer()
		for _, x := range nodes {
			x.end()
		}
		b.StartTimer()
	}
}
