package wire

import (
	"bytes"
	"encoding/binary"
	"io"
	"net/netip"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/lrtq"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
)

// The bytes of the older scheme (wire.md §10): a handshake, then frames of messages of its own.

// MaxLRTQPayload is the largest payload of a frame of the older scheme: with its length it fills the reference's buffer.
const MaxLRTQPayload = 512<<10 - headerSize

const (
	helloSize    = 16
	maxHandshake = 128                                   // Hello, length and Identify
	maxIdentify  = maxHandshake - helloSize - headerSize // 108
)

// LRTQMsg is one message on a connection of the older scheme: [Ping], [LRTQ] or [NetworkConfig].
type LRTQMsg interface{ lrtqMsg() }

// LRTQ is a message between the state machines.
type LRTQ struct{ lrtq.Message }

func (Ping) lrtqMsg()          {}
func (NetworkConfig) lrtqMsg() {}
func (LRTQ) lrtqMsg()          {}

// DestroyLRTQ wipes the share that a decoded message holds.
func DestroyLRTQ(m LRTQMsg) {
	if m, ok := m.(LRTQ); ok {
		lrtq.Destroy(m.Message)
	}
}

// LRTQIdentify is who a sled of the older scheme says it is, and where it listens. Nothing proves it.
type LRTQIdentify struct {
	ID   lrtq.Board
	Addr netip.AddrPort // IPv6
}

// AppendLRTQHandshake appends Hello and Identify. Errors: [CodeTooLarge] if they do not fit in 128 bytes.
func AppendLRTQHandshake(dst []byte, id LRTQIdentify) ([]byte, error) {
	start := len(dst)
	return build(dst, maxHandshake, func(w *writer) {
		w.raw(make([]byte, helloSize+headerSize)) // scheme 0, version 0, reserved; and room for the length
		w.mapOf(2)
		w.key("id")
		w.board(id.ID)
		w.key("addr")
		w.array(2)
		if !id.Addr.Addr().Is6() || id.Addr.Addr().Is4In6() {
			w.fail(CodeEncode, "address %s is not an IPv6 address", id.Addr)
		}
		ip := id.Addr.Addr().As16()
		w.ints(ip[:])
		w.uint(uint64(id.Addr.Port()))
		if !w.counting {
			binary.BigEndian.PutUint32(w.b[start+helloSize:], uint32(len(w.b)-start-helloSize-headerSize))
		}
	})
}

// ReadLRTQHandshake reads Hello and Identify, 128 bytes at most. Errors: [CodeVersion] if the peer speaks another scheme.
func ReadLRTQHandshake(r io.Reader) (id LRTQIdentify, err error) {
	var head [helloSize + headerSize]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return id, readError("handshake", err)
	}
	if scheme, version := binary.BigEndian.Uint32(head[:]), binary.BigEndian.Uint32(head[4:]); scheme != 0 || version != 0 {
		return id, reason.New(CodeVersion, hintPeer, "wire: hello: have scheme %d version %d, want 0 and 0", scheme, version)
	}
	n := binary.BigEndian.Uint32(head[helloSize:])
	if n == 0 || n > maxIdentify {
		return id, reason.New(CodeTooLarge, hintPeer, "wire: identify: have %d bytes, want 1 to %d", n, maxIdentify)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return id, readError("identify", err)
	}
	d := reader{b: b}
	d.fields(
		field{name: "id", read: func() { id.ID = d.board() }},
		field{name: "addr", read: func() {
			var ip [16]byte
			var port uint64
			d.tuple(func() { d.ints(ip[:]) }, func() { port = d.uint() })
			if d.err == nil && port > 0xffff {
				d.fail(CodeRange, "port: have %d, want at most 65535", port)
			}
			id.Addr = netip.AddrPortFrom(netip.AddrFrom16(ip), uint16(port))
		}},
	)
	if err := d.finish(); err != nil {
		return LRTQIdentify{}, err
	}
	return id, nil
}

// AppendLRTQFrame appends a frame. That of a package or a share holds secret bytes: the caller wipes it after writing.
func AppendLRTQFrame(dst []byte, m LRTQMsg) ([]byte, error) {
	start := len(dst)
	return build(dst, headerSize+MaxLRTQPayload, func(w *writer) {
		w.raw([]byte{0, 0, 0, 0})
		w.lrtqMsg(m)
		if !w.counting {
			binary.BigEndian.PutUint32(w.b[start:], uint32(len(w.b)-start-headerSize))
		}
	})
}

// EncodeLRTQ appends the payload of a message to dst; see [Encode].
func EncodeLRTQ(dst []byte, m LRTQMsg) ([]byte, error) {
	return build(dst, MaxLRTQPayload, func(w *writer) { w.lrtqMsg(m) })
}

// DecodeLRTQ reads a payload; see [Decode].
func DecodeLRTQ(a secret.Allocator, payload []byte) (LRTQMsg, error) {
	if len(payload) > MaxLRTQPayload {
		return nil, tooLarge(uint64(len(payload)))
	}
	r := reader{b: payload, alloc: a}
	m := r.lrtqMsg()
	if err := r.finish(); err != nil {
		return nil, err
	}
	return m, nil
}

func (w *writer) lrtqMsg(m LRTQMsg) {
	switch m := m.(type) {
	case Ping:
		w.msg(m)
	case NetworkConfig:
		w.msg(m)
	case LRTQ:
		w.variant("Fsm")
		w.lrtqFSM(m.Message)
	default:
		w.fail(CodeEncode, "message of type %T", m)
	}
}

func (w *writer) lrtqFSM(m lrtq.Message) {
	switch m := m.(type) {
	case lrtq.Request:
		w.variant("Req")
		w.mapOf(2)
		w.key("id")
		w.bytes(m.ID[:])
		w.key("type_")
		switch k := m.Kind.(type) {
		case lrtq.Init:
			w.variant("Init")
			w.lrtqSharePackage(k.Package)
		case lrtq.GetShare:
			w.variant("GetShare")
			w.mapOf(1)
			w.key("rack_uuid")
			w.bytes(k.RackID[:])
		case lrtq.Learn:
			w.text("Learn")
		default:
			w.fail(CodeEncode, "request of type %T", k)
		}
	case lrtq.Response:
		w.variant("Rsp")
		w.mapOf(2)
		w.key("request_id")
		w.bytes(m.Request[:])
		w.key("type_")
		w.lrtqResponse(m.Kind)
	default:
		w.fail(CodeEncode, "message of type %T", m)
	}
}

func (w *writer) lrtqResponse(k lrtq.ResponseKind) {
	switch k := k.(type) {
	case lrtq.InitAck:
		w.text("InitAck")
	case lrtq.ShareReply:
		w.variant("Share")
		w.checkShare(k.Share)
		w.revealInts(k.Share.Y, k.Share.X)
	case lrtq.LearnReply:
		w.variant("LearnPkg")
		w.mapOf(1)
		w.key("common")
		w.lrtqPackage(k.Package)
	case lrtq.Refusal:
		w.variant("Error")
		if k.Why != lrtq.RackMismatch {
			w.text(string(k.Why))
			return
		}
		w.variant(string(k.Why))
		w.mapOf(2)
		w.key("expected")
		w.bytes(k.Expected[:])
		w.key("got")
		w.bytes(k.Got[:])
	default:
		w.fail(CodeEncode, "response of type %T", k)
	}
}

func (w *writer) lrtqPackage(p lrtq.Package) {
	w.checkShare(p.Share)
	w.mapOf(5)
	w.key("rack_uuid")
	w.bytes(p.RackID[:])
	w.key("epoch")
	w.uint(uint64(p.Epoch))
	w.key("threshold")
	w.uint(uint64(p.Threshold))
	w.key("share")
	w.revealInts(p.Share.Y, p.Share.X)
	w.key("share_digests")
	w.array(len(p.Digests))
	for i := range p.Digests {
		w.ints(p.Digests[i][:])
	}
}

func (w *writer) lrtqSharePackage(p lrtq.SharePackage) {
	w.mapOf(5)
	w.key("common")
	w.lrtqPackage(p.Common)
	w.key("initial_membership")
	w.array(len(p.Members))
	for _, b := range p.Members {
		w.board(b)
	}
	w.key("salt")
	w.ints(p.Salt[:])
	w.key("nonce")
	w.ints(p.Nonce[:])
	w.key("encrypted_shares")
	w.ints(p.Encrypted)
}

// board writes the kind first: the reference's decoder looks for it there.
func (w *writer) board(b lrtq.Board) {
	gimlet := b.Kind == lrtq.Gimlet
	if gimlet {
		w.mapOf(4)
		w.key("type")
		w.text("gimlet")
	} else {
		w.mapOf(3)
		w.key("type")
		w.text("pc")
	}
	w.key("identifier")
	w.text(b.Identifier)
	w.key("model")
	w.text(b.Model)
	if gimlet {
		w.key("revision")
		w.uint(uint64(b.Revision))
	}
}

func (r *reader) board() (b lrtq.Board) {
	var kind string
	var revision uint64
	has := false
	r.fields(
		field{name: "type", read: func() { kind = r.text(ident.MaxField) }},
		field{name: "identifier", read: func() { b.Identifier = r.text(ident.MaxField) }},
		field{name: "model", read: func() { b.Model = r.text(ident.MaxField) }},
		field{name: "revision", optional: true, read: func() { revision, has = r.uint(), true }},
	)
	switch {
	case r.err != nil:
		return b
	case kind == "pc":
		b.Kind = lrtq.PC
	case kind != "gimlet":
		r.unknown([]byte(kind))
	case !has:
		r.fail(CodeMissing, "field %q is missing", "revision")
	case revision > 0xffffffff:
		r.fail(CodeRange, "revision: have %d, want 32 bits", revision)
	default:
		b.Revision = uint32(revision)
	}
	r.checkBaseboard(b.Baseboard())
	return b
}

func (r *reader) lrtqMsg() (m LRTQMsg) {
	r.oneOf(
		option{"Ping", nil},
		option{"Fsm", func() {
			r.oneOf(
				option{"Req", func() { m = LRTQ{r.lrtqRequest()} }},
				option{"Rsp", func() { m = LRTQ{r.lrtqResponse()} }},
			)
		}},
		option{"NetworkConfig", func() { m = r.networkConfig() }},
	)
	if m == nil {
		m = Ping{}
	}
	return m
}

func (r *reader) lrtqRequest() (m lrtq.Request) {
	r.fields(
		field{name: "id", read: func() { r.fixed(m.ID[:]) }},
		field{name: "type_", read: func() {
			if r.oneOf(
				option{"Init", func() { m.Kind = lrtq.Init{Package: r.lrtqSharePackage()} }},
				option{"GetShare", func() {
					var k lrtq.GetShare
					r.fields(field{name: "rack_uuid", read: func() { k.RackID = r.rackID() }})
					m.Kind = k
				}},
				option{"Learn", nil},
			) == 2 {
				m.Kind = lrtq.Learn{}
			}
		}},
	)
	return m
}

func (r *reader) lrtqResponse() (m lrtq.Response) {
	r.fields(
		field{name: "request_id", read: func() { r.fixed(m.Request[:]) }},
		field{name: "type_", read: func() {
			r.oneOf(
				option{"InitAck", nil},
				option{"Share", func() { m.Kind = lrtq.ShareReply{Share: r.lrtqShare()} }},
				option{"LearnPkg", func() {
					r.fields(field{name: "common", read: func() { m.Kind = lrtq.LearnReply{Package: r.lrtqPackage()} }})
				}},
				option{"Error", func() { m.Kind = r.lrtqRefusal() }},
			)
			if m.Kind == nil {
				m.Kind = lrtq.InitAck{}
			}
		}},
	)
	return m
}

func (r *reader) lrtqRefusal() (k lrtq.Refusal) {
	plain := []lrtq.Why{lrtq.AlreadyInitialized, lrtq.NotInitialized, lrtq.StillLearning, lrtq.CannotSpareAShare}
	var opts []option
	for _, w := range plain {
		opts = append(opts, option{string(w), nil})
	}
	at := r.oneOf(append(opts, option{string(lrtq.RackMismatch), func() {
		r.fields(
			field{name: "expected", read: func() { k.Expected = r.rackID() }},
			field{name: "got", read: func() { k.Got = r.rackID() }},
		)
	}})...)
	k.Why = append(plain, lrtq.RackMismatch)[at]
	return k
}

func (r *reader) lrtqPackage() (p lrtq.Package) {
	r.fields(
		field{name: "rack_uuid", read: func() { p.RackID = r.rackID() }},
		field{name: "epoch", read: func() {
			e := r.uint()
			if r.err == nil && e > 0xffffffff {
				r.fail(CodeRange, "epoch: have %d, want 32 bits", e)
			}
			p.Epoch = uint32(e)
		}},
		field{name: "threshold", read: func() { p.Threshold = ident.Threshold(r.uint8()) }},
		field{name: "share", read: func() { p.Share = r.lrtqShare() }},
		field{name: "share_digests", read: func() {
			r.each(lrtq.TotalShares, func(i int) {
				var d [32]byte
				r.ints(d[:])
				if i > 0 {
					r.checkAscending(bytes.Compare(p.Digests[i-1][:], d[:]))
				}
				p.Digests = append(p.Digests, d)
			})
		}},
	)
	return p
}

func (r *reader) lrtqSharePackage() (p lrtq.SharePackage) {
	r.fields(
		field{name: "common", read: func() { p.Common = r.lrtqPackage() }},
		field{name: "initial_membership", read: func() {
			r.each(lrtq.TotalShares, func(i int) {
				b := r.board()
				if i > 0 {
					r.checkAscending(p.Members[i-1].Compare(b))
				}
				p.Members = append(p.Members, b)
			})
		}},
		field{name: "salt", read: func() { r.ints(p.Salt[:]) }},
		field{name: "nonce", read: func() { r.ints(p.Nonce[:]) }},
		field{name: "encrypted_shares", read: func() {
			r.each(maxSpareBytes, func(int) { p.Encrypted = append(p.Encrypted, r.uint8()) })
		}},
	)
	return p
}
