package quorum

import (
	"github.com/sledvault/sledvault/vault/gfss"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/keys"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
)

// coordinator makes and distributes one new configuration (protocol.md §8.1). It lives in memory only: the new shares
// of others must not outlive the process that made them.
type coordinator struct {
	req    validReconfigure
	base   ident.Epoch    // latest committed epoch when it began; 0 = none
	config *Configuration // digests are final; the older secrets are in it once preparing
	shares []gfss.Share   // new shares by member; wiped one by one as members acknowledge
	acked  []bool         // by member
	old    *collection    // shares of the last committed epoch, or of the older scheme; nil once preparing
}

func (c *coordinator) preparing() bool { return c.old == nil }

// collects reports whether shares of that epoch are collected. Those of the older scheme come in messages of their own.
func (c *coordinator) collects(e ident.Epoch) bool {
	return c.old != nil && c.old.lrtq == nil && c.old.config.Epoch == e
}

func (c *coordinator) destroy() {
	gfss.DestroyAll(c.shares)
	if c.old != nil {
		c.old.destroy()
	}
}

// reconfigure starts a coordination. A request that is being coordinated already succeeds without any effect.
func (n *Node) reconfigure(in Reconfigure) error {
	req := validReconfigure{rack: in.RackID, epoch: in.Epoch, threshold: in.Threshold, grant: in.Grant}
	if in.LastCommitted != nil {
		req.last, req.based = *in.LastCommitted, true
	}
	return n.coordinate(in.ID, req, in.Members)
}

// upgradeLRTQ starts the coordination that brings a rack over from the older scheme.
func (n *Node) upgradeLRTQ(in UpgradeLRTQ) error {
	req := validReconfigure{rack: in.RackID, epoch: in.Epoch, threshold: in.Threshold, grant: in.Grant, upgrade: true}
	return n.coordinate(in.ID, req, in.Members)
}

func (n *Node) coordinate(id RequestID, req validReconfigure, members []ident.Baseboard) error {
	req, repeated, err := n.validateRequest(req, members)
	if err != nil {
		return err
	}
	if repeated {
		n.reply(Reply{ID: id})
		return nil
	}
	c, err := n.newCoordinator(req)
	if err != nil {
		return reason.Wrap(err, CodeConfigurationFailed, "", "quorum: epoch %d: new configuration", req.epoch)
	}
	n.endComputation("coordinating epoch " + epochText(req.epoch))
	n.endCoordination("replaced by epoch " + epochText(req.epoch))
	n.coord = c
	n.note(CodeCoordinating, ident.Baseboard{}, req.epoch, "", "")
	n.reply(Reply{ID: id})
	if c.preparing() {
		return n.distribute()
	}
	c.old.ask(n)
	return nil
}

// newCoordinator draws the new secret, splits it and forgets it. Nothing of the node changes.
func (n *Node) newCoordinator(req validReconfigure) (*coordinator, error) {
	sec, err := keys.NewRackSecret(n.alloc, n.rand)
	if err != nil {
		return nil, err
	}
	defer sec.Destroy()
	c := &coordinator{req: req, base: req.last, acked: make([]bool, len(req.members))}
	if c.shares, err = gfss.Split(n.alloc, n.rand, sec, len(req.members), int(req.threshold)); err != nil {
		return nil, err
	}
	c.config = &Configuration{
		RackID: req.rack, Epoch: req.epoch, Coordinator: n.id, Threshold: req.threshold,
		Members: make([]Member, len(req.members)),
	}
	for i, id := range req.members {
		digest, err := c.shares[i].Digest()
		if err != nil {
			c.destroy()
			return nil, err
		}
		c.config.Members[i] = Member{id, digest}
	}
	switch {
	case req.upgrade:
		c.old = newCollection(c.config)
		c.old.lrtq, c.old.grant = n.st.LRTQ, req.grant
		err = c.old.seed(n, n.st.LRTQ.Share)
	case n.known.committed != nil:
		c.old = newCollection(n.known.committed)
		err = c.old.seed(n, n.st.Shares[n.known.committed.Epoch])
	}
	if err != nil {
		c.destroy()
	}
	return c, err
}

// endCoordination wipes the coordination under way, if any.
func (n *Node) endCoordination(why string) {
	if n.coord == nil {
		return
	}
	n.note(CodeCoordinationEnded, ident.Baseboard{}, n.coord.config.Epoch, "", why)
	n.coord.destroy()
	n.coord = nil
}

// coordinatorShare takes a share of the last committed epoch; with the last one needed, the new configuration is
// completed and goes out.
func (n *Node) coordinatorShare(from ident.Baseboard, m ShareReply) error {
	if !n.coord.collects(m.Epoch) {
		return nil
	}
	return n.coordinatorCollect(from, m.Share)
}

// coordinatorCollect takes one of the shares that the coordination waits for.
func (n *Node) coordinatorCollect(from ident.Baseboard, s gfss.Share) error {
	c := n.coord
	if added, err := c.old.add(n, from, s); err != nil || !added || !c.old.enough() {
		return err
	}
	done := *c.config
	enc, err := n.carryOver(c)
	if err == nil {
		done.EncryptedSecrets = &enc
		err = n.checkOldSecrets(&done, c.req.keepFrom()) // members would refuse it, and blame this sled
	}
	if err != nil {
		// Nothing that may still arrive can mend this. Ending it lets the controller see and move on.
		n.refused(refuse(CodeSecretDamaged, AlarmCoordinationFailed, "%v", err), ident.Baseboard{}, c.config.Epoch, "")
		n.endCoordination("older secrets cannot be carried over")
		return nil
	}
	c.config = &done
	c.old.destroy()
	c.old = nil
	return n.distribute()
}

// carryOver encrypts the last committed secret and everything older under the new one.
func (n *Node) carryOver(c *coordinator) (enc keys.EncryptedSecrets, err error) {
	last, err := c.old.combine(n.alloc)
	if err != nil {
		return enc, err
	}
	defer last.Destroy()
	old := keys.OldSecrets{}
	if o := c.old.config; c.old.lrtq == nil && o.EncryptedSecrets != nil {
		if old, err = keys.Decrypt(n.alloc, *o.EncryptedSecrets, last, o.RackID, o.Epoch); err != nil {
			return enc, err
		}
		defer old.Destroy()
	}
	fresh, err := gfss.Combine(n.alloc, c.shares[:c.config.Threshold])
	if err != nil {
		return enc, err
	}
	defer fresh.Destroy()
	all := make(map[ident.Epoch]secret.RackSecret, len(old)+1)
	for e, s := range old {
		if e >= c.req.keepFrom() {
			all[e] = s
		}
	}
	all[c.old.epoch()] = last
	return keys.Encrypt(n.rand, fresh, c.config.RackID, c.config.Epoch, all)
}

// distribute stores the own part of a complete configuration and sends their parts to the connected members.
func (n *Node) distribute() error {
	c := n.coord
	i, _ := c.config.Index(n.id)
	if err := n.storeConfig(c.config); err != nil {
		return err
	}
	if err := n.storeShare(c.config, c.shares[i]); err != nil {
		return err
	}
	c.acked[i] = true
	c.shares[i].Destroy()
	n.note(CodePreparing, ident.Baseboard{}, c.config.Epoch, "", "")
	for i, m := range c.config.Members {
		if n.peers[m.ID] != nil {
			if err := n.sendPrepare(i); err != nil {
				return err
			}
		}
	}
	return nil
}

// sendPrepare hands a member its share, after the grant that it will ask for. Members that have acknowledged get nothing.
func (n *Node) sendPrepare(member int) error {
	c := n.coord
	if c.acked[member] {
		return nil
	}
	to := c.config.Members[member].ID
	share, err := c.shares[member].Clone(n.alloc)
	if err != nil {
		return exhausted(err)
	}
	if n.speaksAuthority(to, c.config.Epoch, KindPrepare) {
		n.send(to, GrantNotice{c.req.grant})
	}
	n.send(to, Prepare{c.config, share})
	return nil
}

// coordinatorPeerUp sends a peer again what it may have missed.
func (n *Node) coordinatorPeerUp(id ident.Baseboard) error {
	switch c := n.coord; {
	case c == nil:
	case !c.preparing():
		c.old.askAgain(n, id)
	default:
		if i, ok := c.config.Index(id); ok {
			return n.sendPrepare(i)
		}
	}
	return nil
}

// coordinatorAck records that a member has prepared, and wipes its share here.
func (n *Node) coordinatorAck(from ident.Baseboard, e ident.Epoch) {
	c := n.coord
	if c == nil || c.config.Epoch != e || !c.preparing() {
		n.note(CodeUnexpected, from, e, KindPrepareAck, "not preparing this epoch")
		return
	}
	i, ok := c.config.Index(from)
	if !ok {
		n.note(CodeNotMember, from, e, KindPrepareAck, "the sender is not in the configuration")
		return
	}
	if !c.acked[i] {
		c.acked[i] = true
		c.shares[i].Destroy()
		n.note(CodeAcked, from, e, KindPrepareAck, "")
	}
}
