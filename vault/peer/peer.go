// Package peer keeps attested connections to the other sleds.
//
// It owns the listening socket, who dials whom and when, one connection per baseboard, pings and deadlines, and the queues
// between connections and the driver. It refuses strangers who take too long, messages that do not decode, and connections
// whose fresh evidence does not stand. What a message means is for the driver; who a peer is, for the [Channel].
//
// A message that was accepted by Send is either written or its connection ends; no message is lost in silence.
// Read next: manager.go (lifetime), dial.go, accept.go, conn.go, events.go; docs/peers.md.
package peer

import (
	"cmp"
	"context"
	"crypto/rand"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/sledvault/sledvault/rot"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
	"github.com/sledvault/sledvault/vault/wire"
)

// Channel turns a raw connection into an attested one. Both calls end when ctx ends, and close raw if they fail.
type Channel interface {
	Dial(ctx context.Context, raw net.Conn) (*Attested, error)
	Accept(ctx context.Context, raw net.Conn) (*Attested, error)
}

// Attested is a connection whose both ends have accepted each other's evidence.
type Attested struct {
	net.Conn
	Peer         ident.Baseboard
	Capabilities []string
	Verdict      *rot.Verdict // may be nil in tests
	Removed      bool         // the peer was removed from the rack: it may be given the proof of that, nothing else
	Adopted      bool         // the handshake brought a newer enrolment set
	// Fresh makes new evidence for this connection after our counter moved; nil if there can be none.
	Fresh func(context.Context) ([]byte, error)
	// Reappraise judges new evidence of the peer; nil if none is expected.
	Reappraise func([]byte) error
	// Latest is the verdict on the newest evidence; nil means Verdict.
	Latest func() *rot.Verdict

	gen uint64 // of Manager.gen when the handshake began
}

// Transport carries raw connections.
type Transport interface {
	Listen(ctx context.Context, addr netip.AddrPort) (net.Listener, error)
	// Dial connects from the address local (port 0), or from any if it is unspecified.
	Dial(ctx context.Context, local netip.Addr, to netip.AddrPort) (net.Conn, error)
}

// Config of a [Manager]. Zero values of the second group mean the defaults of docs/peers.md §6.
type Config struct {
	Self    ident.Baseboard
	Listen  netip.AddrPort // peers know us by it, and the order of addresses decides who dials
	Channel Channel
	Alloc   secret.Allocator // pages for shares in messages that come in
	Reasons *reason.Log

	Transport Transport // TCP
	Rand      io.Reader // for jitter only; crypto/rand
	Limits    Limits
}

// Limits of a [Manager].
type Limits struct {
	Connect      time.Duration // until a dialed TCP connection is up
	Handshake    time.Duration // until both sides have accepted the evidence
	PerAddress   int           // accepted handshakes at a time from one IP address
	Handshakes   int           // accepted handshakes at a time; addresses that are not peers may take half of them
	Ping         time.Duration // between pings; the first goes out at once
	Inactivity   time.Duration // without a complete message
	Write        time.Duration // until a frame is written
	EvidenceWait time.Duration // until fresh evidence is answered
	QueueFrames  int           // frames waiting to be written to one peer
	QueueBytes   int           // and their bytes
	Events       int           // messages and connections waiting for the driver
	BackoffMin   time.Duration // after the first failed dial
	BackoffMax   time.Duration
}

// withDefaults fills in what is zero.
func (l Limits) withDefaults() Limits {
	return Limits{
		Connect:      cmp.Or(l.Connect, 5*time.Second),
		Handshake:    cmp.Or(l.Handshake, 60*time.Second),
		PerAddress:   cmp.Or(l.PerAddress, 4),
		Handshakes:   cmp.Or(l.Handshakes, 64),
		Ping:         cmp.Or(l.Ping, time.Second),
		Inactivity:   cmp.Or(l.Inactivity, 10*time.Second),
		Write:        cmp.Or(l.Write, 10*time.Second),
		EvidenceWait: cmp.Or(l.EvidenceWait, 60*time.Second),
		QueueFrames:  cmp.Or(l.QueueFrames, 64),
		QueueBytes:   cmp.Or(l.QueueBytes, 4*wire.MaxPayload),
		Events:       cmp.Or(l.Events, 1024),
		BackoffMin:   cmp.Or(l.BackoffMin, 20*time.Millisecond),
		BackoffMax:   cmp.Or(l.BackoffMax, 5*time.Second),
	}
}

func (c Config) validate() error {
	if err := c.Self.Validate(); err != nil {
		return err
	}
	if !c.Listen.IsValid() || c.Channel == nil || c.Alloc == nil || c.Reasons == nil {
		return reason.New(CodeConfig, hintConfig, "peer: configuration: want a listen address, a channel, an allocator and a log of reasons")
	}
	return nil
}

func (c Config) withDefaults() Config {
	if c.Transport == nil {
		c.Transport = TCP{}
	}
	if c.Rand == nil {
		c.Rand = rand.Reader
	}
	c.Limits = c.Limits.withDefaults()
	return c
}

// ConnID tells the connections of one run apart. IDs ascend and are not used again.
type ConnID uint64

// Event is one of [Up], [Down] and [Message]. Between Up and Down of a connection come its messages, in order. A second Up
// of a peer without Down means that a newer connection replaced the older one, of which nothing more will come.
type Event interface{ event() ConnID }

// Up says that a connection is usable.
type Up struct {
	Peer         ident.Baseboard
	Conn         ConnID
	Capabilities []string
	Verdict      *rot.Verdict
	Removed      bool // see [Attested]
}

// Down says that the only connection to a peer is gone.
type Down struct {
	Peer  ident.Baseboard
	Conn  ConnID
	Cause error
}

// Message is a message from a peer. The receiver owns its secrets; see [wire.Destroy].
type Message struct {
	From ident.Baseboard
	Conn ConnID
	Msg  wire.Msg
}

func (e Up) event() ConnID      { return e.Conn }
func (e Down) event() ConnID    { return e.Conn }
func (e Message) event() ConnID { return e.Conn }
