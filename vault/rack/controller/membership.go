package controller

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"time"

	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/rack"
	"github.com/sledvault/sledvault/vault/reason"
)

// CodeSuperseded marks a journal that is older than the rack.
const CodeSuperseded reason.Code = "rack-superseded"

// Add makes sleds of the rack file members, enrolling them first where needed. It returns when every member has
// acknowledged the commit, or with the reason why it cannot go on before ctx ends. It may be run again at any point, as
// may [Controller.Remove] and [Controller.Rotate].
func (c *Controller) Add(ctx context.Context, names ...string) (*rack.Change, error) {
	boards, err := c.find(names)
	if err != nil {
		return nil, err
	}
	return c.change(ctx, rack.Add, boards)
}

// Remove takes members out. What they hold opens nothing from the next epoch on; they learn of it by proof from the
// members, now or when they next start.
func (c *Controller) Remove(ctx context.Context, names ...string) (*rack.Change, error) {
	var boards []ident.Baseboard
	for _, n := range names {
		b, err := c.findRecord(n)
		if err != nil {
			return nil, err
		}
		boards = append(boards, b)
	}
	return c.change(ctx, rack.Remove, boards)
}

// Rotate gives the same members a new secret.
func (c *Controller) Rotate(ctx context.Context) (*rack.Change, error) {
	return c.change(ctx, rack.Rotate, nil)
}

// Abort gives up the change under way. Once it is decided that is refused: some sled may act on it already.
func (c *Controller) Abort() (*rack.Change, error) {
	r, err := c.openRun()
	if err != nil {
		return nil, err
	}
	defer r.close()
	if ch := r.st.Change; ch == nil || ch.Phase == rack.Done || ch.Phase == rack.Aborted {
		return ch, reason.New(rack.CodeNoChange, "nothing to do", "rack: no change is under way")
	}
	if err := r.st.Change.Abort(); err != nil {
		return r.st.Change, err
	}
	return r.st.Change, r.save()
}

// OnSave has f called after each save of the journal, with what was saved. An error of f ends the command there; what it
// has begun is finished by the next one.
func (c *Controller) OnSave(f func(rack.State) error) { c.onSave = f }

// findRecord resolves a name also when the sled's table is gone from the rack file.
func (c *Controller) findRecord(name string) (ident.Baseboard, error) {
	if found, err := c.find([]string{name}); err == nil {
		return found[0], nil
	}
	for i := range c.set.Records {
		if b := c.set.Records[i].Baseboard; b.String() == name {
			return b, nil
		}
	}
	return ident.Baseboard{}, c.unknownSled(name)
}

// change runs one membership change to its end: whatever part of it was done before is not done again.
func (c *Controller) change(ctx context.Context, kind rack.Kind, boards []ident.Baseboard) (*rack.Change, error) {
	r, err := c.openRun()
	if err != nil {
		return nil, err
	}
	defer r.close()
	if kind == rack.Add {
		if err := r.enrollNew(ctx, boards); err != nil {
			return nil, err
		}
	}
	return r.change(ctx, kind, boards)
}

func (r *run) change(ctx context.Context, kind rack.Kind, boards []ident.Baseboard) (*rack.Change, error) {
	for {
		ch, err := r.steps(ctx, kind, boards)
		if !errors.Is(err, errAgain) {
			return ch, err
		}
	}
}

// steps takes a change from where it is to its end. errAgain says that the state changed under it: take another look.
func (r *run) steps(ctx context.Context, kind rack.Kind, boards []ident.Baseboard) (*rack.Change, error) {
	if err := r.recover(ctx, boards); err != nil {
		return nil, err
	}
	resumed, err := r.resume(ctx, kind, boards)
	if err != nil {
		return nil, err
	}
	if !resumed {
		p, err := r.plan(kind, boards)
		if err != nil {
			return nil, err
		}
		if p == nil { // done by an earlier run
			ch := r.st.Committed()
			return ch, r.finish(ctx, boards)
		}
		if err := r.begin(ctx, p); err != nil {
			return nil, err
		}
	}
	if r.st.Change.Phase == rack.Preparing {
		if err := r.prepare(ctx); err != nil {
			return r.st.Change, r.c.gaveUp(ctx, r.st.Change, err)
		}
	}
	ch := r.st.Change
	err = r.commit(ctx, func() bool { return ch.Phase == rack.Done && ch.Marks() })
	if reason.CodeOf(err) == CodeSuperseded {
		return nil, r.catchUp(ctx)
	}
	if err != nil {
		return ch, r.c.gaveUp(ctx, ch, err)
	}
	return ch, nil
}

// resume reports whether the change under way is the one that is asked for. A decided change of another kind is finished
// as far as it must be before the next one can begin.
func (r *run) resume(ctx context.Context, kind rack.Kind, boards []ident.Baseboard) (bool, error) {
	ch := r.st.Change
	if ch.Phase == rack.Decided {
		r.earlier = ch
	}
	asked := ch.Kind == kind && r.covers(ch, kind, boards)
	switch {
	case ch.Phase == rack.Preparing && !asked:
		return false, reason.New(rack.CodeBusy, "finish it: "+r.command(ch)+", or give it up: sledvault rack abort",
			"rack: epoch %d is being prepared: %s", ch.Epoch, kindText(ch))
	case ch.Phase == rack.Preparing:
		r.c.note("epoch %d: going on with %s", ch.Epoch, kindText(ch))
		return true, nil
	case ch.Phase == rack.Decided && asked:
		r.c.note("epoch %d: going on with the commit", ch.Epoch)
		return true, nil
	case ch.Phase == rack.Decided && !ch.Settled():
		err := r.commit(ctx, ch.Settled)
		if reason.CodeOf(err) == CodeSuperseded {
			return false, r.catchUp(ctx)
		}
		return false, err
	case ch.Phase == rack.Done && !ch.Marks():
		return false, r.markNow(ctx, ch)
	}
	return false, nil
}

// covers reports whether the change under way adds or removes exactly the given sleds, or drops the same secrets.
func (r *run) covers(ch *rack.Change, kind rack.Kind, boards []ident.Baseboard) bool {
	base := r.st.Base
	switch {
	case kind == rack.Rotate:
		return true
	case kind == rack.Prune:
		return ch.KeepFrom == r.keepFrom
	case kind == rack.Remove:
		return same(ch.Removed, boards)
	case base == nil || base == ch: // decided: the one before is not remembered
		return !slices.ContainsFunc(boards, func(b ident.Baseboard) bool { return !slices.Contains(ch.Members, b) })
	}
	var added []ident.Baseboard
	for _, m := range ch.Members {
		if !slices.Contains(base.Members, m) {
			added = append(added, m)
		}
	}
	return same(added, boards)
}

func same(a, b []ident.Baseboard) bool {
	return slices.Equal(ident.SortBaseboards(a), ident.SortBaseboards(b))
}

func kindText(ch *rack.Change) string {
	if ch.Kind == "" {
		return "the first configuration"
	}
	return string(ch.Kind)
}

// command is how an operator goes on with a change.
func (r *run) command(ch *rack.Change) string {
	if ch.Kind == "" {
		return "sledvault rack init"
	}
	out := "sledvault rack " + string(ch.Kind)
	if ch.Kind == rack.Prune {
		return out + " --keep-from " + strconv.FormatUint(uint64(ch.KeepFrom), 10)
	}
	boards := ch.Removed
	if ch.Kind == rack.Add {
		boards = nil
		for _, m := range ch.Members {
			if r.st.Base != nil && !slices.Contains(r.st.Base.Members, m) {
				boards = append(boards, m)
			}
		}
	}
	for _, b := range boards {
		out += " " + r.c.label(b)
	}
	return out
}

// plan says which members the next configuration has; nil if it is there already.
func (r *run) plan(kind rack.Kind, boards []ident.Baseboard) (*rack.Plan, error) {
	base := r.st.Committed()
	if base == nil {
		return nil, reason.New(rack.CodeUninitialised, "initialise the rack: sledvault rack init", "rack: nothing is committed yet")
	}
	members := slices.Clone(base.Members)
	for _, b := range boards {
		i := slices.Index(members, b)
		switch {
		case kind == rack.Add && i < 0:
			members = append(members, b)
		case kind == rack.Remove && i >= 0:
			members = slices.Delete(members, i, i+1)
		}
	}
	done := len(members) == len(base.Members)
	switch kind {
	case rack.Rotate:
		done = false
	case rack.Prune:
		done = base.KeepFrom >= r.keepFrom
	case rack.Add, rack.Remove:
	case rack.Upgrade: // has a beginning of its own
	}
	if done {
		return nil, nil
	}
	if n := len(members); kind == rack.Remove && n < rack.MinMembers {
		return nil, reason.New(rack.CodeMembers, "add another sled first: sledvault rack add", "rack: members: would have %d, want at least %d", n, rack.MinMembers)
	}
	return &rack.Plan{Kind: kind, Members: members, Threshold: ident.Threshold(r.c.file.Threshold), KeepFrom: r.keepFrom}, nil
}

// begin waits until enough sleds are there, and records the change.
func (r *run) begin(ctx context.Context, p *rack.Plan) error {
	base := r.st.Committed()
	var added, both []ident.Baseboard
	for _, m := range p.Members {
		if slices.Contains(base.Members, m) {
			both = append(both, m)
		} else {
			added = append(added, m)
		}
	}
	targets := append(slices.Clone(added), base.Members...)
	if p.Kind == rack.Remove {
		targets = both
	}
	err := r.survey(ctx, targets, func(reached []ident.Baseboard) bool {
		old := 0
		for _, b := range reached {
			if slices.Contains(base.Members, b) {
				old++
			}
		}
		// The new set must have reached whoever is needed, so that they accept the new member.
		enough := len(added) == 0 || old >= base.Quorum() && old+len(added) <= len(reached)
		return enough && base.Settled() && r.candidate(p.Members, reached) != ident.Baseboard{}
	})
	if err != nil {
		return err
	}
	if r.st.Committed() != base { // the sleds know of a later commit than the journal
		if err := r.save(); err != nil {
			return err
		}
		return errAgain
	}
	p.Coordinator = r.candidate(p.Members, base.Committed)
	if err := r.st.BeginChange(*p); err != nil {
		return err
	}
	r.c.note("epoch %d: %s, %d members, coordinator %s", r.st.Change.Epoch, p.Kind, len(r.st.Change.Members), r.c.label(p.Coordinator))
	return r.save()
}

// enrollNew has sleds that are to be added claimed, as sledvault rack enroll does, and the new set told to them. It waits
// for those that do not answer yet.
func (r *run) enrollNew(ctx context.Context, boards []ident.Baseboard) error {
	var sleds []Sled
	for _, s := range r.c.file.Sleds {
		if rec, ok := r.c.set.Find(s.Baseboard()); slices.Contains(boards, s.Baseboard()) && (!ok || !rec.Live() || !slices.Contains(r.members(), s.Baseboard())) {
			sleds = append(sleds, s)
		}
	}
	for pause := retryFirst; len(sleds) > 0; pause = min(2*pause, retryLast) {
		found, err := r.c.enroll(ctx, sleds, again{members: r.members()})
		if err := r.holdState(found); err != nil {
			return err
		}
		if err == nil || reason.RemedyOf(err) != reason.Retry {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause):
		}
	}
	return nil
}

// holdState refuses removed sleds that answer and still know the rack: those that do not answer may have been reset.
func (r *run) holdState(found []Enrolled) error {
	for _, e := range found {
		knows := slices.Contains([]api.State{api.StateClaimed, api.StateMember, api.StateExpunged}, e.found)
		if rec, ok := r.c.set.Find(e.board); knows && ok && !rec.Live() {
			return errHoldsState(r.c.label(e.board))
		}
	}
	return nil
}
