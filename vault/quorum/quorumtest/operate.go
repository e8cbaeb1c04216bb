package quorumtest

import (
	"errors"
	"slices"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/rack"
	"github.com/sledvault/sledvault/vault/reason"
)

// operate takes the controller one step further, whatever its next step is.
func (s *Sim) operate(a Action) {
	c := &s.ctl
	if c.st == nil {
		s.openJournal()
		return
	}
	if c.wary && !s.survey() {
		return
	}
	if c.st == nil || c.st.Change == nil {
		return
	}
	switch ch := c.st.Change; {
	case ch.Phase == rack.Preparing && c.asked != ch.Epoch:
		s.ask()
		if c.ended {
			s.again(a)
		}
	case ch.Phase == rack.Preparing && c.ended:
		s.again(a)
	case ch.Phase == rack.Preparing:
		s.poll()
	case (ch.Phase == rack.Decided || ch.Phase == rack.Done) && !ch.Marks() && len(ch.Committed) >= int(ch.Threshold):
		ch.Marked = true
		s.journal("marked")
	case ch.Phase == rack.Decided:
		missing := ch.Missing()
		s.commit(ch, s.Find(missing[int(a.A)%len(missing)]))
	}
}

// again begins a change anew that lost its coordinator.
func (s *Sim) again(a Action) {
	c := &s.ctl
	if c.st == nil || c.st.Change == nil || c.st.Change.Phase != rack.Preparing {
		return
	}
	ch := c.st.Change
	s.metAbort(ch)
	if ch.LastCommitted == 0 {
		_ = ch.Abort()
		if err := s.firstAgain(ch, a); err != nil {
			if s.bad(P21, nil, false) {
				s.broken(P21, "begin the first configuration again: %v", err)
			}
			return
		}
	} else {
		next, ok := s.candidate(ch.Members, a)
		if !ok {
			return
		}
		if err := c.st.Again(next); err != nil {
			if s.bad(P21, nil, false) {
				s.broken(P21, "begin epoch %d again at %s: %v", ch.Epoch, next, err)
			}
			return
		}
	}
	s.fault(FaultPreempted)
	s.asked(0)
	s.journal("again")
}

// firstAgain begins the first configuration again at the next epoch.
func (s *Sim) firstAgain(ch *rack.Change, a Action) error {
	if ch.Kind == rack.Upgrade {
		return s.beginFirst(a, slices.Clone(ch.Members))
	}
	return s.ctl.st.BeginInit(ch.Members, ch.Threshold)
}

func (s *Sim) metAbort(ch *rack.Change) {
	if ch.Kind == rack.Upgrade {
		s.table.met["upgrades aborted"]++
	} else {
		s.table.met["changes aborted"]++
	}
}

func (s *Sim) asked(e ident.Epoch) { s.ctl.asked, s.ctl.ended = e, false }

// candidate is a sled that may coordinate and answers.
func (s *Sim) candidate(members []ident.Baseboard, a Action) (ident.Baseboard, bool) {
	base := s.ctl.st.Committed()
	var can []ident.Baseboard
	for _, b := range base.Committed {
		if contains(members, b) && s.Find(b).Up() {
			can = append(can, b)
		}
	}
	if len(can) == 0 {
		return ident.Baseboard{}, false
	}
	if s.rogue && s.liar != nil && slices.Contains(can, s.liar.ID) && a.C>>9%2 == 0 {
		return s.liar.ID, true // a rogue is rarely granted anything otherwise
	}
	return can[int(a.B)%len(can)], true
}

// change begins a new change, possibly giving up the one under way.
func (s *Sim) change(a Action) {
	c := &s.ctl
	if c.st == nil || c.wary {
		return
	}
	if ch := c.st.Change; ch != nil && (ch.Phase == rack.Decided || ch.Phase == rack.Done) && a.C>>14%8 == 0 && s.bad(C3, nil, ch.Abort() != nil) {
		s.broken(C3, "epoch %d is decided and is given up", ch.Epoch)
	}
	if ch := c.st.Change; ch != nil && ch.Phase == rack.Preparing {
		if a.C%8 != 0 {
			return
		}
		if err := ch.Abort(); err != nil {
			if s.bad(XSound, nil, false) {
				s.broken(XSound, "abort: %v", err)
			}
			return
		}
		s.fault(FaultPreempted)
		s.metAbort(ch)
		if !s.journal("abort") {
			return
		}
	}
	var err error
	if c.st.LastCommitted() == 0 {
		n := 3 + min(int(a.A)%(len(s.Sleds)-2), int(a.A>>8)%(len(s.Sleds)-2))
		var members []ident.Baseboard
		for i := range n {
			members = append(members, s.Sleds[(i+int(a.B))%len(s.Sleds)].ID)
		}
		err = s.beginFirst(a, members)
	} else {
		p, ok := s.plan(a)
		if !ok {
			return
		}
		err = c.st.BeginChange(p)
	}
	if err != nil { // not settled yet, or the coordinator may not
		return
	}
	s.asked(0)
	s.journal("begin")
}

func threshold(n int, a Action) ident.Threshold { return ident.Threshold(2 + int(a.C>>4)%(n-2)) }

// plan adds up to three sleds, removes up to two members, or gives the same members a new secret, perhaps dropping older ones.
func (s *Sim) plan(a Action) (p rack.Plan, ok bool) {
	base := s.ctl.st.Committed()
	members := slices.Clone(base.Members)
	p.Kind = rack.Rotate
	switch a.A % 4 {
	case 0:
		add := 1 + int(a.A>>4)%3
		for i := range s.Sleds {
			sled := s.sled(a.A>>8 + uint32(i))
			if add > 0 && s.oracle.gone&bit(sled) == 0 && sled.Disk.Expunged == nil && !contains(base.Members, sled.ID) {
				members = append(members, sled.ID)
				p.Kind = rack.Add
				add--
			}
		}
	case 1:
		for remove := 1 + int(a.A>>4)%2; remove > 0 && len(members) > rack.MinMembers; remove-- {
			i := int(a.A>>8) % len(members)
			members = slices.Delete(members, i, i+1)
			p.Kind = rack.Remove
		}
	}
	if older := base.Epoch - base.KeepFrom; p.Kind == rack.Rotate && a.A>>4%4 == 0 && older > 0 {
		p.Kind, p.KeepFrom = rack.Prune, base.KeepFrom+1+ident.Epoch(a.A>>8)%older
	}
	p.Members, p.Threshold = members, threshold(len(members), a)
	if p.Coordinator, ok = s.candidate(ident.SortBaseboards(members), a); a.C>>10%4 == 0 {
		p.Coordinator, ok = s.sled(a.C>>12).ID, true // the core refuses who may not
	}
	return p, ok
}

// commit tells a member that the decision is to be committed: plainly where it has acknowledged the prepare, and with the
// whole configuration where it says that it has not prepared.
func (s *Sim) commit(ch *rack.Change, m *Sled) {
	recorded := s.ctl.disk.Change
	if s.bad(C3, nil, recorded != nil && recorded.Epoch == ch.Epoch && (recorded.Phase == rack.Decided || recorded.Phase == rack.Done)) {
		s.broken(C3, "the commit of epoch %d leaves before the decision is recorded", ch.Epoch)
	}
	if !m.Up() {
		return
	}
	acked := contains(ch.Acked, m.ID)
	prepared := m.Disk.Prepared(ch.Epoch)
	latest, _ := m.Disk.LatestCommitted()
	want := m.Disk.Expunged == nil && (prepared || latest >= ch.Epoch)
	fx, err := s.call(m, quorum.Commit{RackID: RackID(), Epoch: ch.Epoch, Certificate: ch.Certificate})
	if errors.Is(err, ErrDown) {
		return
	}
	if s.bad(P9, m, (err == nil) == want && (err == nil || !acked || s.adopted(ch))) {
		s.broken(P9, "commit epoch %d at %s: %v (%s), acknowledged: %t, prepared: %t", ch.Epoch, m.ID, err, reason.CodeOf(err), acked, prepared)
	}
	if reason.CodeOf(err) == quorum.CodeNotPrepared {
		fx, err = s.prepareAndCommit(ch, m)
	}
	if err == nil {
		s.answered(ch, m, &fx)
	}
}

// adopted reports whether a decision came from the sleds: nobody remembers who acknowledged it.
func (s *Sim) adopted(ch *rack.Change) bool {
	return s.mask&(1<<FaultOldJournal) != 0 && ch.NeedAcks == len(ch.Members)
}

// prepareAndCommit hands a member the whole configuration.
func (s *Sim) prepareAndCommit(ch *rack.Change, m *Sled) (quorum.Effects, error) {
	fx, err := s.call(m, quorum.PrepareAndCommit{Config: ch.Config, Certificate: ch.Certificate})
	if !errors.Is(err, ErrDown) && s.bad(P9, m, err == nil || m.Disk.Expunged != nil) {
		s.broken(P9, "prepare and commit epoch %d at %s: %v (%s)", ch.Epoch, m.ID, err, reason.CodeOf(err))
	}
	return fx, err
}

// answered puts the answer to a commit on its way, after checking that it is true.
func (s *Sim) answered(ch *rack.Change, m *Sled, fx *quorum.Effects) {
	for _, r := range fx.Replies {
		if r.ID != 0 || r.Status != quorum.Committed {
			continue
		}
		if s.bad(P3, m, m.Disk.Commits[ch.Epoch] && m.Disk.Prepared(ch.Epoch)) {
			s.broken(P3, "%s says that epoch %d is committed", m.ID, ch.Epoch)
		}
		s.ctl.answers = append(s.ctl.answers, answer{from: m, epoch: ch.Epoch, committed: true})
	}
}

// late sends the commit of an older decision once more, and heal the configuration to a member that lost its own.
func (s *Sim) late(a Action) {
	d := s.oracle.decisions
	if len(d) == 0 {
		return
	}
	old := d[int(a.C)%len(d)]
	m := old.members[int(a.A)%len(old.members)]
	ch := &rack.Change{Epoch: old.epoch, Config: old.config, Certificate: old.cert}
	if !m.Up() {
		return
	}
	latest, _ := m.Disk.LatestCommitted()
	want := m.Disk.Expunged == nil && (m.Disk.Prepared(old.epoch) || latest >= old.epoch)
	skipped := latest > old.epoch && !m.Disk.Commits[old.epoch]
	fx, err := s.call(m, quorum.Commit{RackID: RackID(), Epoch: old.epoch, Certificate: old.cert})
	if errors.Is(err, ErrDown) {
		return
	}
	if s.bad(P9, m, (err == nil) == want && !(skipped && m.Disk.Commits[old.epoch])) {
		s.broken(P9, "late commit epoch %d at %s: %v (%s)", old.epoch, m.ID, err, reason.CodeOf(err))
	}
	if reason.CodeOf(err) == quorum.CodeNotPrepared && a.B%2 == 0 {
		fx, err = s.prepareAndCommit(ch, m)
	}
	if err != nil {
		return
	}
	for _, r := range fx.Replies {
		if r.ID == 0 && s.bad(P3, m, (r.Status == quorum.Committed) == m.Disk.Commits[old.epoch]) {
			s.broken(P3, "%s says that epoch %d is %s", m.ID, old.epoch, r.Status)
		}
	}
}
