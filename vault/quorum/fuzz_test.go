package quorum_test

import (
	"errors"
	"testing"

	"github.com/sledvault/sledvault/vault/gfss"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/keys"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/quorum/quorumtest"
	"github.com/sledvault/sledvault/vault/secret"
)

// tape turns fuzz input into choices.
type tape struct{ b []byte }

func (t *tape) next() int {
	if len(t.b) == 0 {
		return 0
	}
	v := t.b[0]
	t.b = t.b[1:]
	return int(v)
}

// FuzzStep gives a sled of a live rack arbitrary inputs: requests and messages made of true and invented parts. Whatever
// comes, it must not panic, nor break an invariant, nor end up with a state that it would not start from.
func FuzzStep(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20})
	f.Add([]byte("reconfigure, prepare, commit, load, clear, and everything once more in another order"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 400 {
			b = b[:400]
		}
		in := &tape{b}
		var c *quorumtest.Cluster
		if names := []string{"a", "b", "c", "d", "e"}; in.next()%3 != 2 {
			c = rack(t, names, 4, 2)
		} else {
			c = quorumtest.NewCluster(1, names...)
			_, err := c.BornLRTQ(2, c.Sleds[:4]...)
			ok(t, err)
			c.ConnectAll()
		}
		for len(in.b) > 0 {
			at := c.Sleds[in.next()%len(c.Sleds)]
			if _, err := c.Do(at, invent(c, at, in)); err != nil {
				if e, broken := errors.AsType[*quorum.InvariantError](err); broken {
					t.Fatal(e)
				}
			}
			for range in.next() % 4 {
				if from, to := c.Sleds[in.next()%5], c.Sleds[in.next()%5]; from != to {
					_, _, err := c.Deliver(from, to)
					ok(t, err)
				}
			}
		}
		quiet(t, c)
		for _, s := range c.Sleds {
			s.Node.Status()
			if _, err := quorum.New(quorum.Config{ID: s.ID, Rand: noRand{}, Alloc: secret.Heap{}, Authority: c.Auth}, s.Disk); err != nil {
				t.Fatal(err)
			}
			believed(t, c, s)
		}
	})
}

// believed demands that a sled stored no commit and no expungement that the operator has not signed.
func believed(t *testing.T, c *quorumtest.Cluster, s *quorumtest.Sled) {
	t.Helper()
	for e, cert := range s.Disk.Certificates {
		ok(t, c.Auth.VerifyCertificate(s.Disk.Configs[e], cert))
	}
	x := s.Disk.Expunged
	if x != nil && (s.Disk.Certificates[x.Epoch] == nil || s.Disk.Configs[x.Epoch].Has(s.ID)) {
		t.Fatalf("%s believes that it is out: %+v", s.ID, x)
	}
}

// quiet delivers everything; that it ends is part of what is tested.
func quiet(t *testing.T, c *quorumtest.Cluster) {
	t.Helper()
	count := 0
	_, err := c.DeliverAll(func(from, to *quorumtest.Sled, m quorum.Message) {
		if count++; count > 20_000 {
			t.Fatalf("messages go round for ever: %s", describe(from, to, m.Kind))
		}
	})
	ok(t, err)
}

func invent(c *quorumtest.Cluster, at *quorumtest.Sled, in *tape) quorum.Input {
	peer := c.Sleds[in.next()%len(c.Sleds)]
	e := ident.Epoch(in.next() % 6)
	if in.next() == 255 {
		e = ^ident.Epoch(0)
	}
	id := quorum.RequestID(in.next() % 4)
	switch in.next() % 13 {
	case 0:
		return quorum.PeerUp{Peer: peer.ID, Capabilities: peer.Capabilities[:in.next()%2]}
	case 1:
		return quorum.PeerDown{Peer: peer.ID}
	case 2:
		last, _ := at.Disk.LatestCommitted()
		if in.next()%8 == 0 {
			last = ident.Epoch(in.next() % 6)
		}
		return c.Request(at, e, last, ident.Threshold(in.next()%5), c.Sleds[in.next()%3:3+in.next()%3]...)
	case 9:
		return c.Upgrade(at, e, ident.Threshold(in.next()%5), c.Sleds[in.next()%3:3+in.next()%3]...)
	case 3:
		config := inventConfig(c, peer, e, in)
		return quorum.Commit{ID: id, RackID: quorumtest.RackID(), Epoch: e, Certificate: inventCertificate(c, config, in)}
	case 4:
		config := inventConfig(c, peer, e, in)
		return quorum.PrepareAndCommit{ID: id, Config: config, Certificate: inventCertificate(c, config, in)}
	case 5:
		return quorum.LoadSecret{ID: id, Epoch: &e}
	case 6:
		return quorum.LoadSecret{ID: id}
	case 7:
		return quorum.CancelLoad{ID: id}
	case 8:
		return quorum.ClearSecrets{}
	}
	return quorum.PeerMessage{From: peer.ID, Message: quorum.Message{RackID: quorumtest.RackID(), Kind: inventMessage(c, peer, e, in)}}
}

// inventConfig gives a stored configuration, or one that somebody made up and that may be malformed.
func inventConfig(c *quorumtest.Cluster, by *quorumtest.Sled, e ident.Epoch, in *tape) *quorum.Configuration {
	if stored := by.Disk.Configs[e]; stored != nil && in.next()%2 == 0 {
		return stored
	}
	var ids []ident.Baseboard
	for _, s := range c.Sleds[:3+in.next()%3] {
		ids = append(ids, s.ID)
	}
	var old keys.OldSecrets
	if e > 1 && in.next()%2 == 0 {
		s, _ := secret.New[secret.RackSecretKind](secret.Heap{}, keys.Size, func([]byte) error { return nil })
		old = keys.OldSecrets{1: s}
	}
	config, _ := quorumtest.Forge(uint64(e), by.ID, e, 2, old, ids...)
	switch in.next() {
	case 1:
		config.Members = nil
	case 2:
		config.Threshold = 0
	case 3:
		config.RackID = ident.RackID{}
	case 4:
		return nil
	}
	return config
}

func inventCertificate(c *quorumtest.Cluster, config *quorum.Configuration, in *tape) *quorum.Certificate {
	if config == nil || in.next()%8 == 0 {
		return nil
	}
	cert := c.Auth.Certify(config) // the operator may sign nonsense, too
	switch in.next() % 32 {        // but did not sign this
	case 1:
		cert.RackID[0] ^= 1
	case 2:
		cert.Epoch ^= 1
	case 3:
		cert.ConfigDigest[0] ^= 1
	case 4:
		cert.KeepFrom++
	case 5:
		cert.Signature[0] ^= 1
	}
	return cert
}

// inventGrant gives a grant that the operator signed, or one with a field changed, signed again or not.
func inventGrant(c *quorumtest.Cluster, g *quorum.Grant, in *tape) quorum.GrantNotice {
	switch in.next() % 32 {
	case 1:
		g.RackID[0] ^= 1
	case 2:
		g.Epoch ^= 1
	case 3:
		g.Coordinator = g.Members[in.next()%len(g.Members)]
	case 4:
		g.Members = g.Members[1:]
	case 5:
		g.Threshold ^= 1
	case 6:
		g.LastCommitted = ident.Epoch(in.next())
	case 7:
		g.LRTQUpgrade = !g.LRTQUpgrade
	case 8:
		g.KeepFrom = ident.Epoch(in.next())
	case 9:
		g.Signature[0] ^= 1
		return quorum.GrantNotice{Grant: g}
	default:
		return quorum.GrantNotice{Grant: g}
	}
	if in.next()%2 == 0 {
		c.Auth.SignGrant(g)
	}
	return quorum.GrantNotice{Grant: g}
}

func inventMessage(c *quorumtest.Cluster, peer *quorumtest.Sled, e ident.Epoch, in *tape) quorum.MessageKind {
	share := gfss.Share{X: byte(in.next())}
	if old := peer.Disk.LRTQ; old != nil && in.next()%2 == 0 {
		share, _ = old.Share.Clone(secret.Heap{})
		return quorum.LRTQShare{Share: share}
	}
	if own, have := peer.Disk.Shares[e]; have {
		share, _ = own.Clone(secret.Heap{})
	}
	config := inventConfig(c, peer, e, in)
	switch in.next() % 13 {
	case 0:
		return quorum.Prepare{Config: config, Share: share}
	case 1:
		return quorum.PrepareAck{Epoch: e}
	case 2:
		return quorum.GetShare{Epoch: e}
	case 3:
		return quorum.ShareReply{Epoch: e, Share: share}
	case 4:
		return quorum.GetLRTQShare{}
	case 5:
		return quorum.LRTQShare{Share: share}
	case 6:
		return quorum.ExpungedNotice{Epoch: e}
	case 7:
		return quorum.CommitAdvance{Config: config}
	case 8:
		if in.next()%3 == 0 {
			return inventGrant(c, c.Upgrade(peer, e, 2, c.Sleds[:3+in.next()%3]...).Grant, in)
		}
		return inventGrant(c, c.Request(peer, e, ident.Epoch(in.next()%3), 2, c.Sleds[:3+in.next()%3]...).Grant, in)
	case 9:
		return quorum.CommitProof{Config: config, Certificate: inventCertificate(c, config, in)}
	case 10:
		return quorum.CommitProof{Certificate: inventCertificate(c, config, in)}
	case 11:
		return quorum.NoSuchShare{Epoch: e}
	}
	return nil
}
