package quorumtest

import (
	"fmt"
	"strings"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/rack"
)

// EventKind says what an [Event] is about.
type EventKind string

// The kinds of events.
const (
	EventStep       EventKind = "step"       // a node took an input
	EventStart      EventKind = "start"      // a sled booted from its disk
	EventCrash      EventKind = "crash"      // a sled went down; its connections broke
	EventController EventKind = "controller" // the controller's core moved on and its journal is written; Text says how
)

// Event is one thing that happened: who did what. It is told right after it happened and before its messages travel on,
// so that [Sim.View] shows the state that it led to.
type Event struct {
	Seq     uint64 // counts the events of a run, from 1
	Kind    EventKind
	Sled    *Sled           // where; nil for the controller's events
	Peer    *Sled           // the other side of a message or connection; nil if there is none
	Input   quorum.Input    // of a step. Shares in it are wiped already
	Effects *quorum.Effects // of a step, once stored; nil if it was refused or not stored. Only to be looked at
	Err     error           // why a step was refused or not stored
	Text    string          // of a controller's event: "begin", "decide", "committed", "abort", ...
}

// NodeView is what one sled holds and does. Epochs ascend. What is stored is read from the disk, so that a sled that is
// down shows what it will start from.
type NodeView struct {
	ID                                     ident.Baseboard
	Up                                     bool
	Configs, Shares, Commits, Certificates []ident.Epoch
	Expunged                               ident.Epoch  // 0 while a member
	Roles                                  quorum.Roles // zero while down
	Preparing                              bool         // of a coordinator: it has the older secrets, and hands out shares
	Acked                                  []ident.Baseboard
	Connected                              []ident.Baseboard
}

// ControllerView is the controller's newest change, as its journal has it. Epoch 0: none yet.
type ControllerView struct {
	Up                   bool
	Highest              ident.Epoch // highest epoch ever used
	Epoch, LastCommitted ident.Epoch
	Phase                rack.Phase
	Coordinator          ident.Baseboard
	Members              []ident.Baseboard
	Threshold            ident.Threshold
	NeedAcks             int
	Acked, Committed     []ident.Baseboard
}

// View is a snapshot of a whole rack. Nothing in it is shared with the simulation.
type View struct {
	Nodes      []NodeView // in the order of the sleds
	Controller ControllerView
}

func (c *Cluster) emit(e Event) {
	if c.Watch != nil {
		c.events++
		e.Seq = c.events
		c.Watch(e)
	}
}

// emitStep tells of a step.
func (c *Cluster) emitStep(s *Sled, in quorum.Input, fx *quorum.Effects, err error) {
	if c.Watch == nil {
		return
	}
	e := Event{Kind: EventStep, Sled: s, Input: in, Effects: fx, Err: err}
	switch in := in.(type) {
	case quorum.PeerUp:
		e.Peer = c.Find(in.Peer)
	case quorum.PeerDown:
		e.Peer = c.Find(in.Peer)
	case quorum.PeerMessage:
		e.Peer = c.Find(in.From)
	}
	c.emit(e)
}

// Waiting says in words which messages are on their way between two sleds, the oldest first.
func (c *Cluster) Waiting(from, to *Sled) (out []string) {
	for _, m := range c.queue[from.Index][to.Index].msgs {
		out = append(out, messageText(m))
	}
	return out
}

// Nodes is the sleds' part of a [View].
func (c *Cluster) Nodes() []NodeView {
	out := make([]NodeView, 0, len(c.Sleds))
	for _, s := range c.Sleds {
		d := &s.Disk
		v := NodeView{
			ID: s.ID, Up: s.Up(), Configs: quorum.Epochs(d.Configs), Shares: quorum.Epochs(d.Shares),
			Commits: quorum.Epochs(d.Commits), Certificates: quorum.Epochs(d.Certificates),
		}
		if d.Expunged != nil {
			v.Expunged = d.Expunged.Epoch
		}
		if s.Up() {
			v.Roles = s.Node.Roles()
			if st := s.Node.Status().Coordinator; st != nil {
				v.Preparing, v.Acked = st.Collecting == nil, st.Acked
			}
		}
		for _, o := range c.Sleds {
			if c.Connected(s, o) {
				v.Connected = append(v.Connected, o.ID)
			}
		}
		out = append(out, v)
	}
	return out
}

// View is a snapshot of the whole rack.
func (s *Sim) View() View {
	v := View{Nodes: s.Nodes(), Controller: ControllerView{Up: s.ctl.st != nil, Highest: s.ctl.disk.Highest}}
	ch := copyChange(s.ctl.disk.Change)
	if ch == nil {
		return v
	}
	c := &v.Controller
	c.Epoch, c.LastCommitted, c.Phase, c.Coordinator, c.Members = ch.Epoch, ch.LastCommitted, ch.Phase, ch.Coordinator, ch.Members
	c.Threshold, c.NeedAcks, c.Acked, c.Committed = ch.Threshold, ch.NeedAcks, ch.Acked, ch.Committed
	return v
}

// String tells an event in one line.
func (e Event) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%5d %-10s", e.Seq, e.Kind)
	if e.Sled != nil {
		fmt.Fprintf(&b, " %s", e.Sled.ID.Serial)
	}
	if e.Peer != nil {
		fmt.Fprintf(&b, " < %s", e.Peer.ID.Serial)
	}
	switch in := e.Input.(type) {
	case nil:
	case quorum.PeerMessage:
		b.WriteString("  " + messageText(in.Message))
	case quorum.Reconfigure:
		fmt.Fprintf(&b, "  reconfigure %d", in.Epoch)
	case quorum.Commit:
		fmt.Fprintf(&b, "  commit %d", in.Epoch)
	case quorum.PrepareAndCommit:
		fmt.Fprintf(&b, "  prepare-and-commit %d", in.Config.Epoch)
	default:
		fmt.Fprintf(&b, "  %s", strings.TrimPrefix(fmt.Sprintf("%T", in), "quorum."))
	}
	if e.Text != "" {
		b.WriteString("  " + e.Text)
	}
	if e.Effects != nil {
		for _, m := range e.Effects.Send {
			fmt.Fprintf(&b, "; %s > %s", messageText(m.Message), m.To.Serial)
		}
		for _, n := range e.Effects.Notes {
			fmt.Fprintf(&b, "; %s %d", strings.TrimPrefix(string(n.Code), "quorum-"), n.Epoch)
		}
		for _, a := range e.Effects.Alarms {
			fmt.Fprintf(&b, "; ALARM %s %d %s", a.Kind, a.Epoch, a.From.Serial)
		}
	}
	if e.Err != nil {
		fmt.Fprintf(&b, "; %v", e.Err)
	}
	return b.String()
}

func messageText(m quorum.Message) string {
	if m.Kind == nil {
		return "nothing"
	}
	kind := string(quorum.KindOf(m.Kind))
	switch k := m.Kind.(type) {
	case quorum.Prepare:
		if k.Config != nil {
			return fmt.Sprintf("%s %d", kind, k.Config.Epoch)
		}
	case quorum.CommitAdvance:
		if k.Config != nil {
			return fmt.Sprintf("%s %d", kind, k.Config.Epoch)
		}
	case quorum.GrantNotice:
		if k.Grant != nil {
			return fmt.Sprintf("%s %d", kind, k.Grant.Epoch)
		}
	case quorum.CommitProof:
		if k.Certificate != nil {
			return fmt.Sprintf("%s %d", kind, k.Certificate.Epoch)
		}
	case quorum.PrepareAck:
		return fmt.Sprintf("%s %d", kind, k.Epoch)
	case quorum.GetShare:
		return fmt.Sprintf("%s %d", kind, k.Epoch)
	case quorum.ShareReply:
		return fmt.Sprintf("%s %d", kind, k.Epoch)
	case quorum.ExpungedNotice:
		return fmt.Sprintf("%s %d", kind, k.Epoch)
	case quorum.NoSuchShare:
		return fmt.Sprintf("%s %d", kind, k.Epoch)
	}
	return kind
}
