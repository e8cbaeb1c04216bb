package channel

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"net"

	"github.com/sledvault/sledvault/vault/reason"
)

// handshake is one exchange in progress (evidence.md §9): hellos, evidence of the dialer, evidence of the acceptor, both
// verdicts, and the enrolment set of the side that has the newer one.
type handshake struct {
	c    *Config
	raw  net.Conn
	tls  *tls.Conn
	who  string // the peer's address, later its baseboard
	link link

	mine, theirs hello
	set          []byte // this side's, encoded, as announced
	peer         *judged
	evidence     []byte // the peer's
	adopted      bool
}

func (h *handshake) run(ctx context.Context) (*Conn, error) {
	if err := h.startTLS(ctx); err != nil {
		return nil, err
	}
	if err := h.prepareHello(); err != nil {
		return nil, err
	}
	exchange := h.accept
	if h.link.dialer {
		exchange = h.dial
	}
	if err := exchange(ctx); err != nil {
		return nil, err
	}
	if err := h.exchangeSets(ctx); err != nil {
		return nil, err
	}
	return &Conn{
		Conn: h.tls, Peer: h.peer.verdict.Baseboard, Capabilities: h.theirs.Capabilities, Verdict: h.peer.verdict,
		Removed: h.peer.removed, Adopted: h.adopted, config: h.c, link: h.link,
		outNonce: h.theirs.Nonce, inNonce: h.mine.Nonce, latest: h.peer.verdict,
	}, nil
}

func (h *handshake) startTLS(ctx context.Context) error {
	h.tls = tls.Server(h.raw, h.c.Identity.tlsConfig())
	if h.link.dialer {
		h.tls = tls.Client(h.raw, h.c.Identity.tlsConfig())
	}
	if err := h.tls.HandshakeContext(ctx); err != nil {
		if ctx.Err() != nil {
			return ioError(context.Cause(ctx), h.who, "TLS handshake")
		}
		return refuseBecause(err, CodeTLS, "%s: TLS handshake", h.who)
	}
	state := h.tls.ConnectionState()
	exporter, err := Exporter(&state)
	if err != nil {
		return err
	}
	h.link.exporter, h.link.self, h.link.peer = exporter, h.c.Identity.SPKI(), SPKI(state.PeerCertificates[0])
	if h.link.self == h.link.peer {
		return refuse(CodeSelf, "%s: connected to this sled itself", h.who)
	}
	return nil
}

func (h *handshake) prepareHello() error {
	set := h.c.Set()
	if set == nil {
		return refuse(CodeNoSet, "no enrolment set")
	}
	h.set = set.Envelope()
	h.mine = hello{Version: version, Capabilities: h.c.announced(), SetGeneration: set.Generation, SetDigest: sha256.Sum256(h.set)}
	if _, err := rand.Read(h.mine.Nonce[:]); err != nil {
		return refuseBecause(err, CodeConfig, "nonce")
	}
	return nil
}

// dial is the dialer's half: it proves itself first.
func (h *handshake) dial(ctx context.Context) error {
	if err := h.sendHello(); err != nil {
		return err
	}
	if err := h.receiveHello(); err != nil {
		return err
	}
	if err := h.await(ctx, h.c.Opened, "wait until this sled is open"); err != nil {
		return err
	}
	if err := h.prove(ctx); err != nil {
		return err
	}
	answer, err := h.read(maxEvidenceFrame, "the peer's evidence")
	if err != nil {
		return err
	}
	if len(answer) <= maxVerdict { // evidence is never so short: the acceptor refused at once
		return h.refusal(answer)
	}
	if err := h.judge(answer); err != nil {
		h.say(verdictOf(err))
		return err
	}
	if err := h.write(maxVerdict, verdict{Accepted: true}, "verdict"); err != nil {
		return err
	}
	return h.receiveVerdict()
}

// accept is the acceptor's half: its TPM works only for a peer whose evidence has passed.
func (h *handshake) accept(ctx context.Context) error {
	if err := h.receiveHello(); err != nil {
		return err
	}
	if err := h.sendHello(); err != nil {
		return err
	}
	evidence, err := h.read(maxEvidenceFrame, "the peer's evidence")
	if err != nil {
		return err
	}
	if err := h.await(ctx, h.c.Opened, "wait until this sled is open"); err != nil {
		return err
	}
	if err := h.judge(evidence); err != nil {
		h.say(verdictOf(err))
		return err
	}
	if err := h.prove(ctx); err != nil {
		h.say(verdictOf(err))
		return err
	}
	if err := h.receiveVerdict(); err != nil {
		return err
	}
	return h.write(maxVerdict, verdict{Accepted: true}, "verdict")
}

func (h *handshake) sendHello() error { return h.write(maxHello, h.mine, "hello") }

func (h *handshake) receiveHello() error {
	b, err := h.read(maxHello, "hello")
	if err != nil {
		return err
	}
	h.theirs, err = decodeHello(b)
	return err
}

// prove sends this side's evidence.
func (h *handshake) prove(ctx context.Context) error {
	ev, err := h.c.Prover.Evidence(ctx, h.link.mine(h.theirs.Nonce))
	if err != nil {
		return err
	}
	if err := h.await(ctx, h.c.Cleared, "wait until this sled has judged itself"); err != nil {
		return err
	}
	if err := writeFrame(h.tls, ev); err != nil {
		return ioError(err, h.who, "send evidence")
	}
	return nil
}

// await waits until a starting sled has come so far.
func (h *handshake) await(ctx context.Context, gate <-chan struct{}, what string) error {
	if gate == nil {
		return nil
	}
	select {
	case <-gate:
		return nil
	case <-ctx.Done():
		return ioError(context.Cause(ctx), h.who, what)
	}
}

// judge appraises the peer's evidence; from then on the peer has a name.
func (h *handshake) judge(evidence []byte) error {
	j, err := h.c.judge(evidence, h.link.theirs(h.mine.Nonce))
	if err != nil {
		return err
	}
	h.peer, h.evidence, h.who = j, evidence, j.verdict.Baseboard.String()
	return checkHello(h.mine, h.theirs)
}

func (h *handshake) receiveVerdict() error {
	b, err := h.read(maxVerdict, "the peer's verdict")
	if err != nil {
		return err
	}
	return h.refusal(b)
}

// refusal reads a verdict: nil if it says accepted.
func (h *handshake) refusal(b []byte) error {
	v, err := decodeVerdict(b)
	if err != nil {
		return err
	}
	if !v.Accepted {
		return refusedBy(h.who, reason.Code(v.Code))
	}
	if h.peer == nil {
		return refuse(CodeFrame, "%s: accepted without evidence of its own", h.who)
	}
	return nil
}

// exchangeSets brings the side that is behind up to date; that side then judges the other again, by the new set.
func (h *handshake) exchangeSets(ctx context.Context) error {
	if h.mine.SetGeneration > h.theirs.SetGeneration {
		if err := writeFrame(h.tls, h.set); err != nil {
			return ioError(err, h.who, "send the enrolment set")
		}
	}
	if h.mine.SetGeneration >= h.theirs.SetGeneration {
		return nil
	}
	b, err := h.read(maxSet, "the peer's enrolment set")
	if err != nil {
		return err
	}
	if sha256.Sum256(b) != h.theirs.SetDigest {
		return refuse(CodeFrame, "%s: the enrolment set is not the one that was announced", h.who)
	}
	if err := h.adopt(ctx, b); err != nil {
		return err
	}
	h.adopted = true
	j, err := h.c.judge(h.evidence, h.link.theirs(h.mine.Nonce))
	if err != nil {
		return err
	}
	h.peer = j
	return nil
}

// adopt hands a newer set to the owner, unless another connection has brought it meanwhile.
func (h *handshake) adopt(ctx context.Context, encoded []byte) error {
	if s := h.c.Set(); s == nil || s.Generation < h.theirs.SetGeneration {
		if err := h.c.AdoptSet(ctx, encoded); err != nil {
			if reason.CodeOf(err) != "" {
				return err
			}
			return refuseBecause(err, CodeSetRefused, "%s: enrolment set of generation %d", h.who, h.theirs.SetGeneration)
		}
	}
	s := h.c.Set()
	switch {
	case s == nil || s.Generation < h.theirs.SetGeneration:
		return refuse(CodeSetRefused, "%s: enrolment set of generation %d was not taken over", h.who, h.theirs.SetGeneration)
	case s.Generation == h.theirs.SetGeneration && s.Digest() != h.theirs.SetDigest:
		return refuse(CodeSetFork, "enrolment set of generation %d: %s holds another one", s.Generation, h.who)
	}
	return nil
}

func (h *handshake) read(limit int, what string) ([]byte, error) {
	b, err := readFrame(h.tls, limit)
	if err == nil {
		return b, nil
	}
	if reason.CodeOf(err) != "" {
		return nil, err
	}
	var alert tls.AlertError
	if errors.As(err, &alert) {
		return nil, refuseBecause(err, CodeTLS, "%s: wait for %s", h.who, what)
	}
	return nil, ioError(err, h.who, "wait for "+what)
}

func (h *handshake) write(limit int, v any, what string) error {
	if err := writeValue(h.tls, limit, v); err != nil {
		return ioError(err, h.who, "send "+what)
	}
	return nil
}

// say tells the peer why it is refused. If that cannot be sent, the refusal itself is still what the caller reports.
func (h *handshake) say(v verdict) { _ = writeValue(h.tls, maxVerdict, v) }
