package quorumtest

import (
	"math/rand/v2"
	"slices"

	"github.com/sledvault/sledvault/vault/gfss"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/keys"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/secret"
)

// In a quarter of the runs the liar is a rogue: when the operator grants it an epoch, what it hands out fits the grant and
// its digests, and is worthless all the same.

// fraud is what a rogue made of an epoch that was granted to it.
type fraud struct {
	config *quorum.Configuration   // what it shows the controller
	given  []*quorum.Configuration // what it gives to each member
	shares []gfss.Share            // likewise
}

// The ways to cheat.
const (
	mixedShares = iota // half of the shares lie on another polynomial
	brokenOld          // the older secrets are noise
	twoConfigs         // half of the members get another configuration
	lackingOld         // the oldest secret is not carried over
	waysToCheat
)

// cheat replaces what a rogue sends as the coordinator of an epoch, and its own share of it.
func (s *Sim) cheat(from, to *Sled, m quorum.Message) quorum.Message {
	switch k := m.Kind.(type) {
	case quorum.Prepare:
		if from == s.liar && k.Config.Coordinator == from.ID {
			return s.cheatingPrepare(to, m, k)
		}
	case quorum.ShareReply:
		if f := s.frauds[k.Epoch]; f != nil && f.config.Coordinator == from.ID {
			i, _ := f.config.Index(from.ID)
			k.Share.Destroy()
			m.Kind = quorum.ShareReply{Epoch: k.Epoch, Share: clone(f.shares[i])}
		}
	}
	return m
}

func (s *Sim) cheatingPrepare(to *Sled, m quorum.Message, k quorum.Prepare) quorum.Message {
	f := s.frauds[k.Config.Epoch]
	if f == nil {
		f = s.defraud(k.Config)
		s.frauds[k.Config.Epoch] = f
	}
	i, _ := k.Config.Index(to.ID)
	s.fault(FaultRogue)
	if f.given[i] != f.config {
		s.hit[FaultRogue] |= bit(to)
	}
	k.Share.Destroy()
	k.Config, k.Share = f.given[i], clone(f.shares[i])
	m.Kind = k
	return m
}

func clone(sh gfss.Share) gfss.Share {
	out, err := sh.Clone(secret.Heap{})
	if err != nil {
		panic(err) // the heap gives or the process ends
	}
	return out
}

// defraud makes a fraud out of an honest configuration.
func (s *Sim) defraud(c *quorum.Configuration) *fraud {
	var ids []ident.Baseboard
	for _, m := range c.Members {
		ids = append(ids, m.ID)
	}
	old := keys.OldSecrets{}
	if c.EncryptedSecrets != nil {
		for _, e := range slices.Backward(quorum.Epochs(s.oracle.truth)) {
			if sec := s.oracle.truth[e]; e < c.Epoch && sec.Len() == keys.Size && len(old) < c.OldSecrets() {
				old[e] = sec
			}
		}
	}
	seed := s.seed + uint64(c.Epoch)
	way := int(seed>>9) % waysToCheat
	if es := quorum.Epochs(old); len(es) > 1 && (way == lackingOld || seed>>11%2 == 0) { // seldom possible
		way = lackingOld
		delete(old, es[0])
	}
	a, shares := Forge(seed, c.Coordinator, c.Epoch, c.Threshold, old, ids...)
	b, others := Forge(seed+1, c.Coordinator, c.Epoch, c.Threshold, old, ids...)
	f := &fraud{config: a, given: make([]*quorum.Configuration, len(ids)), shares: shares}
	for i := range f.given {
		f.given[i] = a
	}
	switch {
	case way == lackingOld && len(old) > 0:
	case way == twoConfigs:
		for i := 1; i < len(ids); i += 2 {
			f.given[i], f.shares[i] = b, others[i]
		}
	case way == brokenOld && a.EncryptedSecrets != nil:
		_, _ = randReader{rand.NewPCG(seed, 5)}.Read(a.EncryptedSecrets.Data)
	default:
		for i := 1; i < len(ids); i += 2 {
			a.Members[i], f.shares[i] = b.Members[i], others[i]
		}
	}
	s.hit[FaultRogue] |= bit(s.liar)
	s.oracle.first[c.Epoch] = a
	return f
}
