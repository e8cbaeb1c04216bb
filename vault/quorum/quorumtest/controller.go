package quorumtest

import (
	"errors"
	"slices"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/rack"
	"github.com/sledvault/sledvault/vault/reason"
)

// controller drives the product's controller core ([rack.State]) with a simulated journal. It does what package
// vault/rack/controller does, one step at a time: each step may be the last one before it dies.
type controller struct {
	st      *rack.State // of the running process; nil while it is down
	disk    rack.State  // the journal
	past    []rack.State
	fate    saveFate
	asked   ident.Epoch // the epoch that this process asked its coordinator for
	boot    uint64      // of that coordinator when it accepted
	ended   bool        // it coordinates that epoch no longer
	wary    bool        // the journal is not the newest: ask every sled before anything else
	answers []answer    // of sleds, on their way
	locked  bool        // by the running process
}

// askedFor is what a coordinator was asked for.
type askedFor struct {
	coordinator ident.Baseboard
	members     []ident.Baseboard
	k           ident.Threshold
	last, keep  ident.Epoch
}

// answer is what a sled told the controller.
type answer struct {
	from  *Sled
	epoch ident.Epoch
	// An answer to a poll.
	polled bool
	config *quorum.Configuration
	acked  []ident.Baseboard
	// An answer to a commit.
	committed bool
}

func (c *controller) start() {
	st := copyState(&c.disk)
	c.st, c.locked, c.asked, c.ended, c.answers = &st, true, 0, false, nil
}

func copyChange(ch *rack.Change) *rack.Change {
	if ch == nil {
		return nil
	}
	out := *ch
	out.Members, out.Acked, out.Committed, out.Removed = slices.Clone(ch.Members), slices.Clone(ch.Acked), slices.Clone(ch.Committed), slices.Clone(ch.Removed)
	return &out
}

// copyState is what the journal keeps of a state.
func copyState(st *rack.State) rack.State {
	out := *st
	out.Change = copyChange(st.Change)
	if out.Base = nil; out.Change != nil && out.Change.Phase != rack.Decided && out.Change.Phase != rack.Done {
		out.Base = copyChange(st.Base)
	}
	return out
}

// journal makes the state durable. It returns false if the controller has died.
func (s *Sim) journal(what string) bool {
	c := &s.ctl
	fate := c.fate
	c.fate = saveGood
	if fate == saveCrashBefore {
		s.fault(FaultControllerBeforeSave)
		s.stopController()
		return false
	}
	if len(c.past) == keptPast {
		c.past = append(c.past[:0], c.past[1:]...)
	}
	if s.plant.journal != nil {
		s.plant.journal(s, c.st, what)
	}
	c.past = append(c.past, c.disk)
	c.disk = copyState(c.st)
	if ch := c.disk.Change; ch != nil && ch.Phase == rack.Decided {
		s.decided(ch)
	}
	s.emit(Event{Kind: EventController, Text: what})
	if fate == saveCrashAfter {
		s.fault(FaultControllerAfterSave)
		s.stopController()
		return false
	}
	return true
}

func (s *Sim) stopController() {
	s.ctl.st, s.ctl.locked, s.ctl.answers = nil, false, nil
	s.emit(Event{Kind: EventController, Text: "crash"})
}

func (s *Sim) crashController() {
	if s.ctl.st != nil {
		s.fault(FaultControllerCrash)
		s.stopController()
	}
}

// openJournal starts the controller, or a second one, which the lock refuses.
func (s *Sim) openJournal() {
	if s.ctl.locked {
		s.fault(FaultSecondController)
		if s.bad(C3, nil, s.ctl.st != nil) {
			s.broken(C3, "the journal is locked and nobody runs")
		}
		return
	}
	s.ctl.start()
	s.emit(Event{Kind: EventController, Text: "start"})
}

// oldJournal puts an earlier journal back, or none. The controller must then ask every sled before it acts.
func (s *Sim) oldJournal(a Action) {
	c := &s.ctl
	if len(c.past) == 0 || a.C%4 != 0 {
		return
	}
	s.crashController()
	s.fault(FaultOldJournal)
	c.disk = rack.State{}
	if a.B%4 != 0 {
		c.disk = copyState(&c.past[int(a.A)%len(c.past)])
	}
	c.past, c.wary = nil, true
	s.emit(Event{Kind: EventController, Text: "old journal"})
}

// survey asks every sled which epochs it knows, the one that it coordinates included, and takes over what is committed.
// One that is silent may know of a later epoch, so all must answer. Decisions that no sled knows of are void.
func (s *Sim) survey() bool {
	c := &s.ctl
	if slices.ContainsFunc(s.Sleds, func(sled *Sled) bool { return !sled.Up() && !s.disk(sled).refused }) {
		return false
	}
	before := c.st.Highest
	for _, sled := range s.Sleds {
		if !sled.Up() {
			continue
		}
		st := sled.Node.State()
		epochs := append(quorum.Epochs(st.Configs), sled.Node.Roles().Coordinating)
		for _, e := range epochs {
			if err := c.st.Observe(e); err != nil {
				s.broken(XSound, "survey: %v", err)
			}
		}
		for _, e := range quorum.Epochs(st.Certificates) {
			if _, err := c.st.Adopt(st.Configs[e], st.Certificates[e]); err != nil {
				s.broken(XSound, "survey: %v", err)
			}
		}
	}
	s.forget(c.st.LastCommitted())
	if ch := c.st.Change; ch != nil && ch.Phase == rack.Preparing && (c.st.Highest != before || s.oracle.asked[ch.Epoch] != nil) {
		_ = ch.Abort() // it may have been asked for, decided otherwise, or given up
	}
	c.wary = !s.journal("survey")
	return !c.wary
}

// call makes a request at a sled. No answer comes from one that is down, or dies of it.
func (s *Sim) call(sled *Sled, in quorum.Input) (fx quorum.Effects, err error) {
	if !sled.Up() {
		return fx, ErrDown
	}
	return s.do(sled, in)
}

// ask sends a granted request to the coordinator of the change under way.
func (s *Sim) ask() {
	c := &s.ctl
	ch := c.st.Change
	sled := s.Find(ch.Coordinator)
	if !sled.Up() {
		c.ended = ch.LastCommitted != 0 // for a first configuration every member is needed anyway
		return
	}
	s.checkAsked(ch)
	in := s.request(ch)
	want := s.mayCoordinate(sled, ch)
	repeated := sled.Node.Roles().Coordinating == ch.Epoch
	first := ch.LastCommitted == 0 && ch.Kind != rack.Upgrade && !repeated
	reached := s.reached(sled, ch) // a full queue may break a connection in this very step
	fx, err := s.call(sled, in)
	if errors.Is(err, ErrDown) {
		return
	}
	if s.bad(P8, sled, (err == nil) == want) {
		s.broken(P8, "reconfigure epoch %d at %s: %v, should succeed: %t", ch.Epoch, sled.ID, err, want)
	}
	if err == nil && repeated && s.bad(P8, sled, len(fx.Send) == 0) {
		s.broken(P8, "repeated request of epoch %d has effects", ch.Epoch)
	}
	if err == nil && first {
		s.checkFirst(sled, ch, &fx, reached)
	}
	c.asked, c.boot, c.ended = ch.Epoch, s.boot[sled.Index], err != nil
	s.emit(Event{Kind: EventController, Text: "asked"})
}

func (s *Sim) request(ch *rack.Change) quorum.Input {
	g := s.grant(ch)
	if ch.Kind == rack.Upgrade {
		return quorum.UpgradeLRTQ{RackID: RackID(), Epoch: ch.Epoch, Threshold: ch.Threshold, Members: ch.Members, Grant: g}
	}
	r := quorum.Reconfigure{RackID: RackID(), Epoch: ch.Epoch, Threshold: ch.Threshold, Members: ch.Members, Grant: g}
	if last := ch.LastCommitted; last != 0 {
		r.LastCommitted = &last
	}
	return r
}

func (s *Sim) grant(ch *rack.Change) *quorum.Grant {
	g := ch.Grant(RackID())
	s.Auth.SignGrant(g)
	return g
}

// checkAsked is C1.
func (s *Sim) checkAsked(ch *rack.Change) {
	if had := s.oracle.asked[ch.Epoch]; had != nil {
		if s.bad(C1, nil, had.coordinator == ch.Coordinator && had.k == ch.Threshold && had.last == ch.LastCommitted && slices.Equal(had.members, ch.Members)) {
			s.broken(C1, "epoch %d is used twice", ch.Epoch)
		}
	} else {
		for e := range s.oracle.asked {
			if s.bad(C1, nil, e < ch.Epoch) {
				s.broken(C1, "epoch %d is asked for after epoch %d", ch.Epoch, e)
			}
		}
	}
	s.oracle.asked[ch.Epoch] = &askedFor{ch.Coordinator, ch.Members, ch.Threshold, ch.LastCommitted, ch.KeepFrom}
	base := ident.Epoch(0)
	if d := s.oracle.last(); d != nil {
		base = d.epoch
	}
	if d := s.oracle.last(); d != nil {
		settled := ones(d.told) >= wanted(len(d.members), d.k, false) && d.told&bit(s.Find(ch.Coordinator)) != 0
		if s.bad(C2, nil, settled) {
			s.broken(C2, "epoch %d is asked of %s before enough sleds, and that one, have committed epoch %d", ch.Epoch, ch.Coordinator, d.epoch)
		}
	}
	if s.bad(C2, nil, ch.LastCommitted == base) {
		s.broken(C2, "epoch %d is asked for on top of epoch %d, the last decision is %d", ch.Epoch, ch.LastCommitted, base)
	}
}

// mayCoordinate is protocol.md §8.1 for a request with a good grant, read from the disk.
func (s *Sim) mayCoordinate(sled *Sled, ch *rack.Change) bool {
	d := &sled.Disk
	committed, _ := d.LatestCommitted()
	certified := ident.Epoch(0)
	for e := range d.Certificates {
		certified = max(certified, e)
	}
	if ch.Kind == rack.Upgrade && d.LRTQ == nil || ch.Kind != rack.Upgrade && d.LRTQOnly() {
		return false
	}
	if d.Expunged != nil || committed != ch.LastCommitted || certified > committed {
		return false
	}
	if coordinating := sled.Node.Roles().Coordinating; coordinating >= ch.Epoch {
		return coordinating == ch.Epoch
	}
	latest := d.LatestConfig()
	return latest == nil || latest.Epoch < ch.Epoch
}

// reached counts the members of a change that a sled is connected with.
func (s *Sim) reached(sled *Sled, ch *rack.Change) (n int) {
	for _, m := range ch.Members {
		if o := s.Find(m); o != sled && s.Connected(sled, o) {
			n++
		}
	}
	return n
}

// checkFirst is P7.
func (s *Sim) checkFirst(sled *Sled, ch *rack.Change, fx *quorum.Effects, reached int) {
	var sent []quorum.Envelope
	for _, e := range fx.Send {
		if _, debt := e.Message.Kind.(quorum.ShareReply); !debt || s.liar == nil { // a liar may have asked for a share too early
			sent = append(sent, e)
		}
	}
	want := 2 * reached
	ok := sled.Node.Roles().Coordinating == ch.Epoch && sled.Disk.Prepared(ch.Epoch) && len(sled.Disk.Commits) == 0 && len(sent) == want
	for i := 0; ok && i < want; i += 2 {
		_, grant := sent[i].Message.Kind.(quorum.GrantNotice)
		_, prepare := sent[i+1].Message.Kind.(quorum.Prepare)
		ok = grant && prepare && sent[i].To == sent[i+1].To && contains(ch.Members, sent[i].To)
	}
	if s.bad(P7, sled, ok) {
		s.broken(P7, "%s sends %d messages for the first configuration, want %d", sled.ID, len(fx.Send), want)
	}
}

// poll asks the coordinator how far it is. The answer is on its way then.
func (s *Sim) poll() {
	c := &s.ctl
	ch := c.st.Change
	sled := s.Find(ch.Coordinator)
	if !sled.Up() {
		c.ended = ch.LastCommitted != 0
		return
	}
	coordinating := sled.Node.Roles().Coordinating
	if c.boot == s.boot[sled.Index] && !c.ended && s.bad(P18, sled, coordinating == ch.Epoch) {
		s.broken(P18, "%s no longer coordinates epoch %d", sled.ID, ch.Epoch)
	}
	an := answer{from: sled, epoch: coordinating, polled: true}
	if coordinating == ch.Epoch {
		an.config = sled.Node.State().Configs[ch.Epoch]
		if f := s.frauds[ch.Epoch]; f != nil {
			an.config = f.config
		}
		if an.config != nil {
			for _, m := range an.config.Members {
				if sled.Node.Acked(ch.Epoch, m.ID) {
					an.acked = append(an.acked, m.ID)
				}
			}
		}
	}
	c.answers = append(c.answers, an)
}

// hear takes one answer in.
func (s *Sim) hear(an answer) {
	c := &s.ctl
	if c.st == nil || c.st.Change == nil {
		return
	}
	ch := c.st.Change
	switch {
	case an.polled && ch.Phase == rack.Preparing && an.from.ID == ch.Coordinator && c.asked == ch.Epoch:
		s.polled(ch, an)
	case an.committed && ch.Epoch == an.epoch:
		if ch.CommittedBy(an.from.ID) {
			if d := s.oracle.decision(an.epoch); d != nil {
				d.told |= bit(an.from)
			}
			s.touch(an.from)
			s.journal("committed")
		}
	}
}

func (s *Sim) polled(ch *rack.Change, an answer) {
	if an.epoch != ch.Epoch {
		s.ctl.ended = true
		return
	}
	if _, err := ch.Prepared(an.config, an.acked); err != nil {
		if s.bad(XSound, an.from, false) {
			s.broken(XSound, "the controller refuses what %s reports of epoch %d: %v (%s)", an.from.ID, ch.Epoch, err, reason.CodeOf(err))
		}
		return
	}
	for _, m := range an.acked {
		s.touch(s.Find(m))
	}
	ready := ch.Ready()
	if s.plant.ready != nil {
		ready = s.plant.ready(s, ch)
	}
	if !ready {
		return
	}
	if err := s.decide(ch, an.config); err != nil {
		s.broken(XSound, "decide epoch %d: %v", ch.Epoch, err)
		return
	}
	s.journal("decide")
}

func (s *Sim) decide(ch *rack.Change, config *quorum.Configuration) error {
	cert := s.Auth.CertifyFrom(config, ch.KeepFrom)
	if s.plant.ready != nil { // the core would refuse
		ch.Config, ch.Certificate, ch.Phase = config, cert, rack.Decided
		return nil
	}
	return ch.Decide(config, cert)
}
