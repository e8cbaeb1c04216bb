package replay

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/sledvault/sledvault/vault/reason"
)

// The reasons why a session refuses a command.
const (
	CodeCommand reason.Code = "replay-command" // the debugger does not understand the command
	CodeNoLog   reason.Code = "replay-no-log"  // the command needs an open log
)

// ErrQuit ends a session.
var ErrQuit = errors.New("replay: the session is over")

// Session is a debugger: it takes one command per line, lives through a recorded run step by step and shows what the
// nodes do (docs/testing.md §8). Secrets and shares are compared by content and never shown.
type Session struct {
	out  io.Writer
	open func(name string) (Machine, error)

	name        string
	m           Machine // nil while no log is open
	breakpoints map[int]bool
	pending     map[int]bool // snapshots to take
	snapshots   map[int]*Snapshot
	differences int
}

// NewSession makes a session that writes to out and opens logs with open.
func NewSession(out io.Writer, open func(name string) (Machine, error)) *Session {
	return &Session{out: out, open: open, breakpoints: map[int]bool{}, pending: map[int]bool{}, snapshots: map[int]*Snapshot{}}
}

// Open opens a log. Breakpoints and snapshots of the one before are gone.
func (s *Session) Open(name string) error {
	m, err := s.open(name)
	if err != nil {
		return err
	}
	s.name, s.m, s.differences = name, m, 0
	clear(s.breakpoints)
	clear(s.pending)
	clear(s.snapshots)
	s.say("%s: %d events", name, m.Len())
	return nil
}

// Do runs one command line. An empty line does nothing. Errors: [ErrQuit], [CodeCommand], [CodeNoLog], those of opening
// a log and of living through it.
func (s *Session) Do(line string) error {
	words := strings.Fields(line)
	if len(words) == 0 || strings.HasPrefix(words[0], "#") {
		return nil
	}
	for _, c := range commands() {
		if words[0] != c.name && !slices.Contains(c.short, words[0]) {
			continue
		}
		args := words[1:]
		if len(args) < c.min || len(args) > c.max {
			return bad("%s: have %d arguments, want: %s", c.name, len(args), c.usage())
		}
		if c.needsLog && s.m == nil {
			return reason.New(CodeNoLog, "open one with: open FILE", "replay: %s: no log is open", c.name)
		}
		return c.run(s, args)
	}
	return bad("unknown command %.40q", words[0])
}

func bad(format string, args ...any) error {
	return reason.New(CodeCommand, "help lists the commands", "replay: "+format, args...)
}

func (s *Session) say(format string, args ...any) { _, _ = fmt.Fprintf(s.out, format+"\n", args...) }

func (s *Session) sayAll(lines []string) {
	for _, l := range lines {
		s.say("%s", l)
	}
}

// number reads an argument that counts events of the log: 0 to its length.
func (s *Session) number(arg string) (int, error) {
	n, err := strconv.Atoi(arg)
	if err != nil || n < 0 || n > s.m.Len() {
		return 0, bad("have %.40q, want a number from 0 to %d", arg, s.m.Len())
	}
	return n, nil
}

// advance lets one event happen, after taking the snapshot that waits for this moment.
func (s *Session) advance(show bool) error {
	s.takePending()
	at := s.m.At()
	lines, differences, err := s.m.Step()
	if err != nil {
		return err
	}
	s.differences += differences
	if show || differences > 0 {
		s.say("%d %s", at, s.m.Event(at))
		for _, l := range lines {
			s.say("  %s", l)
		}
	}
	if s.m.At() == s.m.Len() {
		s.takePending()
	}
	return nil
}

func (s *Session) takePending() {
	if at := s.m.At(); s.pending[at] {
		delete(s.pending, at)
		s.snapshots[at] = s.m.Snapshot()
		s.say("snapshot %d taken", at)
	}
}

// where says what comes next.
func (s *Session) where() {
	if at := s.m.At(); at < s.m.Len() {
		s.say("next: %d %s", at, s.m.Event(at))
	} else {
		s.say("at the end: %d events, %d differences", at, s.differences)
	}
}

func (s *Session) run() error {
	for first := true; s.m.At() < s.m.Len(); first = false {
		if at := s.m.At(); s.breakpoints[at] && !first {
			s.takePending()
			s.say("breakpoint %d", at)
			break
		}
		if err := s.advance(false); err != nil {
			return err
		}
	}
	s.where()
	return nil
}

func (s *Session) stepN(args []string) error {
	n := 1
	if len(args) > 0 {
		var err error
		if n, err = s.number(args[0]); err != nil {
			return err
		}
	}
	for ; n > 0 && s.m.At() < s.m.Len(); n-- {
		if err := s.advance(true); err != nil {
			return err
		}
	}
	s.where()
	return nil
}

func (s *Session) toggle(args []string) error {
	n, err := s.number(args[0])
	if err != nil {
		return err
	}
	if n == s.m.Len() {
		return bad("breakpoint: there is no event %d", n)
	}
	if s.breakpoints[n] {
		delete(s.breakpoints, n)
		s.say("breakpoint %d removed", n)
	} else {
		s.breakpoints[n] = true
		s.say("breakpoint %d set: %s", n, s.m.Event(n))
	}
	return nil
}

func (s *Session) listBreakpoints() error {
	for _, n := range slices.Sorted(maps.Keys(s.breakpoints)) {
		s.say("%d %s", n, s.m.Event(n))
	}
	s.none(len(s.breakpoints), "breakpoints")
	return nil
}

func (s *Session) none(n int, what string) {
	if n == 0 {
		s.say("no %s", what)
	}
}

func (s *Session) snapshot(args []string) error {
	at := s.m.At()
	if len(args) == 0 {
		s.snapshots[at] = s.m.Snapshot()
		s.say("snapshot %d taken", at)
		return nil
	}
	n, err := s.number(args[0])
	switch {
	case err != nil:
		return err
	case n < at:
		return bad("snapshot: event %d is over; rewind first", n)
	}
	s.pending[n] = true
	s.say("snapshot %d will be taken after %d events", n, n)
	return nil
}

func (s *Session) listSnapshots() error {
	for _, n := range slices.Sorted(maps.Keys(s.snapshots)) {
		s.say("%d", n)
	}
	s.none(len(s.snapshots), "snapshots")
	return nil
}

func (s *Session) listPending() error {
	for _, n := range slices.Sorted(maps.Keys(s.pending)) {
		s.say("%d", n)
	}
	s.none(len(s.pending), "snapshots to take")
	return nil
}

// taken returns the snapshot of that number.
func (s *Session) taken(arg string) (*Snapshot, error) {
	n, err := s.number(arg)
	if err != nil {
		return nil, err
	}
	if s.snapshots[n] == nil {
		return nil, bad("there is no snapshot %d", n)
	}
	return s.snapshots[n], nil
}

func (s *Session) showSnapshot(args []string) error {
	snap, err := s.taken(args[0])
	if err == nil {
		s.sayAll(snap.lines())
	}
	return err
}

func (s *Session) diff(args []string) error {
	a, err := s.taken(args[0])
	if err != nil {
		return err
	}
	b := s.m.Snapshot()
	if len(args) > 1 {
		if b, err = s.taken(args[1]); err != nil {
			return err
		}
	}
	s.say("from %d to %d events", a.At, b.At)
	lines := a.Diff(b)
	s.sayAll(lines)
	s.none(len(lines), "changes")
	return nil
}

// showNode takes a serial number or a whole baseboard.
func (s *Session) showNode(args []string) error {
	snap := s.m.Snapshot()
	for _, id := range sortedIDs(snap.Nodes) {
		if id.Serial == args[0] || id.String() == args[0] {
			lines := snap.Nodes[id].lines()
			for _, l := range snap.Flight[id] {
				lines = append(lines, "on its way "+l)
			}
			s.sayAll(appendSection(nil, id.String(), lines))
			return nil
		}
	}
	return bad("there is no sled %.110q now", args[0])
}

func (s *Session) events(args []string) error {
	from, to := 0, 0
	var err error
	switch {
	case len(args) == 1 && args[0] == "all":
		to = s.m.Len()
	case len(args) == 2 && args[0] == "next":
		from = s.m.At()
		if to, err = s.number(args[1]); err != nil {
			return err
		}
		to = min(from+to, s.m.Len())
	case len(args) == 3 && args[0] == "range":
		if from, err = s.number(args[1]); err != nil {
			return err
		}
		if to, err = s.number(args[2]); err != nil {
			return err
		}
		if to < from {
			return bad("events: the range ends before it begins")
		}
		to = min(to+1, s.m.Len())
	default:
		return bad("events: want all, next N, or range FIRST LAST")
	}
	for i := from; i < to; i++ {
		mark := " "
		switch {
		case i == s.m.At():
			mark = ">"
		case s.breakpoints[i]:
			mark = "*"
		}
		s.say("%s%d %s", mark, i, s.m.Event(i))
	}
	return nil
}

func (s *Session) show() error {
	if s.m == nil {
		s.say("no log is open")
		return nil
	}
	s.say("log: %s", s.name)
	s.say("events: %d of %d have happened, with %d differences", s.m.At(), s.m.Len(), s.differences)
	for _, l := range []struct {
		name string
		at   []int
	}{
		{"breakpoints", slices.Sorted(maps.Keys(s.breakpoints))},
		{"snapshots", slices.Sorted(maps.Keys(s.snapshots))},
		{"snapshots to take", slices.Sorted(maps.Keys(s.pending))},
	} {
		if len(l.at) > 0 {
			s.say("%s: %s", l.name, strings.Join(texts(l.at), " "))
		}
	}
	s.where()
	return nil
}

// rewind goes back to the beginning. Breakpoints and snapshots stay.
func (s *Session) rewind() error {
	s.m.Rewind()
	s.differences = 0
	s.where()
	return nil
}
