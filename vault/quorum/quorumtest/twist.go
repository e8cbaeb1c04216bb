package quorumtest

import (
	"maps"
	"slices"

	"github.com/sledvault/sledvault/vault/gfss"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/keys"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/secret"
)

// twist says how the liar alters the next message of each kind that it sends.
type twist map[quorum.Kind]Action

func (s *Sim) playTwist(a Action) {
	if s.liar != nil {
		s.twist[twistKinds[int(a.A)%len(twistKinds)]] = a
	}
}

// fields lists what can be altered in each kind of message. "rack" is the envelope's.
var fields = map[quorum.Kind][]string{ //nolint:gochecknoglobals // a table that nobody changes
	quorum.KindPrepare: {
		"rack", "config rack", "epoch", "coordinator", "threshold", "member out", "member twice", "own digest", "no secrets",
		"short secrets", "share number", "share", "no config",
	},
	quorum.KindPrepareAck:    {"rack", "epoch"},
	quorum.KindGetShare:      {"rack", "epoch"},
	quorum.KindShare:         {"rack", "epoch", "share number", "share", "short share"},
	quorum.KindExpunged:      {"rack", "epoch"},
	quorum.KindCommitAdvance: {"rack", "config rack", "epoch", "coordinator", "threshold", "member out", "member twice", "own digest", "no secrets", "short secrets", "salt", "no config"},
	quorum.KindGrant:         {"rack", "grant rack", "epoch", "coordinator", "threshold", "member out", "last committed", "upgrade", "signature", "no grant"},
	quorum.KindCommitProof:   {"rack", "certificate rack", "epoch", "digest", "signature", "no certificate"},
	quorum.KindNoSuchShare:   {"rack", "epoch"},
	quorum.KindGetLRTQShare:  {"rack"},
	quorum.KindLRTQShare:     {"rack", "share number", "share", "short share"},
}

var twistKinds = slices.Sorted(maps.Keys(fields)) //nolint:gochecknoglobals // made once, of fields

// allLies names everything that the liar may do.
func allLies() (out []string) {
	for k, list := range fields {
		for _, f := range list {
			out = append(out, string(k)+" "+f)
		}
	}
	for _, name := range inventions {
		out = append(out, "invented "+name)
	}
	slices.Sort(out)
	return out
}

// alter changes one field of the liar's message.
func (s *Sim) alter(to *Sled, m quorum.Message) quorum.Message {
	kind := quorum.KindOf(m.Kind)
	a, armed := s.twist[kind]
	if !armed {
		return m
	}
	delete(s.twist, kind)
	f := fields[kind][int(a.B)%len(fields[kind])]
	bad, ok := s.altered(to, m, f, a.C)
	if !ok {
		return m
	}
	s.fault(FaultLiar)
	s.table.lies[string(kind)+" "+f]++
	return bad
}

func (s *Sim) altered(to *Sled, m quorum.Message, f string, v uint32) (quorum.Message, bool) {
	if f == "rack" {
		m.RackID[int(v)%16] ^= 1 << (v >> 8 % 8)
		return m, true
	}
	e := s.otherEpoch(v)
	switch k := m.Kind.(type) {
	case quorum.Prepare:
		return alterPrepare(to, m, k, f, v)
	case quorum.PrepareAck:
		m.Kind = quorum.PrepareAck{Epoch: e}
		high := s.ctl.disk.Highest // what is under way, or comes next, would be a false acknowledgement; see falseAck
		return m, s.liar.Disk.Prepared(e) || e < high || e > high+1000
	case quorum.GetShare:
		m.Kind = quorum.GetShare{Epoch: e}
	case quorum.ShareReply:
		if f == "epoch" {
			k.Epoch = e
		} else {
			k.Share = alterShare(k.Share, f, v)
		}
		m.Kind = k
	case quorum.LRTQShare:
		m.Kind = quorum.LRTQShare{Share: alterShare(k.Share, f, v)}
	case quorum.ExpungedNotice:
		m.Kind = quorum.ExpungedNotice{Epoch: e}
	case quorum.CommitAdvance:
		c, ok := alterConfig(to, k.Config, f, e)
		m.Kind = quorum.CommitAdvance{Config: c}
		return m, ok
	case quorum.GrantNotice:
		m.Kind = alterGrant(k, f, e)
	case quorum.CommitProof:
		m.Kind = alterProof(k, f, e)
	case quorum.NoSuchShare:
		m.Kind = quorum.NoSuchShare{Epoch: e}
	default:
		return m, false
	}
	return m, true
}

// otherEpoch is mostly one that means something.
func (s *Sim) otherEpoch(v uint32) ident.Epoch {
	if v%8 != 0 {
		return s.someEpoch(v >> 3)
	}
	return ident.Epoch(v) << 13
}

func alterPrepare(to *Sled, m quorum.Message, k quorum.Prepare, f string, v uint32) (quorum.Message, bool) {
	ok := true
	switch f {
	case "share number", "share":
		k.Share = alterShare(k.Share, f, v)
	default:
		k.Config, ok = alterConfig(to, k.Config, f, k.Config.Epoch+1)
	}
	m.Kind = k
	return m, ok
}

// alterShare replaces a share by one of another number, with other bytes, or with fewer.
func alterShare(sh gfss.Share, f string, v uint32) gfss.Share {
	n := sh.Y.Len()
	if f == "short share" {
		n--
	}
	x := sh.X
	if f == "share number" {
		x = byte(v >> 8)
		if x == sh.X {
			x++
		}
	}
	defer sh.Destroy()
	y, _ := secret.New[secret.ShareKind](secret.Heap{}, n, func(b []byte) error {
		_ = sh.Y.Use(func(have []byte) error { copy(b, have); return nil })
		if f == "share" {
			b[int(v)%n] ^= byte(v>>8) | 1
		}
		return nil
	})
	return gfss.Share{X: x, Y: y}
}

// alterConfig changes what the receiver can find out: other members' digests and the older secrets' bytes are covered by
// nothing before the commit.
func alterConfig(to *Sled, c *quorum.Configuration, f string, e ident.Epoch) (*quorum.Configuration, bool) {
	out := *c
	out.Members = slices.Clone(c.Members)
	switch f {
	case "no config":
		return nil, true
	case "config rack":
		out.RackID[3] ^= 1
	case "epoch":
		out.Epoch = e
		return &out, e != c.Epoch
	case "coordinator":
		for _, m := range c.Members {
			if m.ID != c.Coordinator {
				out.Coordinator = m.ID
			}
		}
	case "threshold":
		if out.Threshold++; int(out.Threshold) == len(out.Members) {
			out.Threshold -= 2
		}
	case "member out":
		out.Members = slices.DeleteFunc(out.Members, func(m quorum.Member) bool { return m.ID == to.ID })
	case "member twice":
		out.Members[0] = out.Members[1]
	case "own digest":
		i, ok := out.Index(to.ID)
		if !ok {
			return c, false
		}
		out.Members[i].ShareDigest[0] ^= 1
	case "no secrets", "short secrets", "salt":
		if c.EncryptedSecrets == nil {
			return c, false
		}
		if out.EncryptedSecrets = nil; f != "no secrets" {
			x := &keys.EncryptedSecrets{Salt: c.EncryptedSecrets.Salt, Data: c.EncryptedSecrets.Data}
			if f == "salt" {
				x.Salt[0] ^= 1
			} else {
				x.Data = x.Data[:len(x.Data)-1]
			}
			out.EncryptedSecrets = x
		}
	}
	return &out, true
}

func alterGrant(k quorum.GrantNotice, f string, e ident.Epoch) quorum.GrantNotice {
	if f == "no grant" {
		return quorum.GrantNotice{}
	}
	g := *k.Grant
	switch f {
	case "grant rack":
		g.RackID[5] ^= 1
	case "epoch":
		g.Epoch = e
	case "coordinator":
		g.Coordinator = g.Members[0]
	case "threshold":
		g.Threshold++
	case "member out":
		g.Members = g.Members[1:]
	case "last committed":
		g.LastCommitted++
	case "upgrade":
		g.LRTQUpgrade = true
	case "signature":
		g.Signature[7] ^= 1
	}
	return quorum.GrantNotice{Grant: &g}
}

func alterProof(k quorum.CommitProof, f string, e ident.Epoch) quorum.CommitProof {
	if f == "no certificate" {
		return quorum.CommitProof{Config: k.Config}
	}
	c := *k.Certificate
	switch f {
	case "certificate rack":
		c.RackID[5] ^= 1
	case "epoch":
		c.Epoch = e
	case "digest":
		c.ConfigDigest[9] ^= 1
	case "signature":
		c.Signature[7] ^= 1
	}
	k.Certificate = &c
	return k
}
