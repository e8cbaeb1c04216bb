package replay

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/sledvault/sledvault/vault/ident"
)

// Machine is a recorded run that a [Session] lives through event by event.
type Machine interface {
	// Len is how many events the run has.
	Len() int
	// At is the number of the next event: so many have happened.
	At() int
	// Event says in one line what event i is.
	Event(i int) string
	// Step lets the next event happen and says in lines what it did. Differences are what the record says otherwise.
	Step() (lines []string, differences int, err error)
	// Rewind goes back before the first event.
	Rewind()
	// Snapshot is a copy of the state.
	Snapshot() *Snapshot
}

// logMachine is an event log of the reference. Its events are in memory, a few hundred bytes each, so that they can be
// lived through again and shown out of turn.
type logMachine struct {
	events []Event
	rack   *Rack
	err    error // ended the rack
}

// NewLogMachine reads a log to its end. Errors are a [*LogError].
func NewLogMachine(name string, log io.Reader) (Machine, error) {
	m := &logMachine{rack: NewRack()}
	for rd := NewReader(log); ; {
		e, err := rd.Next()
		switch {
		case errors.Is(err, io.EOF) && len(m.events) == 0:
			return nil, named(name, rd.Place(impossible("the log has no events")))
		case errors.Is(err, io.EOF):
			return m, nil
		case err != nil:
			return nil, named(name, err)
		}
		m.events = append(m.events, e)
	}
}

func named(name string, err error) error {
	if at, ok := errors.AsType[*LogError](err); ok {
		at.Log = name
	}
	return err
}

func (m *logMachine) Len() int { return len(m.events) }

func (m *logMachine) At() int { return m.rack.events }

func (m *logMachine) Event(i int) string { return describe(m.events[i]) }

func (m *logMachine) Rewind() {
	m.rack.Destroy()
	m.rack, m.err = NewRack(), nil
}

func (m *logMachine) Step() ([]string, int, error) {
	if m.err != nil {
		return nil, 0, m.err
	}
	s, err := m.rack.Apply(m.events[m.At()])
	if err != nil {
		m.err = fmt.Errorf("replay: event %d: %w", s.Event, err)
		return nil, 0, m.err
	}
	var out []string
	if s.Load != nil {
		out = append(out, "answer: "+Text(s.Load))
	}
	for _, l := range s.Sent {
		text := fmt.Sprintf("sent: %s -> %s: %s", l.From, l.To, l.Message())
		if l.Lost {
			text += " (lost: it is down)"
		}
		out = append(out, text)
	}
	for _, r := range s.Rules {
		out = append(out, "deviation: "+string(r))
	}
	for _, d := range s.Differences {
		out = append(out, fmt.Sprintf("DIFFERENCE in %s: want %s, have %s", d.What, Text(d.Want), Text(d.Have)))
	}
	return out, len(s.Differences), nil
}

func (m *logMachine) Snapshot() *Snapshot {
	r := m.rack
	s := &Snapshot{At: m.At(), Nodes: map[ident.Baseboard]NodeSnapshot{}, Flight: map[ident.Baseboard][]string{}}
	for _, c := range r.changes {
		s.Controller = append(s.Controller, c.String())
	}
	for _, a := range r.replies {
		s.Replies = append(s.Replies, a.String())
	}
	for _, n := range r.sorted {
		s.Nodes[n.id] = SnapshotNode(n.view(), n.node.State())
		for _, l := range n.wire {
			s.Flight[n.id] = append(s.Flight[n.id], fmt.Sprintf("from %s: %s", l.from, summary(l.message)))
		}
	}
	return s
}

// describe says in one line what an event is.
func describe(e Event) string {
	text := e.Name()
	switch e := e.(type) {
	case InitialSetup:
		text += fmt.Sprintf(" %d sleds, crashed %s, %s", e.Universe, names(e.Crashed), e.Change)
	case AbortConfiguration:
		text += fmt.Sprintf(" epoch %d", e.Epoch)
	case SendReply:
		text += " " + e.Reply.String()
	case DeliverReply:
		text += " " + e.Reply.String()
	case DeliverEnvelope:
		text += fmt.Sprintf(" %s -> %s: %s", e.From, e.To, e.Message)
	case LoadRackSecret:
		text += fmt.Sprintf(" %s epoch %d", e.ID, e.Epoch)
	case ClearSecrets:
		text += " " + e.ID.String()
	case CommitConfiguration:
		text += " " + e.ID.String()
	case PrepareAndCommit:
		text += " " + e.ID.String()
	case Reconfigure:
		text += " " + e.Change.String()
	case CrashNode:
		text += " " + e.ID.String()
	case RestartNode:
		text += fmt.Sprintf(" %s, connects %s", e.ID, names(e.Order))
	}
	return text
}

func names(ids []ident.Baseboard) string {
	if len(ids) == 0 {
		return "none"
	}
	var out []string
	for _, id := range ids {
		out = append(out, id.String())
	}
	return strings.Join(out, " ")
}

// String is the message in a few words.
func (m Message) String() string {
	text := string(m.Kind)
	if m.Epoch != 0 {
		text += fmt.Sprintf(" epoch %d", m.Epoch)
	}
	if m.X != 0 {
		text += fmt.Sprintf(" share %d", m.X)
	}
	if m.Config != nil {
		text += " (" + m.Config.String() + ")"
	}
	return text
}

// String is the configuration in a few words.
func (c *Config) String() string {
	text := fmt.Sprintf("coordinator %s, %d of %s", c.Coordinator, c.Threshold, names(c.Members))
	if c.OldSecrets != nil {
		text += fmt.Sprintf(", %d bytes of older secrets", *c.OldSecrets)
	}
	return text
}

// String is the configuration in one line.
func (c Change) String() string {
	text := fmt.Sprintf("epoch %d %s: coordinator %s, %d+%d of %s", c.Epoch, c.Op, c.Coordinator, c.Threshold, c.Tolerance, names(c.Members))
	if c.LastCommitted != nil {
		text += fmt.Sprintf(", after epoch %d", *c.LastCommitted)
	}
	if len(c.Prepared) > 0 {
		text += ", prepared " + names(c.Prepared)
	}
	if len(c.Committed) > 0 {
		text += ", committed " + names(c.Committed)
	}
	return text
}

// String is the answer in a few words.
func (a Reply) String() string {
	if !a.From.IsZero() {
		return fmt.Sprintf("epoch %d committed by %s", a.Epoch, a.From)
	}
	return fmt.Sprintf("epoch %d acknowledged by %s", a.Epoch, names(a.Acks))
}

// sortedIDs lists the keys of a map in the protocol's order.
func sortedIDs[V any](m map[ident.Baseboard]V) []ident.Baseboard {
	return slices.SortedFunc(maps.Keys(m), ident.Baseboard.Compare)
}
