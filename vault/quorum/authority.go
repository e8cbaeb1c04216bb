package quorum

import (
	"slices"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/reason"
)

// This file is the operator's authority (protocol.md §7): nothing else in the package verifies or passes on a signature.
// With a [Credulous] authority every claim is taken for proven.

// proven is a valid configuration whose commit the operator has certified.
type proven struct {
	config      *Configuration
	certificate *Certificate // may be nil with a credulous authority
}

// keepFrom is the first epoch whose secret the configuration must carry, if it was committed.
func (p proven) keepFrom() ident.Epoch {
	if p.certificate == nil {
		return 0
	}
	return p.certificate.KeepFrom
}

// proveCommit checks a certificate for a configuration that was validated before. Errors: [CodeCertificateMissing],
// [CodeCertificateInvalid].
func (n *Node) proveCommit(c *Configuration, cert *Certificate) (proven, error) {
	if n.lax {
		return proven{config: c}, nil
	}
	if cert == nil {
		return proven{}, reason.New(CodeCertificateMissing, hintGrant, "quorum: commit of epoch %d: no certificate", c.Epoch)
	}
	if cert.Epoch != c.Epoch || cert.RackID != c.RackID {
		return proven{}, reason.New(CodeCertificateInvalid, hintGrant,
			"quorum: commit of epoch %d: certificate is for epoch %d of rack %s", c.Epoch, cert.Epoch, cert.RackID)
	}
	if err := n.authority.VerifyCertificate(c, cert); err != nil {
		return proven{}, reason.Wrap(err, CodeCertificateInvalid, hintGrant, "quorum: commit of epoch %d", c.Epoch)
	}
	return proven{c, cert}, nil
}

// checkGrant checks that a grant is for exactly this request and that the operator signed it. Errors:
// [CodeGrantMissing], [CodeGrantMismatch], [CodeGrantInvalid].
func (n *Node) checkGrant(r validReconfigure) error {
	g := r.grant
	switch {
	case n.lax:
		return nil
	case g == nil:
		return reason.New(CodeGrantMissing, hintGrant, "quorum: epoch %d: no grant", r.epoch)
	case g.RackID != r.rack || g.Epoch != r.epoch || g.Coordinator != n.id || g.Threshold != r.threshold ||
		g.LastCommitted != r.last || g.LRTQUpgrade != r.upgrade || g.KeepFrom > r.last || !slices.Equal(g.Members, r.members):
		return reason.New(CodeGrantMismatch, hintGrant, "quorum: epoch %d: the grant is for another request", r.epoch)
	}
	if err := n.authority.VerifyGrant(g); err != nil {
		return reason.Wrap(err, CodeGrantInvalid, hintGrant, "quorum: epoch %d", r.epoch)
	}
	return nil
}

// granted checks the grant that a coordinator passed on before the Prepare of a configuration.
func (n *Node) granted(c *Configuration, from ident.Baseboard) *refusal {
	if n.lax {
		return nil
	}
	g := n.peers[from].grant
	switch {
	case g == nil:
		return refuse(CodeGrantMissing, AlarmUngrantedPrepare, "no grant came before the prepare")
	case g.RackID != c.RackID || g.Epoch != c.Epoch || g.Coordinator != c.Coordinator || g.Threshold != c.Threshold ||
		!slices.EqualFunc(g.Members, c.Members, func(id ident.Baseboard, m Member) bool { return id == m.ID }):
		return refuse(CodeGrantMismatch, AlarmUngrantedPrepare, "the grant is for epoch %d, or for another membership", g.Epoch)
	case g.LRTQUpgrade && g.LastCommitted != 0:
		return refuse(CodeGrantMismatch, AlarmUngrantedPrepare, "an upgrade from the older scheme on last commit %d", g.LastCommitted)
	case (g.LastCommitted != 0 || g.LRTQUpgrade) != (c.EncryptedSecrets != nil):
		return refuse(CodeGrantMismatch, AlarmUngrantedPrepare, "granted on last commit %s, upgrade from the older scheme: %t, older secrets present: %t",
			epochText(g.LastCommitted), g.LRTQUpgrade, c.EncryptedSecrets != nil)
	case g.LRTQUpgrade && (c.Epoch <= LRTQEpoch || c.OldSecrets() != 1):
		return refuse(CodeGrantMismatch, AlarmUngrantedPrepare, "an upgrade carries the one secret of the older scheme to a later epoch: have epoch %d, %d secrets",
			c.Epoch, c.OldSecrets())
	case g.KeepFrom > g.LastCommitted:
		return refuse(CodeGrantMismatch, AlarmUngrantedPrepare, "it keeps older secrets from epoch %d on, but the last commit is %s", g.KeepFrom, epochText(g.LastCommitted))
	case g.LastCommitted >= c.Epoch:
		return refuse(CodeGrantMismatch, AlarmUngrantedPrepare, "granted on a commit that is not older")
	}
	if err := n.authority.VerifyGrant(g); err != nil {
		return refuse(CodeGrantInvalid, AlarmUngrantedPrepare, "%v", err)
	}
	if have := max(n.known.committedEpoch(), n.known.certified); have > g.LastCommitted && have < c.Epoch {
		return refuse(CodeGrantStale, AlarmUngrantedPrepare, "granted on last commit %s: have %d", epochText(g.LastCommitted), have)
	}
	return nil
}

// certified checks the certificate that a peer passed on before a CommitAdvance.
func (n *Node) certified(c *Configuration, from ident.Baseboard) (proven, *refusal) {
	var cert *Certificate
	if !n.lax && n.peers[from].proof != nil {
		cert = n.peers[from].proof.Certificate
	}
	p, err := n.proveCommit(c, cert)
	if err != nil {
		return proven{}, refuse(reason.CodeOf(err), AlarmUncertifiedCommit, "%v", err)
	}
	return p, nil
}

// provesExpunged checks that what a peer passed on before an Expunged is a committed configuration of that epoch
// without this node.
func (n *Node) provesExpunged(e ident.Epoch, from ident.Baseboard) (proven, *refusal) {
	if n.lax {
		return proven{}, nil
	}
	proof := n.peers[from].proof
	if proof == nil || proof.Config == nil || proof.Config.Epoch != e {
		return proven{}, refuse(CodeProofMissing, AlarmUnprovedExpunge, "no committed configuration came before the message")
	}
	c := proof.Config
	if c.RackID != n.known.rack || c.Has(n.id) {
		return proven{}, refuse(CodeProofMissing, AlarmUnprovedExpunge, "the configuration is of another rack, or still contains this sled")
	}
	if err := validateConfig(c); err != nil {
		return proven{}, refuse(CodeProofMissing, AlarmUnprovedExpunge, "%v", err)
	}
	p, err := n.proveCommit(c, proof.Certificate)
	if err != nil {
		return proven{}, refuse(reason.CodeOf(err), AlarmUnprovedExpunge, "%v", err)
	}
	return p, nil
}

// speaksAuthority reports whether a peer can be sent our own messages, and notes if a message will miss its proof.
func (n *Node) speaksAuthority(to ident.Baseboard, e ident.Epoch, kind Kind) bool {
	if n.lax {
		return false
	}
	if p := n.peers[to]; p != nil && p.authority {
		return true
	}
	n.note(CodePeerWithoutAuthority, to, e, kind, "sent without grant or proof")
	return false
}

// sendCommitted tells a peer of the latest committed configuration: CommitAdvance to a member, Expunged to others.
func (n *Node) sendCommitted(to ident.Baseboard, c *Configuration) {
	if !c.Has(to) {
		n.sendExpunged(to, c)
		return
	}
	if n.speaksAuthority(to, c.Epoch, KindCommitAdvance) {
		n.send(to, CommitProof{Certificate: n.st.Certificates[c.Epoch]})
	}
	n.send(to, CommitAdvance{c})
}

// sendExpunged tells a peer that it is not a member, with the proof. Without authority there is none.
func (n *Node) sendExpunged(to ident.Baseboard, c *Configuration) {
	if n.speaksAuthority(to, c.Epoch, KindExpunged) {
		n.send(to, CommitProof{Config: c, Certificate: n.st.Certificates[c.Epoch]})
	}
	n.send(to, ExpungedNotice{c.Epoch})
}

// setAuthority replaces the verifier. What peers passed on is dropped with the old one: it is not verified before use.
func (n *Node) setAuthority(in SetAuthority) error {
	if _, lax := in.Authority.(Credulous); n.lax || lax || in.Authority == nil {
		return reason.New(CodeConfig, "", "quorum: set authority: it may not be taken away")
	}
	n.authority = in.Authority
	for _, p := range n.peers {
		p.grant, p.proof = nil, nil
	}
	return nil
}
