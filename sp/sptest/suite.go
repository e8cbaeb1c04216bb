package sptest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	simsp "github.com/sledvault/sledvault/hwtest/sim/sp"
	"github.com/sledvault/sledvault/sp"
	"github.com/sledvault/sledvault/sp/frame"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/reason"
)

// The identity every simulated service processor of the suite has.
const (
	model    = "913-0000019"
	serial   = "OXE99990000"
	revision = 6
)

// row is one fault and its consequence.
type row struct {
	name   string
	faults simsp.Faults
	idle   bool          // idle zeros
	status bool          // the client asks for the status word
	wait   time.Duration // deadline of the call; 0 means 10 s
	bubble bool          // only under simulated time: it waits long
	code   reason.Code   // of the error; "" means success
	text   string        // part of the error's text
	empty  bool          // the service processor has no identity
	check  func(t *testing.T, s sp.Stats, sim *simsp.SP)
}

// Run runs the whole suite on one kind of line.
func Run(t *testing.T, h Harness) {
	t.Helper()
	for _, r := range rows() {
		if r.bubble && !h.Bubble {
			continue
		}
		t.Run(r.name, func(t *testing.T) { t.Parallel(); h.in(t, func(t *testing.T) { r.run(t, h) }) })
	}
	t.Run("every-position", func(t *testing.T) { everyPosition(t, h) })
	t.Run("again-after-noise", func(t *testing.T) { h.in(t, func(t *testing.T) { afterNoise(t, h) }) })
	t.Run("cancel", func(t *testing.T) { h.in(t, func(t *testing.T) { cancelled(t, h) }) })
	t.Run("close-ends-call", func(t *testing.T) { h.in(t, func(t *testing.T) { closeEndsCall(t, h) }) })
	t.Run("reopen", func(t *testing.T) { h.in(t, func(t *testing.T) { reopen(t, h) }) })
	if h.Bubble {
		t.Run("unplug", func(t *testing.T) { h.in(t, func(t *testing.T) { unplug(t, h) }) })
	}
}

func (r row) run(t *testing.T, h Harness) {
	cfg := simsp.Config{Model: model, Serial: serial, Revision: revision, IdleZeros: r.idle, Seed: 7, Faults: r.faults}
	if r.empty {
		cfg.Model, cfg.Serial, cfg.Revision = "", "", 0
	}
	rig := h.New(t, cfg)
	c := Client(t, rig, sp.Config{Deadline: r.wait, Status: r.status})
	id, err := c.Identity(within(t, 30*time.Second))
	expect(t, id, err, r.code, r.text)
	if r.check != nil {
		r.check(t, c.Stats(), rig.SP)
	}
}

func expect(t *testing.T, id sp.Identity, err error, code reason.Code, text string) {
	t.Helper()
	if code == "" {
		want := sp.Identity{Baseboard: ident.Baseboard{Part: model, Serial: serial}, Revision: revision}
		if err != nil || id != want {
			t.Fatalf("have %+v, %v, want %+v", id, err, want)
		}
		return
	}
	if reason.CodeOf(err) != code || !strings.Contains(err.Error(), text) {
		t.Fatalf("have %v (code %q), want code %q and %q", err, reason.CodeOf(err), code, text)
	}
	if reason.HintOf(err) == "" {
		t.Errorf("no hint on %v", err)
	}
	if id != (sp.Identity{}) {
		t.Errorf("identity beside an error: %+v", id)
	}
}

func noResend(t *testing.T, s sp.Stats, _ *simsp.SP) {
	t.Helper()
	if s.Resends != 0 {
		t.Errorf("have %d resends, want none: %+v", s.Resends, s)
	}
}

func resent(t *testing.T, s sp.Stats, _ *simsp.SP) {
	t.Helper()
	if s.Resends == 0 {
		t.Errorf("no resend: %+v", s)
	}
}

func reply(seq uint64) []byte {
	id, _ := frame.NewIdentity("913-0000000", 1, "STALE")
	wire, _ := frame.AppendReply([]byte{0}, frame.Reply{Version: frame.Version, Seq: seq | frame.ReplyBit, Kind: frame.IdentityReply, Body: id.Append(nil)})
	return wire
}

// rows is the table. Packet 0 is the answer to the ping, packet 1 the identity.
func rows() []row {
	stale := reply(5)
	out := []row{
		{name: "healthy", check: noResend},
		{name: "idle-zeros", idle: true, check: noResend},
		{name: "partial-reads", faults: simsp.Faults{Filters: []simsp.Filter{simsp.Pieces(3)}}, check: noResend},
		{name: "stale-half-reply", faults: simsp.Faults{Stale: stale[:40]}, check: noResend},
		{name: "stale-whole-reply", faults: simsp.Faults{Stale: stale}, check: noResend},
		{name: "stale-zeros", faults: simsp.Faults{Stale: make([]byte, 4096)}, check: noResend},
		{name: "noise-with-zeros", faults: simsp.Faults{Filters: []simsp.Filter{simsp.Noise(3000, true)}}},
		{name: "noise-without-zeros", faults: simsp.Faults{Filters: []simsp.Filter{simsp.Noise(300, false)}}},
		{name: "overlong", faults: simsp.Faults{Filters: []simsp.Filter{simsp.Overlong(5000)}}, check: func(t *testing.T, s sp.Stats, _ *simsp.SP) {
			if s.Overlong == 0 || s.BytesDropped < 5000 {
				t.Errorf("overlong frame not counted: %+v", s)
			}
		}},
		{name: "lost-reply", faults: simsp.Faults{Filters: []simsp.Filter{simsp.Only(1, simsp.Lose())}}, check: resent},
		{name: "lost-terminator", faults: simsp.Faults{Filters: []simsp.Filter{simsp.Only(1, simsp.DropTerminator())}}, check: resent},
		{name: "lost-terminator-idle-zeros", idle: true, faults: simsp.Faults{Filters: []simsp.Filter{simsp.Only(1, simsp.DropTerminator())}}, check: noResend},
		{name: "restart", status: true, faults: simsp.Faults{RestartAt: 4}, check: func(t *testing.T, s sp.Stats, sim *simsp.SP) {
			if s.Resends == 0 || sim.Seen("AckSpStart") == 0 {
				t.Errorf("not recovered by a resend: %+v", s)
			}
		}},
		{name: "restart-loop", status: true, faults: simsp.Faults{NeverAcks: true}, wait: time.Second, code: sp.CodeRestarted, text: "restart"},
		{name: "slow", faults: simsp.Faults{Delay: 700 * time.Millisecond, Delayed: 1}, check: func(t *testing.T, s sp.Stats, _ *simsp.SP) {
			if s.Resends != 1 {
				t.Errorf("have %d resends, want 1: %+v", s.Resends, s)
			}
		}},
		{name: "mute", faults: simsp.Faults{Mode: simsp.Mute}, wait: 300 * time.Millisecond, code: sp.CodeSilent, text: "no byte"},
		{name: "mute-idle-zeros", idle: true, faults: simsp.Faults{Mode: simsp.Mute}, wait: 700 * time.Millisecond, code: sp.CodeSilent, text: "idle zeros"},
		{name: "mute-for-long", faults: simsp.Faults{Mode: simsp.Mute}, wait: 25 * time.Second, bubble: true, code: sp.CodeSilent, text: "no byte"},
		{name: "deaf", faults: simsp.Faults{Mode: simsp.Deaf}, wait: 2 * time.Second, bubble: true, code: sp.CodeStuck, text: "blocked"},
		{name: "unknown-command", faults: simsp.Faults{Unknown: []frame.Command{frame.GetIdentity}}, code: sp.CodeUnsupported, text: "GetIdentity"},
		{name: "version-2", faults: simsp.Faults{Version: 2}, code: sp.CodeVersion, text: "have 2"},
		{name: "longer-identity", faults: simsp.Faults{IdentityGrowth: 1}, code: sp.CodeLongReply, text: "107", check: noResend},
		{name: "shorter-identity", faults: simsp.Faults{IdentityGrowth: -1}, code: sp.CodeShortReply, text: "105", check: noResend},
		{name: "empty-identity", empty: true, code: sp.CodeNoIdentity, text: "not set"},
	}
	return append(out, decodeFailures()...)
}

func decodeFailures() (out []row) {
	for why := frame.BadCOBS; why <= frame.BadLength; why++ {
		out = append(out, row{name: fmt.Sprintf("decode-failure-%v-twice", why), faults: simsp.Faults{DecodeFailures: 2, DecodeReason: why}, check: resent})
		many := row{name: fmt.Sprintf("decode-failure-%v-9", why), bubble: true, faults: simsp.Faults{DecodeFailures: 9, DecodeReason: why}, check: resent}
		always := row{
			name: fmt.Sprintf("decode-failure-%v-always", why), bubble: true, wait: 5 * time.Second,
			faults: simsp.Faults{DecodeFailures: 1 << 30, DecodeReason: why}, code: sp.CodeGarbage, text: "could not read us",
		}
		switch why { //nolint:exhaustive // equal answers of these two kinds are believed
		case frame.BadDeserialize:
			many.code, many.text, many.check, always.code, always.text = sp.CodeUnsupported, "KeyLookup", nil, sp.CodeUnsupported, ""
		case frame.BadVersion:
			many.code, many.text, many.check, always.code, always.text = sp.CodeVersion, "refuses", nil, sp.CodeVersion, ""
		}
		out = append(out, many, always)
	}
	return out
}

// everyPosition spoils the identity reply at each of its positions in turn. A flipped bit may be invisible to the
// checksum only where it turns 00 into ff, which one bit cannot do, so a wrong identity is never accepted.
func everyPosition(t *testing.T, h Harness) {
	id, _ := frame.NewIdentity(model, revision, serial)
	wire, _ := frame.AppendReply([]byte{0}, frame.Reply{Version: frame.Version, Seq: 1 | frame.ReplyBit, Kind: frame.IdentityReply, Body: id.Append(nil)})
	step := 1
	if !h.Bubble {
		step = 29 // real time: a sample
	}
	kinds := []struct {
		name  string
		units int
		make  func(int) simsp.Filter
	}{
		{"split", len(wire), simsp.SplitAt},
		{"flip", 8 * len(wire), simsp.FlipBit},
		{"drop", len(wire), simsp.DropByte},
		{"double", len(wire), simsp.DoubleByte},
		{"zero", len(wire), simsp.InsertZero},
	}
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			for i := 0; i < k.units; i += step {
				h.in(t, func(t *testing.T) {
					rig := h.New(t, simsp.Config{Model: model, Serial: serial, Revision: revision, Faults: simsp.Faults{
						Filters: []simsp.Filter{simsp.Only(1, k.make(i))},
					}})
					c := Client(t, rig, sp.Config{})
					got, err := c.Identity(within(t, 30*time.Second))
					if err != nil || got.Baseboard != (ident.Baseboard{Part: model, Serial: serial}) || got.Revision != revision {
						t.Errorf("position %d: have %+v, %v", i, got, err)
					}
				})
			}
		})
	}
}

// noiseBytes is what an injected burst of noise weighs.
const noiseBytes = 1 << 20

// afterNoise reads the identity, lets a burst of noise onto the line, and reads again.
func afterNoise(t *testing.T, h Harness) {
	rig := h.New(t, simsp.Config{Model: model, Serial: serial, Revision: revision})
	c := Client(t, rig, sp.Config{})
	ctx := within(t, 30*time.Second)
	id, err := c.Identity(ctx)
	expect(t, id, err, "", "")
	rig.SP.Inject(bytes.Repeat([]byte("noise\x00\xff\x01-and-more-noise"), noiseBytes/24))
	rig.SP.Inject(bytes.Repeat([]byte{0xa5}, 10_000)) // and an unfinished frame to end with
	id, err = c.Identity(ctx)
	expect(t, id, err, "", "")
	if s := c.Stats(); s.BytesDropped == 0 || s.FramingErrors == 0 || s.BytesIn < noiseBytes/2 {
		t.Errorf("noise not counted: %+v", s)
	}
}

func cancelled(t *testing.T, h Harness) {
	rig := h.New(t, simsp.Config{Faults: simsp.Faults{Mode: simsp.Mute}})
	c := Client(t, rig, sp.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Identity(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("have %v, want %v", err, context.Canceled)
	}
}

func closeEndsCall(t *testing.T, h Harness) {
	rig := h.New(t, simsp.Config{Faults: simsp.Faults{Mode: simsp.Mute}})
	c := Client(t, rig, sp.Config{})
	result := make(chan error, 1)
	go func() {
		_, err := c.Identity(t.Context())
		result <- err
	}()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-result; err == nil {
		t.Fatal("a call on a closed client succeeded")
	}
	if err := c.Ping(t.Context()); reason.CodeOf(err) != sp.CodeLineLost {
		t.Fatalf("ping after close: have %v, want code %q", err, sp.CodeLineLost)
	}
}

// reopen lets three hosts come and go on one service processor.
func reopen(t *testing.T, h Harness) {
	rig := h.New(t, simsp.Config{Model: model, Serial: serial, Revision: revision, IdleZeros: true})
	for range 3 {
		c, err := sp.NewClient(sp.Config{}, rig.Open)
		if err != nil {
			t.Fatal(err)
		}
		id, err := c.Identity(within(t, 30*time.Second))
		expect(t, id, err, "", "")
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// unplug breaks the line between two calls; the client opens it again.
func unplug(t *testing.T, h Harness) {
	rig := h.New(t, simsp.Config{Model: model, Serial: serial, Revision: revision})
	c := Client(t, rig, sp.Config{})
	ctx := within(t, 30*time.Second)
	id, err := c.Identity(ctx)
	expect(t, id, err, "", "")
	rig.Unplug()
	id, err = c.Identity(ctx)
	expect(t, id, err, "", "")
	if s := c.Stats(); s.Reopens != 1 {
		t.Errorf("have %d reopens, want 1: %+v", s.Reopens, s)
	}
}
