package lrtqnet_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/sledvault/sledvault/internal/rig"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/lrtq"
	"github.com/sledvault/sledvault/vault/lrtqnet"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
	"github.com/sledvault/sledvault/vault/wire"
)

var rackID = ident.RackID{7, 7}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func board(i int) lrtq.Board {
	return lrtq.Board{Kind: lrtq.Gimlet, Identifier: fmt.Sprintf("SIM%04d", i), Model: "913-0000019", Revision: 6}
}

// packages of a rack of n sleds, and its secret.
func packages(t testing.TB, n int) ([]lrtq.SharePackage, secret.RackSecret) {
	t.Helper()
	var boards []lrtq.Board
	for i := range n {
		boards = append(boards, board(i))
	}
	p, err := lrtq.Create(secret.Heap{}, rand.NewChaCha8([32]byte{1}), rackID, boards)
	must(t, err)
	s, err := lrtq.NewSecret(secret.Heap{}, rand.NewChaCha8([32]byte{1}))
	must(t, err)
	return p, s
}

// free finds n addresses that nobody listens on, ascending.
func free(t testing.TB, n int) (out []netip.AddrPort) {
	t.Helper()
	var held []net.Listener // to the end, so that no port comes twice
	defer func() {
		for _, ln := range held {
			_ = ln.Close()
		}
	}()
	for len(out) < n {
		ln, err := net.Listen("tcp", "[::1]:0")
		if err != nil {
			rig.Lack(t, fmt.Sprintf("no IPv6 on the loopback: %v", err))
		}
		held = append(held, ln)
		a := netip.MustParseAddrPort(ln.Addr().String())
		if len(out) == 0 || a.Port() > out[len(out)-1].Port() {
			out = append(out, a)
		}
	}
	return out
}

type running struct {
	*lrtqnet.Server
	reasons *reason.Log
	stop    func()
}

// serve starts a server; it is stopped with the test at the latest, and must then end without an error.
func serve(t *testing.T, i int, p lrtq.Package, listen netip.AddrPort, peers []netip.AddrPort, timing lrtqnet.Timing) *running {
	t.Helper()
	clone, err := p.Clone(secret.Heap{})
	must(t, err)
	r := &running{reasons: reason.NewLog()}
	r.Server, err = lrtqnet.New(lrtqnet.Config{
		ID: board(i), Listen: listen, Peers: peers, Package: clone, Alloc: secret.Heap{}, Rand: rand.NewChaCha8([32]byte{byte(i)}),
		Reasons: r.reasons, Log: slog.New(slog.DiscardHandler), Timing: timing,
	})
	must(t, err)
	must(t, r.Listen(t.Context()))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	stopped := false
	r.stop = func() {
		cancel()
		if !stopped {
			stopped = true
			must(t, <-done)
		}
	}
	t.Cleanup(r.stop)
	return r
}

// await polls for a state that comes by itself.
func await(t *testing.T, what string, f func() bool) {
	t.Helper()
	deadline := time.Now().Add(15 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !f() {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
		<-tick.C
	}
}

var quick = lrtqnet.Timing{Tick: 20 * time.Millisecond, Retry: 10 * time.Millisecond}

// TestRackLoads has the sleds of a rack find each other, whoever must dial, and load the secret; one that ended does no
// harm as long as a threshold is left, and comes back.
func TestRackLoads(t *testing.T) {
	t.Parallel()
	addrs := free(t, 4)
	pkgs, want := packages(t, 4)
	var all []*running
	for i := range addrs {
		all = append(all, serve(t, i, pkgs[i].Common, addrs[i], addrs, quick))
	}
	load := func(s *running) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
		defer cancel()
		for {
			sec, err := s.Load(ctx)
			if err == nil {
				if !sec.Equal(want) {
					t.Error("another secret")
				}
				sec.Destroy()
				return
			}
			if reason.RemedyOf(err) != reason.Retry {
				t.Fatal(err)
			}
		}
	}
	for _, s := range all {
		await(t, "three peers", func() bool { return len(s.Status().Node.Peers) == 3 })
		load(s)
	}
	all[3].stop()
	await(t, "one peer gone", func() bool { return len(all[0].Status().Node.Peers) == 2 })
	load(all[0])
	all[2].stop()
	await(t, "two peers gone", func() bool { return len(all[0].Status().Node.Peers) == 1 })
	if _, err := all[0].Load(t.Context()); reason.CodeOf(err) != lrtq.CodeLoadTimeout {
		t.Errorf("below the threshold: have %v", err)
	}
	all[3] = serve(t, 3, pkgs[3].Common, addrs[3], addrs, quick)
	load(all[0])
	if all[1].reasons.Total(lrtq.CodeShareGiven) < 4 {
		t.Errorf("shares given away are not counted: %+v", all[1].reasons.Entries())
	}
	if _, err := all[2].Load(t.Context()); reason.CodeOf(err) != lrtqnet.CodeEnded {
		t.Errorf("after the end: have %v", err)
	}
}

// raw is a peer that says what it likes.
type raw struct {
	t *testing.T
	net.Conn
}

func dial(t *testing.T, to netip.AddrPort) *raw {
	t.Helper()
	c, err := net.Dial("tcp", to.String())
	must(t, err)
	t.Cleanup(func() { _ = c.Close() })
	must(t, c.SetDeadline(time.Now().Add(15*time.Second)))
	return &raw{t, c}
}

func (r *raw) hello(id lrtq.Board, addr netip.AddrPort) wire.LRTQIdentify {
	r.t.Helper()
	b, err := wire.AppendLRTQHandshake(nil, wire.LRTQIdentify{ID: id, Addr: addr})
	must(r.t, err)
	_, err = r.Write(b)
	must(r.t, err)
	got, err := wire.ReadLRTQHandshake(r)
	must(r.t, err)
	return got
}

func (r *raw) ask(k lrtq.RequestKind) lrtq.ResponseKind {
	r.t.Helper()
	id := lrtq.RequestID{1}
	b, err := wire.AppendLRTQFrame(nil, wire.LRTQ{Message: lrtq.Request{ID: id, Kind: k}})
	must(r.t, err)
	_, err = r.Write(b)
	must(r.t, err)
	for {
		p, err := wire.ReadLRTQFrame(r, nil)
		must(r.t, err)
		m, err := wire.DecodeLRTQ(secret.Heap{}, p)
		must(r.t, err)
		if l, ok := m.(wire.LRTQ); ok {
			if rsp, ok := l.Message.(lrtq.Response); ok && rsp.Request == id {
				return rsp.Kind
			}
		}
	}
}

// closed waits for the other side to close.
func (r *raw) closed() {
	r.t.Helper()
	if _, err := io.Copy(io.Discard, r); err != nil && !strings.Contains(err.Error(), "reset") {
		r.t.Errorf("not closed: %v", err)
	}
}

// TestAnswers holds the answers of a served sled: its own share to whoever names the rack, and nothing else.
func TestAnswers(t *testing.T) {
	t.Parallel()
	addrs := free(t, 2)
	pkgs, _ := packages(t, 3)
	s := serve(t, 0, pkgs[0].Common, addrs[0], addrs, quick)
	p := dial(t, addrs[0])
	if got := p.hello(board(1), addrs[1]); got.ID != board(0) || got.Addr != addrs[0] {
		t.Errorf("it says that it is %+v", got)
	}
	if k, ok := p.ask(lrtq.GetShare{RackID: rackID}).(lrtq.ShareReply); !ok || !k.Share.Y.Equal(pkgs[0].Common.Share.Y) {
		t.Errorf("share: %v", ok)
	}
	for name, c := range map[string]struct {
		ask  lrtq.RequestKind
		want lrtq.Why
	}{
		"another rack": {lrtq.GetShare{}, lrtq.RackMismatch},
		"learn":        {lrtq.Learn{}, lrtq.CannotSpareAShare},
		"init":         {lrtq.Init{Package: pkgs[1]}, lrtq.AlreadyInitialized},
	} {
		if k, ok := p.ask(c.ask).(lrtq.Refusal); !ok || k.Why != c.want {
			t.Errorf("%s: have %+v", name, k)
		}
	}
	b, err := wire.AppendLRTQFrame(nil, wire.NetworkConfig{Generation: 3, Blob: []byte("x")})
	must(t, err)
	_, err = p.Write(b)
	must(t, err)
	await(t, "the unserved message", func() bool { return s.reasons.Total(lrtqnet.CodeUnserved) == 1 })
	// the same sled again: the newer connection counts, and the older one's end does not take it away
	again := dial(t, addrs[0])
	again.hello(board(1), addrs[1])
	p.closed()
	if _, ok := again.ask(lrtq.GetShare{RackID: rackID}).(lrtq.ShareReply); !ok || len(s.Status().Node.Peers) != 1 {
		t.Errorf("after a second connection: %+v", s.Status())
	}
}

// TestRefuses holds what costs a peer its connection, each with its reason.
func TestRefuses(t *testing.T) {
	t.Parallel()
	addrs := free(t, 3)
	pkgs, _ := packages(t, 3)
	timing := quick
	timing.Handshake, timing.Idle = 300*time.Millisecond, 300*time.Millisecond
	s := serve(t, 1, pkgs[1].Common, addrs[1], []netip.AddrPort{addrs[1], addrs[2]}, timing)
	frame := func(n uint32, rest ...byte) []byte {
		return append(binary.BigEndian.AppendUint32(nil, n), rest...)
	}
	for name, c := range map[string]struct {
		say  func(*raw)
		want reason.Code
	}{
		"silent":            {func(*raw) {}, lrtqnet.CodeHandshake},
		"cut off":           {func(p *raw) { _, _ = p.Write(make([]byte, 10)) }, lrtqnet.CodeHandshake},
		"another scheme":    {func(p *raw) { _, _ = p.Write(bytes.Repeat([]byte{1}, 40)) }, wire.CodeVersion},
		"long identify":     {func(p *raw) { _, _ = p.Write(append(make([]byte, 16), frame(109)...)) }, wire.CodeTooLarge},
		"lower address":     {func(p *raw) { p.hello(board(0), addrs[0]) }, lrtqnet.CodeDirection},
		"our own name":      {func(p *raw) { p.hello(board(1), addrs[2]) }, lrtqnet.CodeDirection},
		"silent afterwards": {func(p *raw) { p.hello(board(2), addrs[2]) }, lrtqnet.CodeClosed},
		"a frame too large": {func(p *raw) { p.hello(board(2), addrs[2]); _, _ = p.Write(frame(1 << 20)) }, wire.CodeTooLarge},
		"an empty frame":    {func(p *raw) { p.hello(board(2), addrs[2]); _, _ = p.Write(frame(0)) }, wire.CodeEmptyFrame},
		"not CBOR":          {func(p *raw) { p.hello(board(2), addrs[2]); _, _ = p.Write(frame(1, 0xff)) }, wire.CodeType},
		"closed in a frame": {func(p *raw) { p.hello(board(2), addrs[2]); _, _ = p.Write(frame(9, 1)); _ = p.Close() }, wire.CodeShort},
		"closed in between": {func(p *raw) { p.hello(board(2), addrs[2]); _ = p.Close() }, lrtqnet.CodeClosed},
	} {
		before := s.reasons.Total(c.want)
		p := dial(t, addrs[1])
		c.say(p)
		if !strings.HasPrefix(name, "closed") {
			p.closed()
		}
		await(t, name, func() bool { return s.reasons.Total(c.want) > before })
	}
	await(t, "nothing left", func() bool {
		st := s.Status()
		return len(st.Node.Peers) == 0 && st.Handshaking == 0 && len(st.Addresses) == 0
	})
	// Handshakes of one address are bounded: the ninth is refused at once, and the others are not harmed by it.
	var waiting []*raw
	for range 8 {
		waiting = append(waiting, dial(t, addrs[1]))
	}
	await(t, "eight handshakes", func() bool { return s.Status().Handshaking == 8 })
	dial(t, addrs[1]).closed()
	await(t, "the ninth", func() bool { return s.reasons.Total(lrtqnet.CodeBusy) == 1 })
	waiting[3].hello(board(2), addrs[2])
	await(t, "its peer", func() bool { return len(s.Status().Node.Peers) == 1 })
}

// TestAttack holds the answers to known attacks, by the names that docs/threat-model.md uses.
func TestAttack(t *testing.T) {
	t.Parallel()
	// The older scheme gives a share to whoever asks. Where the operator serves it, only configured addresses are let in,
	// no spare share can be had, and every share that leaves is counted with its receiver.
	t.Run("unauthenticated-key-service", func(t *testing.T) {
		t.Parallel()
		addrs := free(t, 2)
		pkgs, _ := packages(t, 3)
		s := serve(t, 0, pkgs[0].Common, addrs[0], []netip.AddrPort{netip.MustParseAddrPort("[fd00::1]:12347")}, quick)
		dial(t, addrs[0]).closed()
		if s.reasons.Total(lrtqnet.CodeStranger) != 1 || s.reasons.Total(lrtq.CodeShareGiven) != 0 {
			t.Errorf("have %+v", s.reasons.Entries())
		}
		s.stop()
		s = serve(t, 0, pkgs[0].Common, addrs[0], addrs, quick)
		p := dial(t, addrs[0])
		p.hello(board(9), addrs[1])
		if k, ok := p.ask(lrtq.Learn{}).(lrtq.Refusal); !ok || k.Why != lrtq.CannotSpareAShare {
			t.Errorf("learn: have %+v", k)
		}
		if _, ok := p.ask(lrtq.GetShare{RackID: rackID}).(lrtq.ShareReply); !ok || s.reasons.Total(lrtq.CodeShareGiven) != 1 {
			t.Errorf("a share that was given is not counted: %+v", s.reasons.Entries())
		}
	})
}

// TestCallersGiveUp: a load whose caller is gone ends by itself, and its secret is nobody's.
func TestCallersGiveUp(t *testing.T) {
	t.Parallel()
	addrs := free(t, 2)
	pkgs, _ := packages(t, 3)
	timing := quick
	timing.Tick = 5 * time.Millisecond
	s := serve(t, 0, pkgs[0].Common, addrs[0], addrs, timing)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := s.Load(ctx); err == nil {
		t.Error("a secret without peers")
	}
	await(t, "the end of the load", func() bool { return len(s.Status().Node.Running) == 0 })
	if _, err := s.Load(t.Context()); reason.CodeOf(err) != lrtq.CodeLoadTimeout {
		t.Errorf("the next load: have %v", err)
	}
	// a second one meanwhile is told to wait
	got := make(chan error, 2)
	for range 2 {
		go func() { _, err := s.Load(t.Context()); got <- err }()
	}
	codes := fmt.Sprint(reason.CodeOf(<-got), reason.CodeOf(<-got))
	if !strings.Contains(codes, string(lrtq.CodePending)) || !strings.Contains(codes, string(lrtq.CodeLoadTimeout)) {
		t.Errorf("two loads: have %s", codes)
	}
}

// TestNothingRemains: when Run has returned, no goroutine of it is left and its share is wiped.
func TestNothingRemains(t *testing.T) {
	before := runtime.NumGoroutine()
	addrs := free(t, 3)
	pkgs, _ := packages(t, 3)
	var all []*running
	for i := range addrs {
		all = append(all, serve(t, i, pkgs[i].Common, addrs[i], addrs, quick))
	}
	await(t, "two peers", func() bool { return len(all[0].Status().Node.Peers) == 2 })
	for _, s := range all {
		s.stop()
		if st := s.Status(); st.Node.Phase != "ended" || len(st.Addresses) != 0 {
			t.Errorf("after the end: %+v", st)
		}
	}
	await(t, "no goroutines", func() bool { return runtime.NumGoroutine() <= before })
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	pkgs, _ := packages(t, 3)
	p := pkgs[0].Common
	p.Threshold = 1
	if _, err := lrtqnet.New(lrtqnet.Config{ID: board(0), Package: p, Alloc: secret.Heap{}, Rand: rand.NewChaCha8([32]byte{})}); reason.CodeOf(err) != lrtq.CodeState {
		t.Errorf("have %v", err)
	}
	if !p.Share.Y.IsEmpty() {
		t.Error("the package's share is left behind")
	}
	addrs := free(t, 1)
	ln, err := net.Listen("tcp", addrs[0].String())
	if err == nil {
		defer func() { _ = ln.Close() }()
	}
	s, err := lrtqnet.New(lrtqnet.Config{ID: board(1), Listen: addrs[0], Package: pkgs[1].Common, Alloc: secret.Heap{}, Rand: rand.NewChaCha8([32]byte{}), Reasons: reason.NewLog(), Log: slog.New(slog.DiscardHandler)})
	must(t, err)
	if err := s.Listen(t.Context()); reason.CodeOf(err) != lrtqnet.CodeListen {
		t.Errorf("an address in use: have %v", err)
	}
}
