// Boot path 6/9: after sealing/open.go, before vault/quorum/node.go.

package vault

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/peer"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/wire"
)

// requestQueue bounds the requests that wait for the node. A full queue answers "busy": an API caller can come again.
const requestQueue = 32

// driver owns the trust-quorum node: one goroutine, one input at a time, stored before sent.
type driver struct {
	node    *quorum.Node
	store   *store
	reasons *reason.Log
	log     *slog.Logger

	peers    *peer.Manager
	requests chan *request
	done     chan struct{}                          // closed when run returns
	replies  map[quorum.RequestID]chan quorum.Reply // owned by the goroutine
	nextID   quorum.RequestID

	conns   map[ident.Baseboard]*connection // owned by the goroutine
	proxies *proxies                        // requests to peers
	sending sync.Mutex                      // one step's messages, or one request with its proof, at a time
	network *network

	alarm     func(quorum.Alarm) // keeps one beyond this life
	committed func(ident.Epoch)  // the latest committed epoch changed; 0: this sled was removed
	onChange  func()             // the status changed

	mu      sync.Mutex
	status  quorum.Status // as of the last step
	version uint64        // counts changes of status
	changed chan struct{} // closed and replaced at each change
}

// request is one input from inside the daemon.
type request struct {
	in      func(quorum.RequestID) quorum.Input
	reply   chan quorum.Reply // room for one; nil where none is awaited
	id      quorum.RequestID  // set by the driver's goroutine
	cancels *request          // an earlier request whose caller gave up; then in is nil
}

func newDriver(node *quorum.Node, st *store, peers *peer.Manager, net *network, reasons *reason.Log, log *slog.Logger, committed func(ident.Epoch)) *driver {
	d := &driver{
		node: node, network: net, conns: map[ident.Baseboard]*connection{}, store: st, reasons: reasons, log: log, peers: peers, committed: committed,
		requests: make(chan *request, requestQueue), done: make(chan struct{}), replies: map[quorum.RequestID]chan quorum.Reply{},
		status: node.Status(), version: 1, changed: make(chan struct{}), onChange: func() {}, alarm: func(quorum.Alarm) {},
	}
	d.proxies = newProxies(d.sendTogether, reasons, d.done, func() { d.onChange() })
	return d
}

// run is the loop. It returns nil when ctx ends, and an error when the daemon must stop.
func (d *driver) run(ctx context.Context) error {
	defer close(d.done)
	for {
		var err error
		select {
		case <-ctx.Done():
			return nil
		case r := <-d.requests:
			err = d.serve(ctx, r)
		case ev, ok := <-d.peers.Events():
			if !ok {
				return nil
			}
			err = d.fromPeer(ctx, ev)
		}
		if err != nil {
			return err
		}
	}
}

// serve runs one request, or withdraws an earlier one whose caller gave up; a secret that came all the same is wiped.
func (d *driver) serve(ctx context.Context, r *request) error {
	if c := r.cancels; c != nil {
		delete(d.replies, c.id)
		select {
		case rep := <-c.reply:
			rep.Secret.Destroy()
		default:
		}
		return d.step(ctx, 0, quorum.CancelLoad{ID: c.id})
	}
	d.nextID++
	r.id = d.nextID
	if r.reply != nil {
		d.replies[r.id] = r.reply
	}
	return d.step(ctx, r.id, r.in(r.id))
}

// step is the whole life of one input: step, save, send, reply, tell. An error ends the daemon.
func (d *driver) step(ctx context.Context, id quorum.RequestID, in quorum.Input) error {
	out, err := d.node.Step(in)
	if err != nil {
		if isInvariant(err) {
			return fmt.Errorf("vault: trust-quorum node: %w", err)
		}
		d.answer(quorum.Reply{ID: id, Err: err}) // this input was refused, the state is untouched
		return nil
	}
	fx, err := out.Durable(func(st quorum.State) error {
		return d.store.updateQuorum(ctx, st)
	})
	if err != nil {
		return fmt.Errorf("vault: save the ledger: %w", err)
	}
	removed := d.refresh()
	d.sendAll(fx.Send)
	for _, r := range fx.Replies {
		d.answer(r)
	}
	for _, n := range fx.Notes {
		d.note(n)
	}
	for _, a := range fx.Alarms {
		d.reasons.Count(reason.Code("alarm-"+string(a.Kind)), peerName(a.From), a.Text)
		d.alarm(a)
		d.log.Error("alarm", "kind", a.Kind, "epoch", a.Epoch, "peer", peerName(a.From), "text", a.Text)
	}
	if removed {
		d.log.Warn("removed from the rack")
		d.committed(0)
	}
	if fx.Committed != 0 {
		d.log.Info("committed", "epoch", fx.Committed)
		d.committed(fx.Committed)
	}
	return nil
}

// note logs what happened; what was refused or dropped is counted, and so visible in status.
func (d *driver) note(n quorum.Note) {
	level := slog.LevelDebug
	switch quorum.ClassOf(n.Code) {
	case quorum.Refusal:
		level = slog.LevelWarn
		d.reasons.Count(n.Code, peerName(n.Peer), fmt.Sprintf("epoch %d: %s", n.Epoch, n.Text))
	case quorum.Transition:
		level = slog.LevelInfo
	case quorum.Routine:
		d.reasons.CountRoutine(n.Code, peerName(n.Peer), fmt.Sprintf("epoch %d: %s", n.Epoch, n.Text))
	}
	d.log.Log(context.Background(), level, "quorum", "code", n.Code, "peer", peerName(n.Peer), "epoch", n.Epoch, "text", n.Text)
}

func isInvariant(err error) bool {
	_, ok := errors.AsType[*quorum.InvariantError](err)
	return ok
}

func peerName(b ident.Baseboard) string {
	if b.IsZero() {
		return ""
	}
	return b.String()
}

// answer hands a reply to whoever waits for it; a secret nobody waits for is wiped.
func (d *driver) answer(r quorum.Reply) {
	ch := d.replies[r.ID]
	delete(d.replies, r.ID)
	if ch == nil {
		r.Secret.Destroy()
		return
	}
	ch <- r // buffered: one reply per request
}

// refresh publishes the node's status and wakes whoever waits for a change. It returns whether this sled was just removed.
func (d *driver) refresh() (removed bool) {
	st := d.node.Status()
	d.mu.Lock()
	defer d.mu.Unlock()
	removed = st.Expunged != nil && d.status.Expunged == nil
	d.status = st
	d.version++
	close(d.changed)
	d.changed = make(chan struct{})
	d.onChange()
	return removed
}

// Status returns the node's status and a channel that closes at the next change.
func (d *driver) Status() (quorum.Status, uint64, <-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.status, d.version, d.changed
}

// sendAll hands over what one step sends, without anything of others in between: a proof belongs to what follows it.
func (d *driver) sendAll(es []quorum.Envelope) {
	d.sending.Lock()
	defer d.sending.Unlock()
	for _, e := range es {
		d.send(e)
	}
}

// sendTogether hands over messages for one connection, likewise.
func (d *driver) sendTogether(to ident.Baseboard, msgs ...wire.Msg) (peer.ConnID, error) {
	d.sending.Lock()
	defer d.sending.Unlock()
	return d.peers.SendAll(to, msgs...)
}

// send hands a message to the peer's connection. What cannot be sent is counted there; loss implies a disconnect, and
// the node sends again when the peer comes back. The secrets of the message are wiped once its bytes are queued.
func (d *driver) send(e quorum.Envelope) {
	d.store.trace.frame(e.To, e.Message.Kind)
	if err := d.peers.Send(e.To, wire.TQ{Message: e.Message}); err != nil {
		d.log.Debug("not sent", "peer", e.To.String(), "kind", quorum.KindOf(e.Message.Kind), "err", err)
	}
	wire.Destroy(wire.TQ{Message: e.Message})
}

// fromPeer acts on a connection event. An error ends the daemon.
func (d *driver) fromPeer(ctx context.Context, ev peer.Event) error {
	switch ev := ev.(type) {
	case peer.Up:
		d.log.Info("peer up", "peer", ev.Peer.String())
		d.conns[ev.Peer] = &connection{id: ev.Conn, removed: ev.Removed, ours: slices.Contains(ev.Capabilities, quorum.CapabilityAuthority), credit: proxyBurst, since: time.Now()}
		d.proxies.lost(ev.Peer, ev.Conn-1) // a newer connection took the place of the one they went out on
		if !ev.Removed {
			d.network.peerUp(ev.Peer)
		}
		return d.step(ctx, 0, quorum.PeerUp{Peer: ev.Peer, Capabilities: ev.Capabilities})
	case peer.Down:
		d.log.Info("peer down", "peer", ev.Peer.String())
		delete(d.conns, ev.Peer)
		d.proxies.lost(ev.Peer, ev.Conn)
		d.network.peerDown(ev.Peer)
		return d.step(ctx, 0, quorum.PeerDown{Peer: ev.Peer})
	case peer.Message:
		return d.message(ctx, ev)
	}
	return nil
}

// message acts on a message of a peer.
func (d *driver) message(ctx context.Context, ev peer.Message) error {
	switch m := ev.Msg.(type) {
	case wire.TQ:
		if proof, ok := m.Kind.(quorum.CommitProof); ok && d.conns[ev.From] != nil {
			d.conns[ev.From].proof = proof.Certificate
		}
		return d.step(ctx, 0, quorum.PeerMessage{From: ev.From, Message: m.Message})
	case wire.NetworkConfig:
		d.network.receive(ev.From, m, d.trusts(ev.From))
	case wire.ProxyRequest:
		return d.proxied(ctx, ev.From, m)
	case wire.ProxyRefusal:
		d.proxies.refusal(ev.From, m)
	case wire.ProxyResponse:
		d.proxies.response(ev.From, m)
	default:
		d.reasons.Count("peer-message-unserved", ev.From.String(), fmt.Sprintf("%T is not served by this version", ev.Msg))
	}
	return nil
}

// do sends one request and waits for its reply.
func (d *driver) do(ctx context.Context, in func(quorum.RequestID) quorum.Input) (quorum.Reply, error) {
	r := &request{in: in, reply: make(chan quorum.Reply, 1)}
	select {
	case d.requests <- r:
	default:
		return quorum.Reply{}, reason.Later(api.CodeBusy, "try again", "vault: %d requests wait already", requestQueue)
	}
	select {
	case rep := <-r.reply:
		return rep, rep.Err
	case <-ctx.Done():
		d.enqueue(&request{cancels: r})
		return quorum.Reply{}, ctx.Err()
	case <-d.done:
		return quorum.Reply{}, reason.Later(api.CodeNotStarted, "try again", "vault: the daemon is stopping")
	}
}

// tell sends an input that has no reply.
func (d *driver) tell(in quorum.Input) {
	d.enqueue(&request{in: func(quorum.RequestID) quorum.Input { return in }})
}

func (d *driver) enqueue(r *request) {
	select {
	case d.requests <- r:
	case <-d.done:
	}
}
