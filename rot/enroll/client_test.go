package enroll

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"math/big"
	"net"
	"reflect"
	"testing"

	"github.com/sledvault/sledvault/vault/quorum"
)

func parseChain(t testing.TB, der [][]byte) (out []*x509.Certificate) {
	t.Helper()
	for _, d := range der {
		c, err := x509.ParseCertificate(d)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, c)
	}
	return out
}

func issue(t testing.TB, k crypto.Signer, generation uint32) []*x509.Certificate {
	t.Helper()
	c, err := SelfClient(k, generation)
	if err != nil {
		t.Fatal(err)
	}
	return parseChain(t, c.Certificate)
}

func TestClient(t *testing.T) {
	t.Parallel()
	s := firstSet(t)
	s.MinClientGeneration = 3
	key := testKey(t, 1)
	wantCode(t, VerifyClient(issue(t, key, 3), s), "")
	wantCode(t, VerifyClient(issue(t, key, 1<<31), s), "")
	wantCode(t, VerifyClient(issue(t, key, 2), s), CodeClientOld)
	wantCode(t, VerifyClient(issue(t, testKey(t, 2), 3), s), CodeClient)
	wantCode(t, VerifyClient(nil, s), CodeClient)
	// The membership key's own certificate is no client, nor is anything else that it signed.
	wantCode(t, VerifyClient(issue(t, key, 3)[1:], s), CodeClient)

	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := IssueClient(key, 9, ec.Public())
	if err != nil {
		t.Fatal(err)
	}
	chain := parseChain(t, der)
	wantCode(t, VerifyClient(chain, s), "")
	if err := chain[0].CheckSignatureFrom(chain[1]); err != nil {
		t.Errorf("crypto/x509 does not verify the chain: %v", err)
	}
	// A serial number that was made for another key.
	other := issue(t, key, 9)[0]
	chain[0].SerialNumber = other.SerialNumber
	wantCode(t, VerifyClient(chain, s), CodeClient)
	chain[0].SerialNumber = big.NewInt(1)
	wantCode(t, VerifyClient(chain, s), CodeClient)
	_, err = IssueClient(ec, 1, ec.Public())
	wantCode(t, err, CodeKey)
}

func TestClientOverTLS(t *testing.T) {
	t.Parallel()
	s := firstSet(t)
	client, err := SelfClient(testKey(t, 1), 1)
	if err != nil {
		t.Fatal(err)
	}
	_, sled, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	der, err := IssueClient(testKey(t, 9), 1, sled.Public())
	if err != nil {
		t.Fatal(err)
	}
	a, b := net.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() {
		c := tls.Client(a, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{client}}) // the evidence exchange verifies
		done <- c.HandshakeContext(ctx)
	}()
	srv := tls.Server(b, &tls.Config{
		MinVersion: tls.VersionTLS13, ClientAuth: tls.RequireAnyClientCert, SessionTicketsDisabled: true,
		Certificates: []tls.Certificate{{Certificate: der[:1], PrivateKey: sled}},
	})
	if err := srv.HandshakeContext(ctx); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	chain := srv.ConnectionState().PeerCertificates
	wantCode(t, VerifyClient(chain, s), "")
	wantCode(t, VerifyClaimant(chain, Fingerprint(testKey(t, 1).PublicKey())), "")
}

func configuration() *quorum.Configuration {
	return &quorum.Configuration{RackID: rack, Epoch: 3, Coordinator: board("1"), Threshold: 2, Members: []quorum.Member{
		{ID: board("1"), ShareDigest: quorum.Digest{1}}, {ID: board("2"), ShareDigest: quorum.Digest{2}}, {ID: board("3"), ShareDigest: quorum.Digest{3}},
	}}
}

func TestAuthority(t *testing.T) {
	t.Parallel()
	key := testKey(t, 1)
	a := NewAuthority(firstSet(t))
	c := configuration()
	cert, err := SignCertificate(key, c, 0)
	if err != nil {
		t.Fatal(err)
	}
	wantCode(t, a.VerifyCertificate(c, cert), "")
	wantCode(t, a.VerifyCertificate(nil, cert), CodeCertificate)
	wantCode(t, a.VerifyCertificate(c, nil), CodeCertificate)
	for _, change := range []func(*quorum.Certificate, *quorum.Configuration){
		func(x *quorum.Certificate, _ *quorum.Configuration) { x.Signature[0]++ },
		func(x *quorum.Certificate, _ *quorum.Configuration) { x.Epoch++ },
		func(x *quorum.Certificate, _ *quorum.Configuration) { x.RackID[0]++ },
		func(x *quorum.Certificate, _ *quorum.Configuration) { x.ConfigDigest[0]++ },
		func(x *quorum.Certificate, c *quorum.Configuration) { x.Epoch++; c.Epoch++ },
		func(x *quorum.Certificate, c *quorum.Configuration) { x.RackID[0]++; c.RackID[0]++ },
		func(_ *quorum.Certificate, c *quorum.Configuration) { c.Threshold = 1 },
		func(_ *quorum.Certificate, c *quorum.Configuration) { c.Members[0].ShareDigest[0]++ },
		func(_ *quorum.Certificate, c *quorum.Configuration) { c.Coordinator = board("2") },
	} {
		x, y := *cert, configuration()
		change(&x, y)
		wantCode(t, a.VerifyCertificate(y, &x), CodeCertificate)
	}

	g := &quorum.Grant{RackID: rack, Epoch: 4, Coordinator: board("1"), Threshold: 2, LastCommitted: 3}
	for _, m := range c.Members {
		g.Members = append(g.Members, m.ID)
	}
	if err := SignGrant(key, g); err != nil {
		t.Fatal(err)
	}
	wantCode(t, a.VerifyGrant(g), "")
	wantCode(t, a.VerifyGrant(nil), CodeGrant)
	for _, change := range []func(*quorum.Grant){
		func(g *quorum.Grant) { g.Epoch++ },
		func(g *quorum.Grant) { g.RackID[0]++ },
		func(g *quorum.Grant) { g.Coordinator = board("2") },
		func(g *quorum.Grant) { g.Members = g.Members[1:] },
		func(g *quorum.Grant) { g.Threshold++ },
		func(g *quorum.Grant) { g.LastCommitted++ },
		func(g *quorum.Grant) { g.LRTQUpgrade = true },
		func(g *quorum.Grant) { g.Signature[63]++ },
	} {
		x := *g
		change(&x)
		wantCode(t, a.VerifyGrant(&x), CodeGrant)
	}
	_, err = SignCertificate(nil, c, 0)
	wantCode(t, err, CodeKey)
	wantCode(t, (&Authority{rack: rack}).VerifyGrant(g), CodeGrant) // a key that is absent signs nothing
}

func begin() BeginResponse {
	signed := func(s string) Signed { return Signed{[]byte(s), []byte("signature of " + s)} }
	return BeginResponse{
		Baseboard: board("1"), EKPublic: area("ek a"), EKCertificate: []byte("cert"), AKPublic: area("ak a"), SRKPublic: area("srk a"),
		CounterPublic: nvArea("a"), CertifySRK: signed("srk"), CertifyCounter: signed("counter"), Quote: signed("quote"),
		PCRs:     []PCRValue{{0, make([]byte, 32)}, {7, append(make([]byte, 31), 7)}},
		EventLog: []byte("log"), Properties: Properties{"IBM", 3}, ResetCount: 5,
	}
}

func TestBegin(t *testing.T) {
	t.Parallel()
	b := begin()
	if err := b.Check(); err != nil {
		t.Fatal(err)
	}
	// JSON on the way changes neither the answer nor its digest.
	j, err := json.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	var again BeginResponse
	if err := json.Unmarshal(j, &again); err != nil || !reflect.DeepEqual(b, again) || b.Digest() != again.Digest() {
		t.Errorf("%v: have %+v, want %+v", err, again, b)
	}
	rec, err := b.Record(7)
	if err != nil {
		t.Fatal(err)
	}
	if rec.PCRs, err = b.Pin([]int{7}); err != nil {
		t.Fatal(err)
	}
	want := record(t, "1", "a")
	want.PCRs = map[int][][32]byte{7: {[32]byte(b.PCRs[1].Value)}}
	want.EKCertificate, want.Firmware.Minimum = rec.EKCertificate, 3
	if err := rec.Validate(); err != nil || rec.Hash() != want.Hash() {
		t.Errorf("%v: have %+v, want %+v", err, rec, want)
	}
	_, err = b.Pin([]int{4})
	wantCode(t, err, CodeBegin)

	digest := b.Digest()
	for i, change := range []func(*BeginResponse){
		func(b *BeginResponse) { b.Baseboard.Serial = "2" },
		func(b *BeginResponse) { b.EKPublic = area("ek b") },
		func(b *BeginResponse) { b.EKCertificate = nil },
		func(b *BeginResponse) { b.AKPublic, b.SRKPublic = b.SRKPublic, b.AKPublic },
		func(b *BeginResponse) { b.CounterPublic = nvArea("b") },
		func(b *BeginResponse) { b.CertifySRK, b.CertifyCounter = b.CertifyCounter, b.CertifySRK },
		func(b *BeginResponse) { b.Quote.Signature = []byte("x") },
		func(b *BeginResponse) { b.PCRs[1].PCR = 8 },
		func(b *BeginResponse) { b.EventLog = nil },
		func(b *BeginResponse) { b.Properties.Firmware++ },
		func(b *BeginResponse) { b.ResetCount++ },
	} {
		c := begin()
		change(&c)
		if c.Digest() == digest {
			t.Errorf("change %d: digest is the same", i)
		}
	}
	for i, change := range []func(*BeginResponse){
		func(b *BeginResponse) { b.Baseboard.Serial = "" },
		func(b *BeginResponse) { b.EKPublic = nil },
		func(b *BeginResponse) { b.AKPublic = make([]byte, 64) },
		func(b *BeginResponse) { b.SRKPublic = make([]byte, maxArea+1) },
		func(b *BeginResponse) { b.CounterPublic = b.CounterPublic[:13] },
		func(b *BeginResponse) { b.Quote.Attest = nil },
		func(b *BeginResponse) { b.PCRs[0].Value = nil },
		func(b *BeginResponse) { b.PCRs[1].PCR = 0 },
		func(b *BeginResponse) { b.EventLog = make([]byte, maxEventLog+1) },
	} {
		c := begin()
		change(&c)
		if _, err := c.Record(7); err == nil {
			t.Errorf("change %d: accepted", i)
		}
	}
}

func TestActivate(t *testing.T) {
	t.Parallel()
	b := begin()
	secret, answer := []byte("32 bytes from the credential ..."), b.Digest()
	mac := ActivateMAC(secret, answer, [32]byte{1})
	r := ActivateResponse{MAC: mac[:]}
	wantCode(t, r.Verify(secret, answer, [32]byte{1}), "")
	wantCode(t, r.Verify(secret, answer, [32]byte{2}), CodeBegin)
	wantCode(t, r.Verify(secret[1:], answer, [32]byte{1}), CodeBegin)
	wantCode(t, r.Verify(secret, [32]byte{}, [32]byte{1}), CodeBegin)
	wantCode(t, ActivateResponse{}.Verify(secret, answer, [32]byte{1}), CodeBegin)
	if EnrollExtra([32]byte{1}, [32]byte{2}) == EnrollExtra([32]byte{2}, [32]byte{1}) {
		t.Error("nonce and exporter can be exchanged")
	}
	if _, err := (BeginRequest{Nonce: make([]byte, 31)}).Check(); err == nil {
		t.Error("a nonce of 31 bytes")
	}
}
