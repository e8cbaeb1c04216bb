package quorum_test

import (
	"testing"

	"github.com/sledvault/sledvault/vault/gfss"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/keys"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/quorum/quorumtest"
	"github.com/sledvault/sledvault/vault/secret"
)

// asked steps an input, delivers everything and returns the replies of the sled.
func asked(t *testing.T, c *quorumtest.Cluster, s *quorumtest.Sled, in quorum.Input) []quorum.Reply {
	t.Helper()
	var got []quorum.Reply
	old := c.Seen
	c.Seen = func(at *quorumtest.Sled, fx *quorum.Effects) {
		if at == s {
			got = append(got, fx.Replies...)
		}
	}
	defer func() { c.Seen = old }()
	ok(t, c.Step(s, in))
	settle(t, c)
	return got
}

func TestAgreement(t *testing.T) {
	t.Parallel()
	for k := ident.Threshold(2); k <= 4; k++ {
		c := rack(t, []string{"a", "b", "c", "d", "e"}, 5, k)
		for _, s := range c.Sleds {
			got := asked(t, c, s, quorum.CheckAgreement{ID: 4, Epoch: 1})
			if len(got) != 1 || got[0].ID != 4 || got[0].Err != nil || got[0].Epoch != 1 {
				t.Fatalf("threshold %d, %s: have %+v", k, s.ID, got)
			}
			if sec := load(t, c, s, 1); !sec.Equal(got[0].Secret) {
				t.Errorf("threshold %d, %s: agrees on another secret than it loads", k, s.ID)
			}
			if st := s.Node.Status(); st.Agreement != nil || len(st.Alarms) != 0 {
				t.Errorf("threshold %d, %s: have %+v", k, s.ID, st)
			}
		}
	}
}

// TestAgreementNeedsOneMore: with exactly a threshold the secret loads, and the comparison waits without holding a share
// of anyone else.
func TestAgreementNeedsOneMore(t *testing.T) {
	t.Parallel()
	c := rack(t, []string{"a", "b", "c", "d"}, 4, 3)
	a := c.Sled("a")
	c.Crash(c.Sled("d"))
	load(t, c, a, 0).Destroy()
	if got := asked(t, c, a, quorum.CheckAgreement{ID: 1, Epoch: 1}); len(got) != 0 {
		t.Fatalf("have %+v", got)
	}
	st := a.Node.Status().Agreement
	if st == nil || st.Epoch != 1 || st.Have != 1 || st.Want != 4 || len(st.MissingDisconnected) != 1 || st.MissingDisconnected[0] != c.Sled("d").ID {
		t.Fatalf("have %+v", st)
	}
	_, err := c.Do(a, quorum.CheckAgreement{ID: 1, Epoch: 1})
	refusedAs(t, err, quorum.CodeDuplicateRequest)
	ok(t, c.Start(c.Sled("d")))
	var got []quorum.Reply
	c.Seen = func(_ *quorumtest.Sled, fx *quorum.Effects) { got = append(got, fx.Replies...) }
	c.ConnectAll()
	settle(t, c)
	if len(got) != 1 || got[0].Err != nil || got[0].Secret.IsEmpty() {
		t.Fatalf("have %+v", got)
	}
}

func TestAgreementRefused(t *testing.T) {
	t.Parallel()
	c := rack(t, []string{"a", "b", "c", "d"}, 3, 2)
	_, err := c.Do(c.Sled("d"), quorum.CheckAgreement{ID: 1, Epoch: 1})
	refusedAs(t, err, quorum.CodeNoCommitted)
	a := c.Sled("a")
	_, err = c.Do(a, quorum.CheckAgreement{ID: 1, Epoch: 2})
	refusedAs(t, err, quorum.CodeNotCommitted)
	change(t, c, a, 2, 1, 2, c.Sled("a"), c.Sled("b"), c.Sled("d"))
	_, err = c.Do(a, quorum.CheckAgreement{ID: 1, Epoch: 1})
	refusedAs(t, err, quorum.CodeOutdated)
	c.Crash(c.Sled("b"))
	for id := quorum.RequestID(1); id <= 64; id++ {
		ok(t, c.Step(a, quorum.CheckAgreement{ID: id, Epoch: 2}))
	}
	_, err = c.Do(a, quorum.CheckAgreement{ID: 65, Epoch: 2})
	refusedAs(t, err, quorum.CodeBusy)
	// c was left out; it learns of it and says so.
	ok(t, c.Step(c.Sled("c"), quorum.CheckAgreement{ID: 1, Epoch: 1}))
	got := asked(t, c, c.Sled("c"), quorum.LoadSecret{ID: 2})
	if len(got) != 2 || got[0].Err == nil || got[1].Err == nil {
		t.Fatalf("have %+v", got)
	}
	_, err = c.Do(c.Sled("c"), quorum.CheckAgreement{ID: 3, Epoch: 1})
	refusedAs(t, err, quorum.CodeExpunged)
}

// mixed is a configuration whose coordinator gave the members named last shares of another polynomial.
func mixed(t *testing.T, v *victim, others int) (*quorum.Configuration, []gfss.Share) {
	t.Helper()
	members := v.ids("a", "b", "c", "d")
	c, shares := quorumtest.Forge(1, v.Sled("d").ID, 2, 2, keys.OldSecrets{1: load(t, v.Cluster, v.Sled("d"), 1)}, members...)
	_, second := quorumtest.Forge(2, v.Sled("d").ID, 2, 2, oldSecrets(t), members...)
	for i := len(members) - others; i < len(members); i++ {
		digest, err := second[i].Digest()
		ok(t, err)
		shares[i], c.Members[i].ShareDigest = second[i], digest
	}
	return c, shares
}

// prepared hands a configuration of d's to the others, with the operator's grant, and commits it there.
func (v *victim) prepared(cfg *quorum.Configuration, shares []gfss.Share) {
	v.t.Helper()
	grant := &quorum.Grant{RackID: cfg.RackID, Epoch: 2, Coordinator: cfg.Coordinator, Members: v.ids("a", "b", "c", "d"), Threshold: 2, LastCommitted: 1}
	v.Auth.SignGrant(grant)
	for i, name := range []string{"a", "b", "c"} {
		for _, k := range []quorum.MessageKind{quorum.GrantNotice{Grant: grant}, quorum.Prepare{Config: cfg, Share: clone(v.t, shares[i])}} {
			ok(v.t, v.Step(v.Sled(name), quorum.PeerMessage{From: cfg.Coordinator, Message: quorum.Message{RackID: cfg.RackID, Kind: k}}))
		}
	}
	commit(v.t, v.Cluster, 2, v.Sleds[:3]...)
	settle(v.t, v.Cluster)
}

// mixedPolynomial: a coordinator that the operator trusts hands out shares that fit their digests but not each other. The
// rack prepares and commits, and every sled loads some secret. No disk may move to it.
func mixedPolynomial(t *testing.T) {
	for _, others := range []int{1, 2, 3} {
		v := attacked(t)
		cfg, shares := mixed(t, v, others)
		v.prepared(cfg, shares)
		if others < 3 {
			load(t, v.Cluster, v.Sled("a"), 0).Destroy() // nothing is wrong, as far as a and b can tell
		}

		// a and b see the disagreement as soon as the odd share is among the three. With one odd share, d's own, the
		// others rebuild one secret without it: that is what agreement means.
		a := v.Sled("a")
		if others == 1 {
			v.Disconnect(a, v.Sled("b"))
		}
		tell := quorum.ShareReply{Epoch: 2, Share: clone(t, shares[3])} // d is under the attacker's control and answers first
		ok(t, v.Step(a, quorum.CheckAgreement{ID: 5, Epoch: 2}))
		var got []quorum.Reply
		v.Seen = func(at *quorumtest.Sled, fx *quorum.Effects) {
			if at == a {
				got = append(got, fx.Replies...)
			}
		}
		ok(t, v.Step(a, quorum.PeerMessage{From: cfg.Coordinator, Message: quorum.Message{RackID: cfg.RackID, Kind: tell}}))
		settle(t, v.Cluster)
		if len(got) != 1 || got[0].ID != 5 || !got[0].Secret.IsEmpty() {
			t.Fatalf("%d odd shares: have %+v", others, got)
		}
		refusedAs(t, got[0].Err, quorum.CodeSharesDisagree)
		st, named := a.Node.Status(), false
		for _, al := range st.Alarms {
			named = named || al.Kind == quorum.AlarmMixedPolynomial && al.Epoch == 2 && al.From == cfg.Coordinator
		}
		if !named || st.Agreement != nil {
			t.Errorf("%d odd shares: have %+v", others, st)
		}
		_, err := v.Do(a, quorum.CheckAgreement{ID: 6, Epoch: 2}) // no later answer heals it
		refusedAs(t, err, quorum.CodeSharesDisagree)
	}
}

// TestAgreementNeedsTheOlderSecrets: a secret that does not open the older ones would not load after a restart.
func TestAgreementNeedsTheOlderSecrets(t *testing.T) {
	t.Parallel()
	v := attacked(t)
	cfg, shares := mixed(t, v, 0)
	enc, err := keys.Encrypt(zeros{}, oldSecrets(t)[1], cfg.RackID, 2, oldSecrets(t))
	ok(t, err)
	cfg.EncryptedSecrets = &enc
	v.prepared(cfg, shares)
	a := v.Sled("a")
	got := asked(t, v.Cluster, a, quorum.CheckAgreement{ID: 5, Epoch: 2})
	if len(got) != 1 {
		t.Fatalf("have %+v", got)
	}
	refusedAs(t, got[0].Err, quorum.CodeSecretDamaged)
}

// TestAgreementTellsWhichSecret: shares that agree with each other, but not with the secret in memory, which came from
// other shares, are refused as well.
func TestAgreementTellsWhichSecret(t *testing.T) {
	t.Parallel()
	v := attacked(t)
	cfg, shares := mixed(t, v, 1)
	ok(t, v.Step(v.Sled("d"), quorum.ClearSecrets{}))
	enc, err := keys.Encrypt(zeros{}, combined(t, shares[0], shares[3]), cfg.RackID, 2, oldSecrets(t))
	ok(t, err)
	cfg.EncryptedSecrets = &enc // so that the odd secret loads
	v.prepared(cfg, shares)
	a := v.Sled("a")
	ok(t, v.Step(a, quorum.LoadSecret{ID: 1}))
	odd := quorum.ShareReply{Epoch: 2, Share: clone(t, shares[3])}
	fx, err := v.Do(a, quorum.PeerMessage{From: cfg.Coordinator, Message: quorum.Message{RackID: cfg.RackID, Kind: odd}})
	ok(t, err)
	if len(fx.Replies) != 1 || fx.Replies[0].Err != nil {
		t.Fatalf("load: have %+v", fx.Replies)
	}
	settle(t, v.Cluster)
	v.Disconnect(a, v.Sled("d"))
	got := asked(t, v.Cluster, a, quorum.CheckAgreement{ID: 2, Epoch: 2})
	if len(got) != 1 {
		t.Fatalf("have %+v", got)
	}
	refusedAs(t, got[0].Err, quorum.CodeSharesDisagree)
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

func combined(t *testing.T, s ...gfss.Share) secret.RackSecret {
	t.Helper()
	sec, err := gfss.Combine(secret.Heap{}, s)
	ok(t, err)
	return sec
}
