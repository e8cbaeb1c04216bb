package tpm

import (
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/sledvault/sledvault/vault/reason"
)

// The codes of this package's errors.
const (
	CodeOpen    reason.Code = "tpm-open"           // the device cannot be opened
	CodeBusy    reason.Code = "tpm-busy"           // the TPM kept asking for a retry
	CodeTimeout reason.Code = "tpm-timeout"        // no answer within the command's deadline
	CodeClosed  reason.Code = "tpm-closed"         // used after Close, or outside Do
	CodeBroken  reason.Code = "tpm-broken"         // the connection is gone; the next call opens it anew
	CodeAnswer  reason.Code = "tpm-answer"         // malformed answer, or one that fails its authentication
	CodePinned  reason.Code = "tpm-pinned-name"    // the answering TPM is not the pinned one
	CodeRC      reason.Code = "tpm-rc"             // the TPM (or somebody on the bus) answered with an error code
	CodeExists  reason.Code = "tpm-index-exists"   // the NV index is taken
	CodeHandles reason.Code = "tpm-handles-taken"  // the persistent handles of a key hold others
	CodeAbsent  reason.Code = "tpm-index-absent"   // the NV index is not there
	CodeEmpty   reason.Code = "tpm-index-empty"    // the NV index was defined and never written
	CodeMoved   reason.Code = "tpm-counter-moved"  // the counter has not the value the caller expected
	CodeBank    reason.Code = "tpm-pcr-bank"       // the SHA-256 bank lacks a PCR
	CodeUsage   reason.Code = "tpm-usage"          // the caller asked for something that can never work
	CodeReset   reason.Code = "tpm-not-started-up" // the TPM waits for TPM2_Startup
)

// Values to compare with errors.Is; matching goes by code alone.
var (
	ErrPinned  = reason.New(CodePinned, "", "tpm: name differs from the pinned one")
	ErrExists  = reason.New(CodeExists, "", "tpm: index exists")
	ErrAbsent  = reason.New(CodeAbsent, "", "tpm: index absent")
	ErrEmpty   = reason.New(CodeEmpty, "", "tpm: index empty")
	ErrMoved   = reason.New(CodeMoved, "", "tpm: counter moved")
	ErrAnswer  = reason.New(CodeAnswer, "", "tpm: answer refused")
	ErrRC      = reason.New(CodeRC, "", "tpm: error code")
	ErrTimeout = reason.Later(CodeTimeout, "", "tpm: no answer in time")
	ErrBusy    = reason.Later(CodeBusy, "", "tpm: busy")
)

// Hints, shared by several errors.
const (
	hintPinned = "this is not the TPM that was enrolled, or something sits between it and the host: check the hardware, then re-enrol the sled"
	hintAnswer = "the answer was altered on its way or the TPM is faulty: check the hardware before trusting this sled"
	hintRC     = "error codes of a TPM are not authenticated: retry, then look at `sledvault tpm`"
	hintHung   = "the TPM does not answer: with a software TPM another program may hold its socket; otherwise power-cycle the sled, and if it stays so, the TPM is faulty"
	hintBroken = "the next call connects again; with a software TPM, see whether swtpm is running"
)

// fail turns what go-tpm returned for one command into a coded error.
func fail(op string, err error) error {
	if err == nil {
		return nil
	}
	if reason.CodeOf(err) != "" {
		return fmt.Errorf("tpm: %s: %w", op, err)
	}
	if rc, ok := errors.AsType[tpm2.TPMRC](err); ok {
		return failRC(op, rc)
	}
	return reason.Wrap(err, CodeAnswer, hintAnswer, "tpm: %s: answer refused", op)
}

func failRC(op string, rc tpm2.TPMRC) error {
	if errors.Is(rc, tpm2.TPMRCInitialize) {
		return reason.Wrap(rc, CodeReset, "the TPM was reset while the host ran: reboot the sled", "tpm: %s: TPM not started up", op)
	}
	return reason.Wrap(rc, CodeRC, hintRC, "tpm: %s: response code 0x%03x", op, uint32(rc))
}

// usage refuses a call that cannot work.
func usage(format string, args ...any) error {
	e := reason.New(CodeUsage, "", "tpm: "+format, args...)
	e.Remedy = reason.Usage
	return e
}
