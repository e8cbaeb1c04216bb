package api

import (
	"encoding/json"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/reason"
)

// State is what a sled is to its rack.
type State string

// The states of a sled (operations.md). Each has its next step for the operator in [Status.NextStep].
const (
	StateStarting  State = "starting"  // the boot has not come far enough to tell
	StateUnclaimed State = "unclaimed" // belongs to no rack
	StateClaimed   State = "claimed"   // enrolled, no committed configuration yet
	StateMember    State = "member"    // a committed configuration contains this sled
	StateExpunged  State = "expunged"  // a committed configuration no longer contains it
	StateLostSeal  State = "lost-seal" // its sealed state cannot be opened; it must be enrolled again
)

// Status is everything a sled says about itself. It holds no secrets.
type Status struct {
	Version   string           `json:"version"`
	Baseboard *ident.Baseboard `json:"baseboard"` // null until the service processor has answered
	State     State            `json:"state"`
	NextStep  string           `json:"next_step"`
	Boot      Boot             `json:"boot"`
	Rack      *Rack            `json:"rack"`
	Quorum    *Quorum          `json:"quorum"`
	Seal      *Seal            `json:"seal"`
	Network   *NetworkStatus   `json:"network_config"` // null if there is none
	Peers     any              `json:"peers"`          // peers.md; null before the peer network is up
	LRTQ      any              `json:"lrtq"`           // lrtq.md §4; null while the older scheme is not served
	Disks     []Disk           `json:"disks"`
	SP        any              `json:"sp"` // sp-wire.md, counters of the serial line
	Claim     Claim            `json:"claim"`
	Hardening []Hardening      `json:"hardening"`
	Relaxed   []string         `json:"relaxed"` // names of the active relaxations
	Alarms    []Alarm          `json:"alarms"`
	Reasons   []reason.Entry   `json:"reasons"`  // every refusal, drop and failure, counted
	Revision  uint64           `json:"revision"` // counts changes since the start; pass it as ?after= to wait for the next one
}

// Boot is the progress of the boot, in the order of boot-path.md.
type Boot struct {
	Step    string  `json:"step"`     // the step under way, or "done"
	SinceMS float64 `json:"since_ms"` // how long it has been under way
	Waiting string  `json:"waiting"`  // for what or whom it waits; "" if it does not
	Error   *Error  `json:"error"`    // why it does not go on; null if it does
	Steps   []Step  `json:"steps"`    // finished steps
	// MSToUnlocked is the time from process start until every formatted disk was open; 0 before.
	MSToUnlocked float64 `json:"ms_to_unlocked"`
}

// Step is one finished boot step.
type Step struct {
	Name string  `json:"name"`
	MS   float64 `json:"ms"`    // how long it took
	AtMS float64 `json:"at_ms"` // when it ended, from process start
}

// Rack is what the sled knows of its rack from the enrolment set.
type Rack struct {
	ID            ident.RackID      `json:"id"`
	SetGeneration uint64            `json:"set_generation"`
	SetDigest     string            `json:"set_digest"` // hex SHA-256 of the envelope
	Fingerprint   string            `json:"fingerprint"`
	Sleds         []ident.Baseboard `json:"sleds"`
}

// Quorum is the node's view, without secrets.
type Quorum struct {
	ConnectedPeers []ident.Baseboard `json:"connected_peers"`
	Configs        []ident.Epoch     `json:"configs"`
	Shares         []ident.Epoch     `json:"shares"`
	Commits        []ident.Epoch     `json:"commits"`
	Certificates   []ident.Epoch     `json:"certificates"`
	Threshold      int               `json:"threshold"` // of the latest committed configuration; 0 without
	Members        []ident.Baseboard `json:"members"`   // likewise
	// OlderSecrets is how many older rack secrets that configuration carries: one more with each change, none ever fewer
	// unless the operator drops them (protocol.md §8.7). At most 4096.
	OlderSecrets int         `json:"older_secrets"`
	KeepFrom     ident.Epoch `json:"keep_from"` // the first epoch whose secret it keeps; 0 = all
	Expunged     *Expunged   `json:"expunged"`
	LRTQ         bool        `json:"lrtq"`         // holds a package of the older scheme (lrtq.md)
	Coordinating ident.Epoch `json:"coordinating"` // 0 when not
	// ProxiedRequests are calls for other sleds that this one has passed on and waits for.
	ProxiedRequests int         `json:"proxied_requests"`
	Collecting      *Collecting `json:"collecting"` // shares being collected; null when none are
}

// Expunged says that a committed configuration no longer contains the sled.
type Expunged struct {
	Epoch ident.Epoch     `json:"epoch"`
	From  ident.Baseboard `json:"from"` // who told
}

// Collecting says how far a collection of shares has come and who is missing.
type Collecting struct {
	Purpose string      `json:"purpose"` // "rack secret", "own share" or "agreement" (of one more than the threshold)
	Epoch   ident.Epoch `json:"epoch"`
	Have    int         `json:"have"`
	Want    int         `json:"want"`
	Missing []Missing   `json:"missing"`
}

// Missing is a member whose share has not come.
type Missing struct {
	Sled      ident.Baseboard `json:"sled"`
	Connected bool            `json:"connected"`
}

// Seal is the state of the sealed ledger.
type Seal struct {
	Ledger any    `json:"ledger"` // ledger.md: sequence, generation, copies
	PCRs   []int  `json:"pcrs"`
	TPM    any    `json:"tpm"`
	Reason *Error `json:"reason"` // why the seal is lost; null if it is not
}

// Claim says who may claim the sled.
type Claim struct {
	Fingerprint string `json:"fingerprint"` // of the membership key that may claim it; "" = nobody
}

// Hardening is one measure to protect the process, and whether it holds.
type Hardening struct {
	Name string `json:"name"`
	OK   bool   `json:"ok"`
	// Detail says how it is done, or why it is not.
	Detail string `json:"detail"`
}

// Alarm is something that cannot happen in a healthy rack.
type Alarm struct {
	Kind  string           `json:"kind"`
	Epoch ident.Epoch      `json:"epoch,omitempty"`
	From  *ident.Baseboard `json:"from,omitempty"`
	Text  string           `json:"text"`
	// Earlier says that it was raised before the daemon started, and was not cleared since.
	Earlier bool `json:"earlier,omitempty"`
}

// Disk is one disk and what was done with it.
type Disk struct {
	ID      string      `json:"id"`
	Backend string      `json:"backend"`
	Path    string      `json:"path"`
	State   string      `json:"state"` // "locked", "unlocked", "unformatted", "absent", "failed"
	Proof   string      `json:"proof"` // how "unlocked" was shown: "mapped" or "test-passphrase"
	Epoch   ident.Epoch `json:"epoch"` // of the key it opens with; 0 = unformatted
	Mapping string      `json:"mapping"`
	// Rotation is how far the disk has come on its way to the newest epoch, e.g. "to epoch 2: waits for SLED"; "" if it is there.
	Rotation string  `json:"rotation"`
	MS       float64 `json:"ms"` // what the last attempt took
	Error    *Error  `json:"error"`
}

// Error is a refusal as it crosses the API.
type Error struct {
	Code  reason.Code `json:"code"`
	Text  string      `json:"error"`
	Hint  string      `json:"hint,omitempty"`
	Retry bool        `json:"retry"` // the same call may succeed later
}

// UnlockRequest asks for every locked disk to be opened.
type UnlockRequest struct {
	// WaitMS is how long to wait for the threshold; 0 answers at once with what is known.
	WaitMS int64 `json:"wait_ms"`
}

// DisksReply lists disks.
type DisksReply struct {
	Disks []Disk `json:"disks"`
}

// FormatRequest asks for a disk to be encrypted under the rack's current epoch.
type FormatRequest struct {
	// KeepData encrypts what is on the disk in place; the last 32 MiB are cut off for the header.
	KeepData bool `json:"keep_data"`
	// Resume goes on with an encryption in place that was cut off.
	Resume bool `json:"resume"`
	// Overwrite gives up whatever is on the disk, an encrypted container included.
	Overwrite bool `json:"overwrite"`
}

// PeersRequest replaces the list of peer addresses.
type PeersRequest struct {
	Peers []string `json:"peers"` // "ip:port"
}

// TPMIdentity names the keys of a sled's TPM.
type TPMIdentity struct {
	EKName        string `json:"ek_name"` // hex: algorithm and digest
	EKCertificate []byte `json:"ek_certificate,omitempty"`
	Manufacturer  string `json:"manufacturer"`
	Firmware      string `json:"firmware"`
	Software      bool   `json:"software"`
}

// SPIdentity is what the service processor says.
type SPIdentity struct {
	Baseboard ident.Baseboard `json:"baseboard"`
	Revision  uint32          `json:"revision"`
}

// Grant is a grant in JSON (protocol.md §7).
type Grant struct {
	RackID        ident.RackID      `json:"rack_id"`
	Epoch         ident.Epoch       `json:"epoch"`
	Coordinator   ident.Baseboard   `json:"coordinator"`
	Members       []ident.Baseboard `json:"members"`
	Threshold     ident.Threshold   `json:"threshold"`
	LastCommitted ident.Epoch       `json:"last_committed"` // 0 when there is none
	LRTQUpgrade   bool              `json:"lrtq_upgrade"`
	KeepFrom      ident.Epoch       `json:"keep_from,omitempty"` // older secrets of lower epochs are dropped; 0 keeps all
	Signature     []byte            `json:"signature"`
}

// Certificate is a commit certificate in JSON (protocol.md §7).
type Certificate struct {
	RackID       ident.RackID `json:"rack_id"`
	Epoch        ident.Epoch  `json:"epoch"`
	ConfigDigest []byte       `json:"config_digest"`
	KeepFrom     ident.Epoch  `json:"keep_from,omitempty"` // as in the grant
	Signature    []byte       `json:"signature"`
}

// ReconfigureRequest asks the sled to coordinate a configuration.
type ReconfigureRequest struct {
	RackID        ident.RackID      `json:"rack_id"`
	Epoch         ident.Epoch       `json:"epoch"`
	LastCommitted *ident.Epoch      `json:"last_committed_epoch"`
	Members       []ident.Baseboard `json:"members"`
	Threshold     ident.Threshold   `json:"threshold"`
	Grant         *Grant            `json:"grant"`
}

// UpgradeRequest asks the sled to coordinate the first configuration after the older scheme (protocol.md §8.6). Its epoch
// is at least 2.
type UpgradeRequest struct {
	RackID    ident.RackID      `json:"rack_id"`
	Epoch     ident.Epoch       `json:"epoch"`
	Members   []ident.Baseboard `json:"members"`
	Threshold ident.Threshold   `json:"threshold"`
	Grant     *Grant            `json:"grant"`
}

// CoordinatorStatus is the progress of a coordination.
type CoordinatorStatus struct {
	// Version counts changes; pass it as ?after= to wait for the next one.
	Version uint64 `json:"version"`
	// Config is the configuration in wire.md's JSON form; null when not coordinating.
	Config json.RawMessage   `json:"config"`
	Epoch  ident.Epoch       `json:"epoch"`
	Acked  []ident.Baseboard `json:"acked_prepares"`
}

// CommitRequest asks the sled to commit a prepared epoch.
type CommitRequest struct {
	RackID      ident.RackID `json:"rack_id"`
	Epoch       ident.Epoch  `json:"epoch"`
	Certificate *Certificate `json:"certificate"`
}

// PrepareAndCommitRequest hands a committed configuration over.
type PrepareAndCommitRequest struct {
	Config      json.RawMessage `json:"config"` // in wire.md's JSON form
	Certificate *Certificate    `json:"certificate"`
}

// AttestRequest asks for evidence bound to this connection.
type AttestRequest struct {
	Nonce []byte `json:"nonce"` // 32 bytes
}

// AttestReply is the evidence (evidence.md).
type AttestReply struct {
	Evidence []byte `json:"evidence"`
}

// SetReply says which enrolment set the sled now holds.
type SetReply struct {
	Generation uint64 `json:"generation"`
}

// CommitReply is the outcome of a commit.
type CommitReply struct {
	Status quorum.CommitStatus `json:"status"`
}
