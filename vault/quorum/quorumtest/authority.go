// Package quorumtest drives quorum nodes without a network: a fake authority, a cluster whose messages are delivered one
// by one, and a simulation that breaks everything it may break and checks the invariants after every event.
//
// Who wants to follow a run sets [Cluster.Watch] (a [Sim] has it too): it is told of every event, who did what, and
// [Sim.View] shows what every sled holds and what the controller's journal says right after it.
//
// Everything follows from one seed, so that a failure can be repeated and shrunk. It owns no protocol rules; those are
// docs/protocol.md §12.
package quorumtest

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
)

// Authority signs and verifies with a key that everybody could know: a keyed hash stands in for the signature.
type Authority struct {
	Key  uint64
	Rack ident.RackID
}

var _ quorum.Authority = Authority{}

// ErrSignature says that a grant or certificate was not made by this authority for this content.
var ErrSignature = errors.New("quorumtest: signature does not verify")

type hasher struct{ b []byte }

func (h *hasher) num(v uint64)   { h.b = binary.BigEndian.AppendUint64(h.b, v) }
func (h *hasher) text(s string)  { h.num(uint64(len(s))); h.b = append(h.b, s...) }
func (h *hasher) bytes(s []byte) { h.num(uint64(len(s))); h.b = append(h.b, s...) }
func (h *hasher) id(b ident.Baseboard) {
	h.text(b.Part)
	h.text(b.Serial)
}

func (h *hasher) keepFrom(e ident.Epoch) {
	if e != 0 {
		h.text("keep from")
		h.num(uint64(e))
	}
}

func (h *hasher) sum() (s quorum.Signature) {
	d := sha256.Sum256(h.b)
	copy(s[:], d[:])
	return s
}

// SignGrant fills in the signature.
func (a Authority) SignGrant(g *quorum.Grant) { g.Signature = a.grant(g) }

func (a Authority) grant(g *quorum.Grant) quorum.Signature {
	h := hasher{make([]byte, 0, 1024)}
	h.num(a.Key)
	h.text("grant")
	h.bytes(g.RackID[:])
	h.num(uint64(g.Epoch))
	h.id(g.Coordinator)
	h.num(uint64(len(g.Members)))
	for _, m := range g.Members {
		h.id(m)
	}
	h.num(uint64(g.Threshold))
	h.num(uint64(g.LastCommitted))
	if g.LRTQUpgrade {
		h.num(1)
	}
	h.keepFrom(g.KeepFrom)
	return h.sum()
}

// ConfigDigest digests all fields of a configuration.
func ConfigDigest(c *quorum.Configuration) quorum.Digest {
	h := hasher{make([]byte, 0, 4096)}
	h.bytes(c.RackID[:])
	h.num(uint64(c.Epoch))
	h.id(c.Coordinator)
	h.num(uint64(c.Threshold))
	h.num(uint64(len(c.Members)))
	for _, m := range c.Members {
		h.id(m.ID)
		h.bytes(m.ShareDigest[:])
	}
	if c.EncryptedSecrets != nil {
		h.bytes(c.EncryptedSecrets.Salt[:])
		h.bytes(c.EncryptedSecrets.Data)
	}
	return sha256.Sum256(h.b)
}

// Certify makes the commit certificate of a configuration that keeps every older secret.
func (a Authority) Certify(c *quorum.Configuration) *quorum.Certificate { return a.CertifyFrom(c, 0) }

// CertifyFrom makes the commit certificate of a configuration that drops the secrets of epochs below keepFrom.
func (a Authority) CertifyFrom(c *quorum.Configuration, keepFrom ident.Epoch) *quorum.Certificate {
	cert := &quorum.Certificate{RackID: c.RackID, Epoch: c.Epoch, ConfigDigest: ConfigDigest(c), KeepFrom: keepFrom}
	cert.Signature = a.certificate(cert)
	return cert
}

func (a Authority) certificate(c *quorum.Certificate) quorum.Signature {
	h := hasher{make([]byte, 0, 128)}
	h.num(a.Key)
	h.text("commit")
	h.bytes(c.RackID[:])
	h.num(uint64(c.Epoch))
	h.bytes(c.ConfigDigest[:])
	h.keepFrom(c.KeepFrom)
	return h.sum()
}

// VerifyGrant implements [quorum.Authority].
func (a Authority) VerifyGrant(g *quorum.Grant) error {
	if g.RackID != a.Rack || g.Signature != a.grant(g) {
		return ErrSignature
	}
	return nil
}

// VerifyCertificate implements [quorum.Authority].
func (a Authority) VerifyCertificate(c *quorum.Configuration, cert *quorum.Certificate) error {
	if cert.RackID != a.Rack || cert.RackID != c.RackID || cert.Epoch != c.Epoch ||
		cert.ConfigDigest != ConfigDigest(c) || cert.Signature != a.certificate(cert) {
		return ErrSignature
	}
	return nil
}
