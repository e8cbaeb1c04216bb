// Package wire turns messages between sleds, and the state of a sled, into bytes and back.
//
// It owns the frame, the CBOR rules, one encoder and one decoder per message of the reference protocol, our own
// messages beside them, the bytes that grants and certificates sign, and the versions of the ledger's plaintext. The
// encoder has one form per value; the decoder takes what a correct peer may send and refuses everything else with a
// stable code, before it allocates. Whether a well-formed message is *right* is for vault/quorum to judge.
//
// Share bytes leave through this package only: the result of Encode, AppendFrame and EncodeState may hold them, and the
// caller wipes it. Shares that come in go straight from the input into pages of the given allocator.
//
// Implements docs/wire.md. Read next: parts.go, quorum.go, own.go, state_v1.go.
package wire

import (
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/secret"
)

// Msg is one message on a connection: Ping, TQ, NetworkConfig, ProxyRequest, ProxyResponse (the reference's), EnrolmentSet,
// Evidence, EvidenceResult, ProxyRefusal (ours).
type Msg interface{ wireMsg() }

type (
	// Ping keeps a connection alive.
	Ping struct{}
	// TQ is a message between the quorum nodes. Kinds for which [quorum.Ours] holds travel in our own envelope.
	TQ struct{ quorum.Message }
	// NetworkConfig is gossip: the newest generation wins. The blob is opaque.
	NetworkConfig struct {
		Generation uint64
		Blob       []byte
	}
	// EnrolmentSet carries the signed envelope of the enrolment set to a peer that is behind (enrolment.md §8).
	EnrolmentSet struct{ Envelope []byte }
	// Evidence replaces the evidence of a running connection after the sender's counter moved (evidence.md).
	Evidence struct{ Evidence []byte }
	// EvidenceResult answers Evidence.
	EvidenceResult struct {
		Accepted bool
		Reason   string // a reason code if refused, at most 200 bytes
	}
)

// ProxyRefusal goes ahead of a ProxyResponse with [ProxyNoInnerError] and names the reason that the reference has no word
// for.
type ProxyRefusal struct {
	ID     RequestID
	Reason string // a reason code, at most 200 bytes
}

func (Ping) wireMsg()           {}
func (TQ) wireMsg()             {}
func (NetworkConfig) wireMsg()  {}
func (EnrolmentSet) wireMsg()   {}
func (Evidence) wireMsg()       {}
func (EvidenceResult) wireMsg() {}
func (ProxyRefusal) wireMsg()   {}

// Limits of what a message may hold. Every length is also bounded by [MaxPayload].
const (
	MaxMembers  = 255 // a share's x coordinate is one byte
	ShareSize   = 32  // bytes of y coordinates
	maxEpochs   = 65536
	maxPeers    = 4096
	maxAlarms   = 4096
	maxReason   = 200
	maxEnvelope = 512 << 10
)

// MaxNetworkBlob is the largest blob of a NetworkConfig in bytes that is ever sent: each byte takes up to two in a frame.
const MaxNetworkBlob = 500 << 10

// Ours reports whether a message is not known to the reference, so that it may only be sent to peers that announced
// [quorum.CapabilityAuthority].
func Ours(m Msg) bool {
	switch m := m.(type) {
	case TQ:
		return quorum.Ours(m.Kind)
	case EnrolmentSet, Evidence, EvidenceResult, ProxyRefusal:
		return true
	}
	return false
}

// Destroy wipes the shares that a decoded message holds. Call it on messages that are dropped.
func Destroy(m Msg) {
	tq, ok := m.(TQ)
	if !ok {
		return
	}
	switch k := tq.Kind.(type) {
	case quorum.Prepare:
		k.Share.Destroy()
	case quorum.ShareReply:
		k.Share.Destroy()
	case quorum.LRTQShare:
		k.Share.Destroy()
	}
}

// Encode appends the payload of a message to dst, growing it at most once and by exactly what is needed. The payload of
// a Prepare or of a share holds secret bytes: the caller wipes it after writing.
func Encode(dst []byte, m Msg) ([]byte, error) {
	return build(dst, MaxPayload, func(w *writer) { w.msg(m) })
}

// Decode reads a payload. Shares are read into pages from a. It keeps nothing of the payload, which the caller wipes. If
// it refuses, no share remains.
func Decode(a secret.Allocator, payload []byte) (Msg, error) {
	if len(payload) > MaxPayload {
		return nil, tooLarge(uint64(len(payload)))
	}
	r := reader{b: payload, alloc: a}
	m := r.msg()
	if err := r.finish(); err != nil {
		return nil, err
	}
	return m, nil
}

func (w *writer) msg(m Msg) {
	if m != nil && Ours(m) {
		w.own(m)
		return
	}
	switch m := m.(type) {
	case Ping:
		w.text("Ping")
	case TQ:
		w.variant("Tq")
		w.mapOf(2)
		w.key("rack_id")
		w.bytes(m.RackID[:])
		w.key("kind")
		w.quorumKind(m.Kind)
	case NetworkConfig:
		w.variant("NetworkConfig")
		w.mapOf(2)
		w.key("generation")
		w.uint(m.Generation)
		w.key("blob")
		w.checkLen("network configuration", len(m.Blob), MaxNetworkBlob)
		w.ints(m.Blob)
	case ProxyRequest:
		w.variant("ProxyRequest")
		w.proxyRequest(m)
	case ProxyResponse:
		w.variant("ProxyResponse")
		w.proxyResponse(m)
	default:
		w.fail(CodeEncode, "message of type %T", m)
	}
}

func (r *reader) msg() (m Msg) {
	r.oneOf(
		option{"Ping", nil},
		option{"Tq", func() { m = TQ{r.quorumMessage()} }},
		option{"NetworkConfig", func() { m = r.networkConfig() }},
		option{"ProxyRequest", func() { m = r.proxyRequest() }},
		option{"ProxyResponse", func() { m = r.proxyResponse() }},
		option{ownName, func() { m = r.own() }},
	)
	if m == nil {
		m = Ping{}
	}
	return m
}

func (r *reader) networkConfig() (c NetworkConfig) {
	r.fields(
		field{name: "generation", read: func() { c.Generation = r.uint() }},
		field{name: "blob", read: func() {
			if r.peek()&0xe0 == majBytes {
				c.Blob = r.bytes(MaxPayload)
				return
			}
			c.Blob = r.intSlice()
		}},
	)
	return c
}

// intSlice reads an array of small integers of any length: each takes at least one byte of input.
func (r *reader) intSlice() []byte {
	out := []byte{}
	r.each(len(r.b)-r.off, func(int) { out = append(out, r.uint8()) })
	return out
}

func (r *reader) rackID() (id ident.RackID) {
	r.fixed(id[:])
	return id
}

func (r *reader) epoch() ident.Epoch { return ident.Epoch(r.uint()) }
