package enroll

import (
	"bytes"
	"crypto"
	"crypto/ed25519"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/wire"
)

// Authority verifies grants and commit certificates of one rack. It implements [quorum.Authority].
type Authority struct {
	rack ident.RackID
	key  ed25519.PublicKey
}

// NewAuthority takes rack id and membership key from a verified set.
func NewAuthority(s *Set) *Authority { return &Authority{s.Rack, bytes.Clone(s.MembershipKey)} }

var _ quorum.Authority = (*Authority)(nil)

const hintGrant = "only the rack's controller can change the rack: sledvault rack status"

// VerifyGrant checks rack and signature. What the grant allows is compared by the node.
func (a *Authority) VerifyGrant(g *quorum.Grant) error {
	switch {
	case g == nil:
		return refuse(CodeGrant, hintGrant, "grant: none was given")
	case g.RackID != a.rack:
		return refuse(CodeGrant, hintGrant, "grant: have rack %s, want %s", g.RackID, a.rack)
	case !a.signed(wire.GrantSigningBytes(g), g.Signature):
		return refuse(CodeGrant, hintGrant, "grant of epoch %d: not signed by the membership key", g.Epoch)
	}
	return nil
}

// VerifyCertificate checks the signature and that the certificate is for exactly this configuration.
func (a *Authority) VerifyCertificate(c *quorum.Configuration, cert *quorum.Certificate) error {
	switch {
	case c == nil || cert == nil:
		return refuse(CodeCertificate, hintGrant, "commit certificate: none was given")
	case cert.RackID != a.rack || c.RackID != a.rack:
		return refuse(CodeCertificate, hintGrant, "commit certificate: have rack %s for a configuration of %s, want %s", cert.RackID, c.RackID, a.rack)
	case cert.Epoch != c.Epoch:
		return refuse(CodeCertificate, hintGrant, "commit certificate: have epoch %d, want %d", cert.Epoch, c.Epoch)
	case cert.ConfigDigest != wire.ConfigDigest(c):
		return refuse(CodeCertificate, hintGrant, "commit certificate of epoch %d: made for another configuration", cert.Epoch)
	case !a.signed(wire.CertificateSigningBytes(cert), cert.Signature):
		return refuse(CodeCertificate, hintGrant, "commit certificate of epoch %d: not signed by the membership key", cert.Epoch)
	}
	return nil
}

func (a *Authority) signed(msg []byte, sig quorum.Signature) bool {
	return len(a.key) == ed25519.PublicKeySize && ed25519.Verify(a.key, msg, sig[:])
}

// SignGrant sets the grant's signature.
func SignGrant(key crypto.Signer, g *quorum.Grant) error {
	sig, err := sign(key, wire.GrantSigningBytes(g))
	if err != nil {
		return err
	}
	g.Signature = quorum.Signature(sig)
	return nil
}

// SignCertificate makes the certificate of a configuration whose commit has been decided and recorded. keepFrom is as in
// its grant.
func SignCertificate(key crypto.Signer, c *quorum.Configuration, keepFrom ident.Epoch) (*quorum.Certificate, error) {
	cert := &quorum.Certificate{RackID: c.RackID, Epoch: c.Epoch, ConfigDigest: wire.ConfigDigest(c), KeepFrom: keepFrom}
	sig, err := sign(key, wire.CertificateSigningBytes(cert))
	if err != nil {
		return nil, err
	}
	cert.Signature = quorum.Signature(sig)
	return cert, nil
}

// sign makes an Ed25519 signature. Every caller's message begins with a domain of its own.
func sign(key crypto.Signer, msg []byte) ([]byte, error) {
	if key == nil {
		return nil, refuse(CodeKey, hintFolder, "sign: no key")
	}
	if _, ok := key.Public().(ed25519.PublicKey); !ok {
		return nil, refuse(CodeKey, "", "sign: have a %T, want an Ed25519 key", key.Public())
	}
	return key.Sign(nil, msg, crypto.Hash(0))
}
