// Package sp asks the service processor of a sled who the sled is, over a serial line.
//
// It owns the line while the daemon runs, one transaction at a time with deadlines and bounded resends, and the errors
// that tell an operator which end to look at. It refuses to take an identity that is empty, unusable as a name, or of
// the wrong length. The line is not authenticated: what it says must be compared with the root of trust's evidence
// before it is believed. It implements docs/sp-wire.md.
//
// Read next: identity.go for the boot path, link.go for one transaction, sp/frame for the bytes.
package sp

import (
	"context"
	"crypto/rand"
	"io"
	"sync"
	"time"
)

// Port is a line to a service processor. Read returns what has arrived as soon as anything has; it and Write end at
// the deadline with [os.ErrDeadlineExceeded] and at Close with an error. Any other error means that the line is lost.
// One Read and one Write may run at the same time.
type Port interface {
	io.ReadWriteCloser
	SetDeadline(t time.Time) error // of running and future calls; the zero time means none
	FlushInput() error             // drops what has arrived and was not read
}

// Config describes the line and how long to try.
type Config struct {
	Port        string        // path of a serial device
	Baud        int           // bits per second; 0 means 3000000
	Deadline    time.Duration // for one call with all its retries; 0 means 10 s
	Rand        io.Reader     // of the first sequence number; nil means crypto/rand
	FlowControl bool          // RTS/CTS are wired
	// Status asks for the status word after opening and acknowledges a restart. It moves the host's boot flash to the
	// service processor, so it is off unless the platform is known not to need the flash any more.
	Status bool
	Timing Timing // zero fields mean their defaults
}

// Timing holds the waits of a transaction (sp-wire.md §6).
type Timing struct {
	Attempts    int           // sends of one request, the first included
	FirstWindow time.Duration // wait for a reply to the first send; doubles with each
	MaxWindow   time.Duration
	KeepAlive   time.Duration // silence after which a 00 is sent
	Settle      time.Duration // quiet wanted after a broken frame before a resend; doubles with each
	MaxSettle   time.Duration
	Write       time.Duration // longest blocked write
	Retry       time.Duration // pause between failed transactions; doubles with each
	MaxRetry    time.Duration
}

// DefaultTiming suits real firmware, which answers within milliseconds, and emulated firmware, which needs 0.4 s.
func DefaultTiming() Timing {
	return Timing{
		Attempts: 10, FirstWindow: 500 * time.Millisecond, MaxWindow: 2 * time.Second, KeepAlive: 100 * time.Millisecond,
		Settle: 10 * time.Millisecond, MaxSettle: 320 * time.Millisecond, Write: 500 * time.Millisecond,
		Retry: 20 * time.Millisecond, MaxRetry: time.Second,
	}
}

func (c Config) withDefaults() Config {
	set(&c.Baud, 3_000_000)
	set(&c.Deadline, 10*time.Second)
	if c.Rand == nil {
		c.Rand = rand.Reader
	}
	d := DefaultTiming()
	set(&c.Timing.Attempts, d.Attempts)
	set(&c.Timing.FirstWindow, d.FirstWindow)
	set(&c.Timing.MaxWindow, d.MaxWindow)
	set(&c.Timing.KeepAlive, d.KeepAlive)
	set(&c.Timing.Settle, d.Settle)
	set(&c.Timing.MaxSettle, d.MaxSettle)
	set(&c.Timing.Write, d.Write)
	set(&c.Timing.Retry, d.Retry)
	set(&c.Timing.MaxRetry, d.MaxRetry)
	return c
}

func set[T int | time.Duration](field *T, value T) {
	if *field <= 0 {
		*field = value
	}
}

// Client is an open line to a service processor. It reopens a lost line by itself. All methods are safe for
// concurrent use; calls run one after the other.
type Client struct {
	cfg      Config
	open     func() (Port, error)
	counters *counters
	turn     chan struct{} // holds one token: whoever has it may use link and ready
	link     *Link         // nil after a loss
	ready    bool          // the start order of the present link is done
	life     context.Context
	end      context.CancelFunc
	closing  sync.Once
}

// Open opens the serial device and takes it for this process. It does not wait for the service processor.
// Errors: sp-no-port, sp-port-busy.
func Open(cfg Config) (*Client, error) {
	cfg = cfg.withDefaults()
	return NewClient(cfg, func() (Port, error) { return OpenSerial(cfg.Port, cfg.Baud, cfg.FlowControl) })
}

// NewClient makes a client over ports that open gives, the first of them at once.
func NewClient(cfg Config, open func() (Port, error)) (*Client, error) {
	c := &Client{cfg: cfg.withDefaults(), open: open, counters: &counters{}, turn: make(chan struct{}, 1)}
	c.life, c.end = context.WithCancel(context.Background())
	if err := c.connect(); err != nil {
		c.end()
		return nil, err
	}
	c.turn <- struct{}{}
	return c, nil
}

// connect opens a link unless there is one.
func (c *Client) connect() error {
	if c.link != nil {
		return nil
	}
	port, err := c.open()
	if err != nil {
		return err
	}
	c.ready = false
	c.link, err = NewLink(port, c.cfg.Timing, c.cfg.Rand, c.counters)
	return err
}

// Stats returns what the line has seen since Open.
func (c *Client) Stats() Stats { return c.counters.get() }

// Close ends running calls, gives the line back and waits for its reader.
func (c *Client) Close() (err error) {
	c.closing.Do(func() {
		c.end()
		<-c.turn
		if c.link != nil {
			err = c.link.Close()
			c.link = nil
		}
	})
	return err
}

// do runs one call with its turn, its deadline and its retries.
func (c *Client) do(ctx context.Context, call func(context.Context, *Link) error) error {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Deadline)
	defer cancel()
	stop := context.AfterFunc(c.life, cancel)
	defer stop()
	select {
	case <-c.turn:
		defer func() { c.turn <- struct{}{} }()
	case <-ctx.Done():
		if c.life.Err() != nil {
			return errClosed()
		}
		return errTurn(ctx)
	}
	if c.life.Err() != nil {
		return errClosed()
	}
	for wait := c.cfg.Timing.Retry; ; wait = min(2*wait, c.cfg.Timing.MaxRetry) {
		err := c.once(ctx, call)
		if err == nil || !retriable(err) || !sleep(ctx, wait) {
			return err
		}
	}
}

// once opens the line if needed, runs the start order if needed, and then the call.
func (c *Client) once(ctx context.Context, call func(context.Context, *Link) error) error {
	reopened := c.link == nil
	if err := c.connect(); err != nil {
		return err
	}
	if reopened {
		c.counters.add(func(s *Stats) { s.Reopens++ })
	}
	err := error(nil)
	if !c.ready {
		err = c.start(ctx)
	}
	if err == nil {
		c.ready = true
		err = call(ctx, c.link)
	}
	if err != nil {
		c.ready = false
		if c.link.Lost() != nil {
			_ = c.link.Close()
			c.link = nil
		}
	}
	return err
}

// sleep reports whether the context outlived the time.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}
