// Package replay lets a rack of real trust-quorum nodes live through an event log that the reference's property test has
// written, and says where they do otherwise.
//
// It reads logs as a stream (scan.go, value.go, log.go, message.go), models network and controller as that test does
// (rack.go, apply.go, lrtq.go), compares all that is not random in every run (compare.go) and shows the state in the
// reference's form (view.go). What the nodes deliberately would do otherwise under the operator's authority is counted by
// name (rules.go; docs/protocol.md §11). The debugger is session.go and commands.go, over machine.go and snapshot.go. Form
// and rules of the logs are docs/testing.md §7, the debugger is §8.
//
// The nodes believe their peers (package reference), so no daemon contains this package. Secrets are drawn from a fixed
// seed: the same log gives the same bytes again, and nothing here protects anything.
package replay

import (
	"encoding/json"
	"errors"
	"io"

	"github.com/sledvault/sledvault/vault/reason"
)

// Result is what a replay has found.
type Result struct {
	Log         string       `json:"log"`
	Events      int          `json:"events"`
	Compared    int          `json:"compared"` // facts of the log that were held against ours
	Differences []Difference `json:"differences"`
	Final       *Final       `json:"final"` // nil if the log cannot be replayed to its end
	Rules       map[Rule]int `json:"rules"`
	Error       *LogError    `json:"error,omitempty"`
}

// Good reports whether the log was replayed to its end without a difference.
func (r *Result) Good() bool { return r.Error == nil && len(r.Differences) == 0 }

// add takes over what one event has shown.
func (r *Result) add(s Step) {
	r.Events++
	r.Compared += s.Compared
	r.Differences = append(r.Differences, s.Differences...)
	for _, rule := range s.Rules {
		r.Rules[rule]++
	}
}

// Run replays a log to its end. The result always says how far it came; the error is its Error, or nil.
func Run(name string, log io.Reader) (*Result, error) {
	res := &Result{Log: name, Differences: []Difference{}, Rules: map[Rule]int{}}
	rd, rack := NewReader(log), NewRack()
	defer rack.Destroy()
	for {
		e, err := rd.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		var s Step
		if err == nil {
			s, err = rack.Apply(e)
		}
		if err != nil {
			return res, res.fail(name, rd, err)
		}
		res.add(s)
	}
	if res.Events == 0 {
		return res, res.fail(name, rd, reason.New(CodeImpossible, hintImpossible, "the log has no events"))
	}
	f := rack.Final()
	res.Final = &f
	return res, nil
}

func (r *Result) fail(name string, rd *Reader, err error) error {
	var at *LogError
	if !errors.As(err, &at) {
		at = rd.Place(err)
	}
	at.Log = name
	r.Error = at
	return at
}

// Unreadable is the result of a log that could not even be opened. A cause without a code gets [CodeUnreadable].
func Unreadable(name string, cause error) (*Result, error) {
	if reason.CodeOf(cause) == "" {
		cause = reason.Wrap(cause, CodeUnreadable, hintUnreadable, "not readable")
	}
	err := &LogError{Log: name, Cause: cause}
	return &Result{Log: name, Differences: []Difference{}, Rules: map[Rule]int{}, Error: err}, err
}

// Text is a value of a difference in one line.
func Text(v any) string {
	if s, ok := v.(string); ok {
		return s
	}
	b, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(b)
}
