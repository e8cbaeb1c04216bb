// Package cli holds what the command lines share: exit codes, the form of errors, JSON output.
//
// Results go to stdout, everything else to stderr. Errors are "PROGRAM: error: TEXT" and, where there is a next step,
// "PROGRAM: hint: STEP": lower case, no full stop. With --json an error is one JSON object on stderr instead, in the form
// that the APIs use (local-api.md §3).
package cli

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/sledvault/sledvault/vault/reason"
)

// Exit codes.
const (
	Done   = 0 // it is done
	Failed = 1 // an operator must act
	Usage  = 2 // the command can never work like this
	NotYet = 3 // try again later
)

// CodeUsage marks a command line that cannot be understood.
const CodeUsage reason.Code = "usage"

// UsageError makes an error that leads to exit code 2.
func UsageError(format string, args ...any) error {
	return &reason.Error{Code: CodeUsage, Text: fmt.Sprintf(format, args...), Hint: "see --help", Remedy: reason.Usage}
}

// ExitCode is the exit code of an error.
func ExitCode(err error) int {
	if err == nil {
		return Done
	}
	switch reason.RemedyOf(err) {
	case reason.Retry:
		return NotYet
	case reason.Usage:
		return Usage
	case reason.Operator:
	}
	return Failed
}

// Fail prints an error with its hint and returns its exit code.
func Fail(w io.Writer, program string, err error) int {
	_, _ = fmt.Fprintf(w, "%s: error: %v\n", program, err)
	if hint := reason.HintOf(err); hint != "" {
		_, _ = fmt.Fprintf(w, "%s: hint: %s\n", program, hint)
	}
	return ExitCode(err)
}

// errorJSON is the form of an error that crosses the APIs.
type errorJSON struct {
	Code  reason.Code `json:"code"`
	Text  string      `json:"error"`
	Hint  string      `json:"hint,omitempty"`
	Retry bool        `json:"retry"`
}

// FailJSON prints an error as one JSON object and returns its exit code.
func FailJSON(w io.Writer, err error) int {
	e := errorJSON{Code: reason.CodeOf(err), Text: err.Error(), Hint: reason.HintOf(err), Retry: reason.RemedyOf(err) == reason.Retry}
	if e.Code == "" {
		e.Code = "internal"
	}
	_ = JSON(w, e)
	return ExitCode(err)
}

// JSON prints a value on one line.
func JSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}
