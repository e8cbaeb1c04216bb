package quorumtest

import (
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/rack"
)

// The liveness mode: faults stop, and the rack must get on. In half of the runs first only a core comes back, as small as
// the rules allow, and must finish what is under way without the others.

// live heals the rack and checks that it comes to rest as it should.
func (s *Sim) live() {
	s.calm()
	if s.seed%2 == 0 {
		s.core()
	}
	s.heal()
	s.oneMore()
	s.rest()
}

// oneMore changes the secret once more: a rack that came to rest is not stuck. It also ends what a controller that lost
// its journal has forgotten about.
func (s *Sim) oneMore() {
	if s.err != nil {
		return
	}
	s.change(Action{A: 2, B: uint32(s.seed), C: 1<<10 + 8})
	s.drive()
}

// calm ends all faults.
func (s *Sim) calm() {
	if len(s.frauds) > 0 && s.liar.Up() { // an honest coordinator would go on with what it has in memory
		s.crash(s.liar)
	}
	s.liar, s.twist = nil, nil
	for i := range s.disks {
		s.disks[i].fate = saveGood
	}
	s.ctl.fate = saveGood
	if s.ctl.st == nil {
		s.openJournal()
	}
}

// renew makes all connections between sleds that are up anew, and delivers.
func (s *Sim) renew() {
	for i, a := range s.Sleds {
		for _, b := range s.Sleds[i+1:] {
			s.Disconnect(a, b)
		}
	}
	s.ConnectAll()
	s.settle()
}

// settle delivers all that is on its way, to sleds and to the controller.
func (s *Sim) settle() {
	for s.err == nil && len(s.busy)+len(s.ctl.answers) > 0 {
		if len(s.busy) > 0 {
			s.deliver(s.busy[0])
		} else {
			an := s.ctl.answers[0]
			s.ctl.answers = s.ctl.answers[1:]
			s.hear(an)
		}
		s.after()
	}
	s.after()
}

// drive lets the controller work until it has nothing left to do, or gets no further.
func (s *Sim) drive() {
	for i := range uint32(60) {
		if s.err != nil || s.ctl.st == nil || s.ctl.st.Change == nil {
			return
		}
		ch := s.ctl.st.Change
		if ch.Phase == rack.Done && ch.Marks() || ch.Phase == rack.Aborted {
			return
		}
		if ch.Phase == rack.Decided && ch.Marks() {
			for _, m := range ch.Missing() {
				s.commit(ch, s.Find(m))
			}
			s.settle()
			if s.ctl.st.Change.Phase == rack.Decided && len(s.up(ch.Missing())) == 0 {
				return
			}
			continue
		}
		s.operate(Action{A: i, B: i}) // a coordinator that cannot go on is not the first choice again
		s.settle()
	}
}

func (s *Sim) up(ids []ident.Baseboard) (out []*Sled) {
	for _, id := range ids {
		if sled := s.Find(id); sled.Up() {
			out = append(out, sled)
		}
	}
	return out
}

// core starts as few sleds as can finish what is under way, and has them do it.
func (s *Sim) core() {
	if s.ctl.wary || s.oracle.last() == nil || !s.ctl.st.Committed().Settled() {
		return // the operator needs every sled
	}
	for _, sled := range s.Sleds {
		if s.suffices() {
			break
		}
		if !sled.Up() {
			s.start(sled)
		}
	}
	if !s.suffices() {
		return // too many disks were refused: some must be enrolled again first
	}
	s.renew()
	s.recommit()
	s.drive()
	if s.err != nil {
		return
	}
	if !s.suffices() {
		return // acknowledgements of sleds that are down have decided more than those that are up can do
	}
	ch := s.ctl.st.Change
	if s.bad(P19, nil, ch.Phase == rack.Done || ch.Phase == rack.Aborted || ch.Phase == rack.Decided && ch.Settled()) {
		s.broken(P19, "a healthy core leaves epoch %d %s", ch.Epoch, ch.Phase)
		return
	}
	d := s.oracle.last()
	s.recommit()
	for _, m := range d.members {
		if m.Up() {
			s.loadAll(m)
		}
	}
	s.settle()
	s.answeredAll(false)
	for _, m := range d.members {
		// Who was never in a committed configuration has nobody to ask; the next change brings it in.
		if m.Up() && (ch.Epoch == d.epoch || len(m.Disk.Commits) > 0) && s.bad(P19, m, m.Disk.Commits[d.epoch]) {
			s.broken(P19, "%s, of a healthy core, has not committed epoch %d", m.ID, d.epoch)
		}
	}
}

// suffices reports whether the sleds that are up can finish alone: enough shares of the last decision, enough members for
// the decision under way, and one that may coordinate.
func (s *Sim) suffices() bool {
	d, ch := s.oracle.last(), s.ctl.st.Change
	shares, members := 0, 0
	for _, m := range d.members {
		if m.Up() {
			members++
			if _, ok := m.Disk.Shares[d.epoch]; ok {
				shares++
			}
		}
	}
	if shares < d.k || members < d.need {
		return false
	}
	if ch.Phase != rack.Preparing {
		return true
	}
	if len(s.up(ch.Members)) < ch.NeedAcks {
		return false
	}
	for _, b := range s.up(s.ctl.st.Committed().Committed) {
		if contains(ch.Members, b.ID) && b.Disk.Commits[d.epoch] {
			return true
		}
	}
	return false
}

// heal brings everything back.
func (s *Sim) heal() {
	for _, sled := range s.Sleds {
		if s.disk(sled).refused {
			s.enrolAgain(sled)
		}
		if !sled.Up() {
			s.start(sled)
		}
	}
	s.renew()
	if s.err != nil {
		return
	}
	if s.ctl.wary && !s.survey() {
		if s.bad(P19, nil, false) {
			s.broken(P19, "all sleds are up, and the controller cannot ask them")
		}
		return
	}
	s.recommit()
	ch := s.ctl.st.Change
	switch {
	case ch == nil:
		s.change(Action{A: 2, C: 1<<10 + 8})
		s.drive()
	case ch.Phase == rack.Preparing:
		s.drive()
		s.checkPrepared(ch)
	case ch.Phase == rack.Aborted:
		s.redo(ch)
		s.drive()
		if now := s.ctl.st.Change; s.bad(P21, nil, now.Phase == rack.Done && now.Epoch > ch.Epoch) {
			s.broken(P21, "epoch %d was aborted, its successor %d is %s", ch.Epoch, now.Epoch, now.Phase)
		}
	default:
		s.drive()
	}
}

// checkPrepared is P20, or P21 if the coordinator was lost.
func (s *Sim) checkPrepared(was *rack.Change) {
	now := s.ctl.st.Change
	rule := P20
	if now.Epoch != was.Epoch {
		rule = P21
	}
	ok := now.Phase == rack.Done
	for _, m := range now.Members {
		ok = ok && s.Find(m).Disk.Prepared(now.Epoch)
	}
	if s.bad(rule, nil, ok) {
		s.broken(rule, "epoch %d was being prepared; epoch %d is %s", was.Epoch, now.Epoch, now.Phase)
	}
}

// redo begins an aborted change again at the next epoch.
func (s *Sim) redo(ch *rack.Change) {
	st := s.ctl.st
	if st.LastCommitted() == 0 {
		if err := s.firstAgain(ch, Action{}); err != nil {
			if s.bad(P21, nil, false) {
				s.broken(P21, "begin the first configuration again: %v", err)
			}
		}
		s.asked(0)
		s.journal("begin")
		return
	}
	coordinator, ok := s.candidate(ch.Members, Action{})
	if !ok {
		if s.bad(P21, nil, false) {
			s.broken(P21, "nobody may coordinate")
		}
		return
	}
	if err := st.BeginChange(rack.Plan{Kind: ch.Kind, Members: ch.Members, Threshold: ch.Threshold, Coordinator: coordinator, KeepFrom: ch.KeepFrom}); err != nil {
		if s.bad(P21, nil, false) {
			s.broken(P21, "begin epoch %d again: %v", ch.Epoch, err)
		}
		return
	}
	s.asked(0)
	s.journal("begin")
}

// recommit hands the last decision again to members that a fault made forget it, as enrolling them again does.
func (s *Sim) recommit() {
	d := s.oracle.last()
	if d == nil {
		return
	}
	for range 2 { // the second time for those that had to compute their share
		for _, m := range d.members {
			if m.Up() && !m.Disk.Commits[d.epoch] && s.struck(m) {
				_, _ = s.prepareAndCommit(&rack.Change{Epoch: d.epoch, Config: d.config, Certificate: d.cert}, m)
			}
		}
		s.settle()
	}
}

func (s *Sim) struck(sled *Sled) bool {
	for _, hit := range s.hit {
		if hit&bit(sled) != 0 {
			return true
		}
	}
	return false
}

func (s *Sim) loadAll(m *Sled) {
	s.load(m, 0)
	for _, e := range quorum.Epochs(s.oracle.truth) {
		s.load(m, e)
	}
}

// answeredAll is P22 for requests: none waits for ever. Comparing shares takes one member more than a core may have.
func (s *Sim) answeredAll(compared bool) {
	for id, l := range s.loads {
		c := l.sled.Disk.LatestCommittedConfig()
		waits := l.boot == s.boot[l.sled.Index] && l.sled.Up() && (!l.agree || compared && l.epoch == s.oracle.last().epoch)
		if s.bad(P22, l.sled, !waits || s.allGone(c) || !s.oracle.lastHas(l.sled)) {
			s.broken(P22, "request %d at %s was never answered", id, l.sled.ID)
			return
		}
	}
}

func (o *oracle) lastHas(sled *Sled) bool { return o.last().config.Has(sled.ID) }

// rest is what must hold when all is quiet: every member loads every secret, every removed sled knows that it is.
func (s *Sim) rest() {
	if s.err != nil {
		return
	}
	d, ch := s.oracle.last(), s.ctl.st.Change
	if s.bad(P19, nil, d != nil && ch.Epoch == d.epoch && ch.Phase == rack.Done) {
		s.broken(P19, "epoch %d is %s when all is healed", ch.Epoch, ch.Phase)
		return
	}
	s.recommit()
	for _, m := range d.members {
		if s.bad(P19, m, m.Disk.Commits[d.epoch] && m.Disk.Prepared(d.epoch)) {
			s.broken(P19, "%s has not committed epoch %d", m.ID, d.epoch)
		}
		s.loadAll(m)
		s.compare(m, d.epoch)
	}
	for _, sled := range s.Sleds {
		if s.oracle.gone&bit(sled) != 0 { // it learns of it when it asks for shares, which a cached secret would spare it
			_, _ = s.do(sled, quorum.ClearSecrets{})
			s.load(sled, 0)
		}
	}
	s.settle()
	s.answeredAll(true)
	for _, sled := range s.Sleds {
		if c := sled.Disk.LatestCommittedConfig(); c != nil && s.oracle.gone&bit(sled) != 0 {
			if s.bad(P6, sled, sled.Disk.Expunged != nil || s.allGone(c)) {
				s.broken(P6, "%s does not know that it is expunged", sled.ID)
			}
		}
	}
	for _, m := range d.members {
		r := m.Node.Roles()
		if s.bad(P19, m, r.Coordinating == 0 && r.Computing == 0) {
			s.broken(P19, "%s is still busy: %+v", m.ID, r)
		}
		if s.bad(P22, m, r.Collecting == 0) {
			s.broken(P22, "%s is still collecting", m.ID)
		}
	}
	if s.bad(P23, nil, len(s.busy) == 0 && len(s.ctl.answers) == 0) {
		s.broken(P23, "messages are left")
	}
}

// allGone reports whether nobody is left who would tell a member of an old configuration that it is over: sleds ask the
// members they know, and expunged ones no longer answer.
func (s *Sim) allGone(c *quorum.Configuration) bool {
	for _, m := range c.Members {
		if s.oracle.gone&bit(s.Find(m.ID)) == 0 {
			return false
		}
	}
	return true
}
