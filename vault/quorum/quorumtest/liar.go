package quorumtest

import (
	"math/rand/v2"

	"github.com/sledvault/sledvault/vault/gfss"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/keys"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/secret"
)

// Forge makes a configuration and its shares as a rogue coordinator would: all digests fit, but nobody granted it.
// old are what it puts in for the older rack secrets; none makes it look like a first configuration.
func Forge(seed uint64, coordinator ident.Baseboard, e ident.Epoch, k ident.Threshold, old keys.OldSecrets, members ...ident.Baseboard) (*quorum.Configuration, []gfss.Share) {
	r := randReader{rand.NewPCG(seed, 3)}
	must := func(err error) {
		if err != nil {
			panic(err) // a test asked for something that cannot be
		}
	}
	sec, err := keys.NewRackSecret(secret.Heap{}, r)
	must(err)
	members = ident.SortBaseboards(members)
	shares, err := gfss.Split(secret.Heap{}, r, sec, len(members), int(k))
	must(err)
	c := &quorum.Configuration{RackID: RackID(), Epoch: e, Coordinator: coordinator, Threshold: k}
	for i, m := range members {
		d, err := shares[i].Digest()
		must(err)
		c.Members = append(c.Members, quorum.Member{ID: m, ShareDigest: d})
	}
	if len(old) > 0 {
		enc, err := keys.Encrypt(r, sec, c.RackID, e, old)
		must(err)
		c.EncryptedSecrets = &enc
	}
	return c, shares
}

// lie makes the liar send something that an honest sled would not, over its own connections.
func (s *Sim) lie(a Action) {
	target := s.sled(a.A)
	if target == s.liar || !s.Connected(s.liar, target) {
		return
	}
	s.fault(FaultLiar)
	for _, k := range s.invent(target, a) {
		rack := RackID()
		if a.B%16 == 15 {
			rack[0] ^= 1
		}
		s.push(pair{s.liar.Index, target.Index}, quorum.Message{RackID: rack, Kind: k})
	}
}

// forged is a configuration of a later epoch that the liar made itself.
func (s *Sim) forged(target *Sled, a Action) (*quorum.Configuration, gfss.Share) {
	var ids []ident.Baseboard
	for _, sled := range s.Sleds {
		ids = append(ids, sled.ID)
	}
	var old keys.OldSecrets
	if len(target.Disk.Commits) > 0 {
		old = keys.OldSecrets{}
		for e := range target.Disk.Commits {
			sec, _ := secret.New[secret.RackSecretKind](secret.Heap{}, keys.Size, func([]byte) error { return nil })
			old[e] = sec
		}
	}
	c, shares := Forge(uint64(a.C), s.liar.ID, s.ctl.next+1000, 2, old, ids...)
	return c, shares[target.Index]
}

// real picks a configuration that was committed, if there is one.
func (s *Sim) real(v uint32) *change {
	if n := len(s.ctl.committed); n > 0 {
		return s.ctl.committed[int(v)%n]
	}
	return nil
}

func (s *Sim) invent(target *Sled, a Action) []quorum.MessageKind {
	c, share := s.forged(target, a)
	grant := &quorum.Grant{RackID: c.RackID, Epoch: c.Epoch, Coordinator: c.Coordinator, Threshold: c.Threshold}
	for _, m := range c.Members {
		grant.Members = append(grant.Members, m.ID)
	}
	if e, ok := target.Disk.LatestCommitted(); ok {
		grant.LastCommitted = e
	}
	badCert := &quorum.Certificate{RackID: c.RackID, Epoch: c.Epoch, ConfigDigest: ConfigDigest(c)}
	real := s.real(a.C)
	switch a.B % 14 {
	case 0:
		return []quorum.MessageKind{quorum.Prepare{Config: c, Share: share}}
	case 1:
		return []quorum.MessageKind{quorum.GrantNotice{Grant: grant}, quorum.Prepare{Config: c, Share: share}}
	case 2: // the configuration of someone else, with a share of our own
		if real != nil {
			return []quorum.MessageKind{quorum.GrantNotice{Grant: real.request.Grant}, quorum.Prepare{Config: real.config, Share: share}}
		}
	case 3:
		return []quorum.MessageKind{quorum.CommitProof{Certificate: badCert}, quorum.CommitAdvance{Config: c}}
	case 4: // the certificate of another configuration
		if real != nil {
			return []quorum.MessageKind{quorum.CommitProof{Certificate: real.certificate}, quorum.CommitAdvance{Config: c}}
		}
	case 5:
		return []quorum.MessageKind{quorum.ExpungedNotice{Epoch: c.Epoch}}
	case 6: // proves nothing: the target is still a member, or it is over, or it is true
		if real != nil {
			return []quorum.MessageKind{quorum.CommitProof{Config: real.config, Certificate: real.certificate}, quorum.ExpungedNotice{Epoch: real.epoch}}
		}
	case 7:
		lacking := *c
		lacking.Members = append(append([]quorum.Member(nil), c.Members[:target.Index]...), c.Members[target.Index+1:]...)
		return []quorum.MessageKind{quorum.CommitProof{Config: &lacking, Certificate: badCert}, quorum.ExpungedNotice{Epoch: c.Epoch}}
	case 8:
		if real != nil {
			return []quorum.MessageKind{quorum.ShareReply{Epoch: real.epoch, Share: share}}
		}
	case 9:
		return []quorum.MessageKind{quorum.PrepareAck{Epoch: c.Epoch}}
	case 10:
		return []quorum.MessageKind{quorum.GetShare{Epoch: ident.Epoch(a.C % 8)}}
	case 11:
		return []quorum.MessageKind{quorum.GrantNotice{}, quorum.CommitProof{}, quorum.Prepare{}, quorum.CommitAdvance{}, quorum.NoSuchShare{Epoch: 1}, nil}
	case 12:
		return []quorum.MessageKind{quorum.GetLRTQShare{}, quorum.LRTQShare{Share: share}}
	case 13: // true news from the wrong peer
		if real != nil {
			return []quorum.MessageKind{quorum.CommitProof{Certificate: real.certificate}, quorum.CommitAdvance{Config: real.config}}
		}
	}
	return nil
}
