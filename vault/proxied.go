package vault

import (
	"context"
	"fmt"
	"time"

	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/peer"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/wire"
)

// Reasons of requests that a peer passes on, on the sled that they are for.
const (
	CodeProxyNotMember reason.Code = "proxy-not-member" // the peer is no member of the configuration that is committed here
	CodeProxyFlood     reason.Code = "proxy-flood"      // more requests than a controller makes
)

// What one connection may ask: as many at once, and as many per second. A controller asks once or twice for each change.
const (
	proxyBurst = 64
	proxyRate  = 16
)

// connection is what the driver remembers of a peer while it is connected.
type connection struct {
	id      peer.ConnID
	removed bool                // the peer was removed from the rack
	ours    bool                // it understands our own messages
	proof   *quorum.Certificate // the last one it passed on, not used yet
	credit  float64             // requests that it may make now
	since   time.Time           // when that was
}

// may spends one request of the connection's allowance.
func (c *connection) may(now time.Time) bool {
	c.credit = min(proxyBurst, c.credit+proxyRate*now.Sub(c.since).Seconds())
	c.since = now
	if c.credit < 1 {
		return false
	}
	c.credit--
	return true
}

// trusts reports whether what a peer asks for beyond the quorum's own messages counts here: it is a member, or nothing is
// committed yet, as on a new sled, where every sled of the enrolment set must do.
func (d *driver) trusts(from ident.Baseboard) bool {
	c := d.conns[from]
	if c == nil || c.removed {
		return false
	}
	committed := d.node.Status().LatestCommitted
	return committed == nil || committed.Has(from)
}

// proxied carries out what a peer passes on, as a local call would be, and answers once that is stored. The certificate
// must have come ahead of the request on the same connection; it serves one request. An error ends the daemon.
func (d *driver) proxied(ctx context.Context, from ident.Baseboard, m wire.ProxyRequest) error {
	c := d.conns[from]
	if c == nil {
		return nil // its connection is gone, and with it whoever waits
	}
	answer := func(r wire.ProxyResult) {
		if err := d.peers.Send(from, wire.ProxyResponse{ID: m.ID, Result: r}); err != nil { // counted there
			d.log.Debug("not sent", "peer", from.String(), "kind", "proxy_response", "err", err)
		}
	}
	say := func(code reason.Code, e *wire.ProxyError) {
		d.log.Warn("proxied request refused", "code", code, "peer", from.String())
		if e.Kind == wire.ProxyNoInnerError && c.ours {
			if err := d.peers.Send(from, wire.ProxyRefusal{ID: m.ID, Reason: string(code)}); err != nil { // counted there
				d.log.Debug("not sent", "peer", from.String(), "kind", "proxy_refusal", "err", err)
			}
		}
		answer(e)
	}
	refuse := func(code reason.Code, why string) {
		d.reasons.Count(code, from.String(), why)
		say(code, &wire.ProxyError{Kind: wire.ProxyNoInnerError})
	}
	switch {
	case !d.trusts(from):
		refuse(CodeProxyNotMember, fmt.Sprintf("%T from a sled that is no member", m.Op))
		return nil
	case !c.may(time.Now()):
		refuse(CodeProxyFlood, fmt.Sprintf("%T: more than %d requests at once", m.Op, proxyBurst))
		return nil
	}
	var in func(quorum.RequestID) quorum.Input
	cert := c.proof
	c.proof = nil
	switch op := m.Op.(type) {
	case wire.ProxyStatus:
		answer(d.nodeStatus())
		return nil
	case wire.ProxyCommit:
		in = func(id quorum.RequestID) quorum.Input {
			return quorum.Commit{ID: id, RackID: op.RackID, Epoch: op.Epoch, Certificate: cert}
		}
	case wire.ProxyPrepareAndCommit:
		in = func(id quorum.RequestID) quorum.Input {
			return quorum.PrepareAndCommit{ID: id, Config: op.Config, Certificate: cert}
		}
	}
	if cert == nil { // also for an epoch that is committed already
		refuse(quorum.CodeCertificateMissing, fmt.Sprintf("%T without a certificate ahead of it", m.Op))
		return nil
	}
	r := &request{in: in, reply: make(chan quorum.Reply, 1)}
	if err := d.serve(ctx, r); err != nil {
		return err
	}
	select {
	case rep := <-r.reply:
		if rep.Err == nil {
			answer(wire.ProxyCommitted{Status: rep.Status})
			return nil
		}
		d.reasons.CountError(api.CodeProxyRefused, from.String(), rep.Err)
		say(reason.CodeOf(rep.Err), d.refusal(m.Op, rep.Err))
	default: // the node answers both at once
		delete(d.replies, r.id)
		refuse(api.CodeProxyRefused, "no answer of the node")
	}
	return nil
}

// refusal puts what the node refused into the reference's form. What has none there is [wire.ProxyNoInnerError].
func (d *driver) refusal(op wire.ProxyOp, err error) *wire.ProxyError {
	st := d.node.Status()
	out := &wire.ProxyError{Kind: wire.ProxyNoInnerError}
	var epoch ident.Epoch
	switch op := op.(type) {
	case wire.ProxyCommit:
		out.Got, epoch = op.RackID, op.Epoch
	case wire.ProxyPrepareAndCommit:
		out.Got, out.Prepare = op.Config.RackID, true
	case wire.ProxyStatus:
	}
	switch code := reason.CodeOf(err); {
	case code == quorum.CodeInvalidRackID && st.RackID != nil:
		out.Kind, out.Expected = wire.ProxyInvalidRackID, *st.RackID
	case code == quorum.CodeNotPrepared && !out.Prepare:
		out.Kind, out.Epoch = wire.ProxyNotPrepared, epoch
	case code == quorum.CodeExpunged && st.Expunged != nil:
		out.Kind, out.Epoch, out.From = wire.ProxyExpunged, st.Expunged.Epoch, st.Expunged.From
	}
	return out
}

// nodeStatus is the answer to a proxied Status. Of our alarms only those are in it that hold what the reference's do; the
// others are in this sled's own status.
func (d *driver) nodeStatus() wire.NodeStatus {
	st := d.node.Status()
	out := wire.NodeStatus{
		HasLRTQShare: st.LRTQ, Configs: st.Configs, Shares: st.Shares, Commits: st.Commits, Expunged: st.Expunged, ProxiedRequests: uint64(d.proxies.count()),
	}
	for _, p := range st.Peers {
		out.ConnectedPeers = append(out.ConnectedPeers, p.ID)
	}
	seen := map[ident.Epoch]bool{}
	for _, a := range st.Alarms {
		if a.Kind == quorum.AlarmDecryptionFailed && !seen[a.Epoch] {
			seen[a.Epoch] = true
			out.Alarms = append(out.Alarms, wire.Alarm{Kind: wire.AlarmDecryptionFailed, Epoch: a.Epoch, Err: "aead"})
		}
	}
	return out
}
