package rack_test

import (
	"slices"
	"testing"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/rack"
	"github.com/sledvault/sledvault/vault/reason"
)

// at is a rack of four whose latest epoch is 3 and that keeps secrets from epoch 2 on.
func at(t *testing.T) *rack.State {
	t.Helper()
	s := ready(t, 4)
	for _, p := range []rack.Plan{
		{Kind: rack.Rotate, Members: boards(4), Coordinator: boards(4)[1]},
		{Kind: rack.Prune, Members: boards(4), Coordinator: boards(4)[1], KeepFrom: 2},
	} {
		if err := s.BeginChange(p); err != nil {
			t.Fatal(err)
		}
		decide(t, s, s.Change.Members)
		for _, m := range s.Change.Members {
			s.Change.CommittedBy(m)
		}
	}
	if s.LastCommitted() != 3 || s.Change.KeepFrom != 2 {
		t.Fatalf("have %+v", s.Change)
	}
	return s
}

// TestKeepFrom: only a prune moves the first epoch that is kept, only forward, and never past the committed epoch; every
// later change carries it on.
func TestKeepFrom(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		kind rack.Kind
		keep ident.Epoch
		code reason.Code
		then ident.Epoch
	}{
		{rack.Rotate, 0, "", 2},
		{rack.Rotate, 2, "", 2},
		{rack.Rotate, 3, rack.CodeKeepFrom, 0},
		{rack.Prune, 0, rack.CodeKeepFrom, 0},
		{rack.Prune, 1, rack.CodeKeepFrom, 0},
		{rack.Prune, 2, rack.CodeKeepFrom, 0},
		{rack.Prune, 3, "", 3},
		{rack.Prune, 4, rack.CodeKeepFrom, 0},
	} {
		s := at(t)
		err := s.BeginChange(rack.Plan{Kind: c.kind, Members: boards(4), Coordinator: boards(4)[0], KeepFrom: c.keep})
		if reason.CodeOf(err) != c.code || c.code == "" && s.Change.KeepFrom != c.then {
			t.Errorf("%s from %d: have %v, keeps from %d", c.kind, c.keep, err, s.Change.KeepFrom)
		}
	}
}

// TestKindsCountMembers: each kind takes exactly the membership that it is for.
func TestKindsCountMembers(t *testing.T) {
	t.Parallel()
	exchanged := append(slices.Clone(boards(5)[:3]), boards(5)[4])
	for _, c := range []struct {
		kind    rack.Kind
		members []ident.Baseboard
		fits    bool
	}{
		{rack.Add, boards(5), true},
		{rack.Add, boards(4), false},
		{rack.Add, boards(3), false},
		{rack.Add, exchanged, false},
		{rack.Remove, boards(3), true},
		{rack.Remove, boards(4), false},
		{rack.Remove, boards(5), false},
		{rack.Remove, exchanged, false},
		{rack.Rotate, boards(4), true},
		{rack.Rotate, boards(3), false},
		{rack.Rotate, boards(5), false},
		{rack.Rotate, exchanged, false},
		{rack.Upgrade, boards(4), false},
		{"", boards(4), false},
	} {
		s := at(t)
		err := s.BeginChange(rack.Plan{Kind: c.kind, Members: c.members, Coordinator: boards(4)[0]})
		if removed := s.Change.Removed; err == nil && (len(removed) != max(0, 4-len(c.members)) || len(removed) == 1 && removed[0] != boards(4)[3]) {
			t.Errorf("%s to %d members: removes %v", c.kind, len(c.members), removed)
		}
		want := rack.CodeMembers
		if c.fits {
			want = ""
		}
		if reason.CodeOf(err) != want {
			t.Errorf("%s to %d members: have %v", c.kind, len(c.members), err)
		}
	}
}

// TestRecertify: another certificate sends the committed configuration to everybody again; the same one, or none to begin
// with, does nothing.
func TestRecertify(t *testing.T) {
	t.Parallel()
	if (&rack.State{}).Recertify(&quorum.Certificate{}) {
		t.Error("nothing is committed")
	}
	s := at(t)
	had := s.Change.Certificate
	if same := *had; s.Recertify(&same) || s.Change.Phase != rack.Done {
		t.Errorf("the same certificate: have %+v", s.Change)
	}
	renewed := *had
	renewed.Signature[0] ^= 1
	if !s.Recertify(&renewed) || s.Change.Phase != rack.Decided || len(s.Change.Committed) != 0 || *s.Change.Certificate != renewed || s.Base != nil {
		t.Errorf("another certificate: have %+v", s.Change)
	}
	s.Change.Certificate = nil // adopted without one
	if !s.Recertify(&renewed) {
		t.Error("the first certificate was not taken")
	}
}

// TestHighestBelievedEpoch: the last epoch that is believed, and the first that is not.
func TestHighestBelievedEpoch(t *testing.T) {
	t.Parallel()
	var s rack.State
	if err := s.Observe(1 << 45); err != nil || s.Highest != 1<<45 {
		t.Errorf("have %v, highest %d", err, s.Highest)
	}
	wantCode(t, s.Observe(1<<45+1), rack.CodeEpochs)
}

// TestGrant: the operator's word is for exactly the change.
func TestGrant(t *testing.T) {
	t.Parallel()
	s := at(t)
	if err := s.BeginChange(rack.Plan{Kind: rack.Remove, Members: boards(4)[1:], Threshold: 2, Coordinator: boards(4)[2]}); err != nil {
		t.Fatal(err)
	}
	g := s.Change.Grant(ident.RackID{7})
	if g.RackID != (ident.RackID{7}) || g.Epoch != 4 || g.Coordinator != boards(4)[2] || !slices.Equal(g.Members, boards(4)[1:]) || g.Threshold != 2 ||
		g.LastCommitted != 3 || g.KeepFrom != 2 || g.LRTQUpgrade {
		t.Errorf("have %+v", g)
	}
}
