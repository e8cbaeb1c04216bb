package vault

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/peer"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/wire"
)

// Reasons of requests that are passed on (peers.md §9), on the sled that was asked to.
const (
	CodeProxyNotConnected reason.Code = "proxy-not-connected"    // no connection to the destination
	CodeProxyLost         reason.Code = "proxy-disconnected"     // the connection ended before the answer came
	CodeProxyNoAnswer     reason.Code = "proxy-no-answer"        // none came in time
	CodeProxyForeign      reason.Code = "proxy-foreign-response" // an answer by another sled than the destination
	CodeProxyUnknown      reason.Code = "proxy-unknown-response" // an answer that nobody waits for: late, or invented
	CodeProxySelf         reason.Code = "proxy-self"             // this sled itself is the destination
)

const (
	// maxProxied bounds how many requests wait for answers of peers. Who comes beyond is told to try again.
	maxProxied = 32
	// proxyTimeout is how long one waits. Peers answer at once.
	proxyTimeout = 20 * time.Second
)

const (
	hintProxyRetry   = "try again, or through another sled"
	hintProxyRefused = "look at that sled's own status: it says what it refused"
)

// proxies are the requests that this sled has passed on and waits for. Each is tied to its destination and to the
// connection it went out on: an answer counts only from the one, and the end of the other ends it.
type proxies struct {
	send    func(ident.Baseboard, ...wire.Msg) (peer.ConnID, error) // does not block
	reasons *reason.Log
	done    <-chan struct{} // the driver has ended
	onNews  func()          // the number of requests changed
	timeout time.Duration

	mu   sync.Mutex
	open map[wire.RequestID]*proxied
}

type proxied struct {
	to     ident.Baseboard
	conn   peer.ConnID
	fits   func(wire.ProxyResult) bool
	answer chan proxyAnswer // room for one
	why    string           // what the destination gave as its reason, ahead of its answer
}

type proxyAnswer struct {
	result wire.ProxyResult
	err    error
	why    string // of a refusal
}

func newProxies(send func(ident.Baseboard, ...wire.Msg) (peer.ConnID, error), reasons *reason.Log, done <-chan struct{}, onNews func()) *proxies {
	return &proxies{send: send, reasons: reasons, done: done, onNews: onNews, timeout: proxyTimeout, open: map[wire.RequestID]*proxied{}}
}

// count is how many requests wait.
func (p *proxies) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.open)
}

// call sends a request, after what must go ahead of it on the same connection, and waits for the answer. A refusal of the
// peer comes as an error with the code that a local call would have given. When ctx ends, nobody waits any more: an answer
// that comes then is dropped.
func (p *proxies) call(ctx context.Context, to ident.Baseboard, op wire.ProxyOp, ahead ...wire.Msg) (wire.ProxyResult, error) {
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	id, r, err := p.begin(to, op, ahead)
	if err != nil {
		return nil, err
	}
	defer p.forget(id)
	select {
	case a := <-r.answer:
		if refusal, ok := errors.AsType[*wire.ProxyError](a.err); ok {
			return nil, proxyRefusal(to, refusal, a.why)
		}
		return a.result, a.err
	case <-ctx.Done():
		err = reason.Later(CodeProxyNoAnswer, hintProxyRetry, "vault: sled %s did not answer in time", to)
	case <-p.done:
		err = reason.Later(api.CodeNotStarted, "try again", "vault: the daemon is stopping")
	}
	return nil, err
}

// begin sends the request and registers it. The lock is held over both, so that an answer finds its request.
func (p *proxies) begin(to ident.Baseboard, op wire.ProxyOp, ahead []wire.Msg) (id wire.RequestID, _ *proxied, err error) {
	if _, err := rand.Read(id[:]); err != nil {
		return id, nil, err
	}
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80 // a version 4 UUID
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.open) >= maxProxied {
		return id, nil, reason.Later(api.CodeBusy, "try again", "vault: %d requests wait for peers already", maxProxied)
	}
	r := &proxied{to: to, fits: fitting(op), answer: make(chan proxyAnswer, 1)}
	if r.conn, err = p.send(to, append(ahead, wire.ProxyRequest{ID: id, Op: op})...); err != nil {
		if reason.CodeOf(err) == peer.CodeNotConnected {
			err = reason.Later(CodeProxyNotConnected, hintProxyRetry, "vault: no connection to sled %s", to)
		}
		return id, nil, err
	}
	p.open[id] = r
	p.onNews()
	return id, r, nil
}

// fitting says which answers fit an operation.
func fitting(op wire.ProxyOp) func(wire.ProxyResult) bool {
	return func(res wire.ProxyResult) bool {
		switch res := res.(type) {
		case wire.ProxyCommitted:
			_, status := op.(wire.ProxyStatus)
			return !status
		case wire.NodeStatus:
			_, status := op.(wire.ProxyStatus)
			return status
		case *wire.ProxyError:
			_, prepare := op.(wire.ProxyPrepareAndCommit)
			_, commit := op.(wire.ProxyCommit)
			return res.Kind == wire.ProxyNoInnerError || prepare && res.Prepare || commit && !res.Prepare
		}
		return false
	}
}

func (p *proxies) forget(id wire.RequestID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.open, id)
	p.onNews()
}

// response takes an answer of a peer. Who answers for another sled, or what nobody asked, is counted and dropped. An answer
// may come on a newer connection than the request went out on.
func (p *proxies) response(from ident.Baseboard, m wire.ProxyResponse) {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := p.open[m.ID]
	switch {
	case r == nil:
		p.reasons.Count(CodeProxyUnknown, from.String(), "an answer that nobody waits for")
	case r.to != from:
		p.reasons.Count(CodeProxyForeign, from.String(), "an answer to a request that went to "+r.to.String())
	case !r.fits(m.Result):
		err := reason.New(api.CodeProxyInvalid, hintProxyRefused, "vault: sled %s answered with %T, which does not fit the request", from, m.Result)
		p.reasons.CountError(api.CodeProxyInvalid, from.String(), err)
		p.end(m.ID, proxyAnswer{err: err})
	default:
		refusal, ok := m.Result.(*wire.ProxyError)
		if ok {
			p.end(m.ID, proxyAnswer{err: refusal, why: r.why})
		} else {
			p.end(m.ID, proxyAnswer{result: m.Result})
		}
	}
}

// refusal keeps why a peer is about to refuse. It is for people: nothing is decided by it.
func (p *proxies) refusal(from ident.Baseboard, m wire.ProxyRefusal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch r := p.open[m.ID]; {
	case r == nil:
		p.reasons.Count(CodeProxyUnknown, from.String(), "a refusal that nobody waits for")
	case r.to != from:
		p.reasons.Count(CodeProxyForeign, from.String(), "a refusal of a request that went to "+r.to.String())
	default:
		r.why = m.Reason
	}
}

// end gives a request its answer. The lock is held.
func (p *proxies) end(id wire.RequestID, a proxyAnswer) {
	p.open[id].answer <- a // one answer each
	delete(p.open, id)
}

// lost ends the requests that went out to a peer on connections up to the given one, which is gone or was replaced.
func (p *proxies) lost(to ident.Baseboard, conn peer.ConnID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, r := range p.open {
		if r.to == to && r.conn <= conn {
			err := reason.Later(CodeProxyLost, hintProxyRetry, "vault: the connection to sled %s ended before it answered", to)
			p.reasons.CountError(CodeProxyLost, to.String(), err)
			p.end(id, proxyAnswer{err: err})
		}
	}
}

// proxyRefusal says what a peer's refusal means, in the codes of a local call. Why is the peer's own word for it, if the
// message has none.
func proxyRefusal(to ident.Baseboard, e *wire.ProxyError, why string) error {
	switch e.Kind {
	case wire.ProxyInvalidRackID:
		return reason.New(quorum.CodeInvalidRackID, hintProxyRefused, "vault: sled %s refused: rack id: have %s, want %s", to, e.Got, e.Expected)
	case wire.ProxyNotPrepared:
		return reason.New(quorum.CodeNotPrepared, "send prepare-and-commit with the configuration", "vault: sled %s refused: epoch %d is not prepared", to, e.Epoch)
	case wire.ProxyExpunged:
		return reason.New(quorum.CodeExpunged, hintProxyRefused, "vault: sled %s refused: expunged at epoch %d, told by %s", to, e.Epoch, e.From)
	case wire.ProxyNoInnerError:
	}
	if why != "" {
		return reason.New(api.CodeProxyRefused, hintProxyRefused, "vault: sled %s refused the request: %.200q", to, why)
	}
	return reason.New(api.CodeProxyRefused, hintProxyRefused, "vault: sled %s refused the request", to)
}

// proxy passes a request on to a peer.
func (d *Daemon) proxy(ctx context.Context, to ident.Baseboard, op wire.ProxyOp, ahead ...wire.Msg) (wire.ProxyResult, error) {
	drv := d.getDriver()
	if drv == nil {
		return nil, d.notStarted()
	}
	if to == d.identity() {
		return nil, &reason.Error{Code: CodeProxySelf, Text: fmt.Sprintf("vault: sled %s is this one", to), Hint: "make the call without the proxy", Remedy: reason.Usage}
	}
	return drv.proxies.call(ctx, to, op, ahead...)
}

// ProxyCommit passes a commit on to a peer, with the certificate ahead of it (wire.md §4.4).
func (d *Daemon) ProxyCommit(ctx context.Context, to ident.Baseboard, r quorum.Commit) (quorum.CommitStatus, error) {
	return d.proxyCommit(ctx, to, wire.ProxyCommit{RackID: r.RackID, Epoch: r.Epoch}, r.RackID, r.Certificate)
}

// ProxyPrepareAndCommit passes a committed configuration on to a peer, with the certificate ahead of it.
func (d *Daemon) ProxyPrepareAndCommit(ctx context.Context, to ident.Baseboard, r quorum.PrepareAndCommit) (quorum.CommitStatus, error) {
	return d.proxyCommit(ctx, to, wire.ProxyPrepareAndCommit{Config: r.Config}, r.Config.RackID, r.Certificate)
}

func (d *Daemon) proxyCommit(ctx context.Context, to ident.Baseboard, op wire.ProxyOp, rack ident.RackID, cert *quorum.Certificate) (quorum.CommitStatus, error) {
	if cert == nil { // the peer would refuse it
		return "", reason.New(quorum.CodeCertificateMissing, "send the request through the controller that owns this rack's membership key", "vault: a commit for sled %s has no certificate", to)
	}
	proof := wire.TQ{Message: quorum.Message{RackID: rack, Kind: quorum.CommitProof{Certificate: cert}}}
	res, err := d.proxy(ctx, to, op, proof)
	if err != nil {
		return "", err
	}
	return res.(wire.ProxyCommitted).Status, nil // what does not fit was refused
}

// ProxyStatus asks a peer what its node says about itself.
func (d *Daemon) ProxyStatus(ctx context.Context, to ident.Baseboard) (api.NodeStatus, error) {
	res, err := d.proxy(ctx, to, wire.ProxyStatus{})
	if err != nil {
		return api.NodeStatus{}, err
	}
	s := res.(wire.NodeStatus)
	out := api.NodeStatus{
		ConnectedPeers: s.ConnectedPeers, Alarms: []string{}, ProxiedRequests: s.ProxiedRequests,
		PersistentState: api.PersistentState{
			HasLRTQShare: s.HasLRTQShare, Configs: s.Configs, Shares: s.Shares, Commits: s.Commits, Expunged: (*api.Expunged)(s.Expunged),
		},
	}
	for _, a := range s.Alarms {
		out.Alarms = append(out.Alarms, string(a.Kind))
	}
	return out, nil
}
