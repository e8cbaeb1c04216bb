package quorum

import (
	"errors"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
)

// Input is one thing that happens to a node.
type Input interface{ input() }

// RequestID ties a late reply to its request; the caller chooses it.
type RequestID uint64

type (
	// PeerUp says that an attested connection to a peer is up. A second PeerUp without PeerDown is a new connection.
	PeerUp struct {
		Peer         ident.Baseboard
		Capabilities []string
	}
	// PeerDown says that the connection to a peer is gone.
	PeerDown struct{ Peer ident.Baseboard }
	// PeerMessage is a message from an attested peer. The node owns its secrets from then on.
	PeerMessage struct {
		From    ident.Baseboard
		Message Message
	}
	// Reconfigure asks this node to coordinate a new configuration (protocol.md §8.1).
	Reconfigure struct {
		ID            RequestID
		RackID        ident.RackID
		Epoch         ident.Epoch
		LastCommitted *ident.Epoch // nil when there is none
		Members       []ident.Baseboard
		Threshold     ident.Threshold
		Grant         *Grant
	}
	// UpgradeLRTQ asks this node to coordinate the first configuration after the older scheme (protocol.md §8.6). Its reply
	// is that of Reconfigure.
	UpgradeLRTQ struct {
		ID        RequestID
		RackID    ident.RackID
		Epoch     ident.Epoch // at least 2: the older scheme counts as epoch 1
		Members   []ident.Baseboard
		Threshold ident.Threshold
		Grant     *Grant
	}
	// Commit asks this node to commit a prepared epoch (protocol.md §8.2).
	Commit struct {
		ID          RequestID
		RackID      ident.RackID
		Epoch       ident.Epoch
		Certificate *Certificate
	}
	// PrepareAndCommit hands over a committed configuration whose Prepare was missed (protocol.md §8.3).
	PrepareAndCommit struct {
		ID          RequestID
		Config      *Configuration
		Certificate *Certificate
	}
	// LoadSecret asks for the rack secret of an epoch; Epoch nil means the latest committed one. The reply may come
	// with a later output.
	LoadSecret struct {
		ID    RequestID
		Epoch *ident.Epoch
	}
	// CheckAgreement asks whether one share more than the threshold agrees on the secret of an epoch, which must be the
	// latest committed one (protocol.md §8.5). The reply comes with a later output and carries the secret they agree on.
	CheckAgreement struct {
		ID    RequestID
		Epoch ident.Epoch
	}
	// CancelLoad withdraws a LoadSecret or CheckAgreement whose caller gave up.
	CancelLoad struct{ ID RequestID }
	// ClearSecrets drops every cached rack secret.
	ClearSecrets struct{}
	// ClearAlarms forgets every alarm, after an operator has looked at them. One that comes again is raised again.
	ClearAlarms struct{}
	// SetAuthority replaces the verifier, after the enrolment set changed the membership key.
	SetAuthority struct{ Authority Authority }
)

func (PeerUp) input()           {}
func (PeerDown) input()         {}
func (PeerMessage) input()      {}
func (Reconfigure) input()      {}
func (UpgradeLRTQ) input()      {}
func (Commit) input()           {}
func (PrepareAndCommit) input() {}
func (LoadSecret) input()       {}
func (CheckAgreement) input()   {}
func (CancelLoad) input()       {}
func (ClearSecrets) input()     {}
func (ClearAlarms) input()      {}
func (SetAuthority) input()     {}

// Envelope is a message to send.
type Envelope struct {
	To      ident.Baseboard
	Message Message
}

// Reply answers a request that Step accepted; one that it refuses is answered by Step's error and has no Reply. Exactly
// one of Err and the result fields of the request's kind is meaningful. A Reconfigure or UpgradeLRTQ that was accepted, now or
// when the same request came before, has neither.
type Reply struct {
	ID     RequestID
	Err    error
	Status CommitStatus      // Commit, PrepareAndCommit
	Epoch  ident.Epoch       // LoadSecret, CheckAgreement: the epoch of Secret
	Secret secret.RackSecret // LoadSecret, CheckAgreement: a copy, owned by the receiver
}

// CommitStatus is the outcome of a commit request.
type CommitStatus string

// The outcomes of a commit request.
const (
	Committed CommitStatus = "committed"
	Pending   CommitStatus = "pending"
)

// Note is a typed record of something worth counting: a refused message, a transition. It never holds secrets.
type Note struct {
	Code  reason.Code
	Peer  ident.Baseboard // zero when no peer is concerned
	Epoch ident.Epoch     // 0 when no epoch is concerned
	Kind  Kind            // the message concerned, or ""
	Text  string
}

// AlarmKind names an alarm as in the reference, or one of ours.
type AlarmKind string

// Alarm records an invariant violation that "cannot happen" (protocol.md §10).
type Alarm struct {
	Kind  AlarmKind
	Epoch ident.Epoch
	From  ident.Baseboard
	Text  string // the typed cause's text
}

// Effects are what the driver must do after the state is durable.
type Effects struct {
	Send    []Envelope
	Replies []Reply
	Notes   []Note
	Alarms  []Alarm
	// Committed is the latest committed epoch if this step changed it, else 0.
	Committed ident.Epoch
}

// ErrNotDurable is returned by Step while an earlier output has not been made durable.
var ErrNotDurable = errors.New("quorum: earlier output is not durable yet")

// ErrReleased is returned by Durable for an output whose effects are out already, and for the zero output.
var ErrReleased = errors.New("quorum: output was released before")

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

// Durable saves the state if it changed, then releases the effects. If save fails, nothing may be sent: the node refuses
// every further input and the daemon must stop.
func (o Output) Durable(save func(State) error) (Effects, error) {
	return o.node.durable(o, save)
}
