package channel

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/sledvault/sledvault/rot"
)

// ALPN names the protocol inside TLS.
const ALPN = "sledvault-peer/1"

// exporterLabel is the label of the keying material that evidence is bound to (evidence.md §4).
const exporterLabel = "EXPORTER-sledvault-attest-v1"

// Identity is the TLS key of one start: made in memory, never stored, gone with the process. It proves nothing by
// itself; evidence is bound to it.
type Identity struct {
	certificate tls.Certificate
	spki        [32]byte
}

// NewIdentity makes a P-256 key and the self-signed certificate that TLS wants around it. Its dates mean nothing.
func NewIdentity() (*Identity, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("channel: make the TLS key: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Unix(0, 0), NotAfter: time.Unix(253402300799, 0), // 9999-12-31
		KeyUsage: x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("channel: make the TLS certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("channel: read the TLS certificate: %w", err)
	}
	return &Identity{tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, SPKI(leaf)}, nil
}

// SPKI is the digest of the key that evidence names.
func (i *Identity) SPKI() [32]byte { return i.spki }

// Certificate is for the other listeners of the same start: all of them use one key.
func (i *Identity) Certificate() tls.Certificate { return i.certificate }

// SPKI is the SHA-256 of a certificate's SubjectPublicKeyInfo.
func SPKI(c *x509.Certificate) [32]byte { return sha256.Sum256(c.RawSubjectPublicKeyInfo) }

// Exporter is the keying material of a connection that evidence is bound to. The underlay API uses it too, with
// [rot.RoleUnderlay].
func Exporter(s *tls.ConnectionState) (out [32]byte, err error) {
	if s.Version != tls.VersionTLS13 {
		return out, refuse(CodeTLS, "exporter: have TLS version %#x, want 1.3", s.Version)
	}
	b, err := s.ExportKeyingMaterial(exporterLabel, nil, len(out))
	if err != nil {
		return out, refuseBecause(err, CodeTLS, "exporter")
	}
	return [32]byte(b), nil
}

// tlsConfig is the profile for one connection: TLS 1.3, mutual, one key exchange, no resumption. The clock is nailed
// down so that nothing in TLS can depend on it; certificates are not verified, only their keys are used.
func (i *Identity) tlsConfig() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, MaxVersion: tls.VersionTLS13,
		CurvePreferences:       []tls.CurveID{tls.X25519MLKEM768},
		NextProtos:             []string{ALPN},
		Certificates:           []tls.Certificate{i.certificate},
		GetClientCertificate:   func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &i.certificate, nil },
		ClientAuth:             tls.RequireAnyClientCert,
		InsecureSkipVerify:     true, //nolint:gosec // the evidence says who the peer is
		VerifyConnection:       verifyConnection,
		SessionTicketsDisabled: true,
		Time:                   func() time.Time { return time.Unix(1, 0) },
	}
}

var errProfile = errors.New("the peer does not keep to the TLS profile")

func verifyConnection(s tls.ConnectionState) error {
	switch {
	case s.Version != tls.VersionTLS13, s.CurveID != tls.X25519MLKEM768, s.NegotiatedProtocol != ALPN, s.DidResume:
		return fmt.Errorf("%w: version %#x, key exchange %v, protocol %.32q, resumed %v", errProfile, s.Version, s.CurveID, s.NegotiatedProtocol, s.DidResume)
	case len(s.PeerCertificates) != 1:
		return fmt.Errorf("%w: have %d certificates, want 1", errProfile, len(s.PeerCertificates))
	}
	if k, ok := s.PeerCertificates[0].PublicKey.(*ecdsa.PublicKey); !ok || k.Curve != elliptic.P256() {
		return fmt.Errorf("%w: have a key of type %v, want P-256", errProfile, s.PeerCertificates[0].PublicKeyAlgorithm)
	}
	return nil
}

// link is a TLS connection with everything that evidence is bound to.
type link struct {
	exporter, self, peer [32]byte // peer and self: SPKI digests
	dialer               bool
}

// mine is what this side proves itself for; theirs what it judges the other by.
func (l *link) mine(nonce [32]byte) rot.Request {
	return rot.Request{Role: role(l.dialer), Nonce: nonce, Exporter: l.exporter, ProverSPKI: l.self, VerifierSPKI: l.peer}
}

func (l *link) theirs(nonce [32]byte) rot.Request {
	return rot.Request{Role: role(!l.dialer), Nonce: nonce, Exporter: l.exporter, ProverSPKI: l.peer, VerifierSPKI: l.self}
}

func role(dialer bool) rot.Role {
	if dialer {
		return rot.RoleDialer
	}
	return rot.RoleAcceptor
}
