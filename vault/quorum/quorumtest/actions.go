package quorumtest

import (
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/sledvault/sledvault/vault/quorum"
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

// kinds lists the actions with how often each is drawn. Not all of them find something to do.
var kinds = [...]struct {
	kind   ActionKind
	weight int
	play   func(*Sim, Action)
}{
	{"deliver", 420, (*Sim).playDeliver},
	{"operate", 50, (*Sim).operate},
	{"answer", 36, (*Sim).playAnswer},
	{"lose-answer", 2, (*Sim).playLoseAnswer},
	{"change", 12, (*Sim).change},
	{"late-commit", 4, (*Sim).late},
	{"load", 18, (*Sim).playLoad},
	{"load-old", 8, func(s *Sim, a Action) { s.load(s.sled(a.A), s.someEpoch(a.B)) }},
	{"agree", 7, (*Sim).agree},
	{"cancel", 2, (*Sim).cancel},
	{"clear", 3, func(s *Sim, a Action) { _, _ = s.do(s.sled(a.A), quorum.ClearSecrets{}) }},
	{"crash", 3, (*Sim).playCrash},
	{"restart", 16, (*Sim).playRestart},
	{"next-save", 5, (*Sim).playNextSave},
	{"power-cut", 1, (*Sim).playPowerCut},
	{"rollback", 4, (*Sim).rollback},
	{"enrol-again", 8, func(s *Sim, a Action) { s.enrolAgain(s.sled(a.A)) }},
	{"swap", 1, (*Sim).swap},
	{"connect", 24, (*Sim).playConnect},
	{"lose", 2, (*Sim).playLose},
	{"break", 4, (*Sim).playBreak},
	{"full-queue", 1, (*Sim).playFull},
	{"duplicate", 6, (*Sim).playDuplicate},
	{"reorder", 1, (*Sim).playReorder},
	{"partition", 1, (*Sim).playPartition},
	{"one-way", 2, (*Sim).playOneWay},
	{"lie", 18, (*Sim).lie},
	{"twist", 18, (*Sim).playTwist},
	{"forge-request", 6, (*Sim).forgeRequest},
	{"ctl-crash", 1, func(s *Sim, _ Action) { s.crashController() }},
	{"ctl-next-save", 1, (*Sim).playControllerSave},
	{"ctl-start", 2, func(s *Sim, _ Action) { s.openJournal() }},
	{"ctl-old-journal", 1, (*Sim).oldJournal},
}

var players = func() map[ActionKind]func(*Sim, Action) { //nolint:gochecknoglobals // made once, of kinds
	out := make(map[ActionKind]func(*Sim, Action), len(kinds))
	for _, k := range kinds {
		out[k.kind] = k.play
	}
	return out
}()

// Generate makes the actions of a run.
func Generate(seed uint64, n int) []Action {
	r := rand.New(rand.NewPCG(seed, 1))
	total := 0
	for _, k := range kinds {
		total += k.weight
	}
	out := make([]Action, n)
	for i := range out {
		at, v := 0, r.IntN(total)
		for v >= kinds[at].weight {
			v -= kinds[at].weight
			at++
		}
		out[i] = Action{kinds[at].kind, r.Uint32(), r.Uint32(), r.Uint32()}
	}
	return out
}

func (s *Sim) play(a Action) { players[a.Kind](s, a) }

// someBusy is a pair of sleds with messages on their way that may arrive.
func (s *Sim) someBusy(v uint32) (pair, bool) {
	for i := range s.busy {
		if p := s.busy[(int(v)+i)%len(s.busy)]; !s.held[p.from][p.to] {
			return p, true
		}
	}
	return pair{}, false
}

func (s *Sim) playDeliver(a Action) {
	if p, ok := s.someBusy(a.A); ok {
		s.table.delivered++
		s.deliver(p)
	} else { // the network is empty: somebody gives it something to do
		s.operate(a)
		for i := range s.Sleds {
			if sled := s.sled(a.B>>1 + uint32(i)); sled.Up() && len(sled.Disk.Commits) > 0 && sled.Disk.Expunged == nil {
				s.reload(sled)
				return
			}
		}
	}
}

func (s *Sim) playAnswer(a Action) {
	if n := len(s.ctl.answers); n > 0 {
		i := int(a.A) % n
		an := s.ctl.answers[i]
		s.ctl.answers = slices.Delete(s.ctl.answers, i, i+1)
		s.hear(an)
	}
}

func (s *Sim) playLoseAnswer(a Action) {
	if n := len(s.ctl.answers); n > 0 {
		s.fault(FaultLostAnswer)
		i := int(a.A) % n
		s.ctl.answers = slices.Delete(s.ctl.answers, i, i+1)
	}
}

// playLoad asks for the latest secret, most often of a sled that has to collect shares for it.
func (s *Sim) playLoad(a Action) {
	if sled := s.sled(a.A); a.B%4 != 0 {
		s.reload(sled)
	} else {
		s.load(sled, 0)
	}
}

func (s *Sim) reload(sled *Sled) {
	_, _ = s.do(sled, quorum.ClearSecrets{})
	s.load(sled, 0)
}

func (s *Sim) playCrash(a Action) {
	if sled := s.sled(a.A); sled.Up() {
		s.fault(FaultCrash)
		s.crash(sled)
	}
}

func (s *Sim) playRestart(a Action) {
	for i := range s.Sleds {
		if sled := s.sled(a.A>>1 + uint32(i)); !sled.Up() && !s.disk(sled).refused {
			s.start(sled)
			if a.B%4 != 0 { // its peers find it at once
				for _, o := range s.Sleds {
					s.Connect(sled, o)
				}
			}
			return
		}
	}
}

func (s *Sim) playNextSave(a Action) {
	s.disk(s.sled(a.A)).fate = saveFail + saveFate(a.B)%saveTorn // any but saveGood
}

func (s *Sim) playControllerSave(a Action) {
	s.ctl.fate = saveCrashBefore + saveFate(a.A%2)
}

func (s *Sim) playPowerCut(a Action) {
	if a.C%4 != 0 {
		return
	}
	s.powerCut(a)
	for i, sled := range s.Sleds {
		if a.B>>(1+i)&1 == 0 {
			s.start(sled)
		}
	}
	s.ConnectAll()
}

// playConnect connects a sled with the next one that it is not connected with.
func (s *Sim) playConnect(a Action) {
	x := s.sled(a.A)
	for i := range s.Sleds {
		y := s.sled(a.B>>1 + uint32(i))
		if x != y && x.Up() && y.Up() && !s.Connected(x, y) {
			s.Connect(x, y)
			return
		}
	}
	for i := range s.Sleds { // or makes a connection anew on which nothing arrives
		if y := s.Sleds[i]; s.held[x.Index][i] || s.held[i][x.Index] {
			s.Disconnect(x, y)
			s.Connect(x, y)
			return
		}
	}
}

func (s *Sim) playLose(a Action) {
	if p, ok := s.someBusy(a.A); ok {
		s.fault(FaultLoss)
		destroy(s.pop(p).Kind)
	}
}

func (s *Sim) playBreak(a Action) {
	x, y := s.sled(a.A), s.sled(a.B)
	if p, ok := s.someBusy(a.C); ok && a.A%2 == 0 {
		x, y = s.Sleds[p.from], s.Sleds[p.to]
	}
	if s.Connected(x, y) {
		s.fault(FaultBreak)
		s.Disconnect(x, y)
	}
}

func (s *Sim) playFull(a Action) {
	if p, ok := s.someBusy(a.A); ok {
		s.full[p.from][p.to] = true
	}
}

func (s *Sim) playDuplicate(a Action) {
	if p, ok := s.someBusy(a.A); ok {
		s.fault(FaultDuplicate)
		s.Duplicate(s.Sleds[p.from], s.Sleds[p.to])
	}
}

func (s *Sim) playReorder(a Action) {
	for i := range s.busy {
		p := s.busy[(int(a.A)+i)%len(s.busy)]
		if q := s.queue[p.from][p.to].msgs; len(q) > 1 {
			s.fault(FaultReorder)
			j := int(a.B) % (len(q) - 1)
			q[j], q[j+1] = q[j+1], q[j]
			return
		}
	}
}

func (s *Sim) playPartition(a Action) {
	if a.C%2 != 0 {
		return
	}
	s.fault(FaultPartition)
	for i, x := range s.Sleds {
		for j, y := range s.Sleds[i+1:] {
			if a.A>>i&1 != a.A>>(i+1+j)&1 {
				s.Disconnect(x, y)
			}
		}
	}
}

func (s *Sim) playOneWay(a Action) {
	x, y := s.sled(a.A), s.sled(a.B)
	if s.Connected(x, y) {
		s.fault(FaultOneWay)
		s.held[x.Index][y.Index] = true
	}
}

// silent reports whether nothing is on its way to or from a sled.
func (s *Sim) silent(sled *Sled) bool {
	for i := range s.Sleds {
		if len(s.queue[i][sled.Index].msgs)+len(s.queue[sled.Index][i].msgs) > 0 {
			return false
		}
	}
	return true
}
