package rack_test

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/keys"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/rack"
	"github.com/sledvault/sledvault/vault/reason"
)

func boards(n int) (out []ident.Baseboard) {
	for i := range n {
		out = append(out, ident.Baseboard{Part: "p", Serial: fmt.Sprintf("%02d", i)})
	}
	return out
}

// made is the configuration that an honest coordinator makes of a change.
func made(ch *rack.Change) *quorum.Configuration {
	c := &quorum.Configuration{Epoch: ch.Epoch, Coordinator: ch.Coordinator, Threshold: ch.Threshold}
	for _, m := range ch.Members {
		c.Members = append(c.Members, quorum.Member{ID: m})
	}
	return c
}

func wantCode(t *testing.T, err error, code reason.Code) {
	t.Helper()
	if reason.CodeOf(err) != code || (err == nil) != (code == "") {
		t.Errorf("have %v, want %q", err, code)
	}
	if code != "" && reason.HintOf(err) == "" {
		t.Errorf("%v: no hint", err)
	}
}

// TestTolerance pins the reference's table (rack.md §4).
func TestTolerance(t *testing.T) {
	t.Parallel()
	for n, want := range map[int]int{3: 0, 4: 0, 5: 1, 8: 1, 9: 2, 15: 2, 16: 3, 23: 3, 24: 4, 32: 4} {
		if have := rack.Tolerance(n); have != want {
			t.Errorf("%d members: have %d, want %d", n, have, want)
		}
		if k := int(rack.Threshold(n)); k != n/2+1 || k+rack.Tolerance(n) > n {
			t.Errorf("%d members: threshold %d plus tolerance %d is out of reach", n, k, rack.Tolerance(n))
		}
	}
}

func TestBeginInit(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		members   []ident.Baseboard
		threshold ident.Threshold
		code      reason.Code
	}{
		"three":             {boards(3), 0, ""},
		"thirty-two":        {boards(32), 0, ""},
		"two":               {boards(2), 0, rack.CodeMembers},
		"none":              {nil, 0, rack.CodeMembers},
		"thirty-three":      {boards(33), 0, rack.CodeMembers},
		"twice":             {append(boards(3), boards(1)...), 0, rack.CodeMembers},
		"own threshold":     {boards(5), 4, ""},
		"least":             {boards(5), 2, ""},
		"one share":         {boards(5), 1, rack.CodeThreshold},
		"all shares":        {boards(5), 5, rack.CodeThreshold},
		"more than members": {boards(5), 200, rack.CodeThreshold},
	} {
		var s rack.State
		reversed := slices.Clone(c.members)
		slices.Reverse(reversed)
		err := s.BeginInit(reversed, c.threshold)
		t.Run(name, func(t *testing.T) { wantCode(t, err, c.code) })
		if c.code != "" {
			if s.Change != nil || s.Highest != 0 {
				t.Errorf("%s: a refused beginning changed the state", name)
			}
			continue
		}
		ch := s.Change
		if ch.Epoch != 1 || ch.Phase != rack.Preparing || ch.NeedAcks != len(c.members) || !slices.Equal(ch.Members, c.members) || ch.Coordinator != c.members[0] {
			t.Errorf("%s: have %+v", name, ch)
		}
	}
}

// TestLife walks one change from its beginning to its end, and tries everything out of order on the way.
func TestLife(t *testing.T) {
	t.Parallel()
	var s rack.State
	if err := s.BeginInit(boards(3), 0); err != nil {
		t.Fatal(err)
	}
	ch := s.Change
	wantCode(t, s.BeginInit(boards(3), 0), rack.CodeBusy)
	cfg := made(ch)
	if ch.CommittedBy(ch.Members[0]) || ch.Ready() {
		t.Error("committed before anybody prepared")
	}
	if err := ch.Decide(cfg, nil); err == nil {
		t.Error("decided before everybody prepared")
	}
	for i, m := range ch.Members {
		changed, err := ch.Prepared(cfg, []ident.Baseboard{m, {Part: "x", Serial: "stranger"}})
		if err != nil || !changed {
			t.Fatalf("prepared by %s: %v %v", m, changed, err)
		}
		if changed, _ := ch.Prepared(cfg, []ident.Baseboard{m}); changed {
			t.Error("the same acknowledgement counted twice")
		}
		if ch.Ready() != (i == 2) || len(ch.Missing()) != 2-i {
			t.Errorf("after %d: ready %v, missing %v", i+1, ch.Ready(), ch.Missing())
		}
	}
	if err := ch.Decide(cfg, &quorum.Certificate{Epoch: 1}); err != nil {
		t.Fatal(err)
	}
	wantCode(t, ch.Abort(), rack.CodeDecided)
	wantCode(t, s.BeginInit(boards(4), 0), rack.CodeInitialised)
	for i, m := range ch.Members {
		if !ch.CommittedBy(m) || ch.CommittedBy(m) && i < 2 {
			t.Errorf("commit by %s counted wrongly", m)
		}
	}
	if ch.Phase != rack.Done || len(ch.Missing()) != 0 || s.LastCommitted() != 1 {
		t.Errorf("have %+v", s)
	}
	wantCode(t, s.BeginInit(boards(4), 0), rack.CodeInitialised)
}

// TestMismatch: a coordinator that made something else than it was asked for is not followed.
func TestMismatch(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*quorum.Configuration){
		"threshold":   func(c *quorum.Configuration) { c.Threshold = 3 },
		"coordinator": func(c *quorum.Configuration) { c.Coordinator = c.Members[1].ID },
		"a member":    func(c *quorum.Configuration) { c.Members[2].ID.Serial = "evil" },
		"one more": func(c *quorum.Configuration) {
			c.Members = append(c.Members, quorum.Member{ID: ident.Baseboard{Part: "z"}})
		},
		"one less": func(c *quorum.Configuration) { c.Members = c.Members[:2] },
	} {
		var s rack.State
		if err := s.BeginInit(boards(3), 0); err != nil {
			t.Fatal(err)
		}
		cfg := made(s.Change)
		change(cfg)
		_, err := s.Change.Prepared(cfg, s.Change.Members)
		t.Run(name, func(t *testing.T) { wantCode(t, err, rack.CodeMismatch) })
		if _, err := s.Change.Prepared(made(s.Change), s.Change.Members); err != nil {
			t.Fatal(err)
		}
		t.Run(name+", at the decision", func(t *testing.T) { wantCode(t, s.Change.Decide(cfg, nil), rack.CodeMismatch) })
	}
}

// TestForeignReports: answers about other epochs, or to a change that is past preparing, are nobody's business.
func TestForeignReports(t *testing.T) {
	t.Parallel()
	var s rack.State
	if err := s.BeginInit(boards(3), 0); err != nil {
		t.Fatal(err)
	}
	other := made(s.Change)
	other.Epoch = 9
	for _, c := range []*quorum.Configuration{nil, other} {
		if changed, err := s.Change.Prepared(c, s.Change.Members); changed || err != nil {
			t.Errorf("have %v %v", changed, err)
		}
	}
	if err := s.Change.Abort(); err != nil {
		t.Fatal(err)
	}
	if changed, _ := s.Change.Prepared(made(s.Change), s.Change.Members); changed {
		t.Error("an acknowledgement revived an aborted change")
	}
	if s.Change.Ready() || s.Change.CommittedBy(s.Change.Members[0]) || len(s.Change.Missing()) != 0 {
		t.Error("an aborted change goes on")
	}
}

func TestObserve(t *testing.T) {
	t.Parallel()
	var s rack.State
	for _, e := range []ident.Epoch{3, 7, 5} {
		if err := s.Observe(e); err != nil {
			t.Fatal(err)
		}
	}
	wantCode(t, s.Observe(1<<63), rack.CodeEpochs)
	if err := s.BeginInit(boards(3), 0); err != nil {
		t.Fatal(err)
	}
	if s.Change.Epoch != 8 {
		t.Errorf("have epoch %d, want 8", s.Change.Epoch)
	}
}

// TestAdopt: a journal that was lost takes the newest committed configuration over, once.
func TestAdopt(t *testing.T) {
	t.Parallel()
	var was, s rack.State
	if err := was.BeginInit(boards(4), 3); err != nil {
		t.Fatal(err)
	}
	cfg, cert := made(was.Change), &quorum.Certificate{Epoch: 1}
	changed, err := s.Adopt(cfg, cert)
	if err != nil || !changed {
		t.Fatal(changed, err)
	}
	if s.LastCommitted() != 1 || s.Highest != 1 || s.Change.Phase != rack.Decided || s.Change.Config != cfg || s.Change.Certificate != cert || len(s.Change.Missing()) != 4 {
		t.Errorf("have %+v %+v", s, s.Change)
	}
	if changed, err := s.Adopt(cfg, cert); changed || err != nil {
		t.Errorf("twice: have %v %v", changed, err)
	}
	wantCode(t, s.BeginInit(boards(4), 0), rack.CodeInitialised)
	cfg.Epoch = 1 << 60
	_, err = s.Adopt(cfg, cert)
	wantCode(t, err, rack.CodeEpochs)
}

// TestRules plays random operators, coordinators and members, and checks after each step what must always hold.
func TestRules(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var s rack.State
		used := map[ident.Epoch]bool{}
		var decided *rack.Change
		t.Repeat(map[string]func(*rapid.T){
			"begin": func(t *rapid.T) {
				n := rapid.IntRange(0, 34).Draw(t, "members")
				if s.BeginInit(boards(n), ident.Threshold(rapid.IntRange(0, 6).Draw(t, "threshold"))) != nil {
					return
				}
				if used[s.Change.Epoch] || decided != nil {
					t.Fatalf("epoch %d: begun twice, or after a decision", s.Change.Epoch)
				}
				used[s.Change.Epoch] = true
			},
			"observe": func(t *rapid.T) {
				before := s.Highest
				_ = s.Observe(ident.Epoch(rapid.Uint64().Draw(t, "epoch") >> rapid.IntRange(0, 63).Draw(t, "shift")))
				if s.Highest < before {
					t.Fatal("the highest epoch went back")
				}
			},
			"prepared": func(t *rapid.T) {
				if s.Change != nil {
					_, _ = s.Change.Prepared(made(s.Change), rapid.SliceOf(rapid.SampledFrom(boards(34))).Draw(t, "acked"))
				}
			},
			"decide": func(t *rapid.T) {
				if s.Change == nil {
					return
				}
				ready := s.Change.Ready()
				if err := s.Change.Decide(made(s.Change), &quorum.Certificate{}); (err == nil) != ready {
					t.Fatalf("ready %v, decide: %v", ready, err)
				}
				if ready {
					decided = s.Change
				}
			},
			"commit": func(t *rapid.T) {
				if s.Change != nil && s.Change.CommittedBy(rapid.SampledFrom(boards(34)).Draw(t, "member")) && decided != s.Change {
					t.Fatal("a commit without a decision")
				}
			},
			"abort": func(t *rapid.T) {
				if s.Change != nil && s.Change.Abort() == nil && decided == s.Change {
					t.Fatal("a decided change was aborted")
				}
			},
			"": func(t *rapid.T) {
				ch := s.Change
				if ch == nil {
					return
				}
				if ch.Epoch > s.Highest || len(ch.Acked) > len(ch.Members) || len(ch.Committed) > len(ch.Members) ||
					!slices.IsSortedFunc(ch.Acked, ident.Baseboard.Compare) || !slices.IsSortedFunc(ch.Committed, ident.Baseboard.Compare) {
					t.Fatalf("have %+v", ch)
				}
				if (ch.Phase == rack.Done) != (len(ch.Committed) == len(ch.Members)) || ch.Phase != rack.Preparing && ch.Phase != rack.Aborted && ch.Config == nil {
					t.Fatalf("phase %s with %d commits", ch.Phase, len(ch.Committed))
				}
				if decided != nil && s.LastCommitted() != decided.Epoch {
					t.Fatal("a decision was forgotten")
				}
			},
		})
	})
}

// TestBeginUpgrade: the first configuration of a rack that comes from the older scheme has an epoch above that scheme's, a
// coordinator of its own, a grant that says so, and the older secret in it.
func TestBeginUpgrade(t *testing.T) {
	t.Parallel()
	var s rack.State
	wantCode(t, s.BeginUpgrade(boards(3), 0, boards(4)[3]), rack.CodeCoordinator)
	wantCode(t, s.BeginUpgrade(boards(2), 0, boards(2)[0]), rack.CodeMembers)
	wantCode(t, s.BeginUpgrade(boards(3), 3, boards(3)[1]), rack.CodeThreshold)
	if err := s.BeginUpgrade(boards(3), 0, boards(3)[1]); err != nil {
		t.Fatal(err)
	}
	ch := s.Change
	if ch.Kind != rack.Upgrade || ch.Epoch != 2 || ch.Coordinator != boards(3)[1] || ch.LastCommitted != 0 || ch.NeedAcks != 3 {
		t.Errorf("have %+v", ch)
	}
	if g := ch.Grant(ident.RackID{9}); !g.LRTQUpgrade || g.LastCommitted != 0 || g.Coordinator != ch.Coordinator {
		t.Errorf("grant: have %+v", g)
	}
	wantCode(t, s.BeginInit(boards(3), 0), rack.CodeBusy)
	cfg := made(ch)
	_, err := ch.Prepared(cfg, ch.Members)
	wantCode(t, err, rack.CodeIncomplete)
	cfg.EncryptedSecrets = &keys.EncryptedSecrets{}
	if _, err := ch.Prepared(cfg, ch.Members); err != nil || !ch.Ready() {
		t.Fatalf("have %v, ready %v", err, ch.Ready())
	}
	wantCode(t, ch.Decide(made(ch), &quorum.Certificate{}), rack.CodeIncomplete)
	if err := ch.Decide(cfg, &quorum.Certificate{}); err != nil {
		t.Fatal(err)
	}
	wantCode(t, s.BeginUpgrade(boards(3), 0, boards(3)[0]), rack.CodeInitialised)
	// An epoch that a sled has seen is not used again.
	s = rack.State{Highest: 7}
	if err := s.BeginUpgrade(boards(3), 0, boards(3)[0]); err != nil || s.Change.Epoch != 8 {
		t.Errorf("have %v, %+v", err, s.Change)
	}
	if g := (&rack.Change{}).Grant(ident.RackID{}); g.LRTQUpgrade {
		t.Error("the first configuration of another rack is granted as an upgrade")
	}
}
