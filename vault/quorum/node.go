// Boot path 7/9: after vault/driver.go, before vault/keys/disk.go.

// Package quorum is the trust-quorum node of one sled, as a pure step function.
//
// One [Input] goes in, one [Output] comes out; there is no I/O, clock, goroutine or lock inside. The node owns what a
// sled must remember of its rack ([State]), coordinates new configurations (coordinator.go), computes a share that it
// missed (keyshare.go), brings a rack over from the older scheme (lrtq.go) and rebuilds rack secrets from the shares of its
// peers (loader.go). Effects can only be reached
// through [Output.Durable], which stores the state first.
//
// It refuses everything that its own checks (validate.go) and the operator's signature (authority.go) do not cover:
// every refusal is a typed reason (reasons.go), counted as a [Note], and an [Alarm] if an honest peer cannot cause it.
// The rules are docs/protocol.md §5 to §12; DESIGN.md says why the package is shaped so.
package quorum

import (
	"errors"
	"fmt"
	"io"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
)

// Config is what a node is made of beside its state.
type Config struct {
	ID        ident.Baseboard  // this sled
	Rand      io.Reader        // secrets, coefficients and salts; read in the order that DESIGN.md lists
	Alloc     secret.Allocator // pages of secrets
	Authority Authority        // verifies grants and certificates
	Limits    Limits           // a zero field stands for its default
}

// Limits bounds what outsiders can make a node remember.
type Limits struct {
	Peers   int // connected peers; default 255
	Waiters int // LoadSecret requests without an answer; default 64
	Alarms  int // different alarms kept; default 256
}

func (l Limits) orDefault() Limits {
	for _, f := range []struct {
		v *int
		d int
	}{{&l.Peers, 255}, {&l.Waiters, 64}, {&l.Alarms, 256}} {
		if *f.v <= 0 {
			*f.v = f.d
		}
	}
	return l
}

// Node is the trust-quorum state machine of one sled. It is not safe for concurrent use.
type Node struct {
	id        ident.Baseboard
	rand      io.Reader
	alloc     secret.Allocator
	authority Authority
	lax       bool // the authority is [Credulous]
	limits    Limits

	st    State
	known knowledge
	peers map[ident.Baseboard]*peer // connected

	coord    *coordinator // nil unless coordinating
	computer *computer    // nil unless computing an own share; never beside coord
	loader   loader
	alarms   []Alarm

	agreement *agreement  // nil unless comparing shares
	disagreed ident.Epoch // the last epoch whose shares were found not to fit together; 0 if none

	fx      Effects // of the step under way
	changed bool    // whether that step changed st
	seq     uint64  // number of the last output
	open    bool    // whether that output is not durable yet
	broken  error   // set for good by a broken invariant or a failed save
}

// peer is what a node knows of a connected peer. It ends with the connection.
type peer struct {
	authority bool         // announced CapabilityAuthority
	grant     *Grant       // the newest one passed on, not verified yet
	proof     *CommitProof // likewise
	owed      ident.Epoch  // share the peer asked for in vain; 0 if none
}

// New makes a node with the operator's authority. It checks the state and owns it afterwards.
// Errors: [CodeConfig]; [CodeState] if the stored state breaks a rule of protocol.md §6.
func New(c Config, st State) (*Node, error) {
	if c.Authority == nil {
		return nil, reason.New(CodeConfig, "", "quorum: new node: no authority")
	}
	if c.Rand == nil || c.Alloc == nil {
		return nil, reason.New(CodeConfig, "", "quorum: new node: no randomness or no allocator")
	}
	if err := c.ID.Validate(); err != nil {
		return nil, reason.Wrap(err, CodeConfig, "", "quorum: new node")
	}
	_, lax := c.Authority.(Credulous)
	if err := validateState(c.ID, st, !lax); err != nil {
		return nil, err
	}
	n := &Node{
		id: c.ID, rand: c.Rand, alloc: c.Alloc, authority: c.Authority, lax: lax, limits: c.Limits.orDefault(),
		st: st.Clone(), peers: map[ident.Baseboard]*peer{},
	}
	n.known = learn(n.st)
	n.resumeComputation()
	return n, nil
}

// State is what the node holds now. Nobody may change it.
func (n *Node) State() State { return n.st }

// InvariantError says that a rule which neither peers nor disks can break is broken, or that memory or randomness ran
// out in the middle of a step. The node refuses every further input; the daemon must stop and start afresh.
type InvariantError struct {
	Rule  string
	Cause error
}

func (e *InvariantError) Error() string { return fmt.Sprintf("quorum: %s: %v", e.Rule, e.Cause) }

// Unwrap returns the cause.
func (e *InvariantError) Unwrap() error { return e.Cause }

func exhausted(err error) error { return &InvariantError{"out of memory or randomness", err} }

func invariant(rule, format string, args ...any) error {
	return &InvariantError{rule, fmt.Errorf(format, args...)}
}

// Step takes one input to its end. An error means that the input was refused and nothing changed, except for an
// [*InvariantError], after which the node refuses everything. Bad messages of peers are notes, never errors. The secrets
// of a message are consumed unless the error is [ErrNotDurable].
func (n *Node) Step(in Input) (Output, error) {
	if n.open {
		return Output{}, ErrNotDurable
	}
	if m, ok := in.(PeerMessage); ok {
		defer destroyMessage(m.Message.Kind)
	}
	if n.broken != nil {
		return Output{}, n.broken
	}
	before := n.known.committedEpoch()
	err := n.dispatch(in)
	fx, changed := n.fx, n.changed
	n.fx, n.changed = Effects{}, false
	if err != nil {
		fx.destroy()
		if e, ok := errors.AsType[*InvariantError](err); ok {
			n.stop(e)
		}
		return Output{}, err
	}
	if after := n.known.committedEpoch(); after != before {
		fx.Committed = after
	}
	n.seq++
	n.open = true
	return Output{node: n, seq: n.seq, changed: changed, state: n.st, effects: fx}, nil
}

func (n *Node) dispatch(in Input) error {
	switch in := in.(type) {
	case PeerUp:
		return n.peerUp(in)
	case PeerDown:
		delete(n.peers, in.Peer)
		n.loaderPeerDown()
		return n.agreementPeerDown()
	case PeerMessage:
		return n.message(in)
	case Reconfigure:
		return n.reconfigure(in)
	case UpgradeLRTQ:
		return n.upgradeLRTQ(in)
	case Commit:
		return n.commitRequest(in)
	case PrepareAndCommit:
		return n.prepareAndCommit(in)
	case LoadSecret:
		return n.loadSecret(in)
	case CancelLoad:
		n.loader.cancel(in.ID)
		n.cancelAgreement(in.ID)
		return nil
	case CheckAgreement:
		return n.checkAgreement(in)
	case ClearSecrets:
		return n.clearSecrets()
	case ClearAlarms:
		n.alarms = nil
		return nil
	case SetAuthority:
		return n.setAuthority(in)
	}
	return reason.New(CodeConfig, "", "quorum: step: unknown input %T", in)
}

// durable is [Output.Durable].
func (n *Node) durable(o Output, save func(State) error) (Effects, error) {
	if n == nil || !n.open || o.seq != n.seq {
		return Effects{}, ErrReleased
	}
	if o.changed {
		if err := save(o.state); err != nil {
			o.effects.destroy()
			n.stop(&InvariantError{"state not saved", err})
			return Effects{}, n.broken
		}
	}
	n.open = false
	return o.effects, nil
}

// stop ends the node for good and wipes what it holds in memory only.
func (n *Node) stop(err *InvariantError) {
	n.broken, n.open = err, false
	if n.coord != nil {
		n.coord.destroy()
	}
	if n.computer != nil {
		n.computer.shares.destroy()
	}
	if n.agreement != nil {
		n.agreement.shares.destroy()
	}
	n.loader.destroy()
	n.coord, n.computer, n.agreement = nil, nil, nil
}

func (n *Node) peerUp(in PeerUp) error {
	p := &peer{}
	for _, c := range in.Capabilities {
		p.authority = p.authority || c == CapabilityAuthority
	}
	if _, again := n.peers[in.Peer]; in.Peer == n.id || (!again && len(n.peers) >= n.limits.Peers) {
		n.note(CodePeerRefused, in.Peer, 0, "", "own identity, or too many peers")
		return nil
	}
	n.peers[in.Peer] = p
	if err := n.coordinatorPeerUp(in.Peer); err != nil {
		return err
	}
	if n.computer != nil {
		n.computer.shares.askAgain(n, in.Peer)
	}
	if c := n.loader.collector; c != nil && c.config.Has(in.Peer) {
		n.send(in.Peer, GetShare{c.config.Epoch})
	}
	n.agreementPeerUp(in.Peer)
	return nil
}

// send queues a message under the rack id that is known by then.
func (n *Node) send(to ident.Baseboard, k MessageKind) {
	n.fx.Send = append(n.fx.Send, Envelope{to, Message{n.known.rack, k}})
}

func (n *Node) reply(r Reply) { n.fx.Replies = append(n.fx.Replies, r) }

func (n *Node) note(code reason.Code, from ident.Baseboard, e ident.Epoch, kind Kind, text string) {
	n.fx.Notes = append(n.fx.Notes, Note{code, from, e, kind, text})
}

// alarm records what cannot happen. Equal alarms collapse. When there are too many the oldest are kept, and no peer can
// take more than an eighth of the room, so that a liar cannot hide another.
func (n *Node) alarm(a Alarm) {
	same := 0
	for _, have := range n.alarms {
		if have == a {
			return
		}
		if have.From == a.From {
			same++
		}
	}
	if len(n.alarms) >= n.limits.Alarms || same >= max(1, n.limits.Alarms/8) {
		n.note(CodeAlarmsFull, a.From, a.Epoch, "", string(a.Kind))
		return
	}
	n.alarms = append(n.alarms, a)
	n.fx.Alarms = append(n.fx.Alarms, a)
}

// refusal is a message that is not acted on. Without an alarm kind an honest peer may have sent it.
type refusal struct {
	code  reason.Code
	alarm AlarmKind
	text  string
}

func refuse(code reason.Code, alarm AlarmKind, format string, args ...any) *refusal {
	return &refusal{code, alarm, fmt.Sprintf(format, args...)}
}

func (n *Node) refused(r *refusal, from ident.Baseboard, e ident.Epoch, kind Kind) {
	n.note(r.code, from, e, kind, r.text)
	if r.alarm != "" {
		n.alarm(Alarm{r.alarm, e, from, r.text})
	}
}

func (f *Effects) destroy() {
	for _, e := range f.Send {
		destroyMessage(e.Message.Kind)
	}
	for _, r := range f.Replies {
		r.Secret.Destroy()
	}
}

// destroyMessage wipes the share that a message carries, if any.
func destroyMessage(k MessageKind) {
	switch k := k.(type) {
	case Prepare:
		k.Share.Destroy()
	case ShareReply:
		k.Share.Destroy()
	case LRTQShare:
		k.Share.Destroy()
	}
}
