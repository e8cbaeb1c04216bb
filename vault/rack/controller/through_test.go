package controller_test

import (
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/rack"
	"github.com/sledvault/sledvault/vault/rack/controller"
	"github.com/sledvault/sledvault/vault/rack/journal"
	"github.com/sledvault/sledvault/vault/reason"
)

// cutOff is a rack whose last sled loses its underlay network, but not its peers, as soon as the decision is recorded.
// then is done at that moment, too; it may be nil.
func cutOff(t *testing.T, n int, then func(*fakeSled)) (r *testRack, lost *fakeSled) {
	t.Helper()
	r = newRack(t, n)
	lost = r.sleds[n-1]
	lost.linked.Store(true)
	cut := sync.OnceFunc(func() {
		lost.stop()
		if then != nil {
			then(lost)
		}
	})
	r.onTell = func() {
		if st, err := journal.Peek(r.dir); err == nil && st.Change != nil && st.Change.Config != nil {
			cut()
		}
	}
	return r, lost
}

func (r *testRack) told(text string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Contains(strings.Join(r.events, "\n"), text)
}

// TestThrough: a sled that the controller cannot reach commits through one that is connected to it, and people are told.
func TestThrough(t *testing.T) {
	t.Parallel()
	r, lost := cutOff(t, 5, nil)
	r.wantDone(1)
	if lost.called("attest") != 1 || lost.called("commit") != 1 { // it proved itself before
		t.Errorf("the lost sled: have calls %v", lost.calls)
	}
	if !r.told("s5: going through s") || !r.told("no daemon answers at "+lost.addr) {
		t.Errorf("not told:\n%s", strings.Join(r.events, "\n"))
	}
}

// TestThroughComputes: a sled that has not prepared gets the whole configuration, says "pending" while it computes its
// share, and is asked again.
func TestThroughComputes(t *testing.T) {
	t.Parallel()
	computing := make(chan struct{})
	r, lost := cutOff(t, 3, func(s *fakeSled) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.configs, s.computing = map[ident.Epoch]*quorum.Configuration{}, computing
		time.AfterFunc(300*time.Millisecond, func() { close(computing) })
	})
	r.wantDone(1)
	if lost.called("prepare-and-commit") < 2 || !r.told("s3 computes its share") {
		t.Errorf("have calls %v\n%s", lost.calls, strings.Join(r.events, "\n"))
	}
}

// TestThroughAnother: a way that fails, for whatever reason, is not the only one.
func TestThroughAnother(t *testing.T) {
	t.Parallel()
	r, _ := cutOff(t, 5, nil)
	r.sleds[0].noProxy = reason.New(api.CodeProxyRefused, "hint", "fake: no member")
	r.sleds[1].noProxy = reason.Later("proxy-no-answer", "hint", "fake: mute")
	r.sleds[2].noProxy = &reason.Error{Code: api.CodeNotFound, Text: "fake: too old", Remedy: reason.Usage}
	r.wantDone(1)
	if r.sleds[3].called("proxy") == 0 {
		t.Errorf("the fourth was not asked:\n%s", strings.Join(r.events, "\n"))
	}
}

// TestThroughNobody: with no way through, the command waits and says why; when the sled itself is back it goes on.
func TestThroughNobody(t *testing.T) {
	t.Parallel()
	r, lost := cutOff(t, 3, nil)
	lost.linked.Store(false)
	ch, err := r.init(1500 * time.Millisecond)
	if reason.CodeOf(err) != controller.CodeWaiting || ch.Phase != rack.Decided || !strings.Contains(err.Error(), "s3") {
		t.Errorf("have %+v, %v", ch, err)
	}
	if !r.told("no other sled that answers is connected to it") {
		t.Errorf("not told:\n%s", strings.Join(r.events, "\n"))
	}
	st, err := r.open().Status(t.Context())
	must(t, err)
	if len(st.Waits) != 1 || !strings.Contains(st.Waits[0].Why, "no other sled that answers is connected to it") {
		t.Errorf("status: have %+v", st.Waits)
	}
	lost.linked.Store(true)
	if st, err = r.open().Status(t.Context()); err != nil || len(st.Waits) != 1 || !strings.Contains(st.Waits[0].Why, "s1 is connected to it") {
		t.Errorf("status: have %+v, %v", st.Waits, err)
	}
	lost.linked.Store(false)
	r.onTell = nil
	lost.restart()
	r.wantDone(1)
}

// TestThroughMute: an address that takes connections and says nothing does not hold the command up.
func TestThroughMute(t *testing.T) {
	t.Parallel()
	r, _ := cutOff(t, 3, func(s *fakeSled) {
		l, err := net.Listen("tcp", s.addr)
		if err != nil {
			s.rack.t.Error(err)
			return
		}
		s.rack.t.Cleanup(func() { _ = l.Close() })
	})
	start := time.Now()
	r.wantDone(1)
	if d := time.Since(start); d > 8*time.Second || !r.told("s3 has not answered for 1s") {
		t.Errorf("took %v\n%s", d, strings.Join(r.events, "\n"))
	}
}

// TestThroughRefused: what the sled itself refuses for good ends the command, whichever way it was asked.
func TestThroughRefused(t *testing.T) {
	t.Parallel()
	r, _ := cutOff(t, 3, nil)
	for _, s := range r.sleds[:2] {
		s.noProxy = reason.New(quorum.CodeExpunged, "hint", "fake: expunged")
	}
	start := time.Now()
	if _, err := r.init(patience); reason.CodeOf(err) != quorum.CodeExpunged || time.Since(start) > patience/2 {
		t.Errorf("after %v: have %v", time.Since(start), err)
	}
}
