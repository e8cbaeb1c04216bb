package quorumtest

import (
	"slices"

	"github.com/sledvault/sledvault/vault/gfss"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/keys"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/rack"
	"github.com/sledvault/sledvault/vault/secret"
)

// oracle is what is true, kept apart from every node and from the controller.
type oracle struct {
	first     map[ident.Epoch]*quorum.Configuration // the only configuration that may exist of each epoch
	decisions []*decision                           // what the journal decided, ascending
	truth     map[ident.Epoch]secret.RackSecret     // of decisions
	asked     map[ident.Epoch]*askedFor             // what a coordinator was asked for
	gone      uint32                                // sleds that a decision left out, until they are reset
	lost      map[ident.Epoch]uint32                // members that stored a share, or said so, and have none
}

// decision is a configuration that will be committed, whatever happens.
type decision struct {
	epoch   ident.Epoch
	config  *quorum.Configuration
	cert    *quorum.Certificate
	members []*Sled
	k, need int
	keep    ident.Epoch // older secrets of lower epochs are dropped
	told    uint32      // members whose "committed" the controller has heard
	before  uint32      // oracle.gone before it
}

func bit(s *Sled) uint32 { return 1 << s.Index }

func (o *oracle) last() *decision {
	if n := len(o.decisions); n > 0 {
		return o.decisions[n-1]
	}
	return nil
}

func (o *oracle) decision(e ident.Epoch) *decision {
	for _, d := range o.decisions {
		if d.epoch == e {
			return d
		}
	}
	return nil
}

// tolerance is the oracle's own opinion of how many acknowledgements a decision needs beyond the threshold.
func tolerance(members int) int {
	z := 0
	for _, from := range []int{5, 9, 16, 24} {
		if members >= from {
			z++
		}
	}
	return z
}

// wanted is how many acknowledgements a change needs before it may be decided. The first one needs all.
func wanted(members, k int, first bool) int {
	if first {
		return members
	}
	return min(k+tolerance(members), members)
}

// decided is called when the journal has a decision that it did not have before.
func (s *Sim) decided(ch *rack.Change) {
	if s.oracle.decision(ch.Epoch) != nil {
		return
	}
	d := &decision{
		epoch: ch.Epoch, config: ch.Config, cert: ch.Certificate, k: int(ch.Threshold),
		need: wanted(len(ch.Members), int(ch.Threshold), ch.LastCommitted == 0), before: s.oracle.gone, keep: ch.KeepFrom,
	}
	for _, m := range ch.Members {
		d.members = append(d.members, s.Find(m))
	}
	last := s.oracle.last()
	base := ident.Epoch(0)
	if last != nil {
		base = last.epoch
	}
	if s.bad(C2, nil, ch.LastCommitted == base && ch.Epoch > base) {
		s.broken(C2, "epoch %d builds on epoch %d, the last decision is %d", ch.Epoch, ch.LastCommitted, base)
		return
	}
	true_ := 0 // who has prepared, or had
	var shares []gfss.Share
	for _, m := range d.members {
		if m.Disk.Prepared(d.epoch) && m.Disk.Configs[d.epoch].Equal(d.config) {
			true_++
			shares = append(shares, m.Disk.Shares[d.epoch])
		} else if s.oracle.lost[d.epoch]&bit(m) != 0 {
			true_++
		}
	}
	if s.bad(C2, nil, true_ >= d.need) {
		s.broken(C2, "epoch %d was decided with %d prepared members, want %d", d.epoch, true_, d.need)
		return
	}
	if s.bad(X5, nil, len(shares) >= d.k) {
		s.broken(X5, "epoch %d: have %d shares, want %d", d.epoch, len(shares), d.k)
		return
	}
	truth, err := gfss.Combine(secret.Heap{}, shares)
	if s.bad(X6, nil, err == nil) {
		s.broken(X6, "epoch %d: combine: %v", d.epoch, err)
		return
	}
	s.checkOldSecrets(d, truth)
	if last != nil {
		for _, m := range last.members {
			if !slices.Contains(d.members, m) {
				s.oracle.gone |= bit(m)
			}
		}
	}
	switch ch.Kind {
	case rack.Upgrade:
		s.table.met["upgrades decided"]++
	case rack.Prune:
		s.table.met["prunes decided"]++
	default:
		s.table.met["changes decided"]++
	}
	s.oracle.truth[d.epoch] = truth
	s.oracle.decisions = append(s.oracle.decisions, d)
}

// checkOldSecrets is X8.
func (s *Sim) checkOldSecrets(d *decision, truth secret.RackSecret) {
	c := d.config
	old := keys.OldSecrets{}
	if c.EncryptedSecrets != nil {
		var err error
		old, err = keys.Decrypt(secret.Heap{}, *c.EncryptedSecrets, truth, c.RackID, c.Epoch)
		if s.bad(X8, nil, err == nil) {
			s.broken(X8, "epoch %d: %v", c.Epoch, err)
			return
		}
	}
	want := 0
	for e := range s.oracle.truth {
		if e >= d.keep {
			want++
		}
	}
	if s.bad(X8, nil, len(old) == want) {
		s.broken(X8, "epoch %d carries %d older secrets, want %d", c.Epoch, len(old), want)
	}
	for e, have := range old {
		if s.bad(X8, nil, e >= d.keep && have.Equal(s.oracle.truth[e])) {
			s.broken(X8, "epoch %d carries a wrong secret of epoch %d", c.Epoch, e)
		}
	}
	old.Destroy()
}

// forget takes back the decisions after an epoch: the journal that had them is lost, and no sled has heard of one.
func (s *Sim) forget(after ident.Epoch) {
	o := &s.oracle
	for last := o.last(); last != nil && last.epoch > after; last = o.last() {
		o.gone = last.before
		delete(o.truth, last.epoch)
		o.decisions = o.decisions[:len(o.decisions)-1]
	}
}

// losses are the epochs that matter of which a sled has the share and would not have it in the state that is left:
// the last decision's, and those of a change under way.
func (s *Sim) losses(sled *Sled, left *quorum.State) (out []ident.Epoch) {
	matters := ident.Epoch(1)
	if d := s.oracle.last(); d != nil {
		matters = d.epoch
	}
	for e := range sled.Disk.Shares {
		if _, kept := left.Shares[e]; !kept && e >= matters {
			out = append(out, e)
		}
	}
	return out
}

// spare reports whether the fault budget allows a sled to lose its share of an epoch: of each configuration Z members, so
// many as a decision counts on beyond the threshold, and never the coordinator of a change under way, which is the only one
// who knows that it made a configuration of the epoch already.
func (s *Sim) spare(sled *Sled, e ident.Epoch) bool {
	if d := s.oracle.decision(e); d != nil {
		return ones(s.oracle.lost[e]|bit(sled)) <= d.need-d.k
	}
	for _, st := range []*rack.State{s.ctl.st, &s.ctl.disk} {
		if st == nil || st.Change == nil || st.Change.Epoch != e || st.Change.Phase != rack.Preparing {
			continue
		}
		ch := st.Change
		if ch.Coordinator == sled.ID || ones(s.oracle.lost[e]|bit(sled)) > wanted(len(ch.Members), int(ch.Threshold), ch.LastCommitted == 0)-int(ch.Threshold) {
			return false
		}
	}
	return true
}

// coordinates reports whether a change under way depends on what a sled remembers.
func (s *Sim) coordinates(sled *Sled) bool {
	for _, st := range []*rack.State{s.ctl.st, &s.ctl.disk} {
		if st != nil && st.Change != nil && st.Change.Phase == rack.Preparing && st.Change.Coordinator == sled.ID {
			return true
		}
	}
	return false
}

// affordable reports whether a sled may be left with a state.
func (s *Sim) affordable(sled *Sled, left *quorum.State) bool {
	if s.coordinates(sled) {
		return false
	}
	if sled.Disk.LRTQ != nil && left.LRTQ == nil && s.oracle.last() == nil && len(s.holders()) <= s.lrtq {
		return false // what the older scheme needs
	}
	for _, e := range s.losses(sled, left) {
		if !s.spare(sled, e) {
			return false
		}
	}
	return true
}

// strike records that a fault took from a sled what it had beyond a state.
func (s *Sim) strike(f Fault, sled *Sled, left quorum.State) {
	for _, e := range s.losses(sled, &left) {
		s.oracle.lost[e] |= bit(sled)
	}
	s.fault(f)
	s.hit[f] |= bit(sled)
	sled.Disk = left
	s.disk(sled).past = nil
	for e := range s.checked[sled.Index] {
		if _, kept := left.Shares[e]; !kept {
			delete(s.checked[sled.Index], e)
		}
	}
}

func ones(m uint32) (n int) {
	for ; m != 0; m &= m - 1 {
		n++
	}
	return n
}
