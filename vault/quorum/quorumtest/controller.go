package quorumtest

import (
	"errors"
	"slices"

	"github.com/sledvault/sledvault/vault/gfss"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/keys"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/rack"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
)

// controller is the model of the rack controller: the only one who can sign. It never crashes.
type controller struct {
	latest    *change
	committed []*change // ascending
	next      ident.Epoch
	gone      []bool // by sled: removed for good
}

type op uint8

const (
	opPreparing op = iota
	opCommitted
	opAborted
)

// change is one configuration as the controller sees it.
type change struct {
	epoch, last ident.Epoch
	coordinator *Sled
	boot        uint64 // of the coordinator when it was asked
	members     []*Sled
	k           ident.Threshold
	z           int
	op          op
	request     quorum.Reconfigure
	acked, done []bool // by sled
	config      *quorum.Configuration
	certificate *quorum.Certificate
}

// told tells the watcher that the controller moved on.
func (s *Sim) told(what string) { s.emit(Event{Kind: EventController, Text: what}) }

// View is a snapshot of the whole rack.
func (s *Sim) View() View {
	v := View{Nodes: s.Nodes(), Controller: ControllerView{Up: true, Highest: s.ctl.next}}
	c := s.ctl.latest
	if c == nil {
		return v
	}
	v.Controller = ControllerView{
		Up: true, Highest: s.ctl.next, Epoch: c.epoch, LastCommitted: c.last, Coordinator: c.coordinator.ID, Threshold: c.k,
		NeedAcks: int(c.k) + c.z, Phase: [...]rack.Phase{rack.Preparing, rack.Decided, rack.Aborted}[c.op],
	}
	for _, m := range c.members {
		v.Controller.Members = append(v.Controller.Members, m.ID)
		if c.acked[m.Index] {
			v.Controller.Acked = append(v.Controller.Acked, m.ID)
		}
		if c.done[m.Index] {
			v.Controller.Committed = append(v.Controller.Committed, m.ID)
		}
	}
	return v
}

func (c *controller) lastCommitted() *change {
	if len(c.committed) == 0 {
		return nil
	}
	return c.committed[len(c.committed)-1]
}

// reconfigure asks for a new configuration, possibly before the last one is decided.
func (s *Sim) reconfigure(a Action) {
	last := s.ctl.lastCommitted()
	var members []*Sled
	var coordinator *Sled
	if last == nil {
		n := 3 + int(a.A)%(len(s.Sleds)-2)
		members = slices.Clone(s.Sleds[:n])
		coordinator = members[int(a.B)%n]
	} else {
		var can []*Sled
		for _, m := range last.members {
			if last.done[m.Index] {
				can = append(can, m)
			}
		}
		if len(can) == 0 {
			return
		}
		coordinator = can[int(a.B)%len(can)]
		members = s.changeMembers(last, coordinator, a)
	}
	if l := s.ctl.latest; l != nil && l.op == opPreparing {
		l.op = opAborted
		s.told("abort")
		s.fault(FaultPreempted)
	}
	s.ask(coordinator, members, ident.Threshold(2+int(a.C>>4)%(len(members)-2)))
}

// changeMembers removes up to two members and adds up to three sleds that were never removed.
func (s *Sim) changeMembers(last *change, coordinator *Sled, a Action) []*Sled {
	members := slices.Clone(last.members)
	add, remove := int(a.A)%4, int(a.A>>8)%3
	for _, sled := range s.Sleds {
		if add > 0 && !s.ctl.gone[sled.Index] && !slices.Contains(members, sled) {
			members = append(members, sled)
			add--
		}
	}
	for i := int(a.C) % len(members); remove > 0 && len(members) > 3; remove-- {
		i %= len(members)
		if members[i] == coordinator {
			i = (i + 1) % len(members)
		}
		members = slices.Delete(members, i, i+1)
	}
	return members
}

// ask sends a granted request to the coordinator.
func (s *Sim) ask(coordinator *Sled, members []*Sled, k ident.Threshold) {
	s.ctl.next++
	c := &change{
		epoch: s.ctl.next, coordinator: coordinator, boot: s.boot[coordinator.Index], members: members, k: k,
		z: min(1, (len(members)-int(k))/2), acked: make([]bool, len(s.Sleds)), done: make([]bool, len(s.Sleds)),
	}
	if last := s.ctl.lastCommitted(); last != nil {
		c.last = last.epoch
	}
	s.ctl.latest = c
	s.told("begin")
	c.request = s.Request(coordinator, c.epoch, c.last, k, members...)
	_, err := s.do(coordinator, c.request)
	if errors.Is(err, ErrDown) {
		c.op = opAborted
		s.told("abort")
		return
	}
	s.check(P8, err == nil, "reconfigure epoch %d at %s: %v", c.epoch, coordinator.ID, err)
}

// repeat sends the latest request once more. While it is being coordinated it must succeed without any effect; after a
// restart it may only succeed if nothing of the epoch was stored, so that nothing of it can have been sent.
func (s *Sim) repeat() {
	c := s.ctl.latest
	if c == nil || !c.coordinator.Up() {
		return
	}
	coordinating := c.coordinator.Node.Roles().Coordinating == c.epoch
	stored := c.coordinator.Disk.Configs[c.epoch] != nil
	fx, err := s.do(c.coordinator, c.request)
	switch {
	case errors.Is(err, ErrDown):
	case coordinating:
		s.check(P8, err == nil && len(fx.Send) == 0, "repeated request of epoch %d: %v", c.epoch, err)
	case err == nil:
		s.check(P8, !stored, "request of epoch %d succeeds again after its coordination ended", c.epoch)
		c.boot = s.boot[c.coordinator.Index]
	}
}

// poll reads the acknowledgements from the coordinator and decides.
func (s *Sim) poll() {
	c := s.ctl.latest
	if c == nil || c.op != opPreparing {
		return
	}
	if !c.coordinator.Up() || s.boot[c.coordinator.Index] != c.boot {
		c.op = opAborted
		s.told("abort")
		return
	}
	s.check(P18, c.coordinator.Node.Roles().Coordinating == c.epoch, "%s no longer coordinates epoch %d", c.coordinator.ID, c.epoch)
	acks := 0
	for _, m := range c.members {
		if c.coordinator.Node.Acked(c.epoch, m.ID) {
			c.acked[m.Index] = true
			acks++
			s.check(P2, m.Disk.Prepared(c.epoch), "%s acknowledged epoch %d and has not stored it", m.ID, c.epoch)
		}
	}
	if acks >= int(c.k)+c.z {
		s.decide(c)
	}
}

// decide commits an epoch: from here on it must never be lost.
func (s *Sim) decide(c *change) {
	c.config = c.coordinator.Disk.Configs[c.epoch]
	s.check(P10, c.config != nil, "coordinator %s has not stored epoch %d", c.coordinator.ID, c.epoch)
	if s.err != nil {
		return
	}
	c.certificate = s.Auth.Certify(c.config)
	var shares []gfss.Share
	for _, m := range c.members {
		if sh, ok := m.Disk.Shares[c.epoch]; ok {
			shares = append(shares, sh)
		}
	}
	s.check(X5, len(shares) >= int(c.k), "epoch %d: have %d shares, want %d", c.epoch, len(shares), c.k)
	if s.err != nil {
		return
	}
	truth, err := gfss.Combine(secret.Heap{}, shares)
	s.check(X6, err == nil, "epoch %d: combine: %v", c.epoch, err)
	if last := s.ctl.lastCommitted(); last != nil {
		for _, m := range last.members {
			if !slices.Contains(c.members, m) {
				s.ctl.gone[m.Index] = true
			}
		}
	}
	s.checkOldSecrets(c.config, truth)
	s.truth[c.epoch] = truth
	c.op = opCommitted
	s.ctl.committed = append(s.ctl.committed, c)
	s.told("decide")
}

// checkOldSecrets is X8: a committed configuration carries exactly the older committed secrets.
func (s *Sim) checkOldSecrets(c *quorum.Configuration, truth secret.RackSecret) {
	old := keys.OldSecrets{}
	if c.EncryptedSecrets != nil {
		var err error
		if old, err = keys.Decrypt(secret.Heap{}, *c.EncryptedSecrets, truth, c.RackID, c.Epoch); err != nil {
			s.broken(X8, "epoch %d: %v", c.Epoch, err)
			return
		}
	}
	s.check(X8, len(old) == len(s.truth), "epoch %d carries %d older secrets, want %d", c.Epoch, len(old), len(s.truth))
	for e, have := range old {
		s.check(X8, have.Equal(s.truth[e]), "epoch %d carries a wrong secret of epoch %d", c.Epoch, e)
	}
	old.Destroy()
}

// commitSome tells one member of the latest committed configuration, or of an older one, that it is committed.
func (s *Sim) commitSome(a Action) {
	c := s.ctl.lastCommitted()
	if c == nil {
		return
	}
	if a.B%8 == 0 { // a late commit
		c = s.ctl.committed[int(a.C)%len(s.ctl.committed)]
	}
	s.commit(c, c.members[int(a.A)%len(c.members)])
}

func (s *Sim) commit(c *change, m *Sled) {
	if !m.Up() || m.Disk.Expunged != nil {
		return
	}
	var in quorum.Input = quorum.PrepareAndCommit{Config: c.config, Certificate: c.certificate}
	if c.acked[m.Index] || m.Disk.Prepared(c.epoch) {
		in = quorum.Commit{RackID: RackID(), Epoch: c.epoch, Certificate: c.certificate}
	}
	fx, err := s.do(m, in)
	if errors.Is(err, ErrDown) {
		return
	}
	s.check(P9, err == nil && len(fx.Replies) > 0, "commit epoch %d at %s: %v (%s)", c.epoch, m.ID, err, reason.CodeOf(err))
	if err != nil {
		return
	}
	for _, r := range fx.Replies {
		if r.ID == 0 && r.Status == quorum.Committed {
			c.done[m.Index] = true
			s.told("committed")
			s.check(P3, m.Disk.Commits[c.epoch] && m.Disk.Prepared(c.epoch), "%s says that epoch %d is committed", m.ID, c.epoch)
		}
	}
}
