package replay

import (
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
)

// Event is one thing that happened in a recorded run.
type Event interface{ Name() string }

type (
	// InitialSetup begins a run: the sleds of the universe exist, live ones are connected, the first configuration is
	// requested. With LRTQ its members have packages of the older scheme instead, all sleds are up and nothing is sent.
	InitialSetup struct {
		Universe int // sleds "test:0" to "test:N-1"
		Change   Change
		Crashed  []ident.Baseboard
		LRTQ     bool
	}
	// AbortConfiguration says that the controller gave up the latest configuration.
	AbortConfiguration struct{ Epoch ident.Epoch }
	// SendReply puts an answer on its way to the controller.
	SendReply struct{ Reply Reply }
	// DeliverReply hands the newest answer to the controller.
	DeliverReply struct{ Reply Reply }
	// DeliverEnvelope hands the newest message for a sled to it.
	DeliverEnvelope struct {
		To, From ident.Baseboard
		Message  Message
	}
	// LoadRackSecret asks a sled for a rack secret.
	LoadRackSecret struct {
		ID    ident.Baseboard
		Epoch ident.Epoch
	}
	// ClearSecrets makes a sled forget its rack secrets.
	ClearSecrets struct{ ID ident.Baseboard }
	// CommitConfiguration tells a sled to commit the latest configuration.
	CommitConfiguration struct{ ID ident.Baseboard }
	// PrepareAndCommit gives a sled the latest configuration to commit.
	PrepareAndCommit struct{ ID ident.Baseboard }
	// Reconfigure requests a new configuration; with LRTQ it is the upgrade from the older scheme.
	Reconfigure struct {
		Change Change
		LRTQ   bool
	}
	// CrashNode takes a sled down. It keeps its memory until it is restarted.
	CrashNode struct{ ID ident.Baseboard }
	// RestartNode starts a sled with what it has stored, and connects it in the given order.
	RestartNode struct {
		ID    ident.Baseboard
		Order []ident.Baseboard
	}
)

// Name is what the log calls the event.
func (e InitialSetup) Name() string {
	if e.LRTQ {
		return "InitialSetupLrtq"
	}
	return "InitialSetup"
}

// Name is what the log calls the event.
func (AbortConfiguration) Name() string { return "AbortConfiguration" }

// Name is what the log calls the event.
func (SendReply) Name() string { return "SendNexusReplyOnUnderlay" }

// Name is what the log calls the event.
func (DeliverReply) Name() string { return "DeliverNexusReply" }

// Name is what the log calls the event.
func (DeliverEnvelope) Name() string { return "DeliverEnvelope" }

// Name is what the log calls the event.
func (LoadRackSecret) Name() string { return "LoadRackSecret" }

// Name is what the log calls the event.
func (ClearSecrets) Name() string { return "ClearSecrets" }

// Name is what the log calls the event.
func (CommitConfiguration) Name() string { return "CommitConfiguration" }

// Name is what the log calls the event.
func (PrepareAndCommit) Name() string { return "PrepareAndCommit" }

// Name is what the log calls the event.
func (e Reconfigure) Name() string {
	if e.LRTQ {
		return "LrtqUpgrade"
	}
	return "Reconfigure"
}

// Name is what the log calls the event.
func (CrashNode) Name() string { return "CrashNode" }

// Name is what the log calls the event.
func (RestartNode) Name() string { return "RestartNode" }

// Op is how far the controller is with a configuration.
type Op string

// The stages of a configuration.
const (
	OpPreparing     Op = "Preparing"
	OpCommitted     Op = "Committed"
	OpAborted       Op = "Aborted"
	OpLRTQCommitted Op = "LrtqCommitted"
)

// Change is a configuration as the controller knows it.
type Change struct {
	Op            Op
	Epoch         ident.Epoch
	LastCommitted *ident.Epoch
	Coordinator   ident.Baseboard
	Members       []ident.Baseboard // ascending, as the next two
	Threshold     ident.Threshold
	Tolerance     uint64 // prepared members beyond the threshold before it commits
	Prepared      []ident.Baseboard
	Committed     []ident.Baseboard
}

// Reply is an answer to the controller: who has acknowledged a configuration, or, with From set, that a sled committed.
type Reply struct {
	Epoch ident.Epoch
	Acks  []ident.Baseboard // ascending; nil if From is set
	From  ident.Baseboard
}

// Config is a configuration without what is random in every run.
type Config struct {
	RackID      ident.RackID      `json:"rack_id,omitzero"`
	Coordinator ident.Baseboard   `json:"coordinator"`
	OldSecrets  *int              `json:"encrypted_len"` // bytes of encrypted older secrets; nil if there are none
	Epoch       ident.Epoch       `json:"epoch"`
	Members     []ident.Baseboard `json:"members"`
	Threshold   ident.Threshold   `json:"threshold"`
}

// Message is a message between sleds without what is random in every run.
type Message struct {
	RackID ident.RackID `json:"rack_id,omitzero"`
	Kind   quorum.Kind  `json:"kind"`
	Epoch  ident.Epoch  `json:"epoch,omitempty"`
	X      byte         `json:"x,omitempty"` // number of the share it carries
	Config *Config      `json:"config,omitempty"`
}
