package quorum

import (
	"maps"

	"github.com/sledvault/sledvault/vault/gfss"
	"github.com/sledvault/sledvault/vault/ident"
)

// knowledge is what follows from a state, kept so that no step searches its maps.
type knowledge struct {
	rack      ident.RackID
	hasRack   bool
	latest    *Configuration // highest epoch, committed or not
	committed *Configuration // of the latest committed epoch
	certified ident.Epoch    // highest epoch with a certificate, committed here or not; 0 without authority
}

func learn(st State) (k knowledge) {
	k.rack, k.hasRack = st.RackID()
	k.latest, k.committed = st.LatestConfig(), st.LatestCommittedConfig()
	k.certified, _ = last(st.Certificates)
	return k
}

// committedEpoch is the latest committed epoch, 0 if there is none.
func (k knowledge) committedEpoch() ident.Epoch {
	if k.committed == nil {
		return 0
	}
	return k.committed.Epoch
}

// with clones a map and sets one entry, so that states handed out stay what they were.
func with[V any](m map[ident.Epoch]V, e ident.Epoch, v V) map[ident.Epoch]V {
	out := make(map[ident.Epoch]V, len(m)+1)
	maps.Copy(out, m)
	out[e] = v
	return out
}

// storeConfig stores a configuration unless the same one is there. It never overwrites.
func (n *Node) storeConfig(c *Configuration) error {
	if have := n.st.Configs[c.Epoch]; have != nil {
		if !have.Equal(c) {
			return invariant("configurations never change", "epoch %d", c.Epoch)
		}
		return nil
	}
	if n.known.hasRack && n.known.rack != c.RackID {
		return invariant("one rack id", "have %s, want %s", c.RackID, n.known.rack)
	}
	n.st.Configs, n.changed = with(n.st.Configs, c.Epoch, c), true
	n.known.rack, n.known.hasRack = c.RackID, true
	if n.known.latest == nil || n.known.latest.Epoch < c.Epoch {
		n.known.latest = c
	}
	return nil
}

// storeShare copies an own share into the state. The configuration is stored and the share was checked against it.
func (n *Node) storeShare(c *Configuration, s gfss.Share) error {
	if _, have := n.st.Shares[c.Epoch]; have {
		return nil
	}
	own, err := s.Clone(n.alloc)
	if err != nil {
		return exhausted(err)
	}
	n.st.Shares, n.changed = with(n.st.Shares, c.Epoch, own), true
	return n.payDebts(c)
}

// payDebts gives the new share to the members that asked for it in vain.
func (n *Node) payDebts(c *Configuration) error {
	for _, m := range c.Members {
		if p := n.peers[m.ID]; p != nil && p.owed == c.Epoch {
			if err := n.sendShare(m.ID, c.Epoch); err != nil {
				return err
			}
		}
	}
	return nil
}

// commit records a proven epoch for which this node is prepared, and ends what the commit makes pointless: older
// computations, and every coordination, since all of them built on an older commit (protocol.md §8.2).
func (n *Node) commit(p proven) error {
	e := p.config.Epoch
	if !n.st.Prepared(e) {
		return invariant("commits are prepared", "epoch %d", e)
	}
	n.st.Commits, n.changed = with(n.st.Commits, e, true), true
	n.certify(p)
	if n.known.committedEpoch() < e {
		n.known.committed = n.st.Configs[e]
	}
	n.note(CodeCommitted, ident.Baseboard{}, e, "", "")
	if n.coord != nil && (n.coord.config.Epoch <= e || n.coord.base < e) {
		n.endCoordination("committed " + epochText(e))
	}
	pointless := n.computer != nil && n.computer.shares.config.Epoch <= e && !n.lax // the reference lets it run on
	var seed *collection
	if pointless && n.computer.shares.config.Epoch == e {
		seed = n.computer.shares
	}
	n.agreementCommitted()
	if err := n.loaderCommitted(seed); err != nil {
		return err
	}
	if pointless {
		n.endComputation("committed " + epochText(e))
	}
	return nil
}

// certify stores the certificate of a stored configuration, or replaces one that an earlier key signed.
func (n *Node) certify(p proven) {
	e := p.config.Epoch
	if have := n.st.Certificates[e]; p.certificate == nil || (have != nil && *have == *p.certificate) {
		return
	}
	n.st.Certificates, n.changed = with(n.st.Certificates, e, p.certificate), true
	n.known.certified = max(n.known.certified, e)
}

// expunge ends this node's membership for good and wipes every secret that is only in memory.
func (n *Node) expunge(e ident.Epoch, from ident.Baseboard) {
	n.st.Expunged, n.changed = &Expunged{e, from}, true
	n.note(CodeExpungedNow, from, e, "", "")
	n.endCoordination("expunged")
	n.endComputation("expunged")
	n.endAgreement(errExpunged(n.st.Expunged))
	if !n.lax {
		n.failWaiters(errExpunged(n.st.Expunged))
		n.loader.destroy()
	}
}
