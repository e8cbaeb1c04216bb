package quorumtest

import (
	"fmt"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/rack"
	"github.com/sledvault/sledvault/vault/reason"
)

// bad counts a check and reports whether the rule is broken: it failed, and no fault that happened suspends it (at is
// the sled that it is about; nil if it is about the rack).
func (s *Sim) bad(rule Invariant, at *Sled, ok bool) bool {
	s.table.now[rule]++
	if ok {
		return false
	}
	for _, f := range suspends[rule] {
		if s.mask&(1<<f) == 0 {
			continue
		}
		if verdicts[f][rule].scope == Suspended || at != nil && s.hit[f]&bit(at) != 0 {
			s.table.excused[f][rule]++
			return false
		}
	}
	return true
}

// broken ends the run with the first rule that is broken.
func (s *Sim) broken(rule Invariant, format string, args ...any) {
	if s.err == nil {
		s.rule, s.err = rule, fmt.Errorf("%s: %s", rule, fmt.Sprintf(format, args...))
	}
}

// fault records that a fault has happened: checks from now on count as made under it.
func (s *Sim) fault(f Fault) {
	if s.mask&(1<<f) == 0 {
		s.table.flush(s.mask)
		s.mask |= 1 << f
	}
	s.table.faults[f]++
}

// checkState holds a state that is about to be saved against the rules and against what was saved before.
// written says that the disk will have it.
func (s *Sim) checkState(sled *Sled, st *quorum.State, written bool) {
	for e, c := range st.Configs {
		s.checkConfig(sled, e, c, written)
	}
	for e := range st.Commits {
		if s.bad(X1, sled, st.Prepared(e) && st.Certificates[e] != nil) {
			s.broken(X1, "%s committed %d without being prepared", sled.ID, e)
			return
		}
		d := s.oracle.decision(e)
		if s.bad(C3, sled, d != nil) {
			s.broken(C3, "%s committed %d, which no journal has decided", sled.ID, e)
			return
		}
		if s.bad(P6, sled, st.Configs[e].Has(sled.ID)) {
			s.broken(P6, "%s committed %d, which leaves it out", sled.ID, e)
			return
		}
	}
	for e, cert := range st.Certificates {
		if sled.Disk.Certificates[e] == cert {
			continue
		}
		if c := st.Configs[e]; s.bad(X1, sled, c != nil && s.Auth.VerifyCertificate(c, cert) == nil) {
			s.broken(X1, "%s: the certificate of epoch %d is for another configuration", sled.ID, e)
		}
	}
	for e, sh := range st.Shares {
		if s.checked[sled.Index][e] {
			continue
		}
		if s.bad(X2, sled, st.Configs[e] != nil && fits(st.Configs[e], sled.ID, sh)) {
			s.broken(X2, "%s: share %d", sled.ID, e)
		}
	}
	if s.bad(X3, sled, kept(&sled.Disk, st)) {
		s.broken(X3, "%s forgot something", sled.ID)
	}
	if x := st.Expunged; x != nil && sled.Disk.Expunged == nil {
		c := st.Configs[x.Epoch]
		if s.bad(P6, sled, s.oracle.decision(x.Epoch) != nil && c != nil && !c.Has(sled.ID) && !s.oracle.lastHas(sled)) {
			s.broken(P6, "%s was expunged at %d without reason", sled.ID, x.Epoch)
		}
	}
}

func (s *Sim) checkConfig(sled *Sled, e ident.Epoch, c *quorum.Configuration, written bool) {
	known := s.oracle.first[e]
	if known == nil {
		if s.bad(P10, sled, c.Coordinator == sled.ID) {
			s.broken(P10, "configuration %d is first seen at %s", e, sled.ID)
		}
		if known = c; written {
			s.oracle.first[e] = c
		}
	}
	same := c == known || c.Equal(known)
	if !same && s.frauds[e] == nil && !s.exists(e, known) { // gone with the only disks that had it
		s.oracle.first[e], same = c, true
	}
	if s.bad(P1, sled, same) {
		s.broken(P1, "%s has another configuration %d", sled.ID, e)
	}
	if sled.Disk.Configs[e] == nil {
		s.checkCarried(sled, c)
	}
	if s.bad(X4, sled, c.RackID == RackID() && c.Epoch == e) {
		s.broken(X4, "%s: configuration %d", sled.ID, e)
	}
}

// checkCarried is X10, for a configuration that a sled is about to store.
func (s *Sim) checkCarried(sled *Sled, c *quorum.Configuration) {
	keep, want := ident.Epoch(0), 0
	if asked := s.oracle.asked[c.Epoch]; asked != nil {
		keep = asked.keep
	}
	for e := range sled.Disk.Commits {
		if keep <= e && e < c.Epoch {
			want++
		}
	}
	if member := c.Has(sled.ID); s.bad(X10, sled, !member || c.OldSecrets() >= want) {
		s.broken(X10, "%s stores epoch %d with %d older secrets, want at least %d", sled.ID, c.Epoch, c.OldSecrets(), want)
	}
}

// exists reports whether a sled has stored a configuration.
func (s *Sim) exists(e ident.Epoch, c *quorum.Configuration) bool {
	for _, sled := range s.Sleds {
		if have := sled.Disk.Configs[e]; have != nil && have.Equal(c) {
			return true
		}
	}
	return false
}

// kept reports whether a state still has all that an earlier one had.
func kept(old, now *quorum.State) bool {
	if old.Expunged != nil && now.Expunged != old.Expunged || old.LRTQ != now.LRTQ {
		return false
	}
	for e, c := range old.Configs {
		if o := now.Configs[e]; o != c && (o == nil || !o.Equal(c)) {
			return false
		}
	}
	for e, sh := range old.Shares {
		if o, ok := now.Shares[e]; !ok || o.X != sh.X || !o.Y.Equal(sh.Y) {
			return false
		}
	}
	for e := range old.Commits {
		if !now.Commits[e] {
			return false
		}
	}
	for e := range old.Certificates {
		if now.Certificates[e] == nil {
			return false
		}
	}
	return true
}

// seen checks released effects against the disk (X7), the replies against the truth (X6), and who is alarmed (P5).
func (s *Sim) seen(sled *Sled, fx *quorum.Effects) {
	if s.plant.effects != nil {
		s.plant.effects(s, sled, fx)
	}
	s.touch(sled)
	d := &sled.Disk
	for _, m := range fx.Send {
		if s.bad(X7, sled, storedFirst(d, m.Message.Kind)) {
			s.broken(X7, "%s sends %s before it is stored", sled.ID, quorum.KindOf(m.Message.Kind))
		}
		if s.bad(X9, sled, mayHave(d, m)) {
			s.broken(X9, "%s sends %s to %s", sled.ID, quorum.KindOf(m.Message.Kind), m.To)
		}
	}
	if fx.Committed != 0 {
		if s.bad(X7, sled, d.Commits[fx.Committed]) {
			s.broken(X7, "%s announces commit %d before it is stored", sled.ID, fx.Committed)
		}
	}
	for _, r := range fx.Replies {
		s.replied(sled, r)
	}
	for _, n := range fx.Notes {
		s.table.codes[n.Code]++
	}
	for _, a := range fx.Alarms {
		s.table.alarms[a.Kind]++
		if s.bad(P5, sled, s.liar != nil && a.From == s.liar.ID) {
			s.broken(P5, "%s is alarmed: %+v", sled.ID, a)
		}
	}
	if len(fx.Alarms) == 0 {
		s.table.now[P5]++
	}
}

// storedFirst is the table of protocol.md §6, read from the disk.
func storedFirst(d *quorum.State, k quorum.MessageKind) bool {
	switch k := k.(type) {
	case quorum.Prepare:
		return d.Prepared(k.Config.Epoch)
	case quorum.PrepareAck:
		return d.Prepared(k.Epoch)
	case quorum.ShareReply:
		_, ok := d.Shares[k.Epoch]
		return ok
	case quorum.CommitAdvance:
		return d.Commits[k.Config.Epoch] && d.Certificates[k.Config.Epoch] != nil
	case quorum.ExpungedNotice:
		return d.Certificates[k.Epoch] != nil
	}
	return true
}

// mayHave reports whether a share goes to whom it may go.
func mayHave(d *quorum.State, m quorum.Envelope) bool {
	switch k := m.Message.Kind.(type) {
	case quorum.Prepare:
		i, ok := k.Config.Index(m.To)
		return ok && int(k.Share.X) == i+1
	case quorum.ShareReply:
		c := d.Configs[k.Epoch]
		return c != nil && c.Has(m.To)
	case quorum.LRTQShare:
		return len(d.Commits) == 0 && d.Expunged == nil
	}
	return true
}

// replied checks an answer that came late, or at once. What the controller asked is checked where it hears of it.
func (s *Sim) replied(sled *Sled, r quorum.Reply) {
	if r.ID == 0 {
		return
	}
	l, ok := s.loads[r.ID]
	delete(s.loads, r.ID)
	if s.bad(P17, sled, ok && l.sled == sled) {
		s.broken(P17, "%s answers request %d twice, or after it was withdrawn", sled.ID, r.ID)
		return
	}
	latest, _ := sled.Disk.LatestCommitted()
	code := reason.CodeOf(r.Err)
	if r.Err != nil {
		s.table.codes[code]++
	}
	switch {
	case r.Err == nil:
		if s.bad(P14, sled, latest >= r.Epoch) {
			s.broken(P14, "%s gives the secret of epoch %d and has committed %d", sled.ID, r.Epoch, latest)
		}
		if s.bad(X6, sled, r.Secret.Equal(s.oracle.truth[r.Epoch]) && (l.epoch == 0 || l.epoch == r.Epoch)) {
			s.broken(X6, "%s gives a wrong secret of epoch %d, asked for %d", sled.ID, r.Epoch, l.epoch)
		}
		r.Secret.Destroy()
	case code == quorum.CodeNotAvailable:
		s.notAvailable(sled, l.epoch, latest)
	case code == quorum.CodeExpunged || code == quorum.CodeCleared || l.agree && code == quorum.CodeOutdated:
	default:
		if s.bad(P17, sled, false) {
			s.broken(P17, "%s: load epoch %d: %v", sled.ID, l.epoch, r.Err)
		}
	}
}

func (s *Sim) notAvailable(sled *Sled, e, latest ident.Epoch) {
	d := s.oracle.decision(latest)
	if s.bad(P17, sled, latest > e && (s.oracle.truth[e].Len() == 0 || d != nil && e < d.keep)) {
		s.broken(P17, "%s says that epoch %d is not available, latest committed is %d", sled.ID, e, latest)
	}
}

// inspect checks what must hold of a sled that an event has touched.
func (s *Sim) inspect(sled *Sled) {
	if sled.Up() {
		r := sled.Node.Roles()
		ok := r.Coordinating == 0
		if !ok && r.Computing == 0 {
			latest := sled.Disk.LatestConfig()
			ok = latest == nil || latest.Epoch <= r.Coordinating
		}
		if s.bad(P4, sled, ok) {
			s.broken(P4, "%s coordinates %d, computes %d, and has stored epoch %d", sled.ID, r.Coordinating, r.Computing, sled.Disk.LatestConfig().Epoch)
		}
		if r.Collecting != 0 {
			latest, _ := sled.Disk.LatestCommitted()
			if s.bad(P13, sled, r.Collecting >= latest || !s.waits(sled)) {
				s.broken(P13, "%s has requests waiting and collects epoch %d, latest committed is %d", sled.ID, r.Collecting, latest)
			}
		}
	} else if s.bad(P12, sled, s.silent(sled)) {
		s.broken(P12, "messages are on their way to or from %s, which is down", sled.ID)
	}
	if st := s.ctl.st; st != nil && st.Change != nil {
		if ch := st.Change; ch.Phase == rack.Preparing && contains(ch.Acked, sled.ID) {
			if s.bad(P2, sled, sled.Disk.Prepared(ch.Epoch)) {
				s.broken(P2, "%s acknowledged epoch %d and has not stored it", sled.ID, ch.Epoch)
			}
		}
	}
	if d := s.oracle.last(); d != nil && d.told&bit(sled) != 0 {
		if s.bad(P3, sled, sled.Disk.Commits[d.epoch] && sled.Disk.Prepared(d.epoch)) {
			s.broken(P3, "%s said that epoch %d is committed", sled.ID, d.epoch)
		}
	}
}

// waits reports whether a request for a secret waits at a sled.
func (s *Sim) waits(sled *Sled) bool {
	for _, l := range s.loads {
		if l.sled == sled && l.boot == s.boot[sled.Index] && !l.agree {
			return true
		}
	}
	return false
}

// enough is X5: whatever happened, the last decision can be loaded.
func (s *Sim) enough() {
	d := s.oracle.last()
	if d == nil {
		return
	}
	have := 0
	for _, m := range d.members {
		if _, ok := m.Disk.Shares[d.epoch]; ok && s.checked[m.Index][d.epoch] { // X2 has held when it was saved
			have++
		}
	}
	if s.bad(X5, nil, have >= d.k) {
		s.broken(X5, "epoch %d: %d members hold their shares, want %d", d.epoch, have, d.k)
	}
}
