package quorumtest

import (
	"errors"
	"fmt"
	"math/rand/v2"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
)

// Action is one thing that happens in a simulation. A, B and C choose among what there is, so that every sequence of
// actions can be played, also one from which some were taken out.
type Action struct {
	Kind    ActionKind
	A, B, C uint32
}

func (a Action) String() string { return fmt.Sprintf("%s %d %d %d", a.Kind, a.A, a.B, a.C) }

// ActionKind is a kind of action.
type ActionKind string

// The actions.
const (
	actDeliver     ActionKind = "deliver"
	actPoll        ActionKind = "poll"
	actCommit      ActionKind = "commit"
	actLoad        ActionKind = "load"
	actLoadOld     ActionKind = "load-old"
	actCancel      ActionKind = "cancel"
	actClear       ActionKind = "clear"
	actReconfigure ActionKind = "reconfigure"
	actRepeat      ActionKind = "repeat-request"
	actCrash       ActionKind = "crash"
	actRestart     ActionKind = "restart"
	actFailSave    ActionKind = "fail-save"
	actCrashSave   ActionKind = "crash-after-save"
	actLose        ActionKind = "lose"
	actConnect     ActionKind = "connect"
	actPartition   ActionKind = "partition"
	actDuplicate   ActionKind = "duplicate"
	actLie         ActionKind = "lie"
)

var weights = [...]struct {
	kind   ActionKind
	weight int
}{
	{actDeliver, 240},
	{actPoll, 12},
	{actCommit, 20},
	{actLoad, 20},
	{actLoadOld, 10},
	{actCancel, 2},
	{actClear, 12},
	{actReconfigure, 5},
	{actRepeat, 1},
	{actCrash, 2},
	{actRestart, 10},
	{actFailSave, 1},
	{actCrashSave, 1},
	{actLose, 4},
	{actConnect, 40},
	{actPartition, 1},
	{actDuplicate, 6},
	{actLie, 12},
}

// Generate makes the actions of a run.
func Generate(seed uint64, n int) []Action {
	r := rand.New(rand.NewPCG(seed, 1))
	total := 0
	for _, w := range weights {
		total += w.weight
	}
	out := make([]Action, n)
	for i := range out {
		at, v := 0, r.IntN(total)
		for v >= weights[at].weight {
			v -= weights[at].weight
			at++
		}
		out[i] = Action{weights[at].kind, r.Uint32(), r.Uint32(), r.Uint32()}
	}
	return out
}

// Sim is one simulated rack under attack.
type Sim struct {
	*Cluster
	ctl   controller
	liar  *Sled // nil if everyone is honest
	table *Table
	mask  uint32 // faults that have happened

	tracked map[ident.Epoch]*quorum.Configuration // the only configuration that may exist of each epoch
	truth   map[ident.Epoch]secret.RackSecret     // of committed epochs
	checked []map[ident.Epoch]bool                // shares that were verified, by sled
	fate    []saveFate                            // of the next save, by sled
	boot    []uint64                              // which boot a sled is in
	loads   map[quorum.RequestID]loading
	nextID  quorum.RequestID
	err     error // the first broken invariant
}

type saveFate uint8

const (
	saveGood saveFate = iota
	saveFail          // nothing is written
	saveLost          // written, but the sled dies before it can say so
)

type loading struct {
	sled  *Sled
	boot  uint64      // requests of earlier boots died with them
	epoch ident.Epoch // 0 = latest
}

var errInjected = errors.New("quorumtest: injected")

// NewSim makes the rack of a run: 5 to 12 sleds, in half of the runs with one liar.
func NewSim(seed uint64, table *Table) *Sim {
	r := rand.New(rand.NewPCG(seed, 2))
	names := make([]string, 5+r.IntN(8))
	for i := range names {
		names[i] = fmt.Sprintf("%02d", i)
	}
	s := &Sim{
		Cluster: NewCluster(seed, names...), table: table,
		tracked: map[ident.Epoch]*quorum.Configuration{}, truth: map[ident.Epoch]secret.RackSecret{},
		checked: make([]map[ident.Epoch]bool, len(names)), fate: make([]saveFate, len(names)), boot: make([]uint64, len(names)),
		loads: map[quorum.RequestID]loading{},
	}
	for i := range s.checked {
		s.checked[i] = map[ident.Epoch]bool{}
	}
	if r.IntN(2) == 0 {
		s.liar = s.Sleds[r.IntN(len(s.Sleds))]
	}
	s.ctl.gone = make([]bool, len(names))
	s.Save, s.Seen = s.save, s.seen
	s.ConnectAll()
	return s
}

// Run plays actions, then heals everything and checks that the rack comes to rest as it should.
func (s *Sim) Run(actions []Action) error {
	for i, a := range actions {
		s.play(a)
		if s.err != nil {
			return fmt.Errorf("action %d (%s): %w", i, a, s.err)
		}
	}
	s.live()
	s.table.flush(s.mask)
	return s.err
}

func (s *Sim) broken(rule Invariant, format string, args ...any) {
	if s.err == nil {
		s.err = fmt.Errorf("%s: %s", rule, fmt.Sprintf(format, args...))
	}
}

// check counts a check and records the first failure.
func (s *Sim) check(rule Invariant, ok bool, format string, args ...any) {
	s.table.now[rule]++
	if !ok {
		s.broken(rule, format, args...)
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

func (s *Sim) sled(a uint32) *Sled { return s.Sleds[int(a)%len(s.Sleds)] }

// do gives a sled an input. Refusals are returned; a broken invariant that no injected fault explains ends the run.
func (s *Sim) do(sled *Sled, in quorum.Input) (quorum.Effects, error) {
	fx, err := s.Do(sled, in)
	if e, ok := errors.AsType[*quorum.InvariantError](err); ok && !errors.Is(err, errInjected) {
		s.broken(PNoPanic, "%s: %v", sled.ID, e)
	}
	return fx, err
}

func (s *Sim) play(a Action) {
	switch a.Kind {
	case actDeliver:
		if len(s.busy) > 0 {
			s.table.delivered++
			p := s.busy[int(a.A)%len(s.busy)]
			s.do(s.Sleds[p.to], quorum.PeerMessage{From: s.Sleds[p.from].ID, Message: s.pop(p)})
		}
	case actPoll:
		s.poll()
	case actCommit:
		s.commitSome(a)
	case actLoad:
		s.load(s.sled(a.A), 0)
	case actLoadOld:
		if n := len(s.ctl.committed); n > 0 {
			s.load(s.sled(a.A), s.ctl.committed[int(a.B)%n].epoch)
		}
	case actCancel:
		s.cancel(a)
	case actClear:
		s.do(s.sled(a.A), quorum.ClearSecrets{})
	case actReconfigure:
		s.reconfigure(a)
	case actRepeat:
		s.repeat()
	case actCrash:
		if sled := s.sled(a.A); sled.Up() {
			s.fault(FaultCrash)
			s.Crash(sled)
		}
	case actRestart:
		if sled := s.sled(a.A); !sled.Up() {
			s.start(sled)
		}
	case actFailSave:
		s.fate[s.sled(a.A).Index] = saveFail
	case actCrashSave:
		s.fate[s.sled(a.A).Index] = saveLost
	case actLose:
		if x, y := s.sled(a.A), s.sled(a.B); s.Connected(x, y) {
			s.fault(FaultLoss)
			s.Disconnect(x, y)
		}
	case actConnect:
		s.connect(a)
	case actPartition:
		s.partition(a)
	case actDuplicate:
		if len(s.busy) > 0 {
			p := s.busy[int(a.A)%len(s.busy)]
			s.fault(FaultDuplicate)
			s.Duplicate(s.Sleds[p.from], s.Sleds[p.to])
		}
	case actLie:
		if s.liar != nil {
			s.lie(a)
		}
	}
	s.roles()
}

func (s *Sim) start(sled *Sled) {
	s.boot[sled.Index]++
	s.check(XState, s.Start(sled) == nil, "%s does not start from its own disk", sled.ID)
	s.fault(FaultRestart)
}

// connect connects a sled with the next one that it is not connected with.
func (s *Sim) connect(a Action) {
	x := s.sled(a.A)
	for i := range s.Sleds {
		if y := s.sled(a.B>>1 + uint32(i)); x != y && x.Up() && y.Up() && !s.Connected(x, y) {
			s.Connect(x, y)
			return
		}
	}
}

func (s *Sim) partition(a Action) {
	s.fault(FaultPartition)
	for i, x := range s.Sleds {
		for j, y := range s.Sleds[i+1:] {
			if a.A>>(i%32)&1 != a.A>>((i+1+j)%32)&1 {
				s.Disconnect(x, y)
			}
		}
	}
}

// save is the disk: what it is given must follow the rules, then the fate of the moment is done.
func (s *Sim) save(sled *Sled, st quorum.State) error {
	fate := s.fate[sled.Index]
	s.checkState(sled, st, fate != saveFail)
	s.fate[sled.Index] = saveGood
	switch fate {
	case saveGood:
	case saveFail:
		s.fault(FaultFailedSave)
		return errInjected
	case saveLost:
		s.fault(FaultCrashAtSave)
		sled.Disk = st
		return errInjected
	}
	sled.Disk = st
	return nil
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
	s.loads[in.ID] = loading{sled, s.boot[sled.Index], e}
	_, err := s.do(sled, in)
	if errors.Is(err, ErrDown) {
		return
	}
	latest, any := sled.Disk.LatestCommitted()
	switch code := reason.CodeOf(err); {
	case err == nil:
		if _, waits := s.loads[in.ID]; waits && sled.Up() {
			s.check(P13, sled.Node.Roles().Collecting >= max(e, 1), "%s waits for epoch %d and collects %d", sled.ID, e, sled.Node.Roles().Collecting)
		}
		return
	case code == quorum.CodeNoCommitted:
		s.check(P15, !any, "%s says that nothing is committed", sled.ID)
	case code == quorum.CodeNotCommitted:
		s.check(P16, e > latest, "%s says that epoch %d is not committed, has %d", sled.ID, e, latest)
	case code == quorum.CodeExpunged:
		s.check(P6, sled.Disk.Expunged != nil, "%s says that it is expunged", sled.ID)
	case code == quorum.CodeBusy:
	default:
		s.broken(P17, "%s: load epoch %d: %v", sled.ID, e, err)
	}
	delete(s.loads, in.ID)
}

func (s *Sim) cancel(a Action) {
	sled := s.sled(a.A)
	for id := quorum.RequestID(1); id <= s.nextID; id++ {
		if l, ok := s.loads[id]; ok && l.sled == sled && l.boot == s.boot[sled.Index] {
			delete(s.loads, id)
			s.do(sled, quorum.CancelLoad{ID: id})
			return
		}
	}
}
