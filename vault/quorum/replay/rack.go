package replay

import (
	"crypto/sha3"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/quorum/reference"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
)

// Rack is a rack of real nodes that lives through the events of a log, with the network and the controller of the
// reference's property test: per sled one stack of messages, of which the newest is delivered first, and one stack of
// answers to the controller.
type Rack struct {
	random   io.Reader // of all nodes: the same log gives the same bytes again
	sleds    []*sled   // "test:0", "test:1"…
	sorted   []*sled   // by identity
	index    map[ident.Baseboard]*sled
	replies  []Reply // on their way to the controller, the newest last
	changes  []*Change
	expunged map[ident.Baseboard]bool // by the controller's book
	first    map[ident.Epoch]*quorum.Configuration
	secrets  map[ident.Epoch]secret.RackSecret // as some node gave them first

	events int
	step   Step
}

type sled struct {
	id   ident.Baseboard
	node *quorum.Node
	down bool
	wire []letter                 // for this sled, the newest last
	up   map[ident.Baseboard]bool // peers to which the node believes to be connected
}

type letter struct {
	from    ident.Baseboard
	message quorum.Message
}

// Step is what one event did.
type Step struct {
	Event       int    // its number
	Name        string // what the log calls it
	Load        *Load  // of LoadRackSecret
	Sent        []Sent // in the order in which it was sent
	Compared    int    // facts of the log that were held against ours
	Differences []Difference
	Rules       []Rule // deviations whose case came up
}

// Sent is a message that an event put on its way.
type Sent struct {
	To, From ident.Baseboard
	Lost     bool // the sled is down
	message  quorum.Message
}

// Message is what was sent, without what is random.
func (s Sent) Message() Message { return summary(s.message) }

// Difference is something that the log says and our rack did otherwise.
type Difference struct {
	Event int    `json:"event"`
	What  string `json:"what"`
	Want  any    `json:"want"` // the log's
	Have  any    `json:"have"` // ours
}

// NewRack makes a rack that waits for its first event.
func NewRack() *Rack {
	random := sha3.NewSHAKE128()
	_, _ = random.Write([]byte("sledvault/replay/v1")) // documented never to fail
	return &Rack{
		random: random, index: map[ident.Baseboard]*sled{}, expunged: map[ident.Baseboard]bool{},
		first: map[ident.Epoch]*quorum.Configuration{}, secrets: map[ident.Epoch]secret.RackSecret{},
	}
}

// Apply lets the rack live through one event. An error says that such an event cannot happen there; the rack is of no
// use afterwards. What differs from the log is in the step.
func (r *Rack) Apply(e Event) (Step, error) {
	r.step = Step{Event: r.events, Name: e.Name()}
	var err error
	if setup, ok := e.(InitialSetup); ok != (len(r.sleds) == 0) {
		return r.step, impossible("a log begins with a setup and has no other")
	} else if ok {
		err = r.setup(setup)
	} else {
		err = r.apply(e)
	}
	if err == nil {
		r.events++
	}
	return r.step, err
}

func (r *Rack) apply(e Event) error {
	switch e := e.(type) {
	case DeliverEnvelope:
		return r.deliver(e)
	case LoadRackSecret:
		return r.at(e.ID, func(s *sled) { r.load(s, e.Epoch) })
	case ClearSecrets:
		return r.at(e.ID, func(s *sled) { r.must("clear", s, quorum.ClearSecrets{}) })
	case SendReply:
		return r.sendReply(e.Reply)
	case DeliverReply:
		return r.deliverReply(e.Reply)
	case CommitConfiguration:
		return r.at(e.ID, r.commit)
	case PrepareAndCommit:
		return r.at(e.ID, r.prepareAndCommit)
	case Reconfigure:
		return r.register(e.Change, e.LRTQ)
	case AbortConfiguration:
		r.abort(e.Epoch)
		return nil
	case CrashNode:
		return r.at(e.ID, r.crash)
	case RestartNode:
		return r.restart(e)
	}
	return impossible("a log begins with a setup and has no other")
}

func impossible(format string, args ...any) error {
	return reason.New(CodeImpossible, hintImpossible, format, args...)
}

// find returns a sled of the universe.
func (r *Rack) find(id ident.Baseboard) (*sled, error) {
	if s := r.index[id]; s != nil {
		return s, nil
	}
	return nil, impossible("there is no sled %s", id)
}

func (r *Rack) at(id ident.Baseboard, f func(*sled)) error {
	s, err := r.find(id)
	if err == nil {
		f(s)
	}
	return err
}

func (r *Rack) latest() *Change { return r.changes[len(r.changes)-1] }

func (r *Rack) change(e ident.Epoch) *Change {
	for _, c := range slices.Backward(r.changes) {
		if c.Epoch == e {
			return c
		}
	}
	return nil
}

// differ records a difference.
func (r *Rack) differ(what string, want, have any) {
	r.step.Differences = append(r.step.Differences, Difference{r.step.Event, what, want, have})
}

// compare counts a fact of the log and records a difference unless ours is the same.
func (r *Rack) compare(what string, same bool, want, have any) {
	r.step.Compared++
	if !same {
		r.differ(what, want, have)
	}
}

func (r *Rack) rule(name Rule) { r.step.Rules = append(r.step.Rules, name) }

// boot starts a node with what it has stored.
func (r *Rack) boot(s *sled, st quorum.State) error {
	n, err := quorum.New(quorum.Config{ID: s.id, Rand: r.random, Alloc: secret.Heap{}, Authority: reference.Authority{}}, st)
	if err != nil {
		return fmt.Errorf("start %s: %w", s.id, err)
	}
	s.node, s.up = n, map[ident.Baseboard]bool{}
	return nil
}

// do gives a node an input and puts what it sends on its way. A sled that is down gets nothing, not even later.
func (r *Rack) do(s *sled, in quorum.Input) (quorum.Effects, error) {
	out, err := s.node.Step(in)
	if err != nil {
		return quorum.Effects{}, err
	}
	switch in := in.(type) {
	case quorum.PeerUp:
		s.up[in.Peer] = true
	case quorum.PeerDown:
		delete(s.up, in.Peer)
	}
	changed := out.Changed()
	fx, err := out.Durable(func(quorum.State) error { return nil })
	if err != nil {
		return quorum.Effects{}, err
	}
	for _, e := range fx.Send {
		to := r.index[e.To]
		lost := to == nil || to.down
		if !lost {
			to.wire = append(to.wire, letter{s.id, e.Message})
		}
		r.step.Sent = append(r.step.Sent, Sent{To: e.To, From: s.id, Lost: lost, message: e.Message})
	}
	for _, a := range fx.Alarms {
		r.differ("alarm", nil, a)
	}
	if roles := s.node.Roles(); roles.Coordinating != 0 && roles.Computing != 0 {
		r.differ("roles", "one of both", fmt.Sprintf("%s coordinates %d and computes %d", s.id, roles.Coordinating, roles.Computing))
	}
	if changed {
		r.track(s)
	}
	return fx, nil
}

// must is do for inputs that a correct node never refuses.
func (r *Rack) must(what string, s *sled, in quorum.Input) quorum.Effects {
	fx, err := r.do(s, in)
	if err != nil {
		r.differ(what, "done", err.Error())
	}
	return fx
}

// track holds what a node has stored against what other nodes have: one configuration per epoch, first seen at its
// coordinator.
func (r *Rack) track(s *sled) {
	for e, c := range s.node.State().Configs {
		switch known := r.first[e]; {
		case known == nil:
			r.first[e] = c
			if c.Coordinator != s.id {
				r.differ("configuration", "first at "+c.Coordinator.String(), fmt.Sprintf("epoch %d first at %s", e, s.id))
			}
		case known != c && !known.Equal(c):
			r.differ("configuration", "one per epoch", fmt.Sprintf("%s has another one of epoch %d", s.id, e))
		}
	}
}

func (r *Rack) crash(s *sled) {
	s.wire, s.down = nil, true
	for _, o := range r.sorted {
		if !o.down {
			r.must("disconnect", o, quorum.PeerDown{Peer: s.id})
		}
	}
}

func (r *Rack) restart(e RestartNode) error {
	s, err := r.find(e.ID)
	if err != nil {
		return err
	}
	if s.node.Roles().Computing != 0 {
		r.rule(RuleComputationForgotten)
	}
	s.down = false
	if err := r.boot(s, s.node.State()); err != nil {
		return err
	}
	for _, id := range e.Order {
		p, err := r.find(id)
		if err != nil {
			return err
		}
		r.must("connect", p, quorum.PeerUp{Peer: e.ID})
		r.must("connect", s, quorum.PeerUp{Peer: id})
	}
	return nil
}

// Destroy wipes what the rack holds in memory beside its nodes.
func (r *Rack) Destroy() {
	for _, s := range r.secrets {
		s.Destroy()
	}
}

// isCode reports whether an error, at any depth, has a code.
func isCode(err error, c reason.Code) bool { return errors.Is(err, &reason.Error{Code: c}) }
