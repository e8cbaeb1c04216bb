package replay

import (
	"fmt"
	"strings"
)

// command is one word that a session understands.
type command struct {
	name     string
	short    []string
	args     string
	min, max int
	needsLog bool
	help     string
	run      func(s *Session, args []string) error
}

func (c command) usage() string { return strings.TrimSpace(c.name + " " + c.args) }

// commands is the table of all commands, in the order in which help lists them.
func commands() []command {
	alone := func(f func(*Session) error) func(*Session, []string) error {
		return func(s *Session, _ []string) error { return f(s) }
	}
	return []command{
		{"open", []string{"o"}, "FILE", 1, 1, false, "open a log and stand before its first event", func(s *Session, args []string) error { return s.Open(args[0]) }},
		{"run", []string{"r"}, "", 0, 0, true, "go on to the next breakpoint or the end", alone((*Session).run)},
		{"step", []string{"s"}, "[N]", 0, 1, true, "let the next event happen, or the next N, breakpoints or not", (*Session).stepN},
		{"rewind", []string{"rw"}, "", 0, 0, true, "go back before the first event; breakpoints and snapshots stay", alone((*Session).rewind)},
		{"breakpoint-toggle", []string{"b"}, "EVENT", 1, 1, true, "make run stop before an event, or no longer", (*Session).toggle},
		{"breakpoint-list", []string{"bl"}, "", 0, 0, true, "list the breakpoints", alone((*Session).listBreakpoints)},
		{"snapshot", []string{"sn"}, "[EVENT]", 0, 1, true, "keep a copy of the state now, or when it is that event's turn", (*Session).snapshot},
		{"snapshot-list", []string{"sl"}, "", 0, 0, true, "list the snapshots", alone((*Session).listSnapshots)},
		{"snapshot-list-pending", []string{"slp"}, "", 0, 0, true, "list the snapshots that are still to be taken", alone((*Session).listPending)},
		{"snapshot-show", []string{"ss"}, "EVENT", 1, 1, true, "show a snapshot", (*Session).showSnapshot},
		{"diff", []string{"d"}, "EVENT [EVENT]", 1, 2, true, "what changed from a snapshot until now, or until another snapshot", (*Session).diff},
		{"node-show", []string{"n"}, "SERIAL", 1, 1, true, "show one sled", (*Session).showNode},
		{"events", []string{"e"}, "all | next N | range FIRST LAST", 1, 3, true, "list events; > is the next one, * a breakpoint", (*Session).events},
		{"show", []string{"sh"}, "", 0, 0, false, "where the session stands", alone((*Session).show)},
		{"summary", []string{"su"}, "", 0, 0, true, "controller and sleds, a line each", func(s *Session, _ []string) error {
			s.sayAll(s.m.Snapshot().summary())
			return nil
		}},
		{"help", []string{"h", "?"}, "", 0, 0, false, "this list", func(s *Session, _ []string) error {
			s.sayAll(Help())
			return nil
		}},
		{"quit", []string{"q", "exit"}, "", 0, 0, false, "end", func(*Session, []string) error { return ErrQuit }},
	}
}

// Help lists the commands, a line each.
func Help() (out []string) {
	for _, c := range commands() {
		out = append(out, fmt.Sprintf("%-38s %-8s %s", c.usage(), strings.Join(c.short, ", "), c.help))
	}
	return out
}
