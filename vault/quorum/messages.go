package quorum

import (
	"slices"

	"github.com/sledvault/sledvault/vault/gfss"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/keys"
)

// Digest is a SHA3-256 (share) or SHA-256 (configuration) digest. Digests are public and print in full.
type Digest [32]byte

// Member is one member of a configuration with the digest of its share.
type Member struct {
	ID          ident.Baseboard
	ShareDigest Digest
}

// Configuration is the membership of one epoch (protocol.md §5). It is immutable once made; share it by reference only
// through values that nobody changes.
type Configuration struct {
	RackID      ident.RackID
	Epoch       ident.Epoch
	Coordinator ident.Baseboard
	Members     []Member // ascending by ID; member i owns the share with x = i+1
	Threshold   ident.Threshold
	// EncryptedSecrets holds every older committed rack secret; nil for a first configuration.
	EncryptedSecrets *keys.EncryptedSecrets
}

// Index returns the position of a member in the configuration, or false.
func (c *Configuration) Index(id ident.Baseboard) (int, bool) {
	return slices.BinarySearchFunc(c.Members, id, func(m Member, id ident.Baseboard) int { return m.ID.Compare(id) })
}

// Has reports whether id is a member.
func (c *Configuration) Has(id ident.Baseboard) bool {
	_, ok := c.Index(id)
	return ok
}

// Equal compares all fields, digests and ciphertext included.
func (c *Configuration) Equal(o *Configuration) bool {
	if c.RackID != o.RackID || c.Epoch != o.Epoch || c.Coordinator != o.Coordinator || c.Threshold != o.Threshold ||
		!slices.Equal(c.Members, o.Members) || (c.EncryptedSecrets == nil) != (o.EncryptedSecrets == nil) {
		return false
	}
	return c.EncryptedSecrets == nil ||
		(c.EncryptedSecrets.Salt == o.EncryptedSecrets.Salt && slices.Equal(c.EncryptedSecrets.Data, o.EncryptedSecrets.Data))
}

// Signature is an Ed25519 signature by the rack's membership key.
type Signature [64]byte

// Grant is the operator's authority for one coordinator to prepare one configuration (protocol.md §7).
type Grant struct {
	RackID        ident.RackID
	Epoch         ident.Epoch
	Coordinator   ident.Baseboard
	Members       []ident.Baseboard // ascending
	Threshold     ident.Threshold
	LastCommitted ident.Epoch // 0 when there is none
	LRTQUpgrade   bool
	KeepFrom      ident.Epoch // older secrets of lower epochs are left out; 0 keeps all
	Signature     Signature
}

// Certificate is the operator's authority to commit one configuration (protocol.md §7). It is stored beside the
// configuration and travels with it as the proof that the epoch was committed.
type Certificate struct {
	RackID       ident.RackID
	Epoch        ident.Epoch
	ConfigDigest Digest      // SHA-256 of the configuration's CBOR
	KeepFrom     ident.Epoch // as in the grant
	Signature    Signature
}

// Authority verifies grants and certificates. The node takes it as a value; see New.
type Authority interface {
	VerifyGrant(g *Grant) error
	// VerifyCertificate checks the signature and that the certificate is for exactly this configuration.
	VerifyCertificate(c *Configuration, cert *Certificate) error
}

// Credulous marks an authority that takes every claim for proven. A node with one keeps the reference's laxer behaviour
// wherever logs of the reference show it (protocol.md §11). The only one is in package vault/quorum/reference, which
// replays those logs and which the daemon does not contain.
type Credulous interface {
	Authority
	BelievesPeers()
}

// Message is one message between nodes.
type Message struct {
	RackID ident.RackID
	Kind   MessageKind
}

// MessageKind is one of Prepare, PrepareAck, GetShare, ShareReply, GetLRTQShare, LRTQShare, ExpungedNotice,
// CommitAdvance (the reference's kinds), GrantNotice, CommitProof, NoSuchShare (ours, sent only to peers that announced
// [CapabilityAuthority]).
type MessageKind interface{ messageKind() Kind }

// Kind names a message kind in logs, notes and transcripts.
type Kind string

// The message kinds.
const (
	KindPrepare       Kind = "prepare"
	KindPrepareAck    Kind = "prepare_ack"
	KindGetShare      Kind = "get_share"
	KindShare         Kind = "share"
	KindGetLRTQShare  Kind = "get_lrtq_share"
	KindLRTQShare     Kind = "lrtq_share"
	KindExpunged      Kind = "expunged"
	KindCommitAdvance Kind = "commit_advance"
	KindGrant         Kind = "grant"
	KindCommitProof   Kind = "commit_proof"
	KindNoSuchShare   Kind = "no_such_share"
)

// CapabilityAuthority is announced by peers that understand grants and certificates.
const CapabilityAuthority = "authority/1"

type (
	// Prepare hands a member its share of a new configuration.
	Prepare struct {
		Config *Configuration
		Share  gfss.Share
	}
	// PrepareAck says that the sender has stored configuration and share.
	PrepareAck struct{ Epoch ident.Epoch }
	// GetShare asks for the receiver's share of an epoch.
	GetShare struct{ Epoch ident.Epoch }
	// ShareReply answers GetShare.
	ShareReply struct {
		Epoch ident.Epoch
		Share gfss.Share
	}
	// GetLRTQShare asks for the receiver's share of the older scheme.
	GetLRTQShare struct{}
	// LRTQShare answers GetLRTQShare; 33 bytes, x first.
	LRTQShare struct{ Share gfss.Share }
	// ExpungedNotice tells a former member that a committed configuration no longer contains it.
	ExpungedNotice struct{ Epoch ident.Epoch }
	// CommitAdvance tells a member that a newer configuration is committed.
	CommitAdvance struct{ Config *Configuration }
	// GrantNotice passes the operator's grant on, before the Prepare that needs it.
	GrantNotice struct{ Grant *Grant }
	// CommitProof passes a commit certificate on, before the CommitAdvance or ExpungedNotice that needs it.
	// Config is present when the receiver cannot get it otherwise: before an ExpungedNotice.
	CommitProof struct {
		Config      *Configuration // may be nil
		Certificate *Certificate
	}
	// NoSuchShare answers GetShare when the receiver has no share of that epoch.
	NoSuchShare struct{ Epoch ident.Epoch }
)

func (Prepare) messageKind() Kind        { return KindPrepare }
func (PrepareAck) messageKind() Kind     { return KindPrepareAck }
func (GetShare) messageKind() Kind       { return KindGetShare }
func (ShareReply) messageKind() Kind     { return KindShare }
func (GetLRTQShare) messageKind() Kind   { return KindGetLRTQShare }
func (LRTQShare) messageKind() Kind      { return KindLRTQShare }
func (ExpungedNotice) messageKind() Kind { return KindExpunged }
func (CommitAdvance) messageKind() Kind  { return KindCommitAdvance }
func (GrantNotice) messageKind() Kind    { return KindGrant }
func (CommitProof) messageKind() Kind    { return KindCommitProof }
func (NoSuchShare) messageKind() Kind    { return KindNoSuchShare }

// KindOf names a message's kind.
func KindOf(k MessageKind) Kind { return k.messageKind() }

// Ours reports whether a kind is not known to the reference, so that it may only go to peers with
// [CapabilityAuthority].
func Ours(k MessageKind) bool {
	switch k.(type) {
	case GrantNotice, CommitProof, NoSuchShare:
		return true
	}
	return false
}
