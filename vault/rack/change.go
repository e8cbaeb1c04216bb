package rack

import (
	"slices"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/reason"
)

// More reasons of this package.
const (
	CodeUninitialised reason.Code = "rack-uninitialised" // the rack has no committed configuration yet
	CodeCoordinator   reason.Code = "rack-coordinator"   // a sled that may not coordinate this change
	CodeIncomplete    reason.Code = "rack-incomplete"    // a configuration without the older secrets that it must carry
	CodeUnmarked      reason.Code = "rack-unmarked"      // a removed sled has no mark in the enrolment set yet
	CodeKeepFrom      reason.Code = "rack-keep-from"     // older secrets cannot be dropped that far
)

// Kind is what a change is for.
type Kind string

// The kinds of changes. The first configuration of a rack, and one taken over from the sleds, has none.
const (
	Add    Kind = "add"
	Remove Kind = "remove"
	Rotate Kind = "rotate" // same members, new secret
	Prune  Kind = "prune"  // the same, and older secrets are dropped
	// Upgrade is the first configuration of a rack that comes from the older scheme.
	Upgrade Kind = "upgrade-lrtq"
)

// Plan is a change to begin.
type Plan struct {
	Kind        Kind
	Members     []ident.Baseboard
	Threshold   ident.Threshold // 0: the default
	Coordinator ident.Baseboard // a member of both groups that acknowledged the last commit
	KeepFrom    ident.Epoch     // the first epoch whose secret is kept; 0: as before
}

// Committed is the newest decided change, nil before the first: the one that a new change builds on.
func (s *State) Committed() *Change {
	if s.Change != nil && (s.Change.Phase == Decided || s.Change.Phase == Done) {
		return s.Change
	}
	return s.Base
}

// Recertify gives the committed configuration another certificate, signed by a new membership key: every member is to be
// sent it again. It returns whether the state changed, and must be saved. An aborted change on top of it is forgotten; its
// epoch stays used.
func (s *State) Recertify(cert *quorum.Certificate) bool {
	ch := s.Committed()
	if ch == nil || ch.Certificate != nil && *ch.Certificate == *cert {
		return false
	}
	ch.Certificate, ch.Phase, ch.Committed = cert, Decided, nil
	s.Change, s.Base = ch, nil
	return true
}

// Quorum is how many members must have acknowledged: the threshold and the tolerance beyond it.
func (c *Change) Quorum() int {
	return min(int(c.Threshold)+Tolerance(len(c.Members)), len(c.Members))
}

// Settled reports whether another change may build on this one although some members have not acknowledged its commit:
// enough have, so the others can catch up from them, and nobody who was removed is still marked as a member.
func (c *Change) Settled() bool { return c.settled() == nil }

func (c *Change) settled() error {
	const hint = "finish it first: run the command again that began it"
	switch n := c.Quorum(); {
	case c.Phase != Done && (c.Phase != Decided || len(c.Committed) < n):
		return reason.New(CodeBusy, hint, "rack: epoch %d is %s: have %d acknowledged commits, want %d", c.Epoch, c.Phase, len(c.Committed), n)
	case !c.Marks():
		return reason.New(CodeUnmarked, hint, "rack: epoch %d removed %d sleds that the enrolment set still shows as members", c.Epoch, len(c.Removed))
	}
	return nil
}

// Marks reports whether every sled that the change removed is marked as removed in the enrolment set.
func (c *Change) Marks() bool { return len(c.Removed) == 0 || c.Marked }

// BeginChange starts a membership change on top of the last committed configuration. One coordinator per epoch, and no
// epoch twice: a change that loses its coordinator is aborted and begun again with the next epoch.
func (s *State) BeginChange(p Plan) error {
	base := s.Committed()
	switch {
	case s.Change != nil && s.Change.Phase == Preparing:
		return reason.New(CodeBusy, "finish it by running its command again, or give it up: sledvault rack abort", "rack: epoch %d is being prepared", s.Change.Epoch)
	case base == nil:
		return reason.New(CodeUninitialised, "initialise the rack: sledvault rack init", "rack: nothing is committed yet")
	}
	if err := base.settled(); err != nil {
		return err
	}
	p.Members = ident.SortBaseboards(p.Members)
	if err := checkMembers(p.Members); err != nil {
		return err
	}
	if err := p.checkKind(base); err != nil {
		return err
	}
	if p.Threshold == 0 {
		p.Threshold = Threshold(len(p.Members))
	}
	if p.Threshold < 2 || int(p.Threshold) >= len(p.Members) {
		return reason.New(CodeThreshold, "leave the threshold out of the rack file for the default",
			"rack: threshold must be at least 2 and below the number of members: have %d for %d members", p.Threshold, len(p.Members))
	}
	if err := p.checkKeep(base); err != nil {
		return err
	}
	// A coordinator without the last commit would start a quorum that lacks the older secrets (protocol.md §8.1).
	if !base.mayCoordinate(p) {
		return reason.New(CodeCoordinator, "choose a sled that stays a member and has committed the last epoch",
			"rack: sled %s may not coordinate: not a member before and after, or epoch %d is not committed there", p.Coordinator, base.Epoch)
	}
	s.Highest++
	ch := &Change{
		Kind: p.Kind, Epoch: s.Highest, LastCommitted: base.Epoch, Coordinator: p.Coordinator, Members: p.Members,
		Threshold: p.Threshold, Phase: Preparing, Removed: missing(base.Members, p.Members), KeepFrom: max(base.KeepFrom, p.KeepFrom),
	}
	ch.NeedAcks = ch.Quorum()
	s.Base, s.Change = base, ch
	return nil
}

func (c *Change) mayCoordinate(p Plan) bool {
	return slices.Contains(c.Committed, p.Coordinator) && slices.Contains(p.Members, p.Coordinator)
}

// checkKind holds the members against what the operator asked for.
func (p *Plan) checkKind(base *Change) error {
	added, removed := len(missing(p.Members, base.Members)), len(missing(base.Members, p.Members))
	ok := false
	switch p.Kind {
	case Add:
		ok = added > 0 && removed == 0
	case Remove:
		ok = added == 0 && removed > 0
	case Rotate, Prune:
		ok = added == 0 && removed == 0
	case Upgrade: // has a beginning of its own
	}
	if !ok {
		return reason.New(CodeMembers, "add and remove sleds one after the other", "rack: %s with %d new and %d removed members", p.Kind, added, removed)
	}
	return nil
}

// checkKeep lets only a prune drop older secrets, and never the one that the change builds on.
func (p *Plan) checkKeep(base *Change) error {
	switch {
	case p.Kind != Prune && p.KeepFrom > base.KeepFrom, p.Kind == Prune && p.KeepFrom <= base.KeepFrom:
		return reason.New(CodeKeepFrom, "see sledvault rack status", "rack: %s that keeps the secrets from epoch %d on, they are kept from epoch %d on already", p.Kind, p.KeepFrom, base.KeepFrom)
	case p.KeepFrom > base.Epoch:
		return reason.New(CodeKeepFrom, "name an epoch up to the committed one", "rack: the secrets are to be kept from epoch %d on: have committed %d", p.KeepFrom, base.Epoch)
	}
	return nil
}

// missing lists what is in all but not in some.
func missing(all, some []ident.Baseboard) (out []ident.Baseboard) {
	for _, b := range all {
		if !slices.Contains(some, b) {
			out = append(out, b)
		}
	}
	return out
}

// Again aborts a change that lost its coordinator before the decision and begins it anew under another one, with an epoch
// of its own.
func (s *State) Again(coordinator ident.Baseboard) error {
	was := s.Change
	if was == nil || was.Phase != Preparing || was.LastCommitted == 0 {
		return reason.New(CodeNoChange, "see sledvault rack status", "rack: no membership change is being prepared")
	}
	next := *s
	aborted := *was
	aborted.Phase = Aborted
	next.Change = &aborted
	if err := next.BeginChange(Plan{was.Kind, was.Members, was.Threshold, coordinator, was.KeepFrom}); err != nil {
		return err
	}
	*s = next
	return nil
}

// complete refuses a configuration that lacks the secrets of older epochs. Committed, it would lose them for the whole
// rack at the change after this one.
func (c *Change) complete(config *quorum.Configuration) error {
	if (c.LastCommitted != 0 || c.Kind == Upgrade) == (config.EncryptedSecrets != nil) {
		return nil
	}
	return reason.New(CodeIncomplete, "read the configuration from its coordinator again once it is complete",
		"rack: configuration of epoch %d builds on epoch %d; it carries older secrets: %t", c.Epoch, c.LastCommitted, config.EncryptedSecrets != nil)
}
