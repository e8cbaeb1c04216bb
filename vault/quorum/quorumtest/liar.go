package quorumtest

import (
	"math/rand/v2"

	"github.com/sledvault/sledvault/vault/gfss"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/keys"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/rack"
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
	name := inventions[int(a.B)%len(inventions)]
	if ch := s.ctl.disk.Change; ch != nil && name == "false ack" {
		target = s.Find(ch.Coordinator)
	} else if ch != nil && s.liar != nil && ch.Coordinator == s.liar.ID && a.B>>12%4 == 0 {
		name = []string{"stretched grant", "second prepare"}[a.B>>14%2] // seldom possible
	}
	if s.liar == nil || target == s.liar || !s.Connected(s.liar, target) {
		return
	}
	messages := s.invent(name, target, a)
	if len(messages) == 0 {
		return
	}
	s.fault(FaultLiar)
	s.table.lies["invented "+name]++
	for _, k := range messages {
		rack := RackID()
		if a.B>>8%16 == 15 {
			rack[0] ^= 1
			if k != nil {
				s.table.lies[string(quorum.KindOf(k))+" rack"]++
			}
		}
		if _, ok := k.(quorum.ExpungedNotice); ok {
			s.table.lies["expunged epoch"]++
		}
		s.push(pair{s.liar.Index, target.Index}, quorum.Message{RackID: rack, Kind: k})
	}
}

// forged is a configuration that the liar made itself, of a later epoch or of one that was asked of another sled.
func (s *Sim) forged(target *Sled, a Action) (*quorum.Configuration, gfss.Share) {
	var ids []ident.Baseboard
	for _, sled := range s.Sleds {
		ids = append(ids, sled.ID)
	}
	old := oldFor(target)
	e := s.ctl.disk.Highest + 1000
	latest, _ := target.Disk.LatestCommitted()
	if ch := s.ctl.disk.Change; ch != nil && a.C%4 == 0 && ch.Coordinator != s.liar.ID && ch.Epoch > latest {
		e = ch.Epoch
	}
	c, shares := Forge(uint64(a.C), s.liar.ID, e, 2, old, ids...)
	return c, shares[target.Index]
}

// oldFor invents the older secrets that a sled demands.
func oldFor(target *Sled) keys.OldSecrets {
	if len(target.Disk.Commits) == 0 && target.Disk.LRTQ == nil {
		return nil
	}
	old := keys.OldSecrets{}
	for e := range target.Disk.Commits {
		old[e] = noSecret()
	}
	if target.Disk.LRTQ != nil {
		old[quorum.LRTQEpoch] = noSecret()
	}
	return old
}

func noSecret() secret.RackSecret {
	sec, _ := secret.New[secret.RackSecretKind](secret.Heap{}, keys.Size, func([]byte) error { return nil })
	return sec
}

// anyOld invents older secrets for a change, if it must carry some.
func (s *Sim) anyOld(target *Sled, ch *rack.Change) keys.OldSecrets {
	old := oldFor(target)
	if e := max(ch.LastCommitted, 1); old == nil && (ch.LastCommitted != 0 || ch.Kind == rack.Upgrade) {
		old = keys.OldSecrets{e: noSecret()}
	}
	for e := range old {
		if e >= ch.Epoch {
			delete(old, e)
		}
	}
	return old
}

// someDecision picks a decision, if there is one.
func (s *Sim) someDecision(v uint32) *decision {
	if n := len(s.oracle.decisions); n > 0 {
		return s.oracle.decisions[int(v>>4)%n]
	}
	return nil
}

// inventions are what the liar makes up.
var inventions = []string{ //nolint:gochecknoglobals // a table that nobody changes
	"prepare", "granted prepare", "old grant", "foreign prepare", "commit", "borrowed certificate", "expunged", "useless proof", "forged proof",
	"share", "share", "share", "ack", "false ack", "false ack", "question", "nothing", "older scheme", "true news", "wrong secrets", "impossible prepare", "stretched grant", "second prepare",
}

func (s *Sim) invent(name string, target *Sled, a Action) []quorum.MessageKind {
	d := s.someDecision(a.C)
	switch name { // what needs no configuration
	case "expunged":
		return []quorum.MessageKind{quorum.ExpungedNotice{Epoch: s.someEpoch(a.C)}}
	case "ack":
		return []quorum.MessageKind{quorum.PrepareAck{Epoch: s.ctl.disk.Highest + 1000}}
	case "false ack":
		return s.falseAck(target)
	case "question":
		return []quorum.MessageKind{quorum.GetShare{Epoch: ident.Epoch(a.C % 8)}}
	case "nothing":
		return []quorum.MessageKind{quorum.GrantNotice{}, quorum.CommitProof{}, quorum.Prepare{}, quorum.CommitAdvance{}, quorum.NoSuchShare{Epoch: 1}, nil}
	case "useless proof": // the target is still a member, or it is over, or it is true
		for _, o := range s.oracle.decisions {
			if a.C%2 == 0 && !o.config.Has(target.ID) {
				d = o // it joined later
			}
		}
		if d != nil {
			return []quorum.MessageKind{quorum.CommitProof{Config: d.config, Certificate: d.cert}, quorum.ExpungedNotice{Epoch: d.epoch}}
		}
		return nil
	case "true news":
		if d != nil {
			return []quorum.MessageKind{quorum.CommitProof{Certificate: d.cert}, quorum.CommitAdvance{Config: d.config}}
		}
		return nil
	}
	c, share := s.forged(target, a)
	return s.inventWith(name, target, d, c, share)
}

func (s *Sim) inventWith(name string, target *Sled, d *decision, c *quorum.Configuration, share gfss.Share) []quorum.MessageKind {
	badCert := &quorum.Certificate{RackID: c.RackID, Epoch: c.Epoch, ConfigDigest: ConfigDigest(c)}
	prepare := quorum.Prepare{Config: c, Share: share}
	switch name {
	case "prepare", "impossible prepare":
		s.fault(FaultUngranted)
		if name != "prepare" {
			none := *c
			none.Threshold = ident.Threshold(len(c.Members))
			prepare.Config = &none
		}
		return []quorum.MessageKind{prepare}
	case "granted prepare", "wrong secrets":
		s.fault(FaultUngranted)
		g := grantFor(target, c)
		if name == "wrong secrets" {
			lacking := *c
			lacking.EncryptedSecrets, g.LastCommitted = nil, 0
			prepare.Config = &lacking
		}
		return []quorum.MessageKind{quorum.GrantNotice{Grant: g}, prepare}
	case "stretched grant": // a true one for this sled and epoch, and other members
		if ch := s.ctl.disk.Change; ch != nil && ch.Phase == rack.Preparing && ch.Coordinator == s.liar.ID && len(ch.Members) != len(s.Sleds) {
			wide, shares := Forge(uint64(ch.Epoch), s.liar.ID, ch.Epoch, ch.Threshold, s.anyOld(target, ch), s.ids()...)
			return []quorum.MessageKind{quorum.GrantNotice{Grant: s.grant(ch)}, quorum.Prepare{Config: wide, Share: shares[target.Index]}}
		}
	case "second prepare": // another configuration than the target has stored of the liar's own epoch
		if ch := s.ctl.disk.Change; ch != nil && ch.Coordinator == s.liar.ID && target.Disk.Configs[ch.Epoch] != nil && contains(ch.Members, target.ID) {
			other, shares := Forge(uint64(ch.Epoch)+7, s.liar.ID, ch.Epoch, ch.Threshold, s.anyOld(target, ch), ch.Members...)
			i, _ := other.Index(target.ID)
			return []quorum.MessageKind{quorum.GrantNotice{Grant: s.grant(ch)}, quorum.Prepare{Config: other, Share: shares[i]}}
		}
	case "old grant": // a true one, for something else
		if ch := s.ctl.disk.Change; ch != nil {
			s.fault(FaultUngranted)
			return []quorum.MessageKind{quorum.GrantNotice{Grant: s.grant(ch)}, prepare}
		}
	case "foreign prepare": // the configuration of someone else, with a share of our own
		if d != nil && d.config.Coordinator != s.liar.ID {
			return []quorum.MessageKind{quorum.Prepare{Config: d.config, Share: share}}
		}
	case "commit":
		return []quorum.MessageKind{quorum.CommitProof{Certificate: badCert}, quorum.CommitAdvance{Config: c}}
	case "borrowed certificate":
		if d != nil {
			return []quorum.MessageKind{quorum.CommitProof{Certificate: d.cert}, quorum.CommitAdvance{Config: c}}
		}
	case "forged proof":
		lacking := *c
		lacking.Members = append(append([]quorum.Member(nil), c.Members[:target.Index]...), c.Members[target.Index+1:]...)
		return []quorum.MessageKind{quorum.CommitProof{Config: &lacking, Certificate: badCert}, quorum.ExpungedNotice{Epoch: c.Epoch}}
	case "share":
		if d != nil {
			return []quorum.MessageKind{quorum.ShareReply{Epoch: d.epoch, Share: share}}
		}
	case "older scheme":
		return []quorum.MessageKind{quorum.GetLRTQShare{}, quorum.LRTQShare{Share: share}}
	}
	return nil
}

// grantFor is a grant that fits a forged configuration and that nobody signed.
func grantFor(target *Sled, c *quorum.Configuration) *quorum.Grant {
	g := &quorum.Grant{RackID: c.RackID, Epoch: c.Epoch, Coordinator: c.Coordinator, Threshold: c.Threshold}
	for _, m := range c.Members {
		g.Members = append(g.Members, m.ID)
	}
	if e, ok := target.Disk.LatestCommitted(); ok {
		g.LastCommitted = e
	}
	return g
}

// falseAck acknowledges what the target coordinates, where the budget allows a member to be worth nothing.
func (s *Sim) falseAck(target *Sled) []quorum.MessageKind {
	if !target.Up() {
		return nil
	}
	e := target.Node.Roles().Coordinating
	c := target.Disk.Configs[e]
	if c == nil || !c.Has(s.liar.ID) || s.liar.Disk.Prepared(e) || !s.spare(s.liar, e) {
		return nil
	}
	s.fault(FaultFalseAck)
	s.hit[FaultFalseAck] |= bit(s.liar)
	s.oracle.lost[e] |= bit(s.liar)
	return []quorum.MessageKind{quorum.PrepareAck{Epoch: e}}
}
