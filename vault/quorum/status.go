package quorum

import (
	"maps"
	"slices"

	"github.com/sledvault/sledvault/vault/ident"
)

// Status is everything a node says about itself. It holds no secrets.
type Status struct {
	ID              ident.Baseboard
	RackID          *ident.RackID // nil while unknown
	Peers           []PeerStatus  // connected, ascending
	Configs         []ident.Epoch // ascending, as the next three
	Shares          []ident.Epoch
	Commits         []ident.Epoch
	Certificates    []ident.Epoch
	LatestCommitted *Configuration // nil if nothing is committed
	KeepFrom        ident.Epoch    // first epoch whose secret LatestCommitted keeps; 0 if it keeps all
	Expunged        *Expunged
	LRTQ            bool               // holds a package of the older scheme
	Coordinator     *CoordinatorStatus // nil unless coordinating
	KeyShare        *CollectionStatus  // nil unless computing an own share
	Loader          LoaderStatus
	Agreement       *CollectionStatus // nil unless comparing shares; Want is one more than the threshold
	Alarms          []Alarm           // in the order in which they were raised
}

// PeerStatus is one connected peer.
type PeerStatus struct {
	ID        ident.Baseboard
	Authority bool // it understands grants and certificates
}

// CoordinatorStatus is the progress of a coordination. While shares of the old epoch are collected, Config has no older
// secrets yet and nobody has acknowledged.
type CoordinatorStatus struct {
	Config     *Configuration
	Acked      []ident.Baseboard // ascending; includes the coordinator once preparing
	Collecting *CollectionStatus // nil once preparing
}

// LoaderStatus says which secrets are in memory and what is being collected.
type LoaderStatus struct {
	Loaded     []ident.Epoch     // ascending
	Waiting    int               // requests without an answer
	Collecting *CollectionStatus // nil unless collecting
}

// CollectionStatus says how far a collection of shares has come and who is missing. Epoch 1 of a coordination that upgrades
// is the older scheme.
type CollectionStatus struct {
	Epoch               ident.Epoch
	Have, Want          int
	MissingConnected    []ident.Baseboard // members that have not answered, ascending
	MissingDisconnected []ident.Baseboard // members without a connection, ascending
}

// Status is a snapshot. It includes what the last output has not made durable yet.
func (n *Node) Status() Status {
	s := Status{
		ID: n.id, Configs: Epochs(n.st.Configs), Shares: Epochs(n.st.Shares), Commits: Epochs(n.st.Commits),
		Certificates: Epochs(n.st.Certificates), LatestCommitted: n.known.committed, Expunged: n.st.Expunged, LRTQ: n.st.LRTQ != nil,
		Alarms: slices.Clone(n.alarms),
		Loader: LoaderStatus{Loaded: n.loader.loaded.Epochs(), Waiting: len(n.loader.waiters), Collecting: n.collecting(n.loader.collector)},
	}
	if c := n.known.committed; c != nil && n.st.Certificates[c.Epoch] != nil {
		s.KeepFrom = n.st.Certificates[c.Epoch].KeepFrom
	}
	if n.known.hasRack {
		rack := n.known.rack
		s.RackID = &rack
	}
	for _, id := range slices.SortedFunc(maps.Keys(n.peers), ident.Baseboard.Compare) {
		s.Peers = append(s.Peers, PeerStatus{id, n.peers[id].authority})
	}
	if c := n.coord; c != nil {
		s.Coordinator = &CoordinatorStatus{Config: c.config, Collecting: n.collecting(c.old)}
		for i, m := range c.config.Members {
			if c.acked[i] {
				s.Coordinator.Acked = append(s.Coordinator.Acked, m.ID)
			}
		}
	}
	if n.computer != nil {
		s.KeyShare = n.collecting(n.computer.shares)
	}
	if a := n.agreement; a != nil {
		s.Agreement = n.collecting(a.shares)
		s.Agreement.Want = a.wanted()
	}
	return s
}

// Roles says what a node is busy with: epochs, 0 where it is not. It costs nothing, unlike [Node.Status].
type Roles struct {
	Coordinating ident.Epoch // the new configuration
	Computing    ident.Epoch // the epoch whose own share is being computed
	Collecting   ident.Epoch // the epoch whose rack secret is being collected
}

// Roles returns the node's roles.
func (n *Node) Roles() (r Roles) {
	if n.coord != nil {
		r.Coordinating = n.coord.config.Epoch
	}
	if n.computer != nil {
		r.Computing = n.computer.shares.config.Epoch
	}
	if n.loader.collector != nil {
		r.Collecting = n.loader.collector.config.Epoch
	}
	return r
}

// Acked reports whether this node coordinates the epoch and the member has acknowledged it.
func (n *Node) Acked(e ident.Epoch, id ident.Baseboard) bool {
	if n.coord == nil || n.coord.config.Epoch != e {
		return false
	}
	i, ok := n.coord.config.Index(id)
	return ok && n.coord.acked[i]
}

func (n *Node) collecting(c *collection) *CollectionStatus {
	if c == nil {
		return nil
	}
	s := &CollectionStatus{Epoch: c.epoch(), Have: c.have, Want: c.want()}
	for i, m := range c.config.Members {
		switch {
		case m.ID == n.id || !c.shares[i].Y.IsEmpty():
		case n.peers[m.ID] != nil:
			s.MissingConnected = append(s.MissingConnected, m.ID)
		default:
			s.MissingDisconnected = append(s.MissingDisconnected, m.ID)
		}
	}
	return s
}
