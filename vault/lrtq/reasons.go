package lrtq

import "github.com/sledvault/sledvault/vault/reason"

// Codes of refused calls.
const (
	CodeConfig             reason.Code = "lrtq-config"              // the node was made or called wrongly
	CodeState              reason.Code = "lrtq-state"               // the stored state breaks a rule; never adopted
	CodeAlreadyInitialized reason.Code = "lrtq-already-initialized" // the sled has a package, or waits for one
	CodeNotInitialized     reason.Code = "lrtq-not-initialized"     // the sled has no package of the older scheme
	CodeStillLearning      reason.Code = "lrtq-still-learning"      // the sled waits for its package
	CodePending            reason.Code = "lrtq-request-pending"     // the same request is still running
	CodeLoadTimeout        reason.Code = "lrtq-load-timeout"        // too few peers gave their share in time
	CodeInitTimeout        reason.Code = "lrtq-init-timeout"        // not all founding members have stored their package
	CodeInitFailed         reason.Code = "lrtq-init-failed"         // founding the rack failed before
	CodeCombineFailed      reason.Code = "lrtq-combine-failed"      // the shares do not give a secret
)

// Codes of notes about messages that were not acted on.
const (
	CodePeerRefused     reason.Code = "lrtq-peer-refused"       // own identity, or too many peers
	CodeNotConnected    reason.Code = "lrtq-not-connected"      // a message of a peer without a connection
	CodeMalformed       reason.Code = "lrtq-malformed"          // a message without its content
	CodeUnexpected      reason.Code = "lrtq-unexpected"         // an answer that nobody waits for
	CodeShareInvalid    reason.Code = "lrtq-share-invalid"      // a share whose digest is not in the package
	CodeShareDuplicate  reason.Code = "lrtq-share-duplicate"    // a share with a number that is there already
	CodeShareNotNeeded  reason.Code = "lrtq-share-not-needed"   // a share after the last one that was needed
	CodePackageInvalid  reason.Code = "lrtq-package-invalid"    // a package that cannot be
	CodePackageDamaged  reason.Code = "lrtq-package-damaged"    // the own spare shares cannot be read
	CodeRefusedByPeer   reason.Code = "lrtq-refused-by-peer"    // the peer answered with an error
	CodeRefusedToPeer   reason.Code = "lrtq-refused-to-peer"    // the peer was answered with an error
	CodeDuplicateID     reason.Code = "lrtq-duplicate-request"  // a peer's request with the id of another that is running
	CodeLearnerGone     reason.Code = "lrtq-learner-gone"       // the learner left before its share was ready
	CodeLearnUnanswered reason.Code = "lrtq-learn-not-answered" // a peer did not answer a learner in time
)

// Codes of notes about transitions.
const (
	CodeInitialized     reason.Code = "lrtq-initialized"       // a founding member stored its package
	CodeInitComplete    reason.Code = "lrtq-init-complete"     // all founding members stored their packages
	CodeLearned         reason.Code = "lrtq-learned"           // a later sled stored its package
	CodeShareGiven      reason.Code = "lrtq-share-given"       // own share handed to a peer
	CodeSpareShareGiven reason.Code = "lrtq-spare-share-given" // a spare share handed to a learner
	CodeLoaded          reason.Code = "lrtq-secret-loaded"     // the scheme's secret is in memory
)

const (
	hintLoad  = "see which sleds of the rack are up; a threshold of them must run and still have their share of the older scheme"
	hintReset = "reset the older scheme's state on every sled named and found the rack again"
)

// Transition reports whether a note's code is progress of the node rather than a refusal.
func Transition(c reason.Code) bool {
	switch c {
	case CodeInitialized, CodeInitComplete, CodeLearned, CodeShareGiven, CodeSpareShareGiven, CodeLoaded:
		return true
	}
	return false
}
