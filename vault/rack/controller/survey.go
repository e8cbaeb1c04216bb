package controller

import (
	"context"
	"slices"
	"sync"

	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/rack"
	"github.com/sledvault/sledvault/vault/reason"
)

// recover fills an empty journal from what the sleds hold. All of them must answer but those that are to be removed: one
// that is silent may know of a later epoch.
func (r *run) recover(ctx context.Context, except []ident.Baseboard) error {
	if r.st.Change != nil {
		return nil
	}
	var all []ident.Baseboard
	for _, s := range r.c.file.Sleds {
		if rec, ok := r.c.set.Find(s.Baseboard()); ok && rec.Live() && !slices.Contains(except, s.Baseboard()) {
			all = append(all, s.Baseboard())
		}
	}
	if err := r.survey(ctx, all, func(reached []ident.Baseboard) bool { return len(reached) == len(all) }); err != nil {
		return err
	}
	if r.st.Committed() == nil {
		return reason.New(rack.CodeUninitialised, "initialise the rack: sledvault rack init", "rack: nothing is committed yet")
	}
	r.c.note("epoch %d is committed; the journal takes it over", r.st.LastCommitted())
	return r.save()
}

// catchUp has the journal follow the rack: an older journal was put back. errAgain tells that it did.
func (r *run) catchUp(ctx context.Context) error {
	was := r.st.Change
	if err := r.survey(ctx, was.Members, func([]ident.Baseboard) bool { return r.st.Change != was }); err != nil {
		return err
	}
	r.c.note("epoch %d is committed; the journal was older", r.st.LastCommitted())
	if err := r.save(); err != nil {
		return err
	}
	return errAgain
}

// superseded reports whether a sled that did not commit an epoch has committed a later one.
func superseded(ctx context.Context, n node, ch *rack.Change) error {
	e, err := n.newest(ctx)
	if err != nil || e <= ch.Epoch {
		return err
	}
	return reason.New(CodeSuperseded, "restore the newest journal.json, or run the command again", "rack: epoch %d: a sled has committed epoch %d", ch.Epoch, e)
}

// errHoldsState refuses a removed sled that was not reset: it knows that it is out, and would never commit.
func errHoldsState(name string) error {
	return reason.New(CodeNotEnrolled, "reset it on the sled itself: sledvault seal reset, then run the command again",
		"rack: sled %s was removed from the rack and still holds its state", name)
}

// survey connects to all targets at the same time, hands them the newest enrolment set, takes note of the epochs that
// they know, and returns as soon as enough have been reached. Until ctx ends it waits for the others.
func (r *run) survey(ctx context.Context, targets []ident.Baseboard, enough func(reached []ident.Baseboard) bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	var reached []ident.Baseboard // guarded by r.mu
	var failed error
	envelope := r.c.set.Encode()
	for _, b := range targets {
		wg.Go(func() {
			err := r.c.insist(ctx, b, func(s *Sledlink) error { return r.visit(ctx, s, b, envelope) })
			r.mu.Lock()
			defer r.mu.Unlock()
			if err == nil {
				reached = append(reached, b)
			} else if reason.RemedyOf(err) != reason.Retry {
				r.c.waitingFor(b, err)
				failed = err
			}
			if enough(reached) {
				cancel()
			}
		})
	}
	wg.Wait()
	if enough(reached) {
		return nil
	}
	if failed != nil {
		return failed
	}
	var missing []ident.Baseboard
	for _, b := range targets {
		if !slices.Contains(reached, b) {
			missing = append(missing, b)
		}
	}
	return r.c.waitingForSleds(missing, nil, "rack: waits for sleds before the change can begin")
}

// visit brings one sled up to date and notes what it knows.
func (r *run) visit(ctx context.Context, s *Sledlink, b ident.Baseboard, envelope []byte) error {
	st, err := s.Status(ctx)
	if err != nil {
		return err
	}
	if st.State == api.StateExpunged {
		return errHoldsState(r.c.label(b))
	}
	if st.Rack == nil || st.Rack.SetGeneration < r.c.set.Generation {
		if _, err := s.EnrollSet(ctx, envelope); err != nil {
			return err
		}
	}
	if err := r.c.askOne(ctx, s, &r.mu, r.st); err != nil {
		return err
	}
	if st.Quorum == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if ch := r.st.Committed(); ch != nil && slices.Contains(st.Quorum.Commits, ch.Epoch) {
		ch.CommittedBy(b)
	}
	return nil
}

// candidate is the first of the sleds that may coordinate: it stays a member and has committed the last epoch.
func (r *run) candidate(members, sleds []ident.Baseboard) ident.Baseboard {
	base := r.st.Committed()
	for _, b := range sleds {
		if base != nil && slices.Contains(base.Committed, b) && slices.Contains(base.Members, b) && slices.Contains(members, b) {
			return b
		}
	}
	return ident.Baseboard{}
}
