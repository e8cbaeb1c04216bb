package channel

import (
	"context"
	"errors"
	"io"
	"net"
	"os"

	"github.com/sledvault/sledvault/vault/reason"
)

// The reason codes of the channel. Codes of evidence come from package rot, those of sets from rot/enroll.
const (
	CodeTimeout     reason.Code = "channel-timeout"
	CodeClosed      reason.Code = "channel-closed"
	CodeIO          reason.Code = "channel-io"
	CodeTLS         reason.Code = "channel-tls"
	CodeFrame       reason.Code = "channel-frame"
	CodeVersion     reason.Code = "channel-version"
	CodeSelf        reason.Code = "channel-self"
	CodeConfig      reason.Code = "channel-config"
	CodeRefused     reason.Code = "refused-by-peer"
	CodeUnknownSled reason.Code = "evidence-unknown-sled"
	CodeRelaxation  reason.Code = "evidence-relaxation"
	CodeRemoved     reason.Code = "evidence-removed"
	CodeNoSet       reason.Code = "set-missing"
	CodeSetFork     reason.Code = "set-fork"
	CodeSetRefused  reason.Code = "set-refused"
)

func hint(c reason.Code) string {
	switch c {
	case CodeTimeout:
		return "see in that sled's status which step its boot is in, and whether its TPM answers"
	case CodeClosed, CodeIO:
		return "see that sled's status for the reason; the connection is tried again"
	case CodeTLS, CodeFrame:
		return "check that the address belongs to a sledvault peer port of the same release"
	case CodeVersion:
		return "update the older of the two sleds"
	case CodeSelf:
		return "two machines claim this baseboard: look for a cloned identity, or remove this sled from its own peer list"
	case CodeRefused:
		return "the other sled refuses this one: the code says why; run: sledvault status there"
	case CodeUnknownSled:
		return "enrol the sled first: sledvault rack enroll; if it is enrolled, wait for the set to arrive"
	case CodeRelaxation:
		return "the sleds differ in [relax]: give both the same, or none"
	case CodeRemoved:
		return "nothing to do: the connection is made again under the new record"
	case CodeConfig:
		return "this is a fault of the program: report it with the text"
	case CodeNoSet:
		return "this sled belongs to no rack yet: sledvault rack enroll"
	case CodeSetFork:
		return "two different enrolment sets were signed under one generation: find out who holds the membership key, then sign a newer set"
	case CodeSetRefused:
		return "the newer enrolment set could not be adopted: see the cause"
	}
	return ""
}

func refuse(c reason.Code, format string, args ...any) *reason.Error {
	return reason.New(c, hint(c), "channel: "+format, args...)
}

func refuseBecause(cause error, c reason.Code, format string, args ...any) *reason.Error {
	return reason.Wrap(cause, c, hint(c), "channel: "+format, args...)
}

// Refusal is the cause of an error with [CodeRefused]: the other side judged us and said no.
type Refusal struct {
	By   string      // baseboard, or address if the other side had not shown its evidence yet
	Code reason.Code // as the other side gave it; "" if it gave none that can be read
}

func (r *Refusal) Error() string { return "refused by " + r.By + ": " + string(r.Code) }

func refusedBy(who string, code reason.Code) error {
	e := reason.Wrap(&Refusal{who, code}, CodeRefused, hint(CodeRefused), "channel: evidence")
	e.Remedy = reason.Retry
	return e
}

// ioError names what ended a read or a write. The step says what we waited for, so that a timeout names it too.
func ioError(err error, who, step string) error {
	code := CodeIO
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		code = CodeTimeout
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed), errors.Is(err, io.ErrClosedPipe):
		code = CodeClosed
	}
	e := refuseBecause(err, code, "%s: %s", who, step)
	e.Remedy = reason.Retry
	return e
}
