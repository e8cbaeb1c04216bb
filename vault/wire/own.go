package wire

import (
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
)

// Our own messages travel in a variant of their own, {"Sledvault": {kind: body}}, and only to peers that announced the
// capability: the reference closes the connection on a variant it does not know (wire.md §5). There is no older
// encoder to be kind to, so the decoder is strict here.
const ownName = "Sledvault"

func (w *writer) own(m Msg) {
	w.variant(ownName)
	switch m := m.(type) {
	case TQ:
		w.ownQuorum(m.Message)
	case EnrolmentSet:
		w.checkLen("enrolment set", len(m.Envelope), maxEnvelope)
		w.variant("EnrolmentSet")
		w.bytes(m.Envelope)
	case Evidence:
		w.variant("Evidence")
		w.bytes(m.Evidence)
	case EvidenceResult:
		w.checkLen("reason", len(m.Reason), maxReason)
		w.variant("EvidenceResult")
		w.mapOf(2)
		w.key("accepted")
		w.bool(m.Accepted)
		w.key("reason")
		w.text(m.Reason)
	case ProxyRefusal:
		w.checkLen("reason", len(m.Reason), maxReason)
		w.variant("ProxyRefusal")
		w.mapOf(2)
		w.key("request_id")
		w.bytes(m.ID[:])
		w.key("reason")
		w.text(m.Reason)
	}
}

func (w *writer) checkLen(what string, have, want int) {
	if have > want {
		w.fail(CodeLength, "%s: have %d, want at most %d", what, have, want)
	}
}

func (w *writer) ownQuorum(m quorum.Message) {
	open := func(name string, fields int) {
		w.variant(name)
		w.mapOf(1 + fields)
		w.key("rack_id")
		w.bytes(m.RackID[:])
	}
	switch k := m.Kind.(type) {
	case quorum.GrantNotice:
		open("Grant", 1)
		w.key("grant")
		w.grant(k.Grant)
	case quorum.CommitProof:
		open("CommitProof", 2)
		w.key("config")
		if k.Config == nil {
			w.null()
		} else {
			w.configuration(k.Config)
		}
		w.key("certificate")
		w.certificate(k.Certificate)
	case quorum.NoSuchShare:
		open("NoSuchShare", 1)
		w.key("epoch")
		w.uint(uint64(k.Epoch))
	default:
		w.fail(CodeEncode, "quorum message of type %T", k)
	}
}

func (r *reader) own() (m Msg) {
	r.strict = true
	defer func() { r.strict = false }()
	r.oneOf(
		option{"Grant", func() { m = r.ownQuorum(r.grantNotice) }},
		option{"CommitProof", func() { m = r.ownQuorum(r.commitProof) }},
		option{"NoSuchShare", func() { m = r.ownQuorum(r.noSuchShare) }},
		option{"EnrolmentSet", func() { m = EnrolmentSet{r.bytes(maxEnvelope)} }},
		option{"Evidence", func() { m = Evidence{r.bytes(MaxPayload)} }},
		option{"EvidenceResult", func() { m = r.evidenceResult() }},
		option{"ProxyRefusal", func() { m = r.proxyRefusal() }},
	)
	return m
}

// ownQuorum reads a map of the rack id and the fields of one kind.
func (r *reader) ownQuorum(kind func(rack field) quorum.MessageKind) TQ {
	var m quorum.Message
	m.Kind = kind(field{name: "rack_id", read: func() { m.RackID = r.rackID() }})
	return TQ{m}
}

func (r *reader) grantNotice(rack field) quorum.MessageKind {
	var k quorum.GrantNotice
	r.fields(rack, field{name: "grant", read: func() { k.Grant = r.grant() }})
	return k
}

func (r *reader) commitProof(rack field) quorum.MessageKind {
	var k quorum.CommitProof
	r.fields(rack,
		field{name: "config", read: func() {
			if !r.isNull() {
				k.Config = r.configuration()
			}
		}},
		field{name: "certificate", read: func() { k.Certificate = r.certificate() }},
	)
	return k
}

func (r *reader) noSuchShare(rack field) quorum.MessageKind {
	var k quorum.NoSuchShare
	r.fields(rack, field{name: "epoch", read: func() { k.Epoch = r.epoch() }})
	return k
}

func (r *reader) evidenceResult() (e EvidenceResult) {
	r.fields(
		field{name: "accepted", read: func() { e.Accepted = r.bool() }},
		field{name: "reason", read: func() { e.Reason = r.text(maxReason) }},
	)
	return e
}

func (r *reader) proxyRefusal() (p ProxyRefusal) {
	r.fields(
		field{name: "request_id", read: func() { r.fixed(p.ID[:]) }},
		field{name: "reason", read: func() { p.Reason = r.text(maxReason) }},
	)
	return p
}

func (w *writer) grant(g *quorum.Grant) {
	if g == nil {
		w.fail(CodeEncode, "grant is absent")
		return
	}
	w.checkLen("members", len(g.Members), MaxMembers)
	for i := 1; i < len(g.Members); i++ {
		if g.Members[i-1].Compare(g.Members[i]) >= 0 {
			w.fail(CodeOrder, "members of a grant are not ascending at %d", i)
		}
	}
	w.mapOf(8 + present(g.KeepFrom))
	w.key("rack_id")
	w.bytes(g.RackID[:])
	w.key("epoch")
	w.uint(uint64(g.Epoch))
	w.key("coordinator")
	w.baseboard(g.Coordinator)
	w.key("members")
	w.array(len(g.Members))
	for _, m := range g.Members {
		w.baseboard(m)
	}
	w.key("threshold")
	w.uint(uint64(g.Threshold))
	w.key("last_committed")
	w.uint(uint64(g.LastCommitted))
	w.key("lrtq_upgrade")
	w.bool(g.LRTQUpgrade)
	w.key("signature")
	w.bytes(g.Signature[:])
	w.keepFrom(g.KeepFrom)
}

// present counts an optional epoch.
func present(e ident.Epoch) int { return min(int(e), 1) }

// keepFrom writes the last field of grants and certificates, which is there only if secrets are dropped.
func (w *writer) keepFrom(e ident.Epoch) {
	if e != 0 {
		w.key("keep_from")
		w.uint(uint64(e))
	}
}

func (r *reader) keepFrom(e *ident.Epoch) field {
	return field{name: "keep_from", tail: true, read: func() {
		if *e = r.epoch(); r.err == nil && *e == 0 {
			r.fail(CodeNotCanonical, "have 0, want it left out")
		}
	}}
}

func (r *reader) grant() *quorum.Grant {
	g := &quorum.Grant{}
	r.fields(
		field{name: "rack_id", read: func() { g.RackID = r.rackID() }},
		field{name: "epoch", read: func() { g.Epoch = r.epoch() }},
		field{name: "coordinator", read: func() { g.Coordinator = r.baseboard() }},
		field{name: "members", read: func() { g.Members = r.baseboards(MaxMembers) }},
		field{name: "threshold", read: func() { g.Threshold = ident.Threshold(r.uint8()) }},
		field{name: "last_committed", read: func() { g.LastCommitted = r.epoch() }},
		field{name: "lrtq_upgrade", read: func() { g.LRTQUpgrade = r.bool() }},
		field{name: "signature", read: func() { r.fixed(g.Signature[:]) }},
		r.keepFrom(&g.KeepFrom),
	)
	return g
}

// baseboards reads an ascending set.
func (r *reader) baseboards(max int) (out []ident.Baseboard) {
	r.eachNamed(max, func(int) {
		b := r.baseboard()
		if n := len(out); n > 0 {
			r.checkAscending(out[n-1].Compare(b))
		}
		out = append(out, b)
	})
	return out
}

func (w *writer) certificate(c *quorum.Certificate) {
	if c == nil {
		w.fail(CodeEncode, "certificate is absent")
		return
	}
	w.mapOf(4 + present(c.KeepFrom))
	w.key("rack_id")
	w.bytes(c.RackID[:])
	w.key("epoch")
	w.uint(uint64(c.Epoch))
	w.key("config_digest")
	w.bytes(c.ConfigDigest[:])
	w.key("signature")
	w.bytes(c.Signature[:])
	w.keepFrom(c.KeepFrom)
}

func (r *reader) certificate() *quorum.Certificate {
	c := &quorum.Certificate{}
	r.fields(
		field{name: "rack_id", read: func() { c.RackID = r.rackID() }},
		field{name: "epoch", read: func() { c.Epoch = r.epoch() }},
		field{name: "config_digest", read: func() { r.fixed(c.ConfigDigest[:]) }},
		field{name: "signature", read: func() { r.fixed(c.Signature[:]) }},
		r.keepFrom(&c.KeepFrom),
	)
	return c
}
