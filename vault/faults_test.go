package vault_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sledvault/sledvault/hwtest/sim/firmware"
	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/ledger"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
)

// unlockedRack is a rack of n sleds, each with one open disk.
func unlockedRack(t *testing.T, n int) *testRack {
	t.Helper()
	r := newRack(t, n)
	for _, s := range r.sleds {
		s.start()
	}
	r.enroll()
	r.init()
	for _, s := range r.sleds {
		_, err := s.local().Format(t.Context(), "data0", api.FormatRequest{KeepData: true})
		must(t, err)
	}
	return r
}

func (s *testSled) status() api.Status {
	s.rack.t.Helper()
	st, err := s.local().Status(s.rack.t.Context())
	must(s.rack.t, err)
	return st
}

// counted returns how often a reason occurred.
func counted(st api.Status, code reason.Code) (n uint64) {
	for _, e := range st.Reasons {
		if e.Code == code {
			n += e.Count
		}
	}
	return n
}

func (s *testSled) unlocks() {
	t := s.rack.t
	t.Helper()
	disks, err := s.local().Unlock(t.Context(), 20*time.Second)
	if err != nil {
		t.Fatalf("%s: %v\n%s", s.name, err, s.logs)
	}
	for _, d := range disks {
		if d.State != "unlocked" {
			t.Fatalf("%s: %+v %+v", s.name, d, d.Error)
		}
	}
}

// TestBelowThreshold: too few sleds open nothing, and say who is missing; the ones that come back are enough at once.
func TestBelowThreshold(t *testing.T) {
	t.Parallel()
	r := unlockedRack(t, 3)
	for _, s := range r.sleds {
		s.stop()
	}
	s := r.sleds[0]
	s.powerCycle(firmware.Options{})
	s.awaitSocket()
	_, err := s.local().Unlock(t.Context(), 300*time.Millisecond)
	if reason.CodeOf(err) != "below-threshold" || reason.RemedyOf(err) != reason.Retry {
		t.Fatalf("have %v, want below-threshold", err)
	}
	for _, other := range r.sleds[1:] {
		if !strings.Contains(err.Error(), other.serial) {
			t.Errorf("%q does not name %s", err, other.serial)
		}
	}
	if !strings.Contains(err.Error(), "have 1, want 2") {
		t.Errorf("%q does not give the numbers", err)
	}
	st := s.status()
	if st.Boot.Step != "shares" || st.Boot.Error == nil || st.Boot.Error.Code != "below-threshold" {
		t.Errorf("status while waiting: %+v", st.Boot)
	}
	r.sleds[1].start()
	s.unlocks()
}

// TestRestart: a daemon that ends and starts again, without its sled losing power, opens its disks again.
func TestRestart(t *testing.T) {
	t.Parallel()
	r := unlockedRack(t, 3)
	for range 5 {
		for _, s := range r.sleds {
			s.stop()
			s.start()
			s.awaitSocket()
			s.unlocks()
		}
	}
}

// awaitSocket waits until the daemon answers.
func (s *testSled) awaitSocket() {
	s.rack.t.Helper()
	s.await("answering", func(s *testSled) bool { _, err := s.local().Status(s.rack.t.Context()); return err == nil })
}

// TestForeignTPM: a sled with another sled's TPM starts no peer network and names the other sled.
func TestForeignTPM(t *testing.T) {
	t.Parallel()
	r := unlockedRack(t, 3)
	a, b := r.sleds[0], r.sleds[1]
	a.stop()
	b.stop()
	a.cfg.TPM.Device, b.cfg.TPM.Device = b.cfg.TPM.Device, a.cfg.TPM.Device
	a.start()
	a.await("a refusal", func(s *testSled) bool {
		st, err := s.local().Status(t.Context())
		return err == nil && st.Boot.Error != nil
	})
	st := a.status()
	if st.Boot.Error.Code != "tpm-foreign" || !strings.Contains(st.Boot.Error.Text, b.serial) || st.Peers != nil || st.Boot.Error.Hint == "" {
		t.Errorf("have %+v with peers %v, want tpm-foreign naming %s", st.Boot.Error, st.Peers, b.serial)
	}
	_, err := a.local().Unlock(t.Context(), 50*time.Millisecond)
	if reason.CodeOf(err) != "tpm-foreign" {
		t.Errorf("unlock: have %v, want tpm-foreign", err)
	}
}

// TestDamagedFiles: garbage in one copy of a file is counted, repaired and survived.
func TestDamagedFiles(t *testing.T) {
	t.Parallel()
	r := unlockedRack(t, 3)
	s := r.sleds[0]
	for _, f := range []struct {
		name string
		code reason.Code
	}{{ledger.LedgerFile, ledger.CodeDamaged}, {ledger.EnrolmentFile, ledger.CodeEnrolment}, {"seal.auth", "seal-auth"}, {ledger.ObservedFile, ledger.CodeObserved}} {
		s.stop()
		path := filepath.Join(s.cfg.State.Copies[0], f.name)
		must(t, os.WriteFile(path, bytes.Repeat([]byte{0xa5}, 3000), 0o600))
		s.start()
		s.awaitSocket()
		s.unlocks()
		if counted(s.status(), f.code) == 0 {
			t.Errorf("garbage in one %s: %s was not counted: %+v", f.name, f.code, s.status().Reasons)
		}
		s.stop() // observations are written when the disks are open, at the latest now
		if b, err := os.ReadFile(path); err != nil || bytes.HasPrefix(b, []byte{0xa5, 0xa5, 0xa5, 0xa5}) {
			t.Errorf("%s was not repaired: %v", f.name, err)
		}
		s.start()
		s.awaitSocket()
		s.unlocks()
		if n := counted(s.status(), f.code); n != 0 {
			t.Errorf("%s is still damaged at the next start: %d", f.name, n)
		}
	}
}

// TestKeyOpensOnlyItsDisk: a released key opens its own disk and no other, and the release is recorded.
func TestKeyOpensOnlyItsDisk(t *testing.T) {
	t.Parallel()
	r := unlockedRack(t, 3)
	keys := make([]secret.DiskKey, len(r.sleds))
	for i, s := range r.sleds {
		var b bytes.Buffer
		must(t, s.local().Key(t.Context(), "data0", &b))
		k, err := secret.Take[secret.DiskKeyKind](secret.Heap{}, b.Bytes())
		must(t, err)
		keys[i] = k
	}
	for i := range keys {
		for j := range keys {
			if i != j && keys[i].Equal(keys[j]) {
				t.Errorf("disks %d and %d have one key", i, j)
			}
		}
	}
	if err := r.sleds[0].local().Key(t.Context(), "nothing", &bytes.Buffer{}); reason.CodeOf(err) != api.CodeUnknownDisk {
		t.Errorf("key of an unknown disk: %v", err)
	}
}

// TestSilentSP: while the service processor is silent, the boot says so and status answers.
func TestSilentSP(t *testing.T) {
	t.Parallel()
	r := newRack(t, 3)
	s := r.sleds[0]
	must(t, s.sp.SP.SetIdentity("", 0, ""))
	s.start()
	s.awaitSocket()
	s.await("a refusal", func(s *testSled) bool {
		st, err := s.local().Status(t.Context())
		return err == nil && st.Boot.Error != nil
	})
	st := s.status()
	if st.Boot.Step != "identity" || st.Boot.Error.Code != "sp-no-identity" || st.NextStep == "" {
		t.Errorf("have %+v", st.Boot)
	}
	must(t, s.sp.SP.SetIdentity("913-0000019", 6, s.serial))
	s.await("unclaimed", func(s *testSled) bool { return s.state() == "unclaimed" })
}

func TestAttack(t *testing.T) {
	t.Parallel()
	t.Run("ledger-rollback", ledgerRollback)
	t.Run("lone-expunge", loneExpunge)
	t.Run("rogue-coordinator", rogueProxy)
	t.Run("orphan-old-secrets", orphanOldSecrets)
	t.Run("wiped-state", func(t *testing.T) {
		r := unlockedRack(t, 3)
		s := r.sleds[2]
		s.stop()
		for _, dir := range s.cfg.State.Copies {
			entries, err := os.ReadDir(dir)
			must(t, err)
			for _, e := range entries {
				must(t, os.RemoveAll(filepath.Join(dir, e.Name())))
			}
		}
		s.cfg.Claim.Fingerprint = "sha256:" + strings.Repeat("0", 64) // even a config of the attacker's changes nothing
		s.start()
		s.await("lost-seal", func(s *testSled) bool { return s.state() == "lost-seal" })
		if fp := s.status().Claim.Fingerprint; fp != r.fp {
			t.Errorf("the sled may be claimed by %s, want only %s", fp, r.fp)
		}
	})
	t.Run("mixed-polynomial", mixedPolynomial)
	t.Run("dtpm-reset-replay", resetReplay)
}
