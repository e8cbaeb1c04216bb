package vault_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sledvault/sledvault/hwtest/sim/firmware"
	"github.com/sledvault/sledvault/vault"
	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/rack"
	"github.com/sledvault/sledvault/vault/rack/controller"
	"github.com/sledvault/sledvault/vault/rack/journal"
	"github.com/sledvault/sledvault/vault/reason"
)

// addSled makes one more sled, starts it and writes its table into the rack file. The peers learn its address.
func (r *testRack) addSled() *testSled {
	t := r.t
	t.Helper()
	i := len(r.sleds)
	peers := append(slices.Clone(r.sleds[0].cfg.Peer.Peers), fmt.Sprintf("%s%d:12349", r.net, i+1))
	s := r.newSled(i, peers)
	r.sleds = append(r.sleds, s)
	s.start()
	s.await("unclaimed", func(s *testSled) bool { return s.state() == "unclaimed" })
	for _, o := range r.sleds {
		o.cfg.Peer.Peers = peers
		if o.cancel != nil {
			must(t, o.local().SetPeers(t.Context(), peers))
		}
	}
	ek, err := s.local().TPM(t.Context())
	must(t, err)
	f, err := os.OpenFile(filepath.Join(r.dir, "rack", controller.RackFile), os.O_APPEND|os.O_WRONLY, 0)
	must(t, err)
	_, err = fmt.Fprintf(f, "[[sled]]\nname = %q\npart = \"913-0000019\"\nserial = %q\nunderlay = %q\nek_name = %q\n", s.name, s.serial, s.cfg.Underlay.Listen, ek.EKName)
	must(t, errors.Join(err, f.Close()))
	return s
}

func (s *testSled) board() ident.Baseboard {
	return ident.Baseboard{Part: "913-0000019", Serial: s.serial}
}

// changed runs one membership change and holds its outcome against what is wanted.
func (r *testRack) changed(f func(context.Context, *controller.Controller) (*rack.Change, error)) *rack.Change {
	t := r.t
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	begin := time.Now()
	ch, err := f(ctx, r.controller())
	if err != nil {
		for _, s := range r.sleds {
			t.Logf("%s\n%s", s.name, s.logs)
		}
		t.Fatalf("change: %v (hint: %s)", err, reason.HintOf(err))
	}
	t.Logf("epoch %d after %d ms", ch.Epoch, time.Since(begin).Milliseconds())
	if ch.Phase != rack.Done || !ch.Marks() {
		t.Fatalf("change: %+v", ch)
	}
	return ch
}

func add(names ...string) func(context.Context, *controller.Controller) (*rack.Change, error) {
	return func(ctx context.Context, c *controller.Controller) (*rack.Change, error) { return c.Add(ctx, names...) }
}

func remove(names ...string) func(context.Context, *controller.Controller) (*rack.Change, error) {
	return func(ctx context.Context, c *controller.Controller) (*rack.Change, error) {
		return c.Remove(ctx, names...)
	}
}

func rotate(ctx context.Context, c *controller.Controller) (*rack.Change, error) {
	return c.Rotate(ctx)
}

// hasCommitted waits until a sled has committed an epoch.
func (s *testSled) hasCommitted(e ident.Epoch) {
	s.rack.t.Helper()
	s.await(fmt.Sprintf("epoch %d", e), func(s *testSled) bool {
		st, err := s.local().Status(s.rack.t.Context())
		return err == nil && st.Quorum != nil && slices.Contains(st.Quorum.Commits, e)
	})
}

// seed is the pattern on the sled's disk.
func (s *testSled) seed() uint64 { return uint64(slices.Index(s.rack.sleds, s)) }

// opens power-cycles the sleds and checks that every formatted disk opens.
func opens(t *testing.T, sleds ...*testSled) {
	t.Helper()
	for _, s := range sleds {
		s.stop()
	}
	for _, s := range sleds {
		s.powerCycle(firmware.Options{})
	}
	for _, s := range sleds {
		disks, err := s.local().Unlock(t.Context(), 20*time.Second)
		if err != nil {
			t.Fatalf("%s: %v\n%s", s.name, err, s.logs)
		}
		if disks[0].State != "unlocked" {
			t.Fatalf("%s: %+v %+v", s.name, disks[0], disks[0].Error)
		}
		s.checkPattern(s.seed())
	}
}

// opensNothing checks that a removed sled's disk stays shut, also for who asks it for the key.
func (s *testSled) opensNothing() {
	t := s.rack.t
	t.Helper()
	s.await("expunged", func(s *testSled) bool { return s.state() == string(api.StateExpunged) })
	if _, err := s.local().Unlock(t.Context(), time.Second); reason.CodeOf(err) != "expunged" {
		t.Errorf("%s: unlock: %v", s.name, err)
	}
	if err := s.local().Key(t.Context(), "data0", failOnWrite{t}); err == nil {
		t.Errorf("%s gives its disk's key away", s.name)
	}
}

type failOnWrite struct{ t *testing.T }

func (f failOnWrite) Write(p []byte) (int, error) {
	f.t.Errorf("%d bytes of a key", len(p))
	return len(p), nil
}

// TestAddAndRemove: a fourth sled joins; a first one leaves, learns it, and opens nothing; the others go on.
func TestAddAndRemove(t *testing.T) {
	t.Parallel()
	r := unlockedRack(t, 3)
	four := r.addSled()
	ch := r.changed(add("sled-4"))
	if len(ch.Members) != 4 || ch.Threshold != 3 || ch.Epoch != 2 {
		t.Errorf("added: %+v", ch)
	}
	four.hasCommitted(2)
	_, err := four.local().Format(t.Context(), "data0", api.FormatRequest{KeepData: true})
	must(t, err)
	opens(t, r.sleds...)
	again := r.changed(add("sled-4")) // nothing to do
	if again.Epoch != 2 {
		t.Errorf("adding twice made epoch %d", again.Epoch)
	}
	ch = r.changed(remove("sled-1"))
	if len(ch.Members) != 3 || ch.Epoch != 3 || !slices.Equal(ch.Removed, []ident.Baseboard{r.sleds[0].board()}) {
		t.Errorf("removed: %+v", ch)
	}
	r.sleds[0].opensNothing()
	opens(t, r.sleds[1:]...)
	r.sleds[0].powerCycle(firmware.Options{})
	r.sleds[0].opensNothing()
	if again := r.changed(remove("sled-1")); again.Epoch != 3 {
		t.Errorf("removing twice made epoch %d", again.Epoch)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if _, err := r.controller().Remove(ctx, "sled-2"); reason.CodeOf(err) != rack.CodeMembers {
		t.Errorf("removing the third last: %v", err)
	}
	if _, err := r.controller().Add(ctx, "sled-1"); reason.CodeOf(err) != controller.CodeNotEnrolled || !strings.Contains(reason.HintOf(err), "seal reset") {
		t.Errorf("adding a removed sled that was not reset: %v", err)
	}
	if _, err := r.controller().Remove(ctx, "sled-9"); reason.CodeOf(err) != controller.CodeUnknownSled {
		t.Errorf("removing an unknown sled: %v", err)
	}
}

// TestRemoveWhileDown: a sled that is down while it is removed learns of it when it starts.
func TestRemoveWhileDown(t *testing.T) {
	t.Parallel()
	r := unlockedRack(t, 4)
	gone := r.sleds[3]
	gone.stop()
	r.changed(remove("sled-4"))
	gone.powerCycle(firmware.Options{})
	gone.opensNothing()
}

// TestReturns: a removed sled that was reset joins again with a new record and opens its disk again. Its removal names it
// by its baseboard, since the operator deleted its table first.
func TestReturns(t *testing.T) {
	t.Parallel()
	r := unlockedRack(t, 4)
	s := r.sleds[3]
	path := filepath.Join(r.dir, "rack", controller.RackFile)
	whole, err := os.ReadFile(path)
	must(t, err)
	must(t, os.WriteFile(path, whole[:strings.LastIndex(string(whole), "[[sled]]")], 0o600))
	r.changed(remove(s.board().String()))
	s.opensNothing()
	must(t, os.WriteFile(path, whole, 0o600))
	must(t, s.local().ResetSeal(t.Context(), api.ResetRequest{Baseboard: s.board(), LeaveRack: true}))
	if err := <-s.done; reason.CodeOf(err) != "seal-reset" {
		t.Fatalf("the daemon ended with %v", err)
	}
	s.cancel = nil
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := r.controller().Add(ctx, "sled-4"); reason.RemedyOf(err) != reason.Retry { // it may be anything by now
		t.Errorf("while it starts: have %v, want a wait", err)
	}
	s.start()
	if ch := r.changed(add("sled-4")); len(ch.Members) != 4 || ch.Epoch != 3 {
		t.Errorf("%+v", ch)
	}
	s.hasCommitted(3)
	opens(t, r.sleds...)
}

// TestAddCutOff: a sled dies in the middle of its first save, after its TPM was claimed. It holds nothing yet, and the same
// command takes it in.
func TestAddCutOff(t *testing.T) {
	t.Parallel()
	r := unlockedRack(t, 3)
	s := r.addSled()
	s.stop()
	cut := errors.New("killed")
	s.options = func(o vault.Options) vault.Options {
		return vault.WithSteps(o, func(step string) error {
			if step == "save/A/check" {
				return cut
			}
			return nil
		})
	}
	s.start()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if _, err := r.controller().Add(ctx, "sled-4"); err == nil {
		t.Fatal("added, though its first save was cut off")
	}
	s.stop()
	s.options = nil
	s.start()
	s.await("lost-seal", func(s *testSled) bool { return s.state() == string(api.StateLostSeal) })
	r.changed(add("sled-4"))
	s.hasCommitted(2)
}

// TestAnotherCoordinator: the coordinator dies before the decision; another one takes over with a later epoch.
func TestAnotherCoordinator(t *testing.T) {
	t.Parallel()
	r := unlockedRack(t, 4)
	r.sleds[2].stop() // so that the decision waits: three of four must prepare
	r.sleds[3].stop()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	c := r.controller()
	var first rack.Change
	var down *testSled
	c.OnSave(func(st rack.State) error {
		if down != nil && st.Change.Phase == rack.Decided && down.cancel == nil {
			down.start() // the commit waits for everybody
		}
		if down == nil && st.Change.Phase == rack.Preparing {
			first = *st.Change
			i := slices.IndexFunc(r.sleds, func(s *testSled) bool { return s.board() == first.Coordinator })
			down = r.sleds[i]
			down.stop()
			for _, s := range r.sleds[2:] {
				s.start()
			}
		}
		return nil
	})
	ch, err := c.Rotate(ctx)
	if down == nil {
		t.Fatal("no change began")
	}
	must(t, err)
	if ch.Coordinator == first.Coordinator || ch.Epoch <= first.Epoch || ch.Phase != rack.Done {
		t.Errorf("first %+v, then %+v", first, ch)
	}
}

var errCrash = errors.New("the command was killed")

// TestInterrupted: a command is killed after each save of the journal in turn, and run again.
func TestInterrupted(t *testing.T) {
	t.Parallel()
	r := unlockedRack(t, 3)
	r.addSled()
	for _, run := range []struct {
		name string
		f    func(context.Context, *controller.Controller) (*rack.Change, error)
		done func(rack.State) bool
	}{
		{"add", add("sled-4"), func(st rack.State) bool { return len(st.Change.Members) == 4 }},
		{"rotate", rotate, func(st rack.State) bool { return len(st.Change.Members) == 4 }},
		{"remove", remove("sled-2"), func(st rack.State) bool { return len(st.Change.Members) == 3 }},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		kills := 0
		for ; ; kills++ {
			c := r.controller()
			c.OnSave(func(rack.State) error { return errCrash })
			_, err := run.f(ctx, c)
			if err == nil {
				break
			}
			if !errors.Is(err, errCrash) {
				t.Fatalf("%s after %d kills: %v", run.name, kills, err)
			}
			if kills > 20 {
				t.Fatalf("%s: no end", run.name)
			}
			if run.name == "rotate" {
				if st, err := journal.Peek(filepath.Join(r.dir, "rack")); err == nil && st.Change.Phase == rack.Done {
					break
				}
			}
		}
		cancel()
		st, err := journal.Peek(filepath.Join(r.dir, "rack"))
		must(t, err)
		t.Logf("%s: %d kills, epoch %d", run.name, kills, st.Change.Epoch)
		if st.Change.Phase != rack.Done || !st.Change.Marks() || !run.done(st) || kills < 3 {
			t.Errorf("%s: %+v after %d kills", run.name, st.Change, kills)
		}
	}
	r.sleds[1].opensNothing()
	opens(t, r.sleds[0], r.sleds[2])
}

// TestLostJournal: the journal is lost; the next change learns from the sleds where the rack is.
func TestLostJournal(t *testing.T) {
	t.Parallel()
	r := unlockedRack(t, 3)
	r.changed(rotate)
	must(t, os.Remove(filepath.Join(r.dir, "rack", "journal.json")))
	if ch := r.changed(rotate); ch.Epoch != 3 || ch.LastCommitted != 2 {
		t.Errorf("%+v", ch)
	}
}

// TestOldJournal: a journal of before is put back; the rack goes on from where it is.
func TestOldJournal(t *testing.T) {
	t.Parallel()
	r := unlockedRack(t, 3)
	path := filepath.Join(r.dir, "rack", "journal.json")
	done, err := os.ReadFile(path)
	must(t, err)
	var decided []byte
	r.changed(func(ctx context.Context, c *controller.Controller) (*rack.Change, error) {
		c.OnSave(func(st rack.State) (err error) {
			if st.Change.Phase == rack.Decided && decided == nil {
				decided, err = os.ReadFile(path)
			}
			return err
		})
		return c.Rotate(ctx)
	})
	r.changed(rotate)
	must(t, os.WriteFile(path, done, 0o600))
	if ch := r.changed(rotate); ch.Epoch != 4 || ch.LastCommitted != 3 {
		t.Errorf("with a journal of epoch 1: %+v", ch)
	}
	must(t, os.WriteFile(path, decided, 0o600))
	if ch := r.changed(rotate); ch.Epoch != 5 || ch.LastCommitted != 4 {
		t.Errorf("with a journal of the decision on epoch 2: %+v", ch)
	}
}

// TestAbort: a change that waits is given up; the next one has another epoch. A decided one cannot be given up.
func TestAbort(t *testing.T) {
	t.Parallel()
	r := unlockedRack(t, 3)
	r.sleds[1].stop()
	r.sleds[2].stop()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := r.controller().Rotate(ctx)
	if reason.CodeOf(err) != controller.CodeWaiting {
		t.Fatalf("a change without a quorum: %v", err)
	}
	if _, err := r.controller().Remove(t.Context(), "sled-3"); reason.CodeOf(err) != rack.CodeMembers && reason.CodeOf(err) != rack.CodeBusy {
		t.Errorf("another change meanwhile: %v", err)
	}
	ch, err := r.controller().Abort()
	must(t, err)
	if ch.Phase != rack.Aborted {
		t.Errorf("%+v", ch)
	}
	r.sleds[1].start()
	r.sleds[2].start()
	if next := r.changed(rotate); next.Epoch <= ch.Epoch {
		t.Errorf("epoch %d is used again", next.Epoch)
	}
	if _, err := r.controller().Abort(); reason.CodeOf(err) != rack.CodeNoChange {
		t.Errorf("abort after all is done: %v", err)
	}
}

// TestTwentyChanges: changes in a row while daemons restart at random.
func TestTwentyChanges(t *testing.T) {
	t.Parallel()
	r := unlockedRack(t, 3)
	r.addSled()
	rnd := rand.New(rand.NewPCG(1, 2))
	member := []bool{true, true, true, false}
	var last ident.Epoch = 1
	for range 20 {
		c := r.controller()
		c.OnSave(func(rack.State) error {
			if rnd.IntN(4) == 0 {
				s := r.sleds[rnd.IntN(3)]
				s.stop()
				s.start()
			}
			return nil
		})
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		ch, err := rotateOrMove(ctx, c, member, rnd.IntN(2) == 0)
		cancel()
		must(t, err)
		if ch.Epoch <= last || ch.Phase != rack.Done {
			t.Fatalf("epoch %d after %d: %s", ch.Epoch, last, ch.Phase)
		}
		last = ch.Epoch
	}
	t.Logf("epoch %d", last)
	opens(t, r.sleds[:3]...)
}

// rotateOrMove adds the fourth sled if it is none yet, or rotates.
func rotateOrMove(ctx context.Context, c *controller.Controller, member []bool, move bool) (*rack.Change, error) {
	if !move || member[3] {
		return c.Rotate(ctx)
	}
	ch, err := c.Add(ctx, "sled-4")
	member[3] = err == nil
	return ch, err
}
