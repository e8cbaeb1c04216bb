package channel_test

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"

	"github.com/sledvault/sledvault/rot"
	"github.com/sledvault/sledvault/rot/channel"
	"github.com/sledvault/sledvault/rot/channel/channeltest"
	"github.com/sledvault/sledvault/vault/reason"
)

// outcome is what one side's handshake came to.
type outcome struct {
	conn *channel.Conn
	err  error
}

// connect opens a channel between two sleds over an in-memory pipe.
func connect(tb testing.TB, dialer, acceptor *channel.Config) (d, a outcome) {
	tb.Helper()
	near, far := net.Pipe()
	return handshake(tb.Context(), dialer, acceptor, near, far)
}

func handshake(ctx context.Context, dialer, acceptor *channel.Config, near, far net.Conn) (d, a outcome) {
	done := make(chan outcome, 1)
	go func() {
		c, err := acceptor.Accept(ctx, far)
		done <- outcome{c, err}
	}()
	c, err := dialer.Dial(ctx, near)
	return outcome{c, err}, <-done
}

func mustConnect(tb testing.TB, dialer, acceptor *channeltest.Sled) (d, a *channel.Conn) {
	tb.Helper()
	x, y := connect(tb, dialer.Channel, acceptor.Channel)
	if x.err != nil || y.err != nil {
		tb.Fatalf("dialer: %v; acceptor: %v", x.err, y.err)
	}
	tb.Cleanup(func() { _ = x.conn.Conn.(interface{ NetConn() net.Conn }).NetConn().Close() })
	return x.conn, y.conn
}

func TestChannel(t *testing.T) {
	t.Parallel()
	r := channeltest.NewRack(t, 2)
	d, a := mustConnect(t, r.Sleds[0], r.Sleds[1])
	if d.Peer != r.Sleds[1].ID || a.Peer != r.Sleds[0].ID {
		t.Errorf("have peers %v and %v", d.Peer, a.Peer)
	}
	if len(d.Capabilities) != 1 || d.Capabilities[0] != "authority/1" || d.Verdict.Facts.SetGeneration != 1 {
		t.Errorf("have %v, %+v", d.Capabilities, d.Verdict)
	}
	if s := r.Sleds[0].Seen(r.Sleds[1].TPM.EKName()); !s.Known || s.Sequence != 3 {
		t.Errorf("nothing remembered: %+v", s)
	}
	go func() { _, _ = d.Write([]byte("hello")) }()
	buf := make([]byte, 5)
	if _, err := io.ReadFull(a, buf); err != nil || string(buf) != "hello" {
		t.Errorf("have %q, %v", buf, err)
	}
}

// TestRefusedSidesKnowWhy: whoever refuses, both sides can say which code it was.
func TestRefusedSidesKnowWhy(t *testing.T) {
	t.Parallel()
	r := channeltest.NewRack(t, 2)
	tampered := r.Sleds[0]
	tampered.TPM.Extend(14, [32]byte{1})
	for _, dialing := range []bool{true, false} {
		bad, good := connect(t, tampered.Channel, r.Sleds[1].Channel)
		if !dialing {
			good, bad = connect(t, r.Sleds[1].Channel, tampered.Channel)
		}
		if reason.CodeOf(good.err) != rot.CodePCRPolicy {
			t.Errorf("dialing %v: judge: have %v", dialing, good.err)
		}
		refusal, ok := errors.AsType[*channel.Refusal](bad.err)
		if reason.CodeOf(bad.err) != channel.CodeRefused || !ok || refusal.Code != rot.CodePCRPolicy {
			t.Errorf("dialing %v: judged: have %v", dialing, bad.err)
		}
	}
	if r.Sleds[1].TPM.Quotes != 1 {
		t.Errorf("have %d quotes of the acceptor, want 1: none for a peer that has not passed", r.Sleds[1].TPM.Quotes)
	}
}
