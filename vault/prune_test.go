package vault_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/rack"
	"github.com/sledvault/sledvault/vault/rack/controller"
	"github.com/sledvault/sledvault/vault/reason"
)

func prune(keep ident.Epoch) func(context.Context, *controller.Controller) (*rack.Change, error) {
	return func(ctx context.Context, c *controller.Controller) (*rack.Change, error) { return c.Prune(ctx, keep) }
}

// TestPrune: older secrets go only when the operator says so, never one that a disk in the rack needs, and stay gone with
// the changes that follow; what is in the rack still opens.
func TestPrune(t *testing.T) {
	t.Parallel()
	r := unlockedRack(t, 3)
	for e := ident.Epoch(2); e <= 3; e++ {
		r.changed(rotate)
		for _, s := range r.sleds {
			s.hasCommitted(e)
			s.rotatedTo(e)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	p, err := r.controller().PlanPrune(ctx, 3)
	must(t, err)
	if !slices.Equal(p.Dropped, []ident.Epoch{1, 2}) || len(p.InUse) != 0 {
		t.Errorf("plan: %+v", p)
	}
	if p, err = r.controller().PlanPrune(ctx, 4); err != nil || len(p.InUse) != 3 {
		t.Errorf("plan beyond what disks need: %+v, %v", p, err)
	}
	if _, err := r.controller().Prune(ctx, 4); reason.CodeOf(err) != controller.CodeSecretInUse {
		t.Errorf("dropping what disks need: %v", err)
	}
	if ch := r.changed(prune(3)); ch.Epoch != 4 || ch.KeepFrom != 3 || ch.Kind != rack.Prune {
		t.Errorf("pruned: %+v", ch)
	}
	if ch := r.changed(prune(3)); ch.Epoch != 4 {
		t.Errorf("pruning twice made epoch %d", ch.Epoch)
	}
	opens(t, r.sleds...)
	r.older(1, 3)
	r.changed(rotate)
	r.older(2, 3)
	opens(t, r.sleds...)

	r.addSled()
	r.changed(add("sled-4"))
	r.changed(remove("sled-1"))
	for _, s := range r.sleds[1:3] {
		s.rotatedTo(7)
	}
	if p, err = r.controller().PlanPrune(t.Context(), 7); err != nil || len(p.InUse) != 0 || len(p.Lost) != 1 {
		t.Errorf("plan with a removed sled: %+v, %v", p, err)
	}

	r.sleds[2].stop()
	short, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if _, err := r.controller().Prune(short, 4); reason.CodeOf(err) != controller.CodeWaiting {
		t.Errorf("a member that may have an old disk is down: %v", err)
	}
}

// older checks what every sled says of the older secrets.
func (r *testRack) older(n int, keepFrom ident.Epoch) {
	r.t.Helper()
	for _, s := range r.sleds {
		st, err := s.local().Status(r.t.Context())
		must(r.t, err)
		if q := st.Quorum; q.OlderSecrets != n || q.KeepFrom != keepFrom {
			r.t.Errorf("%s: have %d older secrets from epoch %d on, want %d from %d on", s.name, q.OlderSecrets, q.KeepFrom, n, keepFrom)
		}
	}
}
