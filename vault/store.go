package vault

import (
	"context"
	"slices"
	"sync"

	"github.com/sledvault/sledvault/rot"
	"github.com/sledvault/sledvault/rot/enroll"
	"github.com/sledvault/sledvault/vault/ledger"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/wire"
)

// store is the durable state of a claimed sled: the ledger and what it holds at the moment. Everything that changes it
// goes through update, which returns only when the change is on disk and the counter has moved (ledger.md §4).
type store struct {
	mu     sync.Mutex
	ledger *ledger.Ledger
	state  wire.LedgerState
	trace  *marker

	facts   sync.RWMutex // guards what evidence claims about the state
	current rot.Facts

	observing sync.Mutex // one change of the observed part at a time; nothing else waits for it

	saved func() // called after each protected save: the counter moved, so evidence must be made anew
	fatal func(error)
}

func newStore(l *ledger.Ledger, st wire.LedgerState, trace *marker, saved func(), fatal func(error)) *store {
	s := &store{ledger: l, state: st, trace: trace, saved: saved, fatal: fatal}
	s.publish()
	return s
}

func (s *store) publish() {
	st := s.ledger.Status()
	s.facts.Lock()
	defer s.facts.Unlock()
	s.current = rot.Facts{SetGeneration: s.state.SetGeneration, LedgerSequence: st.Sequence, LedgerGeneration: st.Generation}
}

// Facts is what evidence says about the state.
func (s *store) Facts() rot.Facts {
	s.facts.RLock()
	defer s.facts.RUnlock()
	return s.current
}

// update changes the records of disks and saves them. If they cannot be saved the daemon stops: nothing may be promised
// that a restart would forget.
func (s *store) update(ctx context.Context, change func(*wire.LedgerState)) error {
	return s.change(ctx, saveDisks, change)
}

// updateQuorum changes the node's state and saves it, as update does.
func (s *store) updateQuorum(ctx context.Context, st quorum.State) error {
	return s.change(ctx, saveQuorum, func(l *wire.LedgerState) { l.Quorum = st })
}

func (s *store) change(ctx context.Context, what string, change func(*wire.LedgerState)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := s.state
	next.Disks = slices.Clone(next.Disks)
	change(&next)
	return s.replace(what, next, func() error { return s.ledger.Save(ctx, next) })
}

// replace makes a state the one that counts, once save has stored it. The caller holds mu.
func (s *store) replace(what string, next wire.LedgerState, save func() error) error {
	s.trace.saveBegin(what)
	if err := save(); err != nil {
		s.trace.saveFailed(what)
		s.fatal(err)
		return err
	}
	s.trace.saveDone(what, s.ledger.Status().Sequence)
	s.state = next
	s.publish()
	s.saved()
	return nil
}

// saveSet replaces the enrolment set on both media and in the state.
func (s *store) saveSet(ctx context.Context, set *enroll.Set, envelope []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := s.state
	next.SetGeneration, next.SetDigest = set.Generation, set.Digest()
	return s.replace(saveSet, next, func() error { return s.ledger.SaveSet(ctx, envelope, next) })
}

// keepSet keeps the enrolment set that a change of keys is about to replace.
func (s *store) keepSet(envelope []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ledger.KeepPrevious(envelope)
}

// refresh approves the platform state of the moment beside that of the start, so that a restart of the daemon can open
// the seal after the boot has measured more.
func (s *store) refresh(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ledger.Refresh(ctx)
}

// observe changes the observed part, which moves no counter. It has a lock of its own: who only reads the state, an unlock
// say, does not wait for the disks.
func (s *store) observe(ctx context.Context, change func(*ledger.Observed)) error {
	s.observing.Lock()
	defer s.observing.Unlock()
	o := s.ledger.Observed()
	change(&o)
	return s.ledger.SaveObserved(ctx, o)
}

// snapshot returns the state; its maps and slices are not changed by anybody.
func (s *store) snapshot() wire.LedgerState {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state
}

// close ends saving: whatever is left to save fails.
func (s *store) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.ledger.Close() // wipes what was unsealed, too
}

func (s *store) disk(id string) (wire.DiskRecord, bool) {
	st := s.snapshot()
	i := slices.IndexFunc(st.Disks, func(d wire.DiskRecord) bool { return d.ID == id })
	if i < 0 {
		return wire.DiskRecord{}, false
	}
	return st.Disks[i], true
}
