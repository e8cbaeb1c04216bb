// Package api is the narrow door to a sled.
//
// The local API serves HTTP/1.1 and JSON on a unix socket, to callers whose uid or gid has a role. The underlay API
// serves the rack controller over mutual TLS under the rack's membership key. Both translate and check requests and
// hand them to a [Node]; neither knows the protocol. A disk key leaves only here (unlock.go), only as an octet stream.
//
// Formats: docs/local-api.md and openapi.json, which a test holds against the routes. Package client is the other side.
package api

import (
	"context"

	"github.com/sledvault/sledvault/rot/enroll"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/secret"
)

// Caller is who is at the other end of a request.
type Caller struct {
	UID, GID uint32
	PID      int32
	Role     Role // the role under which the request was allowed
}

// Node is what the APIs need from the daemon. Every method may be called at any time, also while the boot hangs, and
// returns a reason.Error when it cannot serve.
type Node interface {
	Status(ctx context.Context) Status
	// AwaitChange returns when the status has another revision than the given one, or when ctx ends.
	AwaitChange(ctx context.Context, after uint64)
	Disks(ctx context.Context) []Disk
	// Unlock opens every locked disk and returns them all. Below the threshold it waits at most as asked and names who
	// is missing.
	Unlock(ctx context.Context, r UnlockRequest) ([]Disk, error)
	// ReleaseKey records the release, durably, and returns a copy of the disk's key, owned by the caller.
	ReleaseKey(ctx context.Context, who Caller, disk string) (secret.DiskKey, error)
	FormatDisk(ctx context.Context, who Caller, disk string, r FormatRequest) (Disk, error)
	SetPeers(ctx context.Context, peers []string) error
	// NetworkConfig returns the network configuration once its generation exceeds after, or when ctx ends.
	NetworkConfig(ctx context.Context, after uint64) (NetworkConfig, error)
	// SetNetworkConfig stores a newer one, then hands it to the peers. The one that is there already is no error.
	SetNetworkConfig(ctx context.Context, generation uint64, blob []byte) (NetworkConfig, error)
	// ResetSeal makes the sled forget its rack. If end is not nil the daemon must end, whether it succeeded or not: the
	// caller calls it when the answer is on its way.
	ResetSeal(ctx context.Context, who Caller, r ResetRequest) (end func(), err error)
	// ClearAlarms forgets every alarm.
	ClearAlarms(ctx context.Context, who Caller) error
	TPMIdentity(ctx context.Context) (TPMIdentity, error)
	SPIdentity(ctx context.Context) (SPIdentity, error)

	Proxy
	Reconfigure(ctx context.Context, r quorum.Reconfigure) error
	// UpgradeLRTQ has the sled coordinate the first configuration after the older scheme.
	UpgradeLRTQ(ctx context.Context, r quorum.UpgradeLRTQ) error
	Commit(ctx context.Context, r quorum.Commit) (quorum.CommitStatus, error)
	// PrepareAndCommit returns when the node has committed, or "pending" when ctx ends.
	PrepareAndCommit(ctx context.Context, r quorum.PrepareAndCommit) (quorum.CommitStatus, error)
	// Coordinator returns the progress of the coordination once its version exceeds after, or when ctx ends.
	Coordinator(ctx context.Context, after uint64) (Coordination, error)
	// LatestCommitted returns the latest committed configuration and its certificate, or nils.
	LatestCommitted(ctx context.Context) (*quorum.Configuration, *quorum.Certificate, error)
}

// Coordination is the progress of a coordination.
type Coordination struct {
	Version uint64
	Config  *quorum.Configuration // nil when not coordinating
	Acked   []ident.Baseboard
}

// Claimant is what the underlay API needs from the daemon, beside [Node].
type Claimant interface {
	Node
	// Set is the current enrolment set, nil while unclaimed.
	Set() *enroll.Set
	// ClaimFingerprint names the only membership key that may claim this sled; "" = nobody.
	ClaimFingerprint() string
	EnrollBegin(ctx context.Context, c *Conn, r enroll.BeginRequest) (enroll.BeginResponse, error)
	EnrollActivate(ctx context.Context, c *Conn, r enroll.ActivateRequest) (enroll.ActivateResponse, error)
	// EnrollSet adopts an enrolment set; the first one only on the connection that was activated.
	EnrollSet(ctx context.Context, c *Conn, envelope []byte) (generation uint64, err error)
	// ConnClosed tells that a connection is gone, so that an enrolment begun on it ends.
	ConnClosed(c *Conn)
	// Attest returns evidence for the controller bound to the connection (evidence.md, role 'H').
	Attest(ctx context.Context, c *Conn, nonce [32]byte) ([]byte, error)
}

// Conn is one TLS connection to the underlay API.
type Conn struct {
	Exporter   [32]byte // RFC 5705 keying material under the attestation label
	ClientSPKI [32]byte // SHA-256 of the client's subject public key info
	Remote     string
}
