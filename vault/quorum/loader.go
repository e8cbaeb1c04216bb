package quorum

import (
	"slices"

	"github.com/sledvault/sledvault/vault/gfss"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/keys"
	"github.com/sledvault/sledvault/vault/reason"
)

// loader rebuilds rack secrets (protocol.md §8.4). It always collects the latest committed epoch: every older secret is
// encrypted inside that configuration.
type loader struct {
	loaded    keys.OldSecrets // by epoch; replaced as a whole
	collector *collection     // nil unless collecting
	waiters   []waiter        // in the order of their requests
}

type waiter struct {
	id     RequestID
	epoch  ident.Epoch // meaningless if latest
	latest bool
}

func (l *loader) cancel(id RequestID) {
	l.waiters = slices.DeleteFunc(l.waiters, func(w waiter) bool { return w.id == id })
}

func (l *loader) destroy() {
	l.loaded.Destroy()
	l.loaded = nil
	l.stopCollecting()
}

func (l *loader) stopCollecting() {
	if l.collector != nil {
		l.collector.destroy()
		l.collector = nil
	}
}

// loadSecret answers from memory, or refuses, or makes the request wait and collects shares.
func (n *Node) loadSecret(in LoadSecret) error {
	l := &n.loader
	if n.st.Expunged != nil && !n.lax {
		return errExpunged(n.st.Expunged)
	}
	w := waiter{id: in.ID, epoch: n.known.committedEpoch(), latest: in.Epoch == nil}
	if in.Epoch != nil {
		w.epoch = *in.Epoch
	}
	if _, ok := l.loaded[w.epoch]; ok {
		return n.answer(w)
	}
	latest := n.known.committedEpoch()
	switch {
	case n.known.committed == nil && n.st.LRTQ != nil:
		return reason.Later(CodeNoCommitted, hintUpgrade, "quorum: load: the rack still lives by the older scheme")
	case n.known.committed == nil:
		return reason.Later(CodeNoCommitted, "initialise the rack, or add this sled to it", "quorum: load: no committed configuration")
	case w.epoch > latest:
		return reason.Later(CodeNotCommitted, "", "quorum: load epoch %d: latest committed is %d", w.epoch, latest)
	case l.loaded[latest].Len() > 0:
		return errNotAvailable(w.epoch)
	case slices.ContainsFunc(l.waiters, func(o waiter) bool { return o.id == w.id }):
		return reason.New(CodeDuplicateRequest, "", "quorum: load: request %d is waiting already", w.id)
	case len(l.waiters) >= n.limits.Waiters:
		return reason.Later(CodeBusy, "", "quorum: load: %d requests are waiting", len(l.waiters))
	}
	// A collection that had enough and is still here has failed: start over, unless shares are still to come.
	if l.collector == nil || l.collector.config.Epoch < latest || l.collector.enough() && !n.moreToCome() {
		if err := n.startCollecting(nil); err != nil {
			return err
		}
	}
	l.waiters = append(l.waiters, w)
	return nil
}

func errNotAvailable(e ident.Epoch) error {
	return reason.New(CodeNotAvailable, "the disk's epoch was never committed, or the operator has dropped its secret; check which rack it belongs to",
		"quorum: load epoch %d: the rack never committed it, or has dropped its secret", e)
}

// answer gives a waiter a copy of its secret. An error is the answer.
func (n *Node) answer(w waiter) error {
	s, ok := n.loader.loaded[w.epoch]
	if !ok {
		return errNotAvailable(w.epoch)
	}
	s, err := s.Clone(n.alloc)
	if err != nil {
		return err
	}
	n.reply(Reply{ID: w.id, Epoch: w.epoch, Secret: s})
	return nil
}

// startCollecting begins with the own share of the latest committed epoch, takes over shares that were collected for
// another purpose, and asks the others.
func (n *Node) startCollecting(seed *collection) error {
	col, err := n.ownShareOnly()
	if err != nil {
		return err
	}
	if seed != nil {
		for j, s := range seed.shares { // of others: the own share was not among them
			if !s.Y.IsEmpty() {
				seed.shares[j] = gfss.Share{}
				col.shares[j] = s
				col.have++
			}
		}
	}
	n.loader.stopCollecting()
	n.loader.collector = col
	n.note(CodeCollecting, ident.Baseboard{}, col.config.Epoch, "", "")
	if col.enough() {
		n.rebuild()
		return nil
	}
	col.ask(n)
	return nil
}

// loaderCommitted moves waiting requests on to a newer commit: peers no longer give shares of the older one.
func (n *Node) loaderCommitted(seed *collection) error {
	l := &n.loader
	if len(l.waiters) == 0 || l.collector == nil || l.collector.config.Epoch >= n.known.committedEpoch() {
		return nil
	}
	return n.startCollecting(seed)
}

// loaderShare takes a share for the collection under way.
func (n *Node) loaderShare(from ident.Baseboard, m ShareReply) error {
	c := n.loader.collector
	if c == nil || c.config.Epoch != m.Epoch {
		return nil
	}
	if added, err := c.add(n, from, m.Share); err != nil || !added || !c.enough() {
		return err
	}
	n.rebuild()
	return nil
}

// rebuild turns the collected shares into rack secrets and answers everyone who waits. If the shares or the older
// secrets do not fit together, the waiters hear of it at once unless more shares are to come, and collecting goes on.
func (n *Node) rebuild() {
	l := &n.loader
	c := l.collector.config
	loaded, odd, err := n.combineOlder(l.collector)
	if err != nil {
		n.refused(err, ident.Baseboard{}, c.Epoch, KindShare)
		if n.moreToCome() {
			return
		}
		n.failWaiters(reason.New(CodeSecretDamaged, "look at the alarms of every member: one of them holds a wrong share",
			"quorum: load epoch %d: %s", c.Epoch, err.text))
		return
	}
	for _, id := range odd {
		n.refused(refuse(CodeShareOdd, AlarmMixedPolynomial, "the share of %s does not lie on the polynomial of the others; coordinator %s made it", id, c.Coordinator),
			id, c.Epoch, KindShare)
	}
	l.destroy()
	l.loaded = loaded
	n.note(CodeLoaded, ident.Baseboard{}, c.Epoch, "", "")
	waiters := l.waiters
	l.waiters = nil
	for _, w := range waiters {
		if w.latest {
			w.epoch = c.Epoch
		}
		if err := n.answer(w); err != nil {
			n.reply(Reply{ID: w.id, Err: err})
		}
	}
}

// maxSpare is how many shares more than a threshold are tried in every combination, against coordinators that hand out
// shares of different polynomials: at most 496 combinations in all.
const maxSpare = 2

// moreToCome reports whether a collection that has failed may still come to its end: shares of connected members are
// outstanding, there is something to hold a secret against, and not too many were tried.
func (n *Node) moreToCome() bool {
	c := n.loader.collector
	return c != nil && c.enough() && c.config.EncryptedSecrets != nil && c.have < c.want()+maxSpare && n.reachable(c.config) > c.have
}

// loaderPeerDown tells those who wait for shares that will not come any more after a collection has failed.
func (n *Node) loaderPeerDown() {
	if c := n.loader.collector; c != nil && c.enough() && !n.moreToCome() {
		n.failWaiters(reason.New(CodeSecretDamaged, "look at the alarms of every member: one of them holds a wrong share",
			"quorum: load epoch %d: no %d of %d shares fit together", c.config.Epoch, c.want(), c.have))
	}
}

// combineOlder rebuilds the secret of a collection's epoch and opens the older ones with it, which proves it. With more
// shares than needed it finds a threshold of them that fit together, and names the members whose shares do not. The first
// epoch has no older secrets, so nothing there tells a wrong secret from the right one (protocol.md §8.4).
func (n *Node) combineOlder(col *collection) (loaded keys.OldSecrets, odd []ident.Baseboard, failed *refusal) {
	c, shares, k := col.config, col.present(), col.want()
	if c.EncryptedSecrets == nil || len(shares) > k+maxSpare {
		k = len(shares)
	}
	found := eachSubset(len(shares), k, func(chosen []int) bool {
		some := make([]gfss.Share, 0, k)
		for _, i := range chosen {
			some = append(some, shares[i])
		}
		sec, err := gfss.Combine(n.alloc, some)
		if err != nil {
			failed = refuse(CodeSecretDamaged, AlarmReconstructionFailed, "%v", err)
			return false
		}
		loaded = keys.OldSecrets{}
		if c.EncryptedSecrets != nil {
			if loaded, err = keys.Decrypt(n.alloc, *c.EncryptedSecrets, sec, c.RackID, c.Epoch); err != nil {
				sec.Destroy()
				failed = refuse(CodeSecretDamaged, AlarmDecryptionFailed, "%v", err)
				return false
			}
		}
		loaded[c.Epoch] = sec
		odd = n.offPolynomial(c, some, shares)
		return true
	})
	if found {
		return loaded, odd, nil
	}
	return nil, nil, failed
}

// offPolynomial names the members whose shares do not lie on the polynomial of some others.
func (n *Node) offPolynomial(c *Configuration, some, all []gfss.Share) (out []ident.Baseboard) {
	for _, s := range all {
		if slices.ContainsFunc(some, func(o gfss.Share) bool { return o.X == s.X }) {
			continue
		}
		want, err := gfss.ComputeShare(n.alloc, some, s.X)
		if err == nil && !want.Y.Equal(s.Y) {
			out = append(out, c.Members[s.X-1].ID)
		}
		want.Destroy()
	}
	return out
}

// eachSubset calls f with every choice of k out of n numbers, in ascending order, until f is content. It reports whether
// that was so.
func eachSubset(n, k int, f func(chosen []int) bool) bool {
	chosen := make([]int, k)
	for i := range chosen {
		chosen[i] = i
	}
	for {
		if f(chosen) {
			return true
		}
		i := k - 1
		for i >= 0 && chosen[i] == n-k+i {
			i--
		}
		if i < 0 {
			return false
		}
		chosen[i]++
		for j := i + 1; j < k; j++ {
			chosen[j] = chosen[j-1] + 1
		}
	}
}

func (n *Node) failWaiters(err error) {
	for _, w := range n.loader.waiters {
		n.reply(Reply{ID: w.id, Err: err})
	}
	n.loader.waiters = nil
}

// clearSecrets wipes cached secrets and collected shares. Whoever still waits is told to ask again.
func (n *Node) clearSecrets() error {
	n.failWaiters(reason.Later(CodeCleared, "ask again", "quorum: load: secrets were cleared"))
	n.endAgreement(reason.Later(CodeCleared, "ask again", "quorum: check agreement: secrets were cleared"))
	n.loader.destroy()
	return nil
}
