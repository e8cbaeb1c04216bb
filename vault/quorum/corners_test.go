package quorum_test

import (
	"slices"
	"testing"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/keys"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/quorum/quorumtest"
	"github.com/sledvault/sledvault/vault/quorum/reference"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
)

// TestEqual: two configurations are equal when all fields are, and only then.
func TestEqual(t *testing.T) {
	t.Parallel()
	base := func() *quorum.Configuration {
		c, _ := quorumtest.Forge(1, ident.Baseboard{Part: "p", Serial: "1"}, 4, 2, oldSecrets(t),
			ident.Baseboard{Part: "p", Serial: "1"}, ident.Baseboard{Part: "p", Serial: "2"}, ident.Baseboard{Part: "p", Serial: "3"})
		return c
	}
	if !base().Equal(base()) {
		t.Error("the same is not equal")
	}
	bare := base()
	bare.EncryptedSecrets = nil
	if !bare.Equal(bare) || bare.Equal(base()) || base().Equal(bare) {
		t.Error("older secrets that are absent")
	}
	for name, change := range map[string]func(*quorum.Configuration){
		"rack":        func(c *quorum.Configuration) { c.RackID[15] ^= 1 },
		"epoch":       func(c *quorum.Configuration) { c.Epoch++ },
		"coordinator": func(c *quorum.Configuration) { c.Coordinator.Serial = "2" },
		"threshold":   func(c *quorum.Configuration) { c.Threshold++ },
		"member":      func(c *quorum.Configuration) { c.Members[2].ID.Serial = "4" },
		"digest":      func(c *quorum.Configuration) { c.Members[0].ShareDigest[31] ^= 1 },
		"one less":    func(c *quorum.Configuration) { c.Members = c.Members[:2] },
		"salt":        func(c *quorum.Configuration) { c.EncryptedSecrets.Salt[0] ^= 1 },
		"data":        func(c *quorum.Configuration) { c.EncryptedSecrets.Data[5] ^= 1 },
		"shorter":     func(c *quorum.Configuration) { c.EncryptedSecrets.Data = c.EncryptedSecrets.Data[:40] },
	} {
		other := base()
		change(other)
		if other.Equal(base()) || base().Equal(other) {
			t.Errorf("%s: equal", name)
		}
	}
}

// TestMostOldSecrets: a configuration may carry 4096 older secrets and not one more.
func TestMostOldSecrets(t *testing.T) {
	t.Parallel()
	c := quorumtest.NewCluster(1, "a", "b", "c")
	config, _ := quorumtest.Forge(1, c.Sleds[0].ID, 9999, 2, nil, c.Sleds[0].ID, c.Sleds[1].ID, c.Sleds[2].ID)
	for records, code := range map[int]reason.Code{1: "", 4096: "", 4097: quorum.CodeInvalidConfiguration, 0: quorum.CodeInvalidConfiguration} {
		o := *config
		o.EncryptedSecrets = &keys.EncryptedSecrets{Data: make([]byte, 40*records+16)}
		if o.OldSecrets() != records {
			t.Errorf("have %d older secrets, want %d", o.OldSecrets(), records)
		}
		ok(t, c.Start(c.Sleds[0]))
		c.Sleds[0].Disk = quorum.State{}
		_, err := c.Do(c.Sleds[0], quorum.PrepareAndCommit{Config: &o, Certificate: c.Auth.Certify(&o)})
		refusedAs(t, err, code)
		c.Sleds[0].Disk = quorum.State{}
	}
}

// TestCommittedIsToldOnce: the step that changes the latest commit says so, and no other. A certificate that is stored
// already is not stored again.
func TestCommittedIsToldOnce(t *testing.T) {
	t.Parallel()
	c := quorumtest.NewCluster(1, "a", "b", "c")
	saves := 0
	c.Save = func(s *quorumtest.Sled, st quorum.State) error { saves++; s.Disk = st; return nil }
	c.ConnectAll()
	a := c.Sled("a")
	ok(t, c.Step(a, c.Request(a, 3, 0, 2, c.Sleds...)))
	settle(t, c)
	in := quorum.Commit{RackID: quorumtest.RackID(), Epoch: 3, Certificate: c.Auth.Certify(a.Disk.Configs[3])}
	fx, err := c.Do(a, in)
	if ok(t, err); fx.Committed != 3 {
		t.Errorf("the commit: have %d, want 3", fx.Committed)
	}
	before := saves
	fx, err = c.Do(a, in)
	if ok(t, err); fx.Committed != 0 || saves != before {
		t.Errorf("the same again: have %d, %d saves", fx.Committed, saves-before)
	}
	fx, err = c.Do(a, quorum.ClearSecrets{})
	if ok(t, err); fx.Committed != 0 || saves != before {
		t.Errorf("something else: have %d, %d saves", fx.Committed, saves-before)
	}
}

// TestAuthorityStays: nothing takes the operator's authority away from a node, nor the belief of a node for replays.
func TestAuthorityStays(t *testing.T) {
	t.Parallel()
	c := quorumtest.NewCluster(1, "a", "b")
	b := c.Sled("b")
	b.Authority = reference.Authority{}
	ok(t, c.Start(b))
	for at, in := range map[*quorumtest.Sled]quorum.Authority{c.Sled("a"): reference.Authority{}, b: c.Auth} {
		_, err := c.Do(at, quorum.SetAuthority{Authority: in})
		refusedAs(t, err, quorum.CodeConfig)
	}
	_, err := c.Do(c.Sled("a"), quorum.SetAuthority{})
	refusedAs(t, err, quorum.CodeConfig)
	ok(t, c.Step(c.Sled("a"), quorum.SetAuthority{Authority: c.Auth}))
}

// TestLimits: alarms and peers end where the limits say, to the last one.
func TestLimits(t *testing.T) {
	t.Parallel()
	c := quorumtest.NewCluster(1, "a", "b", "c", "d", "e", "f")
	a := c.Sled("a")
	n, err := quorum.New(quorum.Config{ID: a.ID, Rand: noRand{}, Alloc: secret.Heap{}, Authority: c.Auth, Limits: quorum.Limits{Alarms: 3, Peers: 4}}, quorum.State{})
	ok(t, err)
	step := func(in quorum.Input) quorum.Effects {
		out, err := n.Step(in)
		ok(t, err)
		fx, err := out.Durable(func(quorum.State) error { return nil })
		ok(t, err)
		return fx
	}
	for i, s := range c.Sleds[1:] {
		refused := len(step(quorum.PeerUp{Peer: s.ID}).Notes) == 1
		if refused != (i == 4) {
			t.Errorf("peer %d: refused %t", i+1, refused)
		}
	}
	forged, shares := quorumtest.Forge(1, c.Sled("f").ID, 1, 2, nil, a.ID, c.Sled("b").ID, c.Sled("f").ID)
	for i, s := range c.Sleds[1:5] {
		fx := step(quorum.PeerMessage{From: s.ID, Message: quorum.Message{RackID: forged.RackID, Kind: quorum.Prepare{Config: forged, Share: clone(t, shares[0])}}})
		full := slices.ContainsFunc(fx.Notes, func(n quorum.Note) bool { return n.Code == quorum.CodeAlarmsFull })
		if full != (i == 3) || len(fx.Alarms) == 1 != (i < 3) {
			t.Errorf("alarm %d: full %t, have %+v", i+1, full, fx.Alarms)
		}
	}
	if have := len(n.Status().Alarms); have != 3 {
		t.Errorf("have %d alarms, want 3", have)
	}
}

// TestAcked: who has acknowledged is told for the epoch that is coordinated, and only for that.
func TestAcked(t *testing.T) {
	t.Parallel()
	c := quorumtest.NewCluster(1, "a", "b", "c", "d")
	c.ConnectAll()
	a, b := c.Sled("a"), c.Sled("b")
	if a.Node.Acked(1, b.ID) {
		t.Error("nothing is coordinated")
	}
	ok(t, c.Step(a, c.Request(a, 1, 0, 2, c.Sleds[:3]...)))
	if !a.Node.Acked(1, a.ID) || a.Node.Acked(1, b.ID) {
		t.Error("only the coordinator itself is prepared")
	}
	settle(t, c)
	if !a.Node.Acked(1, b.ID) || a.Node.Acked(2, b.ID) || a.Node.Acked(1, c.Sled("d").ID) || b.Node.Acked(1, b.ID) {
		t.Error("b has acknowledged epoch 1 at a")
	}
}
