//go:build linux

package simrack_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	simrack "github.com/sledvault/sledvault/hwtest/sim/rack"
	"github.com/sledvault/sledvault/internal/landlock"
	"github.com/sledvault/sledvault/vault/api"
)

// TestConfined: real daemons give up what they do not need, with encrypting in place, opening and power cuts behind them.
func TestConfined(t *testing.T) {
	t.Parallel()
	r := newRack(t)
	st := status(t, r.Sled(0))
	have := map[string]api.Hardening{}
	for _, h := range st.Hardening {
		have[h.Name] = h
	}
	for _, name := range []string{"no-core-files", "not-dumpable", "landlock", "no-new-privileges"} {
		if h := have[name]; !h.OK && !(name == "landlock" && strings.Contains(h.Detail, landlock.ErrUnsupported.Error())) {
			t.Errorf("%s: have %+v", name, h)
		}
	}
	if have["landlock"].OK && !strings.HasPrefix(have["landlock"].Detail, "ABI ") {
		t.Errorf("have %+v", have["landlock"])
	}
	// The marker is open before anything is taken away.
	if b, err := os.ReadFile(r.Sled(0).Trace); err != nil || !strings.Contains(string(b), "frame prepare") {
		t.Errorf("trace marker: have %q, %v", b, err)
	}
	t.Run("seal reset", func(t *testing.T) { testSealReset(t, r) })
}

// testSealReset: the command works on a confined daemon, which ends, is started again by its supervisor, and is unclaimed.
func testSealReset(t *testing.T, r *simrack.Rack) {
	s := r.Sled(2)
	reset := []string{"seal", "reset", "--baseboard", s.Board.String()}
	_, err := r.On(t.Context(), s, reset...)
	if ce, ok := errors.AsType[*simrack.CommandError](err); !ok || ce.Code != 1 || !strings.Contains(ce.Stderr, "--yes-i-know") {
		t.Errorf("member: have %v, want exit code 1 and the way out", err)
	}
	if _, err := r.On(t.Context(), s, append(reset, "--yes-i-know")...); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Await(t.Context(), "unclaimed", func(st api.Status) bool { return st.State == api.StateUnclaimed }); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(s.State[1], "enrolment.cbor.old-1")); err != nil {
		t.Errorf("the old state is not kept: %v", err)
	}
}
