package quorum

import (
	"github.com/sledvault/sledvault/vault/gfss"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/keys"
	"github.com/sledvault/sledvault/vault/lrtq"
	"github.com/sledvault/sledvault/vault/secret"
)

// collection gathers valid shares from the members of a configuration: those of its epoch or, for an upgrade, those of
// the older scheme. It holds copies of its own.
type collection struct {
	config *Configuration
	lrtq   *lrtq.Package // what shares of the older scheme must fit; nil when shares of the epoch are collected
	grant  *Grant        // goes before each request for a share of the older scheme; nil otherwise
	shares []gfss.Share  // by member; empty until collected
	have   int
}

func newCollection(c *Configuration) *collection {
	return &collection{config: c, shares: make([]gfss.Share, len(c.Members))}
}

// seed begins a collection with the own share.
func (c *collection) seed(n *Node, own gfss.Share) error {
	i, _ := c.config.Index(n.id)
	own, err := own.Clone(n.alloc)
	if err != nil {
		return err
	}
	c.shares[i], c.have = own, 1
	return nil
}

// ownShareOnly begins a collection of the latest committed epoch.
func (n *Node) ownShareOnly() (*collection, error) {
	c := newCollection(n.known.committed)
	if err := c.seed(n, n.st.Shares[c.config.Epoch]); err != nil {
		return nil, exhausted(err)
	}
	return c, nil
}

// add takes a copy of a member's share after checking it. It reports whether the share was new.
func (c *collection) add(n *Node, from ident.Baseboard, s gfss.Share) (bool, error) {
	i, ok := c.config.Index(from)
	if !ok {
		n.note(CodeNotMember, from, c.epoch(), c.kind(), "the sender is not in the configuration")
		return false, nil
	}
	if !c.fits(i, s) {
		n.refused(refuse(CodeShareInvalid, AlarmInvalidShare, "the share does not fit its number or digest"), from, c.epoch(), c.kind())
		return false, nil
	}
	if !c.shares[i].Y.IsEmpty() {
		return false, nil
	}
	own, err := s.Clone(n.alloc)
	if err != nil {
		return false, exhausted(err)
	}
	c.shares[i] = own
	c.have++
	return true, nil
}

// epoch is the epoch whose shares are collected.
func (c *collection) epoch() ident.Epoch {
	if c.lrtq != nil {
		return LRTQEpoch
	}
	return c.config.Epoch
}

// kind is the message that brings such a share.
func (c *collection) kind() Kind {
	if c.lrtq != nil {
		return KindLRTQShare
	}
	return KindShare
}

// fits checks a member's share. Shares of the older scheme belong to nobody by number, so no two members may give the
// same one.
func (c *collection) fits(member int, s gfss.Share) bool {
	if c.lrtq == nil {
		return checkShare(c.config, member, s)
	}
	if s.Y.Len() != keys.Size {
		return false
	}
	d, err := s.Digest()
	if err != nil || !c.lrtq.Has(d) {
		return false
	}
	for i, have := range c.shares {
		if i == member || have.Y.IsEmpty() {
			continue
		}
		if o, err := have.Digest(); err != nil || o == d {
			return false
		}
	}
	return true
}

// want is how many shares rebuild the secret.
func (c *collection) want() int {
	if c.lrtq != nil {
		return int(c.lrtq.Threshold)
	}
	return int(c.config.Threshold)
}

func (c *collection) enough() bool { return c.have >= c.want() }

// combine rebuilds the secret from everything collected.
func (c *collection) combine(a secret.Allocator) (secret.RackSecret, error) {
	if c.lrtq != nil {
		return lrtq.Combine(a, c.present())
	}
	return gfss.Combine(a, c.present())
}

// present lists the collected shares in the order of members.
func (c *collection) present() []gfss.Share {
	out := make([]gfss.Share, 0, c.have)
	for _, s := range c.shares {
		if !s.Y.IsEmpty() {
			out = append(out, s)
		}
	}
	return out
}

// ask requests a share from every connected member.
func (c *collection) ask(n *Node) {
	for _, m := range c.config.Members {
		if m.ID != n.id && n.peers[m.ID] != nil {
			c.request(n, m.ID)
		}
	}
}

// askAgain requests a share from a member that has just connected, unless its share is there.
func (c *collection) askAgain(n *Node, to ident.Baseboard) {
	if i, ok := c.config.Index(to); ok && c.shares[i].Y.IsEmpty() {
		c.request(n, to)
	}
}

func (c *collection) request(n *Node, to ident.Baseboard) {
	if c.lrtq == nil {
		n.send(to, GetShare{c.config.Epoch})
		return
	}
	if n.speaksAuthority(to, c.config.Epoch, KindGetLRTQShare) {
		n.send(to, GrantNotice{c.grant})
	}
	n.send(to, GetLRTQShare{})
}

func (c *collection) destroy() { gfss.DestroyAll(c.shares) }

// computer computes this node's share of a committed epoch whose Prepare it missed (protocol.md §8.3). The own share is
// what is missing, so threshold other members must answer.
type computer struct {
	shares *collection
	proof  proven
}

func (n *Node) startComputation(p proven) {
	n.endComputation("replaced by epoch " + epochText(p.config.Epoch))
	n.computer = &computer{newCollection(p.config), p}
	n.note(CodeComputing, ident.Baseboard{}, p.config.Epoch, "", "")
	n.computer.shares.ask(n)
}

// resumeComputation goes on after a restart: a stored certificate says that the epoch is committed, so nobody needs to
// tell this node again. The members are asked as they connect.
func (n *Node) resumeComputation() {
	e := n.known.certified
	if c := n.st.Configs[e]; e > n.known.committedEpoch() && n.st.Expunged == nil && c.Has(n.id) {
		n.computer = &computer{newCollection(c), proven{c, n.st.Certificates[e]}}
	}
}

func (n *Node) endComputation(why string) {
	if n.computer == nil {
		return
	}
	n.note(CodeComputingEnded, ident.Baseboard{}, n.computer.shares.config.Epoch, "", why)
	n.computer.shares.destroy()
	n.computer = nil
}

// computerShare takes a share; with the last one needed, the own share is computed, checked, stored and committed.
func (n *Node) computerShare(from ident.Baseboard, m ShareReply) error {
	c := n.computer.shares
	if c.config.Epoch != m.Epoch {
		return nil
	}
	if added, err := c.add(n, from, m.Share); err != nil || !added || !c.enough() {
		return err
	}
	i, _ := c.config.Index(n.id)
	own, err := gfss.ComputeShare(n.alloc, c.present(), byte(i+1))
	if err != nil {
		n.refused(refuse(CodeSecretDamaged, AlarmShareComputationFailed, "%v", err), ident.Baseboard{}, m.Epoch, KindShare)
		return nil
	}
	defer own.Destroy()
	if !checkShare(c.config, i, own) {
		n.refused(refuse(CodeSecretDamaged, AlarmShareComputationFailed, "the computed share does not fit its digest"), ident.Baseboard{}, m.Epoch, KindShare)
		return nil
	}
	if err := n.storeShare(c.config, own); err != nil {
		return err
	}
	if err := n.commit(n.computer.proof); err != nil {
		return err
	}
	n.endComputation("committed " + epochText(m.Epoch))
	return nil
}
