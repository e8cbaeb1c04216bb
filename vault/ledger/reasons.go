package ledger

import (
	"errors"
	"fmt"
	"strings"

	"github.com/sledvault/sledvault/vault/reason"
)

// The codes of this package's errors and alarms.
const (
	CodeAbsent    reason.Code = "ledger-absent"    // both folders are there and hold no ledger: this may be a new sled
	CodeLostSeal  reason.Code = "lost-seal"        // there was a ledger, and none of its copies can be used
	CodeDamaged   reason.Code = "ledger-damaged"   // one copy cannot be used
	CodeDegraded  reason.Code = "ledger-degraded"  // one medium could not be written
	CodeSave      reason.Code = "ledger-save"      // nothing was saved, or nobody knows what was: the caller must stop
	CodeStopped   reason.Code = "ledger-stopped"   // used after a failed save
	CodeExists    reason.Code = "ledger-exists"    // a ledger is in the way of a new one
	CodeFolder    reason.Code = "ledger-folder"    // a state folder cannot be used
	CodeRepaired  reason.Code = "ledger-repaired"  // a copy was written anew from the other
	CodeObserved  reason.Code = "ledger-observed"  // the file of observations is damaged; it starts empty
	CodeNetwork   reason.Code = "ledger-network"   // the file of the network configuration is damaged, or cannot be written
	CodeEnrolment reason.Code = "ledger-enrolment" // the enrolment set cannot be read or written
)

// Values to compare with errors.Is; matching goes by code alone.
var (
	ErrAbsent   = reason.New(CodeAbsent, "", "ledger: absent")
	ErrLostSeal = reason.New(CodeLostSeal, "", "ledger: lost seal")
	ErrSave     = reason.New(CodeSave, "", "ledger: not saved")
	ErrExists   = reason.New(CodeExists, "", "ledger: exists")
)

const (
	hintLost   = "the sled keeps its old files and waits: re-enrol it from the controller (`sledvault rack enroll`); the other sleds give it a new share"
	hintMedium = "a state folder is missing: mount its medium and start again; only if it is gone for good, re-enrol the sled"
	hintSave   = "the daemon stops so that nothing is sent that is not stored; check both media and the TPM, then start it again"
	hintExists = "a ledger is never overwritten: re-enrol the sled, which moves the old files aside"
	hintClaim  = "claim the sled from the controller, unless the TPM's claim index says that it belongs to a rack already"
	hintFolder = "both state folders must exist on different media, belong to the daemon's user and be writable by nobody else"
)

var (
	errLocked  = errors.New("in use by another process")
	errStopped = reason.New(CodeStopped, hintSave, "ledger: a save failed earlier; nothing more is saved")
)

// abortError carries what a step hook returned: the process is meant to stop right here.
type abortError struct{ cause error }

func (e *abortError) Error() string { return "ledger: aborted: " + e.cause.Error() }
func (e *abortError) Unwrap() error { return e.cause }

func aborted(err error) bool {
	_, ok := errors.AsType[*abortError](err)
	return ok
}

// LostSealError says why no copy could be used. It is the cause of an error with code lost-seal.
type LostSealError struct {
	Copies  [2]CopyReport
	Counter uint64 // the TPM's counter, 0 if it was never read
}

func (e *LostSealError) Error() string {
	var b strings.Builder
	for i, c := range e.Copies {
		if i > 0 {
			b.WriteString("; ")
		}
		fmt.Fprintf(&b, "copy %s %s", copyName(i), c.State)
		if c.Reason != "" {
			fmt.Fprintf(&b, " (%s)", c.Reason)
		}
	}
	return b.String()
}

// failed turns the reports of two useless copies into the error of a start.
func failed(copies [2]CopyReport, counter uint64) error {
	if copies[0].State == CopyAbsent && copies[1].State == CopyAbsent {
		return reason.New(CodeAbsent, hintClaim, "ledger: both folders are empty")
	}
	hint := hintLost
	if copies[0].State == CopyNoMedium || copies[1].State == CopyNoMedium {
		hint = hintMedium
	}
	return reason.Wrap(&LostSealError{copies, counter}, CodeLostSeal, hint, "ledger: no usable copy")
}

func copyName(i int) string { return [...]string{"A", "B"}[i&1] }
