package replay

import (
	"io"
	"math"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/keys"
	"github.com/sledvault/sledvault/vault/reason"
)

// The reasons why a log is not replayed.
const (
	CodeSyntax     reason.Code = "replay-syntax"     // the log is not what a recorder writes
	CodeTruncated  reason.Code = "replay-truncated"  // the log ends in the middle
	CodeUnknown    reason.Code = "replay-unknown"    // an event or message of a kind that nobody knows
	CodeOldFormat  reason.Code = "replay-old-format" // a log of the form that recorders wrote in 2025
	CodeImpossible reason.Code = "replay-impossible" // an event that cannot happen there
	CodeUnreadable reason.Code = "replay-unreadable" // the file cannot be read
	CodeSimulation reason.Code = "replay-simulation" // an object that is no failed run of the simulation either
)

const (
	hintSyntax     = "compare the place with docs/testing.md §7"
	hintTruncated  = "the run that wrote it was cut off; replay another log, or close the array after the last whole event"
	hintOldFormat  = "record the run again with a current property test"
	hintUnknown    = "the log may come from a newer recorder; the known events are in docs/testing.md §7"
	hintImpossible = "the log was changed by hand, or pieces of two logs were joined"
	hintUnreadable = "check name and permissions"
)

const (
	maxUniverse   = 64
	lrtqShareSize = 1 + keys.Size
)

// Reader reads an event log of the reference's property test, one event at a time (docs/testing.md §7).
type Reader struct {
	s     *scanner
	begun bool
	done  bool
}

// NewReader reads from the beginning of a log.
func NewReader(in io.Reader) *Reader { return &Reader{s: newScanner(in)} }

// Next returns the next event, or io.EOF after the last one. Every other error is a [*LogError].
func (r *Reader) Next() (Event, error) {
	switch {
	case r.s.err != nil:
		return nil, r.s.err
	case r.done:
		return nil, io.EOF
	}
	e := r.next()
	if r.s.err != nil {
		return nil, r.s.err
	}
	if e == nil {
		return nil, io.EOF
	}
	return e, nil
}

func (r *Reader) next() (e Event) {
	s := r.s
	if !r.begun {
		r.begun = s.take('[', "the array of events")
		if s.peek() == ']' {
			r.end()
			return nil
		}
	} else {
		if s.peek() == ']' {
			r.end()
			return nil
		}
		s.take(',', "a comma or the end of the array")
		s.event++
	}
	if s.peek() == '"' {
		s.fail(CodeOldFormat, hintOldFormat, "an event without content is of an older form of log")
		return nil
	}
	s.variant("event", eventNames(), func(i int) { e = s.eventOf(i) })
	return e
}

// end takes the end of the array and demands that nothing follows.
func (r *Reader) end() {
	r.s.pos++
	if r.s.peek() != 0 || r.s.pos < r.s.end {
		r.s.syntax("something follows the array of events")
	}
	r.done = true
}

// Place gives an error about the event that was read last its place in the log.
func (r *Reader) Place(cause error) *LogError { return r.s.at(cause) }

func eventNames() []string {
	return []string{
		"DeliverEnvelope", "LoadRackSecret", "SendNexusReplyOnUnderlay", "DeliverNexusReply", "CommitConfiguration", "ClearSecrets",
		"CrashNode", "RestartNode", "AbortConfiguration", "Reconfigure", "LrtqUpgrade", "PrepareAndCommit", "InitialSetup", "InitialSetupLrtq",
	}
}

// eventOf reads the content of the event with that place in eventNames.
func (s *scanner) eventOf(i int) Event {
	switch i {
	case 0:
		return s.envelope()
	case 1:
		return s.load()
	case 2:
		return SendReply{s.reply()}
	case 3:
		if s.peek() == '}' || s.peek() == '"' {
			s.fail(CodeOldFormat, hintOldFormat, "a reply without content is of an older form of log")
		}
		return DeliverReply{s.reply()}
	case 4:
		return CommitConfiguration{s.id()}
	case 5:
		return ClearSecrets{s.id()}
	case 6:
		return CrashNode{s.id()}
	case 7:
		return s.restart()
	case 8:
		return AbortConfiguration{s.epoch()}
	case 9:
		return Reconfigure{Change: s.change()}
	case 10:
		return Reconfigure{Change: s.change(), LRTQ: true}
	case 11:
		return PrepareAndCommit{s.id()}
	case 12:
		return s.setup()
	case 13:
		return s.setupLRTQ()
	}
	return nil
}

func (s *scanner) setup() (e InitialSetup) {
	s.object([]string{"member_universe_size", "config", "crashed_nodes"}, func(i int) {
		switch i {
		case 0:
			e.Universe = int(s.uint(maxUniverse))
		case 1:
			e.Change = s.change()
		case 2:
			e.Crashed = s.set()
		}
	})
	return e
}

func (s *scanner) setupLRTQ() InitialSetup {
	e := InitialSetup{LRTQ: true}
	s.object([]string{"member_universe_size", "config"}, func(i int) {
		if i == 0 {
			e.Universe = int(s.uint(maxUniverse))
		} else {
			e.Change = s.change()
		}
	})
	return e
}

func (s *scanner) load() (e LoadRackSecret) {
	n := 0
	s.array(func() {
		switch n {
		case 0:
			e.ID = s.id()
		case 1:
			e.Epoch = s.epoch()
		default:
			s.syntax("more than two elements in a LoadRackSecret")
		}
		n++
	})
	if s.err == nil && n != 2 {
		s.syntax("have %d elements in a LoadRackSecret, want 2", n)
	}
	return e
}

func (s *scanner) restart() (e RestartNode) {
	s.object([]string{"id", "connection_order"}, func(i int) {
		if i == 0 {
			e.ID = s.id()
		} else {
			e.Order = s.list()
		}
	})
	return e
}

func (s *scanner) reply() (r Reply) {
	s.variant("reply", []string{"AckedPreparesFromCoordinator", "CommitAck"}, func(kind int) {
		switch kind {
		case 0:
			s.object([]string{"epoch", "acks"}, func(i int) {
				if i == 0 {
					r.Epoch = s.epoch()
				} else {
					r.Acks = s.set()
				}
			})
		case 1:
			s.object([]string{"from", "epoch"}, func(i int) {
				if i == 0 {
					r.From = s.id()
				} else {
					r.Epoch = s.epoch()
				}
			})
		}
	})
	return r
}

func (s *scanner) change() (c Change) {
	names := []string{
		"op", "epoch", "last_committed_epoch", "coordinator", "members", "threshold", "commit_crash_tolerance",
		"prepared_members", "committed_members",
	}
	s.object(names, func(i int) {
		switch i {
		case 0:
			c.Op = s.op()
		case 1:
			c.Epoch = s.epoch()
		case 2:
			c.LastCommitted = s.optionalEpoch()
		case 3:
			c.Coordinator = s.id()
		case 4:
			c.Members = s.set()
		case 5:
			c.Threshold = ident.Threshold(s.uint(math.MaxUint8))
		case 6:
			c.Tolerance = s.uint(math.MaxUint8)
		case 7:
			c.Prepared = s.set()
		case 8:
			c.Committed = s.set()
		}
	})
	return c
}

func (s *scanner) op() Op {
	b := s.string()
	for _, o := range []Op{OpPreparing, OpCommitted, OpAborted, OpLRTQCommitted} {
		if string(b) == string(o) {
			return o
		}
	}
	if s.err == nil {
		s.fail(CodeUnknown, hintUnknown, "unknown stage %.40q of a configuration", b)
	}
	return ""
}

func (s *scanner) envelope() (e DeliverEnvelope) {
	s.object([]string{"to", "from", "msg"}, func(i int) {
		switch i {
		case 0:
			e.To = s.id()
		case 1:
			e.From = s.id()
		case 2:
			s.object([]string{"rack_id", "kind"}, func(i int) {
				if i == 0 {
					e.Message.RackID = s.rackID()
				} else {
					s.kind(&e.Message)
				}
			})
		}
	})
	return e
}
