package peer_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sledvault/sledvault/vault/gfss"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/peer"
	"github.com/sledvault/sledvault/vault/peer/peertest"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
	"github.com/sledvault/sledvault/vault/wire"
)

func board(n int) ident.Baseboard {
	return ident.Baseboard{Part: "913-0000019", Serial: fmt.Sprintf("S%03d", n)}
}

func addr(n int) netip.AddrPort { return netip.MustParseAddrPort(fmt.Sprintf("[fdb0::%x]:12349", n)) }

// node is a manager under test.
type node struct {
	*peer.Manager
	id      ident.Baseboard
	addr    netip.AddrPort
	channel *peertest.Channel
	reasons *reason.Log
	stop    context.CancelFunc
	done    chan error
}

// start runs sled number n on the network; it ends with the test at the latest.
func start(t *testing.T, net *peertest.Network, n int, edit func(*peer.Config)) *node {
	t.Helper()
	x := &node{id: board(n), addr: addr(n), channel: &peertest.Channel{Self: board(n)}, reasons: reason.NewLog(), done: make(chan error, 1)}
	cfg := peer.Config{Self: x.id, Listen: x.addr, Channel: x.channel, Alloc: secret.Heap{}, Reasons: x.reasons, Transport: net}
	if edit != nil {
		edit(&cfg)
	}
	m, err := peer.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	x.Manager = m
	ctx, cancel := context.WithCancel(context.Background())
	x.stop = cancel
	if err := m.Listen(ctx); err != nil {
		t.Fatal(err)
	}
	go func() { x.done <- m.Run(ctx) }()
	t.Cleanup(x.end)
	return x
}

// end stops the node and waits. It may be called again.
func (x *node) end() {
	x.stop()
	if err, ok := <-x.done; ok {
		close(x.done)
		_ = err
	}
}

// next waits for an event of one kind, and fails on another.
func next[E peer.Event](t testing.TB, x *node) (e E) {
	t.Helper()
	select {
	case got := <-x.Events():
		e, ok := got.(E)
		if !ok {
			t.Fatalf("%s: have %T %+v, want %T", x.id, got, got, e)
		}
		return e
	case <-time.After(30 * time.Second):
		t.Fatalf("%s: no %T", x.id, e)
	}
	return e
}

// quiet fails if there is an event.
func quiet(t *testing.T, x *node) {
	t.Helper()
	synctest.Wait()
	select {
	case got := <-x.Events():
		t.Fatalf("%s: have %T %+v, want nothing", x.id, got, got)
	default:
	}
}

func know(nodes ...*node) {
	var all []netip.AddrPort
	for _, x := range nodes {
		all = append(all, x.addr)
	}
	for _, x := range nodes {
		x.SetPeers(all)
	}
}

func tq(e ident.Epoch) wire.Msg {
	return wire.TQ{Message: quorum.Message{Kind: quorum.GetShare{Epoch: e}}}
}

func epochOf(m peer.Message) ident.Epoch {
	if k, ok := m.Msg.(wire.TQ).Kind.(quorum.GetShare); ok {
		return k.Epoch
	}
	return 0
}

func TestTwoSleds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var net peertest.Network
		a, b := start(t, &net, 1, nil), start(t, &net, 2, nil)
		know(a, b)
		up := next[peer.Up](t, a)
		if up.Peer != b.id || up.Conn == 0 || len(up.Capabilities) != 1 {
			t.Fatalf("have %+v", up)
		}
		if up := next[peer.Up](t, b); up.Peer != a.id {
			t.Fatalf("have %+v", up)
		}
		for e := range ident.Epoch(20) {
			if err := a.Send(b.id, tq(e)); err != nil {
				t.Fatal(err)
			}
		}
		for e := range ident.Epoch(20) {
			if m := next[peer.Message](t, b); m.From != a.id || epochOf(m) != e {
				t.Fatalf("have %+v, want epoch %d", m, e)
			}
		}
		time.Sleep(time.Minute) // pings keep it alive
		quiet(t, a)
		sa, sb := a.Status(), b.Status()
		if len(sa.Connections) != 1 || sa.Connections[0].State != peer.StateEstablished || sa.Connections[0].Dialed || *sa.Connections[0].Peer != b.id || sa.Connections[0].LastMessageMS > 1000 {
			t.Errorf("have %+v", sa)
		}
		if len(sb.Connections) != 1 || !sb.Connections[0].Dialed || sb.Connections[0].Addr != a.addr || len(sb.Refusals) != 0 {
			t.Errorf("have %+v", sb)
		}
		if sa.Addresses[0].State != peer.StateSelf || sa.Addresses[1].Dial || !sb.Addresses[0].Dial || sb.Addresses[0].State != peer.StateEstablished {
			t.Errorf("have %+v and %+v", sa.Addresses, sb.Addresses)
		}
		b.end()
		if down := next[peer.Down](t, a); down.Peer != b.id || down.Conn != up.Conn || reason.CodeOf(down.Cause) != peer.CodeEnded {
			t.Fatalf("have %+v", down)
		}
		if err := a.Send(b.id, tq(1)); reason.CodeOf(err) != peer.CodeNotConnected || a.reasons.Total(peer.CodeNotConnected) != 1 {
			t.Errorf("have %v", err)
		}
	})
}

// TestOrder: addresses compare as numbers, and only the greater dials.
func TestOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var net peertest.Network
		a, b := start(t, &net, 9, nil), start(t, &net, 0x10, nil) // as text, 9 is greater than 10
		know(a, b)
		next[peer.Up](t, a)
		time.Sleep(time.Hour)
		if have := net.Dials(a.addr); have != 1 {
			t.Errorf("the smaller address was dialed %d times, want 1", have)
		}
		if have := net.Dials(b.addr); have != 1 || b.Status().Totals.Knocks != 1 { // a knock, no handshake
			t.Errorf("the greater address was dialed %d times, want 1", have)
		}
	})
}

func TestBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var net peertest.Network
		b := start(t, &net, 2, nil)
		b.SetPeers([]netip.AddrPort{addr(1)})
		synctest.Wait()
		if have := net.Dials(addr(1)); have != 1 {
			t.Fatalf("have %d dials at once, want 1", have)
		}
		time.Sleep(time.Second)
		if have := net.Dials(addr(1)); have < 6 || have > 9 {
			t.Errorf("have %d dials in the first second", have)
		}
		time.Sleep(time.Hour)
		before := net.Dials(addr(1))
		time.Sleep(100 * time.Second)
		if have := net.Dials(addr(1)) - before; have < 20 || have > 41 {
			t.Errorf("have %d dials in 100 s, want 20 to 40", have)
		}
		s := b.Status()
		if len(s.Refusals) != 1 || s.Refusals[0].Code != peer.CodeConnect || s.Refusals[0].Hint == "" || s.Refusals[0].Addr != addr(1).String() || s.Addresses[0].State != peer.StateBackoff {
			t.Errorf("have %+v", s)
		}
		// The peer comes up and knocks: nobody waits for the back-off.
		begin := time.Now()
		a := start(t, &net, 1, nil)
		a.SetPeers([]netip.AddrPort{addr(2)})
		next[peer.Up](t, b)
		if took := time.Since(begin); took > 100*time.Millisecond {
			t.Errorf("connected after %v", took)
		}
		time.Sleep(2 * time.Second)
		if s := b.Status(); len(s.Refusals) != 0 {
			t.Errorf("have %+v after success", s.Refusals)
		}
	})
}

func TestRedialAndRemovedAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var net peertest.Network
		refuse := true
		a, b := start(t, &net, 1, nil), start(t, &net, 2, nil)
		a.channel.Refuse = func(ident.Baseboard) error {
			if refuse {
				return reason.New("evidence-unknown-sled", "enrol it", "unknown sled")
			}
			return nil
		}
		know(a, b)
		time.Sleep(time.Minute)
		s := b.Status()
		if len(s.Refusals) != 1 || !s.Refusals[0].ByPeer || s.Refusals[0].Code != "evidence-unknown-sled" || s.Refusals[0].Peer != a.id.String() || !strings.Contains(s.Refusals[0].Text, "refused by "+a.id.String()) {
			t.Fatalf("have %+v", s.Refusals)
		}
		if s := a.Status(); len(s.Refusals) != 1 || s.Refusals[0].ByPeer || s.Refusals[0].Addr != b.addr.String() || s.Refusals[0].Code != "evidence-unknown-sled" {
			t.Fatalf("have %+v", s.Refusals)
		}
		refuse = false
		begin := time.Now()
		b.Redial()
		next[peer.Up](t, b)
		next[peer.Up](t, a)
		if time.Since(begin) > time.Millisecond {
			t.Errorf("connected after %v", time.Since(begin))
		}
		b.SetPeers(nil)
		if d := next[peer.Down](t, b); reason.CodeOf(d.Cause) != peer.CodeRemoved {
			t.Errorf("have %v", d.Cause)
		}
		next[peer.Down](t, a)
		time.Sleep(time.Minute)
		quiet(t, b)
	})
}

// dialRaw shakes hands with a node as sled number n and returns the bare connection.
func dialRaw(t *testing.T, network *peertest.Network, x *node, n int) net.Conn {
	t.Helper()
	raw, err := network.Dial(t.Context(), addr(n).Addr(), x.addr)
	if err != nil {
		t.Fatal(err)
	}
	c := peertest.Channel{Self: board(n)}
	if _, err := c.Dial(t.Context(), raw); err != nil {
		t.Fatal(err)
	}
	return raw
}

// discard reads what comes until the connection ends.
func discard(c net.Conn) {
	b := make([]byte, 1<<16)
	for {
		if _, err := c.Read(b); err != nil {
			return
		}
	}
}

func TestInactivity(t *testing.T) {
	for _, drip := range []bool{false, true} {
		t.Run(fmt.Sprintf("drip %v", drip), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var net peertest.Network
				x := start(t, &net, 1, nil)
				raw := dialRaw(t, &net, x, 2)
				go discard(raw)
				begin := time.Now()
				next[peer.Up](t, x)
				dripping := make(chan struct{})
				if drip { // bytes are no activity, only complete messages are
					go func() {
						defer close(dripping)
						for _, b := range append([]byte{0, 0, 0, 200}, make([]byte, 200)...) {
							if _, err := raw.Write([]byte{b}); err != nil {
								return
							}
							time.Sleep(time.Second)
						}
					}()
				}
				d := next[peer.Down](t, x)
				if reason.CodeOf(d.Cause) != peer.CodeInactive || time.Since(begin) != 10*time.Second {
					t.Errorf("have %v after %v", d.Cause, time.Since(begin))
				}
				if drip {
					<-dripping
				}
			})
		})
	}
}

func TestQueueFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var net peertest.Network
		x := start(t, &net, 1, func(c *peer.Config) { c.Limits.QueueFrames = 5 })
		raw := dialRaw(t, &net, x, 2)
		defer raw.Close()
		next[peer.Up](t, x)
		synctest.Wait() // the writer hangs on the first ping
		for i := range 5 {
			if err := x.Send(board(2), tq(1)); err != nil {
				t.Fatalf("message %d: %v", i, err)
			}
		}
		if err := x.Send(board(2), tq(1)); reason.CodeOf(err) != peer.CodeQueueFull {
			t.Fatalf("have %v", err)
		}
		if d := next[peer.Down](t, x); reason.CodeOf(d.Cause) != peer.CodeQueueFull {
			t.Errorf("have %v", d.Cause)
		}
		if s := x.Status(); len(s.Refusals) != 1 || s.Refusals[0].Code != peer.CodeQueueFull {
			t.Errorf("have %+v", s.Refusals)
		}
	})
}

// TestTooLarge: a message over the limit of a frame is refused with a typed error, counted, and never sent: the peer would
// close, come back and get it again. The connection stays.
func TestTooLarge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var net peertest.Network
		a, b := start(t, &net, 1, nil), start(t, &net, 2, nil)
		know(a, b)
		up := next[peer.Up](t, a)
		next[peer.Up](t, b)
		for _, c := range []struct {
			msg  wire.Msg
			code reason.Code
		}{
			{wire.Evidence{Evidence: make([]byte, wire.MaxPayload)}, wire.CodeTooLarge},
			{wire.NetworkConfig{Generation: 1, Blob: make([]byte, wire.MaxNetworkBlob+1)}, wire.CodeLength},
		} {
			conn, err := a.SendAll(b.id, tq(7), c.msg, tq(8))
			if reason.CodeOf(err) != c.code || conn != up.Conn || a.reasons.Total(c.code) != 1 {
				t.Errorf("have %v on connection %d: %+v", err, conn, a.reasons.Entries())
			}
			if m := next[peer.Message](t, b); epochOf(m) != 7 {
				t.Errorf("have %+v", m)
			}
		}
		largest := wire.NetworkConfig{Generation: 1, Blob: bytes.Repeat([]byte{255}, wire.MaxNetworkBlob)}
		if conn, err := a.SendAll(b.id, largest); err != nil || conn != up.Conn {
			t.Errorf("the largest: %v on connection %d", err, conn)
		}
		if m, ok := next[peer.Message](t, b).Msg.(wire.NetworkConfig); !ok || len(m.Blob) != wire.MaxNetworkBlob {
			t.Errorf("the largest: have %T", m)
		}
		quiet(t, a)
	})
}

func TestQueueBytesAndWriteDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var net peertest.Network
		x := start(t, &net, 1, func(c *peer.Config) { c.Limits.QueueBytes = 1000 })
		dialRaw(t, &net, x, 2)
		next[peer.Up](t, x)
		big := wire.NetworkConfig{Generation: 1, Blob: make([]byte, 2000)}
		if err := x.Send(board(2), big); reason.CodeOf(err) != peer.CodeQueueFull {
			t.Fatalf("have %v", err)
		}
		next[peer.Down](t, x)
		dialRaw(t, &net, x, 3)
		begin := time.Now()
		next[peer.Up](t, x)
		if d := next[peer.Down](t, x); time.Since(begin) != 10*time.Second { // mute and deaf at once
			t.Errorf("have %v after %v", d.Cause, time.Since(begin))
		}
	})
}

func TestReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var net peertest.Network
		x := start(t, &net, 1, nil)
		first := dialRaw(t, &net, x, 2)
		go discard(first)
		one := next[peer.Up](t, x)
		for e := range ident.Epoch(3) { // messages that the driver has not read when the newer connection comes
			frame, err := wire.AppendFrame(nil, tq(e))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := first.Write(frame); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		second := dialRaw(t, &net, x, 2)
		go discard(second)
		synctest.Wait()
		two := next[peer.Up](t, x)
		if two.Peer != one.Peer || two.Conn <= one.Conn {
			t.Fatalf("have %+v after %+v", two, one)
		}
		quiet(t, x)
		if x.reasons.Total(peer.CodeStale) != 3 || x.reasons.Total(peer.CodeReplaced) != 1 {
			t.Errorf("have %+v", x.reasons.Entries())
		}
		if _, err := first.Write([]byte{1}); err == nil {
			t.Error("the older connection is still open")
		}
		if err := x.Send(board(2), tq(1)); err != nil {
			t.Fatal(err)
		}
		_ = second.Close()
		if d := next[peer.Down](t, x); d.Conn != two.Conn {
			t.Errorf("have %+v", d)
		}
	})
}

// TestOldStaysUntilAccepted: a newer connection whose evidence is refused does not touch the older one.
func TestOldStaysUntilAccepted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var net peertest.Network
		x := start(t, &net, 1, nil)
		go discard(dialRaw(t, &net, x, 2))
		next[peer.Up](t, x)
		x.channel.Refuse = func(ident.Baseboard) error { return reason.New("evidence-nonce", "", "replayed") }
		raw, err := net.Dial(t.Context(), addr(3).Addr(), x.addr)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := (&peertest.Channel{Self: board(2)}).Dial(t.Context(), raw); err == nil {
			t.Fatal("accepted")
		}
		quiet(t, x)
		if x.reasons.Total("evidence-nonce") != 1 || x.reasons.Total(peer.CodeReplaced) != 0 {
			t.Errorf("have %+v", x.reasons.Entries())
		}
	})
}

func TestSelf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var net peertest.Network
		x := start(t, &net, 1, nil)
		raw, err := net.Dial(t.Context(), addr(7).Addr(), x.addr)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := (&peertest.Channel{Self: x.id}).Dial(t.Context(), raw); err != nil {
			t.Fatal(err)
		}
		quiet(t, x)
		if x.reasons.Total(peer.CodeSelf) != 1 {
			t.Errorf("have %+v", x.reasons.Entries())
		}
	})
}

func TestBadMessages(t *testing.T) {
	ping := []byte{0, 0, 0, 5, 0x64, 'P', 'i', 'n', 'g'}
	for _, c := range []struct {
		name string
		send []byte
		caps []string
		code reason.Code
	}{
		{"unknown message", []byte{0, 0, 0, 5, 0x64, 'P', 'o', 'n', 'g'}, nil, wire.CodeUnknown},
		{"trailing bytes", append([]byte{0, 0, 0, 6}, append(ping[4:], 0)...), nil, wire.CodeTrailing},
		{"empty frame", []byte{0, 0, 0, 0}, nil, wire.CodeEmptyFrame},
		{"too large", []byte{0xff, 0xff, 0xff, 0xff}, nil, wire.CodeTooLarge},
		{"ours without capability", frame(wire.EvidenceResult{Accepted: true}), []string{}, peer.CodeCapability},
		{"answer without question", frame(wire.EvidenceResult{Accepted: true}), nil, peer.CodeUnexpected},
		{"evidence where none is expected", frame(wire.Evidence{Evidence: []byte{1}}), nil, peer.CodeUnexpected},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var net peertest.Network
				x := start(t, &net, 1, nil)
				x.channel.Capabilities = c.caps
				raw := dialRaw(t, &net, x, 2)
				go discard(raw)
				next[peer.Up](t, x)
				if _, err := raw.Write(append(append([]byte{}, ping...), c.send...)); err != nil {
					t.Fatal(err)
				}
				d := next[peer.Down](t, x)
				if reason.CodeOf(d.Cause) != c.code || reason.HintOf(d.Cause) == "" || x.reasons.Total(c.code) != 1 {
					t.Errorf("have %q: %v, want %q; %+v", reason.CodeOf(d.Cause), d.Cause, c.code, x.reasons.Entries())
				}
				if s := x.Status(); len(s.Refusals) != 1 || s.Refusals[0].Code != c.code {
					t.Errorf("have %+v", s.Refusals)
				}
			})
		})
	}
}

func frame(m wire.Msg) []byte {
	b, err := wire.AppendFrame(nil, m)
	if err != nil {
		panic(err)
	}
	return b
}

func TestRemovedSled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var net peertest.Network
		x := start(t, &net, 1, nil)
		x.channel.Edit = func(a *peer.Attested) { a.Removed = true }
		go discard(dialRaw(t, &net, x, 2))
		if up := next[peer.Up](t, x); !up.Removed {
			t.Error("Up does not say so")
		}
		if err := x.Send(board(2), tq(1)); reason.CodeOf(err) != peer.CodeRemovedSled {
			t.Errorf("have %v", err)
		}
		if err := x.Send(board(2), wire.TQ{Message: quorum.Message{Kind: quorum.ExpungedNotice{Epoch: 3}}}); err != nil {
			t.Error(err)
		}
	})
}

func TestHandshakeLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var net peertest.Network
		x := start(t, &net, 1, nil)
		x.SetPeers([]netip.AddrPort{addr(0x500)})
		synctest.Wait()
		silent := func(n int) bool { // one more mute connection from an address; false if it was closed at once
			c, err := net.Dial(t.Context(), addr(n).Addr(), x.addr)
			if err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			return c.SetReadDeadline(time.Time{}) == nil // fails once the other end is closed
		}
		for i := range 6 {
			if have, want := silent(2), i < 4; have != want {
				t.Errorf("connection %d of one address: open %v, want %v", i, have, want)
			}
		}
		open := 4
		for n := range 100 {
			if silent(0x1000 + n) {
				open++
			}
		}
		if open != 32 {
			t.Errorf("strangers hold %d handshakes, want 32", open)
		}
		if !silent(0x500) {
			t.Error("a peer's address finds no room")
		}
		if x.reasons.Total(peer.CodeHandshakes) != 2+100-28 {
			t.Errorf("have %d", x.reasons.Total(peer.CodeHandshakes))
		}
		time.Sleep(61 * time.Second)
		if s := x.Status(); len(s.Connections) != 0 || x.reasons.Total(peer.CodeTimeout) != 33 {
			t.Errorf("after the deadline: have %d handshakes, %d timeouts", len(s.Connections), x.reasons.Total(peer.CodeTimeout))
		}
	})
}

// TestDriverStops: a driver that does not read stops its peers' messages, not the manager.
func TestDriverStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var net peertest.Network
		x := start(t, &net, 1, func(c *peer.Config) { c.Limits.Events = 10 })
		raw := dialRaw(t, &net, x, 2)
		go discard(raw)
		sent := make(chan int, 1)
		go func() {
			n := 0
			for ; n < 1000; n++ {
				if _, err := raw.Write(frame(tq(1))); err != nil {
					break
				}
			}
			sent <- n
		}()
		time.Sleep(time.Hour)
		if s := x.Status(); len(s.Connections) != 1 {
			t.Errorf("have %+v", s)
		}
		next[peer.Up](t, x)
		for range 1000 {
			next[peer.Message](t, x)
		}
		if n := <-sent; n != 1000 {
			t.Errorf("have %d messages, want 1000", n)
		}
	})
}

func TestRefresh(t *testing.T) {
	for _, c := range []struct {
		name       string
		verdict    error
		mute       bool
		near, far  reason.Code
		nearByPeer bool
	}{
		{name: "accepted"},
		{name: "refused", verdict: reason.New("evidence-rollback", "look", "went back"), near: peer.CodeRefused, far: "evidence-rollback", nearByPeer: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var net peertest.Network
				var seen []string
				a, b := start(t, &net, 1, nil), start(t, &net, 2, nil)
				a.channel.Edit = func(at *peer.Attested) {
					n := byte(0)
					at.Fresh = func(context.Context) ([]byte, error) { n++; return []byte{'e', n}, nil }
				}
				b.channel.Edit = func(at *peer.Attested) {
					at.Reappraise = func(ev []byte) error { seen = append(seen, string(ev)); return c.verdict }
				}
				know(a, b)
				next[peer.Up](t, a)
				next[peer.Up](t, b)
				synctest.Wait() // for the knock
				a.Refresh(t.Context())
				synctest.Wait()
				if c.verdict == nil {
					a.Refresh(t.Context())
					time.Sleep(5 * time.Minute)
					quiet(t, a)
					quiet(t, b)
					if strings.Join(seen, ",") != "e\x01,e\x02" {
						t.Errorf("have %q", seen)
					}
					return
				}
				if d := next[peer.Down](t, a); reason.CodeOf(d.Cause) != c.near {
					t.Errorf("have %v", d.Cause)
				}
				if d := next[peer.Down](t, b); reason.CodeOf(d.Cause) != c.far {
					t.Errorf("have %v", d.Cause)
				}
				if s := a.Status(); len(s.Refusals) != 1 || s.Refusals[0].ByPeer != c.nearByPeer || s.Refusals[0].Code != c.far {
					t.Errorf("have %+v", s.Refusals)
				}
			})
		})
	}
}

func TestRefreshUnanswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var net peertest.Network
		x := start(t, &net, 1, nil)
		x.channel.Edit = func(at *peer.Attested) {
			at.Fresh = func(context.Context) ([]byte, error) { return []byte{1}, nil }
		}
		raw := dialRaw(t, &net, x, 2)
		go discard(raw)
		pinging := make(chan struct{})
		defer func() { <-pinging }()
		go func() {
			defer close(pinging)
			for {
				if _, err := raw.Write(frame(wire.Ping{})); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		}()
		next[peer.Up](t, x)
		begin := time.Now()
		x.Refresh(t.Context())
		var d peer.Down
		select {
		case e := <-x.Events():
			d = e.(peer.Down)
		case <-time.After(2 * time.Minute):
			t.Fatal("still up")
		}
		if took := time.Since(begin); reason.CodeOf(d.Cause) != peer.CodeUnanswered || took < 60*time.Second || took > 62*time.Second {
			t.Errorf("have %v after %v", d.Cause, took)
		}
	})
}

// TestRefreshDuringHandshake: evidence that was shown before the counter moved is renewed as soon as the connection is up.
func TestRefreshDuringHandshake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var net peertest.Network
		fresh := make(chan struct{}, 4)
		x := start(t, &net, 1, nil)
		x.channel.Edit = func(at *peer.Attested) {
			x.Refresh(t.Context()) // while the handshake still runs
			at.Fresh = func(context.Context) ([]byte, error) { fresh <- struct{}{}; return []byte{1}, nil }
		}
		go discard(dialRaw(t, &net, x, 2))
		next[peer.Up](t, x)
		synctest.Wait()
		if len(fresh) != 1 {
			t.Errorf("have %d, want 1", len(fresh))
		}
	})
}

func TestRack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var net peertest.Network
		const n = 32
		var nodes []*node
		for i := range n {
			nodes = append(nodes, start(t, &net, i+1, nil))
		}
		know(nodes...)
		for _, x := range nodes {
			for range n - 1 {
				next[peer.Up](t, x)
			}
		}
		for _, x := range nodes {
			for _, y := range nodes {
				if x != y {
					if err := x.Send(y.id, tq(7)); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
		for _, x := range nodes {
			for range n - 1 {
				next[peer.Message](t, x)
			}
			if s := x.Status(); len(s.Connections) != n-1 || s.Totals.Refused != 0 {
				t.Errorf("%s: have %d connections, %+v", x.id, len(s.Connections), s.Totals)
			}
		}
	})
}

// TestKnockProbes: a knock from a peer that seems to be connected makes us write at once, so that a reset can come.
func TestKnockProbes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var net peertest.Network
		l, err := net.Listen(t.Context(), addr(1))
		if err != nil {
			t.Fatal(err)
		}
		x := start(t, &net, 2, nil)
		x.SetPeers([]netip.AddrPort{addr(1)})
		raw, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := (&peertest.Channel{Self: board(1)}).Accept(t.Context(), raw); err != nil {
			t.Fatal(err)
		}
		next[peer.Up](t, x)
		begin := time.Now()
		for i, want := range []time.Duration{0, 0, time.Second} { // the first ping, the probe, the next ping
			if i == 1 {
				k, err := net.Dial(t.Context(), addr(1).Addr(), x.addr)
				if err != nil {
					t.Fatal(err)
				}
				_ = k.Close()
			}
			if _, err := wire.ReadFrame(raw, nil); err != nil || time.Since(begin) != want {
				t.Errorf("frame %d: after %v, want %v: %v", i, time.Since(begin), want, err)
			}
		}
		_ = raw.Close()
		_ = l.Close()
		next[peer.Down](t, x)
	})
}

// TestEnd: messages that nobody read are wiped, and the events end.
func TestEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var net peertest.Network
		pages := &counter{}
		x := start(t, &net, 1, func(c *peer.Config) { c.Alloc = pages })
		raw := dialRaw(t, &net, x, 2)
		go discard(raw)
		next[peer.Up](t, x)
		y, err := secret.Take[secret.ShareKind](secret.Heap{}, make([]byte, 32))
		if err != nil {
			t.Fatal(err)
		}
		share := wire.TQ{Message: quorum.Message{Kind: quorum.ShareReply{Epoch: 1, Share: gfss.Share{X: 1, Y: y}}}}
		for range 3 {
			if _, err := raw.Write(frame(share)); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		x.end()
		if _, open := <-x.Events(); open {
			t.Error("the events go on")
		}
		if pages.made.Load() != 3 || pages.freed.Load() != 3 {
			t.Errorf("have %d shares, %d wiped", pages.made.Load(), pages.freed.Load())
		}
	})
}

// counter counts the pages of secrets.
type counter struct{ made, freed atomic.Int32 }

func (c *counter) Alloc(n int) ([]byte, func(), error) {
	c.made.Add(1)
	return make([]byte, n), func() { c.freed.Add(1) }, nil
}

func TestConfig(t *testing.T) {
	t.Parallel()
	if _, err := peer.New(peer.Config{}); err == nil {
		t.Error("an empty configuration was accepted")
	}
	if _, err := peer.New(peer.Config{Self: board(1), Listen: addr(1)}); reason.CodeOf(err) != peer.CodeConfig {
		t.Errorf("have %v", err)
	}
}
