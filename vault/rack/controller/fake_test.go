package controller_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/sledvault/sledvault/rot"
	"github.com/sledvault/sledvault/rot/channel/channeltest"
	"github.com/sledvault/sledvault/rot/enroll"
	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/keys"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/rack/controller"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
)

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// testRack is a rack folder and the sleds that its rack file names, served inside the test process.
type testRack struct {
	t     *testing.T
	dir   string
	sleds []*fakeSled

	recovery []byte // the recovery key's text

	mu     sync.Mutex
	events []string
	onTell func()
}

// fakeSled is a sled as far as the controller can tell: its underlay API, evidence from a fake TPM, and a node that only
// remembers what it was told.
type fakeSled struct {
	api.Node // nil: whatever is not implemented below is not asked for
	*channeltest.Sled
	rack *testRack
	addr string
	spki [32]byte
	stop func()

	mu        sync.Mutex
	changed   chan struct{}
	version   uint64
	configs   map[ident.Epoch]*quorum.Configuration
	commits   map[ident.Epoch]*quorum.Certificate
	coord     *quorum.Configuration
	acked     []ident.Baseboard
	calls     map[string]int
	unready   bool          // misses the Prepare
	computing chan struct{} // prepare-and-commit waits for it
	forget    bool          // loses its memory at the first acknowledged prepare, as a restart does
	liar      bool          // makes another configuration than it was asked for
	lrtq      bool          // holds a package of the older scheme
	state     api.State
	linked    atomic.Bool // the others say that they are connected to it, and pass requests on
	noProxy   error       // what it answers instead of passing a request on
	enrol     *enroller   // nil: it was enrolled before the test
}

// newRack makes an enrolled rack of n running sleds.
func newRack(t *testing.T, n int) *testRack {
	t.Helper()
	r := &testRack{t: t, dir: filepath.Join(t.TempDir(), "rack")}
	_, recovery, err := controller.NewRack(r.dir, "test")
	must(t, err)
	r.recovery = recovery
	key, err := enroll.LoadKey(secret.Heap{}, filepath.Join(r.dir, "membership.key"), nil)
	must(t, err)
	defer key.Destroy()
	b, err := os.ReadFile(filepath.Join(r.dir, "enrolment.cbor"))
	must(t, err)
	set, err := enroll.DecodeSet(b)
	must(t, err)
	next := set.Next()
	for i := range n {
		s := &fakeSled{
			Sled: channeltest.NewSled(t, fmt.Sprintf("SIM%04d", i+1)), rack: r, changed: make(chan struct{}), version: 1, state: api.StateClaimed,
			configs: map[ident.Epoch]*quorum.Configuration{}, commits: map[ident.Epoch]*quorum.Certificate{}, calls: map[string]int{},
		}
		s.start("127.0.0.1:0")
		r.sleds = append(r.sleds, s)
		must(t, next.Put(s.Record()))
	}
	must(t, next.Sign(key))
	must(t, os.WriteFile(filepath.Join(r.dir, "enrolment.cbor"), next.Encode(), 0o600))
	for _, s := range r.sleds {
		s.SetSet(next)
	}
	r.writeFile()
	return r
}

// writeFile writes the rack file from where the sleds listen.
func (r *testRack) writeFile() {
	var b strings.Builder
	b.WriteString("name = \"test\"\n")
	for i, s := range r.sleds {
		fmt.Fprintf(&b, "[[sled]]\nname = \"s%d\"\npart = %q\nserial = %q\nunderlay = %q\nek_name = %q\n", i+1, s.ID.Part, s.ID.Serial, s.addr, hex.EncodeToString(s.TPM.EKName()))
	}
	must(r.t, os.WriteFile(filepath.Join(r.dir, "rack.toml"), []byte(b.String()), 0o600))
}

// open opens the controller, as a rack command does.
func (r *testRack) open() *controller.Controller {
	r.t.Helper()
	c, err := controller.Open(filepath.Join(r.dir, "rack.toml"), func(e controller.Event) {
		r.mu.Lock()
		r.events = append(r.events, strings.TrimPrefix(e.Sled+": "+e.Text, ": "))
		f := r.onTell
		r.mu.Unlock()
		if f != nil {
			f()
		}
	})
	must(r.t, err)
	r.t.Cleanup(c.Close)
	return c
}

// start serves the sled's underlay API.
func (s *fakeSled) start(listen string) {
	t := s.rack.t
	t.Helper()
	l, err := net.Listen("tcp", listen)
	must(t, err)
	s.addr = l.Addr().String()
	must(t, l.Close())
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	must(t, err)
	leaf, err := x509.ParseCertificate(der)
	must(t, err)
	s.spki = sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
	u, err := api.ListenUnderlay(api.UnderlayConfig{Listen: s.addr, Certificate: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, Node: s, Reasons: reason.NewLog()})
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- u.Serve(ctx) }()
	s.stop = sync.OnceFunc(func() { cancel(); _ = <-done })
	t.Cleanup(s.stop)
}

// restart is a power cycle: what is not durable is gone.
func (s *fakeSled) restart() {
	s.stop()
	s.mu.Lock()
	s.coord, s.acked, s.version = nil, nil, 1
	s.mu.Unlock()
	s.start(s.addr)
}

func (s *fakeSled) count(call string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls[call]++
}

func (s *fakeSled) called(call string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[call]
}

// bump wakes whoever waits; the lock is held.
func (s *fakeSled) bump() {
	s.version++
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *fakeSled) newest() (e ident.Epoch) {
	for have := range s.commits {
		e = max(e, have)
	}
	return e
}

// Status implements [api.Node].
func (s *fakeSled) Status(context.Context) api.Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := &api.Quorum{LRTQ: s.lrtq}
	for e := range s.configs {
		q.Configs = append(q.Configs, e)
	}
	for e := range s.commits {
		q.Commits = append(q.Commits, e)
	}
	for _, o := range s.rack.sleds {
		if o != s && o.linked.Load() {
			q.ConnectedPeers = append(q.ConnectedPeers, o.ID)
		}
	}
	return api.Status{Baseboard: &s.ID, State: s.state, Quorum: q}
}

// passOn finds the sled that a proxied request is for.
func (s *fakeSled) passOn(to ident.Baseboard) (*fakeSled, error) {
	s.count("proxy")
	if s.noProxy != nil {
		return nil, s.noProxy
	}
	for _, o := range s.rack.sleds {
		if o.ID == to && o.linked.Load() {
			return o, nil
		}
	}
	return nil, reason.Later("proxy-not-connected", "hint", "fake: no connection to %s", to)
}

// ProxyCommit implements [api.Node].
func (s *fakeSled) ProxyCommit(ctx context.Context, to ident.Baseboard, r quorum.Commit) (quorum.CommitStatus, error) {
	o, err := s.passOn(to)
	if err != nil {
		return "", err
	}
	return o.Commit(ctx, r)
}

// ProxyPrepareAndCommit implements [api.Node].
func (s *fakeSled) ProxyPrepareAndCommit(ctx context.Context, to ident.Baseboard, r quorum.PrepareAndCommit) (quorum.CommitStatus, error) {
	o, err := s.passOn(to)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithCancel(ctx) // a sled that is asked this way answers at once
	cancel()
	return o.PrepareAndCommit(ctx, r)
}

// ProxyStatus implements [api.Node].
func (s *fakeSled) ProxyStatus(ctx context.Context, to ident.Baseboard) (st api.NodeStatus, err error) {
	o, err := s.passOn(to)
	if err != nil {
		return st, err
	}
	st.PersistentState.Commits = o.Status(ctx).Quorum.Commits
	return st, nil
}

// UpgradeLRTQ implements [api.Node].
func (s *fakeSled) UpgradeLRTQ(ctx context.Context, r quorum.UpgradeLRTQ) error {
	s.count("upgrade")
	if !r.Grant.LRTQUpgrade || !s.lrtq || r.Epoch < 2 {
		return reason.New(quorum.CodeNoLRTQShare, "hint", "fake: no upgrade")
	}
	return s.Reconfigure(ctx, quorum.Reconfigure{RackID: r.RackID, Epoch: r.Epoch, Members: r.Members, Threshold: r.Threshold, Grant: r.Grant})
}

// Reconfigure implements [api.Node]: the checks that the controller has to cope with, then every sled that runs prepares.
func (s *fakeSled) Reconfigure(_ context.Context, r quorum.Reconfigure) error {
	s.count("reconfigure")
	if err := enroll.NewAuthority(s.Set()).VerifyGrant(r.Grant); err != nil {
		return err
	}
	s.mu.Lock()
	switch {
	case s.newest() != 0:
		s.mu.Unlock()
		return reason.New(quorum.CodeLastCommittedMismatch, "hint", "fake: committed already")
	case s.coord != nil && s.coord.Epoch == r.Epoch:
		s.mu.Unlock()
		return nil
	}
	for e := range s.configs {
		if e >= r.Epoch {
			s.mu.Unlock()
			return reason.New(quorum.CodePreparedEpochMismatch, "hint", "fake: have epoch %d", e)
		}
	}
	cfg := &quorum.Configuration{RackID: r.RackID, Epoch: r.Epoch, Coordinator: s.ID, Threshold: r.Threshold}
	for i, m := range r.Members {
		cfg.Members = append(cfg.Members, quorum.Member{ID: m, ShareDigest: quorum.Digest{byte(i), byte(r.Epoch)}})
	}
	if r.Grant.LRTQUpgrade {
		cfg.EncryptedSecrets = &keys.EncryptedSecrets{}
	}
	if s.liar {
		cfg.Threshold = 2
		cfg.Members = append(cfg.Members, quorum.Member{ID: ident.Baseboard{Part: "z", Serial: "z"}})
	}
	s.coord, s.configs[r.Epoch] = cfg, cfg
	s.ack(s.ID)
	s.mu.Unlock()
	for _, o := range s.rack.sleds {
		if o == s {
			continue
		}
		o.mu.Lock()
		if !o.unready {
			o.configs[r.Epoch] = cfg
		}
		miss := o.unready
		o.mu.Unlock()
		s.mu.Lock()
		if !miss && s.coord != nil {
			s.ack(o.ID)
		}
		if s.forget {
			s.forget, s.coord, s.acked = false, nil, nil
			s.bump()
		}
		s.mu.Unlock()
	}
	return nil
}

// ack records an acknowledged prepare; the lock is held.
func (s *fakeSled) ack(m ident.Baseboard) {
	s.acked = append(s.acked, m)
	s.bump()
}

// Coordinator implements [api.Node].
func (s *fakeSled) Coordinator(ctx context.Context, after uint64) (api.Coordination, error) {
	for {
		s.mu.Lock()
		out, changed := api.Coordination{Version: s.version, Config: s.coord, Acked: slices.Clone(s.acked)}, s.changed
		s.mu.Unlock()
		if out.Version > after || ctx.Err() != nil {
			return out, nil //nolint:nilerr // the end of the wait is an answer
		}
		select {
		case <-ctx.Done():
		case <-changed:
		}
	}
}

// Commit implements [api.Node].
func (s *fakeSled) Commit(_ context.Context, r quorum.Commit) (quorum.CommitStatus, error) {
	s.count("commit")
	s.mu.Lock()
	defer s.mu.Unlock()
	cfg := s.configs[r.Epoch]
	if cfg == nil {
		return "", reason.New(quorum.CodeNotPrepared, "hint", "fake: not prepared")
	}
	return s.commit(cfg, r.Certificate)
}

// commit checks the certificate; the lock is held.
func (s *fakeSled) commit(cfg *quorum.Configuration, cert *quorum.Certificate) (quorum.CommitStatus, error) {
	if err := enroll.NewAuthority(s.Set()).VerifyCertificate(cfg, cert); err != nil {
		return "", err
	}
	s.configs[cfg.Epoch], s.commits[cfg.Epoch] = cfg, cert
	if s.coord != nil && s.coord.Epoch <= cfg.Epoch {
		s.coord = nil
	}
	s.bump()
	return quorum.Committed, nil
}

// PrepareAndCommit implements [api.Node].
func (s *fakeSled) PrepareAndCommit(ctx context.Context, r quorum.PrepareAndCommit) (quorum.CommitStatus, error) {
	s.count("prepare-and-commit")
	if s.computing != nil {
		select {
		case <-s.computing:
		case <-ctx.Done():
			return quorum.Pending, nil
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.commit(r.Config, r.Certificate)
}

// LatestCommitted implements [api.Node].
func (s *fakeSled) LatestCommitted(context.Context) (*quorum.Configuration, *quorum.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.newest()
	return s.configs[e], s.commits[e], nil
}

// Set implements [api.Claimant], and hides the promoted one, which has the same meaning.
func (s *fakeSled) Set() *enroll.Set { return s.Sled.Set() }

// ClaimFingerprint implements [api.Claimant].
func (s *fakeSled) ClaimFingerprint() string {
	if s.enrol != nil {
		return s.enrol.fingerprint
	}
	return ""
}

// EnrollBegin implements [api.Claimant].
func (s *fakeSled) EnrollBegin(_ context.Context, c *api.Conn, r enroll.BeginRequest) (enroll.BeginResponse, error) {
	if s.enrol != nil {
		return s.enrol.begin(c, r)
	}
	return enroll.BeginResponse{}, reason.New("enroll-begin", "hint", "fake: cannot be enrolled")
}

// EnrollActivate implements [api.Claimant].
func (s *fakeSled) EnrollActivate(_ context.Context, c *api.Conn, r enroll.ActivateRequest) (enroll.ActivateResponse, error) {
	if s.enrol != nil {
		return s.enrol.activate(c, r)
	}
	return enroll.ActivateResponse{}, reason.New("enroll-begin", "hint", "fake: cannot be enrolled")
}

// EnrollSet implements [api.Claimant].
func (s *fakeSled) EnrollSet(ctx context.Context, c *api.Conn, envelope []byte) (uint64, error) {
	s.count("set")
	if s.enrol != nil && s.Set() == nil {
		return s.enrol.first(c, envelope)
	}
	if err := s.Adopt(ctx, envelope); err != nil && reason.CodeOf(err) != enroll.CodeUnchanged {
		return 0, err
	}
	return s.Set().Generation, nil
}

// ConnClosed implements [api.Claimant].
func (s *fakeSled) ConnClosed(*api.Conn) {}

// Attest implements [api.Claimant].
func (s *fakeSled) Attest(ctx context.Context, c *api.Conn, nonce [32]byte) ([]byte, error) {
	s.count("attest")
	p := s.Prover
	if s.enrol != nil {
		p = s.enrol.prover
	}
	return p.Evidence(ctx, rot.Request{Role: rot.RoleUnderlay, Nonce: nonce, Exporter: c.Exporter, ProverSPKI: s.spki, VerifierSPKI: c.ClientSPKI})
}
