package quorumtest

import (
	"fmt"

	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/reason"
)

// FullRun is how many actions a run needs before [Table.Holes] can be expected to find none.
const FullRun = 3_000_000

// minDelivered is the least share of actions that deliver a message, in percent.
const minDelivered = 30

// mustAlarm lists the alarms that a full run meets. Not among them, because no message can cause it while shares are
// checked before they are combined: rack_secret_reconstruction_failed.
func mustAlarm() []quorum.AlarmKind {
	return []quorum.AlarmKind{
		quorum.AlarmForgedPrepare, quorum.AlarmConflictingPrepare, quorum.AlarmUngrantedPrepare, quorum.AlarmUncertifiedCommit,
		quorum.AlarmUnprovedExpunge, quorum.AlarmInvalidShare, quorum.AlarmMismatchedConfigurations, quorum.AlarmShareComputationFailed,
		quorum.AlarmDecryptionFailed, quorum.AlarmCoordinationFailed, quorum.AlarmMixedPolynomial, quorum.AlarmUngrantedRequest,
	}
}

// mustSee lists reasons that a full run meets; the reference's test never meets most of them.
func mustSee() []reason.Code {
	return []reason.Code{
		quorum.CodeNotAvailable, quorum.CodeInvalidRackID, quorum.CodeShareInvalid, quorum.CodeNoCommitted, quorum.CodeNotCommitted,
		quorum.CodeExpunged, quorum.CodeNotPrepared, quorum.CodeLastCommittedMismatch, quorum.CodePreparedEpochMismatch,
		quorum.CodeConfigConflict, quorum.CodeStale, quorum.CodeNotMember, quorum.CodeNotCoordinator, quorum.CodeGrantMissing,
		quorum.CodeGrantInvalid, quorum.CodeGrantMismatch, quorum.CodeCertificateInvalid, quorum.CodeProofMissing,
		quorum.CodeInvalidConfiguration, quorum.CodeMalformed, quorum.CodeNoSuchShare, quorum.CodeShareNotNeeded, quorum.CodeUnexpected,
		quorum.CodeOutdated, quorum.CodeCleared, quorum.CodeSharesAgree, quorum.CodeSharesDisagree, quorum.CodeSecretDamaged,
		quorum.CodeNoLRTQShare, quorum.CodeUpgradeRequired,
	}
}

// Holes lists what a full run has missed: faults that were not injected, invariants that were not checked under a fault,
// too few deliveries, and reasons and alarms that did not occur. A table with holes proves less than it shows.
func (t *Table) Holes() (out []string) {
	hole := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	for f := range faults {
		if t.faults[f] == 0 {
			hole("%s was never injected", f)
			continue
		}
		for i := range invariants {
			if t.count[f][i] == 0 {
				hole("%s was never checked under %s", i, f)
			}
		}
	}
	if t.delivered*100 < t.actions*minDelivered {
		hole("%d of %d actions delivered a message, want at least %d %%", t.delivered, t.actions, minDelivered)
	}
	t.often(hole)
	for _, a := range mustAlarm() {
		if t.alarms[a] == 0 {
			hole("no alarm %s", a)
		}
	}
	for _, c := range mustSee() {
		if t.codes[c] == 0 {
			hole("nothing was noted or refused with %s", c)
		}
	}
	for _, k := range messageKinds() {
		if t.kinds[k] == 0 {
			hole("no message %s", k)
		}
	}
	for _, m := range []string{"racks of the older scheme", "upgrades decided", "upgrades aborted", "changes decided", "changes aborted", "prunes decided"} {
		if t.met[m] == 0 {
			hole("no %s", m)
		}
	}
	for _, l := range allLies() {
		if t.lies[l] == 0 {
			hole("nobody lied about %s", l)
		}
	}
	return out
}

// often checks what the reference's test never meets in 17 million actions: here it must not be rare.
func (t *Table) often(hole func(string, ...any)) {
	alarms := uint64(0)
	for _, n := range t.alarms {
		alarms += n
	}
	for _, c := range []struct {
		what string
		n    uint64
	}{
		{"alarms", alarms},
		{"secrets that are not available", t.codes[quorum.CodeNotAvailable]},
		{"wrong rack ids", t.codes[quorum.CodeInvalidRackID]},
		{"invalid shares", t.codes[quorum.CodeShareInvalid]},
		{"lost messages", t.faults[FaultLoss]},
		{"duplicated messages", t.faults[FaultDuplicate]},
	} {
		if want := t.actions / 3000; c.n < want {
			hole("%s: have %d, want at least %d", c.what, c.n, want)
		}
	}
}

func messageKinds() []quorum.Kind {
	return []quorum.Kind{
		quorum.KindPrepare, quorum.KindPrepareAck, quorum.KindGetShare, quorum.KindShare, quorum.KindGetLRTQShare, quorum.KindLRTQShare,
		quorum.KindExpunged, quorum.KindCommitAdvance, quorum.KindGrant, quorum.KindCommitProof, quorum.KindNoSuchShare,
	}
}
