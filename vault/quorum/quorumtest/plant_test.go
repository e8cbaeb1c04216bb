package quorumtest

import (
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/sledvault/sledvault/vault/gfss"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/rack"
)

// without is a map that lacks its highest epoch.
func without[V any](m map[ident.Epoch]V) map[ident.Epoch]V {
	out := maps.Clone(m)
	if es := quorum.Epochs(m); len(es) > 0 {
		delete(out, es[len(es)-1])
	}
	return out
}

// planted are bugs that a careless hand could put around the cores, with the rules that may find them.
var planted = map[string]struct {
	plant plant
	rules []Invariant
}{
	"acknowledges before it saves": {plant{save: func(_ *Sim, sled *Sled, st quorum.State) (quorum.State, bool) {
		return st, len(st.Shares) > len(sled.Disk.Shares)
	}}, []Invariant{X7, P2, P7}},
	"says committed before it saves": {plant{save: func(_ *Sim, sled *Sled, st quorum.State) (quorum.State, bool) {
		return st, len(st.Commits) > len(sled.Disk.Commits)
	}}, []Invariant{X7, P3}},
	"forgets the commit": {plant{save: func(_ *Sim, _ *Sled, st quorum.State) (quorum.State, bool) {
		st.Commits = without(st.Commits)
		return st, false
	}}, []Invariant{X7, P3}},
	"forgets an older share": {plant{save: func(_ *Sim, _ *Sled, st quorum.State) (quorum.State, bool) {
		if es := quorum.Epochs(st.Shares); len(es) > 1 {
			st.Shares = maps.Clone(st.Shares)
			delete(st.Shares, es[0])
		}
		return st, false
	}}, []Invariant{X3, X1}},
	"forgets certificates": {plant{save: func(_ *Sim, _ *Sled, st quorum.State) (quorum.State, bool) {
		st.Certificates = without(st.Certificates)
		return st, false
	}}, []Invariant{X1, X7}},
	"forgets that it is out": {plant{save: func(_ *Sim, _ *Sled, st quorum.State) (quorum.State, bool) {
		st.Expunged = nil
		return st, false
	}}, []Invariant{P6, XStart}},
	"stores another share": {plant{save: func(_ *Sim, sled *Sled, st quorum.State) (quorum.State, bool) {
		for e, sh := range st.Shares {
			if _, had := sled.Disk.Shares[e]; !had {
				st.Shares = maps.Clone(st.Shares)
				st.Shares[e] = gfss.Share{X: sh.X + 1, Y: sh.Y}
			}
		}
		return st, false
	}}, []Invariant{X2}},
	"changes a configuration": {plant{save: func(_ *Sim, sled *Sled, st quorum.State) (quorum.State, bool) {
		for e, c := range st.Configs {
			if sled.Disk.Configs[e] == nil && c.Coordinator != sled.ID {
				other := *c
				other.Threshold++
				st.Configs = maps.Clone(st.Configs)
				st.Configs[e] = &other
			}
		}
		return st, false
	}}, []Invariant{P1}},
	"commits what is only prepared": {plant{save: func(_ *Sim, _ *Sled, st quorum.State) (quorum.State, bool) {
		st.Commits = maps.Clone(st.Commits)
		if st.Commits == nil {
			st.Commits = map[ident.Epoch]bool{}
		}
		for e := range st.Shares {
			st.Commits[e] = true
		}
		return st, false
	}}, []Invariant{X1, C3}},
	"hands out the share of another member": {plant{send: func(_ *Sim, _, _ *Sled, m quorum.Message) quorum.Message {
		if k, ok := m.Kind.(quorum.Prepare); ok && m.RackID == RackID() {
			k.Share.X = 1 + k.Share.X%byte(len(k.Config.Members))
			m.Kind = k
		}
		return m
	}}, []Invariant{P5}},
	"acknowledges another epoch": {plant{send: func(_ *Sim, _, _ *Sled, m quorum.Message) quorum.Message {
		if k, ok := m.Kind.(quorum.PrepareAck); ok {
			m.Kind = quorum.PrepareAck{Epoch: k.Epoch - 1}
		}
		return m
	}}, []Invariant{P19, P20, P21}},
	"never tells a removed sled": {plant{send: func(_ *Sim, _, _ *Sled, m quorum.Message) quorum.Message {
		if k, ok := m.Kind.(quorum.ExpungedNotice); ok {
			m.Kind = quorum.NoSuchShare(k)
		}
		return m
	}}, []Invariant{P6, P22}},
	"never asks for a share": {plant{send: func(_ *Sim, _, _ *Sled, m quorum.Message) quorum.Message {
		if k, ok := m.Kind.(quorum.GetShare); ok {
			m.Kind = quorum.NoSuchShare(k)
		}
		return m
	}}, []Invariant{P19, P20, P21, P22}},
	"tells of a commit without its certificate": {plant{send: func(_ *Sim, _, _ *Sled, m quorum.Message) quorum.Message {
		if k, ok := m.Kind.(quorum.CommitProof); ok && k.Config == nil {
			m.Kind = quorum.NoSuchShare{Epoch: 1}
		}
		return m
	}}, []Invariant{P5}},
	"sends under another rack": {plant{send: func(_ *Sim, _, _ *Sled, m quorum.Message) quorum.Message {
		m.RackID[0] ^= 1
		return m
	}}, []Invariant{P8, P9, P19, P20, P21, P22, X4, P5}},
	"gives the secret of another epoch": {plant{effects: func(_ *Sim, _ *Sled, fx *quorum.Effects) {
		for i, r := range fx.Replies {
			if r.ID != 0 && r.Err == nil && r.Epoch > 1 {
				fx.Replies[i].Epoch--
			}
		}
	}}, []Invariant{X6}},
	"answers twice": {plant{effects: func(_ *Sim, _ *Sled, fx *quorum.Effects) {
		for _, r := range fx.Replies {
			if r.ID != 0 && r.Err != nil {
				fx.Replies = append(fx.Replies, r)
			}
		}
	}}, []Invariant{P17}},
	"hands over an older configuration": {plant{input: func(s *Sim, _ *Sled, in quorum.Input) quorum.Input {
		if k, ok := in.(quorum.PrepareAndCommit); ok && len(s.oracle.decisions) > 1 && k.Config.Epoch == s.oracle.last().epoch {
			d := s.oracle.decisions[0]
			return quorum.PrepareAndCommit{Config: d.config, Certificate: d.cert}
		}
		return in
	}}, []Invariant{P3, P9, P19, P22, P6}},
	"decides at the threshold": {plant{ready: func(_ *Sim, ch *rack.Change) bool {
		return ch.Phase == rack.Preparing && len(ch.Acked) >= int(ch.Threshold)
	}}, []Invariant{C2, X5}},
	"commits before the decision is recorded": {plant{ready: func(s *Sim, ch *rack.Change) bool {
		if ch.Ready() {
			s.commit(&rack.Change{Epoch: ch.Epoch, Config: s.Find(ch.Coordinator).Disk.Configs[ch.Epoch]}, s.Find(ch.Coordinator))
		}
		return ch.Ready()
	}}, []Invariant{C3}},
	"uses an epoch twice": {plant{journal: func(s *Sim, st *rack.State, what string) {
		if what == "begin" && st.Change.LastCommitted != 0 && s.oracle.asked[st.Change.Epoch-1] != nil && st.Change.Epoch-1 > st.Change.LastCommitted {
			st.Highest--
			st.Change.Epoch = st.Highest
		}
	}}, []Invariant{C1, P8}},
	"builds on an older commit": {plant{journal: func(_ *Sim, st *rack.State, what string) {
		if what == "begin" && st.Change.LastCommitted > 1 {
			st.Change.LastCommitted--
		}
	}}, []Invariant{C2, P8}},
	"forgets who has committed": {plant{journal: func(_ *Sim, st *rack.State, what string) {
		if what == "committed" {
			st.Change.Committed = nil
		}
	}}, []Invariant{P19, P20, P21}},
}

// TestPlanted: each bug is found soon, and by a rule that names it.
func TestPlanted(t *testing.T) {
	t.Parallel()
	for name, p := range planted {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			seeds := rand.New(rand.NewPCG(7, 7))
			for run := range 1_000_000 / actionsPerRun {
				seed := seeds.Uint64()
				s := NewSim(seed, Options{}, NewTable())
				s.plant = p.plant
				err := s.Run(Generate(seed, actionsPerRun))
				if err == nil {
					continue
				}
				if !slices.Contains(p.rules, s.rule) {
					t.Errorf("found by %v, want one of %v", err, p.rules)
				}
				t.Logf("found after %d actions: %v", run*actionsPerRun+s.played, err)
				return
			}
			t.Error("not found in a million actions")
		})
	}
}
