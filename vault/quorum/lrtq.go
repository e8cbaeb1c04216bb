package quorum

import (
	"slices"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/reason"
)

// This file is what the protocol knows of the older scheme (protocol.md §8.6, §9.7): who may upgrade, and what its two
// messages do. The coordination itself is that of coordinator.go, with another collection of old shares.

// LRTQEpoch is the epoch that the older scheme counts as.
const LRTQEpoch ident.Epoch = 1

// lowest is the first epoch that a request may name.
func (r validReconfigure) lowest() ident.Epoch {
	if r.upgrade {
		return LRTQEpoch + 1
	}
	return 1
}

// checkScheme refuses an upgrade where there is nothing to upgrade, and everything else where there still is.
func (n *Node) checkScheme(r validReconfigure) error {
	switch {
	case !r.upgrade && n.coord != nil && n.coord.req.upgrade:
		return reason.Later(CodeUpgradeRunning, "finish or abort the upgrade first", "quorum: epoch %d: upgrading from the older scheme with epoch %d",
			r.epoch, n.coord.config.Epoch)
	case !r.upgrade && n.st.LRTQOnly():
		return reason.New(CodeUpgradeRequired, hintUpgrade, "quorum: epoch %d: the rack still lives by the older scheme", r.epoch)
	case !r.upgrade:
		return nil
	case n.st.Expunged != nil:
		return errExpunged(n.st.Expunged)
	case n.known.hasRack && n.known.rack != r.rack:
		return errRack(n.known.rack, r.rack)
	case n.st.LRTQ == nil:
		return reason.New(CodeNoLRTQShare, "choose a coordinator that was a member of the older scheme", "quorum: epoch %d: no share of the older scheme", r.epoch)
	case n.known.committed != nil:
		return reason.New(CodeAlreadyUpgraded, "nothing to do; see sledvault rack status", "quorum: epoch %d: upgraded already, epoch %d is committed",
			r.epoch, n.known.committedEpoch())
	}
	return nil
}

// onGetLRTQShare answers with the news that the older scheme is over, if it is. Its shares have no owners and no
// membership, so the operator's grant says who may collect them.
func (n *Node) onGetLRTQShare(from ident.Baseboard) error {
	if c := n.known.committed; c != nil {
		n.sendCommitted(from, c)
		return nil
	}
	if n.st.LRTQ == nil {
		n.note(CodeNoLRTQShare, from, LRTQEpoch, KindGetLRTQShare, "")
		if p := n.peers[from]; p != nil && p.authority && !n.lax && n.known.hasRack {
			n.send(from, NoSuchShare{LRTQEpoch})
		}
		return nil
	}
	if r := n.grantedUpgrade(from); r != nil {
		n.refused(r, from, LRTQEpoch, KindGetLRTQShare)
		return nil
	}
	s, err := n.st.LRTQ.Share.Clone(n.alloc)
	if err != nil {
		return exhausted(err)
	}
	n.send(from, LRTQShare{s})
	return nil
}

// grantedUpgrade checks the grant that a coordinator passed on before it asks for a share of the older scheme.
func (n *Node) grantedUpgrade(from ident.Baseboard) *refusal {
	if n.lax {
		return nil
	}
	g := n.peers[from].grant
	switch {
	case g == nil:
		return refuse(CodeGrantMissing, AlarmUngrantedRequest, "no grant came before the request")
	case !g.LRTQUpgrade || g.Coordinator != from || g.RackID != n.known.rack || !slices.Contains(g.Members, n.id):
		return refuse(CodeGrantMismatch, AlarmUngrantedRequest, "the grant is not for an upgrade that this peer coordinates with this sled")
	}
	if err := n.authority.VerifyGrant(g); err != nil {
		return refuse(CodeGrantInvalid, AlarmUngrantedRequest, "%v", err)
	}
	return nil
}

// onLRTQShare gives a share of the older scheme to the upgrade under way.
func (n *Node) onLRTQShare(from ident.Baseboard, m LRTQShare) error {
	if c := n.coord; c == nil || c.old == nil || c.old.lrtq == nil {
		n.note(CodeShareNotNeeded, from, LRTQEpoch, KindLRTQShare, "")
		return nil
	}
	return n.coordinatorCollect(from, m.Share)
}
