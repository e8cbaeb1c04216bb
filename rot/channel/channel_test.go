package channel_test

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/sledvault/sledvault/hwtest/sim/firmware"
	"github.com/sledvault/sledvault/rot"
	"github.com/sledvault/sledvault/rot/channel"
	"github.com/sledvault/sledvault/rot/channel/channeltest"
	"github.com/sledvault/sledvault/rot/enroll"
	"github.com/sledvault/sledvault/rot/rottest"
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
	tb.Cleanup(func() { _ = near.Close(); _ = far.Close() })
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
	return x.conn, y.conn
}

func wantCode(tb testing.TB, err error, want reason.Code) {
	tb.Helper()
	if have := reason.CodeOf(err); have != want || err == nil {
		tb.Errorf("have %q (%v), want %q", have, err, want)
		return
	}
	if reason.HintOf(err) == "" {
		tb.Errorf("%q has no hint", want)
	}
}

// wantRefused: the judge reports its own code, the judged side the same one as the peer's.
func wantRefused(tb testing.TB, judge, judged error, want reason.Code) {
	tb.Helper()
	wantCode(tb, judge, want)
	refusal, ok := errors.AsType[*channel.Refusal](judged)
	if reason.CodeOf(judged) != channel.CodeRefused || !ok || refusal.Code != want {
		tb.Errorf("refused side: have %v, want %q", judged, want)
	}
}

func TestChannel(t *testing.T) {
	t.Parallel()
	r := channeltest.NewRack(t, 2)
	d, a := mustConnect(t, r.Sleds[0], r.Sleds[1])
	if d.Peer != r.Sleds[1].ID || a.Peer != r.Sleds[0].ID || d.Removed || d.Adopted {
		t.Errorf("have peers %v and %v", d.Peer, a.Peer)
	}
	if !slices.Equal(d.Capabilities, []string{"authority/1"}) || d.Verdict.Facts.SetGeneration != 1 || d.Latest() != d.Verdict {
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
	good, bad := r.Sleds[1], r.Sleds[0]
	bad.TPM.Extend(14, [32]byte{1})
	d, a := connect(t, bad.Channel, good.Channel)
	wantRefused(t, a.err, d.err, rot.CodePCRPolicy)
	if good.TPM.Quotes != 0 {
		t.Errorf("have %d quotes of the acceptor, want none for a peer that has not passed", good.TPM.Quotes)
	}
	d, a = connect(t, good.Channel, bad.Channel)
	wantRefused(t, d.err, a.err, rot.CodePCRPolicy)
}

func TestAcceptorCannotProve(t *testing.T) {
	t.Parallel()
	r := channeltest.NewRack(t, 2)
	r.Sleds[1].TPM.Set(func(f *rottest.TPM) { f.Err = rottest.ErrDead })
	d, a := connect(t, r.Sleds[0].Channel, r.Sleds[1].Channel)
	wantRefused(t, a.err, d.err, rot.CodeProver)
}

func TestUnknownSled(t *testing.T) {
	t.Parallel()
	r := channeltest.NewRack(t, 2)
	stranger := channeltest.NewSled(t, "STRANGER")
	stranger.SetSet(r.Set)
	d, a := connect(t, stranger.Channel, r.Sleds[0].Channel)
	wantRefused(t, a.err, d.err, channel.CodeUnknownSled)
	d, a = connect(t, r.Sleds[0].Channel, stranger.Channel)
	wantRefused(t, d.err, a.err, channel.CodeUnknownSled)
}

func TestSelf(t *testing.T) {
	t.Parallel()
	r := channeltest.NewRack(t, 1)
	d, a := connect(t, r.Sleds[0].Channel, r.Sleds[0].Channel)
	wantCode(t, d.err, channel.CodeSelf)
	if a.err == nil {
		t.Error("accepted itself")
	}
	// A clone: same baseboard and TPM, another TLS key.
	clone := *r.Sleds[0].Channel
	identity, err := channel.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	clone.Identity = identity
	d, a = connect(t, &clone, r.Sleds[0].Channel)
	wantRefused(t, a.err, d.err, channel.CodeSelf)
}

func TestNoSet(t *testing.T) {
	t.Parallel()
	r := channeltest.NewRack(t, 1)
	d, a := connect(t, channeltest.NewSled(t, "STRANGER").Channel, r.Sleds[0].Channel)
	wantCode(t, d.err, channel.CodeNoSet)
	wantCode(t, a.err, channel.CodeClosed)
}

// TestRelaxation: a sled that runs with a relaxation is accepted only by sleds that run with it too.
func TestRelaxation(t *testing.T) {
	t.Parallel()
	r := channeltest.NewRack(t, 2)
	soft, hard := r.Sleds[0].Channel, r.Sleds[1].Channel
	soft.Relaxations = []string{"software-tpm"}
	d, a := connect(t, soft, hard)
	wantRefused(t, a.err, d.err, channel.CodeRelaxation)
	d, a = connect(t, hard, soft)
	wantRefused(t, d.err, a.err, channel.CodeRelaxation)
	hard.Relaxations = []string{"software-tpm"}
	x, _ := mustConnect(t, r.Sleds[0], r.Sleds[1])
	if !slices.Contains(x.Capabilities, "relax/software-tpm") {
		t.Errorf("have %v", x.Capabilities)
	}
}

// TestSoftwareTPM: what the signed record says counts, not what the peer announces.
func TestSoftwareTPM(t *testing.T) {
	t.Parallel()
	r := channeltest.NewRack(t, 2)
	next(t, r, func(s *enroll.Set) {
		rec, _ := s.Find(r.Sleds[0].ID)
		soft := rec.Clone()
		soft.Firmware.Manufacturer = "IBM"
		if err := s.Put(soft); err != nil {
			t.Fatal(err)
		}
	})
	for _, s := range r.Sleds {
		s.SetSet(r.Set)
	}
	d, a := connect(t, r.Sleds[0].Channel, r.Sleds[1].Channel)
	wantRefused(t, a.err, d.err, channel.CodeRelaxation)
	for _, s := range r.Sleds {
		s.Channel.Relaxations = []string{channel.RelaxSoftwareTPM}
	}
	mustConnect(t, r.Sleds[0], r.Sleds[1])
}

// TestManifestOfTheSet: a sled that is judged by a manifest instead of pinned values.
func TestManifestOfTheSet(t *testing.T) {
	t.Parallel()
	r := channeltest.NewRack(t, 2)
	log, err := rot.ParseEventLog(r.Sleds[0].TPM.Log)
	if err != nil {
		t.Fatal(err)
	}
	rules, err := rot.EncodeManifest(rot.LearnManifest("release", log, []int{4, 7, 11, 12}, 1))
	if err != nil {
		t.Fatal(err)
	}
	demand := func(rules []byte) func(*enroll.Set) {
		return func(s *enroll.Set) {
			s.PutManifest(enroll.Manifest{ID: "release", Rules: rules})
			rec, _ := s.Find(r.Sleds[0].ID)
			changed := rec.Clone()
			changed.PCRs, changed.Manifest = nil, "release"
			if err := s.Put(changed); err != nil {
				t.Fatal(err)
			}
		}
	}
	next(t, r, demand(rules))
	for _, s := range r.Sleds {
		s.SetSet(r.Set)
	}
	mustConnect(t, r.Sleds[0], r.Sleds[1])
	if err := r.Sleds[0].TPM.Boot(firmware.Options{CommandLine: "init=/bin/sh"}); err != nil {
		t.Fatal(err)
	}
	d, a := connect(t, r.Sleds[0].Channel, r.Sleds[1].Channel)
	wantRefused(t, a.err, d.err, rot.CodeManifest)
	next(t, r, demand([]byte("no manifest")))
	for _, s := range r.Sleds {
		s.SetSet(r.Set)
	}
	d, a = connect(t, r.Sleds[0].Channel, r.Sleds[1].Channel)
	wantRefused(t, a.err, d.err, rot.CodeManifest)
}

// TestCheckSelf: a sled learns what its peers would refuse.
func TestCheckSelf(t *testing.T) {
	t.Parallel()
	r := channeltest.NewRack(t, 2)
	c := r.Sleds[0].Channel
	v, err := c.CheckSelf(t.Context())
	if err != nil || v.Baseboard != c.Self {
		t.Fatalf("have %+v, %v", v, err)
	}
	if r.Sleds[0].TPM.Certs != 1 {
		t.Errorf("have %d counter certificates, want 1", r.Sleds[0].TPM.Certs)
	}
	r.Sleds[0].TPM.Extend(14, [32]byte{1})
	_, err = c.CheckSelf(t.Context())
	wantCode(t, err, rot.CodePCRPolicy)
	stranger := channeltest.NewSled(t, "STRANGER")
	_, err = stranger.Channel.CheckSelf(t.Context())
	wantCode(t, err, channel.CodeNoSet)
	stranger.SetSet(r.Set)
	_, err = stranger.Channel.CheckSelf(t.Context())
	wantCode(t, err, channel.CodeUnknownSled)
}

func TestConfig(t *testing.T) {
	t.Parallel()
	r := channeltest.NewRack(t, 2)
	for name, edit := range map[string]func(*channel.Config){
		"nothing":         func(c *channel.Config) { *c = channel.Config{} },
		"no memory":       func(c *channel.Config) { c.Seen = nil },
		"other baseboard": func(c *channel.Config) { c.Self = r.Sleds[1].ID },
		"odd capability":  func(c *channel.Config) { c.Capabilities = []string{"A b"} },
		"17 capabilities": func(c *channel.Config) { c.Capabilities = slices.Repeat([]string{"a"}, 17) },
		"too long a hello": func(c *channel.Config) {
			c.Capabilities = slices.Repeat([]string{"abcdefghijklmnopqrstuvwxyzabcdefghijklm"}, 10)
		},
	} {
		c := *r.Sleds[0].Channel
		edit(&c)
		near, far := net.Pipe()
		if _, err := c.Dial(t.Context(), near); reason.CodeOf(err) != channel.CodeConfig {
			t.Errorf("%s: have %v", name, err)
		}
		if _, err := far.Read(make([]byte, 1)); err == nil {
			t.Errorf("%s: the connection is still open", name)
		}
	}
}

// next signs a successor of the rack's set after a change.
func next(tb testing.TB, r *channeltest.Rack, f func(*enroll.Set)) {
	tb.Helper()
	s := r.Set.Next()
	f(s)
	r.Publish(tb, s)
}

// TestNewerSetTravels: the side that is behind adopts the newer set, in both directions, and goes on.
func TestNewerSetTravels(t *testing.T) {
	t.Parallel()
	for _, dialerAhead := range []bool{true, false} {
		r := channeltest.NewRack(t, 2)
		ahead, behind := r.Sleds[0], r.Sleds[1]
		next(t, r, func(s *enroll.Set) { s.MinClientGeneration++ })
		ahead.SetSet(r.Set)
		var x, y *channel.Conn
		if dialerAhead {
			x, y = mustConnect(t, ahead, behind)
		} else {
			y, x = mustConnect(t, behind, ahead)
		}
		if x.Adopted || !y.Adopted || behind.Set().Generation != 2 {
			t.Errorf("dialer ahead %v: have %v, %v, generation %d", dialerAhead, x.Adopted, y.Adopted, behind.Set().Generation)
		}
	}
}

// TestJudgedAgainByNewSet: the side that was behind judges by what it has just learned.
func TestJudgedAgainByNewSet(t *testing.T) {
	t.Parallel()
	r := channeltest.NewRack(t, 2)
	ahead, behind := r.Sleds[0], r.Sleds[1]
	next(t, r, func(s *enroll.Set) {
		rec, _ := s.Find(ahead.ID)
		changed := rec.Clone()
		changed.PCRs[4] = [][32]byte{{1}}
		if err := s.Put(changed); err != nil {
			t.Fatal(err)
		}
	})
	ahead.SetSet(r.Set)
	_, a := connect(t, ahead.Channel, behind.Channel)
	wantCode(t, a.err, rot.CodePCRPolicy)
	if behind.Set().Generation != 2 {
		t.Error("the newer set was not kept")
	}
}

// TestRemovedSled may still connect, marked.
func TestRemovedSled(t *testing.T) {
	t.Parallel()
	r := channeltest.NewRack(t, 2)
	next(t, r, func(s *enroll.Set) {
		rec, _ := s.Find(r.Sleds[0].ID)
		removed := rec.Clone()
		removed.Removed = 5
		if err := s.Put(removed); err != nil {
			t.Fatal(err)
		}
	})
	r.Sleds[1].SetSet(r.Set)
	d, a := mustConnect(t, r.Sleds[0], r.Sleds[1])
	if !a.Removed || d.Removed {
		t.Errorf("have removed %v and %v, want the dialer only", a.Removed, d.Removed)
	}
	// The other way round: removed while connected. The new record takes effect with the next evidence.
	r.Sleds[0].SetSet(r.Set)
	ev, err := a.FreshEvidence(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Reappraise(ev); err != nil {
		t.Error(err)
	}
	old := channeltest.NewRack(t, 2)
	x, y := mustConnect(t, old.Sleds[0], old.Sleds[1])
	old.Sleds[1].SetSet(r.Set)
	ev, err = x.FreshEvidence(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	wantCode(t, y.Reappraise(ev), channel.CodeRemoved)
}

func TestSetFork(t *testing.T) {
	t.Parallel()
	r := channeltest.NewRack(t, 2)
	first := r.Set
	next(t, r, func(s *enroll.Set) { s.MinClientGeneration = 2 })
	r.Sleds[0].SetSet(r.Set)
	r.Set = first
	next(t, r, func(s *enroll.Set) { s.MinClientGeneration = 3 })
	r.Sleds[1].SetSet(r.Set)
	d, a := connect(t, r.Sleds[0].Channel, r.Sleds[1].Channel)
	wantRefused(t, a.err, d.err, channel.CodeSetFork)
}

// TestSetRefused: a newer set that nobody signed is not adopted, and the connection does not come up.
func TestSetRefused(t *testing.T) {
	t.Parallel()
	r := channeltest.NewRack(t, 2)
	forged := r.Set.Next()
	if err := forged.Sign(r.Recovery); err != nil {
		t.Fatal(err)
	}
	r.Sleds[0].SetSet(forged)
	_, a := connect(t, r.Sleds[0].Channel, r.Sleds[1].Channel)
	wantCode(t, a.err, enroll.CodeSignature)
	if r.Sleds[1].Set().Generation != 1 {
		t.Error("forged set adopted")
	}
	r = channeltest.NewRack(t, 2)
	next(t, r, func(*enroll.Set) {})
	r.Sleds[0].SetSet(r.Set)
	r.Sleds[1].Channel.AdoptSet = func(context.Context, []byte) error { return errors.New("disk full") }
	_, a = connect(t, r.Sleds[0].Channel, r.Sleds[1].Channel)
	wantCode(t, a.err, channel.CodeSetRefused)
	r.Sleds[1].Channel.AdoptSet = func(context.Context, []byte) error { return nil }
	_, a = connect(t, r.Sleds[0].Channel, r.Sleds[1].Channel)
	wantCode(t, a.err, channel.CodeSetRefused)
}

// TestFreshEvidence: after an increment, new evidence on the same connection; each piece serves once, in order.
func TestFreshEvidence(t *testing.T) {
	t.Parallel()
	r := channeltest.NewRack(t, 2)
	d, a := mustConnect(t, r.Sleds[0], r.Sleds[1])
	r.Sleds[0].Advance()
	first, err := d.FreshEvidence(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Reappraise(first); err != nil {
		t.Fatal(err)
	}
	if a.Latest().Facts.LedgerSequence != 4 || r.Sleds[1].Seen(r.Sleds[0].TPM.EKName()).Sequence != 4 {
		t.Errorf("have %+v", a.Latest().Facts)
	}
	wantCode(t, a.Reappraise(first), rot.CodeBinding)
	skipped, err := d.FreshEvidence(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	second, err := d.FreshEvidence(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	wantCode(t, a.Reappraise(second), rot.CodeBinding)
	if err := a.Reappraise(skipped); err != nil {
		t.Error(err)
	}
	// The other direction has its own chain, and a sled that changed under the connection is noticed.
	r.Sleds[1].TPM.Extend(12, [32]byte{9})
	back, err := a.FreshEvidence(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	wantCode(t, d.Reappraise(back), rot.CodePCRPolicy)
	r.Sleds[0].TPM.Set(func(f *rottest.TPM) { f.Err = rottest.ErrDead })
	if _, err := d.FreshEvidence(t.Context()); reason.CodeOf(err) != rot.CodeProver {
		t.Errorf("dead TPM: have %v", err)
	}
}

// TestFullMesh: many sleds at once, over loopback. Quotes are far fewer than connections when the TPM is slow.
func TestFullMesh(t *testing.T) {
	t.Parallel()
	const sleds = 8
	r := channeltest.NewRack(t, sleds)
	var wg sync.WaitGroup
	for i, dialer := range r.Sleds {
		for _, acceptor := range r.Sleds[:i] {
			wg.Go(func() {
				x, y := connect(t, dialer.Channel, acceptor.Channel)
				if x.err != nil || y.err != nil {
					t.Errorf("%v to %v: %v, %v", dialer.ID, acceptor.ID, x.err, y.err)
				}
			})
		}
	}
	wg.Wait()
}

// TestRebootedPeer: the other side notices.
func TestRebootedPeer(t *testing.T) {
	t.Parallel()
	r := channeltest.NewRack(t, 2)
	mustConnect(t, r.Sleds[0], r.Sleds[1])
	if err := r.Sleds[0].TPM.Boot(firmware.Options{}); err != nil {
		t.Fatal(err)
	}
	_, a := mustConnect(t, r.Sleds[0], r.Sleds[1])
	if !a.Verdict.Rebooted {
		t.Error("reboot went unnoticed")
	}
}

// TestStarting: a sled that is still starting says hello, but neither proves nor judges before it is open, and sends no
// evidence before it is cleared.
func TestStarting(t *testing.T) {
	t.Parallel()
	for _, dials := range []bool{true, false} {
		r := channeltest.NewRack(t, 2)
		starting, other := r.Sleds[0], r.Sleds[1]
		opened, cleared := make(chan struct{}), make(chan struct{})
		starting.Channel.Opened, starting.Channel.Cleared = opened, cleared
		judged, quoted := make(chan struct{}, 8), make(chan struct{}, 8)
		starting.Channel.Seen = func([]byte) rot.Seen { judged <- struct{}{}; return rot.Seen{} }
		starting.TPM.Set(func(f *rottest.TPM) { f.Gate = func(context.Context) { quoted <- struct{}{} } })
		met := make(chan struct{}, 8) // the other side has something of the starting one to judge
		other.Channel.Seen = func([]byte) rot.Seen { met <- struct{}{}; return rot.Seen{} }
		dialer, acceptor := starting, other
		if !dials {
			dialer, acceptor = other, starting
		}
		near, far := net.Pipe()
		counted := &countingConn{Conn: far, wrote: make(chan struct{}, 64)}
		type both struct{ d, a outcome }
		done := make(chan both, 1)
		go func() {
			d, a := handshake(t.Context(), dialer.Channel, acceptor.Channel, near, counted)
			done <- both{d, a}
		}()
		<-counted.wrote // the acceptor has answered: TLS is under way before anything is open
		none := func(what string, news ...chan struct{}) {
			for _, c := range news {
				if len(c) > 0 {
					t.Errorf("dials %v: %s", dials, what)
				}
			}
		}
		none("proved or judged while closed", judged, quoted, met)
		close(opened)
		<-quoted // evidence is being made
		none("evidence left before it was cleared", met)
		close(cleared)
		out := <-done
		if out.d.err != nil || out.a.err != nil {
			t.Fatalf("dials %v: dialer: %v; acceptor: %v", dials, out.d.err, out.a.err)
		}
		if len(judged) == 0 || len(met) == 0 {
			t.Errorf("dials %v: have %d and %d verdicts, want one each", dials, len(judged), len(met))
		}
	}
	// Who gives up meanwhile says so.
	r := channeltest.NewRack(t, 2)
	r.Sleds[0].Channel.Opened, r.Sleds[0].Channel.Timeout = make(chan struct{}), 200*time.Millisecond
	d, a := connect(t, r.Sleds[0].Channel, r.Sleds[1].Channel)
	wantCode(t, d.err, channel.CodeTimeout)
	if a.err == nil {
		t.Error("accepted a sled that never opened")
	}
}

// countingConn tells of each write.
type countingConn struct {
	net.Conn
	wrote chan struct{}
}

func (c *countingConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	select {
	case c.wrote <- struct{}{}:
	default:
	}
	return n, err
}
