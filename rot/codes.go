package rot

import "github.com/sledvault/sledvault/vault/reason"

// The reason codes of evidence, in the order of the checks (evidence.md §6). A code keeps its meaning for ever.
const (
	CodeMalformed     reason.Code = "evidence-malformed"
	CodeKind          reason.Code = "evidence-kind"
	CodeBaseboard     reason.Code = "evidence-baseboard"
	CodeAK            reason.Code = "evidence-ak"
	CodeSignature     reason.Code = "evidence-signature"
	CodeAttestType    reason.Code = "evidence-attest-type"
	CodePath          reason.Code = "evidence-path"
	CodeBinding       reason.Code = "evidence-binding"
	CodePCRSelection  reason.Code = "evidence-pcr-selection"
	CodePCRDigest     reason.Code = "evidence-pcr-digest"
	CodePCRUnextended reason.Code = "evidence-pcr-unextended"
	CodeResetCount    reason.Code = "evidence-reset-count"
	CodeRestartCount  reason.Code = "evidence-restart-count"
	CodeFirmware      reason.Code = "evidence-firmware"
	CodeCounter       reason.Code = "evidence-counter"
	CodeRollback      reason.Code = "evidence-rollback"
	CodeEventLog      reason.Code = "evidence-event-log"
	CodeNoPolicy      reason.Code = "evidence-no-policy"
	CodePCRPolicy     reason.Code = "evidence-pcr-policy"
	CodeManifest      reason.Code = "evidence-manifest"
)

// The reason codes of making evidence on this sled.
const (
	CodeProver       reason.Code = "prover-failed"
	CodeProverBusy   reason.Code = "prover-busy"
	CodeProverClosed reason.Code = "prover-closed"
	CodeNotReady     reason.Code = "prover-not-ready"
)

// hints gives the next step per code. It is a function because packages hold no mutable variables.
func hint(c reason.Code) string {
	switch c {
	case CodeMalformed:
		return "compare the sledvault versions of both sleds; a correct sled never sends this"
	case CodeKind:
		return "the enrolment record names another kind of evidence: enrol the sled again if its hardware changed"
	case CodeBaseboard:
		return "the sled claims another baseboard than its record: check for a swapped board or TPM, then enrol it again"
	case CodeAK, CodeSignature:
		return "the TPM is not the enrolled one: if it was changed on purpose, run: sledvault rack enroll with the new TPM"
	case CodeAttestType, CodePath, CodeBinding:
		return "the evidence was made for another connection: somebody may be relaying or replaying it"
	case CodePCRSelection, CodePCRDigest:
		return "give all sleds of the rack the same PCR selection"
	case CodePCRUnextended:
		return "the firmware does not measure into the SHA-256 bank: enable the bank in the firmware menu and start the sled again"
	case CodeResetCount, CodeRestartCount:
		return "the TPM was reset or the sled slept in an unexpected way: inspect the machine before it is trusted again"
	case CodeFirmware:
		return "update the firmware of the sled's TPM, or lower the allowed minimum in its enrolment record"
	case CodeCounter:
		return "the sled's ledger and its TPM counter disagree: run: sledvault seal status on that sled"
	case CodeRollback:
		return "the sled shows an older ledger than before: an old drive may have been put back; find out, then: sledvault rack enroll --again NAME"
	case CodeEventLog:
		return "the firmware event log does not explain the PCR values: look at the sled's log with: sledvault rot verify"
	case CodeNoPolicy:
		return "the enrolment record pins neither PCR values nor a manifest: enrol the sled again"
	case CodePCRPolicy, CodeManifest:
		return "the sled runs something else than was enrolled: if this is an update, authorise it with: sledvault seal authorize"
	case CodeProver, CodeNotReady, CodeProverBusy:
		return "look at this sled's TPM with: sledvault doctor"
	}
	return ""
}

func refuse(c reason.Code, format string, args ...any) *reason.Error {
	return reason.New(c, hint(c), "rot: "+format, args...)
}

func refuseBecause(cause error, c reason.Code, format string, args ...any) *reason.Error {
	return reason.Wrap(cause, c, hint(c), "rot: "+format, args...)
}
