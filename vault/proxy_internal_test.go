package vault

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/peer"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/wire"
)

// proxyRig is the asking side, with a connection that only remembers.
type proxyRig struct {
	*proxies
	log  *reason.Log
	done chan struct{}
	mu   sync.Mutex
	conn peer.ConnID // 0: none
	sent []wire.Msg
}

func newProxyRig() *proxyRig {
	r := &proxyRig{log: reason.NewLog(), done: make(chan struct{}), conn: 5}
	r.proxies = newProxies(func(_ ident.Baseboard, msgs ...wire.Msg) (peer.ConnID, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.conn == 0 {
			return 0, reason.Later(peer.CodeNotConnected, "", "none")
		}
		r.sent = append(r.sent, msgs...)
		return r.conn, nil
	}, r.log, r.done, func() {})
	return r
}

// ask begins a call and returns its id and where its outcome comes.
func (r *proxyRig) ask(ctx context.Context, op wire.ProxyOp) (wire.RequestID, <-chan proxyAnswer) {
	out := make(chan proxyAnswer, 1)
	go func() {
		res, err := r.call(ctx, board("to"), op)
		out <- proxyAnswer{result: res, err: err}
	}()
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	m, _ := r.sent[len(r.sent)-1].(wire.ProxyRequest)
	return m.ID, out
}

func committedAnswer(id wire.RequestID) wire.ProxyResponse {
	return wire.ProxyResponse{ID: id, Result: wire.ProxyCommitted{Status: quorum.Committed}}
}

// want checks the outcome of a call.
func want(t *testing.T, what string, out <-chan proxyAnswer, code reason.Code) {
	t.Helper()
	synctest.Wait()
	select {
	case a := <-out:
		if reason.CodeOf(a.err) != code || (a.err == nil) != (code == "") || (a.err == nil) != (a.result != nil) {
			t.Errorf("%s: have %v, %v, want %q", what, a.result, a.err, code)
		}
	default:
		t.Errorf("%s: it still waits", what)
	}
}

// TestProxyAnswers: an answer counts only from the destination, for the request it names, in a form that fits, and once.
func TestProxyAnswers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newProxyRig()
		commit := wire.ProxyCommit{Epoch: 3}
		id, out := r.ask(t.Context(), commit)
		r.response(board("evil"), committedAnswer(id))
		r.response(board("to"), committedAnswer(wire.RequestID{1}))
		synctest.Wait()
		if len(out) != 0 || r.log.Total(CodeProxyForeign) != 1 || r.log.Total(CodeProxyUnknown) != 1 || r.count() != 1 {
			t.Errorf("forged answers: %d outcomes, %+v", len(out), r.log.Entries())
		}
		if e := r.log.Entries()[0]; e.Peer != board("evil").String() && e.Peer != board("to").String() {
			t.Errorf("counted under %q", e.Peer)
		}
		r.response(board("to"), committedAnswer(id))
		want(t, "an answer", out, "")
		r.response(board("to"), committedAnswer(id))
		if r.log.Total(CodeProxyUnknown) != 2 || r.count() != 0 {
			t.Errorf("a second answer: %+v", r.log.Entries())
		}
		prepare := wire.ProxyPrepareAndCommit{Config: &quorum.Configuration{}}
		for _, c := range []struct {
			name   string
			op     wire.ProxyOp
			result wire.ProxyResult
			code   reason.Code
		}{
			{"status for a commit", commit, wire.NodeStatus{}, api.CodeProxyInvalid},
			{"committed for a status", wire.ProxyStatus{}, wire.ProxyCommitted{Status: quorum.Committed}, api.CodeProxyInvalid},
			{"a commit's refusal for a prepare", prepare, &wire.ProxyError{Kind: wire.ProxyExpunged}, api.CodeProxyInvalid},
			{"a prepare's refusal for a commit", commit, &wire.ProxyError{Kind: wire.ProxyExpunged, Prepare: true}, api.CodeProxyInvalid},
			{"a commit's refusal for a status", wire.ProxyStatus{}, &wire.ProxyError{Kind: wire.ProxyNotPrepared}, api.CodeProxyInvalid},
			{"no reason", commit, &wire.ProxyError{Kind: wire.ProxyNoInnerError}, api.CodeProxyRefused},
			{"no reason for a status", wire.ProxyStatus{}, &wire.ProxyError{Kind: wire.ProxyNoInnerError}, api.CodeProxyRefused},
			{"not prepared", commit, &wire.ProxyError{Kind: wire.ProxyNotPrepared, Epoch: 3}, quorum.CodeNotPrepared},
			{"expunged", commit, &wire.ProxyError{Kind: wire.ProxyExpunged}, quorum.CodeExpunged},
			{"expunged, prepare", prepare, &wire.ProxyError{Kind: wire.ProxyExpunged, Prepare: true}, quorum.CodeExpunged},
			{"another rack", commit, &wire.ProxyError{Kind: wire.ProxyInvalidRackID}, quorum.CodeInvalidRackID},
			{"pending is no error", prepare, wire.ProxyCommitted{Status: quorum.Pending}, ""},
			{"status", wire.ProxyStatus{}, wire.NodeStatus{}, ""},
		} {
			id, out := r.ask(t.Context(), c.op)
			r.response(board("to"), wire.ProxyResponse{ID: id, Result: c.result})
			want(t, c.name, out, c.code)
		}
		id, out = r.ask(t.Context(), commit)
		r.refusal(board("evil"), wire.ProxyRefusal{ID: id, Reason: "invented"})
		r.refusal(board("to"), wire.ProxyRefusal{ID: id, Reason: "quorum-\ncertificate-missing"})
		r.refusal(board("to"), wire.ProxyRefusal{ID: wire.RequestID{1}, Reason: "late"})
		r.response(board("to"), wire.ProxyResponse{ID: id, Result: &wire.ProxyError{Kind: wire.ProxyNoInnerError}})
		synctest.Wait()
		if a := <-out; reason.CodeOf(a.err) != api.CodeProxyRefused || !strings.HasSuffix(a.err.Error(), `refused the request: "quorum-\ncertificate-missing"`) {
			t.Errorf("with its reason: have %v", a.err)
		}
		if r.log.Total(CodeProxyForeign) != 2 || r.log.Total(CodeProxyUnknown) != 3 {
			t.Errorf("forged reasons: %+v", r.log.Entries())
		}
		if r.log.Total(api.CodeProxyInvalid) != 5 || r.count() != 0 {
			t.Errorf("%d requests left, %+v", r.count(), r.log.Entries())
		}
	})
}

// TestProxyEnds: a call ends with its caller, its time, its connection and the daemon; an answer that comes later is
// dropped and counted.
func TestProxyEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newProxyRig()
		ctx, cancel := context.WithCancel(t.Context())
		id, out := r.ask(ctx, wire.ProxyStatus{})
		cancel()
		want(t, "cancelled", out, CodeProxyNoAnswer)
		r.response(board("to"), wire.ProxyResponse{ID: id, Result: wire.NodeStatus{}})
		if r.log.Total(CodeProxyUnknown) != 1 {
			t.Errorf("late after cancel: %+v", r.log.Entries())
		}
		_, out = r.ask(t.Context(), wire.ProxyStatus{})
		turn(proxyTimeout + time.Millisecond)
		want(t, "mute", out, CodeProxyNoAnswer)

		_, out = r.ask(t.Context(), wire.ProxyStatus{})
		r.lost(board("another"), 9)
		r.lost(board("to"), 4) // an older connection than it went out on
		synctest.Wait()
		if len(out) != 0 {
			t.Error("ended by the end of another connection")
		}
		r.lost(board("to"), 5)
		want(t, "disconnected", out, CodeProxyLost)

		id, out = r.ask(t.Context(), wire.ProxyStatus{})
		r.lost(board("to"), 6-1) // connection 6 replaces it
		want(t, "replaced", out, CodeProxyLost)
		r.response(board("to"), wire.ProxyResponse{ID: id, Result: wire.NodeStatus{}})
		if r.log.Total(CodeProxyUnknown) != 2 {
			t.Errorf("late after the replacement: %+v", r.log.Entries())
		}
		r.conn = 0
		if _, err := r.call(t.Context(), board("to"), wire.ProxyStatus{}); reason.CodeOf(err) != CodeProxyNotConnected || reason.RemedyOf(err) != reason.Retry {
			t.Errorf("not connected: %v", err)
		}
		r.conn = 7
		_, out = r.ask(t.Context(), wire.ProxyStatus{})
		close(r.done)
		want(t, "the daemon ends", out, api.CodeNotStarted)
		if r.count() != 0 {
			t.Errorf("%d requests left", r.count())
		}
	})
}

// TestProxyBusy: the requests that wait are bounded, and the ids are random version 4 UUIDs.
func TestProxyBusy(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newProxyRig()
		ctx, cancel := context.WithCancel(t.Context())
		seen := map[wire.RequestID]bool{}
		for range maxProxied {
			id, _ := r.ask(ctx, wire.ProxyStatus{})
			if seen[id] || id[6]>>4 != 4 || id[8]>>6 != 2 {
				t.Errorf("request id %x", id)
			}
			seen[id] = true
		}
		if _, err := r.call(ctx, board("to"), wire.ProxyStatus{}); reason.CodeOf(err) != api.CodeBusy || reason.RemedyOf(err) != reason.Retry {
			t.Errorf("one too many: have %v, want %s", err, api.CodeBusy)
		}
		cancel()
		synctest.Wait()
		if r.count() != 0 || errors.Is(t.Context().Err(), context.Canceled) {
			t.Errorf("%d requests left", r.count())
		}
	})
}

// TestProxyAllowance: a connection may ask for so much at once, and for so much over time.
func TestProxyAllowance(t *testing.T) {
	t.Parallel()
	now := time.Unix(0, 0)
	c := &connection{credit: proxyBurst, since: now}
	served := 0
	for range 10 * proxyBurst {
		if c.may(now) {
			served++
		}
	}
	if served != proxyBurst {
		t.Errorf("at once: have %d, want %d", served, proxyBurst)
	}
	for range 10_000 { // over ten seconds
		now = now.Add(time.Millisecond)
		if c.may(now) {
			served++
		}
	}
	if served < proxyBurst+10*proxyRate-1 || served > proxyBurst+10*proxyRate+1 {
		t.Errorf("over time: have %d, want %d", served, proxyBurst+10*proxyRate)
	}
}
