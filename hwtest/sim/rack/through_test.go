//go:build linux

package simrack_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	simrack "github.com/sledvault/sledvault/hwtest/sim/rack"
	"github.com/sledvault/sledvault/vault/api"
)

// TestThrough: on real daemons and with the real command, a sled whose underlay address is dead takes part in a rotation
// through another one, its disk moves, and the operator is told how.
func TestThrough(t *testing.T) {
	t.Parallel()
	r := newRack(t)
	s := r.Sled(2)
	b, err := os.ReadFile(r.File)
	if err != nil {
		t.Fatal(err)
	}
	dead := strings.TrimSuffix(s.Underlay, ":12350") + ":12351"
	if err := os.WriteFile(r.File, bytes.ReplaceAll(b, []byte(s.Underlay), []byte(dead)), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), filepath.Join(programs.dir, "sledvault"), "rack", "rotate", "--rack", r.File, "--timeout", "60s")
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatalf("rack rotate: %v", err)
	}
	if !strings.Contains(string(out), s.Name+": going through sled-") || !strings.Contains(string(out), dead) {
		t.Error("the way through another sled, and why, is not told")
	}
	for _, o := range r.Sleds() {
		if _, err := o.Await(t.Context(), "at epoch 2", func(st api.Status) bool {
			return st.Quorum != nil && len(st.Disks) == 1 && st.Disks[0].Epoch == 2 && st.Disks[0].State == "unlocked"
		}); err != nil {
			t.Error(err)
		}
	}
	if _, err := r.Run(t.Context(), "rack", "status", "--rack", r.File); err != nil {
		t.Error(err)
	}
	if out, err := r.On(t.Context(), r.Sled(0), "quorum", "status", "--of", s.Board.String(), "--json"); err != nil || !strings.Contains(string(out), `"commits":[1,2]`) {
		t.Errorf("quorum status --of: %s, %v", out, err)
	}
	if err := os.WriteFile(r.File, b, 0o600); err != nil { // the later scenes need every address
		t.Fatal(err)
	}
	play(t, r, simrack.SceneColdBoot)
}
