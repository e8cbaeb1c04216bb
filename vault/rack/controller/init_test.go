package controller_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/rack"
	"github.com/sledvault/sledvault/vault/rack/controller"
	"github.com/sledvault/sledvault/vault/rack/journal"
	"github.com/sledvault/sledvault/vault/reason"
)

// patience is how long a test waits for what should happen at once.
const patience = 20 * time.Second

func (r *testRack) init(d time.Duration) (*rack.Change, error) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), d)
	defer cancel()
	return r.open().Init(ctx)
}

func (r *testRack) wantDone(epoch ident.Epoch) {
	r.t.Helper()
	ch, err := r.init(patience)
	if err != nil {
		r.t.Fatalf("%v\n%s", err, strings.Join(r.events, "\n"))
	}
	if ch.Phase != rack.Done || ch.Epoch != epoch {
		r.t.Errorf("have %s at epoch %d, want done at %d", ch.Phase, ch.Epoch, epoch)
	}
	for _, s := range r.sleds {
		if s.newest() != epoch || len(s.commits) != 1 {
			r.t.Errorf("%s has committed %v, want %d", s.ID, s.commits, epoch)
		}
	}
}

func TestInit(t *testing.T) {
	t.Parallel()
	r := newRack(t, 5)
	start := time.Now()
	r.wantDone(1)
	t.Logf("5 sleds, created to committed: %v", time.Since(start))
	if _, err := r.init(patience); reason.CodeOf(err) != rack.CodeInitialised || reason.HintOf(err) == "" {
		t.Errorf("again: have %v", err)
	}
	for _, s := range r.sleds {
		if s.called("prepare-and-commit") != 0 || s.called("commit") != 1 {
			t.Errorf("%s: have calls %v", s.ID, s.calls)
		}
	}
	st, err := r.open().Status(t.Context())
	must(t, err)
	if st.Change.Phase != rack.Done || len(st.Waiting) != 0 || len(st.Sleds) != 5 || st.Sleds[0].Status == nil {
		t.Errorf("status: have %+v", st)
	}
}

// TestResume: whatever the journal held when the controller was killed, and however far the sleds have come since, the
// next run ends well, and no sled ever commits two configurations.
func TestResume(t *testing.T) {
	t.Parallel()
	r := newRack(t, 3)
	path := filepath.Join(r.dir, "journal.json")
	var snapshots [][]byte
	r.onTell = func() {
		b, err := os.ReadFile(path)
		if err == nil && !slices.ContainsFunc(snapshots, func(o []byte) bool { return bytes.Equal(o, b) }) {
			snapshots = append(snapshots, b)
		}
	}
	r.wantDone(1)
	r.onTell = nil
	if len(snapshots) < 3 {
		t.Fatalf("have %d journals, want preparing, decided, and commits", len(snapshots))
	}
	final, err := os.ReadFile(path)
	must(t, err)
	for i, b := range snapshots {
		for name, sleds := range map[string]func(){
			"sleds went on":        func() {},
			"sleds lost power too": func() { r.sleds[0].restart() },
		} {
			must(t, os.WriteFile(path, b, 0o600))
			sleds()
			ch, err := r.init(patience)
			if err != nil && reason.CodeOf(err) != rack.CodeInitialised {
				t.Errorf("journal %d, %s: %v", i, name, err)
				continue
			}
			if ch.Phase != rack.Done || ch.Epoch != 1 {
				t.Errorf("journal %d, %s: have %+v", i, name, ch)
			}
		}
	}
	must(t, os.WriteFile(path, final, 0o600))
	for _, s := range r.sleds {
		if len(s.commits) != 1 {
			t.Errorf("%s has committed %v", s.ID, s.commits)
		}
	}
}

// TestResumePreparing: killed while the sleds prepare; nothing is committed yet.
func TestResumePreparing(t *testing.T) {
	t.Parallel()
	r := newRack(t, 3)
	r.sleds[2].unready = true
	_, err := r.init(2 * time.Second)
	wantWaiting(t, err, "s3")
	r.sleds[2].unready = false
	r.sleds[0].mu.Lock()
	r.sleds[0].ack(r.sleds[2].ID) // it came back, got its Prepare and acknowledged it
	r.sleds[2].configs[1] = r.sleds[0].coord
	r.sleds[0].mu.Unlock()
	r.wantDone(1)
}

func wantWaiting(t *testing.T, err error, sled string) {
	t.Helper()
	if reason.CodeOf(err) != controller.CodeWaiting || reason.RemedyOf(err) != reason.Retry || reason.HintOf(err) == "" || !strings.Contains(err.Error(), sled) {
		t.Errorf("have %v, want waiting for %s", err, sled)
	}
	for _, other := range []string{"s1", "s2", "s3"} {
		if other != sled && strings.Contains(strings.SplitN(err.Error(), ": client", 2)[0], other) {
			t.Errorf("%v names %s, who is there", err, other)
		}
	}
}

// TestCoordinatorForgets: a coordinator that restarts before the decision coordinates no longer. Its epoch is given up.
func TestCoordinatorForgets(t *testing.T) {
	t.Parallel()
	r := newRack(t, 3)
	r.sleds[0].forget = true
	r.wantDone(2)
	if !slices.ContainsFunc(r.events, func(e string) bool { return strings.Contains(e, "epoch 1: coordinator s1 coordinates it no longer") }) {
		t.Errorf("have events %q", r.events)
	}
}

func TestMemberDown(t *testing.T) {
	t.Parallel()
	r := newRack(t, 3)
	r.sleds[1].stop()
	_, err := r.init(2 * time.Second)
	wantWaiting(t, err, "s2")
	if _, err := os.Stat(filepath.Join(r.dir, "journal.json")); err == nil {
		t.Error("an epoch was used up before all sleds were there")
	}
	r.sleds[1].start(r.sleds[1].addr)
	r.wantDone(1)
}

// TestMemberMissesDecision: a member that is away when the decision falls is sent everything when it is back.
func TestMemberMissesDecision(t *testing.T) {
	t.Parallel()
	r := newRack(t, 3)
	r.onTell = func() {
		r.mu.Lock()
		last := r.events[len(r.events)-1]
		r.mu.Unlock()
		if strings.Contains(last, "decided, 0 of 3") {
			go r.sleds[2].stop()
		}
	}
	r.sleds[2].computing = make(chan struct{})
	r.sleds[2].mu.Lock()
	r.sleds[2].unready = true
	r.sleds[2].mu.Unlock()
	go func() { // its acknowledgement comes, but its memory does not survive
		for {
			r.sleds[0].mu.Lock()
			ready := len(r.sleds[0].acked) == 2
			changed := r.sleds[0].changed
			if ready {
				r.sleds[0].ack(r.sleds[2].ID)
			}
			r.sleds[0].mu.Unlock()
			if ready {
				return
			}
			<-changed
		}
	}()
	_, err := r.init(3 * time.Second)
	wantWaiting(t, err, "s3")
	r.onTell = nil
	st, err := journal.Peek(r.dir)
	must(t, err)
	if st.Change.Phase != rack.Decided || len(st.Change.Committed) != 2 {
		t.Errorf("have %+v", st.Change)
	}
	r.sleds[2].stop()
	r.sleds[2].start(r.sleds[2].addr)
	before := r.sleds[2].called("prepare-and-commit")
	time.AfterFunc(200*time.Millisecond, func() { close(r.sleds[2].computing) }) // it computes its share for a while
	r.wantDone(1)
	if n := r.sleds[2].called("prepare-and-commit") - before; n != 1 {
		t.Errorf("have %d calls while the sled computed, want 1: the controller must wait, not poll", n)
	}
}

// TestImposter: another sled of the same rack at a sled's address is not believed.
func TestImposter(t *testing.T) {
	t.Parallel()
	r := newRack(t, 3)
	r.sleds[0].addr, r.sleds[1].addr = r.sleds[1].addr, r.sleds[0].addr
	r.writeFile()
	_, err := r.init(patience)
	if err == nil || reason.RemedyOf(err) == reason.Retry || reason.CodeOf(err) == "" {
		t.Errorf("init: have %v", err)
	}
	out, err := r.open().Enroll(t.Context())
	if reason.CodeOf(err) != controller.CodeImposter || out[0].Error.Code != controller.CodeImposter || out[2].Error != nil || out[2].State != controller.Unchanged {
		t.Errorf("enroll: have %v %+v", err, out)
	}
}

// TestTampered: a sled whose measurements changed does not take part.
func TestTampered(t *testing.T) {
	t.Parallel()
	r := newRack(t, 3)
	r.sleds[1].TPM.Extend(4, [32]byte{1})
	if _, err := r.init(patience); err == nil || reason.RemedyOf(err) == reason.Retry {
		t.Errorf("have %v", err)
	}
	out, err := r.open().Enroll(t.Context())
	if err == nil || out[1].Error == nil || out[1].State != controller.Waiting {
		t.Errorf("enroll verifies enrolled sleds too: have %v %+v", err, out)
	}
}

// TestLyingCoordinator: a coordinator that makes another configuration is not followed.
func TestLyingCoordinator(t *testing.T) {
	t.Parallel()
	r := newRack(t, 3)
	r.sleds[0].liar = true
	if _, err := r.init(patience); reason.CodeOf(err) != rack.CodeMismatch {
		t.Errorf("have %v", err)
	}
	for _, s := range r.sleds {
		if len(s.commits) != 0 {
			t.Errorf("%s has committed", s.ID)
		}
	}
}

// TestEpochsAreNotReused: leftovers of an aborted epoch on any sled push the first epoch up.
func TestEpochsAreNotReused(t *testing.T) {
	t.Parallel()
	r := newRack(t, 3)
	r.sleds[1].configs[7] = &quorum.Configuration{Epoch: 7}
	r.wantDone(8)
}

// TestJournalLost: without its journal the controller takes over what the sleds have committed, under its own certificate.
func TestJournalLost(t *testing.T) {
	t.Parallel()
	r := newRack(t, 3)
	r.wantDone(1)
	must(t, os.Remove(filepath.Join(r.dir, "journal.json")))
	r.wantDone(1)
	if _, err := r.init(patience); reason.CodeOf(err) != rack.CodeInitialised {
		t.Errorf("have %v", err)
	}
	// A certificate that the key did not sign is not taken over.
	must(t, os.Remove(filepath.Join(r.dir, "journal.json")))
	forged := *r.sleds[1].commits[1]
	forged.Signature[5] ^= 1
	r.sleds[1].commits[1] = &forged
	if _, err := r.init(patience); reason.CodeOf(err) != rack.CodeMismatch {
		t.Errorf("forged certificate: have %v", err)
	}
}

func TestForeignJournal(t *testing.T) {
	t.Parallel()
	r := newRack(t, 3)
	j, st, err := journal.Open(r.dir)
	must(t, err)
	st.Rack = ident.RackID{0xff}
	must(t, st.BeginInit([]ident.Baseboard{r.sleds[0].ID, r.sleds[1].ID, r.sleds[2].ID}, 0))
	must(t, j.Save(st))
	must(t, j.Close())
	if _, err := r.init(patience); reason.CodeOf(err) != rack.CodeMismatch {
		t.Errorf("have %v", err)
	}
}

// TestSecondController: two rack commands at once do not sign two things of one number.
func TestSecondController(t *testing.T) {
	t.Parallel()
	r := newRack(t, 3)
	j, _, err := journal.Open(r.dir)
	must(t, err)
	defer func() { must(t, j.Close()) }()
	if _, err := r.init(patience); reason.CodeOf(err) != journal.CodeLocked {
		t.Errorf("init: have %v", err)
	}
	if _, err := r.open().Enroll(t.Context()); reason.CodeOf(err) != journal.CodeLocked {
		t.Errorf("enroll: have %v", err)
	}
}
