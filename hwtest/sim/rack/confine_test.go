//go:build linux

package simrack_test

import (
	"strings"
	"testing"

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
}
