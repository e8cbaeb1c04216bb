package quorum_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"

	"github.com/sledvault/sledvault/vault/gfss"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/keys"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/quorum/quorumtest"
	"github.com/sledvault/sledvault/vault/secret"
)

// stage plays the commands that set a scene, or do to the network and to disks what no sled can.
func (s *story) stage(t *testing.T, d *datadriven.TestData) {
	t.Helper()
	switch d.Cmd {
	case "rack":
		s.rack(t, d)
	case "authority":
		s.authority(t, d)
	case "duplicate":
		s.Duplicate(s.at(t, d, "from"), s.at(t, d, "to"))
	case "lose":
		m, _ := s.Lose(s.at(t, d, "from"), s.at(t, d, "to"))
		s.say("lost: %s", describe(s.at(t, d, "from"), s.at(t, d, "to"), m.Kind))
	case "flood":
		s.flood(t, d)
	case "peer-up":
		s.do(s.at(t, d, "at"), quorum.PeerUp{Peer: s.at(t, d, "peer").ID})
	case "damage":
		s.damage(t, d)
	default:
		d.Fatalf(t, "unknown command %q", d.Cmd)
	}
}

// rack makes and commits a configuration everywhere without telling how.
func (s *story) rack(t *testing.T, d *datadriven.TestData) {
	t.Helper()
	seen := s.Seen
	s.Seen = nil
	defer func() { s.Seen = seen }()
	e, members := s.epoch(d, "epoch"), s.several(t, d, "members")
	at := members[0]
	if s.arg(d, "at", "") != "" {
		at = s.at(t, d, "at")
	}
	ok(t, s.Step(at, s.Request(at, e, s.epoch(d, "last"), ident.Threshold(s.epoch(d, "threshold")), members...)))
	settle(t, s.Cluster)
	commit(t, s.Cluster, e, members...)
	var names []string
	for _, m := range members {
		names = append(names, m.ID.Serial)
	}
	s.say("epoch %d is committed at %s", e, strings.Join(names, ","))
}

// authority changes the membership key, or the rack it belongs to, at the named sleds.
func (s *story) authority(t *testing.T, d *datadriven.TestData) {
	t.Helper()
	if k := s.epoch(d, "key"); k != 0 {
		s.Auth.Key = uint64(k)
	}
	s.Auth.Rack = s.rackID(d)
	for _, at := range s.several(t, d, "at") {
		s.do(at, quorum.SetAuthority{Authority: s.Auth})
	}
}

// flood lets a sled say Expunged of many epochs, without telling each.
func (s *story) flood(t *testing.T, d *datadriven.TestData) {
	t.Helper()
	seen := s.Seen
	s.Seen = nil
	defer func() { s.Seen = seen }()
	from, to := s.at(t, d, "from"), s.at(t, d, "to")
	for e := s.epoch(d, "first"); e <= s.epoch(d, "last"); e++ {
		s.do(to, quorum.PeerMessage{From: from.ID, Message: quorum.Message{RackID: quorumtest.RackID(), Kind: quorum.ExpungedNotice{Epoch: e}}})
	}
	s.say("%s has %d alarms", to.ID.Serial, len(to.Node.Status().Alarms))
}

// rackID is the cluster's, unless the command says rack=other.
func (s *story) rackID(d *datadriven.TestData) ident.RackID {
	r := quorumtest.RackID()
	if s.arg(d, "rack", "") == "other" {
		r[0] ^= 1
	}
	return r
}

// damage changes what a sled that is down has stored.
func (s *story) damage(t *testing.T, d *datadriven.TestData) {
	t.Helper()
	at, e := s.at(t, d, "at"), s.epoch(d, "epoch")
	st := at.Disk.Clone()
	switch s.arg(d, "what", "") {
	case "share":
		st.Shares[e] = s.at(t, d, "with").Disk.Shares[e]
	case "no-share":
		delete(st.Shares, e)
	case "no-configuration":
		delete(st.Configs, e)
	case "no-certificate":
		delete(st.Certificates, e)
	case "other-rack":
		c := *st.Configs[e]
		c.RackID[0] ^= 1
		st.Configs[e] = &c
	default:
		d.Fatalf(t, "unknown damage")
	}
	at.Disk = st
}

// forge prepares a configuration that the named sled made up, for use with send. Options: old=(1,2) puts something in
// place of those older secrets; rack=other; flaw=... breaks one rule.
func (s *story) forge(t *testing.T, d *datadriven.TestData) {
	t.Helper()
	by, e := s.at(t, d, "by"), s.epoch(d, "epoch")
	var ids []ident.Baseboard
	for _, m := range s.several(t, d, "members") {
		ids = append(ids, m.ID)
	}
	c, shares := quorumtest.Forge(99, by.ID, e, ident.Threshold(s.epoch(d, "threshold")), s.olderSecrets(t, d), ids...)
	c.RackID = s.rackID(d)
	switch s.arg(d, "flaw", "") {
	case "":
	case "unsorted":
		c.Members[0], c.Members[1] = c.Members[1], c.Members[0]
	case "secrets":
		c.EncryptedSecrets = &keys.EncryptedSecrets{Data: []byte("short")}
	case "mixed": // the last member's share lies on another polynomial than the others
		_, other := quorumtest.Forge(98, by.ID, e, c.Threshold, nil, ids...)
		last := len(shares) - 1
		shares[last] = other[last]
		digest, err := other[last].Digest()
		ok(t, err)
		c.Members[last].ShareDigest = digest
	case "swapped": // the last two members have each other's shares, and digests
		i := len(shares) - 1
		shares[i-1], shares[i] = shares[i], shares[i-1]
		c.Members[i-1].ShareDigest, c.Members[i].ShareDigest = c.Members[i].ShareDigest, c.Members[i-1].ShareDigest
	case "sealed": // the older secrets are encrypted under something that the shares do not give
		enc, err := keys.Encrypt(zeros{}, oldSecrets(t)[1], c.RackID, e, s.olderSecrets(t, d))
		ok(t, err)
		c.EncryptedSecrets = &enc
	default:
		d.Fatalf(t, "unknown flaw")
	}
	s.last[e], s.shares[e] = c, shares
}

func (s *story) olderSecrets(t *testing.T, d *datadriven.TestData) keys.OldSecrets {
	t.Helper()
	text := s.arg(d, "old", "")
	if text == "" {
		return nil
	}
	out := keys.OldSecrets{}
	for n := range strings.SplitSeq(text, ",") {
		var e ident.Epoch
		_, err := fmt.Sscan(n, &e)
		ok(t, err)
		sec, err := secret.Take[secret.RackSecretKind](secret.Heap{}, slices.Repeat([]byte{byte(e)}, keys.Size))
		ok(t, err)
		out[e] = sec
	}
	return out
}

// send lets a sled say something that its node would not. The configuration is the forged one of the epoch, or the
// one that the sled has stored, or that of the sled in config=X.
func (s *story) send(t *testing.T, d *datadriven.TestData) {
	t.Helper()
	from, to := s.at(t, d, "from"), s.at(t, d, "to")
	k := s.invented(t, d, from, to)
	m := quorum.Message{RackID: s.rackID(d), Kind: k}
	if k == nil {
		s.say("%s -> %s  nothing", from.ID.Serial, to.ID.Serial)
	} else {
		s.say("%s", describe(from, to, k))
	}
	s.do(to, quorum.PeerMessage{From: from.ID, Message: m})
}

func (s *story) invented(t *testing.T, d *datadriven.TestData, from, to *quorumtest.Sled) quorum.MessageKind {
	t.Helper()
	e := s.epoch(d, "epoch")
	c := s.last[e]
	if c == nil {
		c = from.Disk.Configs[e]
	}
	empty := s.arg(d, "empty", "") != ""
	switch s.arg(d, "kind", "") {
	case "nothing":
		return nil
	case "prepare":
		if empty {
			return quorum.Prepare{}
		}
		return s.prepare(t, d, c, to)
	case "prepare-ack":
		return quorum.PrepareAck{Epoch: e}
	case "grant":
		if empty {
			return quorum.GrantNotice{}
		}
		return quorum.GrantNotice{Grant: s.grant(t, d, c)}
	case "proof":
		cert := s.certificate(d, c)
		if other := s.epoch(d, "of"); other != 0 {
			cert = s.certificate(d, from.Disk.Configs[other])
		}
		if s.arg(d, "config", "") == "no" {
			return quorum.CommitProof{Certificate: cert}
		}
		return quorum.CommitProof{Config: c, Certificate: cert}
	case "commit-advance":
		if empty {
			return quorum.CommitAdvance{}
		}
		return quorum.CommitAdvance{Config: c}
	case "expunged":
		return quorum.ExpungedNotice{Epoch: e}
	case "get-share":
		return quorum.GetShare{Epoch: e}
	case "share":
		return quorum.ShareReply{Epoch: e, Share: s.share(t, d, c, from)}
	case "no-such-share":
		return quorum.NoSuchShare{Epoch: e}
	case "get-lrtq-share":
		return quorum.GetLRTQShare{}
	case "lrtq-share": // of the sled that share names
		share, err := s.at(t, d, "share").Disk.LRTQ.Share.Clone(secret.Heap{})
		ok(t, err)
		switch s.arg(d, "damage", "") {
		case "yes":
			share.X ^= 0x80
		case "short":
			ok(t, share.Y.Use(func(y []byte) error {
				share.Y, err = secret.Take[secret.ShareKind](secret.Heap{}, slices.Clone(y[:31]))
				return err
			}))
		}
		return quorum.LRTQShare{Share: share}
	}
	d.Fatalf(t, "unknown kind")
	return nil
}

// grant is what the operator would have signed for a configuration, with a signature of the sender's own unless the
// command says signed. last, lrtq, of-rack and threshold change it; for=X names another coordinator.
func (s *story) grant(t *testing.T, d *datadriven.TestData, c *quorum.Configuration) *quorum.Grant {
	t.Helper()
	g := &quorum.Grant{RackID: s.rackID(d), Epoch: c.Epoch, Coordinator: c.Coordinator, Threshold: c.Threshold, LastCommitted: s.epoch(d, "last")}
	for _, m := range c.Members {
		g.Members = append(g.Members, m.ID)
	}
	if s.arg(d, "for", "") != "" {
		g.Coordinator = s.at(t, d, "for").ID
	}
	if k := s.epoch(d, "threshold"); k != 0 {
		g.Threshold = ident.Threshold(k)
	}
	if s.arg(d, "members", "") != "" {
		g.Members = nil
		for _, m := range s.several(t, d, "members") {
			g.Members = append(g.Members, m.ID)
		}
	}
	if s.arg(d, "of-rack", "") == "other" {
		g.RackID[0] ^= 1
	}
	g.LRTQUpgrade = s.arg(d, "lrtq", "") != ""
	if s.arg(d, "signed", "") != "" {
		s.Auth.SignGrant(g)
	}
	return g
}

// prepare hands over the receiver's share again, or the forged one; with share=X that of another member.
func (s *story) prepare(t *testing.T, d *datadriven.TestData, c *quorum.Configuration, to *quorumtest.Sled) quorum.MessageKind {
	t.Helper()
	return quorum.Prepare{Config: c, Share: s.share(t, d, c, to)}
}

// share is that of the owner, or of the sled in share=X; of=N takes that of another epoch than the message says.
func (s *story) share(t *testing.T, d *datadriven.TestData, c *quorum.Configuration, owner *quorumtest.Sled) gfss.Share {
	t.Helper()
	if s.arg(d, "share", "") != "" {
		owner = s.at(t, d, "share")
	}
	e := s.epoch(d, "epoch")
	if of := s.epoch(d, "of"); of != 0 {
		e = of
	}
	share := owner.Disk.Shares[e]
	if c != nil && s.last[c.Epoch] != nil {
		if i, member := c.Index(owner.ID); member {
			share = s.shares[c.Epoch][i]
		} else {
			share = s.shares[c.Epoch][0]
		}
	}
	return clone(t, share)
}
