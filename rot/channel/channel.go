package channel

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"net"
	"sync"
	"time"

	"github.com/sledvault/sledvault/rot"
	"github.com/sledvault/sledvault/rot/enroll"
	"github.com/sledvault/sledvault/vault/ident"
)

// DefaultTimeout is the deadline of a whole handshake: slow TPMs sign in seconds.
const DefaultTimeout = 60 * time.Second

// Config says who this sled is and by what it judges others. The functions are called from many goroutines. All fields
// without another word are needed.
type Config struct {
	Self     ident.Baseboard
	Identity *Identity
	Prover   *rot.Prover
	// Set returns the enrolment set that this sled holds. The set is not changed afterwards, only replaced.
	Set func() *enroll.Set
	// AdoptSet verifies a newer set and makes it durable; after it returned nil, Set returns that set or a newer one.
	// It is called only with sets from peers whose evidence was accepted.
	AdoptSet func(ctx context.Context, encoded []byte) error
	// Seen and Remember are the memory per TPM. Verdicts arrive in any order: keep rot.Seen.Merge of both.
	Seen     func(ekName []byte) rot.Seen
	Remember func(ekName []byte, s rot.Seen)
	// Capabilities are announced to the peer: lower-case words, at most 16 with the relaxations.
	Capabilities []string
	// Relaxations of this sled, by name. Peers must have the same.
	Relaxations []string
	// Selection is what peers must quote; nil means rot.DefaultPCRs.
	Selection []int
	// Timeout bounds a handshake; 0 means DefaultTimeout.
	Timeout time.Duration
	// Opened and Cleared hold handshakes of a sled that is still starting; nil holds nobody. Before Opened is closed a
	// handshake goes as far as the hellos and the dialer's evidence: this side neither proves nor judges. Before Cleared is
	// closed no evidence that was made leaves the sled.
	Opened, Cleared <-chan struct{}
}

// Conn is a connection that both sides accepted. Reads and writes go to TLS.
type Conn struct {
	net.Conn
	Peer         ident.Baseboard
	Capabilities []string     // that the peer announced, relaxations included
	Verdict      *rot.Verdict // of the handshake; see Latest
	// Removed says that the peer's record names the epoch of its removal: it may be given the proof, and nothing else.
	Removed bool
	// Adopted says that this side took over a newer enrolment set from the peer.
	Adopted bool

	config *Config
	link   link

	proving  sync.Mutex
	outNonce [32]byte // what the last evidence to the peer answered

	judging sync.Mutex
	inNonce [32]byte // what the last evidence of the peer answered
	latest  *rot.Verdict
}

// Dial opens the channel over a connection that this side dialled, and proves itself first. It takes ownership of raw:
// on failure raw is closed. Errors are *reason.Error.
func (c *Config) Dial(ctx context.Context, raw net.Conn) (*Conn, error) {
	return c.open(ctx, raw, true)
}

// Accept opens the channel over a connection that the peer dialled. This sled's TPM does nothing before the peer's
// evidence was accepted. Ownership and errors are as for Dial.
func (c *Config) Accept(ctx context.Context, raw net.Conn) (*Conn, error) {
	return c.open(ctx, raw, false)
}

// Validate refuses a configuration that lacks something, or that would not fit into a hello.
func (c *Config) Validate() error {
	switch {
	case c.Self.Validate() != nil, c.Identity == nil, c.Prover == nil, c.Set == nil, c.AdoptSet == nil, c.Seen == nil, c.Remember == nil:
		return refuse(CodeConfig, "configuration: a field is missing")
	case c.Prover.Baseboard() != c.Self:
		return refuse(CodeConfig, "configuration: the prover speaks for %v, want %v", c.Prover.Baseboard(), c.Self)
	}
	announced := c.announced()
	size := 0
	for _, a := range announced {
		if !plain(a) {
			return refuse(CodeConfig, "configuration: capability %.64q is not plain text", a)
		}
		size += len(a) + 2
	}
	if len(announced) > maxCapabilities || size > maxHello-128 {
		return refuse(CodeConfig, "configuration: have %d capabilities of %d bytes, want at most %d of %d", len(announced), size, maxCapabilities, maxHello-128)
	}
	return nil
}

// announced are the capabilities of the hello: the real ones, then the relaxations.
func (c *Config) announced() []string {
	out := append([]string{}, c.Capabilities...)
	for _, r := range c.Relaxations {
		out = append(out, relaxPrefix+r)
	}
	return out
}

func (c *Config) open(ctx context.Context, raw net.Conn, dialer bool) (*Conn, error) {
	if err := c.Validate(); err != nil {
		_ = raw.Close()
		return nil, err
	}
	timeout := c.Timeout
	if timeout == 0 {
		timeout = DefaultTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = raw.SetDeadline(time.Unix(1, 0)) }) // long past: ends every wait
	h := &handshake{c: c, raw: raw, who: remote(raw), link: link{dialer: dialer}}
	conn, err := h.run(ctx)
	if !stop() && err == nil {
		err = ioError(context.Cause(ctx), h.who, "handshake")
	}
	if err != nil {
		_ = raw.Close()
		return nil, err
	}
	return conn, nil
}

func remote(raw net.Conn) string {
	if a := raw.RemoteAddr(); a != nil {
		return a.String()
	}
	return "peer"
}

// FreshEvidence makes new evidence for the same connection, after the counter moved. Its nonce is the digest of the last
// one, so the peer needs to ask nothing. Each call must be followed by exactly one Reappraise on the other side: evidence
// that was made but cannot be sent ends the connection.
func (c *Conn) FreshEvidence(ctx context.Context) ([]byte, error) {
	c.proving.Lock()
	defer c.proving.Unlock()
	next := sha256.Sum256(c.outNonce[:])
	ev, err := c.config.Prover.Evidence(ctx, c.link.mine(next))
	if err != nil {
		return nil, err
	}
	c.outNonce = next
	return ev, nil
}

// Reappraise judges new evidence of the peer by this sled's present set. After an error the caller closes the connection.
func (c *Conn) Reappraise(ev []byte) error {
	c.judging.Lock()
	defer c.judging.Unlock()
	next := sha256.Sum256(c.inNonce[:])
	j, err := c.config.judge(ev, c.link.theirs(next))
	if err != nil {
		return err
	}
	if j.verdict.Baseboard != c.Peer {
		return refuse(rot.CodeBaseboard, "new evidence refused: have %v, want %v as before", j.verdict.Baseboard, c.Peer)
	}
	if j.removed != c.Removed {
		return refuse(CodeRemoved, "new evidence refused: the record of %v was marked as removed, or came back", c.Peer)
	}
	c.inNonce, c.latest = next, j.verdict
	return nil
}

// Latest is the verdict on the newest evidence that was accepted.
func (c *Conn) Latest() *rot.Verdict {
	c.judging.Lock()
	defer c.judging.Unlock()
	return c.latest
}

// TLS is the state of the connection below.
func (c *Conn) TLS() tls.ConnectionState {
	if t, ok := c.Conn.(*tls.Conn); ok {
		return t.ConnectionState()
	}
	return tls.ConnectionState{}
}
