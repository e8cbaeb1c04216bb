package peer

import "github.com/sledvault/sledvault/vault/reason"

// The reasons of this package (docs/peers.md §7). Those of vault/wire and rot are counted under their own codes.
const (
	CodeConfig       reason.Code = "peer-config"
	CodeListen       reason.Code = "peer-listen"        // the listening socket
	CodeAccept       reason.Code = "peer-accept"        // accepting failed
	CodeConnect      reason.Code = "peer-connect"       // no TCP connection
	CodeHandshake    reason.Code = "peer-handshake"     // the channel failed without a code of its own
	CodeHandshakes   reason.Code = "peer-handshakes"    // too many handshakes at a time
	CodeTimeout      reason.Code = "peer-timeout"       // the handshake took too long
	CodeSelf         reason.Code = "peer-self"          // a peer that says it is us
	CodeReplaced     reason.Code = "peer-replaced"      // a newer connection of the same baseboard
	CodeStale        reason.Code = "peer-stale-message" // a message of a replaced connection was dropped
	CodeInactive     reason.Code = "peer-inactive"      // no complete message for too long
	CodeEnded        reason.Code = "peer-ended"         // the peer closed, or the network did
	CodeWrite        reason.Code = "peer-write"         // a frame could not be written in time
	CodeQueueFull    reason.Code = "peer-queue-full"    // the peer does not take what we send
	CodeNotConnected reason.Code = "peer-not-connected" // Send without a connection
	CodeCapability   reason.Code = "peer-capability"    // a message of ours to or from a peer that did not announce it
	CodeRefused      reason.Code = "peer-refused-us"    // the peer refused our fresh evidence
	CodeUnanswered   reason.Code = "peer-evidence-unanswered"
	CodeUnexpected   reason.Code = "peer-unexpected"   // a message that has no place now
	CodeRemoved      reason.Code = "peer-removed"      // the address was taken out of the set
	CodeStopped      reason.Code = "peer-stopped"      // the manager is ending
	CodeRemovedSled  reason.Code = "peer-removed-sled" // a message to a sled that was removed from the rack
	CodeAddresses    reason.Code = "peer-addresses"    // too many addresses given
	CodeFresh        reason.Code = "peer-evidence"     // we could not make fresh evidence
)

const (
	hintConfig      = "this is a fault in sledvaultd, please report it"
	hintListen      = "check the listen address in the sled's configuration and that nothing else uses the port"
	hintConnect     = "check that the peer runs and that the bootstrap network reaches it"
	hintHandshake   = "look at the peer's status: it says why it refused"
	hintTimeout     = "the peer is reachable but mute: look at its status and its TPM"
	hintSelf        = "two sleds claim one identity: find the other one by its address"
	hintInactive    = "look at the peer's status and at the network between"
	hintCapability  = "the peer runs an older version: update it"
	hintRefused     = "look at the peer's status: it says what it did not accept"
	hintRemovedSled = "nothing to do: removed sleds get no messages"
	hintWire        = "the peer sent what it should not: compare versions, then look at the peer"
)
