package controller

import (
	"context"
	"path/filepath"
	"slices"
	"sync"

	"github.com/sledvault/sledvault/rot/enroll"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/rack"
	"github.com/sledvault/sledvault/vault/rack/journal"
	"github.com/sledvault/sledvault/vault/reason"
)

// finish does what is left of a change that an earlier run brought to its commit, for sleds that are no members.
func (r *run) finish(ctx context.Context, boards []ident.Baseboard) error {
	ch := r.st.Committed()
	for _, b := range boards {
		if rec, ok := r.c.set.Find(b); ok && rec.Live() && !slices.Contains(ch.Members, b) && !slices.Contains(ch.Removed, b) {
			ch.Removed, ch.Marked = append(ch.Removed, b), false // the journal was lost, or it never was a member
		}
	}
	if ch.Marks() {
		return nil
	}
	return r.markNow(ctx, ch)
}

// mark puts the removal into the enrolment set and tells the sleds. A removed sled that is up learns of it at once and
// asks for the proof.
func (r *run) mark(ctx context.Context, ch *rack.Change) error {
	next, changed := r.c.set.Next(), false
	for _, b := range ch.Removed {
		rec, ok := r.c.set.Find(b)
		if !ok || !rec.Live() {
			continue
		}
		gone := rec.Clone()
		gone.Removed = ch.Epoch
		if err := next.Put(gone); err != nil {
			return err
		}
		changed = true
	}
	if changed {
		if err := next.Sign(r.c.key); err != nil {
			return err
		}
		if err := r.c.writeSet(next); err != nil {
			return err
		}
	} else {
		next = r.c.set
	}
	r.tellSet(ctx, next, append(slices.Clone(ch.Removed), ch.Members...))
	r.mu.Lock()
	defer r.mu.Unlock()
	r.marked = next
	ch.Marked = true
	for _, b := range ch.Removed {
		r.c.say(b, "removed with epoch %d", ch.Epoch)
	}
	return r.save()
}

// markNow marks while nothing else runs.
func (r *run) markNow(ctx context.Context, ch *rack.Change) error {
	err := r.mark(ctx, ch)
	r.takeMarked()
	return err
}

// takeMarked makes the set with the marks the controller's own, once nobody reads the one before any more.
func (r *run) takeMarked() {
	if r.marked != nil {
		r.c.set = r.marked
	}
}

// tellSet hands sleds a set, once: whoever does not answer gets it from its peers.
func (r *run) tellSet(ctx context.Context, set *enroll.Set, boards []ident.Baseboard) {
	envelope := set.Encode()
	var wg sync.WaitGroup
	for _, b := range boards {
		s, ok := r.c.file.Find(b)
		if !ok {
			continue
		}
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, statusTimeout)
			defer cancel()
			if err := r.c.distribute(ctx, s, envelope); err != nil {
				r.c.say(b, "gets the enrolment set from its peers later: %v", err)
			}
		})
	}
	wg.Wait()
}

func (c *Controller) writeSet(s *enroll.Set) error {
	if err := journal.WriteFile(filepath.Join(c.file.dir, setFile), s.Encode(), 0o600); err != nil {
		return reason.Wrap(err, CodeSet, "free space in the rack's folder", "rack: write enrolment set")
	}
	return nil
}
