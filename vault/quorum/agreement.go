package quorum

import (
	"slices"

	"github.com/sledvault/sledvault/vault/gfss"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/keys"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
)

// agreement checks that the rack can rebuild the secret of the latest committed epoch without help of its coordinator:
// one share more than the threshold must lie on one polynomial (protocol.md §8.5). Digests cannot show that, since the
// coordinator made them from whatever it handed out.
type agreement struct {
	shares  *collection // holds only the own share until asked
	asked   bool        // enough members are connected, and were asked
	waiters []RequestID // in the order of their requests
}

// wanted is how many shares are compared: one more than the secret needs. Every configuration has that many members.
func (a *agreement) wanted() int { return int(a.shares.config.Threshold) + 1 }

// checkAgreement refuses, or makes the request wait. Requests for one epoch share a collection.
func (n *Node) checkAgreement(in CheckAgreement) error {
	latest := n.known.committedEpoch()
	switch {
	case n.st.Expunged != nil:
		return errExpunged(n.st.Expunged)
	case n.known.committed == nil:
		return reason.Later(CodeNoCommitted, "initialise the rack, or add this sled to it", "quorum: check agreement: no committed configuration")
	case in.Epoch > latest:
		return reason.Later(CodeNotCommitted, "", "quorum: check agreement on epoch %d: latest committed is %d", in.Epoch, latest)
	case in.Epoch < latest:
		return errOutdated(in.Epoch, latest)
	case n.disagreed == latest:
		return errDisagree(n.known.committed)
	}
	if a := n.agreement; a != nil {
		switch {
		case slices.Contains(a.waiters, in.ID):
			return reason.New(CodeDuplicateRequest, "", "quorum: check agreement: request %d is waiting already", in.ID)
		case len(a.waiters) >= n.limits.Waiters:
			return reason.Later(CodeBusy, "", "quorum: check agreement: %d requests are waiting", len(a.waiters))
		}
		a.waiters = append(a.waiters, in.ID)
		return nil
	}
	shares, err := n.ownShareOnly()
	if err != nil {
		return err
	}
	n.agreement = &agreement{shares: shares, waiters: []RequestID{in.ID}}
	n.note(CodeComparing, ident.Baseboard{}, latest, "", "")
	n.askForAgreement()
	return nil
}

func errOutdated(e, latest ident.Epoch) error {
	return reason.Later(CodeOutdated, "ask again for the latest epoch", "quorum: check agreement on epoch %d: epoch %d is committed", e, latest)
}

func errDisagree(c *Configuration) error {
	return reason.New(CodeSharesDisagree, hintDisagree,
		"quorum: the shares of epoch %d do not lie on one polynomial: its coordinator %s handed out shares that different sleds rebuild to different secrets",
		c.Epoch, c.Coordinator)
}

// reachable counts the members that can give a share at once, this node included.
func (n *Node) reachable(c *Configuration) int {
	count := 1
	for _, m := range c.Members {
		if m.ID != n.id && n.peers[m.ID] != nil {
			count++
		}
	}
	return count
}

// askForAgreement asks for shares once enough members are connected. Not earlier: a threshold of shares is as good as
// the secret, and waiting for one more sled may take days.
func (n *Node) askForAgreement() {
	a := n.agreement
	if a.asked || n.reachable(a.shares.config) < a.wanted() {
		return
	}
	a.asked = true
	a.shares.ask(n)
}

func (n *Node) agreementPeerUp(id ident.Baseboard) {
	a := n.agreement
	switch {
	case a == nil || !a.shares.config.Has(id):
	case a.asked:
		a.shares.askAgain(n, id)
	default:
		n.askForAgreement()
	}
}

// agreementPeerDown gives up the shares of others when too few members are left to compare them with.
func (n *Node) agreementPeerDown() error {
	a := n.agreement
	if a == nil || !a.asked || n.reachable(a.shares.config) >= a.wanted() {
		return nil
	}
	fresh, err := n.ownShareOnly()
	if err != nil {
		return err
	}
	a.shares.destroy()
	a.shares, a.asked = fresh, false
	return nil
}

// agreementShare takes a share; with the last one needed, all are compared and everybody who waits is answered.
func (n *Node) agreementShare(from ident.Baseboard, m ShareReply) error {
	a := n.agreement
	if a == nil || !a.asked || a.shares.config.Epoch != m.Epoch {
		return nil
	}
	if added, err := a.shares.add(n, from, m.Share); err != nil || !added || a.shares.have < a.wanted() {
		return err
	}
	c := a.shares.config
	sec, agree, err := n.compare(a.shares)
	if err != nil {
		return exhausted(err)
	}
	defer sec.Destroy()
	if !agree {
		n.disagreed = c.Epoch // digests never change, so no later answer can heal this epoch
		err := errDisagree(c)
		n.refused(refuse(CodeSharesDisagree, AlarmMixedPolynomial, "%v", err), c.Coordinator, c.Epoch, KindShare)
		n.endAgreement(err)
		return nil
	}
	if err := n.opensOlder(c, sec); err != nil {
		n.refused(refuse(CodeSecretDamaged, AlarmDecryptionFailed, "%v", err), c.Coordinator, c.Epoch, KindShare)
		n.endAgreement(reason.Wrap(err, CodeSecretDamaged, hintDisagree, "quorum: the secret of epoch %d does not open the older ones", c.Epoch))
		return nil
	}
	n.note(CodeSharesAgree, ident.Baseboard{}, c.Epoch, "", "")
	for _, id := range a.waiters {
		s, err := sec.Clone(n.alloc)
		if err != nil {
			return exhausted(err)
		}
		n.reply(Reply{ID: id, Epoch: c.Epoch, Secret: s})
	}
	a.waiters = nil
	n.endAgreement(nil)
	return nil
}

// compare rebuilds the secret from a threshold of the shares and computes every other share from them. The secret that
// is in memory, from whatever shares it came, must be the same one.
func (n *Node) compare(col *collection) (sec secret.RackSecret, agree bool, err error) {
	k := int(col.config.Threshold)
	shares := col.present()
	for _, s := range shares[k:] {
		want, err := gfss.ComputeShare(n.alloc, shares[:k], s.X)
		if err != nil {
			return sec, false, err
		}
		same := want.Y.Equal(s.Y)
		want.Destroy()
		if !same {
			return sec, false, nil
		}
	}
	if sec, err = gfss.Combine(n.alloc, shares[:k]); err != nil {
		return sec, false, err
	}
	if have, ok := n.loader.loaded[col.config.Epoch]; ok && !have.Equal(sec) {
		return sec, false, nil
	}
	return sec, true, nil
}

// opensOlder checks that a secret opens the older ones: without them it would never load again.
func (n *Node) opensOlder(c *Configuration, sec secret.RackSecret) error {
	if c.EncryptedSecrets == nil {
		return nil
	}
	old, err := keys.Decrypt(n.alloc, *c.EncryptedSecrets, sec, c.RackID, c.Epoch)
	old.Destroy()
	return err
}

// endAgreement wipes the collected shares and gives everybody who still waits the error.
func (n *Node) endAgreement(why error) {
	a := n.agreement
	if a == nil {
		return
	}
	for _, id := range a.waiters {
		n.reply(Reply{ID: id, Err: why})
	}
	a.shares.destroy()
	n.agreement = nil
}

// agreementCommitted ends a comparison that a newer commit has made pointless.
func (n *Node) agreementCommitted() {
	if a, latest := n.agreement, n.known.committedEpoch(); a != nil && a.shares.config.Epoch < latest {
		n.endAgreement(errOutdated(a.shares.config.Epoch, latest))
	}
}

// cancelAgreement withdraws a request; without any left the shares are wiped.
func (n *Node) cancelAgreement(id RequestID) {
	if a := n.agreement; a != nil {
		if a.waiters = slices.DeleteFunc(a.waiters, func(w RequestID) bool { return w == id }); len(a.waiters) == 0 {
			n.endAgreement(nil)
		}
	}
}
