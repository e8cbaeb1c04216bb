package api_test

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/sledvault/sledvault/rot/enroll"
	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/api/client"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/wire"
)

// config is a configuration of three sleds.
func config() *quorum.Configuration {
	c := &quorum.Configuration{RackID: ident.RackID{1}, Epoch: 1, Threshold: 2}
	for _, s := range []string{"1", "2", "3"} {
		c.Members = append(c.Members, quorum.Member{ID: ident.Baseboard{Part: "a", Serial: s}})
	}
	c.Coordinator = c.Members[0].ID
	return c
}

func configJSON() string {
	b, err := wire.EncodeConfigurationJSON(config())
	if err != nil {
		panic(err)
	}
	return string(b)
}

// caller is a client of the underlay API: a TLS certificate, or none.
type caller struct {
	name string
	cert *tls.Certificate
}

func underlayCall(t *testing.T, addr string, c caller, pattern string) (int, api.Error) {
	t.Helper()
	cfg := api.ClientTLS(tls.Certificate{})
	cfg.Certificates = nil
	if c.cert != nil {
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return c.cert, nil }
	}
	method, path, body := sample(pattern)
	tr := &http.Transport{TLSClientConfig: cfg, DisableKeepAlives: true}
	req, err := http.NewRequestWithContext(t.Context(), method, "https://"+addr+path, strings.NewReader(body))
	must(t, err)
	resp, err := tr.RoundTrip(req)
	must(t, err)
	return statusAndError(t, resp)
}

// TestAccess holds every route against every kind of client, on an unclaimed sled and on a claimed one.
func TestAccess(t *testing.T) {
	t.Parallel()
	good, foreign, old, plain := clientCert(t, membership(), 2), clientCert(t, stranger(), 2), clientCert(t, membership(), 1), selfSigned(t)
	borrowed := clientCert(t, stranger(), 2) // shows the membership key, but is not issued by it
	borrowed.Certificate = [][]byte{borrowed.Certificate[0], good.Certificate[1]}
	callers := []caller{{"membership key", &good}, {"foreign key", &foreign}, {"old generation", &old}, {"self-signed", &plain}, {"borrowed key", &borrowed}, {"no certificate", nil}}
	type world struct {
		name    string
		set     *enroll.Set
		fp      string
		allowed func(route, caller string) bool
	}
	enrolling := func(route string) bool { return strings.Contains(route, "/v1/enroll/") }
	for _, w := range []world{
		{"unclaimed", nil, enroll.Fingerprint(publicOf(membership())), func(route, caller string) bool {
			return enrolling(route) && (caller == "membership key" || caller == "old generation")
		}},
		{"nobody may claim", nil, "", func(string, string) bool { return false }},
		{"claimed", claimedSet(t), enroll.Fingerprint(publicOf(stranger())), func(_, caller string) bool { return caller == "membership key" }},
	} {
		f := newFake()
		f.fp, f.set = w.fp, w.set
		u, addr := serveUnderlay(t, f)
		for _, c := range callers {
			for _, p := range u.Patterns() {
				status, e := underlayCall(t, addr, c, p)
				if p == "GET /v1/status" || w.allowed(p, c.name) {
					if status != http.StatusOK {
						t.Errorf("%s: %s as %s: have %d %+v", w.name, p, c.name, status, e)
					}
					continue
				}
				if status != http.StatusForbidden || e.Code != api.CodeForbidden || e.Hint == "" {
					t.Errorf("%s: %s as %s: have %d %+v, want a refusal", w.name, p, c.name, status, e)
				}
			}
		}
	}
}

// TestAttack has the attacks on the APIs by name.
func TestAttack(t *testing.T) {
	t.Parallel()
	// Anyone on the underlay calls prepare-and-commit with an invented configuration.
	t.Run("underlay-forgery", func(t *testing.T) {
		t.Parallel()
		f := newFake()
		f.set = claimedSet(t)
		_, addr := serveUnderlay(t, f)
		foreign := clientCert(t, stranger(), 9)
		for _, c := range []caller{{"foreign", &foreign}, {"none", nil}} {
			for _, p := range []string{"PUT /v1/quorum/prepare-and-commit", "PUT /v1/quorum/commit", "POST /v1/quorum/configuration", "POST /v1/quorum/upgrade"} {
				if status, e := underlayCall(t, addr, c, p); status != http.StatusForbidden {
					t.Errorf("%s as %s: have %d %+v", p, c.name, status, e)
				}
			}
		}
		if got := f.made(); len(got) != 0 {
			t.Errorf("the node was reached: %v", got)
		}
		if n := f.reasons.Total(api.CodeForbidden); n != 8 {
			t.Errorf("have %d counted refusals, want 8", n)
		}
	})
	// Someone on the network claims an unclaimed sled.
	t.Run("stranger-claims", func(t *testing.T) {
		t.Parallel()
		f := newFake()
		f.fp = enroll.Fingerprint(publicOf(membership()))
		_, addr := serveUnderlay(t, f)
		s, err := client.Open(t.Context(), addr, clientCert(t, stranger(), 1))
		must(t, err)
		defer func() { _ = s.Close() }()
		if _, err := s.EnrollBegin(t.Context(), enroll.BeginRequest{Nonce: make([]byte, 32)}); reason.CodeOf(err) != api.CodeForbidden || reason.HintOf(err) == "" {
			t.Errorf("begin: have %v", err)
		}
		set := enroll.NewSet(ident.RackID{9}, publicOf(stranger()), publicOf(signingKey(4)))
		must(t, set.Sign(stranger()))
		if _, err := s.EnrollSet(t.Context(), set.Encode()); reason.CodeOf(err) != api.CodeForbidden {
			t.Errorf("set: have %v", err)
		}
		if got := f.made(); len(got) != 0 {
			t.Errorf("the daemon was reached: %v", got)
		}
	})
}

// TestConnFacts: both ends see the same connection, and the daemon hears when it ends.
func TestConnFacts(t *testing.T) {
	t.Parallel()
	f := newFake()
	f.set = claimedSet(t)
	_, addr := serveUnderlay(t, f)
	s, err := client.Open(t.Context(), addr, clientCert(t, membership(), 2))
	must(t, err)
	ev, err := s.Attest(t.Context(), [32]byte{5})
	must(t, err)
	if len(ev) != 32 || ev[0] != 5 {
		t.Errorf("have evidence %x", ev)
	}
	_, err = s.EnrollBegin(t.Context(), enroll.BeginRequest{Nonce: make([]byte, 32)})
	must(t, err)
	if len(f.conns) != 2 || f.conns[0] != f.conns[1] || f.conns[0].Exporter != s.Exporter || f.conns[0].ClientSPKI != s.ClientSPKI {
		t.Errorf("have %+v", f.conns)
	}
	must(t, s.Close())
	if c := <-f.closed; c != f.conns[0] {
		t.Errorf("closed: have %p, want %p", c, f.conns[0])
	}
	other, err := client.Open(t.Context(), addr, clientCert(t, membership(), 2))
	must(t, err)
	defer func() { _ = other.Close() }()
	_, err = other.Attest(t.Context(), [32]byte{})
	must(t, err)
	if last := f.conns[len(f.conns)-1]; last.Exporter == f.conns[0].Exporter {
		t.Error("two connections have the same exporter")
	}
}

// TestMembershipMoves: a connection is judged by the set of the moment, not by the one at its start.
func TestMembershipMoves(t *testing.T) {
	t.Parallel()
	f := newFake()
	f.set = claimedSet(t)
	_, addr := serveUnderlay(t, f)
	s, err := client.Open(t.Context(), addr, clientCert(t, membership(), 2))
	must(t, err)
	defer func() { _ = s.Close() }()
	_, err = s.Attest(t.Context(), [32]byte{})
	must(t, err)
	next := f.set.Next()
	next.MinClientGeneration = 3
	must(t, next.Sign(membership()))
	f.setSet(next)
	if _, err := s.Attest(t.Context(), [32]byte{}); reason.CodeOf(err) != api.CodeForbidden {
		t.Errorf("revoked certificate: have %v", err)
	}
}

// TestUnderlayNoise: noise, plain HTTP, silence and other TLS are counted, and status still answers.
func TestUnderlayNoise(t *testing.T) {
	t.Parallel()
	f := newFake()
	_, addr := serveUnderlay(t, f)
	noise(t, "tcp", addr)
	awaitCount(t, f.reasons, api.CodeUnderlayConn, 1)
	c, err := net.Dial("tcp", addr)
	must(t, err)
	_, err = io.WriteString(c, "GET /v1/status HTTP/1.1\r\nHost: sled\r\n\r\n")
	must(t, err)
	_, _ = io.Copy(io.Discard, c)
	_ = c.Close()
	awaitCount(t, f.reasons, api.CodeUnderlayConn, 2)
	c, err = net.Dial("tcp", addr)
	must(t, err)
	must(t, c.Close())
	awaitCount(t, f.reasons, api.CodeUnderlayConn, 3)
	for i, cfg := range []*tls.Config{
		{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12},
		{InsecureSkipVerify: true, CurvePreferences: []tls.CurveID{tls.X25519}},
		{InsecureSkipVerify: true, NextProtos: []string{"h2"}},
	} {
		if c, err := tls.Dial("tcp", addr, cfg); err == nil {
			t.Errorf("profile %d was accepted", i)
			_ = c.Close()
		}
		awaitCount(t, f.reasons, api.CodeUnderlayConn, uint64(4+i))
	}
	s, err := client.Open(t.Context(), addr, selfSigned(t))
	must(t, err)
	defer func() { _ = s.Close() }()
	st, err := s.Status(t.Context())
	must(t, err)
	if len(st.Reasons) != 1 || st.Reasons[0].Peer != "127.0.0.1" {
		t.Errorf("have %+v", st.Reasons)
	}
}

// TestSessionNeverReconnects: what was proved was proved about one connection.
func TestSessionNeverReconnects(t *testing.T) {
	t.Parallel()
	f := newFake()
	_, addr := serveUnderlay(t, f)
	s, err := client.Open(t.Context(), addr, selfSigned(t))
	must(t, err)
	_, err = s.Status(t.Context())
	must(t, err)
	must(t, s.Close())
	if _, err := s.Status(t.Context()); reason.CodeOf(err) != client.CodeUnreachable || reason.RemedyOf(err) != reason.Retry {
		t.Errorf("have %v", err)
	}
}

func TestUnderlayBadBodies(t *testing.T) {
	t.Parallel()
	f := newFake()
	f.set = claimedSet(t)
	_, addr := serveUnderlay(t, f)
	s, err := client.Open(t.Context(), addr, clientCert(t, membership(), 2))
	must(t, err)
	defer func() { _ = s.Close() }()
	if _, err := s.EnrollSet(t.Context(), bytes.Repeat([]byte{1}, enroll.MaxSet+1)); reason.CodeOf(err) != api.CodeBadRequest {
		t.Errorf("large set: have %v", err)
	}
	g, err := s.EnrollSet(t.Context(), bytes.Repeat([]byte{1}, enroll.MaxSet))
	must(t, err)
	if g.Generation != enroll.MaxSet {
		t.Errorf("have %+v", g)
	}
}

// TestTLSProfile pins what both ends offer.
func TestTLSProfile(t *testing.T) {
	t.Parallel()
	for _, c := range []*tls.Config{api.ServerTLS(tls.Certificate{}), api.ClientTLS(tls.Certificate{})} {
		if c.MinVersion != tls.VersionTLS13 || len(c.CurvePreferences) != 1 || c.CurvePreferences[0] != tls.X25519MLKEM768 || !c.SessionTicketsDisabled {
			t.Errorf("have %+v", c)
		}
	}
}
