package vault_test

import (
	"bytes"
	"testing"
	"time"

	"github.com/sledvault/sledvault/hwtest/sim/disk"
	"github.com/sledvault/sledvault/hwtest/sim/firmware"
	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/secret"
)

// TestRackBootsAndUnlocks is the whole way: unclaimed sleds are enrolled, make a rack, encrypt their disks, lose power
// all at once, and open the disks again by quorum.
func TestRackBootsAndUnlocks(t *testing.T) {
	t.Parallel()
	r := newRack(t, 3)
	for _, s := range r.sleds {
		s.start()
	}
	r.enroll()
	r.init()
	for i, s := range r.sleds {
		d, err := s.local().Format(t.Context(), "data0", api.FormatRequest{KeepData: true})
		must(t, err)
		if d.State != "unlocked" {
			t.Fatalf("%s: disk after format: %+v %+v", s.name, d, d.Error)
		}
		s.checkPattern(uint64(i))
	}
	for _, s := range r.sleds {
		s.stop()
	}
	for _, s := range r.sleds {
		s.powerCycle(firmware.Options{})
	}
	for i, s := range r.sleds {
		disks, err := s.local().Unlock(t.Context(), 20*time.Second)
		if err != nil {
			t.Fatalf("%s: %v\n%s", s.name, err, s.logs)
		}
		if disks[0].State != "unlocked" || disks[0].Epoch != 1 {
			t.Errorf("%s: %+v", s.name, disks[0])
		}
		s.await("done", func(s *testSled) bool {
			st, err := s.local().Status(t.Context())
			return err == nil && st.Boot.Step == "done"
		})
		st, err := s.local().Status(t.Context())
		must(t, err)
		t.Logf("%s unlocked after %.0f ms, steps %+v", s.name, st.Boot.MSToUnlocked, st.Boot.Steps)
		s.checkPattern(uint64(i))
	}
}

// checkPattern reads the disk with the key that the sled releases.
func (s *testSled) checkPattern(seed uint64) {
	t := s.rack.t
	t.Helper()
	var key bytes.Buffer
	must(t, s.local().Key(t.Context(), "data0", &key))
	k, err := secret.Take[secret.DiskKeyKind](secret.Heap{}, key.Bytes())
	must(t, err)
	defer k.Destroy()
	got, err := disk.ReadPlain(t.Context(), s.cfg.Disks[0].Path, k, 4096, 8192)
	must(t, err)
	if !bytes.Equal(got, disk.Pattern(seed, 4096, 8192)) {
		t.Errorf("%s: the data on the disk changed", s.name)
	}
}
