package quorumtest

import (
	"errors"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/reason"
)

// loading is a request for a secret that may be answered later.
type loading struct {
	sled  *Sled
	boot  uint64      // requests of earlier boots died with them
	epoch ident.Epoch // 0 = latest
	agree bool        // it asks whether one share more than the threshold agrees
}

// load asks a sled for a secret and checks the immediate answer against its disk.
func (s *Sim) load(sled *Sled, e ident.Epoch) {
	if !sled.Up() {
		return
	}
	s.nextID++
	in := quorum.LoadSecret{ID: s.nextID}
	if e != 0 {
		in.Epoch = &e
	}
	s.loads[in.ID] = loading{sled: sled, boot: s.boot[sled.Index], epoch: e}
	_, err := s.do(sled, in)
	if errors.Is(err, ErrDown) {
		return
	}
	if err == nil && s.bad(P6, sled, sled.Disk.Expunged == nil) {
		s.broken(P6, "%s is expunged and takes a request for a secret", sled.ID)
	}
	if err == nil {
		if _, waits := s.loads[in.ID]; waits && sled.Up() {
			if got := sled.Node.Roles().Collecting; s.bad(P13, sled, got >= max(e, 1)) {
				s.broken(P13, "%s waits for epoch %d and collects %d", sled.ID, e, got)
			}
		}
		return
	}
	delete(s.loads, in.ID)
	s.loadRefused(sled, e, err)
}

func (s *Sim) loadRefused(sled *Sled, e ident.Epoch, err error) {
	latest, some := sled.Disk.LatestCommitted()
	switch reason.CodeOf(err) {
	case quorum.CodeNoCommitted:
		if s.bad(P15, sled, !some) {
			s.broken(P15, "%s says that nothing is committed", sled.ID)
		}
	case quorum.CodeNotCommitted:
		if s.bad(P16, sled, e > latest) {
			s.broken(P16, "%s says that epoch %d is not committed, has %d", sled.ID, e, latest)
		}
	case quorum.CodeNotAvailable:
		s.notAvailable(sled, e, latest)
	case quorum.CodeExpunged:
		if s.bad(P6, sled, sled.Disk.Expunged != nil) {
			s.broken(P6, "%s says that it is expunged", sled.ID)
		}
	case quorum.CodeBusy:
	default:
		if s.bad(P17, sled, false) {
			s.broken(P17, "%s: load epoch %d: %v", sled.ID, e, err)
		}
	}
}

// agree asks a sled whether the shares of its latest epoch, or of a neighbouring one, lie on one polynomial.
func (s *Sim) agree(a Action) {
	sled := s.sled(a.A)
	latest, _ := sled.Disk.LatestCommitted()
	e := latest
	switch a.B % 8 {
	case 0:
		e++
	case 1:
		e--
	}
	s.compare(sled, e)
}

func (s *Sim) compare(sled *Sled, e ident.Epoch) {
	if !sled.Up() {
		return
	}
	latest, some := sled.Disk.LatestCommitted()
	s.nextID++
	id := s.nextID
	s.loads[id] = loading{sled: sled, boot: s.boot[sled.Index], epoch: e, agree: true}
	_, err := s.do(sled, quorum.CheckAgreement{ID: id, Epoch: e})
	if err == nil || errors.Is(err, ErrDown) {
		return
	}
	delete(s.loads, id)
	code := reason.CodeOf(err)
	ok := code == quorum.CodeExpunged && sled.Disk.Expunged != nil || code == quorum.CodeNoCommitted && !some ||
		code == quorum.CodeNotCommitted && e > latest || code == quorum.CodeOutdated && e < latest || code == quorum.CodeBusy
	if code == quorum.CodeSharesDisagree && len(s.frauds) > 0 {
		ok = true
	}
	if s.bad(P17, sled, ok) {
		s.broken(P17, "%s: check agreement on epoch %d, latest committed is %d: %v", sled.ID, e, latest, err)
	}
}

// cancel withdraws the oldest request of a sled that still waits.
func (s *Sim) cancel(a Action) {
	sled := s.sled(a.A)
	oldest := quorum.RequestID(0)
	for id, l := range s.loads {
		if l.sled == sled && l.boot == s.boot[sled.Index] && (oldest == 0 || id < oldest) {
			oldest = id
		}
	}
	if oldest != 0 {
		delete(s.loads, oldest)
		_, _ = s.do(sled, quorum.CancelLoad{ID: oldest})
	}
}

// someEpoch is any epoch that was ever used, or the next one.
func (s *Sim) someEpoch(v uint32) ident.Epoch {
	return 1 + ident.Epoch(v)%(ident.Epoch(len(s.oracle.asked))+1)
}
