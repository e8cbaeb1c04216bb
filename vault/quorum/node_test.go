package quorum_test

import (
	"testing"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/quorum/quorumtest"
	"github.com/sledvault/sledvault/vault/secret"
)

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func settle(t *testing.T, c *quorumtest.Cluster) {
	t.Helper()
	_, err := c.DeliverAll(nil)
	ok(t, err)
}

// rack makes sleds a, b, c ... of which the first members form epoch 1, committed everywhere.
func rack(t *testing.T, names []string, members int, k ident.Threshold) *quorumtest.Cluster {
	t.Helper()
	c := quorumtest.NewCluster(1, names...)
	c.ConnectAll()
	change(t, c, c.Sleds[0], 1, 0, k, c.Sleds[:members]...)
	return c
}

// change makes and commits one configuration with all members up.
func change(t *testing.T, c *quorumtest.Cluster, coordinator *quorumtest.Sled, e, last ident.Epoch, k ident.Threshold, members ...*quorumtest.Sled) {
	t.Helper()
	ok(t, c.Step(coordinator, c.Request(coordinator, e, last, k, members...)))
	settle(t, c)
	commit(t, c, e, members...)
}

func commit(t *testing.T, c *quorumtest.Cluster, e ident.Epoch, members ...*quorumtest.Sled) {
	t.Helper()
	for _, s := range members {
		cert := c.Auth.Certify(s.Disk.Configs[e])
		fx, err := c.Do(s, quorum.Commit{ID: 7, RackID: quorumtest.RackID(), Epoch: e, Certificate: cert})
		ok(t, err)
		if len(fx.Replies) != 1 || fx.Replies[0].Status != quorum.Committed {
			t.Fatalf("commit at %s: have %+v", s.ID, fx.Replies)
		}
	}
}

// load returns the secret of an epoch (0 = latest) after everything is delivered.
func load(t *testing.T, c *quorumtest.Cluster, s *quorumtest.Sled, e ident.Epoch) secret.RackSecret {
	t.Helper()
	in := quorum.LoadSecret{ID: 99}
	if e != 0 {
		in.Epoch = &e
	}
	var got []quorum.Reply
	old := c.Seen
	c.Seen = func(at *quorumtest.Sled, fx *quorum.Effects) {
		if at == s {
			got = append(got, fx.Replies...)
		}
		if old != nil {
			old(at, fx)
		}
	}
	defer func() { c.Seen = old }()
	ok(t, c.Step(s, in))
	settle(t, c)
	if len(got) != 1 || got[0].ID != 99 || got[0].Err != nil {
		t.Fatalf("load at %s: have replies %+v", s.ID, got)
	}
	return got[0].Secret
}

func TestFirstConfiguration(t *testing.T) {
	t.Parallel()
	c := rack(t, []string{"a", "b", "c", "d", "e"}, 4, 3)
	sec := load(t, c, c.Sled("c"), 0)
	for _, s := range c.Sleds[:4] {
		if !load(t, c, s, 1).Equal(sec) {
			t.Errorf("%s loads another secret", s.ID)
		}
		if a := s.Node.Status().Alarms; len(a) != 0 {
			t.Errorf("%s: alarms %v", s.ID, a)
		}
	}
	change(t, c, c.Sled("b"), 3, 1, 2, c.Sled("b"), c.Sled("d"), c.Sled("e"))
	if !load(t, c, c.Sled("e"), 1).Equal(sec) {
		t.Error("a new member loads another secret of the old epoch")
	}
	if load(t, c, c.Sled("e"), 3).Equal(sec) {
		t.Error("the secret did not change")
	}
}

// TestHonestNotes: in an honest life with a change, nobody is refused anything.
func TestHonestNotes(t *testing.T) {
	t.Parallel()
	c := quorumtest.NewCluster(1, "a", "b", "c", "d")
	c.Seen = func(s *quorumtest.Sled, fx *quorum.Effects) {
		for _, n := range fx.Notes {
			if quorum.ClassOf(n.Code) == quorum.Refusal {
				t.Errorf("%s: %+v", s.ID, n)
			}
		}
	}
	c.ConnectAll()
	change(t, c, c.Sleds[0], 1, 0, 2, c.Sleds[:3]...)
	load(t, c, c.Sleds[1], 0).Destroy()
	change(t, c, c.Sleds[1], 2, 1, 2, c.Sleds[1:]...)
	ok(t, c.Step(c.Sleds[0], quorum.LoadSecret{ID: 3})) // learns that it is out
	settle(t, c)
	load(t, c, c.Sleds[3], 1).Destroy()
}

func TestOurs(t *testing.T) {
	t.Parallel()
	for k, want := range map[quorum.MessageKind]bool{
		quorum.GetShare{}: false, quorum.PrepareAck{}: false, quorum.GrantNotice{}: true, quorum.CommitProof{}: true, quorum.NoSuchShare{}: true,
	} {
		if quorum.Ours(k) != want {
			t.Errorf("%s: have %t", quorum.KindOf(k), !want)
		}
	}
}
