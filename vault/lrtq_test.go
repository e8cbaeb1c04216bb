package vault_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sledvault/sledvault/hwtest/sim/firmware"
	"github.com/sledvault/sledvault/internal/rig"
	"github.com/sledvault/sledvault/rot/enroll"
	"github.com/sledvault/sledvault/vault"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/keys"
	"github.com/sledvault/sledvault/vault/lrtq"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/rack/controller"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
	"github.com/sledvault/sledvault/vault/unlock"
	"github.com/sledvault/sledvault/vault/wire"
)

// rackID is the id that the controller's folder carries.
func (r *testRack) rackID() ident.RackID {
	r.t.Helper()
	b, err := os.ReadFile(filepath.Join(r.dir, "rack", "enrolment.cbor"))
	must(r.t, err)
	set, err := enroll.DecodeSet(b)
	must(r.t, err)
	return set.Rack
}

// bornLRTQ gives every sled the ledger that the older scheme would have left, and returns that scheme's secret.
func (r *testRack) bornLRTQ() secret.RackSecret {
	t := r.t
	t.Helper()
	var boards []lrtq.Board
	for _, s := range r.sleds {
		boards = append(boards, lrtq.Board{Kind: lrtq.Gimlet, Identifier: s.serial, Model: "913-0000019", Revision: 6})
	}
	seed := [32]byte{1}
	packages, err := lrtq.Create(secret.Heap{}, rand.NewChaCha8(seed), r.rackID(), boards)
	must(t, err)
	for i, s := range r.sleds {
		b, err := wire.EncodeLRTQLedger(wire.LRTQLedger{Generation: 2, State: lrtq.State{Phase: lrtq.InitialMember, Package: packages[i]}})
		must(t, err)
		s.cfg.LRTQ.Ledgers = []string{filepath.Join(s.dir, "absent", wire.LRTQLedgerName), filepath.Join(s.dir, wire.LRTQLedgerName)}
		must(t, os.WriteFile(s.cfg.LRTQ.Ledgers[1], b, 0o600))
		must(t, s.cfg.Validate())
	}
	sec, err := lrtq.NewSecret(secret.Heap{}, rand.NewChaCha8(seed)) // what Create reads first
	must(t, err)
	return sec
}

// encryptedAt1 encrypts a sled's disk with the key of epoch 1, as it was while the rack lived by the older scheme.
func (s *testSled) encryptedAt1(sec secret.RackSecret) {
	t := s.rack.t
	t.Helper()
	prk, err := keys.NewPRK(secret.Heap{}, sec, keys.Salt(s.rack.rackID()))
	must(t, err)
	c := s.cfg.Disks[0]
	d := unlock.Disk{ID: c.ID, Backend: c.Backend, Path: c.Path, Identity: keys.Disk{Vendor: c.Vendor, Model: c.Model, Serial: c.Serial}, Mapping: "sledvault-test-" + s.serial}
	key, err := keys.DiskKey(secret.Heap{}, prk, d.Identity)
	must(t, err)
	_, err = unlock.New(unlock.Config{Mapper: t.TempDir()}).Format(t.Context(), d, unlock.FormatOptions{KeepData: true}, key, quorum.LRTQEpoch, s.rack.rackID())
	must(t, err)
}

// TestUpgradeFromLRTQ is a rack that lived by the older scheme: its sleds are enrolled and take their packages over, the
// rack is upgraded to epoch 2, and a disk of epoch 1 opens, moves on, and opens again after a loss of power, when the old
// files are long gone.
func TestUpgradeFromLRTQ(t *testing.T) {
	t.Parallel()
	r := newRack(t, 3)
	r.sleds[0].encryptedAt1(r.bornLRTQ())
	for _, s := range r.sleds {
		s.start()
	}
	r.enroll()
	for _, s := range r.sleds {
		s.await("its package", func(s *testSled) bool {
			st, err := s.local().Status(t.Context())
			return err == nil && st.Quorum != nil && st.Quorum.LRTQ && strings.Contains(st.Boot.Waiting, "upgrade-lrtq") && strings.Contains(st.NextStep, "upgrade-lrtq")
		})
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := r.controller().Init(ctx); reason.CodeOf(err) != quorum.CodeUpgradeRequired {
		t.Fatalf("init of a rack with the older scheme: have %v", err)
	}
	ch, err := r.controller().UpgradeLRTQ(ctx)
	if err != nil {
		for _, s := range r.sleds {
			t.Logf("%s\n%s", s.name, s.logs)
		}
		t.Fatal(err)
	}
	if ch.Epoch != 2 || ch.Config.OldSecrets() != 1 {
		t.Errorf("have epoch %d with %d older secrets, want 2 with 1", ch.Epoch, ch.Config.OldSecrets())
	}
	if _, err := r.controller().UpgradeLRTQ(ctx); reason.CodeOf(err) != "rack-initialised" {
		t.Errorf("a second upgrade: have %v", err)
	}
	s := r.sleds[0]
	if _, err := s.local().Unlock(t.Context(), 20*time.Second); err != nil {
		t.Fatalf("%v\n%s", err, s.logs)
	}
	s.checkPattern(0)
	s.await("epoch 2 of its disk", func(s *testSled) bool {
		d, err := s.local().Disks(t.Context())
		return err == nil && d[0].State == "unlocked" && d[0].Epoch == 2
	})
	for _, s := range r.sleds {
		must(t, os.Remove(s.cfg.LRTQ.Ledgers[1]))
		s.stop()
	}
	for _, s := range r.sleds {
		s.powerCycle(firmware.Options{})
	}
	if _, err := s.local().Unlock(t.Context(), 20*time.Second); err != nil {
		t.Fatalf("after a loss of power: %v\n%s", err, s.logs)
	}
	s.checkPattern(0)
}

// TestLRTQAgainAfterUpgrade loses the seal of a sled after the upgrade, while its old ledger still lies there: enrolled
// again, it takes its old package over once more, is told of the commit, and opens its disk.
func TestLRTQAgainAfterUpgrade(t *testing.T) {
	t.Parallel()
	r := newRack(t, 3)
	r.sleds[0].encryptedAt1(r.bornLRTQ())
	for _, s := range r.sleds {
		s.start()
	}
	r.enroll()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, err := r.controller().UpgradeLRTQ(ctx)
	must(t, err)
	s := r.sleds[0]
	s.await("epoch 2 of its disk", func(s *testSled) bool {
		d, err := s.local().Disks(t.Context())
		return err == nil && d[0].State == "unlocked" && d[0].Epoch == 2
	})
	s.stop()
	s.restore(nil)
	s.powerCycle(firmware.Options{})
	s.await("lost-seal", func(s *testSled) bool { return s.state() == "lost-seal" })
	_, err = r.controller().EnrollWith(ctx, controller.EnrollOptions{Again: []string{s.name}})
	must(t, err)
	s.await("its disk", func(s *testSled) bool {
		st, err := s.local().Status(t.Context())
		return err == nil && st.State == "member" && st.Quorum.LRTQ && slices.Equal(st.Quorum.Commits, []ident.Epoch{2}) && st.Disks[0].State == "unlocked"
	})
	s.checkPattern(0)
}

// TestLRTQLedgerRefused starts sleds whose old ledgers are damaged, of another rack, or differ: each says so and goes no
// further; when the file is put right, the next start does.
func TestLRTQLedgerRefused(t *testing.T) {
	t.Parallel()
	r := newRack(t, 3)
	r.bornLRTQ()
	good := map[*testSled][]byte{}
	for _, s := range r.sleds {
		b, err := os.ReadFile(s.cfg.LRTQ.Ledgers[1])
		must(t, err)
		good[s] = b
	}
	damaged, foreign, differs := r.sleds[0], r.sleds[1], r.sleds[2]
	must(t, os.WriteFile(damaged.cfg.LRTQ.Ledgers[1], good[damaged][:1000], 0o600))
	must(t, os.WriteFile(foreign.cfg.LRTQ.Ledgers[1], []byte(strings.ReplaceAll(string(good[foreign]), r.rackID().String(), "00112233-4455-4677-8899-aabbccddeeff")), 0o600))
	must(t, os.MkdirAll(filepath.Dir(differs.cfg.LRTQ.Ledgers[0]), 0o700))
	must(t, os.WriteFile(differs.cfg.LRTQ.Ledgers[0], good[foreign], 0o600))
	for _, s := range r.sleds {
		s.start()
	}
	r.enroll()
	for s, want := range map[*testSled]reason.Code{damaged: vault.CodeLRTQLedger, foreign: vault.CodeLRTQRack, differs: vault.CodeLRTQDiffers} {
		s.await(string(want), func(s *testSled) bool {
			st, err := s.local().Status(t.Context())
			return err == nil && st.Boot.Error != nil && st.Boot.Error.Code == want && st.Boot.Error.Hint != "" && st.Quorum == nil
		})
		s.stop()
	}
	must(t, os.Remove(differs.cfg.LRTQ.Ledgers[0]))
	for s, b := range good {
		must(t, os.WriteFile(s.cfg.LRTQ.Ledgers[1], b, 0o600))
		s.powerCycle(firmware.Options{})
		s.await("its package", func(s *testSled) bool {
			st, err := s.local().Status(t.Context())
			return err == nil && st.Quorum != nil && st.Quorum.LRTQ
		})
	}
}

// TestLRTQServed has sleds speak the older scheme before the upgrade: a disk of epoch 1 opens by it. The first commit of the
// trust quorum ends it, and the disk stays open and moves on.
func TestLRTQServed(t *testing.T) {
	t.Parallel()
	r := newRack(t, 3)
	r.sleds[0].encryptedAt1(r.bornLRTQ())
	var peers []string
	for range r.sleds {
		ln, err := net.Listen("tcp", "[::1]:0")
		if err != nil {
			rig.Lack(t, fmt.Sprintf("no IPv6 on the loopback: %v", err))
		}
		peers = append(peers, ln.Addr().String())
		must(t, ln.Close())
	}
	for i, s := range r.sleds {
		s.cfg.LRTQ.Serve, s.cfg.LRTQ.Listen, s.cfg.LRTQ.Peers = true, peers[i], peers
		must(t, s.cfg.Validate())
		s.start()
	}
	r.enroll()
	s := r.sleds[0]
	s.await("its disk open by the older scheme", func(s *testSled) bool {
		st, err := s.local().Status(t.Context())
		return err == nil && st.State == "claimed" && st.LRTQ != nil && st.Disks[0].State == "unlocked" && st.Disks[0].Epoch == 1
	})
	s.checkPattern(0)
	st, err := s.local().Status(t.Context())
	must(t, err)
	counted := map[reason.Code]bool{}
	for _, e := range st.Reasons {
		counted[e.Code] = true
	}
	if !counted[vault.CodeLRTQServing] || !counted[vault.CodeLRTQTaken] {
		t.Errorf("not visible in status: %+v", st.Reasons)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, err = r.controller().UpgradeLRTQ(ctx)
	must(t, err)
	for _, s := range r.sleds {
		s.await("the end of the older scheme", func(s *testSled) bool {
			st, err := s.local().Status(t.Context())
			return err == nil && st.State == "member" && st.LRTQ == nil
		})
		if _, err := net.Dial("tcp", s.cfg.LRTQ.Listen); err == nil {
			t.Errorf("%s still listens", s.name)
		}
	}
	s.await("epoch 2 of its disk", func(s *testSled) bool {
		d, err := s.local().Disks(t.Context())
		return err == nil && d[0].State == "unlocked" && d[0].Epoch == 2
	})
	s.checkPattern(0)
	s.powerCycle(firmware.Options{})
	s.await("its disk open by the trust quorum", func(s *testSled) bool {
		st, err := s.local().Status(t.Context())
		return err == nil && st.LRTQ == nil && st.Disks[0].State == "unlocked"
	})
}

func TestLRTQConfigRefused(t *testing.T) {
	t.Parallel()
	if vault.DefaultConfig().LRTQ.Serve {
		t.Error("the older scheme is served by default")
	}
	for name, c := range map[string]vault.LRTQConfig{
		"relative": {Ledgers: []string{"a"}}, "nine": {Ledgers: slices.Repeat([]string{"/a"}, 9)}, "no address": {Serve: true, Peers: []string{"[::1]:1"}},
		"IPv4": {Serve: true, Listen: "127.0.0.1:1", Peers: []string{"[::1]:1"}}, "any": {Serve: true, Listen: "[::]:1", Peers: []string{"[::1]:1"}},
		"no peers": {Serve: true, Listen: "[::1]:1"}, "a name": {Serve: true, Listen: "[::1]:1", Peers: []string{"sled:1"}},
	} {
		cfg := vault.DefaultConfig()
		cfg.State.Copies, cfg.SP.Port = []string{"/a", "/b"}, "/c"
		cfg.Peer.Listen, cfg.Underlay.Listen = "127.0.0.1:1", "127.0.0.1:2"
		must(t, cfg.Validate())
		cfg.LRTQ = c
		if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), "[lrtq]") {
			t.Errorf("%s: have %v", name, err)
		}
	}
}
