package tpm

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/sledvault/sledvault/vault/reason"
)

// Sizes of a TPM frame, in bytes: tag u16, total size u32, code u32, then the rest, all big-endian.
const (
	headerSize = 10
	maxFrame   = 4096
)

// DefaultTimeout is how long one command may take.
const DefaultTimeout = 20 * time.Second

// Conn carries bare TPM frames over a stream, for example a socket of swtpm. It implements go-tpm's
// transport.TPMCloser and is safe for concurrent use.
//
// After a timeout the late answer is awaited and dropped before the next command goes out, so that an answer can never
// be taken for that of another command.
type Conn struct {
	mu       sync.Mutex
	c        net.Conn
	timeout  time.Duration
	deadline time.Time // the caller's own, may be zero
	owed     bool      // an answer is still to come for a command that timed out
	part     []byte    // what has been read of the answer in progress
	broken   error
}

// NewConn wraps a stream. Each command may take the given time; 0 means [DefaultTimeout].
func NewConn(c net.Conn, timeout time.Duration) *Conn {
	if timeout <= 0 {
		timeout = DefaultTimeout
	}
	return &Conn{c: c, timeout: timeout}
}

// SetDeadline bounds the commands that follow, in addition to the time each may take. The zero time lifts the bound.
func (c *Conn) SetDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deadline = t
	return nil
}

// Send writes one command and returns its answer.
func (c *Conn) Send(cmd []byte) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken != nil {
		return nil, c.broken
	}
	if len(cmd) < headerSize || len(cmd) > maxFrame {
		return nil, usage("command of %d bytes, want %d to %d", len(cmd), headerSize, maxFrame)
	}
	if err := c.drain(); err != nil {
		return nil, err
	}
	if err := c.c.SetDeadline(c.until(c.timeout)); err != nil {
		return nil, c.fatal(err)
	}
	if _, err := c.c.Write(cmd); err != nil {
		return nil, c.fatal(err) // a command written in part cannot be taken back
	}
	return c.read()
}

// Close ends the connection.
func (c *Conn) Close() error { return c.c.Close() }

func (c *Conn) until(d time.Duration) time.Time {
	t := time.Now().Add(d)
	if !c.deadline.IsZero() && c.deadline.Before(t) {
		return c.deadline
	}
	return t
}

// drain awaits the answer that an earlier command is owed. It gives it less time than a command, so that calls after a
// timeout fail fast.
func (c *Conn) drain() error {
	if !c.owed {
		return nil
	}
	if err := c.c.SetDeadline(c.until(c.timeout / 10)); err != nil {
		return c.fatal(err)
	}
	late, err := c.read()
	clear(late)
	return err
}

// read reads one frame, continuing one that was begun before.
func (c *Conn) read() ([]byte, error) {
	c.owed = true
	if c.part == nil {
		c.part = make([]byte, 0, headerSize)
	}
	if err := c.fill(headerSize); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(c.part[2:6])
	if n < headerSize || n > maxFrame {
		return nil, c.fatal(reason.New(CodeAnswer, hintAnswer, "tpm: answer announces %d bytes, want %d to %d", n, headerSize, maxFrame))
	}
	if err := c.fill(int(n)); err != nil {
		return nil, err
	}
	rsp := c.part
	c.part, c.owed = nil, false
	return rsp, nil
}

// fill reads until n bytes of the answer are there.
func (c *Conn) fill(n int) error {
	if cap(c.part) < n {
		grown := append(make([]byte, 0, n), c.part...)
		clear(c.part)
		c.part = grown
	}
	for len(c.part) < n {
		k, err := c.c.Read(c.part[len(c.part):n])
		c.part = c.part[:len(c.part)+k]
		if err != nil && len(c.part) < n {
			return c.readError(err)
		}
	}
	return nil
}

func (c *Conn) readError(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return reason.Wrap(err, CodeTimeout, hintHung, "tpm: no answer in time")
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return c.fatal(err)
}

func (c *Conn) fatal(err error) error {
	if reason.CodeOf(err) == "" {
		e := reason.Wrap(err, CodeBroken, hintBroken, "tpm: connection lost")
		e.Remedy = reason.Retry
		err = e
	}
	c.broken = err
	_ = c.c.Close() // nothing more can be read in step
	return err
}
