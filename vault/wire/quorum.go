package wire

import (
	"github.com/sledvault/sledvault/vault/gfss"
	"github.com/sledvault/sledvault/vault/quorum"
)

// The messages between quorum nodes that the reference knows (wire.md §4.2).

func (w *writer) quorumKind(k quorum.MessageKind) {
	switch k := k.(type) {
	case quorum.Prepare:
		w.variant("Prepare")
		w.mapOf(2)
		w.key("config")
		w.configuration(k.Config)
		w.key("share")
		w.share(k.Share)
	case quorum.PrepareAck:
		w.variant("PrepareAck")
		w.uint(uint64(k.Epoch))
	case quorum.GetShare:
		w.variant("GetShare")
		w.uint(uint64(k.Epoch))
	case quorum.ShareReply:
		w.variant("Share")
		w.mapOf(2)
		w.key("epoch")
		w.uint(uint64(k.Epoch))
		w.key("share")
		w.share(k.Share)
	case quorum.GetLRTQShare:
		w.text("GetLrtqShare")
	case quorum.LRTQShare:
		w.checkShare(k.Share)
		w.variant("LrtqShare")
		w.revealInts(k.Share.Y, k.Share.X)
	case quorum.ExpungedNotice:
		w.variant("Expunged")
		w.uint(uint64(k.Epoch))
	case quorum.CommitAdvance:
		w.variant("CommitAdvance")
		w.configuration(k.Config)
	default:
		w.fail(CodeEncode, "quorum message of type %T", k)
	}
}

func (r *reader) quorumMessage() (m quorum.Message) {
	r.fields(
		field{name: "rack_id", read: func() { m.RackID = r.rackID() }},
		field{name: "kind", read: func() { m.Kind = r.quorumKind() }},
	)
	return m
}

func (r *reader) quorumKind() (k quorum.MessageKind) {
	r.oneOf(
		option{"Prepare", func() { k = r.prepare() }},
		option{"PrepareAck", func() { k = quorum.PrepareAck{Epoch: r.epoch()} }},
		option{"GetShare", func() { k = quorum.GetShare{Epoch: r.epoch()} }},
		option{"Share", func() { k = r.shareReply() }},
		option{"GetLrtqShare", nil},
		option{"LrtqShare", func() { k = quorum.LRTQShare{Share: r.lrtqShare()} }},
		option{"Expunged", func() { k = quorum.ExpungedNotice{Epoch: r.epoch()} }},
		option{"CommitAdvance", func() { k = quorum.CommitAdvance{Config: r.configuration()} }},
	)
	if k == nil {
		k = quorum.GetLRTQShare{}
	}
	return k
}

func (r *reader) prepare() (p quorum.Prepare) {
	r.fields(
		field{name: "config", read: func() { p.Config = r.configuration() }},
		field{name: "share", read: func() { p.Share = r.share() }},
	)
	return p
}

func (r *reader) shareReply() (s quorum.ShareReply) {
	r.fields(
		field{name: "epoch", read: func() { s.Epoch = r.epoch() }},
		field{name: "share", read: func() { s.Share = r.share() }},
	)
	return s
}

// lrtqShare reads 33 integers: x, then the bytes of the share.
func (r *reader) lrtqShare() (s gfss.Share) {
	m, n, indefinite := r.head()
	switch {
	case r.err != nil:
		return s
	case m != majArray || indefinite:
		r.fail(CodeType, "have %s, want array of definite length", majorName(m))
		return s
	case n != 1+ShareSize:
		r.fail(CodeLength, "have %d integers, want %d", n, 1+ShareSize)
		return s
	}
	s.X = r.shareX()
	s.Y = r.shareY(func(b []byte) {
		for i := range b {
			b[i] = r.uint8()
		}
	})
	return s
}
