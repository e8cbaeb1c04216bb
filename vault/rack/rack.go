// Package rack is the pure core of the rack controller: what one membership change is, what may happen next, and what
// must be recorded before it may.
//
// A change goes preparing → decided → done, or from preparing to aborted. The decision is recorded before the first
// commit leaves; after it the epoch can no longer be aborted, only finished (rack.md §4). The core does no I/O: the
// caller saves the [State] after every call that returns true, before it acts on it. Package journal keeps it on disk,
// package controller talks to the sleds.
package rack

import (
	"fmt"
	"slices"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/reason"
)

// Limits of a configuration (protocol.md §5).
const (
	MinMembers = 3
	MaxMembers = 32
)

// Reasons of this package.
const (
	CodeMembers     reason.Code = "rack-members"     // too few, too many, or not the right members
	CodeThreshold   reason.Code = "rack-threshold"   // a threshold that cannot work
	CodeBusy        reason.Code = "rack-busy"        // another change is under way
	CodeInitialised reason.Code = "rack-initialised" // the rack has a committed configuration already
	CodeMismatch    reason.Code = "rack-mismatch"    // a sled reports a configuration that was not asked for
	CodeDecided     reason.Code = "rack-decided"     // a decided change cannot be aborted
	CodeNoChange    reason.Code = "rack-no-change"   // nothing is under way
	CodeEpochs      reason.Code = "rack-epochs"      // no epoch is left: a sled reported an absurd one
)

// Threshold is the default number of shares that rebuild a secret of n members.
func Threshold(n int) ident.Threshold { return ident.Threshold(n/2 + 1) }

// Tolerance is how many acknowledged prepares beyond the threshold are demanded before a change is decided, so that so
// many members may be lost for good right after it.
func Tolerance(n int) int {
	switch {
	case n <= 4:
		return 0
	case n <= 8:
		return 1
	case n <= 15:
		return 2
	case n <= 23:
		return 3
	}
	return 4
}

// Phase is how far a change has come.
type Phase string

// The phases of a change.
const (
	Preparing Phase = "preparing" // the coordinator hands out shares
	Decided   Phase = "decided"   // recorded: it will be committed, whatever happens
	Done      Phase = "done"      // every member has acknowledged the commit
	Aborted   Phase = "aborted"   // given up before the decision; its epoch is never used again
)

// Change is one membership change.
type Change struct {
	Kind          Kind                  `json:"kind,omitempty"`
	Epoch         ident.Epoch           `json:"epoch"`
	LastCommitted ident.Epoch           `json:"last_committed"` // 0 for the first configuration
	Coordinator   ident.Baseboard       `json:"coordinator"`
	Members       []ident.Baseboard     `json:"members"` // ascending
	Threshold     ident.Threshold       `json:"threshold"`
	NeedAcks      int                   `json:"need_acks"` // acknowledged prepares before the decision
	Phase         Phase                 `json:"phase"`
	Acked         []ident.Baseboard     `json:"acked"`               // acknowledged the prepare
	Committed     []ident.Baseboard     `json:"committed"`           // acknowledged the commit
	Removed       []ident.Baseboard     `json:"removed,omitempty"`   // members of the last committed epoch that this one leaves out
	Marked        bool                  `json:"marked,omitempty"`    // the enrolment set says that they are removed
	KeepFrom      ident.Epoch           `json:"keep_from,omitempty"` // older secrets of lower epochs are dropped; 0 keeps all. Never goes down
	Config        *quorum.Configuration `json:"-"`                   // as the coordinator made it; kept by the journal in its own form
	Certificate   *quorum.Certificate   `json:"-"`
}

// State is all that a controller must not forget about a rack.
type State struct {
	Rack    ident.RackID
	Highest ident.Epoch // highest epoch ever used, aborted ones included
	Change  *Change     // the newest change; nil before the first
	Base    *Change     // the decided change that Change builds on, while Change is not decided
}

// LastCommitted is the epoch of the newest decided change, or 0.
func (s *State) LastCommitted() ident.Epoch {
	switch {
	case s.Change == nil:
		return 0
	case s.Change.Phase == Decided || s.Change.Phase == Done:
		return s.Change.Epoch
	}
	return s.Change.LastCommitted
}

// maxEpoch bounds what is believed of a sled's report. A rack that changes every second for a million years stays below;
// a report beyond is a lie or a defect, and must not use the epochs up.
const maxEpoch = 1 << 45

// Observe takes note of an epoch that a sled reports. An epoch is never used twice, also when the journal was lost.
func (s *State) Observe(e ident.Epoch) error {
	if e > maxEpoch {
		return reason.New(CodeEpochs, "take the sled out of the rack and treat it as compromised", "rack: a sled reports epoch %d, want at most %d", e, uint64(maxEpoch))
	}
	s.Highest = max(s.Highest, e)
	return nil
}

// Adopt takes over a committed configuration that the journal does not know: the journal was lost, or is older than the
// rack. The caller has verified the certificate. It returns whether the state changed, and must be saved.
func (s *State) Adopt(config *quorum.Configuration, cert *quorum.Certificate) (bool, error) {
	if config.Epoch <= s.LastCommitted() {
		return false, nil
	}
	if err := s.Observe(config.Epoch); err != nil {
		return false, err
	}
	ch := &Change{
		Epoch: config.Epoch, LastCommitted: s.LastCommitted(), Coordinator: config.Coordinator, Threshold: config.Threshold,
		Phase: Decided, Config: config, Certificate: cert, KeepFrom: cert.KeepFrom,
	}
	for _, m := range config.Members {
		ch.Members = append(ch.Members, m.ID)
	}
	ch.NeedAcks, ch.Acked = len(ch.Members), slices.Clone(ch.Members) // nobody remembers who prepared; all are sent everything
	s.Rack, s.Change, s.Base = config.RackID, ch, nil
	return true, nil
}

// BeginInit starts the first configuration of the rack. Every member must acknowledge it: nobody is lost on the first day.
func (s *State) BeginInit(members []ident.Baseboard, threshold ident.Threshold) error {
	return s.beginFirst("", members, threshold, ident.Baseboard{})
}

// lrtqEpoch is the epoch that the older scheme counts as (protocol.md §1).
const lrtqEpoch = 1

// BeginUpgrade starts the first configuration of a rack that comes from the older scheme. The coordinator is a member that
// holds a package of it. As for the first configuration of any rack, every member must acknowledge.
func (s *State) BeginUpgrade(members []ident.Baseboard, threshold ident.Threshold, coordinator ident.Baseboard) error {
	if !slices.Contains(members, coordinator) {
		return reason.New(CodeCoordinator, "choose a member that holds a package of the older scheme", "rack: sled %s may not coordinate: it is no member", coordinator)
	}
	return s.beginFirst(Upgrade, members, threshold, coordinator)
}

func (s *State) beginFirst(kind Kind, members []ident.Baseboard, threshold ident.Threshold, coordinator ident.Baseboard) error {
	if s.Change != nil && s.Change.Phase == Preparing {
		return reason.New(CodeBusy, "finish it by running its command again, or give it up: sledvault rack abort", "rack: epoch %d is being prepared", s.Change.Epoch)
	}
	if s.LastCommitted() != 0 {
		return reason.New(CodeInitialised, "nothing to do; see sledvault rack status", "rack: initialised already, epoch %d is committed", s.LastCommitted())
	}
	members = ident.SortBaseboards(members)
	if err := checkMembers(members); err != nil {
		return err
	}
	if threshold == 0 {
		threshold = Threshold(len(members))
	}
	if threshold < 2 || int(threshold) >= len(members) {
		return reason.New(CodeThreshold, "leave the threshold out of the rack file for the default",
			"rack: threshold must be at least 2 and below the number of members: have %d for %d members", threshold, len(members))
	}
	if kind == Upgrade {
		s.Highest = max(s.Highest, lrtqEpoch)
	} else {
		coordinator = members[0]
	}
	s.Highest++
	s.Change = &Change{Kind: kind, Epoch: s.Highest, Coordinator: coordinator, Members: members, Threshold: threshold, NeedAcks: len(members), Phase: Preparing}
	return nil
}

// Grant is what the coordinator needs to begin: the operator's word for exactly this change, not signed yet.
func (c *Change) Grant(rack ident.RackID) *quorum.Grant {
	return &quorum.Grant{
		RackID: rack, Epoch: c.Epoch, Coordinator: c.Coordinator, Members: c.Members, Threshold: c.Threshold,
		LastCommitted: c.LastCommitted, KeepFrom: c.KeepFrom, LRTQUpgrade: c.Kind == Upgrade,
	}
}

// checkMembers expects them sorted.
func checkMembers(members []ident.Baseboard) error {
	if n := len(members); n < MinMembers || n > MaxMembers {
		return reason.New(CodeMembers, "enroll more sleds, or leave some out of the rack file", "rack: members: have %d, want %d to %d", n, MinMembers, MaxMembers)
	}
	for i, m := range members[1:] {
		if m == members[i] {
			return reason.New(CodeMembers, "correct the rack file", "rack: member %s appears twice", m)
		}
	}
	return nil
}

// Prepared takes in what the coordinator reports. It returns whether the state changed, and must be saved.
func (c *Change) Prepared(config *quorum.Configuration, acked []ident.Baseboard) (bool, error) {
	if c.Phase != Preparing || config == nil || config.Epoch != c.Epoch {
		return false, nil
	}
	if err := c.matches(config); err != nil {
		return false, err
	}
	if len(acked) == 0 { // the coordinator still collects the shares of the last committed epoch
		return false, nil
	}
	if err := c.complete(config); err != nil {
		return false, err
	}
	changed := false
	for _, a := range acked {
		if config.Has(a) && !slices.Contains(c.Acked, a) {
			c.Acked = ident.SortBaseboards(append(c.Acked, a))
			changed = true
		}
	}
	return changed, nil
}

// matches reports whether a coordinator made what was asked for.
func (c *Change) matches(config *quorum.Configuration) error {
	same := config.Coordinator == c.Coordinator && config.Threshold == c.Threshold && len(config.Members) == len(c.Members)
	for i := 0; same && i < len(c.Members); i++ {
		same = config.Members[i].ID == c.Members[i]
	}
	if !same {
		return reason.New(CodeMismatch, "abort the change and name another coordinator; treat the sled as compromised",
			"rack: sled %s reports another configuration for epoch %d than was asked for", c.Coordinator, c.Epoch)
	}
	return nil
}

// Ready reports whether enough members have acknowledged the prepare to decide.
func (c *Change) Ready() bool { return c.Phase == Preparing && len(c.Acked) >= c.NeedAcks }

// Decide makes the change final. The caller saves the state before it sends a single commit.
func (c *Change) Decide(config *quorum.Configuration, cert *quorum.Certificate) error {
	if !c.Ready() {
		return fmt.Errorf("rack: decide epoch %d: have %d acknowledged prepares, want %d", c.Epoch, len(c.Acked), c.NeedAcks)
	}
	if err := c.matches(config); err != nil {
		return err
	}
	if err := c.complete(config); err != nil {
		return err
	}
	c.Config, c.Certificate, c.Phase = config, cert, Decided
	return nil
}

// CommittedBy takes in a member's acknowledgement of the commit.
func (c *Change) CommittedBy(m ident.Baseboard) bool {
	if c.Phase != Decided || !slices.Contains(c.Members, m) || slices.Contains(c.Committed, m) {
		return false
	}
	c.Committed = ident.SortBaseboards(append(c.Committed, m))
	if len(c.Committed) == len(c.Members) {
		c.Phase = Done
	}
	return true
}

// Missing lists the members whose acknowledgement the phase under way waits for.
func (c *Change) Missing() []ident.Baseboard {
	have := c.Acked
	if c.Phase == Decided {
		have = c.Committed
	}
	var out []ident.Baseboard
	for _, m := range c.Members {
		if (c.Phase == Preparing || c.Phase == Decided) && !slices.Contains(have, m) {
			out = append(out, m)
		}
	}
	return out
}

// Abort gives a change up before the decision. Its epoch is never used again.
func (c *Change) Abort() error {
	if c.Phase != Preparing {
		return reason.New(CodeDecided, "finish it: run the command again that began it", "rack: epoch %d is %s", c.Epoch, c.Phase)
	}
	c.Phase = Aborted
	return nil
}
