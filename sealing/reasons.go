package sealing

import (
	"github.com/sledvault/sledvault/vault/reason"
)

// The codes of this package's errors; those of package tpm pass through.
const (
	CodeUsage    reason.Code = "seal-usage"      // the caller asked for something that can never work
	CodeBlob     reason.Code = "seal-blob"       // the blob is malformed, of an unknown version, or not for this sled
	CodeApproval reason.Code = "seal-approval"   // no approval fits: malformed, forged or outlived by the counter
	CodePCR      reason.Code = "seal-pcr"        // the platform state is not an approved one
	CodeUnmeas   reason.Code = "seal-unmeasured" // a PCR holds no measurement: the firmware measures nothing
	CodeAuth     reason.Code = "seal-auth"       // the auth value's file is missing or unusable
	CodeUnseal   reason.Code = "seal-unseal"     // the TPM refused to unseal, or somebody on the bus said so
	CodeSeed     reason.Code = "seal-seed"       // something was unsealed that is not this sled's secret
	CodeCounter  reason.Code = "seal-counter"    // the counter is not the pinned one or not there
	CodeClaim    reason.Code = "seal-claim"      // the claim index holds something unknown
	CodeOrder    reason.Code = "seal-order"      // a step of the enrolment out of order
)

// Values to compare with errors.Is; matching goes by code alone.
var (
	ErrPCR        = reason.New(CodePCR, "", "sealing: platform state not approved")
	ErrApproval   = reason.New(CodeApproval, "", "sealing: no approval")
	ErrUnmeasured = reason.New(CodeUnmeas, "", "sealing: platform not measured")
	ErrSeed       = reason.New(CodeSeed, "", "sealing: wrong secret")
	ErrBlob       = reason.New(CodeBlob, "", "sealing: blob")
	ErrAuth       = reason.New(CodeAuth, "", "sealing: auth value")
)

const (
	hintBlob     = "the blob is damaged or was taken from another sled: the other copy may be good; otherwise re-enrol the sled"
	hintPCR      = "firmware, boot loader or kernel changed without being approved first: boot the old version, approve the new one (`sledvault seal predict`, `sledvault seal authorize`) and reboot; or re-enrol the sled"
	hintApproval = "the approvals are older than the TPM's counter: an old copy was restored; the other copy may be good, otherwise re-enrol the sled"
	hintUnmeas   = "switch on measured boot and the SHA-256 bank in the firmware's settings; a sled that is not measured is not sealed"
	hintAuth     = "the file seal.auth must lie in both state folders, owned by the daemon's user, mode 0600: restore it from the other folder, or re-enrol the sled"
	hintUnseal   = "an error code of the TPM proves nothing: retry after a reboot; if it stays, re-enrol the sled"
	hintSeed     = "the blob on this medium was not made by this sled's enrolment: somebody wrote it; check who has access, then re-enrol the sled"
	hintClaim    = "the index belongs to another program or to a newer release: choose another index, or remove it with `sledvault seal reset`"
)
