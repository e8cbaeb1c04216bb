// Package reason gives every refusal, drop and failure a stable code, a next step for the operator, and a counter.
//
// A [Code] never changes its meaning once released. An [Error] carries one across package and API borders; a [Log]
// counts them and keeps the last cause per code and peer for status. Nothing in sledvault is only logged.
package reason

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// Code names one kind of refusal, drop or failure: lower-case words joined by hyphens.
type Code string

// Remedy says what the caller should do about an error.
type Remedy uint8

// The remedies, in the order of the exit codes they lead to.
const (
	Operator Remedy = iota // an operator must act; exit code 1
	Retry                  // the same call may succeed later; exit code 3
	Usage                  // the caller asked for something that can never work; exit code 2
)

// String is the remedy's name in JSON.
func (r Remedy) String() string { return [...]string{"operator", "retry", "usage"}[min(int(r), 2)] }

// Error is a refusal that crosses a package or API border.
type Error struct {
	Code   Code
	Text   string // what was refused and why: lower case, no full stop, no secrets
	Hint   string // the next step for the operator; may be empty
	Remedy Remedy
	Cause  error // unwrapped; may be nil
}

// New makes an error that an operator must act on.
func New(code Code, hint, format string, args ...any) *Error {
	return &Error{Code: code, Text: fmt.Sprintf(format, args...), Hint: hint}
}

// Later makes an error that may go away by itself.
func Later(code Code, hint, format string, args ...any) *Error {
	return &Error{Code: code, Text: fmt.Sprintf(format, args...), Hint: hint, Remedy: Retry}
}

// Wrap gives a cause a code and a hint. The cause's text follows the given text.
func Wrap(cause error, code Code, hint, format string, args ...any) *Error {
	return &Error{Code: code, Text: fmt.Sprintf(format, args...), Hint: hint, Cause: cause}
}

func (e *Error) Error() string {
	if e.Cause != nil {
		return e.Text + ": " + e.Cause.Error()
	}
	return e.Text
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Cause }

// Is matches another *Error by code alone.
func (e *Error) Is(target error) bool {
	t, ok := errors.AsType[*Error](target)
	return ok && t.Code == e.Code
}

// CodeOf returns the outermost code of an error, or "" if it has none.
func CodeOf(err error) Code {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	return ""
}

// HintOf returns the outermost hint of an error that is not empty.
func HintOf(err error) string {
	for e, ok := errors.AsType[*Error](err); ok; e, ok = errors.AsType[*Error](e.Cause) {
		if e.Hint != "" {
			return e.Hint
		}
	}
	return ""
}

// RemedyOf returns the outermost remedy of an error; plain errors ask for the operator.
func RemedyOf(err error) Remedy {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Remedy
	}
	return Operator
}

// Entry is one line of a log: how often a code occurred with one peer, and its last cause.
type Entry struct {
	Code  Code   `json:"code"`
	Peer  string `json:"peer,omitempty"` // baseboard, address or caller; "" when none is known
	Count uint64 `json:"count"`
	Last  string `json:"last,omitempty"`
	// LastMS is when it last happened, in milliseconds since the log was made: boot time, never the wall clock.
	LastMS int64 `json:"last_ms"`
	// Routine marks what happens between honest peers, such as a share after the last one that was needed.
	Routine bool `json:"routine,omitempty"`
}

// maxEntries bounds a log. A stranger who varies his address must not be able to fill memory.
const maxEntries = 1024

// overflowPeer collects what no longer fits.
const overflowPeer = "(others)"

type key struct {
	code Code
	peer string
}

// Log counts reasons. It is safe for concurrent use; the zero value is not usable, see [NewLog].
type Log struct {
	mu      sync.Mutex
	start   time.Time
	entries map[key]*Entry
	told    func()
}

// NewLog makes an empty log whose clock starts now.
func NewLog() *Log { return &Log{start: time.Now(), entries: map[key]*Entry{}, told: func() {}} }

// Count records one occurrence. The peer and the cause are cut to a readable length.
func (l *Log) Count(code Code, peer, cause string) { l.count(code, peer, cause, false) }

// CountRoutine records one occurrence of what is dropped every day, see [Entry].Routine.
func (l *Log) CountRoutine(code Code, peer, cause string) { l.count(code, peer, cause, true) }

func (l *Log) count(code Code, peer, cause string, routine bool) {
	defer l.told()
	l.mu.Lock()
	defer l.mu.Unlock()
	k := key{code, clip(peer, 128)}
	e := l.entries[k]
	if e == nil {
		if len(l.entries) >= maxEntries {
			k.peer = overflowPeer
			e = l.entries[k]
		}
		if e == nil {
			e = &Entry{Code: code, Peer: k.peer, Routine: routine}
			l.entries[k] = e
		}
	}
	e.Count++
	e.Routine = e.Routine && routine // once is enough to look at it
	e.Last = clip(cause, 512)
	e.LastMS = time.Since(l.start).Milliseconds()
}

// OnCount has f called after each occurrence, outside of the log's lock. It is set before the log is used.
func (l *Log) OnCount(f func()) { l.told = f }

// CountError records an error under its own code, or under the fallback if it has none.
func (l *Log) CountError(fallback Code, peer string, err error) {
	code := cmp.Or(CodeOf(err), fallback)
	l.Count(code, peer, err.Error())
}

// Entries returns a copy of all entries in the order of code and peer.
func (l *Log) Entries() []Entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]Entry, 0, len(l.entries))
	for _, e := range l.entries {
		out = append(out, *e)
	}
	slices.SortFunc(out, func(a, b Entry) int {
		return cmp.Or(cmp.Compare(a.Code, b.Code), cmp.Compare(a.Peer, b.Peer))
	})
	return out
}

// Total returns how often a code occurred, over all peers.
func (l *Log) Total(code Code) (n uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for k, e := range l.entries {
		if k.code == code {
			n += e.Count
		}
	}
	return n
}

func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return s[:n] + "…"
}
