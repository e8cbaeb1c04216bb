package api_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/sledvault/sledvault/rot/enroll"
	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
)

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

var sled = ident.Baseboard{Part: "913-0000019", Serial: "API0001"}

// fakeNode is a daemon behind the APIs. It records every call in order; fail, if set, may make one fail.
type fakeNode struct {
	reasons *reason.Log

	mu      sync.Mutex
	calls   []string
	fail    func(call string) error
	set     *enroll.Set
	fp      string
	key     []byte
	callers []api.Caller
	closed  chan *api.Conn
	conns   []*api.Conn
	config  *quorum.Configuration
	cert    *quorum.Certificate
	block   chan struct{} // Unlock waits for it
	inside  chan struct{} // Unlock tells that it waits
}

func newFake() *fakeNode {
	return &fakeNode{reasons: reason.NewLog(), closed: make(chan *api.Conn, 64), key: bytes.Repeat([]byte{0xa5, 0x00, 0x0a, 0x0d}, 8)}
}

func (f *fakeNode) call(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, name)
	if f.fail != nil {
		return f.fail(name)
	}
	return nil
}

func (f *fakeNode) made() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string{}, f.calls...)
}

func (f *fakeNode) setFail(fail func(string) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail = fail
}

func (f *fakeNode) setSet(s *enroll.Set) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.set = s
}

func (f *fakeNode) Status(context.Context) api.Status {
	_ = f.call("status")
	return api.Status{Version: "fake", Baseboard: &sled, State: api.StateUnclaimed, Reasons: f.reasons.Entries()}
}

func (f *fakeNode) AwaitChange(context.Context, uint64) { _ = f.call("await") }

func (f *fakeNode) ClearAlarms(_ context.Context, who api.Caller) error {
	f.mu.Lock()
	f.callers = append(f.callers, who)
	f.mu.Unlock()
	return f.call("clear alarms")
}

func (f *fakeNode) ResetSeal(_ context.Context, who api.Caller, r api.ResetRequest) (func(), error) {
	f.mu.Lock()
	f.callers = append(f.callers, who)
	f.mu.Unlock()
	if err := f.call("reset " + r.Baseboard.String()); err != nil {
		return nil, err
	}
	return func() { _ = f.call("end") }, nil
}

func (f *fakeNode) Disks(context.Context) []api.Disk {
	_ = f.call("disks")
	return []api.Disk{{ID: "data0", State: "locked"}}
}

func (f *fakeNode) Unlock(ctx context.Context, _ api.UnlockRequest) ([]api.Disk, error) {
	if f.block != nil {
		f.inside <- struct{}{}
		select {
		case <-f.block:
		case <-ctx.Done():
		}
	}
	return []api.Disk{{ID: "data0", State: "unlocked"}}, f.call("unlock")
}

func (f *fakeNode) ReleaseKey(_ context.Context, who api.Caller, disk string) (secret.DiskKey, error) {
	if err := f.call("record release of " + disk); err != nil {
		return secret.DiskKey{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.callers = append(f.callers, who)
	return secret.Take[secret.DiskKeyKind](secret.Heap{}, bytes.Clone(f.key))
}

func (f *fakeNode) FormatDisk(_ context.Context, who api.Caller, disk string, _ api.FormatRequest) (api.Disk, error) {
	f.mu.Lock()
	f.callers = append(f.callers, who)
	f.mu.Unlock()
	return api.Disk{ID: disk, State: "unlocked"}, f.call("format " + disk)
}

func (f *fakeNode) SetPeers(context.Context, []string) error { return f.call("peers") }

func (f *fakeNode) NetworkConfig(ctx context.Context, after uint64) (api.NetworkConfig, error) {
	for after >= 7 && ctx.Err() == nil {
		<-ctx.Done()
	}
	return api.NetworkConfig{Generation: 7, Blob: []byte("{}")}, f.call("network-config")
}

func (f *fakeNode) SetNetworkConfig(_ context.Context, generation uint64, blob []byte) (api.NetworkConfig, error) {
	return api.NetworkConfig{Generation: generation}, f.call(fmt.Sprintf("set network-config %d %q", generation, blob))
}

func (f *fakeNode) ProxyCommit(_ context.Context, to ident.Baseboard, _ quorum.Commit) (quorum.CommitStatus, error) {
	return quorum.Committed, f.call("proxy commit to " + to.String())
}

func (f *fakeNode) ProxyPrepareAndCommit(_ context.Context, to ident.Baseboard, _ quorum.PrepareAndCommit) (quorum.CommitStatus, error) {
	return quorum.Pending, f.call("proxy prepare-and-commit to " + to.String())
}

func (f *fakeNode) ProxyStatus(_ context.Context, to ident.Baseboard) (api.NodeStatus, error) {
	return api.NodeStatus{ProxiedRequests: 1}, f.call("proxy status of " + to.String())
}

func (f *fakeNode) TPMIdentity(context.Context) (api.TPMIdentity, error) {
	return api.TPMIdentity{EKName: "000b"}, f.call("tpm")
}

func (f *fakeNode) SPIdentity(context.Context) (api.SPIdentity, error) {
	return api.SPIdentity{Baseboard: sled}, f.call("sp")
}

func (f *fakeNode) Reconfigure(context.Context, quorum.Reconfigure) error {
	return f.call("reconfigure")
}

func (f *fakeNode) UpgradeLRTQ(context.Context, quorum.UpgradeLRTQ) error {
	return f.call("upgrade")
}

func (f *fakeNode) Commit(context.Context, quorum.Commit) (quorum.CommitStatus, error) {
	return quorum.Committed, f.call("commit")
}

func (f *fakeNode) PrepareAndCommit(context.Context, quorum.PrepareAndCommit) (quorum.CommitStatus, error) {
	return quorum.Pending, f.call("prepare-and-commit")
}

func (f *fakeNode) Coordinator(context.Context, uint64) (api.Coordination, error) {
	return api.Coordination{Version: 7, Config: f.config}, f.call("coordinator")
}

func (f *fakeNode) LatestCommitted(context.Context) (*quorum.Configuration, *quorum.Certificate, error) {
	return f.config, f.cert, f.call("config")
}

func (f *fakeNode) Set() *enroll.Set {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.set
}

func (f *fakeNode) ClaimFingerprint() string { return f.fp }

func (f *fakeNode) conn(c *api.Conn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.conns = append(f.conns, c)
}

func (f *fakeNode) EnrollBegin(_ context.Context, c *api.Conn, _ enroll.BeginRequest) (enroll.BeginResponse, error) {
	f.conn(c)
	return enroll.BeginResponse{Baseboard: sled}, f.call("begin")
}

func (f *fakeNode) EnrollActivate(_ context.Context, c *api.Conn, _ enroll.ActivateRequest) (enroll.ActivateResponse, error) {
	f.conn(c)
	return enroll.ActivateResponse{}, f.call("activate")
}

func (f *fakeNode) EnrollSet(_ context.Context, c *api.Conn, envelope []byte) (uint64, error) {
	f.conn(c)
	return uint64(len(envelope)), f.call("set")
}

func (f *fakeNode) ConnClosed(c *api.Conn) { f.closed <- c }

func (f *fakeNode) Attest(_ context.Context, c *api.Conn, nonce [32]byte) ([]byte, error) {
	f.conn(c)
	return nonce[:], f.call("attest")
}

// serveLocal runs a local API over the fake and returns its socket.
func serveLocal(t *testing.T, f *fakeNode, rules ...api.RoleRule) (*api.Local, string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "sv") // short: unix sockets have short names
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "api.sock")
	l, err := api.ListenLocal(api.LocalConfig{Socket: socket, Rules: rules, Node: f, Reasons: f.reasons})
	must(t, err)
	serve(t, l.Serve)
	return l, socket
}

// serve runs a server until the test ends.
func serve(t *testing.T, f func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// serveUnderlay runs an underlay API over the fake and returns its address.
func serveUnderlay(t *testing.T, f *fakeNode) (*api.Underlay, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0") // find a free port
	must(t, err)
	addr := l.Addr().String()
	must(t, l.Close())
	u, err := api.ListenUnderlay(api.UnderlayConfig{Listen: addr, Certificate: selfSigned(t), Node: f, Reasons: f.reasons})
	must(t, err)
	serve(t, u.Serve)
	return u, addr
}

// selfSigned makes a TLS identity as a daemon does at each start.
func selfSigned(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	must(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func signingKey(name byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{name}, ed25519.SeedSize))
}

func publicOf(k ed25519.PrivateKey) ed25519.PublicKey { return k.Public().(ed25519.PublicKey) }

// membership and stranger are the keys of two operators.
func membership() ed25519.PrivateKey { return signingKey(1) }
func stranger() ed25519.PrivateKey   { return signingKey(2) }

// claimedSet is a set under the membership key that refuses client certificates below generation 2.
func claimedSet(t *testing.T) *enroll.Set {
	t.Helper()
	s := enroll.NewSet(ident.RackID{1}, publicOf(membership()), publicOf(signingKey(3)))
	s.MinClientGeneration = 2
	must(t, s.Sign(membership()))
	return s
}

func clientCert(t *testing.T, key ed25519.PrivateKey, generation uint32) tls.Certificate {
	t.Helper()
	c, err := enroll.SelfClient(key, generation)
	must(t, err)
	return c
}

// awaitCount waits until a counter has moved.
func awaitCount(t *testing.T, log *reason.Log, code reason.Code, want uint64) {
	t.Helper()
	for log.Total(code) < want {
		if t.Context().Err() != nil {
			t.Fatalf("%s: have %d, want %d", code, log.Total(code), want)
		}
		yield()
	}
}
