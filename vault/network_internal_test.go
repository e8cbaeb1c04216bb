package vault

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/ledger"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/wire"
)

// netRig is a sled's network configuration with disks and peers that only remember.
type netRig struct {
	*network
	mu     sync.Mutex
	stored []uint64
	broken bool
	sent   []string // "peer generation"
	log    *reason.Log
}

func newNetRig(have ledger.Network) *netRig {
	r := &netRig{log: reason.NewLog()}
	r.network = newNetwork(have, func(_ context.Context, n ledger.Network) error {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.broken {
			return reason.New(ledger.CodeNetwork, "", "broken")
		}
		r.stored = append(r.stored, n.Generation)
		return nil
	}, r.log, slog.New(slog.DiscardHandler))
	r.setSend(func(to ident.Baseboard, c wire.NetworkConfig) error {
		r.mu.Lock()
		defer r.mu.Unlock()
		if len(r.stored) == 0 || r.stored[len(r.stored)-1] < c.Generation {
			r.sent = append(r.sent, "NOT STORED")
		}
		r.sent = append(r.sent, fmt.Sprintf("%s %d", to.Serial, c.Generation))
		return nil
	})
	return r
}

func (r *netRig) take() (sent []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	sent, r.sent = r.sent, nil
	return sent
}

func board(serial string) ident.Baseboard { return ident.Baseboard{Part: "p", Serial: serial} }

func cfg(g uint64, blob string) wire.NetworkConfig {
	return wire.NetworkConfig{Generation: g, Blob: []byte(blob)}
}

// offered hands over what a member sent, and waits until it was judged.
func (r *netRig) offered(from string, c wire.NetworkConfig) {
	r.receive(board(from), c, true)
	turn(networkPause + time.Millisecond)
}

// turn turns the clock of a synctest bubble, and waits until all that is due by then was done.
func turn(d time.Duration) {
	time.Sleep(d) //nolint:forbidigo // under testing/synctest the clock is the test's own
	synctest.Wait()
}

// TestNetworkGossip: newer ones are stored, then passed on to everyone else; what a sled has goes out on each connection.
func TestNetworkGossip(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newNetRig(ledger.Network{})
		go r.run(t.Context())
		r.peerUp(board("1"))
		r.peerUp(board("2"))
		if s := r.take(); s != nil {
			t.Errorf("with nothing to say: sent %q", s)
		}
		r.offered("1", cfg(3, "three"))
		if s := strings.Join(r.take(), ", "); s != "2 3" {
			t.Errorf("one that is newer: sent %q, want it to go to the other peer only", s)
		}
		r.offered("2", cfg(3, "three"))
		r.offered("2", cfg(2, "two"))
		if s, e := r.take(), r.log.Entries(); s != nil || len(e) != 1 || e[0].Code != CodeNetworkStale || !e[0].Routine {
			t.Errorf("equal and older ones: sent %q, counted %+v", s, r.log.Entries())
		}
		r.peerUp(board("3"))
		r.peerUp(board("2")) // a newer connection
		if s := strings.Join(r.take(), ", "); s != "3 3, 2 3" {
			t.Errorf("new connections: sent %q", s)
		}
		r.peerDown(board("2"))
		if _, err := r.adopt(t.Context(), ledger.Network(cfg(4, "four")), ident.Baseboard{}); err != nil {
			t.Error(err)
		}
		if s := r.take(); len(s) != 2 || s[0] == s[1] || strings.Contains(strings.Join(s, ""), "2 4") {
			t.Errorf("from the agent: sent %q, want it to go to both that are connected", s)
		}
		r.mu.Lock()
		r.broken = true
		r.mu.Unlock()
		r.offered("1", cfg(5, "five"))
		if _, err := r.adopt(t.Context(), ledger.Network(cfg(6, "six")), ident.Baseboard{}); reason.CodeOf(err) != ledger.CodeNetwork {
			t.Errorf("not stored: have %v", err)
		}
		if have, _, _ := r.current(); have.Generation != 4 || r.take() != nil || r.log.Total(ledger.CodeNetwork) != 1 {
			t.Errorf("not stored: have generation %d, %+v", have.Generation, r.log.Entries())
		}
	})
}

// TestNetworkRefusals: what a peer should not send changes nothing and is counted under its name.
func TestNetworkRefusals(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newNetRig(ledger.Network(cfg(7, "seven")))
		r.stored = []uint64{7}
		go r.run(t.Context())
		r.peerUp(board("2"))
		r.take()
		big := strings.Repeat("x", wire.MaxNetworkBlob+1)
		for name, c := range map[string]struct {
			cfg   wire.NetworkConfig
			code  reason.Code
			alarm bool
		}{
			"generation 0":   {cfg(0, ""), CodeNetworkInvalid, false},
			"oversized blob": {cfg(8, big), CodeNetworkInvalid, false},
			"2^64-1":         {cfg(math.MaxUint64, "mine for ever"), CodeNetworkJump, true},
			"jump":           {cfg(7+maxNetworkJump+1, "mine"), CodeNetworkJump, true},
			"split":          {cfg(7, "other"), CodeNetworkSplit, true},
		} {
			before := r.log.Total(c.code)
			r.offered("evil", c.cfg)
			if have, _, _ := r.current(); have.Generation != 7 || r.take() != nil || r.log.Total(c.code) != before+1 {
				t.Errorf("%s: have generation %d, want a counted refusal: %+v", name, have.Generation, r.log.Entries())
			}
			if a := r.alarms(); c.alarm && (len(a) != 1 || a[0].Kind != string(c.code) || *a[0].From != board("evil")) {
				t.Errorf("%s: alarms %+v", name, a)
			}
		}
		for _, e := range r.log.Entries() {
			if e.Peer != board("evil").String() {
				t.Errorf("counted under %q: %+v", e.Peer, e)
			}
		}
		r.receive(board("stranger"), cfg(8, "strange"), false)
		synctest.Wait()
		if have, _, _ := r.current(); have.Generation != 7 || r.log.Total(CodeNetworkSender) != 1 {
			t.Errorf("no member: have generation %d, %+v", have.Generation, r.log.Entries())
		}
		r.offered("evil", cfg(7+maxNetworkJump, "far, but not too far"))
		if have, _, _ := r.current(); have.Generation != 7+maxNetworkJump || len(r.alarms()) != 0 {
			t.Errorf("within bounds: have generation %d, alarms %+v", have.Generation, r.alarms())
		}
	})
}

// TestNetworkSplit: both hashes are named, to the agent and in the alarm, which ends when the peers agree again.
func TestNetworkSplit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, b := ledger.Network(cfg(7, "a")), ledger.Network(cfg(7, "b"))
		r := newNetRig(a)
		go r.run(t.Context())
		_, err := r.adopt(t.Context(), b, ident.Baseboard{})
		for _, sum := range []string{fmt.Sprintf("%x", a.Digest()), fmt.Sprintf("%x", b.Digest())} {
			if reason.CodeOf(err) != CodeNetworkSplit || !strings.Contains(err.Error(), sum) || reason.HintOf(err) == "" {
				t.Errorf("to the agent: have %v, want both hashes", err)
			}
		}
		r.offered("2", wire.NetworkConfig(b))
		if al := r.alarms(); len(al) != 1 || al[0].Text != err.Error() {
			t.Errorf("alarms %+v", al)
		}
		r.offered("2", wire.NetworkConfig(a))
		if al := r.alarms(); len(al) != 0 {
			t.Errorf("after it agreed: alarms %+v", al)
		}
		r.offered("2", wire.NetworkConfig(b))
		if _, err := r.adopt(t.Context(), ledger.Network(cfg(8, "c")), ident.Baseboard{}); err != nil || len(r.alarms()) != 0 {
			t.Errorf("after a newer one: %v, alarms %+v", err, r.alarms())
		}
		// Two peers, one number, before either was judged: the first counts, the other is told apart.
		before := r.log.Total(CodeNetworkSplit)
		r.receive(board("2"), cfg(9, "x"), true)
		r.receive(board("3"), cfg(9, "y"), true)
		turn(2 * networkPause)
		if have, _, _ := r.current(); string(have.Blob) != "x" || r.log.Total(CodeNetworkSplit) != before+1 {
			t.Errorf("at once: have %q, %+v", have.Blob, r.log.Entries())
		}
	})
}

// TestNetworkFlood: a member that makes up one configuration after another costs a write a second, and the newest counts.
func TestNetworkFlood(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newNetRig(ledger.Network{})
		go r.run(t.Context())
		start := time.Now()
		var g uint64
		for time.Since(start) < 10*networkPause {
			g++
			r.receive(board("2"), cfg(g, "x"), true)
			turn(time.Millisecond)
		}
		turn(2 * networkPause)
		r.mu.Lock()
		n := len(r.stored)
		r.mu.Unlock()
		if have, _, _ := r.current(); have.Generation != g || n > 13 {
			t.Errorf("have generation %d of %d after %d writes", have.Generation, g, n)
		}
	})
}

// TestNetworkWaits: who waits for a newer one is woken by it, and by the end of its time.
func TestNetworkWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newNetRig(ledger.Network(cfg(7, "seven")))
		d := &Daemon{network: r.network}
		got := make(chan uint64, 1)
		go func() {
			c, err := d.NetworkConfig(t.Context(), 7)
			if err != nil {
				t.Error(err)
			}
			got <- c.Generation
		}()
		synctest.Wait()
		select {
		case g := <-got:
			t.Fatalf("nobody waits: %d", g)
		default:
		}
		if out, err := d.SetNetworkConfig(t.Context(), 8, []byte("eight")); err != nil || out.Generation != 8 || out.Blob != nil || out.SHA256 == "" {
			t.Errorf("%+v, %v", out, err)
		}
		if g := <-got; g != 8 {
			t.Errorf("woken with %d", g)
		}
		if out, err := d.SetNetworkConfig(t.Context(), 8, []byte("eight")); err != nil || out.Generation != 8 {
			t.Errorf("once more: %+v, %v", out, err)
		}
		if _, err := d.SetNetworkConfig(t.Context(), 7, []byte("seven")); reason.CodeOf(err) != CodeNetworkStale {
			t.Errorf("older: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if c, err := d.NetworkConfig(ctx, 8); err != nil || c.Generation != 8 || !errors.Is(ctx.Err(), context.DeadlineExceeded) {
			t.Errorf("the end of the wait: %+v, %v", c, err)
		}
	})
}
