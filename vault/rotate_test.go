package vault_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sledvault/sledvault/hwtest/sim/firmware"
	"github.com/sledvault/sledvault/rot/enroll"
	"github.com/sledvault/sledvault/vault"
	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/gfss"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/keys"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/secret"
	"github.com/sledvault/sledvault/vault/unlock"
	"github.com/sledvault/sledvault/vault/wire"
)

// rotate gives the rack a new epoch.
func (r *testRack) rotate() {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 30*time.Second)
	defer cancel()
	if _, err := r.controller().Rotate(ctx); err != nil {
		for _, s := range r.sleds {
			r.t.Logf("%s\n%s", s.name, s.logs)
		}
		r.t.Fatal(err)
	}
}

// slots counts the keys that open the sled's disk.
func (s *testSled) slots() int {
	s.rack.t.Helper()
	h, err := unlock.New(unlock.Config{}).Inspect(s.rack.t.Context(), unlock.Disk{ID: "data0", Backend: unlock.BackendLUKS2, Path: s.cfg.Disks[0].Path})
	must(s.rack.t, err)
	return len(h.Slots)
}

// disk is the sled's disk, or one in no state while the sled does not answer.
func (s *testSled) disk() api.Disk {
	d, err := s.local().Disks(s.rack.t.Context())
	if err != nil || len(d) == 0 {
		return api.Disk{}
	}
	return d[0]
}

// isAt waits until the disk is open under the key of an epoch.
func (s *testSled) isAt(e ident.Epoch) {
	s.rack.t.Helper()
	s.await("the disk open at its epoch", func(s *testSled) bool { d := s.disk(); return d.State == "unlocked" && d.Epoch == e })
}

// rotatedTo waits until the disk has the key of an epoch and no other.
func (s *testSled) rotatedTo(e ident.Epoch) {
	s.rack.t.Helper()
	s.await("the disk rotated", func(s *testSled) bool {
		d := s.disk()
		return d.State == "unlocked" && d.Epoch == e && d.Rotation == ""
	})
	if n := s.slots(); n != 1 {
		s.rack.t.Errorf("%s: rotated to epoch %d: have %d key slots, want 1", s.name, e, n)
	}
}

// held is an agreement that never comes.
func held(o vault.Options) vault.Options {
	return vault.WithRotation(o, nil, func(ctx context.Context, _ ident.Epoch) (secret.RackSecret, error) {
		<-ctx.Done()
		return secret.RackSecret{}, ctx.Err()
	})
}

// restart ends the daemon and starts it with options.
func (s *testSled) restart(o func(vault.Options) vault.Options) {
	s.rack.t.Helper()
	s.stop()
	s.options = o
	s.start()
}

// TestRotation: after a change of the rack every sled moves its disk to the new key by itself; the old one opens nothing.
func TestRotation(t *testing.T) {
	t.Parallel()
	r := unlockedRack(t, 3)
	r.rotate()
	for i, s := range r.sleds {
		s.rotatedTo(2)
		s.checkPattern(uint64(i))
		if st := s.status(); len(st.Alarms) != 0 || st.Boot.Step != "done" {
			t.Errorf("%s: have %+v", s.name, st)
		}
	}
	for _, s := range r.sleds {
		s.stop()
	}
	for _, s := range r.sleds {
		s.powerCycle(firmware.Options{})
	}
	for i, s := range r.sleds {
		s.rotatedTo(2)
		s.checkPattern(uint64(i))
	}
}

// TestRotationResumes: a sled dies after each step of a rotation. What its ledger says opens the disk, and the next life
// finishes.
func TestRotationResumes(t *testing.T) {
	t.Parallel()
	r := unlockedRack(t, 3)
	s, epoch := r.sleds[0], ident.Epoch(1)
	for _, c := range []struct {
		step  string
		moved bool // whether the record is of the new epoch
		slots int
	}{{"agreed", false, 1}, {"added", false, 2}, {"recorded", true, 2}, {"retired", true, 1}, {"done", true, 1}} {
		there := make(chan struct{})
		s.restart(func(o vault.Options) vault.Options {
			return vault.WithRotation(o, func(ctx context.Context, step string) {
				if step == c.step {
					close(there)
					<-ctx.Done()
				}
			}, nil)
		})
		s.isAt(epoch)
		r.rotate()
		select {
		case <-there:
		case <-time.After(20 * time.Second):
			t.Fatalf("step %s never came\n%s", c.step, s.logs)
		}
		s.stop()
		if n := s.slots(); n != c.slots {
			t.Errorf("dead after %s: have %d key slots, want %d", c.step, n, c.slots)
		}
		want := epoch
		if c.moved {
			want++
		}
		s.restart(held) // nothing else moves
		s.isAt(want)
		epoch++
		s.restart(nil)
		s.rotatedTo(epoch)
		s.checkPattern(0)
	}
	for i, s := range r.sleds[1:] {
		s.rotatedTo(epoch)
		s.checkPattern(uint64(i + 1))
	}
}

// TestRotationWaits: without one sled more than the threshold the disks open under their old keys and wait, naming who
// is missing. The moment that sled comes they move.
func TestRotationWaits(t *testing.T) {
	t.Parallel()
	r := unlockedRack(t, 3)
	for _, s := range r.sleds {
		s.restart(held)
		s.isAt(1)
	}
	r.rotate()
	away := r.sleds[2]
	for _, s := range r.sleds {
		s.stop()
	}
	for _, s := range r.sleds[:2] {
		s.restart(nil)
	}
	for i, s := range r.sleds[:2] {
		s.isAt(1)
		s.await("rotate", func(s *testSled) bool {
			st := s.status()
			return st.Boot.Step == vault.StepRotate && st.Boot.Error != nil && st.Boot.Error.Code == vault.CodeRotationWaits &&
				strings.Contains(st.Boot.Waiting, away.serial) && !strings.Contains(st.Boot.Waiting, r.sleds[1-i].serial) && st.Quorum.Collecting != nil
		})
		if d := s.disk(); d.Rotation != "to epoch 2: waits for 913-0000019:"+away.serial {
			t.Errorf("%s: have %+v", s.name, d)
		}
		if c := s.status().Quorum.Collecting; c.Purpose != "agreement" || c.Have != 1 || c.Want != 3 {
			t.Errorf("%s: have %+v", s.name, c)
		}
		s.checkPattern(uint64(i)) // waiting holds nobody up
		if n := s.slots(); n != 1 {
			t.Errorf("%s: have %d key slots", s.name, n)
		}
	}
	away.restart(nil)
	for i, s := range r.sleds {
		s.rotatedTo(2)
		s.checkPattern(uint64(i))
		s.await("done", func(s *testSled) bool { return s.status().Boot.Step == vault.StepDone })
	}
}

// TestRotationCatchesUp: a disk that was away during several changes opens by an old secret and moves to the newest.
// A disk that cannot be written says so and moves when the operator asks again.
func TestRotationCatchesUp(t *testing.T) {
	t.Parallel()
	r := unlockedRack(t, 3)
	s := r.sleds[0]
	path := s.cfg.Disks[0].Path
	must(t, os.Rename(path, path+".away"))
	r.rotate() // the disk was open: it fails
	s.await("failed rotation", func(s *testSled) bool { return strings.Contains(s.disk().Rotation, "failed: ") })
	if st := s.status(); counted(st, vault.CodeRotationFailed) == 0 || s.disk().Epoch != 1 {
		t.Errorf("have %+v", st)
	}
	s.restart(nil)
	s.await("absent disk", func(s *testSled) bool { return s.disk().State == "absent" })
	if d := s.disk(); d.Rotation != "to epoch 2: waits until the disk is open" {
		t.Errorf("have %+v", d)
	}
	r.rotate()
	must(t, os.Rename(path+".away", path))
	s.unlocks()
	s.rotatedTo(3)
	s.checkPattern(0)

	must(t, os.Rename(path, path+".away"))
	r.rotate()
	s.await("failed rotation", func(s *testSled) bool { return strings.Contains(s.disk().Rotation, "failed: ") })
	must(t, os.Rename(path+".away", path))
	s.unlocks() // the operator asks again
	s.rotatedTo(4)
	s.checkPattern(0)
}

// TestRotationWithoutOne: of five sleds three open their disks, four move them, and the fifth follows when it comes.
func TestRotationWithoutOne(t *testing.T) {
	t.Parallel()
	r := unlockedRack(t, 5)
	for _, s := range r.sleds {
		s.restart(held)
		s.isAt(1)
	}
	r.rotate()
	for _, s := range r.sleds {
		s.stop()
	}
	for _, s := range r.sleds[:3] {
		s.restart(nil)
	}
	for _, s := range r.sleds[:3] {
		s.isAt(1)
		s.await("waits", func(s *testSled) bool {
			return s.disk().Rotation == "to epoch 2: waits for 1 of 913-0000019:SIM0004, 913-0000019:SIM0005"
		})
	}
	r.sleds[3].restart(nil)
	for i, s := range r.sleds[:4] {
		s.rotatedTo(2)
		s.checkPattern(uint64(i))
	}
	r.sleds[4].restart(nil)
	r.sleds[4].rotatedTo(2)
	r.sleds[4].checkPattern(4)
}

// TestRotationDropsSecrets: what a rotation needs is gone when it is done, and while it waits nothing is held.
func TestRotationDropsSecrets(t *testing.T) {
	t.Parallel()
	r := unlockedRack(t, 3)
	s := r.sleds[0]
	var d atomic.Pointer[vault.Daemon]
	s.restart(func(o vault.Options) vault.Options { return vault.WithDaemon(o, d.Store) })
	s.isAt(1)
	calm := func(pieces int) func(*testSled) bool {
		return func(*testSled) bool { have, loaded := d.Load().Secrets(); return have <= pieces && loaded == 0 }
	}
	s.await("cleared secrets", func(*testSled) bool { _, loaded := d.Load().Secrets(); return loaded == 0 })
	before, _ := d.Load().Secrets()
	r.rotate()
	s.rotatedTo(2)
	s.await("calm after the rotation", calm(before+1)) // the own share of the new epoch

	for _, o := range r.sleds[1:] {
		o.restart(held)
		o.isAt(2)
	}
	r.rotate()
	s.rotatedTo(3)
	r.sleds[2].stop()
	s.restart(func(o vault.Options) vault.Options { return vault.WithDaemon(o, d.Store) })
	s.isAt(3)
	s.await("calm after a restart", calm(before+2))
	r.sleds[2].start()
}

// TestRotationMakesRoom: slots that broken-off rotations left behind do not stop the next one.
func TestRotationMakesRoom(t *testing.T) {
	t.Parallel()
	r := unlockedRack(t, 3)
	s := r.sleds[0]
	var key bytes.Buffer
	must(t, s.local().Key(t.Context(), "data0", &key))
	old, stray := filepath.Join(s.dir, "key"), filepath.Join(s.dir, "stray")
	must(t, os.WriteFile(old, key.Bytes(), 0o600))
	for i := range 7 {
		must(t, os.WriteFile(stray, bytes.Repeat([]byte{byte(i)}, 32), 0o600))
		out, err := exec.CommandContext(t.Context(), "cryptsetup", "luksAddKey", "--batch-mode", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000",
			"--key-file", old, s.cfg.Disks[0].Path, stray).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	if n := s.slots(); n != 8 {
		t.Fatalf("have %d key slots", n)
	}
	r.rotate()
	s.rotatedTo(2)
	s.checkPattern(0)
}

// mixed is a second configuration of a rack at epoch 1, granted and certified by its operator, whose coordinator gave the
// last sled a share of another polynomial. Every digest fits.
func (r *testRack) mixed(states []quorum.State) (*quorum.Configuration, *quorum.Certificate, []gfss.Share) {
	t := r.t
	t.Helper()
	heap, first := secret.Heap{}, states[0].Configs[1]
	old, err := gfss.Combine(heap, []gfss.Share{states[0].Shares[1], states[1].Shares[1]})
	must(t, err)
	var split [2][]gfss.Share
	var next [2]secret.RackSecret
	for i := range split {
		next[i], err = keys.NewRackSecret(heap, rand.Reader)
		must(t, err)
		split[i], err = gfss.Split(heap, rand.Reader, next[i], len(states), int(first.Threshold))
		must(t, err)
	}
	shares := append(slices.Clone(split[0][:len(states)-1]), split[1][len(states)-1])
	enc, err := keys.Encrypt(rand.Reader, next[0], first.RackID, 2, keys.OldSecrets{1: old})
	must(t, err)
	c := &quorum.Configuration{RackID: first.RackID, Epoch: 2, Coordinator: first.Members[2].ID, Threshold: first.Threshold, EncryptedSecrets: &enc}
	for i, m := range first.Members {
		digest, err := shares[i].Digest()
		must(t, err)
		c.Members = append(c.Members, quorum.Member{ID: m.ID, ShareDigest: digest})
	}
	key, err := enroll.LoadKey(heap, filepath.Join(r.dir, "rack", "membership.key"), nil)
	must(t, err)
	defer key.Destroy()
	cert, err := enroll.SignCertificate(key, c, 0)
	must(t, err)
	return c, cert, shares
}

// mixedPolynomial: a coordinator that the operator trusts handed out shares that do not lie on one polynomial. Two sleds
// alone rebuild a secret and see nothing wrong. When the third comes, they refuse to move their disks to it.
func mixedPolynomial(t *testing.T) {
	r := unlockedRack(t, 3)
	states := make([]quorum.State, len(r.sleds))
	for i, s := range r.sleds {
		s.restart(func(o vault.Options) vault.Options {
			return vault.WithLedger(o, func(l wire.LedgerState) wire.LedgerState { states[i] = l.Quorum.Clone(); return l })
		})
		s.isAt(1)
	}
	for _, s := range r.sleds {
		s.stop()
	}
	c, cert, shares := r.mixed(states)
	for i, s := range r.sleds {
		s.options = func(o vault.Options) vault.Options {
			return vault.WithLedger(o, func(l wire.LedgerState) wire.LedgerState {
				q := l.Quorum.Clone()
				q.Configs[2], q.Shares[2], q.Commits[2], q.Certificates[2] = c, shares[i], true, cert
				l.Quorum = q
				return l
			})
		}
	}
	for _, s := range r.sleds[:2] {
		s.start()
	}
	for i, s := range r.sleds[:2] {
		s.isAt(1)
		s.checkPattern(uint64(i))
		s.await("waits", func(s *testSled) bool { return strings.HasPrefix(s.disk().Rotation, "to epoch 2: waits for ") })
	}
	r.sleds[2].start()
	for _, s := range r.sleds[:2] {
		s.await("refusal", func(s *testSled) bool { return strings.HasPrefix(s.disk().Rotation, "to epoch 2: refused: ") })
		s.await("rotate", func(s *testSled) bool {
			st := s.status()
			return st.Boot.Step == vault.StepRotate && st.Boot.Error != nil && st.Boot.Error.Code == quorum.CodeSharesDisagree && st.NextStep != ""
		})
		st := s.status()
		if n := counted(st, quorum.CodeSharesDisagree); n == 0 {
			t.Errorf("%s: not counted: %+v", s.name, st.Reasons)
		}
		if !slices.ContainsFunc(st.Alarms, func(a api.Alarm) bool {
			return a.Kind == string(quorum.AlarmMixedPolynomial) && a.Epoch == 2 && a.From != nil && *a.From == c.Coordinator
		}) {
			t.Errorf("%s: no alarm: %+v", s.name, st.Alarms)
		}
		if d := s.disk(); d.State != "unlocked" || d.Epoch != 1 || s.slots() != 1 {
			t.Errorf("%s: have %+v with %d slots", s.name, d, s.slots())
		}
	}
	r.alarmsOutlast(r.sleds[0])
}

// alarmsOutlast restarts one sled of a rack alone: it still shows its alarm, until an operator clears it.
func (r *testRack) alarmsOutlast(s *testSled) {
	t := r.t
	t.Helper()
	for _, o := range r.sleds {
		o.stop()
	}
	s.start()
	s.await("the alarm of its last life", func(s *testSled) bool {
		st, err := s.local().Status(t.Context())
		as := st.Alarms
		return err == nil && len(as) == 1 && as[0].Earlier && as[0].Kind == string(quorum.AlarmMixedPolynomial) && as[0].From != nil
	})
	must(t, s.local().ClearAlarms(t.Context()))
	s.await("no alarm", func(s *testSled) bool { return len(s.status().Alarms) == 0 })
	s.restart(s.options)
	s.await("the peer network", func(s *testSled) bool {
		st, err := s.local().Status(t.Context())
		return err == nil && st.Quorum != nil
	})
	if as := s.status().Alarms; len(as) != 0 {
		t.Errorf("%s: cleared alarms are back: %+v", s.name, as)
	}
}
