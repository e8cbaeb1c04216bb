package wire

import (
	"crypto/sha256"
	"math"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
)

// What the membership key signs (wire.md §6). The first element separates the domains: no bytes that are signed as one
// thing can be read as another.
const (
	grantDomain  = "sledvault/grant/v1"
	commitDomain = "sledvault/commit/v1"

	// Version 2 adds, as the last element, the first epoch whose secret is kept. A statement that keeps all has version 1.
	grantKeepDomain  = "sledvault/grant/v2"
	commitKeepDomain = "sledvault/commit/v2"
)

// ConfigDigest is the SHA-256 of a configuration's CBOR, in the one form that our encoder gives it.
func ConfigDigest(c *quorum.Configuration) quorum.Digest {
	return sha256.Sum256(always(func(w *writer) { w.configuration(c) }))
}

// GrantSigningBytes is what the signature of a grant covers: everything in it but the signature.
func GrantSigningBytes(g *quorum.Grant) []byte {
	return always(func(w *writer) {
		domain, n := grantDomain, 8
		if g.KeepFrom != 0 {
			domain, n = grantKeepDomain, 9
		}
		w.array(n)
		w.text(domain)
		w.bytes(g.RackID[:])
		w.uint(uint64(g.Epoch))
		w.pair(g.Coordinator)
		w.array(len(g.Members))
		for _, m := range g.Members {
			w.pair(m)
		}
		w.uint(uint64(g.Threshold))
		w.uint(uint64(g.LastCommitted))
		w.bool(g.LRTQUpgrade)
		if g.KeepFrom != 0 {
			w.uint(uint64(g.KeepFrom))
		}
	})
}

// CertificateSigningBytes is what the signature of a commit certificate covers: everything in it but the signature.
func CertificateSigningBytes(c *quorum.Certificate) []byte {
	return always(func(w *writer) {
		domain, n := commitDomain, 4
		if c.KeepFrom != 0 {
			domain, n = commitKeepDomain, 5
		}
		w.array(n)
		w.text(domain)
		w.bytes(c.RackID[:])
		w.uint(uint64(c.Epoch))
		w.bytes(c.ConfigDigest[:])
		if c.KeepFrom != 0 {
			w.uint(uint64(c.KeepFrom))
		}
	})
}

// pair writes a baseboard as [part, serial].
func (w *writer) pair(b ident.Baseboard) {
	w.array(2)
	w.text(b.Part)
	w.text(b.Serial)
}

func (r *reader) pair() (b ident.Baseboard) {
	r.tuple(func() { b.Part = r.text(ident.MaxField) }, func() { b.Serial = r.text(ident.MaxField) })
	r.checkBaseboard(b)
	return b
}

// always encodes values that have bytes even when a rule of the protocol is broken, so that they can be compared.
func always(emit func(*writer)) []byte {
	n := writer{counting: true}
	emit(&n)
	w := writer{b: make([]byte, 0, min(n.n, math.MaxInt32))}
	emit(&w)
	return w.b
}
