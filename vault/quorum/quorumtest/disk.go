package quorumtest

import (
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
)

// disk is what a sled's state folders hold beside [Sled.Disk], which is what a process finds when it starts.
type disk struct {
	past    []quorum.State // what was saved before, oldest first: an old disk that comes back holds one of them
	fate    saveFate       // of the next save
	refused bool           // the ledger refuses what it finds: the sled stays down until it is enrolled again
}

// keptPast bounds disk.past.
const keptPast = 6

type saveFate uint8

const (
	saveGood        saveFate = iota
	saveFail                 // nothing is written, and the process hears of it
	saveCrashBefore          // it dies before the write
	saveCrashAfter           // it dies when all is written and nothing is sent
	saveTorn                 // it dies in the write
)

func (s *Sim) disk(sled *Sled) *disk { return &s.disks[sled.Index] }

// save is the disk: what it is given must follow the rules, then the fate of the moment is done.
func (s *Sim) save(sled *Sled, st quorum.State) error {
	if s.plant.save != nil {
		var skip bool
		if st, skip = s.plant.save(s, sled, st); skip {
			return nil
		}
	}
	d := s.disk(sled)
	fate := d.fate
	d.fate = saveGood
	s.checkState(sled, &st, fate != saveFail && fate != saveCrashBefore && fate != saveTorn)
	switch fate {
	case saveGood:
	case saveFail:
		s.fault(FaultFailedSave)
		return errInjected
	case saveCrashBefore:
		s.fault(FaultCrashBeforeSave)
		return errInjected
	case saveTorn:
		s.fault(FaultTornSave)
		s.torn(sled, st)
		return errInjected
	case saveCrashAfter:
		s.fault(FaultCrashAfterSave)
		s.write(sled, st)
		return errInjected
	}
	s.write(sled, st)
	return nil
}

func (s *Sim) write(sled *Sled, st quorum.State) {
	d := s.disk(sled)
	if len(d.past) == keptPast {
		d.past = append(d.past[:0], d.past[1:]...)
	}
	d.past = append(d.past, sled.Disk)
	sled.Disk = st
	for e := range st.Shares {
		s.checked[sled.Index][e] = true
		if s.oracle.lost[e]&bit(sled) != 0 {
			s.oracle.lost[e] &^= bit(sled)
		}
	}
	if last := s.oracle.last(); last != nil && st.Commits[last.epoch] && !s.owes(sled) { // it has recovered
		for f := range faults {
			if f != FaultRogue { // what it was given stays
				s.hit[f] &^= bit(sled)
			}
		}
	}
}

// owes reports whether a sled still lacks a share that it lost.
func (s *Sim) owes(sled *Sled) bool {
	for _, lost := range s.oracle.lost {
		if lost&bit(sled) != 0 {
			return true
		}
	}
	return false
}

// torn offers a node what one copy looks like after half a save: some parts new, some old. It must refuse it, or it is a
// state that breaks no rule. The other copy is whole, and the sled goes on from that.
func (s *Sim) torn(sled *Sled, st quorum.State) {
	for part := range 16 {
		mix := sled.Disk
		if part&1 != 0 {
			mix.Configs = st.Configs
		}
		if part&2 != 0 {
			mix.Shares = st.Shares
		}
		if part&4 != 0 {
			mix.Commits = st.Commits
		}
		if part&8 != 0 {
			mix.Certificates = st.Certificates
		}
		s.offer(sled, mix)
	}
}

// offer starts a node from a state that may break the rules, and throws it away.
func (s *Sim) offer(sled *Sled, st quorum.State) {
	_, err := quorum.New(quorum.Config{ID: sled.ID, Alloc: s.Alloc, Authority: s.Auth, Rand: zeros{}}, st)
	if s.bad(XStart, sled, err != nil || sane(sled.ID, st)) {
		s.broken(XStart, "%s starts from a state that breaks a rule: %v, shares %v, commits %v, certificates %v", sled.ID,
			quorum.Epochs(st.Configs), quorum.Epochs(st.Shares), quorum.Epochs(st.Commits), quorum.Epochs(st.Certificates))
	}
}

// zeros is the randomness of nodes that never draw any.
type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// sane is the oracle's own opinion of a state: X1, X2 and X4.
func sane(id ident.Baseboard, st quorum.State) bool {
	for e, c := range st.Configs {
		if c.Epoch != e || c.RackID != RackID() {
			return false
		}
	}
	for e, sh := range st.Shares {
		if c := st.Configs[e]; c == nil || !fits(c, id, sh) {
			return false
		}
	}
	for e := range st.Commits {
		if !st.Prepared(e) || st.Certificates[e] == nil {
			return false
		}
	}
	for e := range st.Certificates {
		if st.Configs[e] == nil {
			return false
		}
	}
	return true
}

// powerCut takes all sleds down. Some disks had acknowledged their last save and lost it, where the budget allows that; a
// ledger finds it out by its counter, or does not.
func (s *Sim) powerCut(a Action) {
	s.fault(FaultPowerCut)
	for _, sled := range s.Sleds {
		if sled.Up() {
			s.crash(sled)
		}
	}
	for i, sled := range s.Sleds {
		d := s.disk(sled)
		if a.C>>(8+i%12)&3 != 0 || len(d.past) == 0 {
			continue
		}
		switch left := d.past[len(d.past)-1]; { // the sync of the last save was a lie
		case a.A>>i&1 == 0 && s.affordable(sled, &left):
			s.strike(FaultLostSync, sled, left)
		case a.A>>i&1 != 0 && s.affordable(sled, &quorum.State{}):
			s.refuse(FaultLostSync, sled)
		}
	}
	if a.B%2 == 0 {
		s.crashController()
	}
}

// rollback puts an old disk into a sled that is down. Either its ledger refuses it, or nobody notices.
func (s *Sim) rollback(a Action) {
	sled := s.sled(a.A)
	d := s.disk(sled)
	if d.refused || len(d.past) == 0 {
		return
	}
	if sled.Up() {
		s.fault(FaultCrash)
		s.crash(sled)
	}
	old := d.past[int(a.B)%len(d.past)]
	if a.C%2 == 0 {
		if s.affordable(sled, &quorum.State{}) {
			s.refuse(FaultRollbackRefused, sled)
		}
	} else if s.affordable(sled, &old) {
		s.strike(FaultRollbackUnseen, sled, old)
	}
}

// refuse has the ledger refuse what it finds. A sled whose ledger is refused has nothing.
func (s *Sim) refuse(f Fault, sled *Sled) {
	s.strike(f, sled, quorum.State{})
	s.disk(sled).refused = true
}

// enrolAgain lets a sled whose disk was refused, or which was removed from the rack and is down, begin with an empty one.
func (s *Sim) enrolAgain(sled *Sled) {
	d := s.disk(sled)
	if !d.refused && (sled.Up() || sled.Disk.Expunged == nil) {
		return
	}
	s.oracle.gone &^= bit(sled)
	for _, d := range s.oracle.decisions {
		d.before &^= bit(sled)
	}
	*d = disk{}
	sled.Disk = quorum.State{}
	clear(s.checked[sled.Index])
}

// swap boots a sled with the disk of another. Without shares there is nothing to tell whose disk it is.
func (s *Sim) swap(a Action) {
	sled, other := s.sled(a.A), s.sled(a.B)
	if sled == other || len(other.Disk.Shares) == 0 {
		return
	}
	s.fault(FaultSwap)
	s.touch(sled)
	_, err := quorum.New(quorum.Config{ID: sled.ID, Alloc: s.Alloc, Authority: s.Auth, Rand: zeros{}}, other.Disk)
	if s.bad(XStart, sled, err != nil) {
		s.broken(XStart, "%s starts from the disk of %s", sled.ID, other.ID)
	}
}
