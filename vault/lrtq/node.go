package lrtq

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
)

// Phase is how far a sled has come in the older scheme.
type Phase uint8

// The phases.
const (
	Uninitialized Phase = iota // no package
	InitialMember              // a founding member, with spare shares for later sleds
	Learning                   // waits for a package from a founding member
	Learned                    // a later sled with a share of its own and none to spare
)

// String is the phase's name in status and transcripts.
func (p Phase) String() string {
	return [...]string{"uninitialized", "initial_member", "learning", "learned"}[min(p, Learned)]
}

// State is what a sled must not forget. A state handed to a save function stays what it was; its shares belong to the node.
type State struct {
	Phase   Phase
	Package SharePackage  // Learned: only Common; InitialMember: all of it
	Given   map[Board]int // InitialMember: which spare share which later sled was given
}

// Common is the package that the trust quorum takes over; false if there is none. It belongs to the state.
func (s State) Common() (Package, bool) {
	return s.Package.Common, s.Phase == InitialMember || s.Phase == Learned
}

// Validate reports whether the state can be one that the scheme made.
func (s State) Validate() error {
	switch s.Phase {
	case Uninitialized, Learning:
		return nil
	case Learned:
		return s.Package.Common.Validate()
	case InitialMember:
		if err := s.Package.Validate(); err != nil {
			return err
		}
		seen := map[int]bool{}
		for _, b := range slices.SortedFunc(maps.Keys(s.Given), Board.Compare) {
			i := s.Given[b]
			if err := b.Validate(); err != nil {
				return wrong(BadSpare, "given to: %v", err)
			}
			if i < 0 || i >= s.Package.Spare() || seen[i] {
				return wrong(BadSpare, "given to %s: have number %d, want another one below %d", b, i, s.Package.Spare())
			}
			seen[i] = true
		}
		return nil
	}
	return fmt.Errorf("lrtq: state: unknown phase %d", s.Phase)
}

// Destroy wipes the share.
func (s State) Destroy() { s.Package.Destroy() }

// Config is what a node is made of beside its state.
type Config struct {
	ID       Board            // this sled
	Rand     io.Reader        // 16 bytes for every request; and what Create reads
	Alloc    secret.Allocator // pages of secrets
	Timeouts Timeouts         // a zero field stands for its default
	Limits   Limits           // a zero field stands for its default
}

// Timeouts are counted in ticks. The defaults are the reference's times for a tick of 250 ms.
type Timeouts struct {
	Learn uint32 // until a learner asks the next peer; default 20
	Load  uint32 // until a load gives up; default 20
	Init  uint32 // until founding a rack has failed; default 2400
}

// Limits bounds what outsiders can make a node remember.
type Limits struct {
	Peers int // connected peers; default 255
}

// Node is the older scheme's state machine of one sled. It is not safe for concurrent use.
type Node struct {
	id       Board
	rand     io.Reader
	alloc    secret.Allocator
	timeouts Timeouts
	limits   Limits

	st      State
	peers   []Board // connected, ascending
	tracked []*tracked
	now     uint64 // ticks
	failed  error  // founding the rack failed; for good

	fx      Effects // of the step under way
	changed bool
	seq     uint64
	open    bool  // the last output is not durable yet
	broken  error // set for good by a failed save, or when memory or randomness ran out
}

// New makes a node. It checks the state and owns it, and its share, afterwards. Errors: [CodeConfig], [CodeState].
func New(c Config, st State) (*Node, error) {
	if c.Rand == nil || c.Alloc == nil {
		return nil, reason.New(CodeConfig, "", "lrtq: new node: no randomness or no allocator")
	}
	if err := c.ID.Validate(); err != nil {
		return nil, reason.Wrap(err, CodeConfig, "", "lrtq: new node")
	}
	if err := st.Validate(); err != nil {
		return nil, reason.Wrap(err, CodeState, "", "lrtq: new node")
	}
	for _, t := range []struct {
		v *uint32
		d uint32
	}{{&c.Timeouts.Learn, 20}, {&c.Timeouts.Load, 20}, {&c.Timeouts.Init, 2400}} {
		if *t.v == 0 {
			*t.v = t.d
		}
	}
	if c.Limits.Peers <= 0 {
		c.Limits.Peers = 255
	}
	return &Node{id: c.ID, rand: c.Rand, alloc: c.Alloc, timeouts: c.Timeouts, limits: c.Limits, st: st}, nil
}

// State is what the node holds now. Nobody may change it.
func (n *Node) State() State { return n.st }

// Input is one thing that happens to a node.
type Input interface{ input() }

// Call ties a late reply to its input; the caller chooses it.
type Call uint64

type (
	// PeerUp says that the connection to a peer is up. A second one without PeerDown is a new connection.
	PeerUp struct{ Peer Board }
	// PeerDown says that the connection to a peer is gone.
	PeerDown struct{ Peer Board }
	// PeerMessage is a message of a connected peer. The node owns its secrets from then on.
	PeerMessage struct {
		From    Board
		Message Message
	}
	// Tick says that one unit of the timeouts has passed.
	Tick struct{}
	// InitRack founds a rack with this sled and the members; for tests and simulators. The reply comes when all have
	// their package, or when that failed, which is for good.
	InitRack struct {
		Call    Call
		RackID  ident.RackID
		Members []Board
	}
	// StartLearning has the sled ask founding members for a package.
	StartLearning struct{}
	// LoadSecret asks for the scheme's secret. The reply comes with a later output.
	LoadSecret struct{ Call Call }
)

func (PeerUp) input()        {}
func (PeerDown) input()      {}
func (PeerMessage) input()   {}
func (Tick) input()          {}
func (InitRack) input()      {}
func (StartLearning) input() {}
func (LoadSecret) input()    {}

// Envelope is a message to send.
type Envelope struct {
	To      Board
	Message Message
}

// Reply answers an InitRack or LoadSecret that Step accepted.
type Reply struct {
	Call   Call
	Err    error
	Secret secret.RackSecret // LoadSecret: owned by the receiver
}

// Note is a typed record of something worth counting: a refused message, a transition. It never holds secrets.
type Note struct {
	Code reason.Code
	Peer Board // zero when no peer is concerned
	Kind Kind  // the message concerned, or ""
	Text string
}

// Effects are what the driver must do after the state is durable.
type Effects struct {
	Send    []Envelope
	Replies []Reply
	Notes   []Note
}

func (f *Effects) destroy() {
	for _, e := range f.Send {
		Destroy(e.Message)
	}
	for _, r := range f.Replies {
		r.Secret.Destroy()
	}
}

// ErrNotDurable is returned by Step while an earlier output has not been made durable.
var ErrNotDurable = errors.New("lrtq: earlier output is not durable yet")

// ErrReleased is returned by Durable for an output whose effects are out already, and for the zero output.
var ErrReleased = errors.New("lrtq: output was released before")

// StoppedError says that a save failed, or that memory or randomness ran out in the middle of a step. The node refuses
// every further input.
type StoppedError struct {
	What  string
	Cause error
}

func (e *StoppedError) Error() string { return fmt.Sprintf("lrtq: %s: %v", e.What, e.Cause) }

// Unwrap returns the cause.
func (e *StoppedError) Unwrap() error { return e.Cause }

func exhausted(err error) error { return &StoppedError{"out of memory or randomness", err} }

// Output is the result of one step. [Output.Durable] is the only way to its effects.
type Output struct {
	node    *Node
	seq     uint64
	changed bool
	state   State
	effects Effects
}

// Changed reports whether Durable will call save.
func (o Output) Changed() bool { return o.changed }

// Durable saves the state if it changed, then releases the effects: a package is acknowledged, and a spare share given,
// only after it is stored. If save fails, nothing may be sent and the node refuses every further input.
func (o Output) Durable(save func(State) error) (Effects, error) {
	n := o.node
	if n == nil || !n.open || o.seq != n.seq {
		return Effects{}, ErrReleased
	}
	if o.changed {
		if err := save(o.state); err != nil {
			o.effects.destroy()
			n.stop(&StoppedError{"state not saved", err})
			return Effects{}, n.broken
		}
	}
	n.open = false
	return o.effects, nil
}

// Step takes one input to its end. An error means that the input was refused and nothing changed, except for a
// [*StoppedError], after which the node refuses everything. Bad messages of peers are notes, never errors. The secrets of
// a message are consumed unless the error is [ErrNotDurable].
func (n *Node) Step(in Input) (Output, error) {
	if n.open {
		return Output{}, ErrNotDurable
	}
	if m, ok := in.(PeerMessage); ok {
		defer Destroy(m.Message)
	}
	if n.broken != nil {
		return Output{}, n.broken
	}
	err := n.dispatch(in)
	fx, changed := n.fx, n.changed
	n.fx, n.changed = Effects{}, false
	if err != nil {
		fx.destroy()
		if e, ok := errors.AsType[*StoppedError](err); ok {
			n.stop(e)
		}
		return Output{}, err
	}
	n.seq++
	n.open = true
	return Output{n, n.seq, changed, n.st, fx}, nil
}

func (n *Node) dispatch(in Input) error {
	switch in := in.(type) {
	case PeerUp:
		return n.peerUp(in.Peer)
	case PeerDown:
		n.peers = slices.DeleteFunc(n.peers, func(b Board) bool { return b == in.Peer })
		return nil
	case PeerMessage:
		return n.message(in.From, in.Message)
	case Tick:
		return n.tick()
	case InitRack:
		return n.initRack(in)
	case StartLearning:
		return n.startLearning()
	case LoadSecret:
		return n.loadSecret(in)
	}
	return reason.New(CodeConfig, "", "lrtq: step: unknown input %T", in)
}

// stop ends the node for good and wipes what it holds in memory only.
func (n *Node) stop(err *StoppedError) {
	n.broken, n.open = err, false
	for _, t := range n.tracked {
		t.destroy()
	}
	n.tracked = nil
}

// Close wipes everything, the state's share too. The node refuses every further input.
func (n *Node) Close() {
	n.stop(&StoppedError{"closed", errors.New("no further input")})
	n.st.Destroy()
}

func (n *Node) send(to Board, m Message) { n.fx.Send = append(n.fx.Send, Envelope{to, m}) }

func (n *Node) note(code reason.Code, from Board, kind Kind, format string, args ...any) {
	n.fx.Notes = append(n.fx.Notes, Note{code, from, kind, fmt.Sprintf(format, args...)})
}

func (n *Node) connected(b Board) bool {
	_, ok := slices.BinarySearchFunc(n.peers, b, Board.Compare)
	return ok
}

// newID reads a random UUID.
func (n *Node) newID() (id RequestID, err error) {
	if _, err := io.ReadFull(n.rand, id[:]); err != nil {
		return id, exhausted(err)
	}
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80
	return id, nil
}

// Status is plain data without secrets.
type Status struct {
	Phase     string       `json:"phase"`
	RackID    ident.RackID `json:"rack_id"`
	Threshold int          `json:"threshold,omitempty"`
	Share     int          `json:"share,omitempty"` // the own share's number
	Spare     int          `json:"spare,omitempty"` // spare shares not given away
	Peers     []string     `json:"peers"`
	Running   []string     `json:"running,omitempty"` // requests without an end
	Failed    string       `json:"failed,omitempty"`
}

// Status describes the node.
func (n *Node) Status() Status {
	s := Status{Phase: n.st.Phase.String(), Peers: []string{}}
	if p, ok := n.st.Common(); ok {
		s.RackID, s.Threshold, s.Share = p.RackID, int(p.Threshold), int(p.Share.X)
		s.Spare = n.st.Package.Spare() - len(n.st.Given)
	}
	for _, p := range n.peers {
		s.Peers = append(s.Peers, p.String())
	}
	for _, t := range n.tracked {
		s.Running = append(s.Running, t.String())
	}
	if n.failed != nil {
		s.Failed = n.failed.Error()
	}
	return s
}
