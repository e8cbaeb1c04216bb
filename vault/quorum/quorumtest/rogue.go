package quorumtest

import (
	"math/rand/v2"

	"github.com/sledvault/sledvault/vault/gfss"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/keys"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/secret"
)

// In an eighth of the runs the liar is a rogue: when the operator grants it an epoch, what it hands out fits the grant and
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
	waysToCheat
)

// cheat replaces the liar's prepare.
func (s *Sim) cheat(to *Sled, m quorum.Message) quorum.Message {
	k, ok := m.Kind.(quorum.Prepare)
	if !ok || !s.rogue || k.Config.Coordinator != s.liar.ID {
		return m
	}
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
		for e, sec := range s.oracle.truth {
			if e < c.Epoch && sec.Len() == keys.Size && len(old) < c.OldSecrets() {
				old[e] = sec
			}
		}
	}
	seed := s.seed + uint64(c.Epoch)
	a, shares := Forge(seed, c.Coordinator, c.Epoch, c.Threshold, old, ids...)
	b, others := Forge(seed+1, c.Coordinator, c.Epoch, c.Threshold, old, ids...)
	f := &fraud{config: a, given: make([]*quorum.Configuration, len(ids)), shares: shares}
	for i := range f.given {
		f.given[i] = a
	}
	way := int(seed>>9) % waysToCheat
	switch {
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
