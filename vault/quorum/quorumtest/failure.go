package quorumtest

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
)

// Failure is a run that broke an invariant, as a file keeps it (testing.md §9): JSON with the seed, the options and the
// actions, one text each. Together they say everything.
type Failure struct {
	Version int      `json:"version"` // 1
	Seed    uint64   `json:"seed"`
	Options Options  `json:"options"`
	Error   string   `json:"error"` // the broken invariant, for people; replaying finds it again
	Actions []Action `json:"actions"`
}

// failureVersion is the version of the file's form.
const failureVersion = 1

// maxFailure bounds a file in bytes; a million actions have some 40 MiB.
const maxFailure = 64 << 20

// MarshalText writes an action as "kind A B C".
func (a Action) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (a *Action) UnmarshalText(b []byte) error {
	var out Action
	if n, err := fmt.Sscanf(string(b), "%s %d %d %d", &out.Kind, &out.A, &out.B, &out.C); err != nil || n != 4 || out.String() != string(b) {
		return fmt.Errorf("quorumtest: action %.80q: want kind and three numbers", b)
	}
	if players[out.Kind] == nil {
		return fmt.Errorf("quorumtest: action %.80q: unknown kind", b)
	}
	*a = out
	return nil
}

// ReadFailure reads a failure file.
func ReadFailure(r io.Reader) (*Failure, error) {
	d := json.NewDecoder(io.LimitReader(r, maxFailure))
	d.DisallowUnknownFields()
	var f Failure
	if err := d.Decode(&f); err != nil {
		return nil, fmt.Errorf("quorumtest: read failure: %w", err)
	}
	if f.Version != failureVersion {
		return nil, fmt.Errorf("quorumtest: read failure: have version %d, want %d", f.Version, failureVersion)
	}
	if n := f.Options.Sleds; n != 0 && (n < minSleds || n > maxSleds) {
		return nil, fmt.Errorf("quorumtest: read failure: have %d sleds, want %d to %d", n, minSleds, maxSleds)
	}
	return &f, nil
}

// Write writes the file.
func (f *Failure) Write(w io.Writer) error {
	out := *f
	out.Version = failureVersion
	b, err := json.MarshalIndent(&out, "", " ")
	if err != nil {
		return err
	}
	_, err = w.Write(append(b, '\n'))
	return err
}

// String lists the actions, for people.
func (f *Failure) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d, %d actions: %s", f.Seed, len(f.Actions), f.Error)
	for i, a := range f.Actions {
		fmt.Fprintf(&b, "\n%4d  %s", i, a)
	}
	return b.String()
}

// Replay plays a failure again. begin is given the simulation before the first action, to set [Cluster.Watch] for
// example, and step is called after each action; both may be nil. The result is the broken invariant, or nil if nothing
// is broken any more.
func (f *Failure) Replay(begin func(*Sim), step func(i int, a Action, s *Sim)) error {
	s := NewSim(f.Seed, f.Options, NewTable())
	if begin != nil {
		begin(s)
	}
	s.step = step
	return s.Run(f.Actions)
}

// Play makes the run of a seed. If it breaks an invariant, the failure has the fewest actions that still break it.
func Play(seed uint64, o Options, actions int, table *Table) *Failure {
	all := Generate(seed, actions)
	s := NewSim(seed, o, table)
	err := s.Run(all)
	if err == nil && seed%8 == 0 { // P11
		again := NewSim(seed, o, NewTable())
		if again.Run(all) != nil || s.bad(P11, nil, again.Trace() == s.Trace()) {
			s.broken(P11, "a second run differs")
			err = s.err
		}
		s.table.flush(s.mask)
	}
	if err == nil {
		return nil
	}
	f := &Failure{Version: failureVersion, Seed: seed, Options: o, Error: err.Error(), Actions: all[:min(s.played, len(all))]}
	f.Shrink(s.rule)
	return f
}

// Shrink takes actions out as long as the rest still breaks the same rule.
func (f *Failure) Shrink(rule Invariant) {
	f.Actions = Shrink(f.Actions, func(some []Action) bool {
		s := NewSim(f.Seed, f.Options, NewTable())
		err := s.Run(some)
		if err == nil || s.rule != rule {
			return false
		}
		f.Error = err.Error()
		return true
	})
}
