package replay_test

import (
	"maps"
	"slices"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/quorum/replay"
)

// twin is a second, independent model of the reference's node: its rules as we understand them, without any
// cryptography and without any of our deviations. TestTwin holds it against the recorded logs; after that it serves to
// make as many and as long logs as we like, which our own node then has to follow.
type twin struct {
	id        ident.Baseboard
	lrtq      *twinLRTQ
	configs   map[ident.Epoch]*twinConfig
	shares    map[ident.Epoch]byte
	commits   map[ident.Epoch]bool
	expunged  *replay.ExpungedView
	connected map[ident.Baseboard]bool
	coord     *twinCoordinator
	computer  *twinCollection
	loader    *twinCollection
	loaded    map[ident.Epoch]bool
	out       []twinLetter
	changed   bool
}

type twinLRTQ struct{ threshold int }

type twinConfig struct {
	replay.Config
	old []ident.Epoch // whose secrets are inside
}

type twinCollection struct {
	config *twinConfig
	have   map[ident.Baseboard]bool
}

type twinCoordinator struct {
	config  *twinConfig
	upgrade bool
	old     *twinCollection // of shares of the last committed epoch or of the older scheme; nil once preparing
	acks    map[ident.Baseboard]bool
}

type twinLetter struct {
	to, from ident.Baseboard
	kind     quorum.Kind
	epoch    ident.Epoch
	x        byte
	config   *twinConfig
}

func newTwin(id ident.Baseboard) *twin {
	return &twin{
		id: id, configs: map[ident.Epoch]*twinConfig{}, shares: map[ident.Epoch]byte{}, commits: map[ident.Epoch]bool{},
		connected: map[ident.Baseboard]bool{}, loaded: map[ident.Epoch]bool{},
	}
}

// restarted is a new node with what this one has stored.
func (n *twin) restarted() *twin {
	m := newTwin(n.id)
	m.lrtq, m.configs, m.shares, m.commits, m.expunged = n.lrtq, n.configs, n.shares, n.commits, n.expunged
	return m
}

func newest[V any](m map[ident.Epoch]V) (e ident.Epoch) {
	for k := range m {
		e = max(e, k)
	}
	return e
}

func (c *twinConfig) has(id ident.Baseboard) bool { return slices.Contains(c.Members, id) }

func (c *twinConfig) x(id ident.Baseboard) byte { return byte(slices.Index(c.Members, id) + 1) }

func (n *twin) committed() *twinConfig { return n.configs[newest(n.commits)] }

func (n *twin) prepared(e ident.Epoch) bool { return n.configs[e] != nil && n.shares[e] != 0 }

func (n *twin) send(to ident.Baseboard, l twinLetter) {
	l.to, l.from = to, n.id
	n.out = append(n.out, l)
}

// toMembers calls f for every connected member but this node.
func (n *twin) toMembers(c *twinConfig, f func(id ident.Baseboard)) {
	for _, m := range c.Members {
		if m != n.id && n.connected[m] {
			f(m)
		}
	}
}

func (n *twin) askShare(to ident.Baseboard, e ident.Epoch) {
	n.send(to, twinLetter{kind: quorum.KindGetShare, epoch: e})
}

func (n *twin) connect(p ident.Baseboard) {
	n.connected[p] = true
	if c := n.coord; c != nil {
		switch {
		case c.old == nil:
			n.sendPrepare(p)
		case c.old.have[p]:
		case c.upgrade && c.config.has(p):
			n.send(p, twinLetter{kind: quorum.KindGetLRTQShare})
		case !c.upgrade && c.old.config.has(p):
			n.askShare(p, c.old.config.Epoch)
		}
	}
	if c := n.computer; c != nil && c.config.has(p) && !c.have[p] {
		n.askShare(p, c.config.Epoch)
	}
	if c := n.loader; c != nil && c.config.has(p) {
		n.askShare(p, c.config.Epoch)
	}
}

func (n *twin) sendPrepare(p ident.Baseboard) {
	if c := n.coord.config; p != n.id && c.has(p) && !n.coord.acks[p] {
		n.send(p, twinLetter{kind: quorum.KindPrepare, epoch: c.Epoch, x: c.x(p), config: c})
	}
}

func (n *twin) collect(c *twinConfig, own bool) *twinCollection {
	col := &twinCollection{c, map[ident.Baseboard]bool{}}
	if own {
		col.have[n.id] = true
	}
	return col
}

// coordinate is a request for a new configuration, or for the upgrade from the older scheme.
func (n *twin) coordinate(e ident.Epoch, k ident.Threshold, members []ident.Baseboard, upgrade bool) {
	n.computer = nil
	c := &twinConfig{Config: replay.Config{Coordinator: n.id, Epoch: e, Members: members, Threshold: k}}
	n.coord = &twinCoordinator{config: c, upgrade: upgrade}
	switch old := n.committed(); {
	case upgrade:
		n.coord.old = n.collect(c, true)
		n.toMembers(c, func(id ident.Baseboard) { n.send(id, twinLetter{kind: quorum.KindGetLRTQShare}) })
	case old != nil:
		n.coord.old = n.collect(old, true)
		n.toMembers(old, func(id ident.Baseboard) { n.askShare(id, old.Epoch) })
	default:
		n.distribute()
	}
}

func (n *twin) distribute() {
	c := n.coord.config
	if len(c.old) > 0 {
		size := 40*len(c.old) + 16
		c.OldSecrets = &size
	}
	n.coord.old, n.coord.acks = nil, map[ident.Baseboard]bool{n.id: true}
	n.configs[c.Epoch], n.shares[c.Epoch], n.changed = c, c.x(n.id), true
	n.toMembers(c, n.sendPrepare)
}

// gathered takes one of the shares that a coordinator waits for.
func (n *twin) gathered(from ident.Baseboard, want int) {
	c := n.coord
	if c.old.have[from] {
		return
	}
	if c.old.have[from] = true; len(c.old.have) < want {
		return
	}
	if c.config.old = []ident.Epoch{1}; !c.upgrade {
		c.config.old = append(slices.Clone(c.old.config.old), c.old.config.Epoch)
	}
	n.distribute()
}

func (n *twin) commit(e ident.Epoch) bool {
	switch {
	case n.expunged != nil:
		return false
	case newest(n.commits) >= e:
		return true
	case !n.prepared(e):
		return false
	}
	n.commits[e], n.changed = true, true
	if n.coord != nil && n.coord.config.Epoch == e {
		n.coord = nil
	}
	return true
}

func (n *twin) load(e ident.Epoch) replay.Load {
	latest := newest(n.commits)
	switch {
	case n.loaded[e]:
		return replay.Load{Result: replay.LoadSecret}
	case latest == 0:
		return replay.Load{Result: replay.LoadNoCommitted}
	case e > latest:
		return replay.Load{Result: replay.LoadNotCommitted, Epoch: e}
	case n.loaded[latest]:
		return replay.Load{Result: replay.LoadNotAvailable, Epoch: e}
	case n.loader == nil || n.loader.config.Epoch < latest:
		n.loader = n.collect(n.configs[latest], true)
		n.toMembers(n.loader.config, func(id ident.Baseboard) { n.askShare(id, latest) })
	}
	return replay.Load{Result: replay.LoadCollecting}
}

func (n *twin) clear() { n.loaded, n.loader = map[ident.Epoch]bool{}, nil }

// handle takes a message to its end.
func (n *twin) handle(m twinLetter) {
	if n.expunged != nil {
		return
	}
	switch m.kind {
	case quorum.KindPrepare:
		n.onPrepare(m)
	case quorum.KindPrepareAck:
		if c := n.coord; c != nil && c.config.Epoch == m.epoch && c.old == nil && c.config.has(m.from) {
			c.acks[m.from] = true
		}
	case quorum.KindGetShare:
		n.onGetShare(m)
	case quorum.KindShare:
		n.onShare(m)
	case quorum.KindGetLRTQShare:
		if c := n.committed(); c != nil {
			n.news(m.from, c)
		} else if n.lrtq != nil {
			n.send(m.from, twinLetter{kind: quorum.KindLRTQShare})
		}
	case quorum.KindLRTQShare:
		if c := n.coord; c != nil && c.upgrade && c.old != nil {
			n.gathered(m.from, n.lrtq.threshold)
		}
	case quorum.KindCommitAdvance:
		n.onCommitAdvance(m.config)
	case quorum.KindExpunged:
		if len(n.configs) > 0 && m.epoch >= newest(n.configs) {
			n.expunged, n.changed = &replay.ExpungedView{Epoch: m.epoch, From: m.from}, true
			n.coord, n.computer = nil, nil
		}
	case quorum.KindGrant, quorum.KindCommitProof, quorum.KindNoSuchShare: // ours alone: the reference never sends them
	}
}

func (n *twin) onPrepare(m twinLetter) {
	e := m.config.Epoch
	if newest(n.commits) > e || !m.config.has(n.id) {
		return
	}
	if n.shares[e] == 0 || n.configs[e] == nil {
		n.changed = true
	}
	n.shares[e] = m.x
	if n.configs[e] == nil {
		n.configs[e] = m.config
	}
	if n.coord != nil && n.coord.config.Epoch < e {
		n.coord = nil
	}
	n.send(m.from, twinLetter{kind: quorum.KindPrepareAck, epoch: e})
}

// news tells a peer of a newer commit.
func (n *twin) news(to ident.Baseboard, c *twinConfig) {
	if c.has(to) {
		n.send(to, twinLetter{kind: quorum.KindCommitAdvance, epoch: c.Epoch, config: c})
	} else {
		n.send(to, twinLetter{kind: quorum.KindExpunged, epoch: c.Epoch})
	}
}

func (n *twin) onGetShare(m twinLetter) {
	switch c := n.committed(); {
	case c != nil && c.Epoch > m.epoch:
		n.news(m.from, c)
	case n.configs[m.epoch] != nil && !n.configs[m.epoch].has(m.from):
		n.send(m.from, twinLetter{kind: quorum.KindExpunged, epoch: m.epoch})
	case n.shares[m.epoch] != 0:
		n.send(m.from, twinLetter{kind: quorum.KindShare, epoch: m.epoch, x: n.shares[m.epoch]})
	}
}

func (n *twin) onShare(m twinLetter) {
	switch {
	case n.coord != nil:
		if c := n.coord; !c.upgrade && c.old != nil && c.old.config.Epoch == m.epoch && c.old.config.has(m.from) {
			n.gathered(m.from, int(c.old.config.Threshold))
		}
	case n.computer != nil:
		if c := n.computer; c.add(m) {
			n.shares[c.config.Epoch], n.commits[c.config.Epoch], n.changed = c.config.x(n.id), true, true
			n.computer = nil
		}
	}
	if c := n.loader; c != nil && !n.loaded[m.epoch] && c.add(m) {
		n.loaded, n.loader = map[ident.Epoch]bool{c.config.Epoch: true}, nil
		for _, e := range c.config.old {
			n.loaded[e] = true
		}
	}
}

// add takes a share and reports whether it was new and there are enough now.
func (c *twinCollection) add(m twinLetter) bool {
	if m.epoch != c.config.Epoch || !c.config.has(m.from) || c.have[m.from] {
		return false
	}
	c.have[m.from] = true
	return len(c.have) >= int(c.config.Threshold)
}

// onCommitAdvance is also what prepare-and-commit does.
func (n *twin) onCommitAdvance(c *twinConfig) {
	if !c.has(n.id) || newest(n.commits) >= c.Epoch {
		return
	}
	just := n.prepared(c.Epoch)
	if just {
		n.commits[c.Epoch] = true
	} else if n.configs[c.Epoch] == nil {
		n.configs[c.Epoch] = c
	}
	n.changed = true
	if n.coord != nil && n.coord.config.Epoch <= c.Epoch {
		n.coord = nil
	}
	if o := n.computer; o != nil {
		if just && o.config.Epoch <= c.Epoch || o.config.Epoch < c.Epoch {
			n.computer = nil
		}
		if o.config.Epoch >= c.Epoch {
			return
		}
	}
	if !just {
		n.computer = n.collect(c, false)
		n.toMembers(c, func(id ident.Baseboard) { n.askShare(id, c.Epoch) })
	}
}

// view is the node in the form of the final states.
func (n *twin) view(down bool) replay.NodeView {
	v := replay.NodeView{
		Alarms: []quorum.AlarmKind{}, Commits: keys(n.commits), Configs: keys(n.configs), Connected: sorted(n.connected), Crashed: down,
		Expunged: n.expunged, HasLRTQ: n.lrtq != nil, Loaded: keys(n.loaded), Shares: [][2]uint64{},
	}
	for _, e := range keys(n.shares) {
		v.Shares = append(v.Shares, [2]uint64{uint64(e), uint64(n.shares[e])})
	}
	if n.lrtq != nil || len(n.configs) > 0 {
		v.RackID = &ident.RackID{}
	}
	if n.loader != nil {
		v.Collecting = &n.loader.config.Epoch
	}
	if n.computer != nil {
		v.Computing = &replay.ComputingView{Epoch: n.computer.config.Epoch}
	}
	if c := n.coord; c != nil {
		v.Coordinating = c.view()
	}
	return v
}

func (c *twinCoordinator) view() *replay.CoordinatingView {
	v := &replay.CoordinatingView{Config: &c.config.Config, Epoch: c.config.Epoch, Kind: "reconfigure"}
	if c.upgrade {
		v.Kind = "lrtq_upgrade"
	}
	if c.old != nil {
		have := sorted(c.old.have)
		v.Op = replay.OpView{Name: "collect shares", Collected: &have, OldEpoch: c.old.config.Epoch}
		if c.upgrade {
			v.Op = replay.OpView{Name: "collect lrtq shares", Collected: &have}
		}
		return v
	}
	acks, pending := sorted(c.acks), []ident.Baseboard{}
	for _, m := range c.config.Members {
		if !c.acks[m] {
			pending = append(pending, m)
		}
	}
	v.Op = replay.OpView{Name: "prepare", Acks: &acks, Pending: &pending}
	return v
}

func keys[V any](m map[ident.Epoch]V) []ident.Epoch {
	return append([]ident.Epoch{}, slices.Sorted(maps.Keys(m))...)
}

func sorted(m map[ident.Baseboard]bool) []ident.Baseboard {
	return append([]ident.Baseboard{}, slices.SortedFunc(maps.Keys(m), ident.Baseboard.Compare)...)
}
