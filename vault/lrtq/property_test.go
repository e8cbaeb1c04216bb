package lrtq

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/sledvault/sledvault/vault/reason"
)

// The two properties below are the reference's own, one with the tested sled as the founder and one with it as a learner,
// played against peers that are nodes, too. After every action the rules of check hold.

// play is a rack under arbitrary actions.
type play struct {
	*cluster
	rt     *rapid.T
	secret []byte // once anybody loaded it
	calls  Call
	was    map[Board]State
}

// check holds what must be true after every action.
func (p *play) check() {
	for _, s := range p.sleds {
		before, after := p.was[s.id], s.disk
		if before.Phase == InitialMember || before.Phase == Learned {
			if after.Phase != before.Phase || !after.Package.Equal(before.Package) {
				p.rt.Fatalf("%s: a stored package changed", s.id)
			}
		}
		for b, i := range before.Given {
			if j, ok := after.Given[b]; !ok || j != i {
				p.rt.Fatalf("%s: what was given to %s changed from %d to %d", s.id, b, i, j)
			}
		}
		if err := after.Validate(); err != nil {
			p.rt.Fatalf("%s: state on disk: %v", s.id, err)
		}
		p.was[s.id] = after
		if s.node == nil {
			continue
		}
		kinds := map[trackedKind]int{}
		learners := map[Board]bool{}
		ids := map[RequestID]bool{}
		for _, t := range s.node.tracked {
			kinds[t.kind]++
			if t.due <= s.node.now || ids[t.id] || t.kind == answering && learners[t.peer] {
				p.rt.Fatalf("%s: running: %v, overdue or doubled", s.id, t)
			}
			ids[t.id], learners[t.peer] = true, learners[t.peer] || t.kind == answering
		}
		if kinds[founding] > 1 || kinds[loading] > 1 || kinds[asking] > 1 {
			p.rt.Fatalf("%s: running: %v", s.id, s.node.Status().Running)
		}
		if kinds[asking] > 0 && s.disk.Phase != Learning || kinds[answering] > 0 && s.disk.Phase != InitialMember {
			p.rt.Fatalf("%s: %s, running: %v", s.id, s.disk.Phase, s.node.Status().Running)
		}
	}
	// nobody holds another's share
	holders := map[byte]Board{}
	for _, s := range p.sleds {
		if c, ok := s.disk.Common(); ok {
			if o, twice := holders[c.Share.X]; twice {
				p.rt.Fatalf("%s and %s hold share %d", o, s.id, c.Share.X)
			}
			holders[c.Share.X] = s.id
		}
	}
}

// answers checks replies as they come.
func (p *play) answers(s *sled, fx Effects) {
	for _, r := range fx.Replies {
		if r.Err == nil && !r.Secret.IsEmpty() {
			b := raw(p.rt, r.Secret)
			if p.secret == nil {
				p.secret = b
			}
			if !bytes.Equal(b, p.secret) {
				p.rt.Fatalf("%s: another secret", s.id)
			}
		}
	}
	for _, e := range fx.Send {
		k, isShare := e.Message.(Response)
		if !isShare {
			continue
		}
		if _, has := s.disk.Common(); !has && (KindOf(k) == KindShare || KindOf(k) == KindInitAck || KindOf(k) == KindLearnPkg) {
			p.rt.Fatalf("%s: %s leaves a sled that stored nothing", s.id, KindOf(k))
		}
	}
}

func (p *play) any(label string) *sled { return rapid.SampledFrom(p.sleds).Draw(p.rt, label) }

func (p *play) act() {
	a, b := p.any("a"), p.any("b")
	switch rapid.IntRange(0, 9).Draw(p.rt, "action") {
	case 0:
		p.connect(a, b)
	case 1:
		p.disconnect(a, b)
	case 2, 3, 4, 5:
		for n := rapid.IntRange(1, 20).Draw(p.rt, "messages"); n > 0 && len(p.queue) > 0; n-- {
			p.deliver()
		}
	case 6:
		p.tick(rapid.IntRange(1, 25).Draw(p.rt, "ticks"))
	case 7:
		if a.node != nil {
			p.calls++
			_, _ = p.step(a, LoadSecret{p.calls})
		}
	case 8:
		if a.node != nil {
			_, err := p.step(a, StartLearning{})
			if (err == nil) != (p.was[a.id].Phase == Uninitialized) {
				p.rt.Fatalf("%s: start learning as %s: %v", a.id, p.was[a.id].Phase, err)
			}
		}
	case 9:
		if a.node == nil {
			p.start(a)
		} else if a.disk.Phase == InitialMember || a.disk.Phase == Learned { // the founder forgets whom it founds with
			if a.node.findKind(founding) == nil {
				p.crash(a)
			}
		}
	}
}

// heal restarts and connects everybody, and lets time pass until nobody waits.
func (p *play) heal() {
	for _, s := range p.sleds {
		if s.node == nil {
			p.start(s)
		}
	}
	p.connectAll()
	for i, busy := 0, true; busy || len(p.queue) > 0; i++ {
		if i == 2600 {
			p.rt.Fatal("somebody waits for ever")
		}
		p.deliverAll()
		p.tick(1)
		p.check()
		busy = slices.ContainsFunc(p.sleds, func(s *sled) bool { return len(s.node.tracked) > 0 })
	}
}

func newPlay(rt *rapid.T) *play {
	p := &play{rt: rt, was: map[Board]State{}, calls: 5000}
	p.cluster = newCluster(rt, rapid.Byte().Draw(rt, "seed"), names(rapid.IntRange(4, 8).Draw(rt, "sleds"))...)
	p.seen = p.answers
	return p
}

// TestFounderProperty founds a rack under lost connections. When all is healed in time, it is complete and every member
// gives the same secret; when members stay away until the deadline, it has failed for good and says who.
func TestFounderProperty(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		p := newPlay(rt)
		founder := p.any("founder")
		members := p.sleds[:rapid.IntRange(2, len(p.sleds)).Draw(rt, "members")]
		if !slices.Contains(members, founder) {
			founder = members[0]
		}
		var ids []Board
		for _, m := range members {
			ids = append(ids, m.id)
		}
		for range rapid.IntRange(0, 10).Draw(rt, "connections") {
			p.connect(p.any("a"), p.any("b"))
		}
		p.do(founder, InitRack{Call: 1, RackID: rackID(), Members: ids})
		away := rapid.Bool().Draw(rt, "away")
		for range rapid.IntRange(0, 20).Draw(rt, "actions") {
			a, b := p.any("a"), p.any("b")
			switch rapid.IntRange(0, 2).Draw(rt, "action") {
			case 0:
				p.connect(a, b)
			case 1:
				p.disconnect(a, b)
			case 2:
				for n := rapid.IntRange(1, 10).Draw(rt, "messages"); n > 0 && len(p.queue) > 0; n-- {
					p.deliver()
				}
			}
			p.check()
		}
		if away {
			p.tick(2400)
			if _, answered := founder.calls[1]; !answered {
				rt.Fatal("founding has no end")
			}
		}
		p.heal()
		if r := founder.calls[1]; r.Err != nil {
			if !away || reason.CodeOf(r.Err) != CodeInitTimeout {
				rt.Fatalf("founding: %v", r.Err)
			}
			if _, err := p.step(founder, LoadSecret{2}); reason.CodeOf(err) != CodeInitTimeout {
				rt.Fatalf("after a failed founding: %v", err)
			}
			return
		}
		for i, m := range members {
			p.load(m, Call(100+i))
		}
	})
}

// TestLearnerProperty gives a founded rack learners, lost connections, crashes and time. When all is healed, every
// learner has learned a share of its own and gives the rack's secret.
func TestLearnerProperty(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		p := newPlay(rt)
		p.connectAll()
		members := rapid.IntRange(3, len(p.sleds)).Draw(rt, "members")
		p.found(names(members)...)
		p.check()
		for range rapid.IntRange(0, 60).Draw(rt, "actions") {
			p.act()
			p.check()
		}
		p.heal()
		for i, s := range p.sleds {
			if s.disk.Phase == Learning {
				rt.Fatalf("%s never learned", s.id)
			}
			if s.disk.Phase != Uninitialized {
				p.load(s, Call(100+i))
			}
		}
		given, learned := 0, 0
		for i, s := range p.sleds {
			given += len(s.disk.Given)
			if i >= members && s.disk.Phase == Learned {
				learned++
			}
			if slices.Max(append(slices.Collect(maps.Values(s.disk.Given)), -1)) != len(s.disk.Given)-1 {
				rt.Fatalf("%s: numbers of spare shares with gaps: %v", s.id, s.disk.Given)
			}
		}
		if given < learned { // more, if a learner gave up on one member and asked the next
			rt.Fatalf("%d learned, %d spare shares given", learned, given)
		}
		for _, s := range p.sleds {
			if len(s.node.tracked) != 0 {
				rt.Fatalf("%s is not done: %v", s.id, s.node.Status().Running)
			}
		}
	})
}

// TestSpareSharesRunOut gives every spare share of a member away; the next learner is refused, one that comes again is not.
func TestSpareSharesRunOut(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 8, "00", "01", "02")
	c.connectAll()
	c.found("00", "01", "02")
	a, helper := c.sled("00"), c.sled("01")
	learn := func(name string) Effects {
		b := pc(name)
		c.do2(a, PeerUp{b})
		c.do2(a, PeerMessage{b, Request{RequestID{9}, Learn{}}})
		own, err := helper.disk.Package.Clone(a.node.alloc)
		if err != nil {
			t.Fatal(err)
		}
		fx := c.do2(a, PeerMessage{helper.id, Response{RequestID{9}, ShareReply{own.Common.Share}}})
		c.do2(a, PeerDown{b})
		return fx
	}
	var first Share
	for i := range a.disk.Package.Spare() {
		fx := learn(fmt.Sprintf("l%02d", i))
		r, ok := fx.Send[0].Message.(Response).Kind.(LearnReply)
		if !ok || int(r.Package.Share.X) != i+2 {
			t.Fatalf("learner %d: %v", i, fx.Notes)
		}
		if i == 0 {
			first = r.Package.Share
		}
	}
	fx := learn("late")
	if r, ok := fx.Send[0].Message.(Response).Kind.(Refusal); !ok || r.Why != CannotSpareAShare {
		t.Errorf("one learner too many: %+v", fx.Notes)
	}
	fx = learn("l00")
	if r, ok := fx.Send[0].Message.(Response).Kind.(LearnReply); !ok || !r.Package.Share.Y.Equal(first.Y) || a.node.Status().Spare != 0 {
		t.Errorf("the first learner again: %+v", fx.Notes)
	}
}
