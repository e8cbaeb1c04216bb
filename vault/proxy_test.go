package vault_test

import (
	"context"
	"crypto/ed25519"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sledvault/sledvault/rot/enroll"
	"github.com/sledvault/sledvault/vault"
	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/rack"
	"github.com/sledvault/sledvault/vault/rack/controller"
	"github.com/sledvault/sledvault/vault/rack/journal"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/wire"
)

// withDaemons is a rack after its first secret, and the daemons of its sleds' first start.
func withDaemons(t *testing.T, n int) (*testRack, []*vault.Daemon) {
	t.Helper()
	r := newRack(t, n)
	out := make([]*vault.Daemon, n)
	for i, s := range r.sleds {
		got := make(chan *vault.Daemon, 1)
		s.options = func(o vault.Options) vault.Options {
			return vault.WithDaemon(o, func(d *vault.Daemon) { got <- d })
		}
		s.start()
		out[i], s.options = <-got, nil
	}
	r.enroll()
	r.init()
	for _, s := range r.sleds {
		s.await("all peers", func(s *testSled) bool {
			q := s.status().Quorum
			return q != nil && len(q.ConnectedPeers) == n-1
		})
	}
	return r, out
}

// committed is what the operator's journal holds.
func (r *testRack) committed() (*quorum.Configuration, *quorum.Certificate) {
	r.t.Helper()
	st, err := journal.Peek(filepath.Join(r.dir, "rack"))
	must(r.t, err)
	return st.Change.Config, st.Change.Certificate
}

// TestProxy: a member passes quorum calls on, and their answers and refusals come back as those of a direct call.
func TestProxy(t *testing.T) {
	t.Parallel()
	r, ds := withDaemons(t, 3)
	cfg, cert := r.committed()
	d, to := ds[0], r.sleds[1].board()
	st, err := r.sleds[0].local().ProxyStatus(t.Context(), to)
	must(t, err)
	if p := st.PersistentState; len(st.ConnectedPeers) != 2 || !slices.Equal(p.Commits, []ident.Epoch{1}) || !slices.Equal(p.Shares, []ident.Epoch{1}) || p.Expunged != nil {
		t.Errorf("status of %s: %+v", to, st)
	}
	for name, f := range map[string]func() (quorum.CommitStatus, error){
		"commit": func() (quorum.CommitStatus, error) {
			return d.ProxyCommit(t.Context(), to, quorum.Commit{RackID: cfg.RackID, Epoch: 1, Certificate: cert})
		},
		"prepare-and-commit": func() (quorum.CommitStatus, error) {
			return d.ProxyPrepareAndCommit(t.Context(), to, quorum.PrepareAndCommit{Config: cfg, Certificate: cert})
		},
	} {
		if st, err := f(); err != nil || st != quorum.Committed {
			t.Errorf("%s once more: have %q, %v", name, st, err)
		}
	}
	other := *cert
	other.Epoch = 2
	for name, c := range map[string]struct {
		to   ident.Baseboard
		r    quorum.Commit
		code reason.Code
	}{
		"an epoch that is not prepared": {to, quorum.Commit{RackID: cfg.RackID, Epoch: 2, Certificate: &other}, quorum.CodeNotPrepared},
		"another rack":                  {to, quorum.Commit{RackID: ident.RackID{1}, Epoch: 1, Certificate: cert}, quorum.CodeInvalidRackID},
		"no certificate":                {to, quorum.Commit{RackID: cfg.RackID, Epoch: 1}, quorum.CodeCertificateMissing},
		"a certificate of another one":  {to, quorum.Commit{RackID: cfg.RackID, Epoch: 1, Certificate: &other}, api.CodeProxyRefused},
		"itself":                        {r.sleds[0].board(), quorum.Commit{RackID: cfg.RackID, Epoch: 1, Certificate: cert}, vault.CodeProxySelf},
		"nobody":                        {ident.Baseboard{Part: "p", Serial: "none"}, quorum.Commit{RackID: cfg.RackID, Epoch: 1, Certificate: cert}, vault.CodeProxyNotConnected},
	} {
		_, err := d.ProxyCommit(t.Context(), c.to, c.r)
		if reason.CodeOf(err) != c.code || reason.HintOf(err) == "" {
			t.Errorf("%s: have %v (hint %q), want %s", name, err, reason.HintOf(err), c.code)
		}
		if c.code == api.CodeProxyRefused && !strings.Contains(err.Error(), string(quorum.CodeCertificateInvalid)) {
			t.Errorf("%s: the destination's reason is not told: %v", name, err)
		}
	}
	if n := counted(r.sleds[1].status(), quorum.CodeCertificateInvalid); n != 1 {
		t.Errorf("the certificate of another epoch: counted %d times at the destination", n)
	}
	r.sleds[1].stop()
	r.sleds[0].await("down", func(s *testSled) bool { return len(s.status().Quorum.ConnectedPeers) == 1 })
	if _, err := r.sleds[0].local().ProxyStatus(t.Context(), to); reason.CodeOf(err) != vault.CodeProxyNotConnected || reason.RemedyOf(err) != reason.Retry {
		t.Errorf("a sled that is down: %v", err)
	}
	if n := counted(r.sleds[0].status(), "peer-not-connected"); n == 0 {
		t.Error("what could not be sent is not counted")
	}
}

// TestProxyNewSled: a sled that is enrolled and no member yet serves every sled of the enrolment set, for it knows no
// members, and takes their network configuration. The members do not serve it, and do not take its.
func TestProxyNewSled(t *testing.T) {
	t.Parallel()
	r, _ := withDaemons(t, 3)
	s := r.addSled()
	_, err := r.controller().Enroll(t.Context())
	must(t, err)
	member := r.sleds[0]
	s.await("connected to all", func(s *testSled) bool {
		q := s.status().Quorum
		return q != nil && len(q.ConnectedPeers) == 3
	})
	member.await("connected to it", func(m *testSled) bool { return len(m.status().Quorum.ConnectedPeers) == 3 })
	if st, err := member.local().ProxyStatus(t.Context(), s.board()); err != nil || len(st.PersistentState.Commits) != 0 {
		t.Errorf("a member asks the new sled: have %+v, %v", st, err)
	}
	_, err = s.local().ProxyStatus(t.Context(), member.board())
	if reason.CodeOf(err) != api.CodeProxyRefused || !strings.Contains(err.Error(), string(vault.CodeProxyNotMember)) || counted(member.status(), vault.CodeProxyNotMember) != 1 {
		t.Errorf("the new sled asks a member: have %v", err)
	}
	_, err = s.local().SetNetworkConfig(t.Context(), 1, []byte("of another life"))
	must(t, err)
	member.await("a refusal", func(m *testSled) bool { return counted(m.status(), vault.CodeNetworkSender) == 1 })
	_, err = member.local().SetNetworkConfig(t.Context(), 2, []byte("of this rack"))
	must(t, err)
	s.await("the rack's network configuration", func(s *testSled) bool { return s.status().Network.Generation == 2 })
	if n := member.status().Network; n.Generation != 2 || n.From != nil {
		t.Errorf("have %+v", n)
	}
}

// rogueProxy: a member that was taken over passes an invented configuration on as if a controller had asked for it. Neither
// that nor a flood of questions moves the other.
func rogueProxy(t *testing.T) {
	r, ds := withDaemons(t, 3)
	rogue, victim := ds[0], r.sleds[1]
	cfg, cert := r.committed()
	invented := *cfg
	invented.Epoch, invented.Coordinator, invented.EncryptedSecrets = 2, r.sleds[0].board(), nil
	own, err := enroll.SignCertificate(ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)), &invented, 0)
	must(t, err)
	forged := *cert
	forged.Epoch = 2
	proof := func(c *quorum.Certificate) wire.Msg {
		return wire.TQ{Message: quorum.Message{RackID: cfg.RackID, Kind: quorum.CommitProof{Certificate: c}}}
	}
	prepare := wire.ProxyRequest{ID: wire.RequestID{1}, Op: wire.ProxyPrepareAndCommit{Config: &invented}}
	plain := wire.ProxyRequest{ID: wire.RequestID{2}, Op: wire.ProxyCommit{RackID: cfg.RackID, Epoch: 1}}
	for _, c := range []struct {
		name string
		msgs []wire.Msg
		code reason.Code
	}{
		{"no certificate", []wire.Msg{prepare}, quorum.CodeCertificateMissing},
		{"no certificate, for what is committed", []wire.Msg{plain}, quorum.CodeCertificateMissing},
		{"a used one", []wire.Msg{proof(cert), plain, plain}, quorum.CodeCertificateMissing},
		{"of its own key", []wire.Msg{proof(own), prepare}, quorum.CodeCertificateInvalid},
		{"of the epoch before", []wire.Msg{proof(cert), prepare}, quorum.CodeCertificateInvalid},
		{"with another number", []wire.Msg{proof(&forged), prepare}, quorum.CodeCertificateInvalid},
	} {
		before := counted(victim.status(), c.code)
		must(t, rogue.ForgeMessages(victim.board(), c.msgs...))
		victim.await("refusal: "+c.name, func(s *testSled) bool { return counted(s.status(), c.code) == before+1 })
	}
	if q := victim.status().Quorum; !slices.Equal(q.Configs, []ident.Epoch{1}) || !slices.Equal(q.Commits, []ident.Epoch{1}) {
		t.Errorf("the victim holds configurations %v, commits %v", q.Configs, q.Commits)
	}
	// It answers for others, too: to a request that went out to the third sled, and to none.
	must(t, rogue.ForgeMessages(victim.board(), wire.ProxyResponse{ID: wire.RequestID{3}, Result: wire.ProxyCommitted{Status: quorum.Committed}}))
	victim.await("a counted answer", func(s *testSled) bool { return counted(s.status(), vault.CodeProxyUnknown) == 1 })
	deadline := time.Now().Add(20 * time.Second)
	for counted(victim.status(), vault.CodeProxyFlood) == 0 {
		if time.Now().After(deadline) {
			t.Fatal("a flood of requests is not bounded")
		}
		for range 20 {
			_ = rogue.ForgeMessages(victim.board(), wire.ProxyRequest{ID: wire.RequestID{4}, Op: wire.ProxyStatus{}}) // its own queue may be full
		}
	}
	if _, err := ds[2].ProxyStatus(t.Context(), victim.board()); err != nil {
		t.Errorf("during the flood another member asks: %v", err)
	}
}

// unreachable gives the operator a rack file in which nothing listens at the sled's underlay address.
func (s *testSled) unreachable() {
	t := s.rack.t
	t.Helper()
	path := filepath.Join(s.rack.dir, "rack", controller.RackFile)
	b, err := os.ReadFile(path)
	must(t, err)
	dead := strings.TrimSuffix(s.cfg.Underlay.Listen, ":12350") + ":12351"
	next := strings.ReplaceAll(string(b), s.cfg.Underlay.Listen, dead)
	if next == string(b) {
		t.Fatalf("%s is not in the rack file", s.cfg.Underlay.Listen)
	}
	must(t, os.WriteFile(path, []byte(next), 0o600))
}

// TestChangeThroughPeers: a sled that the controller cannot reach takes part in a rotation, also if it missed the prepare,
// and its disk moves like the others'.
func TestChangeThroughPeers(t *testing.T) {
	t.Parallel()
	r := unlockedRack(t, 3)
	s := r.sleds[2]
	s.unreachable()
	r.changed(rotate)
	s.rotatedTo(2)
	s.stop()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	if ch, err := r.controller().Rotate(ctx); reason.CodeOf(err) != controller.CodeWaiting || ch.Phase != rack.Decided {
		t.Fatalf("a rotation without %s: %v", s.name, err)
	}
	s.start()
	r.changed(rotate) // goes on
	s.rotatedTo(3)
	opens(t, r.sleds...)
	st, err := r.controller().Status(t.Context())
	must(t, err)
	if st.Change.Epoch != 3 || st.Sleds[2].Status != nil || len(st.Waits) != 0 {
		t.Errorf("status: %+v, waits %+v", st.Change, st.Waits)
	}
}
