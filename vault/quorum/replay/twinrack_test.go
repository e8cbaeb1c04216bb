package replay_test

import (
	"fmt"
	"slices"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum/replay"
)

// twinRack is a rack of twins: network and controller as the reference's property test has them.
type twinRack struct {
	ids      []ident.Baseboard // "test:0", "test:1"…
	nodes    map[ident.Baseboard]*twin
	down     map[ident.Baseboard]bool
	wire     map[ident.Baseboard][]twinLetter
	replies  []replay.Reply
	changes  []*replay.Change
	expunged map[ident.Baseboard]bool
	load     *replay.Load // of the last event
}

func newTwinRack() *twinRack {
	return &twinRack{
		nodes: map[ident.Baseboard]*twin{}, down: map[ident.Baseboard]bool{}, wire: map[ident.Baseboard][]twinLetter{},
		expunged: map[ident.Baseboard]bool{},
	}
}

func (r *twinRack) latest() *replay.Change { return r.changes[len(r.changes)-1] }

func (r *twinRack) change(e ident.Epoch) *replay.Change {
	i := slices.IndexFunc(r.changes, func(c *replay.Change) bool { return c.Epoch == e })
	return r.changes[i]
}

// flush puts on the wire what a node has sent.
func (r *twinRack) flush(id ident.Baseboard) {
	n := r.nodes[id]
	for _, l := range n.out {
		if !r.down[l.to] {
			r.wire[l.to] = append(r.wire[l.to], l)
		}
	}
	n.out = nil
}

func (r *twinRack) setup(e replay.InitialSetup) {
	for i := range e.Universe {
		id := ident.Baseboard{Part: "test", Serial: fmt.Sprint(i)}
		r.ids = append(r.ids, id)
		r.nodes[id] = newTwin(id)
		if e.LRTQ && slices.Contains(e.Change.Members, id) {
			r.nodes[id].lrtq = &twinLRTQ{len(e.Change.Members)/2 + 1}
		}
	}
	for _, id := range e.Crashed {
		r.down[id] = true
	}
	for _, a := range r.ids {
		for _, b := range r.ids {
			if a != b && !r.down[a] && !r.down[b] {
				r.nodes[a].connect(b)
			}
		}
	}
	if e.LRTQ {
		r.changes = append(r.changes, clone(e.Change))
	} else {
		r.register(e.Change, false)
	}
}

func clone(c replay.Change) *replay.Change {
	c.Prepared, c.Committed = slices.Clone(c.Prepared), slices.Clone(c.Committed)
	return &c
}

func (r *twinRack) register(c replay.Change, lrtq bool) {
	r.changes = append(r.changes, clone(c))
	if !r.down[c.Coordinator] {
		r.nodes[c.Coordinator].coordinate(c.Epoch, c.Threshold, c.Members, lrtq)
		r.flush(c.Coordinator)
	}
}

// apply lets the rack live through an event. It reports whether an envelope was the one that the event says.
func (r *twinRack) apply(e replay.Event) bool {
	r.load = nil
	switch e := e.(type) {
	case replay.InitialSetup:
		r.setup(e)
	case replay.DeliverEnvelope:
		l, ok := r.pop(e.To)
		if !ok || l.from != e.From || l.kind != e.Message.Kind || l.epoch != e.Message.Epoch || l.x != e.Message.X {
			return false
		}
	case replay.LoadRackSecret:
		l := r.nodes[e.ID].load(e.Epoch)
		r.load = &l
		r.flush(e.ID)
	case replay.ClearSecrets:
		r.nodes[e.ID].clear()
	case replay.SendReply:
		r.replies = append(r.replies, e.Reply)
	case replay.DeliverReply:
		r.deliverReply()
	case replay.CommitConfiguration:
		r.replies = append(r.replies, replay.Reply{From: e.ID, Epoch: r.latest().Epoch})
		return r.nodes[e.ID].commit(r.latest().Epoch)
	case replay.PrepareAndCommit:
		from := r.nodes[r.latest().Prepared[0]]
		r.nodes[e.ID].onCommitAdvance(from.configs[newest(from.configs)])
		r.flush(e.ID)
	case replay.Reconfigure:
		r.register(e.Change, e.LRTQ)
	case replay.AbortConfiguration:
		r.latest().Op = replay.OpAborted
	case replay.CrashNode:
		delete(r.wire, e.ID)
		r.down[e.ID] = true
		for _, id := range r.ids {
			if !r.down[id] {
				delete(r.nodes[id].connected, e.ID)
			}
		}
	case replay.RestartNode:
		delete(r.down, e.ID)
		r.nodes[e.ID] = r.nodes[e.ID].restarted()
		for _, p := range e.Order {
			r.nodes[p].connect(e.ID)
			r.flush(p)
			r.nodes[e.ID].connect(p)
			r.flush(e.ID)
		}
	}
	return true
}

// pop delivers the newest message for a sled.
func (r *twinRack) pop(to ident.Baseboard) (twinLetter, bool) {
	stack := r.wire[to]
	if len(stack) == 0 {
		return twinLetter{}, false
	}
	l := stack[len(stack)-1]
	if r.wire[to] = stack[:len(stack)-1]; len(stack) == 1 {
		delete(r.wire, to)
	}
	r.nodes[to].handle(l)
	r.flush(to)
	return l, true
}

func (r *twinRack) deliverReply() {
	a := r.replies[len(r.replies)-1]
	r.replies = r.replies[:len(r.replies)-1]
	c := r.latest()
	switch {
	case a.Epoch != c.Epoch:
	case !a.From.IsZero():
		c.Committed = union(c.Committed, a.From)
	default:
		c.Prepared = union(c.Prepared, a.Acks...)
		if len(c.Prepared) >= int(c.Threshold)+int(c.Tolerance) {
			c.Op = replay.OpCommitted
			if c.LastCommitted != nil {
				for _, m := range r.change(*c.LastCommitted).Members {
					if !slices.Contains(c.Members, m) {
						r.expunged[m] = true
					}
				}
			}
		}
	}
}

func union(set []ident.Baseboard, more ...ident.Baseboard) []ident.Baseboard {
	all := ident.SortBaseboards(append(slices.Clone(set), more...))
	return slices.Compact(all)
}

func (r *twinRack) final() replay.Final {
	f := replay.Final{Crashed: sorted(r.down), Expunged: sorted(r.expunged), Nodes: map[ident.Baseboard]replay.NodeView{}}
	for _, c := range r.changes {
		f.Changes = append(f.Changes, *c)
	}
	for _, id := range r.ids {
		f.Nodes[id] = r.nodes[id].view(r.down[id])
	}
	return f
}
