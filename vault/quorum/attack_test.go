package quorum_test

import (
	"testing"

	"github.com/sledvault/sledvault/vault/gfss"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/keys"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/quorum/quorumtest"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
)

// victim is a rack of a, b, c, d at epoch 1, in which d attacks c.
type victim struct {
	*quorumtest.Cluster
	t *testing.T
}

func attacked(t *testing.T) *victim {
	t.Helper()
	return &victim{rack(t, []string{"a", "b", "c", "d"}, 4, 2), t}
}

// hears gives c a message from d and demands that it is refused for the reason, counted, alarmed if so named, unanswered
// and without any change.
func (v *victim) hears(code reason.Code, alarm quorum.AlarmKind, kinds ...quorum.MessageKind) {
	v.t.Helper()
	c, d := v.Sled("c"), v.Sled("d")
	before := c.Disk
	var fx quorum.Effects
	for _, k := range kinds {
		var err error
		fx, err = v.Do(c, quorum.PeerMessage{From: d.ID, Message: quorum.Message{RackID: quorumtest.RackID(), Kind: k}})
		ok(v.t, err)
	}
	if len(fx.Notes) != 1 || fx.Notes[0].Code != code || fx.Notes[0].Peer != d.ID {
		v.t.Errorf("notes: have %+v, want one %s", fx.Notes, code)
	}
	raised := false
	for _, a := range c.Node.Status().Alarms {
		raised = raised || a.Kind == alarm && a.From == d.ID
	}
	if alarm != "" && !raised {
		v.t.Errorf("no alarm %s", alarm)
	}
	if len(fx.Send) != 0 {
		v.t.Errorf("it answers: %+v", fx.Send)
	}
	if after := c.Disk; len(after.Configs) != len(before.Configs) || len(after.Shares) != len(before.Shares) ||
		len(after.Commits) != len(before.Commits) || after.Expunged != before.Expunged || c.Node.Roles() != (quorum.Roles{}) {
		v.t.Errorf("the state changed: %+v", c.Node.Status())
	}
}

func (v *victim) ids(names ...string) (out []ident.Baseboard) {
	for _, n := range names {
		out = append(out, v.Sled(n).ID)
	}
	return out
}

// oldSecrets are what a rogue coordinator puts in place of the secret of epoch 1.
func oldSecrets(t *testing.T) keys.OldSecrets {
	t.Helper()
	s, err := secret.Take[secret.RackSecretKind](secret.Heap{}, make([]byte, keys.Size))
	ok(t, err)
	return keys.OldSecrets{1: s}
}

func clone(t *testing.T, s gfss.Share) gfss.Share {
	t.Helper()
	c, err := s.Clone(secret.Heap{})
	ok(t, err)
	return c
}

func TestAttack(t *testing.T) {
	t.Parallel()
	t.Run("prepare-forgery", func(t *testing.T) { t.Parallel(); prepareForgery(t) })
	t.Run("rogue-coordinator", func(t *testing.T) { t.Parallel(); rogueCoordinator(t) })
	t.Run("lone-expunge", func(t *testing.T) { t.Parallel(); loneExpunge(t) })
	t.Run("orphan-old-secrets", func(t *testing.T) { t.Parallel(); orphanOldSecrets(t) })
	t.Run("underlay-forgery", func(t *testing.T) { t.Parallel(); underlayForgery(t) })
	t.Run("mixed-polynomial", func(t *testing.T) { t.Parallel(); mixedPolynomial(t) })
}

// prepareForgery: a peer that is not the coordinator sends Prepare, or a share does not fit its digest or number.
func prepareForgery(t *testing.T) {
	v := attacked(t)
	members := v.ids("a", "b", "c", "d")
	byA, sharesA := quorumtest.Forge(1, v.Sled("a").ID, 2, 2, oldSecrets(t), members...)
	v.hears(quorum.CodeNotCoordinator, quorum.AlarmForgedPrepare, quorum.Prepare{Config: byA, Share: clone(t, sharesA[2])})

	c, shares := quorumtest.Forge(2, v.Sled("d").ID, 2, 2, oldSecrets(t), members...)
	other := clone(t, shares[1])
	v.hears(quorum.CodeShareInvalid, quorum.AlarmForgedPrepare, quorum.Prepare{Config: c, Share: other})
	renumbered := clone(t, shares[2])
	renumbered.X = 4
	v.hears(quorum.CodeShareInvalid, quorum.AlarmForgedPrepare, quorum.Prepare{Config: c, Share: renumbered})
	v.hears(quorum.CodeShareInvalid, quorum.AlarmForgedPrepare, quorum.Prepare{Config: c, Share: gfss.Share{X: 3}})

	otherRack := *c
	otherRack.RackID[0] ^= 1
	v.hears(quorum.CodeInvalidRackID, quorum.AlarmForgedPrepare, quorum.Prepare{Config: &otherRack, Share: clone(t, shares[2])})

	unsorted := *c
	unsorted.Members = []quorum.Member{c.Members[1], c.Members[0], c.Members[2], c.Members[3]}
	v.hears(quorum.CodeInvalidConfiguration, quorum.AlarmForgedPrepare, quorum.Prepare{Config: &unsorted, Share: clone(t, shares[2])})

	again, shares1 := quorumtest.Forge(3, v.Sled("d").ID, 1, 2, nil, members...)
	v.hears(quorum.CodeConfigConflict, quorum.AlarmConflictingPrepare, quorum.Prepare{Config: again, Share: clone(t, shares1[2])})
	v.hears(quorum.CodeMalformed, "", quorum.Prepare{})
}

// rogueCoordinator: a compromised member names itself coordinator and tries to advance the rack to a secret it chose.
func rogueCoordinator(t *testing.T) {
	v := attacked(t)
	members := v.ids("a", "b", "c", "d")
	d := v.Sled("d")
	c, shares := quorumtest.Forge(1, d.ID, 2, 2, oldSecrets(t), members...)
	prepare := func() quorum.Prepare { return quorum.Prepare{Config: c, Share: clone(t, shares[2])} }
	v.hears(quorum.CodeGrantMissing, quorum.AlarmUngrantedPrepare, prepare())

	grant := &quorum.Grant{RackID: c.RackID, Epoch: 2, Coordinator: d.ID, Members: members, Threshold: 2, LastCommitted: 1}
	v.hears(quorum.CodeGrantInvalid, quorum.AlarmUngrantedPrepare, quorum.GrantNotice{Grant: grant}, prepare())

	for name, change := range map[string]func(*quorum.Grant){
		"coordinator":       func(g *quorum.Grant) { g.Coordinator = v.Sled("a").ID },
		"epoch":             func(g *quorum.Grant) { g.Epoch = 3 },
		"threshold":         func(g *quorum.Grant) { g.Threshold = 3 },
		"members":           func(g *quorum.Grant) { g.Members = v.ids("b", "c", "d") },
		"first":             func(g *quorum.Grant) { g.LastCommitted = 0 },
		"commit to be made": func(g *quorum.Grant) { g.LastCommitted = 2 },
	} {
		t.Run("grant of another "+name, func(*testing.T) {
			g := *grant
			change(&g)
			v.Auth.SignGrant(&g)
			v.hears(quorum.CodeGrantMismatch, quorum.AlarmUngrantedPrepare, quorum.GrantNotice{Grant: &g}, prepare())
		})
	}
	v.hears(quorum.CodeCertificateMissing, quorum.AlarmUncertifiedCommit, quorum.CommitAdvance{Config: c})
	genuine := v.Sled("a").Disk.Certificates[1]
	v.hears(quorum.CodeCertificateInvalid, quorum.AlarmUncertifiedCommit, quorum.CommitProof{Certificate: genuine}, quorum.CommitAdvance{Config: c})
	invented := quorumtest.Authority{Key: 666, Rack: quorumtest.RackID()}.Certify(c)
	v.hears(quorum.CodeCertificateInvalid, quorum.AlarmUncertifiedCommit, quorum.CommitProof{Certificate: invented}, quorum.CommitAdvance{Config: c})

	// The grant of an older change does not let its coordinator make another one.
	old := *grant
	old.LastCommitted = 1
	v.Auth.SignGrant(&old)
	change(t, v.Cluster, v.Sled("a"), 3, 1, 2, v.Sleds...)
	late, lateShares := quorumtest.Forge(5, d.ID, 4, 2, keys.OldSecrets{1: oldSecrets(t)[1], 3: oldSecrets(t)[1]}, members...)
	old.Epoch = 4
	v.Auth.SignGrant(&old)
	v.hears(quorum.CodeGrantStale, quorum.AlarmUngrantedPrepare, quorum.GrantNotice{Grant: &old}, quorum.Prepare{Config: late, Share: clone(t, lateShares[2])})

	// The controller's own change still goes through: the stale and forged messages left nothing behind.
	change(t, v.Cluster, v.Sled("b"), 5, 3, 2, v.Sleds...)
	load(t, v.Cluster, v.Sled("c"), 0).Destroy()
}

// loneExpunge: one peer's unproved message must not end a sled for good.
func loneExpunge(t *testing.T) {
	v := attacked(t)
	lacking, _ := quorumtest.Forge(1, v.Sled("d").ID, 2, 2, oldSecrets(t), v.ids("a", "b", "d")...)
	expunged := quorum.ExpungedNotice{Epoch: 2}
	v.hears(quorum.CodeProofMissing, quorum.AlarmUnprovedExpunge, expunged)
	v.hears(quorum.CodeProofMissing, quorum.AlarmUnprovedExpunge, quorum.CommitProof{Certificate: v.Auth.Certify(lacking)}, expunged)

	genuine, cert := v.Sled("a").Disk.Configs[1], v.Sled("a").Disk.Certificates[1]
	v.hears(quorum.CodeProofMissing, quorum.AlarmUnprovedExpunge, quorum.CommitProof{Config: genuine, Certificate: cert}, quorum.ExpungedNotice{Epoch: 1})
	v.hears(quorum.CodeCertificateInvalid, quorum.AlarmUnprovedExpunge, quorum.CommitProof{Config: lacking, Certificate: cert}, expunged)

	trimmed := *genuine // the committed configuration with the victim cut out
	trimmed.Members = append(append([]quorum.Member(nil), genuine.Members[:2]...), genuine.Members[3])
	v.hears(quorum.CodeCertificateInvalid, quorum.AlarmUnprovedExpunge, quorum.CommitProof{Config: &trimmed, Certificate: cert}, quorum.ExpungedNotice{Epoch: 1})

	// A proof from before this sled became a member proves nothing about it.
	e := quorumtest.NewCluster(1, "a", "b", "c", "d", "e")
	e.ConnectAll()
	change(t, e, e.Sled("a"), 1, 0, 2, e.Sleds[:4]...)
	change(t, e, e.Sled("a"), 2, 1, 2, e.Sleds...)
	past, pastCert := e.Sled("a").Disk.Configs[1], e.Sled("a").Disk.Certificates[1]
	for _, k := range []quorum.MessageKind{quorum.CommitProof{Config: past, Certificate: pastCert}, quorum.ExpungedNotice{Epoch: 1}, quorum.ExpungedNotice{Epoch: 2}} {
		ok(t, e.Step(e.Sled("e"), quorum.PeerMessage{From: e.Sled("d").ID, Message: quorum.Message{RackID: quorumtest.RackID(), Kind: k}}))
	}
	if x := e.Sled("e").Disk.Expunged; x != nil {
		t.Errorf("e believes an old proof: %+v", x)
	}

	// With the certificate it is true, and everything in memory goes.
	load(t, v.Cluster, v.Sled("c"), 0).Destroy()
	for _, k := range []quorum.MessageKind{quorum.CommitProof{Config: lacking, Certificate: v.Auth.Certify(lacking)}, expunged} {
		ok(t, v.Step(v.Sled("c"), quorum.PeerMessage{From: v.Sled("d").ID, Message: quorum.Message{RackID: quorumtest.RackID(), Kind: k}}))
	}
	st := v.Sled("c").Node.Status()
	if st.Expunged == nil || st.Expunged.Epoch != 2 || len(st.Loader.Loaded) != 0 {
		t.Errorf("have %+v", st)
	}
}

// orphanOldSecrets: a configuration without the older secrets would lose them at the next change.
func orphanOldSecrets(t *testing.T) {
	v := attacked(t)
	c := v.Sled("c")
	bare, _ := quorumtest.Forge(1, v.Sled("d").ID, 2, 2, nil, v.ids("a", "b", "c", "d")...)
	_, err := v.Do(c, quorum.PrepareAndCommit{Config: bare, Certificate: v.Auth.Certify(bare)})
	refusedAs(t, err, quorum.CodeOldSecretsMissing)
	v.hears(quorum.CodeOldSecretsMissing, quorum.AlarmUncertifiedCommit, quorum.CommitProof{Certificate: v.Auth.Certify(bare)}, quorum.CommitAdvance{Config: bare})

	change(t, v.Cluster, v.Sled("a"), 2, 1, 2, v.Sleds...)
	fewer, _ := quorumtest.Forge(1, v.Sled("d").ID, 3, 2, oldSecrets(t), v.ids("a", "b", "c", "d")...)
	_, err = v.Do(c, quorum.PrepareAndCommit{Config: fewer, Certificate: v.Auth.Certify(fewer)})
	refusedAs(t, err, quorum.CodeOldSecretsMissing)
}

// underlayForgery: whoever reaches the controller's API commits an invented configuration.
func underlayForgery(t *testing.T) {
	v := attacked(t)
	c := v.Sled("c")
	invented, _ := quorumtest.Forge(1, v.Sled("d").ID, 2, 2, oldSecrets(t), v.ids("a", "b", "c", "d")...)
	for code, cert := range map[reason.Code]*quorum.Certificate{
		quorum.CodeCertificateMissing: nil,
		quorum.CodeCertificateInvalid: v.Sled("a").Disk.Certificates[1],
	} {
		_, err := v.Do(c, quorum.PrepareAndCommit{Config: invented, Certificate: cert})
		refusedAs(t, err, code)
	}
	r := v.Request(c, 2, 1, 2, v.Sleds...)
	r.Threshold = 3
	_, err := v.Do(c, r)
	refusedAs(t, err, quorum.CodeGrantMismatch)
	if len(c.Disk.Configs) != 1 || c.Node.Roles() != (quorum.Roles{}) {
		t.Errorf("the state changed: %+v", c.Node.Status())
	}
}

func refusedAs(t *testing.T, err error, code reason.Code) {
	t.Helper()
	if reason.CodeOf(err) != code {
		t.Errorf("have %v (%s), want %s", err, reason.CodeOf(err), code)
	}
}

// TestAlarmsAreBounded: a liar cannot fill the memory, nor the room that the alarms of others need.
func TestAlarmsAreBounded(t *testing.T) {
	t.Parallel()
	v := attacked(t)
	c := v.Sled("c")
	say := func(from string, e ident.Epoch) quorum.Effects {
		fx, err := v.Do(c, quorum.PeerMessage{From: v.Sled(from).ID, Message: quorum.Message{RackID: quorumtest.RackID(), Kind: quorum.ExpungedNotice{Epoch: e}}})
		ok(t, err)
		return fx
	}
	for e := ident.Epoch(2); e < 1000; e++ {
		say("d", e)
	}
	if have := len(c.Node.Status().Alarms); have != 32 {
		t.Errorf("alarms: have %d, want 32", have)
	}
	if fx := say("d", 5000); len(fx.Alarms) != 0 || len(fx.Notes) != 2 || fx.Notes[1].Code != quorum.CodeAlarmsFull {
		t.Errorf("one more: have %+v", fx)
	}
	if fx := say("a", 2); len(fx.Alarms) != 1 {
		t.Errorf("of another peer: have %+v", fx)
	}
}

// TestRequestsAreBounded: waiting requests have a limit, and so have peers.
func TestRequestsAreBounded(t *testing.T) {
	t.Parallel()
	v := attacked(t)
	c := v.Sled("c")
	for id := quorum.RequestID(1); id <= 64; id++ {
		ok(t, v.Step(c, quorum.LoadSecret{ID: id}))
	}
	_, err := v.Do(c, quorum.LoadSecret{ID: 65})
	refusedAs(t, err, quorum.CodeBusy)
	for i := range 300 {
		ok(t, v.Step(c, quorum.PeerUp{Peer: ident.Baseboard{Part: "x", Serial: string(rune('a'+i%26)) + string(rune('a'+i/26))}}))
	}
	if have := len(c.Node.Status().Peers); have != 255 {
		t.Errorf("peers: have %d, want 255", have)
	}
}
