package quorumtest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"slices"

	"github.com/sledvault/sledvault/vault/gfss"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
)

// Options choose what a run is like. The zero value is the default: everything follows from the seed.
type Options struct {
	Sleds  int  `json:"sleds,omitempty"`  // 0: 5 to 12
	Honest bool `json:"honest,omitempty"` // no liar; otherwise half of the runs have one
}

// Sim is one simulated rack under attack: nodes, the controller's core, the network and the disks, in one goroutine.
type Sim struct {
	*Cluster
	opts   Options
	ctl    controller
	oracle oracle
	disks  []disk
	liar   *Sled // nil if everyone is honest
	twist  twist // of the liar's next messages
	lrtq   int   // threshold of the older scheme, if the rack was born with it; 0 otherwise
	rogue  bool  // the liar cheats as a coordinator
	frauds map[ident.Epoch]*fraud
	table  *Table
	mask   uint32         // faults that have happened
	hit    [faults]uint32 // sleds that a fault struck

	checked []map[ident.Epoch]bool // shares that were verified, by sled
	boot    []uint64               // which boot a sled is in
	loads   map[quorum.RequestID]loading
	nextID  quorum.RequestID
	touched []*Sled // by the event under way
	plant   plant   // bugs, to see that they are found
	err     error   // the first broken invariant
	rule    Invariant
	played  int // actions
	step    func(i int, a Action, s *Sim)
}

var errInjected = errors.New("quorumtest: injected")

// Bounds of Options.Sleds.
const (
	minSleds = 4
	maxSleds = 32
)

// NewSim makes the rack of a run. Counts go to the table.
func NewSim(seed uint64, o Options, table *Table) *Sim {
	r := rand.New(rand.NewPCG(seed, 2))
	n := 5 + r.IntN(8)
	if o.Sleds != 0 {
		n = o.Sleds
	}
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("%02d", i)
	}
	s := &Sim{
		Cluster: NewCluster(seed, names...), opts: o, table: table, disks: make([]disk, n),
		checked: make([]map[ident.Epoch]bool, n), boot: make([]uint64, n), loads: map[quorum.RequestID]loading{},
		oracle: newOracle(), frauds: map[ident.Epoch]*fraud{}, twist: twist{},
	}
	for i := range s.checked {
		s.checked[i] = map[ident.Epoch]bool{}
	}
	if r.IntN(2) == 0 && !o.Honest {
		s.liar = s.Sleds[r.IntN(n)]
		s.rogue = r.IntN(2) == 0
	}
	if r.IntN(5) == 0 {
		s.bornLRTQ(3 + r.IntN(n-2))
	}
	s.ctl.start()
	s.Save, s.Seen, s.Refused, s.Wire = s.save, s.seen, s.refused, s.wire
	s.ConnectAll()
	return s
}

// Err is the first broken invariant, or nil. After it, a run ends.
func (s *Sim) Err() error { return s.err }

// Run plays actions, then heals everything and checks that the rack comes to rest as it should.
func (s *Sim) Run(actions []Action) (err error) {
	defer func() {
		if p := recover(); p != nil { // so that the run is named and shrunk
			s.broken(XSound, "panic: %v\n%s", p, debug.Stack())
			err = s.err
		}
	}()
	for i, a := range actions {
		s.table.actions++
		s.played++
		s.play(a)
		s.after()
		if s.step != nil {
			s.step(i, a, s)
		}
		if s.err != nil {
			return fmt.Errorf("action %d (%s): %w", i, a, s.err)
		}
	}
	s.live()
	s.table.flush(s.mask)
	return s.err
}

// after checks what the last action has touched.
func (s *Sim) after() {
	for _, sled := range s.touched {
		s.inspect(sled)
	}
	if len(s.touched) > 0 {
		s.enough()
	}
	s.touched = s.touched[:0]
}

func (s *Sim) touch(sled *Sled) {
	if !slices.Contains(s.touched, sled) {
		s.touched = append(s.touched, sled)
	}
}

func (s *Sim) sled(a uint32) *Sled { return s.Sleds[int(a)%len(s.Sleds)] }

// do gives a sled an input. Refusals are returned.
func (s *Sim) do(sled *Sled, in quorum.Input) (quorum.Effects, error) {
	if s.plant.input != nil {
		in = s.plant.input(s, sled, in)
	}
	s.touch(sled)
	fx, err := s.Do(sled, in)
	if err == nil {
		s.table.now[XSound]++
	}
	return fx, err
}

// refused hears of every input that was refused, or not stored.
func (s *Sim) refused(sled *Sled, err error) {
	if _, ok := errors.AsType[*quorum.InvariantError](err); ok && !errors.Is(err, errInjected) && s.bad(XSound, sled, false) {
		s.broken(XSound, "%s: %v", sled.ID, err)
	}
	if code := reason.CodeOf(err); code != "" {
		s.table.codes[code]++
	}
}

// deliver takes a message that is on its way to its receiver.
func (s *Sim) deliver(p pair) {
	m := s.pop(p)
	if m.Kind != nil {
		s.table.kinds[quorum.KindOf(m.Kind)]++
	}
	to := s.Sleds[p.to]
	before := to.Disk
	fx, err := s.do(to, quorum.PeerMessage{From: s.Sleds[p.from].ID, Message: m})
	if m.RackID != RackID() && err == nil {
		_, known := before.RackID()
		if s.bad(X4, to, !known || len(fx.Send) == 0 && kept(&to.Disk, &before)) {
			s.broken(X4, "%s acts on a message of another rack", to.ID)
		}
	}
	if k, ok := m.Kind.(quorum.Prepare); ok && err == nil && k.Config != nil {
		s.checkAck(to, k.Config, &fx)
	}
}

// checkAck is X7 for acknowledgements: they are for the very configuration that came.
func (s *Sim) checkAck(sled *Sled, c *quorum.Configuration, fx *quorum.Effects) {
	for _, m := range fx.Send {
		if k, ok := m.Message.Kind.(quorum.PrepareAck); ok && k.Epoch == c.Epoch {
			if latest, _ := sled.Disk.LatestCommitted(); s.bad(P2, sled, latest <= c.Epoch) {
				s.broken(P2, "%s acknowledges epoch %d and has committed %d", sled.ID, c.Epoch, latest)
			}
			have := sled.Disk.Configs[c.Epoch]
			if s.bad(X7, sled, have != nil && have.Equal(c)) {
				s.broken(X7, "%s acknowledges another configuration %d than it has stored", sled.ID, c.Epoch)
			}
		}
	}
}

// wire is the network's entrance: what the liar sends may be altered there.
func (s *Sim) wire(from, to *Sled, m quorum.Message) quorum.Message {
	if s.plant.send != nil {
		m = s.plant.send(s, from, to, m)
	}
	if s.rogue {
		m = s.cheat(from, to, m)
	}
	if s.full[from.Index][to.Index] {
		s.fault(FaultFullQueue)
	} else if from == s.liar {
		m = s.alter(to, m)
	}
	return m
}

// start boots a sled from its disk. One whose old disk was refused stays down until it is enrolled again.
func (s *Sim) start(sled *Sled) {
	if s.disk(sled).refused {
		return
	}
	s.boot[sled.Index]++
	s.touch(sled)
	if err := s.Start(sled); s.bad(XStart, sled, err == nil) {
		s.broken(XStart, "%s does not start from its own disk: %v", sled.ID, err)
		return
	}
	d := &sled.Disk
	committed, _ := d.LatestCommitted()
	certified := ident.Epoch(0)
	for e := range d.Certificates {
		certified = max(certified, e)
	}
	if certified > committed && d.Expunged == nil && s.bad(XStart, sled, sled.Node.Roles().Computing == certified) {
		s.broken(XStart, "%s knows that epoch %d is committed and does not go on computing its share", sled.ID, certified)
	}
}

func (s *Sim) crash(sled *Sled) {
	s.touch(sled)
	s.Crash(sled)
}

func newOracle() oracle {
	return oracle{
		first: map[ident.Epoch]*quorum.Configuration{}, truth: map[ident.Epoch]secret.RackSecret{},
		asked: map[ident.Epoch]*askedFor{}, lost: map[ident.Epoch]uint32{},
	}
}

func contains(list []ident.Baseboard, id ident.Baseboard) bool {
	_, ok := slices.BinarySearchFunc(list, id, ident.Baseboard.Compare)
	return ok
}

// fits reports whether a share has the number and digest that a configuration gives to a member.
func fits(c *quorum.Configuration, id ident.Baseboard, sh gfss.Share) bool {
	i, member := c.Index(id)
	if !member || int(sh.X) != i+1 {
		return false
	}
	d, err := sh.Digest()
	return err == nil && c.Members[i].ShareDigest == d
}
