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
	// A collection that had enough and is still here has failed: start over.
	if l.collector == nil || l.collector.config.Epoch < latest || l.collector.enough() {
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
	c := n.known.committed
	i, _ := c.Index(n.id)
	col := newCollection(c)
	own, err := n.st.Shares[c.Epoch].Clone(n.alloc)
	if err != nil {
		return exhausted(err)
	}
	col.shares[i], col.have = own, 1
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
	n.note(CodeCollecting, ident.Baseboard{}, c.Epoch, "", "")
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
// secrets do not fit together, the waiters hear of it at once and collecting goes on.
func (n *Node) rebuild() {
	l := &n.loader
	c := l.collector.config
	fail := func(alarm AlarmKind, err error) {
		n.refused(refuse(CodeSecretDamaged, alarm, "%v", err), ident.Baseboard{}, c.Epoch, KindShare)
		n.failWaiters(reason.Wrap(err, CodeSecretDamaged, "look at the alarms of every member: one of them holds a wrong share",
			"quorum: load epoch %d", c.Epoch))
	}
	sec, err := gfss.Combine(n.alloc, l.collector.present())
	if err != nil {
		fail(AlarmReconstructionFailed, err)
		return
	}
	loaded := keys.OldSecrets{}
	if c.EncryptedSecrets != nil {
		if loaded, err = keys.Decrypt(n.alloc, *c.EncryptedSecrets, sec, c.RackID, c.Epoch); err != nil {
			sec.Destroy()
			fail(AlarmDecryptionFailed, err)
			return
		}
	}
	loaded[c.Epoch] = sec
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
