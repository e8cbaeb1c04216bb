package quorumtest

import (
	"fmt"
	"strings"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/reason"
)

// Invariant names a rule of docs/protocol.md §12 that the simulation checks.
type Invariant uint8

// The invariants, in the order of the table.
const (
	P1 Invariant = iota
	P2
	P3
	P4
	P5
	P6
	P8
	P9
	P10
	P13
	P15
	P16
	P17
	P18
	P19
	P22
	P23
	X1
	X2
	X3
	X4
	X5
	X6
	X7
	X8
	XState
	PNoPanic
	invariants
)

func (i Invariant) String() string {
	return [...]string{
		"P1", "P2", "P3", "P4", "P5", "P6", "P8", "P9", "P10", "P13", "P15", "P16", "P17", "P18", "P19", "P22", "P23",
		"X1", "X2", "X3", "X4", "X5", "X6", "X7", "X8", "start", "sound",
	}[i]
}

// Fault is a kind of injected fault.
type Fault uint8

// The faults, in the order of the table.
const (
	FaultCrash Fault = iota
	FaultRestart
	FaultFailedSave
	FaultCrashAtSave
	FaultLoss
	FaultDuplicate
	FaultPartition
	FaultPreempted
	FaultLiar
	faults
)

func (f Fault) String() string {
	return [...]string{"crash", "restart", "failed-save", "crash-at-save", "loss", "duplicate", "partition", "pre-empted", "liar"}[f]
}

// Table counts how often each invariant was checked in runs in which each fault had already happened.
type Table struct {
	now    [invariants]uint64 // since the set of faults last grew
	count  [faults + 1][invariants]uint64
	faults [faults]uint64

	delivered uint64 // messages, without those of the last phase
}

func (t *Table) flush(mask uint32) {
	for f := range faults {
		if mask&(1<<f) != 0 {
			for i, n := range t.now {
				t.count[f][i] += n
			}
		}
	}
	for i, n := range t.now {
		t.count[faults][i] += n
	}
	t.now = [invariants]uint64{}
}

// String prints one line per fault.
func (t *Table) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%-14s%9s", "fault", "injected")
	for i := range invariants {
		fmt.Fprintf(&b, "%9s", i)
	}
	for f := range faults + 1 {
		if f == faults {
			fmt.Fprintf(&b, "\n%-14s%9s", "(all)", "")
		} else {
			fmt.Fprintf(&b, "\n%-14s%9d", f, t.faults[f])
		}
		for i := range invariants {
			fmt.Fprintf(&b, "%9d", t.count[f][i])
		}
	}
	return b.String()
}

// checkState holds a state that is about to be saved against the rules and against what was saved before.
// written says that the disk will have it.
func (s *Sim) checkState(sled *Sled, st quorum.State, written bool) {
	old := sled.Disk
	for e, c := range st.Configs {
		known := s.tracked[e]
		if known == nil {
			s.check(P10, c.Coordinator == sled.ID, "configuration %d is first seen at %s", e, sled.ID)
			if known = c; written {
				s.tracked[e] = c
			}
		}
		s.check(P1, c == known || c.Equal(known), "%s has another configuration %d", sled.ID, e)
		s.check(X4, c.RackID == RackID() && c.Epoch == e, "%s: configuration %d", sled.ID, e)
	}
	for e := range st.Commits {
		s.check(X1, st.Prepared(e) && st.Certificates[e] != nil, "%s committed %d without being prepared", sled.ID, e)
		s.check(X5, s.truth[e].Len() > 0, "%s committed %d without a decision", sled.ID, e)
	}
	for e, sh := range st.Shares {
		if s.checked[sled.Index][e] {
			continue
		}
		c := st.Configs[e]
		i, member := c.Index(sled.ID)
		d, err := sh.Digest()
		s.check(X2, member && err == nil && int(sh.X) == i+1 && c.Members[i].ShareDigest == d, "%s: share %d", sled.ID, e)
	}
	s.check(X3, grew(old.Configs, st.Configs) && grew(old.Shares, st.Shares) && grew(old.Commits, st.Commits) &&
		grew(old.Certificates, st.Certificates) && (old.Expunged == nil || st.Expunged == old.Expunged), "%s forgot something", sled.ID)
	if x := st.Expunged; x != nil && old.Expunged == nil {
		c := s.tracked[x.Epoch]
		s.check(P6, s.truth[x.Epoch].Len() > 0 && c != nil && !c.Has(sled.ID), "%s was expunged at %d without reason", sled.ID, x.Epoch)
	}
}

func grew[V any](old, now map[ident.Epoch]V) bool {
	for e := range old {
		if _, ok := now[e]; !ok {
			return false
		}
	}
	return true
}

// seen checks released effects against the disk (X7), the replies against the truth (X6), and that nobody is alarmed.
func (s *Sim) seen(sled *Sled, fx *quorum.Effects) {
	for e := range sled.Disk.Shares {
		s.checked[sled.Index][e] = true
	}
	d := &sled.Disk
	for _, m := range fx.Send {
		ok := true
		switch k := m.Message.Kind.(type) {
		case quorum.Prepare:
			ok = d.Prepared(k.Config.Epoch)
		case quorum.PrepareAck:
			ok = d.Prepared(k.Epoch)
		case quorum.ShareReply:
			_, ok = d.Shares[k.Epoch]
		case quorum.CommitAdvance:
			ok = d.Commits[k.Config.Epoch]
		case quorum.ExpungedNotice:
			ok = d.Certificates[k.Epoch] != nil
		}
		s.check(X7, ok, "%s sends %s before it is stored", sled.ID, quorum.KindOf(m.Message.Kind))
	}
	for _, r := range fx.Replies {
		s.replied(sled, r)
	}
	for _, a := range fx.Alarms {
		s.check(P5, s.liar != nil && a.From == s.liar.ID, "%s is alarmed: %+v", sled.ID, a)
	}
	if len(fx.Alarms) == 0 {
		s.table.now[P5]++
	}
	if fx.Committed != 0 {
		s.check(X7, d.Commits[fx.Committed], "%s announces commit %d before it is stored", sled.ID, fx.Committed)
	}
}

func (s *Sim) replied(sled *Sled, r quorum.Reply) {
	if r.ID == 0 {
		s.check(X7, r.Status != quorum.Committed || len(sled.Disk.Commits) > 0, "%s says committed", sled.ID)
		return
	}
	l, ok := s.loads[r.ID]
	delete(s.loads, r.ID)
	switch code := reason.CodeOf(r.Err); {
	case !ok:
		s.broken(P17, "%s answers request %d twice, or after it was withdrawn", sled.ID, r.ID)
	case r.Err == nil:
		s.check(X6, l.sled == sled && r.Secret.Equal(s.truth[r.Epoch]) && (l.epoch == 0 || l.epoch == r.Epoch),
			"%s gives a wrong secret of epoch %d, asked for %d", sled.ID, r.Epoch, l.epoch)
		s.check(X7, sled.Disk.Commits != nil, "%s gives a secret", sled.ID)
		r.Secret.Destroy()
	case code == quorum.CodeExpunged || code == quorum.CodeCleared:
	default:
		s.broken(P17, "%s: load epoch %d: %v", sled.ID, l.epoch, r.Err)
	}
}

// roles is P4: nobody coordinates and computes a share at once.
func (s *Sim) roles() {
	for _, sled := range s.Sleds {
		if sled.Up() {
			r := sled.Node.Roles()
			s.check(P4, r.Coordinating == 0 || r.Computing == 0, "%s coordinates %d and computes %d", sled.ID, r.Coordinating, r.Computing)
		}
	}
}

// live heals everything, lets the controller finish, and checks that every member serves.
func (s *Sim) live() {
	s.liar = nil
	s.heal()
	for range 3 { // at most: abort, new request, commit
		if s.err != nil {
			return
		}
		if c := s.ctl.lastCommitted(); c != nil {
			s.commitEverywhere(c)
		}
		s.poll()
		switch c := s.ctl.latest; {
		case c == nil:
			s.reconfigure(Action{C: 1 << 4})
		case c.op == opPreparing:
			s.broken(P19, "epoch %d is still preparing when all is delivered", c.epoch)
		case c.op == opAborted:
			s.again(c)
		}
		s.settle()
	}
	s.rest()
}

// again repeats an aborted change at the next epoch.
func (s *Sim) again(c *change) {
	last := s.ctl.lastCommitted()
	if last == nil {
		s.ask(c.members[0], c.members, c.k)
		return
	}
	coordinator, members := last.members[0], last.members
	s.ask(coordinator, members, last.k)
}

// heal starts everything, renews every connection and delivers.
func (s *Sim) heal() {
	clear(s.fate)
	for i, a := range s.Sleds {
		if !a.Up() {
			s.start(a)
		}
		for _, b := range s.Sleds[i+1:] {
			s.Disconnect(a, b)
		}
	}
	s.ConnectAll()
	s.settle()
}

func (s *Sim) settle() {
	if _, err := s.DeliverAll(nil); err != nil {
		s.broken(PNoPanic, "%v", err)
	}
}

func (s *Sim) commitEverywhere(c *change) {
	for range 2 { // the second time for those that had to compute their share
		for _, m := range c.members {
			s.commit(c, m)
		}
		s.settle()
	}
	for _, m := range c.members {
		s.check(P19, m.Disk.Commits[c.epoch], "%s has not committed epoch %d", m.ID, c.epoch)
	}
}

// rest is what must hold when all is quiet: every member loads every secret, every removed member knows that it is.
func (s *Sim) rest() {
	last := s.ctl.lastCommitted()
	if last == nil {
		s.broken(P19, "nothing was committed")
		return
	}
	s.check(P19, s.ctl.latest == last, "epoch %d is not committed", s.ctl.latest.epoch)
	s.commitEverywhere(last)
	for _, m := range last.members {
		s.load(m, 0)
		s.load(m, s.ctl.committed[0].epoch)
	}
	for _, sled := range s.Sleds {
		if s.ctl.gone[sled.Index] { // it learns of it when it asks for shares, which a cached secret would spare it
			s.do(sled, quorum.ClearSecrets{})
			s.load(sled, 0)
		}
	}
	s.settle()
	for id, l := range s.loads {
		c := l.sled.Disk.LatestCommittedConfig()
		s.check(P22, l.boot != s.boot[l.sled.Index] || s.allGone(c), "request %d at %s was never answered", id, l.sled.ID)
	}
	for _, sled := range s.Sleds {
		if c := sled.Disk.LatestCommittedConfig(); c != nil && s.ctl.gone[sled.Index] {
			s.check(P6, sled.Disk.Expunged != nil || s.allGone(c), "%s does not know that it is expunged", sled.ID)
		}
	}
	for _, m := range last.members {
		r := m.Node.Roles()
		s.check(P19, r.Coordinating == 0 && r.Computing == 0, "%s is still busy: %+v", m.ID, r)
		s.check(P22, r.Collecting == 0, "%s is still collecting", m.ID)
	}
	s.check(P23, len(s.busy) == 0, "messages are left")
}

// allGone reports whether nobody is left who would tell a member of an old configuration that it is over: sleds ask the
// members they know, and expunged ones no longer answer.
func (s *Sim) allGone(c *quorum.Configuration) bool {
	for _, m := range c.Members {
		if !s.ctl.gone[s.Find(m.ID).Index] {
			return false
		}
	}
	return true
}
