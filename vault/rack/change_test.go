package rack_test

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/keys"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/rack"
	"github.com/sledvault/sledvault/vault/reason"
)

// ready is a rack of n sleds whose first configuration every member has committed.
func ready(tb interface{ Fatal(...any) }, n int) *rack.State {
	s := &rack.State{}
	if err := s.BeginInit(boards(n), 0); err != nil {
		tb.Fatal(err)
	}
	decide(tb, s, s.Change.Members)
	for _, m := range s.Change.Members {
		s.Change.CommittedBy(m)
	}
	return s
}

// completed is the configuration of a change with the older secrets in it.
func completed(ch *rack.Change) *quorum.Configuration {
	c := made(ch)
	if ch.LastCommitted != 0 {
		c.EncryptedSecrets = &keys.EncryptedSecrets{}
	}
	return c
}

func decide(tb interface{ Fatal(...any) }, s *rack.State, acked []ident.Baseboard) {
	c := completed(s.Change)
	if _, err := s.Change.Prepared(c, acked); err != nil {
		tb.Fatal(err)
	}
	if err := s.Change.Decide(c, &quorum.Certificate{}); err != nil {
		tb.Fatal(err)
	}
}

func TestBeginChange(t *testing.T) {
	t.Parallel()
	all := boards(6)
	for name, c := range map[string]struct {
		plan rack.Plan
		prep func(*rack.State)
		code reason.Code
	}{
		"add":                    {plan: rack.Plan{Kind: rack.Add, Members: all[:5], Coordinator: all[0]}},
		"remove":                 {plan: rack.Plan{Kind: rack.Remove, Members: all[1:4], Coordinator: all[1]}},
		"rotate":                 {plan: rack.Plan{Kind: rack.Rotate, Members: all[:4], Coordinator: all[3]}},
		"too few stay":           {plan: rack.Plan{Kind: rack.Remove, Members: all[:2], Coordinator: all[0]}, code: rack.CodeMembers},
		"twice":                  {plan: rack.Plan{Kind: rack.Add, Members: append(slices.Clone(all[:4]), all[0]), Coordinator: all[0]}, code: rack.CodeMembers},
		"add that removes":       {plan: rack.Plan{Kind: rack.Add, Members: all[1:6], Coordinator: all[1]}, code: rack.CodeMembers},
		"rotation that adds":     {plan: rack.Plan{Kind: rack.Rotate, Members: all[:5], Coordinator: all[0]}, code: rack.CodeMembers},
		"nothing added":          {plan: rack.Plan{Kind: rack.Add, Members: all[:4], Coordinator: all[0]}, code: rack.CodeMembers},
		"threshold":              {plan: rack.Plan{Kind: rack.Rotate, Members: all[:4], Threshold: 4, Coordinator: all[0]}, code: rack.CodeThreshold},
		"new member coordinates": {plan: rack.Plan{Kind: rack.Add, Members: all[:5], Coordinator: all[4]}, code: rack.CodeCoordinator},
		"removed one coordinates": {
			plan: rack.Plan{Kind: rack.Remove, Members: all[1:4], Coordinator: all[0]}, code: rack.CodeCoordinator,
		},
		"stranger coordinates": {plan: rack.Plan{Kind: rack.Rotate, Members: all[:4], Coordinator: all[5]}, code: rack.CodeCoordinator},
		"one that has not committed": {
			plan: rack.Plan{Kind: rack.Rotate, Members: all[:4], Coordinator: all[3]}, code: rack.CodeCoordinator,
			prep: func(s *rack.State) { s.Change.Phase, s.Change.Committed = rack.Decided, all[:3] },
		},
		"too few have committed": {
			plan: rack.Plan{Kind: rack.Rotate, Members: all[:4], Coordinator: all[0]}, code: rack.CodeBusy,
			prep: func(s *rack.State) { s.Change.Phase, s.Change.Committed = rack.Decided, all[:2] },
		},
		"a removal without marks": {
			plan: rack.Plan{Kind: rack.Rotate, Members: all[:4], Coordinator: all[0]}, code: rack.CodeUnmarked,
			prep: func(s *rack.State) { s.Change.Removed = all[5:] },
		},
		"another under way": {
			plan: rack.Plan{Kind: rack.Rotate, Members: all[:4], Coordinator: all[0]}, code: rack.CodeBusy,
			prep: func(s *rack.State) {
				must(t, s.BeginChange(rack.Plan{Kind: rack.Rotate, Members: all[:4], Coordinator: all[1]}))
			},
		},
		"no rack": {
			plan: rack.Plan{Kind: rack.Rotate, Members: all[:4], Coordinator: all[0]}, code: rack.CodeUninitialised,
			prep: func(s *rack.State) { *s = rack.State{} },
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := ready(t, 4)
			if c.prep != nil {
				c.prep(s)
			}
			before := *s
			err := s.BeginChange(c.plan)
			wantCode(t, err, c.code)
			if err != nil {
				if s.Change != before.Change || s.Highest != before.Highest || s.Base != before.Base {
					t.Errorf("a refused change left traces: %+v", s)
				}
				return
			}
			ch := s.Change
			if ch.Epoch != 2 || ch.LastCommitted != 1 || s.LastCommitted() != 1 || s.Committed() != before.Change || ch.NeedAcks != ch.Quorum() {
				t.Errorf("%+v", ch)
			}
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestAgain: a lost coordinator is replaced under a later epoch; what was acknowledged to it counts no more.
func TestAgain(t *testing.T) {
	t.Parallel()
	s := ready(t, 4)
	all := boards(4)
	wantCode(t, s.Again(all[1]), rack.CodeNoChange)
	must(t, s.BeginChange(rack.Plan{Kind: rack.Rotate, Members: all, Coordinator: all[0]}))
	_, err := s.Change.Prepared(completed(s.Change), all[:2])
	must(t, err)
	first := s.Change
	wantCode(t, s.Again(boards(9)[8]), rack.CodeCoordinator)
	if s.Change != first || first.Phase != rack.Preparing {
		t.Errorf("a refused coordinator left traces: %+v", s.Change)
	}
	must(t, s.Again(all[1]))
	if ch := s.Change; ch.Epoch != 3 || ch.Coordinator != all[1] || ch.LastCommitted != 1 || len(ch.Acked) != 0 || ch.Kind != rack.Rotate {
		t.Errorf("%+v", ch)
	}
	if _, err := s.Change.Prepared(completed(first), all); err != nil || len(s.Change.Acked) != 0 {
		t.Errorf("acknowledgements of the aborted epoch count: %+v, %v", s.Change.Acked, err)
	}
	must(t, s.Change.Abort())
	if s.LastCommitted() != 1 || s.Committed() == nil || s.Committed().Epoch != 1 {
		t.Errorf("after the abort: %+v", s)
	}
	must(t, s.BeginChange(rack.Plan{Kind: rack.Rotate, Members: all, Coordinator: all[0]}))
	if s.Change.Epoch != 4 {
		t.Errorf("epoch %d, want one that was never used", s.Change.Epoch)
	}
}

// TestEpochsGrow: whatever happens to changes, no epoch is used twice, and what was decided stays.
func TestEpochsGrow(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s, all := ready(t, 5), boards(5)
		used, decided := map[ident.Epoch]bool{1: true}, ident.Epoch(1)
		for range rapid.IntRange(1, 20).Draw(t, "steps") {
			before := s.Change.Epoch
			who := all[rapid.IntRange(0, 4).Draw(t, "who")]
			switch rapid.SampledFrom([]string{"begin", "again", "abort", "decide", "commit"}).Draw(t, "step") {
			case "begin":
				_ = s.BeginChange(rack.Plan{Kind: rack.Rotate, Members: all, Coordinator: who})
			case "again":
				_ = s.Again(who)
			case "abort":
				_ = s.Change.Abort()
			case "decide":
				if s.Change.Phase == rack.Preparing {
					decide(t, s, all)
					decided = s.Change.Epoch
				}
			case "commit":
				s.Change.CommittedBy(who)
			}
			if e := s.Change.Epoch; e != before && (used[e] || e <= before) {
				t.Fatalf("epoch %d again after %d", e, before)
			}
			used[s.Change.Epoch] = true
			if s.LastCommitted() != decided || s.Committed().Epoch != decided {
				t.Fatalf("last committed: have %d and %d, want %d", s.LastCommitted(), s.Committed().Epoch, decided)
			}
		}
	})
}

func TestAttack(t *testing.T) {
	t.Parallel()
	// A coordinator that reports its configuration before the older secrets are in it, acknowledged or not, never gets it
	// decided.
	t.Run("orphan-old-secrets", func(t *testing.T) {
		t.Parallel()
		s, all := ready(t, 4), boards(4)
		must(t, s.BeginChange(rack.Plan{Kind: rack.Rotate, Members: all, Coordinator: all[0]}))
		if changed, err := s.Change.Prepared(made(s.Change), nil); changed || err != nil {
			t.Errorf("while the coordinator collects: %v, %v", changed, err)
		}
		_, err := s.Change.Prepared(made(s.Change), all)
		wantCode(t, err, rack.CodeIncomplete)
		if _, err := s.Change.Prepared(completed(s.Change), all); err != nil || !s.Change.Ready() {
			t.Fatalf("the complete one: %v", err)
		}
		wantCode(t, s.Change.Decide(made(s.Change), &quorum.Certificate{}), rack.CodeIncomplete)
		if s.Change.Phase != rack.Preparing {
			t.Errorf("phase %s", s.Change.Phase)
		}
		must(t, s.Change.Decide(completed(s.Change), &quorum.Certificate{}))
	})
}
