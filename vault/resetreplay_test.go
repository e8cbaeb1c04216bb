package vault_test

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"github.com/sledvault/sledvault/hwtest/sim/firmware"
	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/reason"
)

// resetReplay: the TPM of one sled is reset and told the measurements of a good boot. Its seal opens then, for the
// registers cannot tell; the threshold is the second gate, and one share is below it.
func resetReplay(t *testing.T) {
	t.Parallel()
	r := unlockedRack(t, 3)
	victim, judge := r.sleds[0], r.sleds[1]
	for _, s := range r.sleds {
		s.stop()
	}
	victim.powerCycle(firmware.Options{})
	victim.await("alone", func(s *testSled) bool {
		st, err := s.local().Status(t.Context())
		return err == nil && st.Boot.Step == "shares"
	})
	if st := victim.status(); st.State != api.StateMember || len(st.Quorum.Shares) == 0 {
		t.Errorf("have state %s with %+v, want the seal open and its own share there", st.State, st.Quorum)
	}
	_, err := victim.local().Unlock(t.Context(), 300*time.Millisecond)
	if reason.CodeOf(err) != "below-threshold" || !strings.Contains(err.Error(), "have 1, want 2") {
		t.Errorf("unlock with one share: have %v, want below-threshold", err)
	}
	var key bytes.Buffer
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond) // a request waits for the other sleds
	defer cancel()
	if err := victim.local().Key(ctx, "data0", &key); err == nil || key.Len() > 0 {
		t.Errorf("one share was enough for a disk key: %v", err)
	}
	for _, d := range victim.status().Disks {
		if d.State == "unlocked" {
			t.Errorf("disk %s is open", d.ID)
		}
	}
	judge.start() // control: with the threshold it opens
	victim.unlocks()
}
