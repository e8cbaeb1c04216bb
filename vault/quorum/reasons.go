package quorum

import (
	"fmt"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/reason"
)

// Codes of refused requests: the error sets of protocol.md §8, in the order in which they are checked there.
const (
	CodeConfig                  reason.Code = "quorum-config"                     // the node was made or called wrongly
	CodeState                   reason.Code = "quorum-state"                      // the stored state breaks a rule; never adopted
	CodeDuplicateRequest        reason.Code = "quorum-duplicate-request"          // a request with this id is still waiting
	CodeBusy                    reason.Code = "quorum-busy"                       // too many requests are waiting
	CodeInvalidMembers          reason.Code = "quorum-invalid-members"            // a member twice, or an unusable identity
	CodeGrantMissing            reason.Code = "quorum-grant-missing"              // no grant by the operator
	CodeGrantMismatch           reason.Code = "quorum-grant-mismatch"             // the grant is for something else
	CodeGrantInvalid            reason.Code = "quorum-grant-invalid"              // the grant's signature does not verify
	CodeUpgradeRunning          reason.Code = "quorum-lrtq-upgrade-running"       // the upgrade from the older scheme is being coordinated
	CodeUpgradeRequired         reason.Code = "quorum-lrtq-upgrade-required"      // the rack still lives by the older scheme
	CodeNoLRTQShare             reason.Code = "quorum-no-lrtq-share"              // this sled has no share of the older scheme
	CodeAlreadyUpgraded         reason.Code = "quorum-lrtq-already-upgraded"      // an epoch is committed; the older scheme is over
	CodeCoordinatorNotMember    reason.Code = "quorum-coordinator-not-member"     // the coordinator must be in the new group
	CodeThresholdMismatch       reason.Code = "quorum-threshold-mismatch"         // threshold not below the number of members
	CodeInvalidMembershipSize   reason.Code = "quorum-invalid-membership-size"    // fewer than 3 or more than 32 members
	CodeInvalidThreshold        reason.Code = "quorum-invalid-threshold"          // below 2 or above 31
	CodeInvalidEpoch            reason.Code = "quorum-invalid-epoch"              // epoch 0, or epoch 1 for an upgrade from the older scheme
	CodeInvalidRackID           reason.Code = "quorum-invalid-rack-id"            // belongs to another rack
	CodeExpunged                reason.Code = "quorum-expunged"                   // this sled is no longer a member
	CodeLastCommittedMismatch   reason.Code = "quorum-last-committed-mismatch"    // caller and node disagree on the last commit
	CodePreparedEpochMismatch   reason.Code = "quorum-prepared-epoch-mismatch"    // a configuration of this or a later epoch exists
	CodeReconfigurationRunning  reason.Code = "quorum-reconfiguration-running"    // coordinating a later epoch
	CodeReconfigurationConflict reason.Code = "quorum-reconfiguration-conflict"   // coordinating this epoch with other content
	CodeConfigurationFailed     reason.Code = "quorum-configuration-failed"       // splitting the new secret failed
	CodeNotPrepared             reason.Code = "quorum-not-prepared"               // configuration or share of the epoch missing
	CodeCertificateMissing      reason.Code = "quorum-certificate-missing"        // no commit certificate by the operator
	CodeCertificateInvalid      reason.Code = "quorum-certificate-invalid"        // it does not verify for this configuration
	CodeInvalidConfiguration    reason.Code = "quorum-invalid-configuration"      // a configuration that cannot be
	CodeOldSecretsMissing       reason.Code = "quorum-old-secrets-missing"        // a configuration without the older rack secrets
	CodeNoCommitted             reason.Code = "quorum-no-committed-configuration" // nothing was ever committed here
	CodeNotCommitted            reason.Code = "quorum-not-committed"              // the epoch is later than the latest committed
	CodeNotAvailable            reason.Code = "quorum-secret-not-available"       // the epoch was never committed, or its secret was dropped
	CodeSecretDamaged           reason.Code = "quorum-secret-damaged"             // shares or older secrets do not fit together
	CodeCleared                 reason.Code = "quorum-secrets-cleared"            // secrets were cleared while a caller waited
	CodeSharesDisagree          reason.Code = "quorum-shares-disagree"            // the shares of an epoch do not lie on one polynomial
	CodeOutdated                reason.Code = "quorum-epoch-outdated"             // a newer epoch is committed than the one asked about
)

// Codes of notes about messages that were not acted on. Those of requests above are used too.
const (
	CodePeerRefused          reason.Code = "quorum-peer-refused"           // own identity, or too many peers
	CodeNotConnected         reason.Code = "quorum-not-connected"          // a message of a peer without a connection
	CodeMalformed            reason.Code = "quorum-malformed"              // a message without its content
	CodeStale                reason.Code = "quorum-stale"                  // about an epoch that is over
	CodeNotMember            reason.Code = "quorum-not-member"             // a configuration without this sled, or without the peer
	CodeUnexpected           reason.Code = "quorum-unexpected"             // an answer that nobody waits for
	CodeShareNotNeeded       reason.Code = "quorum-share-not-needed"       // a share after the last one that was needed
	CodeNotCoordinator       reason.Code = "quorum-not-coordinator"        // a Prepare by someone else than its coordinator
	CodeShareInvalid         reason.Code = "quorum-share-invalid"          // number or digest do not fit the configuration
	CodeShareOdd             reason.Code = "quorum-share-odd"              // a share fits its digest and not the others; the secret was rebuilt without it
	CodeConfigConflict       reason.Code = "quorum-configuration-conflict" // another configuration of the same epoch is stored
	CodeGrantStale           reason.Code = "quorum-grant-stale"            // granted on an older commit than the node knows
	CodeProofMissing         reason.Code = "quorum-proof-missing"          // an Expunged that nothing proves
	CodeNoSuchShare          reason.Code = "quorum-no-such-share"          // the peer, or this node, has no share of the epoch
	CodePeerWithoutAuthority reason.Code = "quorum-peer-without-authority" // the peer cannot be given a grant or a proof
	CodeAlarmsFull           reason.Code = "quorum-alarms-full"            // an alarm was not kept
)

// Codes of notes about transitions.
const (
	CodeCoordinating      reason.Code = "quorum-coordinating"       // a coordination began
	CodePreparing         reason.Code = "quorum-preparing"          // the new configuration is complete and goes to its members
	CodeAcked             reason.Code = "quorum-acked"              // a member has prepared
	CodeCoordinationEnded reason.Code = "quorum-coordination-ended" // the text says why
	CodePrepared          reason.Code = "quorum-prepared"           // configuration and share stored
	CodeCommitted         reason.Code = "quorum-committed"          // epoch committed
	CodeComputing         reason.Code = "quorum-computing-share"    // collecting shares to compute an own one
	CodeComputingEnded    reason.Code = "quorum-computing-ended"    // the text says why
	CodeCollecting        reason.Code = "quorum-collecting"         // collecting shares for a rack secret
	CodeLoaded            reason.Code = "quorum-secret-loaded"      // a rack secret is in memory
	CodeExpungedNow       reason.Code = "quorum-expunged-now"       // this sled has just left the rack
	CodeComparing         reason.Code = "quorum-comparing-shares"   // collecting one share more than the threshold
	CodeSharesAgree       reason.Code = "quorum-shares-agree"       // they lie on one polynomial
)

// Alarm kinds of the reference.
const (
	AlarmMismatchedConfigurations AlarmKind = "mismatched_configurations"
	AlarmShareComputationFailed   AlarmKind = "share_computation_failed"
	AlarmDecryptionFailed         AlarmKind = "rack_secret_decryption_failed"
	AlarmReconstructionFailed     AlarmKind = "rack_secret_reconstruction_failed"
)

// Alarm kinds of our own.
const (
	AlarmForgedPrepare      AlarmKind = "forged_prepare"      // wrong sender, share, rack or configuration
	AlarmConflictingPrepare AlarmKind = "conflicting_prepare" // a second configuration for one epoch
	AlarmUngrantedPrepare   AlarmKind = "ungranted_prepare"   // no valid grant for it
	AlarmUncertifiedCommit  AlarmKind = "uncertified_commit"  // no valid certificate for it
	AlarmUnprovedExpunge    AlarmKind = "unproved_expunge"    // no valid proof for it
	AlarmInvalidShare       AlarmKind = "invalid_share"       // a share that does not fit its digest
	AlarmUngrantedRequest   AlarmKind = "ungranted_request"   // asks for a share of the older scheme without a valid grant
	AlarmCoordinationFailed AlarmKind = "coordination_failed" // the older secrets cannot be carried over
	AlarmMixedPolynomial    AlarmKind = "mixed_polynomial"    // shares that fit their digests do not fit each other
)

const (
	hintRack     = "compare the rack ids in `sledvault status` of this sled and of the controller"
	hintUpgrade  = "the rack must be upgraded from the older scheme first"
	hintGrant    = "send the request through the controller that owns this rack's membership key"
	hintDisagree = "remove the named coordinator from the rack and rotate again: sledvault rack remove; disks keep their old keys until then"
	hintExpunged = "reset this sled's state and enrol it again if it should come back"
)

func errExpunged(x *Expunged) error {
	return reason.New(CodeExpunged, hintExpunged, "quorum: expunged at epoch %d, told by %s", x.Epoch, x.From)
}

func errRack(want, have ident.RackID) error {
	return reason.New(CodeInvalidRackID, hintRack, "quorum: rack id: have %s, want %s", have, want)
}

func epochText(e ident.Epoch) string {
	if e == 0 {
		return "none"
	}
	return fmt.Sprint(uint64(e))
}

// Class says how loud a note is.
type Class uint8

// The classes of notes.
const (
	Refusal    Class = iota // a peer did what it should not; worth a warning
	Routine                 // late or stale, as happens between honest peers; worth counting only
	Transition              // the node's own progress; worth one line
)

// ClassOf gives the class of a note's code.
func ClassOf(c reason.Code) Class {
	switch c {
	case CodeCoordinating, CodePreparing, CodeAcked, CodeCoordinationEnded, CodePrepared, CodeCommitted, CodeComputing,
		CodeComputingEnded, CodeCollecting, CodeLoaded, CodeExpungedNow, CodeComparing, CodeSharesAgree:
		return Transition
	case CodeStale, CodeUnexpected, CodeShareNotNeeded, CodeNoSuchShare, CodeNoLRTQShare, CodeExpunged:
		return Routine
	}
	return Refusal
}
