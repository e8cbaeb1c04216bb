package quorumtest

import (
	"slices"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/lrtq"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/secret"
)

// BornLRTQ gives sleds what the older scheme would have left on their disks, and restarts them without
// connections. It returns the secret of that scheme. The spare shares, which learners would get, are in nobody's package but their digests are.
func (c *Cluster) BornLRTQ(k int, members ...*Sled) (secret.RackSecret, error) {
	rand := c.Rand()
	sec, err := lrtq.NewSecret(c.Alloc, rand)
	if err != nil {
		return sec, err
	}
	shares, err := lrtq.Split(c.Alloc, rand, sec, lrtq.TotalShares, k)
	if err != nil {
		return sec, err
	}
	var digests [][32]byte
	for _, s := range shares {
		d, err := s.Digest()
		if err != nil {
			return sec, err
		}
		digests = append(digests, d)
	}
	slices.SortFunc(digests, func(a, b [32]byte) int { return slices.Compare(a[:], b[:]) })
	for i, s := range members {
		s.Disk.LRTQ = &lrtq.Package{RackID: c.Auth.Rack, Threshold: ident.Threshold(k), Share: shares[i], Digests: digests}
		c.Crash(s)
		if err := c.Start(s); err != nil {
			return sec, err
		}
	}
	for _, s := range shares[len(members):] {
		s.Destroy()
	}
	return sec, nil
}

// Upgrade is a granted request to upgrade from the older scheme.
func (c *Cluster) Upgrade(coordinator *Sled, e ident.Epoch, k ident.Threshold, members ...*Sled) quorum.UpgradeLRTQ {
	r := c.Request(coordinator, e, 0, k, members...)
	r.Grant.LRTQUpgrade = true
	c.Auth.SignGrant(r.Grant)
	return quorum.UpgradeLRTQ{RackID: r.RackID, Epoch: e, Members: r.Members, Threshold: k, Grant: r.Grant}
}

// bornLRTQ makes the rack one of the older scheme.
func (s *Sim) bornLRTQ(members int) {
	k := members/2 + 1
	sec, err := s.BornLRTQ(k, s.Sleds[:members]...)
	if err != nil {
		panic(err) // sizes and randomness are ours
	}
	s.lrtq = k
	s.oracle.truth[quorum.LRTQEpoch] = sec
	s.table.met["racks of the older scheme"]++
}

// holders are the sleds that have a package of the older scheme.
func (s *Sim) holders() (out []*Sled) {
	for _, sled := range s.Sleds {
		if sled.Disk.LRTQ != nil {
			out = append(out, sled)
		}
	}
	return out
}

// beginFirst begins the first configuration: an upgrade where there is an older scheme. That one takes in who holds a
// package, and may take in others.
func (s *Sim) beginFirst(a Action, members []ident.Baseboard) error {
	st := s.ctl.st
	st.Rack = RackID()
	if s.lrtq == 0 {
		return st.BeginInit(members, threshold(len(members), a))
	}
	var can []*Sled
	for _, h := range s.holders() {
		if !slices.Contains(members, h.ID) {
			members = append(members, h.ID)
		}
		if h.Up() {
			can = append(can, h)
		}
	}
	if len(can) == 0 {
		can = s.holders()
	}
	return st.BeginUpgrade(members, threshold(len(members), a), can[int(a.C>>2)%len(can)].ID)
}
