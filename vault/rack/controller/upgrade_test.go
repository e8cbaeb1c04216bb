package controller_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/sledvault/sledvault/rot/enroll"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/rack"
	"github.com/sledvault/sledvault/vault/rack/controller"
	"github.com/sledvault/sledvault/vault/reason"
)

func (r *testRack) upgrade() (*rack.Change, error) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	return r.open().UpgradeLRTQ(ctx)
}

// TestUpgradeLRTQ brings a rack over from the older scheme: at a coordinator that holds a package, from epoch 2 on, once.
func TestUpgradeLRTQ(t *testing.T) {
	t.Parallel()
	r := newRack(t, 3)
	if _, err := r.upgrade(); reason.CodeOf(err) != controller.CodeNoPackage || reason.HintOf(err) == "" {
		t.Errorf("without packages: have %v", err)
	}
	for _, s := range r.sleds[1:] {
		s.lrtq = true
	}
	if _, err := r.init(patience); reason.CodeOf(err) != quorum.CodeUpgradeRequired {
		t.Errorf("init: have %v", err)
	}
	ch, err := r.upgrade()
	must(t, err)
	coordinator := slices.MinFunc(r.sleds[1:], func(a, b *fakeSled) int { return a.ID.Compare(b.ID) })
	if ch.Phase != rack.Done || ch.Epoch != 2 || ch.LastCommitted != 0 || ch.Kind != rack.Upgrade || ch.Coordinator != coordinator.ID || ch.Config.EncryptedSecrets == nil {
		t.Errorf("have %+v", ch)
	}
	if coordinator.called("upgrade") != 1 || r.sleds[0].called("upgrade") != 0 {
		t.Errorf("have calls %v", coordinator.calls)
	}
	for name, again := range map[string]func() (*rack.Change, error){"upgrade": r.upgrade, "init": func() (*rack.Change, error) { return r.init(patience) }} {
		if _, err := again(); reason.CodeOf(err) != rack.CodeInitialised {
			t.Errorf("%s again: have %v", name, err)
		}
	}
	if len(ch.Missing()) != 0 {
		t.Errorf("missing: %v", ch.Missing())
	}
}

// TestUpgradeResumes: a coordinator that forgets is asked again under another epoch, and a broken-off upgrade goes on; no
// other first configuration may come between.
func TestUpgradeResumes(t *testing.T) {
	t.Parallel()
	r := newRack(t, 3)
	for _, s := range r.sleds {
		s.lrtq = true
	}
	first := slices.MinFunc(r.sleds, func(a, b *fakeSled) int { return a.ID.Compare(b.ID) })
	first.forget = true
	broken := r.open()
	broken.OnSave(func(rack.State) error { return nil })
	ctx, cancel := context.WithCancel(t.Context())
	last := slices.MaxFunc(r.sleds, func(a, b *fakeSled) int { return a.ID.Compare(b.ID) })
	last.mu.Lock()
	last.unready = true // nobody can decide
	last.mu.Unlock()
	done := make(chan error, 1)
	go func() { _, err := broken.UpgradeLRTQ(ctx); done <- err }()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for first.called("upgrade") < 2 {
		<-tick.C
	}
	cancel()
	if err := <-done; err == nil {
		t.Error("broken off: have no error")
	}
	if _, err := r.init(patience); reason.CodeOf(err) != rack.CodeBusy || reason.HintOf(err) == "" {
		t.Errorf("init meanwhile: have %v", err)
	}
	last.mu.Lock()
	last.unready = false
	last.mu.Unlock()
	first.mu.Lock()
	first.coord = nil // it restarts, and prepares everybody this time
	first.bump()
	first.mu.Unlock()
	ch, err := r.upgrade()
	must(t, err)
	if ch.Phase != rack.Done || ch.Epoch < 3 || ch.Kind != rack.Upgrade {
		t.Errorf("have %+v", ch)
	}
}

// TestNewRackOf: a rack that comes from the older scheme keeps its id.
func TestNewRackOf(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "rack")
	id := ident.RackID{1, 2, 3}
	_, _, err := controller.Access{}.NewRackOf(dir, "left", id)
	must(t, err)
	b, err := os.ReadFile(filepath.Join(dir, "enrolment.cbor"))
	must(t, err)
	set, err := enroll.DecodeSet(b)
	must(t, err)
	if set.Rack != id {
		t.Errorf("have %s, want %s", set.Rack, id)
	}
}
