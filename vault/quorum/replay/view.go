package replay

import (
	"slices"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
)

// Final is the state of a rack, but for what is random in every run. As JSON it has the form of the reference's.
type Final struct {
	Changes  []Change                     `json:"controller_configs"`
	Crashed  []ident.Baseboard            `json:"crashed_nodes"`
	Expunged []ident.Baseboard            `json:"expunged"` // by the controller's book
	Nodes    map[ident.Baseboard]NodeView `json:"nodes"`
}

// NodeView is the state of one node. Lists of epochs and identities are ascending.
type NodeView struct {
	Alarms       []quorum.AlarmKind `json:"alarms"`
	Collecting   *ident.Epoch       `json:"collecting"` // whose rack secret is being collected
	Commits      []ident.Epoch      `json:"commits"`
	Computing    *ComputingView     `json:"computing_key_share"`
	Configs      []ident.Epoch      `json:"configs"`
	Connected    []ident.Baseboard  `json:"connected"`
	Coordinating *CoordinatingView  `json:"coordinating"`
	Crashed      bool               `json:"crashed"`
	Expunged     *ExpungedView      `json:"expunged"`
	HasLRTQ      bool               `json:"has_lrtq_share"`
	Loaded       []ident.Epoch      `json:"loaded"`
	Outgoing     int                `json:"outgoing"` // always 0: what a node sends leaves with the event
	RackID       *ident.RackID      `json:"rack_id"`
	Shares       [][2]uint64        `json:"shares"` // epoch and number
}

// ComputingView is the computation of an own share.
type ComputingView struct {
	Epoch ident.Epoch `json:"epoch"`
}

// ExpungedView says by whom a node learned that it is no longer a member.
type ExpungedView struct {
	Epoch ident.Epoch     `json:"epoch"`
	From  ident.Baseboard `json:"from"`
}

// CoordinatingView is a coordination under way.
type CoordinatingView struct {
	Config *Config     `json:"config"`
	Epoch  ident.Epoch `json:"epoch"`
	Kind   string      `json:"kind"` // "reconfigure" or "lrtq_upgrade"
	Op     OpView      `json:"op"`
}

// OpView is what a coordinator does: "collect shares", "collect lrtq shares" or "prepare".
type OpView struct {
	Name      string             `json:"name"`
	Acks      *[]ident.Baseboard `json:"acks,omitempty"`
	Pending   *[]ident.Baseboard `json:"pending,omitempty"`
	Collected *[]ident.Baseboard `json:"collected,omitempty"`
	OldEpoch  ident.Epoch        `json:"old_epoch,omitempty"`
}

// Final is the state that the rack has now.
func (r *Rack) Final() Final {
	f := Final{Changes: []Change{}, Crashed: []ident.Baseboard{}, Expunged: []ident.Baseboard{}, Nodes: map[ident.Baseboard]NodeView{}}
	for _, c := range r.changes {
		f.Changes = append(f.Changes, *c)
	}
	for _, s := range r.sorted {
		if s.down {
			f.Crashed = append(f.Crashed, s.id)
		}
		if r.expunged[s.id] {
			f.Expunged = append(f.Expunged, s.id)
		}
		f.Nodes[s.id] = s.view()
	}
	return f
}

func (s *sled) view() NodeView { return View(s.node, s.down) }

// View is the state of a node.
func View(n *quorum.Node, down bool) NodeView {
	v, status, roles := StoredView(n.State()), n.Status(), n.Roles()
	v.Crashed, v.Loaded = down, list(status.Loader.Loaded)
	for _, a := range status.Alarms {
		v.Alarms = append(v.Alarms, a.Kind)
	}
	for _, p := range status.Peers {
		v.Connected = append(v.Connected, p.ID)
	}
	if roles.Collecting != 0 {
		v.Collecting = &roles.Collecting
	}
	if roles.Computing != 0 {
		v.Computing = &ComputingView{roles.Computing}
	}
	if status.Coordinator != nil {
		v.Coordinating = coordinating(n.State(), status.Coordinator)
	}
	return v
}

// StoredView is what a node will start from that is down and has lost its memory.
func StoredView(st quorum.State) NodeView {
	v := NodeView{
		Alarms: []quorum.AlarmKind{}, Commits: list(quorum.Epochs(st.Commits)), Configs: list(quorum.Epochs(st.Configs)), Crashed: true,
		Connected: []ident.Baseboard{}, HasLRTQ: st.LRTQ != nil, Loaded: []ident.Epoch{}, Shares: [][2]uint64{},
	}
	for _, e := range quorum.Epochs(st.Shares) {
		v.Shares = append(v.Shares, [2]uint64{uint64(e), uint64(st.Shares[e].X)})
	}
	if x := st.Expunged; x != nil {
		v.Expunged = &ExpungedView{x.Epoch, x.From}
	}
	if rack, ok := st.RackID(); ok {
		v.RackID = &rack
	}
	return v
}

func list[T any](in []T) []T { return append([]T{}, in...) }

func coordinating(st quorum.State, c *quorum.CoordinatorStatus) *CoordinatingView {
	v := &CoordinatingView{Config: configView(c.Config), Epoch: c.Config.Epoch, Kind: "reconfigure"}
	v.Config.RackID = ident.RackID{}
	if st.LRTQOnly() {
		v.Kind = "lrtq_upgrade"
	}
	if col := c.Collecting; col != nil {
		of := v.Config.Members // of whom shares are collected
		v.Op = OpView{Name: "collect lrtq shares"}
		if !st.LRTQOnly() {
			v.Op = OpView{Name: "collect shares", OldEpoch: col.Epoch}
			of = configView(st.Configs[col.Epoch]).Members
		}
		have := without(of, slices.Concat(col.MissingConnected, col.MissingDisconnected))
		v.Op.Collected = &have
		return v
	}
	acks := list(c.Acked)
	pending := without(v.Config.Members, acks)
	v.Op = OpView{Name: "prepare", Acks: &acks, Pending: &pending}
	return v
}

// without returns the elements of a list that are not in another.
func without(in, out []ident.Baseboard) []ident.Baseboard {
	have := []ident.Baseboard{}
	for _, id := range in {
		if !slices.Contains(out, id) {
			have = append(have, id)
		}
	}
	return have
}
