package quorum_test

import (
	"bytes"
	"errors"
	"reflect"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/quorum/quorumtest"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
)

// snapshot is everything of a node that can be seen.
func snapshot(s *quorumtest.Sled) any {
	st := s.Node.State()
	shares := map[ident.Epoch][32]byte{}
	for e, sh := range st.Shares {
		shares[e], _ = sh.Digest()
	}
	return []any{s.Node.Status(), st.Configs, shares, st.Commits, st.Certificates, st.Expunged, s.Node.Roles()}
}

// TestErrorLeavesStateUntouched gives every kind of request that is refused, in each situation of a node, and compares
// the node before and after.
func TestErrorLeavesStateUntouched(t *testing.T) {
	t.Parallel()
	c := rack(t, []string{"a", "b", "c", "d", "e"}, 4, 3)
	a := c.Sled("a")
	ok(t, c.Step(a, c.Request(a, 5, 1, 2, c.Sleds[:4]...)))
	ok(t, c.Step(a, quorum.LoadSecret{ID: 1}))
	e9 := ident.Epoch(9)
	e0 := ident.Epoch(0)
	wrongRack := c.Request(a, 6, 1, 2, c.Sleds[:4]...)
	wrongRack.RackID[0] ^= 1
	wrongRack.Grant = c.Grant(a, wrongRack)
	doubled := c.Request(a, 6, 1, 2, c.Sleds[:4]...)
	doubled.Members = append(doubled.Members, doubled.Members[0])
	many := c.Request(a, 6, 1, 2, c.Sleds[:4]...)
	for range 300 {
		many.Members = append(many.Members, many.Members[0])
	}
	upgrade := c.Request(a, 6, 1, 2, c.Sleds[:4]...)
	upgrade.Grant.LRTQUpgrade = true
	c.Auth.SignGrant(upgrade.Grant)
	zero := c.Request(a, 6, 1, 2, c.Sleds[:4]...)
	zero.LastCommitted = &e0
	zero.Grant = c.Grant(a, zero)
	config := a.Disk.Configs[1]
	foreign := *config
	foreign.RackID[0] ^= 1
	tiny := *config
	tiny.Members = tiny.Members[:2]
	tests := []struct {
		name string
		in   quorum.Input
		code reason.Code
	}{
		{"conflict", c.Request(a, 5, 1, 3, c.Sleds[:4]...), quorum.CodeReconfigurationConflict},
		{"lower", c.Request(a, 4, 1, 2, c.Sleds[:4]...), quorum.CodeReconfigurationRunning},
		{"stored", c.Request(a, 1, 1, 2, c.Sleds[:4]...), quorum.CodePreparedEpochMismatch},
		{"rack", wrongRack, quorum.CodeGrantInvalid},
		{"doubled", doubled, quorum.CodeInvalidMembers},
		{"many", many, quorum.CodeInvalidMembershipSize},
		{"upgrade", upgrade, quorum.CodeGrantMismatch},
		{"epoch 0", zero, quorum.CodeInvalidEpoch},
		{"last committed", c.Request(a, 6, 3, 2, c.Sleds[:4]...), quorum.CodeLastCommittedMismatch},
		{"no members", c.Request(a, 6, 1, 2), quorum.CodeCoordinatorNotMember},
		{"commit rack", quorum.Commit{RackID: ident.RackID{1}, Epoch: 1}, quorum.CodeInvalidRackID},
		{"commit unprepared", quorum.Commit{RackID: quorumtest.RackID(), Epoch: 5}, quorum.CodeNotPrepared},
		{"commit again, wrong certificate", quorum.Commit{RackID: quorumtest.RackID(), Epoch: 1, Certificate: &quorum.Certificate{}}, quorum.CodeCertificateInvalid},
		{"nothing", quorum.PrepareAndCommit{}, quorum.CodeInvalidConfiguration},
		{"foreign", quorum.PrepareAndCommit{Config: &foreign}, quorum.CodeInvalidRackID},
		{"tiny", quorum.PrepareAndCommit{Config: &tiny}, quorum.CodeInvalidConfiguration},
		{"load later", quorum.LoadSecret{ID: 2, Epoch: &e9}, quorum.CodeNotCommitted},
		{"load twice", quorum.LoadSecret{ID: 1}, quorum.CodeDuplicateRequest},
		{"authority", quorum.SetAuthority{}, quorum.CodeConfig},
		{"no input", nil, quorum.CodeConfig},
	}
	for _, tt := range tests {
		before := snapshot(a)
		_, err := c.Do(a, tt.in)
		if refusedAs(t, err, tt.code); !reflect.DeepEqual(before, snapshot(a)) {
			t.Errorf("%s: the node changed", tt.name)
		}
	}
	settle(t, c) // and what was under way goes on
	if !a.Disk.Prepared(5) {
		t.Error("the coordination was lost")
	}
}

// TestDurable shows that nothing comes out before it is saved, and nothing at all after a failed save.
func TestDurable(t *testing.T) {
	t.Parallel()
	c := quorumtest.NewCluster(1, "a", "b", "c")
	c.ConnectAll()
	a := c.Sled("a")
	out, err := a.Node.Step(c.Request(a, 1, 0, 2, c.Sleds...))
	ok(t, err)
	if !out.Changed() {
		t.Error("a first configuration changes the state")
	}
	if _, err := a.Node.Step(quorum.ClearSecrets{}); !errors.Is(err, quorum.ErrNotDurable) {
		t.Errorf("a second step: have %v, want ErrNotDurable", err)
	}
	boom := errors.New("disk full")
	fx, err := out.Durable(func(quorum.State) error { return boom })
	if !errors.Is(err, boom) || len(fx.Send) != 0 {
		t.Errorf("a failed save: have %v and %d messages", err, len(fx.Send))
	}
	if _, err := a.Node.Step(quorum.ClearSecrets{}); !errors.Is(err, boom) {
		t.Errorf("after a failed save: have %v", err)
	}
	if _, err := out.Durable(func(quorum.State) error { return nil }); !errors.Is(err, quorum.ErrReleased) {
		t.Errorf("a second release: have %v", err)
	}
	if _, err := (quorum.Output{}).Durable(nil); !errors.Is(err, quorum.ErrReleased) {
		t.Errorf("the zero output: have %v", err)
	}
}

// TestSavedStateStaysAsItWas holds on to every state that was given out to be saved.
func TestSavedStateStaysAsItWas(t *testing.T) {
	t.Parallel()
	c := quorumtest.NewCluster(1, "a", "b", "c")
	type saved struct {
		st     quorum.State
		counts [4]int
	}
	count := func(st quorum.State) [4]int {
		return [4]int{len(st.Configs), len(st.Shares), len(st.Commits), len(st.Certificates)}
	}
	var all []saved
	c.Save = func(s *quorumtest.Sled, st quorum.State) error {
		all = append(all, saved{st, count(st)})
		s.Disk = st
		return nil
	}
	c.ConnectAll()
	change(t, c, c.Sled("a"), 1, 0, 2, c.Sleds...)
	change(t, c, c.Sled("b"), 2, 1, 2, c.Sleds...)
	for i, s := range all {
		if count(s.st) != s.counts {
			t.Errorf("save %d: have %v, was %v", i, count(s.st), s.counts)
		}
	}
}

type noRand struct{}

func (noRand) Read([]byte) (int, error) { return 0, errors.New("no randomness") }

type noMemory struct{ left int }

func (m *noMemory) Alloc(n int) ([]byte, func(), error) {
	if m.left--; m.left < 0 {
		return nil, nil, errors.New("no memory")
	}
	return secret.Heap{}.Alloc(n)
}

// TestExhausted shows what happens when randomness or memory runs out: a request is refused as long as nothing has
// changed, and afterwards the node stops.
func TestExhausted(t *testing.T) {
	t.Parallel()
	c := quorumtest.NewCluster(1, "a", "b", "c")
	a := c.Sled("a")
	n, err := quorum.New(quorum.Config{ID: a.ID, Rand: noRand{}, Alloc: secret.Heap{}, Authority: c.Auth}, quorum.State{})
	ok(t, err)
	if _, err := n.Step(c.Request(a, 1, 0, 2, c.Sleds...)); reason.CodeOf(err) != quorum.CodeConfigurationFailed {
		t.Errorf("without randomness: have %v", err)
	}
	for memory := range 20 {
		n, err := quorum.New(quorum.Config{ID: a.ID, Rand: bytes.NewReader(bytes.Repeat([]byte{1}, 9999)), Alloc: &noMemory{memory}, Authority: c.Auth}, quorum.State{})
		ok(t, err)
		for _, s := range c.Sleds[1:] {
			out, err := n.Step(quorum.PeerUp{Peer: s.ID, Capabilities: s.Capabilities})
			ok(t, err)
			_, err = out.Durable(nil)
			ok(t, err)
		}
		out, err := n.Step(c.Request(a, 1, 0, 2, c.Sleds...))
		switch _, stopped := errors.AsType[*quorum.InvariantError](err); {
		case err == nil:
			fx, err := out.Durable(func(quorum.State) error { return nil })
			if ok(t, err); len(fx.Send) != 4 || memory < 7 {
				t.Errorf("with %d allocations: have %d messages", memory, len(fx.Send))
			}
		case stopped:
			if _, err := n.Step(quorum.ClearSecrets{}); err == nil {
				t.Error("a stopped node goes on")
			}
		case len(n.State().Configs) != 0 || n.Roles() != quorum.Roles{}:
			t.Errorf("with %d allocations: refused, and the node changed", memory)
		}
	}
}

// TestNewChecksState gives states that break a rule.
func TestNewChecksState(t *testing.T) {
	t.Parallel()
	c := rack(t, []string{"a", "b", "c"}, 3, 2)
	change(t, c, c.Sled("a"), 2, 1, 2, c.Sleds...)
	a, b := c.Sled("a"), c.Sled("b")
	born := quorumtest.NewCluster(1, "a", "b", "c")
	_, err := born.BornLRTQ(2, born.Sleds...)
	ok(t, err)
	older := born.Sled("a").Disk.LRTQ
	config := quorum.Config{ID: a.ID, Rand: noRand{}, Alloc: secret.Heap{}, Authority: c.Auth}
	for name, harm := range map[string]func(*quorum.State){
		"configuration missing":        func(s *quorum.State) { delete(s.Configs, 1) },
		"share missing":                func(s *quorum.State) { delete(s.Shares, 2) },
		"share of another sled":        func(s *quorum.State) { s.Shares[1] = b.Disk.Shares[1] },
		"share of another epoch":       func(s *quorum.State) { s.Shares[1] = s.Shares[2] },
		"share without configuration":  func(s *quorum.State) { s.Shares[9] = s.Shares[2] },
		"certificate missing":          func(s *quorum.State) { delete(s.Certificates, 2) },
		"certificate of another epoch": func(s *quorum.State) { s.Certificates[2] = s.Certificates[1] },
		"certificate of another rack": func(s *quorum.State) {
			o := *s.Certificates[2]
			o.RackID[0] ^= 1
			s.Certificates[2] = &o
		},
		"certificate without configuration": func(s *quorum.State) {
			o := *s.Certificates[2]
			o.Epoch = 9
			s.Certificates[9] = &o
		},
		"no certificate":            func(s *quorum.State) { s.Certificates[2] = nil },
		"epoch of the older scheme": func(s *quorum.State) { s.LRTQ = older },
		"commit unset":              func(s *quorum.State) { s.Commits[2] = false },
		"wrong key":                 func(s *quorum.State) { s.Configs[3] = s.Configs[2] },
		"nil configuration":         func(s *quorum.State) { s.Configs[3] = nil },
		"other rack": func(s *quorum.State) {
			o := *s.Configs[1]
			o.RackID[0] ^= 1
			s.Configs[1] = &o
		},
		"invalid configuration": func(s *quorum.State) {
			o := *s.Configs[1]
			o.Threshold = 9
			s.Configs[1] = &o
		},
	} {
		st := a.Disk.Clone()
		harm(&st)
		if _, err := quorum.New(config, st); reason.CodeOf(err) != quorum.CodeState {
			t.Errorf("%s: have %v", name, err)
		}
	}
	for name, harm := range map[string]func(*quorum.Config){
		"no authority": func(c *quorum.Config) { c.Authority = nil },
		"no random":    func(c *quorum.Config) { c.Rand = nil },
		"no allocator": func(c *quorum.Config) { c.Alloc = nil },
		"no identity":  func(c *quorum.Config) { c.ID = ident.Baseboard{} },
	} {
		bad := config
		harm(&bad)
		if _, err := quorum.New(bad, a.Disk); reason.CodeOf(err) != quorum.CodeConfig {
			t.Errorf("%s: have %v", name, err)
		}
	}
}

// TestNothingToResume: a certificate of a configuration without this sled calls for no computation.
func TestNothingToResume(t *testing.T) {
	t.Parallel()
	c := rack(t, []string{"a", "b", "c", "d"}, 4, 2)
	change(t, c, c.Sled("a"), 2, 1, 2, c.Sleds[:3]...)
	d := c.Sled("d")
	st := d.Disk.Clone()
	st.Configs[2], st.Certificates[2] = c.Sled("a").Disk.Configs[2], c.Sled("a").Disk.Certificates[2]
	n, err := quorum.New(quorum.Config{ID: d.ID, Rand: noRand{}, Alloc: secret.Heap{}, Authority: c.Auth}, st)
	ok(t, err)
	if r := n.Roles(); r != (quorum.Roles{}) {
		t.Errorf("have %+v", r)
	}
}

// counter counts live pages. The collector may free what was dropped without being destroyed, from another goroutine.
type counter struct{ live atomic.Int64 }

func (c *counter) Alloc(n int) ([]byte, func(), error) {
	c.live.Add(1)
	b, free, err := secret.Heap{}.Alloc(n)
	return b, func() { c.live.Add(-1); free() }, err
}

// TestNoSecretIsLeft counts pages: after a life with everything in it, only stored shares are left.
func TestNoSecretIsLeft(t *testing.T) {
	t.Parallel()
	pages := &counter{}
	c := quorumtest.NewCluster(1, "a", "b", "c", "d", "e")
	c.Alloc = pages
	for _, s := range c.Sleds {
		ok(t, c.Start(s))
	}
	c.ConnectAll()
	change(t, c, c.Sled("a"), 1, 0, 3, c.Sleds...)
	load(t, c, c.Sled("b"), 0).Destroy()
	d := c.Sled("d")
	c.Crash(d)
	a := c.Sled("a")
	ok(t, c.Step(a, c.Request(a, 2, 1, 2, c.Sleds[:4]...))) // never finished
	b := c.Sled("b")
	ok(t, c.Step(b, c.Request(b, 3, 1, 2, c.Sleds[:4]...)))
	settle(t, c)
	commit(t, c, 3, c.Sleds[:3]...)
	ok(t, c.Start(d))
	c.ConnectAll()
	c.Seen = func(_ *quorumtest.Sled, fx *quorum.Effects) {
		for _, r := range fx.Replies {
			r.Secret.Destroy()
		}
	}
	ok(t, c.Step(d, quorum.LoadSecret{ID: 5}))
	settle(t, c)
	ok(t, c.Step(c.Sled("e"), quorum.LoadSecret{ID: 6}))
	settle(t, c)
	if c.Sled("e").Disk.Expunged == nil {
		t.Error("e is not expunged")
	}
	stored := 0
	for _, s := range c.Sleds {
		ok(t, c.Step(s, quorum.ClearSecrets{}))
		stored += len(s.Disk.Shares)
		if r := s.Node.Roles(); r != (quorum.Roles{}) {
			t.Errorf("%s is busy: %+v", s.ID, r)
		}
	}
	if live := int(pages.live.Load()); live != stored {
		t.Errorf("pages: have %d, want %d for stored shares", live, stored)
	}
}

// TestComputingOutlivesRestart: a sled that was told of a commit and then restarted goes on by itself, and is not made a
// coordinator that would leave that commit out.
func TestComputingOutlivesRestart(t *testing.T) {
	t.Parallel()
	c := rack(t, []string{"a", "b", "c", "d"}, 4, 2)
	d := c.Sled("d")
	c.Crash(d)
	b := c.Sled("b")
	ok(t, c.Step(b, c.Request(b, 2, 1, 2, c.Sleds...)))
	settle(t, c)
	commit(t, c, 2, c.Sleds[:3]...)
	ok(t, c.Start(d))
	ok(t, c.Step(d, quorum.PrepareAndCommit{Config: b.Disk.Configs[2], Certificate: b.Disk.Certificates[2]}))
	for range 2 {
		if r := d.Node.Roles(); r.Computing != 2 {
			t.Fatalf("roles: have %+v, want computing 2", r)
		}
		_, err := c.Do(d, c.Request(d, 3, 1, 2, c.Sleds...))
		refusedAs(t, err, quorum.CodeLastCommittedMismatch)
		c.Crash(d)
		ok(t, c.Start(d))
	}
	c.ConnectAll()
	settle(t, c)
	if !d.Disk.Commits[2] {
		t.Errorf("d has not committed: %+v", d.Node.Status())
	}
}

// TestPrepareCompletesCommit: a Prepare that arrives while the share is being computed ends the computation.
func TestPrepareCompletesCommit(t *testing.T) {
	t.Parallel()
	c := quorumtest.NewCluster(1, "a", "b", "c", "d")
	c.ConnectAll()
	a, d := c.Sled("a"), c.Sled("d")
	ok(t, c.Step(a, c.Request(a, 1, 0, 2, c.Sleds...)))
	config := a.Disk.Configs[1]
	ok(t, c.Step(d, quorum.PrepareAndCommit{Config: config, Certificate: c.Auth.Certify(config)}))
	for c.Pending(a, d) > 0 {
		_, _, err := c.Deliver(a, d)
		ok(t, err)
	}
	if !d.Disk.Commits[1] || d.Node.Roles().Computing != 0 {
		t.Errorf("d has not committed: %+v", d.Node.Status())
	}
}

// TestAcknowledgedSharesAreWiped counts pages while a coordination is still under way.
func TestAcknowledgedSharesAreWiped(t *testing.T) {
	t.Parallel()
	pages := &counter{}
	c := quorumtest.NewCluster(1, "a", "b", "c")
	c.Alloc = pages
	for _, s := range c.Sleds {
		ok(t, c.Start(s))
	}
	c.ConnectAll()
	ok(t, c.Step(c.Sled("a"), c.Request(c.Sled("a"), 1, 0, 2, c.Sleds...)))
	settle(t, c)
	if c.Sled("a").Node.Roles().Coordinating != 1 || pages.live.Load() != 3 {
		t.Errorf("pages: have %d, want 3 for stored shares", pages.live.Load())
	}
}

// TestSetAuthority: what was passed on under the old verifier does not count under the new one.
func TestSetAuthority(t *testing.T) {
	t.Parallel()
	v := attacked(t)
	d := v.Sled("d")
	members := v.ids("a", "b", "c", "d")
	config, shares := quorumtest.Forge(1, d.ID, 2, 2, oldSecrets(t), members...)
	grant := &quorum.Grant{RackID: config.RackID, Epoch: 2, Coordinator: d.ID, Members: members, Threshold: 2, LastCommitted: 1}
	v.Auth.SignGrant(grant)
	ok(t, v.Step(v.Sled("c"), quorum.PeerMessage{From: d.ID, Message: quorum.Message{RackID: config.RackID, Kind: quorum.GrantNotice{Grant: grant}}}))
	ok(t, v.Step(v.Sled("c"), quorum.SetAuthority{Authority: v.Auth}))
	v.hears(quorum.CodeGrantMissing, quorum.AlarmUngrantedPrepare, quorum.Prepare{Config: config, Share: clone(t, shares[2])})
}

// TestRecertify replaces the certificate of a committed epoch after the membership key changed.
func TestRecertify(t *testing.T) {
	t.Parallel()
	c := rack(t, []string{"a", "b", "c"}, 3, 2)
	a := c.Sled("a")
	old := a.Disk.Certificates[1]
	c.Auth.Key = 99
	ok(t, c.Step(a, quorum.SetAuthority{Authority: c.Auth}))
	commit(t, c, 1, a)
	if *a.Disk.Certificates[1] == *old {
		t.Error("the certificate was not replaced")
	}
	ok(t, c.Step(a, quorum.Commit{RackID: quorumtest.RackID(), Epoch: 1}))
	_, err := c.Do(a, quorum.Commit{RackID: quorumtest.RackID(), Epoch: 1, Certificate: old})
	refusedAs(t, err, quorum.CodeCertificateInvalid)
}

// TestMixedPolynomial: a granted coordinator hands out shares of two polynomials. Whoever loads finds a threshold of
// shares that fit together, as long as there is one, and the alarms name epoch, coordinator and the odd share; with too
// few it is told so, and nothing wrong is ever given out for the older epochs.
func TestMixedPolynomial(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		odd  []int // of a, b, c: shares of the other polynomial
		away []string
		code reason.Code
		who  string // is named
	}{
		{"own share", []int{1}, nil, "", "b"},
		{"another's share", []int{0}, nil, "", "a"},
		{"own share, another one away", []int{1}, []string{"c", "d"}, quorum.CodeSecretDamaged, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			loadMixed(t, c.odd, c.away, c.code, c.who)
		})
	}
}

func loadMixed(t *testing.T, odd []int, away []string, code reason.Code, who string) {
	t.Helper()
	v := attacked(t)
	d := v.Sled("d")
	members := v.ids("a", "b", "c", "d")
	good, shares := quorumtest.Forge(1, d.ID, 2, 2, oldSecrets(t), members...)
	_, other := quorumtest.Forge(2, d.ID, 2, 2, oldSecrets(t), members...)
	bad := *good
	bad.Members = append([]quorum.Member(nil), good.Members...)
	for _, i := range odd {
		shares[i] = other[i]
		bad.Members[i].ShareDigest, _ = other[i].Digest()
	}
	grant := &quorum.Grant{RackID: bad.RackID, Epoch: 2, Coordinator: d.ID, Members: members, Threshold: 2, LastCommitted: 1}
	v.Auth.SignGrant(grant)
	for i, s := range v.Sleds[:3] {
		for _, k := range []quorum.MessageKind{quorum.GrantNotice{Grant: grant}, quorum.Prepare{Config: &bad, Share: clone(t, shares[i])}} {
			ok(t, v.Step(s, quorum.PeerMessage{From: d.ID, Message: quorum.Message{RackID: quorumtest.RackID(), Kind: k}}))
		}
	}
	commit(t, v.Cluster, 2, v.Sleds[:3]...)
	b := v.Sled("b")
	var replies []quorum.Reply
	v.Seen = func(_ *quorumtest.Sled, fx *quorum.Effects) { replies = append(replies, fx.Replies...) }
	for _, name := range away {
		ok(t, v.Step(b, quorum.PeerDown{Peer: v.Sled(name).ID}))
	}
	one := ident.Epoch(1)
	ok(t, v.Step(b, quorum.LoadSecret{ID: 1, Epoch: &one}))
	settle(t, v.Cluster)
	if len(replies) != 1 || reason.CodeOf(replies[0].Err) != code {
		t.Fatalf("replies: have %+v, want code %q", replies, code)
	}
	alarms := b.Node.Status().Alarms
	if len(alarms) == 0 || alarms[0].Kind != quorum.AlarmDecryptionFailed || alarms[0].Epoch != 2 {
		t.Errorf("alarms: have %+v", alarms)
	}
	named := slices.IndexFunc(alarms, func(a quorum.Alarm) bool { return a.Kind == quorum.AlarmMixedPolynomial })
	if who == "" && named >= 0 || who != "" && (named < 0 || alarms[named].From != v.Sled(who).ID) {
		t.Errorf("alarms: have %+v, want %q named", alarms, who)
	}
}
