package sp

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sledvault/sledvault/sp/frame"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/reason"
)

// The ways in which the service processor can fail us (sp-wire.md §8).
const (
	CodeNoPort      reason.Code = "sp-no-port"     // the device cannot be opened
	CodePortBusy    reason.Code = "sp-port-busy"   // another process has the line
	CodeSilent      reason.Code = "sp-silent"      // no reply, and nothing broken either
	CodeGarbage     reason.Code = "sp-garbage"     // bytes, but no usable packet
	CodeStuck       reason.Code = "sp-stuck"       // the line takes no bytes
	CodeUnsupported reason.Code = "sp-unsupported" // the firmware does not know the request
	CodeVersion     reason.Code = "sp-version"     // the firmware speaks another version
	CodeRestarted   reason.Code = "sp-restarted"   // the firmware's task keeps restarting
	CodeNoIdentity  reason.Code = "sp-no-identity" // empty or unusable identity
	CodeShortReply  reason.Code = "sp-short-reply"
	CodeLongReply   reason.Code = "sp-long-reply"
	CodeLineLost    reason.Code = "sp-line-lost" // hung up, unplugged or closed
)

// retriable says which errors the client itself tries to outlast.
func retriable(err error) bool {
	switch reason.CodeOf(err) {
	case CodeSilent, CodeGarbage, CodeStuck, CodeRestarted, CodeLineLost, CodeNoPort, CodePortBusy:
		return true
	}
	return false
}

func errNoPort(path string, err error) error {
	return reason.Wrap(err, CodeNoPort, "check the sp port in the config; `sledvault doctor` lists serial devices and permissions", "sp: open %.200q", path)
}

func errPortBusy(path string) error {
	return reason.Later(CodePortBusy, "find who holds it with `fuser -v "+path+"`; only one sledvaultd may use the line", "sp: open %.200q: another process holds the line", path)
}

func errClosed() error {
	return reason.New(CodeLineLost, "", "sp: client is closed")
}

func errLost(cause error) error {
	e := reason.Later(CodeLineLost, "check the cable and the service processor's power; the line is reopened by itself", "sp: line lost")
	e.Cause = cause
	return e
}

func errTurn(ctx context.Context) error {
	e := reason.Later(CodeSilent, "another call to the service processor is still running; try again", "sp: wait for the line")
	e.Cause = ctx.Err()
	return e
}

func errStuck(c frame.Command, after time.Duration) error {
	return reason.Later(CodeStuck, "the other end does not accept bytes: check CTS and the service processor's power", "sp: %v: write blocked for %v", c, after)
}

func errUnsupported(c frame.Command) error {
	return reason.New(CodeUnsupported, "update the service processor's firmware", "sp: %v: the firmware does not know this request", c)
}

func errVersion(c frame.Command, have uint32) error {
	if have == 0 {
		return reason.New(CodeVersion, "use firmware that speaks version 1", "sp: %v: the firmware refuses header version %d", c, frame.Version)
	}
	return reason.New(CodeVersion, "use firmware that speaks version 1", "sp: %v: header version: have %d, want %d", c, have, frame.Version)
}

func errRestarted() error {
	return reason.Later(CodeRestarted, "the service processor's task restarts again and again; look at its log", "sp: restart still flagged after %d acknowledgements", statusRounds)
}

func errPong(r frame.KeyResult) error {
	return reason.New(CodeUnsupported, "is this line connected to a service processor?", "sp: ping: wrong answer, result %v", r)
}

// errLength names a reply of the wrong length as short or long.
func errLength(c frame.Command, err error) error {
	code, hint := CodeShortReply, "the firmware is older than this software expects; update it"
	if l, ok := errors.AsType[*frame.LengthError](err); ok && l.Have > l.Want {
		code, hint = CodeLongReply, "the firmware is newer than this software expects; update sledvault"
	}
	return reason.Wrap(err, code, hint, "sp: %v", c)
}

func errEmptyIdentity(b ident.Baseboard) error {
	return reason.New(CodeNoIdentity, "the service processor could not read its identity EEPROM; restart it, then look at its log", "sp: identity is not set: model %q, serial %q", b.Part, b.Serial)
}

func errIdentityText(err error) error {
	return reason.Wrap(err, CodeNoIdentity, "the identity EEPROM holds text that cannot be a name; have it reprogrammed", "sp: identity is unusable")
}

// errNoReply explains a transaction without a reply by what was seen meanwhile.
func errNoReply(ctx context.Context, c frame.Command, attempts int, seen Stats) error {
	sum := fmt.Sprintf("%d sends, %d zeros, %d frames, %d broken", attempts, seen.Zeros, seen.Frames, seen.FramingErrors)
	var e *reason.Error
	switch {
	case seen.DecodeFailures > 0:
		e = reason.Later(CodeGarbage, "our bytes arrive broken: check rate, flow control and noise", "sp: %v: the service processor could not read us (%s)", c, sum)
	case seen.FramingErrors > 0 || seen.WrongReplies > 0:
		e = reason.Later(CodeGarbage, "check the baud rate of the line, then its cable", "sp: %v: bytes, but no valid reply (%s)", c, sum)
	case seen.BytesIn == 0:
		e = reason.Later(CodeSilent, "check wiring, rate and that the service processor is powered", "sp: %v: no byte received (%s)", c, sum)
	case seen.Frames == 0 && seen.Zeros < seen.BytesIn:
		e = reason.Later(CodeGarbage, "check the baud rate of the line, then its cable", "sp: %v: bytes, but no end of a packet (%s)", c, sum)
	case seen.Frames == 0:
		e = reason.Later(CodeSilent, "the service processor is alive but does not answer: check our transmit wire", "sp: %v: only idle zeros received (%s)", c, sum)
	default:
		e = reason.Later(CodeSilent, "the service processor answers other requests only; it may be busy or slow", "sp: %v: no reply to this request (%s)", c, sum)
	}
	if errors.Is(ctx.Err(), context.Canceled) {
		e.Cause = context.Canceled
	}
	return e
}
