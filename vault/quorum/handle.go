package quorum

import (
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/reason"
)

// message dispatches one message of a peer (protocol.md §9).
func (n *Node) message(in PeerMessage) error {
	kind, from, m := Kind(""), in.From, in.Message
	if m.Kind != nil {
		kind = KindOf(m.Kind)
	}
	switch {
	case m.Kind == nil:
		n.note(CodeMalformed, from, 0, "", "no content")
		return nil
	case !n.lax && n.peers[from] == nil:
		n.note(CodeNotConnected, from, 0, kind, "")
		return nil
	case n.st.Expunged != nil:
		n.note(CodeExpunged, from, 0, kind, "this sled is expunged")
		return nil
	case n.known.hasRack && n.known.rack != m.RackID:
		n.note(CodeInvalidRackID, from, 0, kind, m.RackID.String())
		return nil
	}
	switch k := m.Kind.(type) {
	case Prepare:
		return n.onPrepare(from, m.RackID, k)
	case PrepareAck:
		n.coordinatorAck(from, k.Epoch)
	case GetShare:
		return n.onGetShare(from, k.Epoch)
	case ShareReply:
		return n.onShare(from, k)
	case GetLRTQShare:
		return n.onGetLRTQShare(from)
	case LRTQShare:
		return n.onLRTQShare(from, k)
	case ExpungedNotice:
		return n.onExpunged(from, k.Epoch)
	case CommitAdvance:
		return n.onCommitAdvance(from, m.RackID, k.Config)
	case GrantNotice:
		n.onGrant(from, k)
	case CommitProof:
		n.onProof(from, k)
	case NoSuchShare:
		n.note(CodeNoSuchShare, from, k.Epoch, kind, "the peer has none")
	}
	return nil
}

func (n *Node) onPrepare(from ident.Baseboard, rack ident.RackID, m Prepare) error {
	c := m.Config
	if c == nil {
		n.note(CodeMalformed, from, 0, KindPrepare, "no configuration")
		return nil
	}
	repeated, r := n.validatePrepare(rack, m, from)
	if r != nil {
		n.refused(r, from, c.Epoch, KindPrepare)
		return nil
	}
	if !repeated {
		if err := n.storeConfig(c); err != nil {
			return err
		}
		if err := n.storeShare(c, m.Share); err != nil {
			return err
		}
		n.note(CodePrepared, from, c.Epoch, KindPrepare, "")
		if cert := n.st.Certificates[c.Epoch]; cert != nil { // the share is what the commit was waiting for
			if err := n.commit(proven{c, cert}); err != nil {
				return err
			}
		}
	}
	if n.coord != nil && n.coord.config.Epoch < c.Epoch {
		n.endCoordination("prepared epoch " + epochText(c.Epoch))
	}
	n.send(from, PrepareAck{c.Epoch})
	return nil
}

// onGetShare answers in an order that matters: news of a commit first, or expungement and catching up would not work.
func (n *Node) onGetShare(from ident.Baseboard, e ident.Epoch) error {
	if c := n.known.committed; c != nil && c.Epoch > e {
		n.sendCommitted(from, c)
		return nil
	}
	if c := n.st.Configs[e]; c != nil && !c.Has(from) {
		if n.lax || n.st.Certificates[e] != nil {
			n.sendExpunged(from, c)
		} else {
			n.note(CodeNotMember, from, e, KindGetShare, "asks for a share of a configuration without it")
		}
		return nil
	}
	if _, ok := n.st.Shares[e]; ok {
		return n.sendShare(from, e)
	}
	n.note(CodeNoSuchShare, from, e, KindGetShare, "")
	if p := n.peers[from]; p != nil && !n.lax {
		p.owed = e
		if p.authority && n.known.hasRack {
			n.send(from, NoSuchShare{e})
		}
	}
	return nil
}

func (n *Node) sendShare(to ident.Baseboard, e ident.Epoch) error {
	s, err := n.st.Shares[e].Clone(n.alloc)
	if err != nil {
		return exhausted(err)
	}
	n.send(to, ShareReply{e, s})
	return nil
}

// onShare gives a share to everyone who collects: the coordinator or the computer, and the loader.
func (n *Node) onShare(from ident.Baseboard, m ShareReply) error {
	var err error
	switch {
	case !n.wantsShare(m.Epoch):
		n.note(CodeShareNotNeeded, from, m.Epoch, KindShare, "")
		return nil
	case n.coord != nil:
		err = n.coordinatorShare(from, m)
	case n.computer != nil:
		err = n.computerShare(from, m)
	}
	if err != nil {
		return err
	}
	if err := n.loaderShare(from, m); err != nil {
		return err
	}
	return n.agreementShare(from, m)
}

func (n *Node) wantsShare(e ident.Epoch) bool {
	return n.coord != nil && n.coord.collects(e) ||
		n.computer != nil && n.computer.shares.config.Epoch == e ||
		n.loader.collector != nil && n.loader.collector.config.Epoch == e ||
		n.agreement != nil && n.agreement.asked && n.agreement.shares.config.Epoch == e
}

func (n *Node) onGrant(from ident.Baseboard, k GrantNotice) {
	if p := n.peers[from]; k.Grant == nil || p == nil || n.lax {
		n.note(CodeMalformed, from, 0, KindGrant, "no grant, or none expected")
	} else {
		p.grant = k.Grant
	}
}

func (n *Node) onProof(from ident.Baseboard, k CommitProof) {
	if p := n.peers[from]; k.Certificate == nil || p == nil || n.lax {
		n.note(CodeMalformed, from, 0, KindCommitProof, "no certificate, or none expected")
	} else {
		p.proof = &k
	}
}

// onExpunged believes only a committed configuration that lacks this node and is no older than anything it holds.
func (n *Node) onExpunged(from ident.Baseboard, e ident.Epoch) error {
	latest := n.known.latest
	switch {
	case latest == nil:
		n.note(CodeUnexpected, from, e, KindExpunged, "this sled never was a member")
		return nil
	case !n.lax && n.known.certified == 0:
		// Prepared for an epoch that was given up, but never a member: it may still become one.
		n.note(CodeUnexpected, from, e, KindExpunged, "this sled was in no committed configuration")
		return nil
	case e < latest.Epoch:
		n.note(CodeStale, from, e, KindExpunged, "a later configuration is stored")
		return nil
	}
	p, r := n.provesExpunged(e, from)
	if r == nil && p.config != nil && e == latest.Epoch && !latest.Equal(p.config) {
		r = refuse(CodeConfigConflict, AlarmMismatchedConfigurations, "another configuration of this epoch is stored")
	}
	if r != nil {
		n.refused(r, from, e, KindExpunged)
		return nil
	}
	if p.config != nil { // keep the proof
		if err := n.storeConfig(p.config); err != nil {
			return err
		}
		n.certify(p)
	}
	n.expunge(e, from)
	return nil
}

func (n *Node) onCommitAdvance(from ident.Baseboard, rack ident.RackID, c *Configuration) error {
	var r *refusal
	switch {
	case c == nil:
		n.note(CodeMalformed, from, 0, KindCommitAdvance, "no configuration")
		return nil
	case !c.Has(n.id):
		r = refuse(CodeNotMember, "", "this sled is not in the configuration")
	case n.known.committedEpoch() >= c.Epoch:
		r = refuse(CodeStale, "", "epoch %d is committed", n.known.committedEpoch())
	case c.RackID != rack:
		r = refuse(CodeInvalidRackID, AlarmUncertifiedCommit, "rack of message and configuration differ")
	}
	if r == nil {
		if err := validateConfig(c); err != nil {
			r = refuse(CodeInvalidConfiguration, AlarmUncertifiedCommit, "%v", err)
		}
	}
	var p proven
	if r == nil {
		p, r = n.certified(c, from)
	}
	if r != nil {
		n.refused(r, from, c.Epoch, KindCommitAdvance)
		return nil
	}
	return n.learnCommit(p, from)
}

// learnCommit acts on a proven commit whose commit request this node has missed: it commits if it is prepared and
// otherwise computes its share first (protocol.md §8.3).
func (n *Node) learnCommit(p proven, from ident.Baseboard) error {
	c := p.config
	stored := n.st.Configs[c.Epoch]
	var r *refusal
	switch {
	case !c.Has(n.id):
		r = refuse(CodeNotMember, "", "this sled is not in the configuration")
	case n.known.committedEpoch() >= c.Epoch:
		r = refuse(CodeStale, "", "epoch %d is committed", n.known.committedEpoch())
	case stored != nil && !stored.Equal(c):
		r = refuse(CodeConfigConflict, AlarmMismatchedConfigurations, "another configuration of this epoch is stored")
	}
	if r == nil {
		if err := n.checkOldSecrets(c, p.keepFrom()); err != nil {
			r = refuse(CodeOldSecretsMissing, AlarmUncertifiedCommit, "%v", err)
		}
	}
	if r != nil {
		n.refused(r, from, c.Epoch, KindCommitAdvance)
		return nil
	}
	if n.st.Prepared(c.Epoch) {
		if err := n.commit(p); err != nil {
			return err
		}
		if n.computer != nil && n.computer.shares.config.Epoch <= c.Epoch {
			n.endComputation("committed " + epochText(c.Epoch))
		}
		return nil
	}
	if err := n.storeConfig(c); err != nil {
		return err
	}
	n.certify(p)
	n.endCoordination("learned of commit " + epochText(c.Epoch)) // it built on an older commit
	if n.computer == nil || n.computer.shares.config.Epoch < c.Epoch {
		n.startComputation(p)
	}
	return nil
}

// commitRequest commits a prepared epoch (protocol.md §8.2).
func (n *Node) commitRequest(in Commit) error {
	switch {
	case n.st.Expunged != nil:
		return errExpunged(n.st.Expunged)
	case n.known.hasRack && n.known.rack != in.RackID:
		return errRack(n.known.rack, in.RackID)
	}
	c := n.st.Configs[in.Epoch]
	stale := n.known.committedEpoch() >= in.Epoch
	if !stale && !n.st.Prepared(in.Epoch) {
		return reason.New(CodeNotPrepared, "send prepare-and-commit with the configuration", "quorum: commit epoch %d: not prepared", in.Epoch)
	}
	if !stale || (n.st.Commits[in.Epoch] && in.Certificate != nil) {
		p, err := n.proveCommit(c, in.Certificate)
		if err != nil {
			return err
		}
		if stale {
			n.certify(p) // the membership key may have changed since
		} else if err := n.commit(p); err != nil {
			return err
		}
	}
	n.reply(Reply{ID: in.ID, Status: n.commitStatus(in.Epoch)})
	return nil
}

func (n *Node) commitStatus(e ident.Epoch) CommitStatus {
	if n.st.Commits[e] {
		return Committed
	}
	return Pending
}

// prepareAndCommit takes a committed configuration from the controller (protocol.md §8.3). Whether this node has
// committed is the reply's status: a configuration that changes nothing is no error.
func (n *Node) prepareAndCommit(in PrepareAndCommit) error {
	c := in.Config
	switch {
	case c == nil:
		return reason.New(CodeInvalidConfiguration, "", "quorum: prepare and commit: no configuration")
	case n.st.Expunged != nil:
		return errExpunged(n.st.Expunged)
	case n.known.hasRack && n.known.rack != c.RackID:
		return errRack(n.known.rack, c.RackID)
	}
	if err := validateConfig(c); err != nil {
		return err
	}
	p, err := n.proveCommit(c, in.Certificate)
	if err != nil {
		return err
	}
	if c.Epoch > n.known.committedEpoch() && c.Has(n.id) {
		if err := n.checkOldSecrets(c, p.keepFrom()); err != nil {
			return err
		}
	}
	if err := n.learnCommit(p, ident.Baseboard{}); err != nil {
		return err
	}
	n.reply(Reply{ID: in.ID, Status: n.commitStatus(c.Epoch)})
	return nil
}
