package vault_test

import (
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/sledvault/sledvault/vault"
	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/wire"
)

// TestNetworkConfig: what one agent gives reaches every sled, also those that come later, survives a restart, and shows
// nowhere.
func TestNetworkConfig(t *testing.T) {
	t.Parallel()
	const secretive = "PASSWORD-OF-A-ROUTER"
	r, _ := withDaemons(t, 3)
	late := r.sleds[2]
	late.stop()
	if c, err := r.sleds[0].local().NetworkConfig(t.Context()); err != nil || c.Generation != 0 {
		t.Errorf("before: %+v, %v", c, err)
	}
	woken := make(chan api.NetworkConfig, 1)
	go func() {
		c, _ := r.sleds[1].local().NetworkConfigAfter(t.Context(), 0)
		woken <- c
	}()
	set := func(s *testSled, g uint64, blob string) error {
		_, err := s.local().SetNetworkConfig(t.Context(), g, []byte(blob))
		return err
	}
	must(t, set(r.sleds[0], 7, secretive))
	if c := <-woken; c.Generation != 7 || string(c.Blob) != secretive {
		t.Errorf("the other agent was woken with %+v", c)
	}
	st := r.sleds[1].status()
	if n := st.Network; n == nil || n.Generation != 7 || n.From == nil || *n.From != r.sleds[0].board() || n.Bytes != len(secretive) {
		t.Errorf("status: %+v", n)
	}
	r.sleds[0].stop()
	r.sleds[1].stop()
	r.sleds[1].start() // alone: from its own disks
	r.sleds[1].awaitSocket()
	has := func(g uint64) func(*testSled) bool {
		return func(s *testSled) bool { n := s.status().Network; return n != nil && n.Generation == g }
	}
	r.sleds[1].await("its network configuration", has(7))
	if n := r.sleds[1].status().Network; n.From != nil {
		t.Errorf("after a restart: from %v", n.From)
	}
	late.start()
	late.awaitSocket()
	late.await("the network configuration", has(7))
	r.sleds[0].start()
	r.sleds[0].awaitSocket()
	r.sleds[0].await("its network configuration", has(7))
	for name, c := range map[string]struct {
		g    uint64
		blob string
		code reason.Code
	}{
		"the same":      {7, secretive, ""},
		"a split":       {7, "other", vault.CodeNetworkSplit},
		"an older one":  {6, "old", vault.CodeNetworkStale},
		"generation 0":  {0, "none", vault.CodeNetworkInvalid},
		"too large":     {8, strings.Repeat("x", wire.MaxNetworkBlob+1), vault.CodeNetworkInvalid},
		"far too ahead": {math.MaxUint64, "last", vault.CodeNetworkJump},
	} {
		if err := set(late, c.g, c.blob); reason.CodeOf(err) != c.code || (err != nil && reason.HintOf(err) == "") {
			t.Errorf("%s: have %v, want %q", name, err, c.code)
		}
	}
	must(t, set(late, 8, strings.Repeat("y", wire.MaxNetworkBlob))) // every byte of it takes two in a frame
	for _, s := range r.sleds {
		s.await("the largest one", has(8))
	}
	for _, s := range r.sleds {
		if strings.Contains(s.logs.String(), secretive) {
			t.Errorf("%s: the blob is in the log", s.name)
		}
		if raw, err := s.local().StatusJSON(t.Context()); err != nil || strings.Contains(string(raw), secretive) {
			t.Errorf("%s: the blob is in the status (%v)", s.name, err)
		}
	}
}

// TestNetworkConfigPoison: a member that was taken over cannot use up the numbers, nor hide that it differs.
func TestNetworkConfigPoison(t *testing.T) {
	t.Parallel()
	r, ds := withDaemons(t, 3)
	victim := r.sleds[1]
	_, err := r.sleds[0].local().SetNetworkConfig(t.Context(), 7, []byte("true"))
	must(t, err)
	victim.await("the network configuration", func(s *testSled) bool { return s.status().Network != nil })
	for _, c := range []struct {
		cfg  wire.NetworkConfig
		code reason.Code
	}{
		{wire.NetworkConfig{Generation: math.MaxUint64, Blob: []byte("for ever")}, vault.CodeNetworkJump},
		{wire.NetworkConfig{Generation: 7, Blob: []byte("false")}, vault.CodeNetworkSplit},
		{wire.NetworkConfig{Blob: []byte("false")}, vault.CodeNetworkInvalid},
	} {
		must(t, ds[0].ForgeMessages(victim.board(), c.cfg))
		victim.await(string(c.code), func(s *testSled) bool { return counted(s.status(), c.code) == 1 })
	}
	st := victim.status()
	if st.Network.Generation != 7 || !slices.ContainsFunc(st.Alarms, func(a api.Alarm) bool {
		return a.Kind == string(vault.CodeNetworkSplit) && *a.From == r.sleds[0].board() && a.Text != ""
	}) {
		t.Errorf("network %+v, alarms %+v", st.Network, st.Alarms)
	}
	_, err = victim.local().SetNetworkConfig(t.Context(), 8, []byte("true again"))
	must(t, err)
	r.sleds[0].await("generation 8", func(s *testSled) bool { return s.status().Network.Generation == 8 })
	if a := victim.status().Alarms; len(a) != 0 {
		t.Errorf("after a newer one: alarms %+v", a)
	}
	// A message over the limit of a frame is never sent: a typed error, counted, and the connection stays.
	err = ds[0].ForgeMessages(victim.board(), wire.NetworkConfig{Generation: 9, Blob: make([]byte, 2<<20)})
	if code := reason.CodeOf(err); code != wire.CodeLength || counted(r.sleds[0].status(), code) != 1 {
		t.Errorf("too large to send: %v", err)
	}
	// What honest peers drop every day is counted apart.
	must(t, ds[0].Forge(victim.board(), quorum.PrepareAck{Epoch: 9}))
	victim.await("a late message", func(s *testSled) bool {
		return slices.ContainsFunc(s.status().Reasons, func(e reason.Entry) bool {
			return e.Code == quorum.CodeUnexpected && e.Routine && e.Peer == r.sleds[0].board().String()
		})
	})
	if n := counted(victim.status(), "peer-ended"); n != 0 {
		t.Errorf("the connection ended %d times", n)
	}
}
