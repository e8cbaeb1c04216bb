// Package tpm talks to a TPM 2.0: it opens one, sets up sessions, makes the keys of a sled, reads, counts and quotes, and
// leaves nothing loaded behind. It takes no policy decisions: what is sealed under which policy is package sealing, what
// a quote must show is package rot.
//
// The bus is hostile. Whatever steers a decision goes through a session salted to a key whose Name the caller has pinned,
// so that an interposer can neither read nor alter it. Error codes are not authenticated: an error may only lead to a
// less trusted state, never to a decision.
//
// Begin with [Open] and [TPM.Do]; tpm/tpmtest has the test double and the contract suite.
package tpm

import (
	"context"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/sledvault/sledvault/vault/reason"
)

// Config says which TPM to open.
type Config struct {
	Device         string        // "/dev/tpmrm0", "/dev/tpm0" or "unix:/absolute/path" of swtpm's data socket
	CommandTimeout time.Duration // how long one command may take; 0 means [DefaultTimeout]
}

// TPM is one open TPM. It is safe for concurrent use: [TPM.Do] gives it to one caller at a time.
type TPM struct {
	turn    chan struct{} // holds one token while the TPM is free
	bus     transport.TPM
	dial    func(context.Context) (transport.TPMCloser, error) // opens the bus anew; nil if that cannot be done
	raw     bool                                               // no resource manager: leftovers are ours to flush
	socket  bool                                               // no chip sits behind a unix socket
	timeout time.Duration
	dirty   bool // something may have been left loaded
	lost    bool // the bus failed in this turn
	opening bool // a TPM that waits for TPM2_Startup may be given it
	closed  atomic.Bool
	props   Properties
	handles []tpm2.TPMHandle // persistent objects at the time of opening: a hint
	kept    [keyKinds]*kept  // guarded by the turn
	found   [keyKinds]Key    // persistent keys with the Name that was asked for; guarded by the turn
}

// Open opens a TPM. Behind anything but the kernel's resource manager it flushes the objects and sessions that an earlier
// life left loaded; a software TPM that waits for TPM2_Startup gets it. Errors: tpm-open, tpm-timeout, tpm-answer.
func Open(ctx context.Context, c Config) (*TPM, error) {
	if c.CommandTimeout <= 0 {
		c.CommandTimeout = DefaultTimeout
	}
	t, err := c.target()
	if err != nil {
		return nil, err
	}
	if err := t.reopen(ctx); err != nil {
		return nil, err
	}
	if err := t.start(ctx); err != nil {
		_ = t.Close() // the first error says more
		return nil, err
	}
	return t, nil
}

// New wraps a transport: a test double, a tap, a simulator. Raw means that no resource manager lies between.
func New(bus transport.TPM, raw bool) (*TPM, error) {
	t := &TPM{turn: make(chan struct{}, 1), bus: bus, raw: raw, timeout: DefaultTimeout}
	t.turn <- struct{}{}
	return t, t.start(context.Background())
}

func (c Config) target() (*TPM, error) {
	t := &TPM{turn: make(chan struct{}, 1), timeout: c.CommandTimeout}
	t.turn <- struct{}{}
	path, unix := strings.CutPrefix(c.Device, "unix:")
	if !filepath.IsAbs(path) {
		return nil, usage("device %q: want an absolute path, or unix: and one", c.Device)
	}
	t.socket = unix
	t.raw = unix || !strings.HasPrefix(filepath.Base(path), "tpmrm")
	t.dial = func(ctx context.Context) (transport.TPMCloser, error) {
		if !unix {
			return openDevice(path, c.CommandTimeout)
		}
		var d net.Dialer
		conn, err := d.DialContext(ctx, "unix", path)
		if err != nil {
			return nil, err
		}
		return NewConn(conn, c.CommandTimeout), nil
	}
	return t, nil
}

// reopen replaces a connection that is gone.
func (t *TPM) reopen(ctx context.Context) error {
	if c, ok := t.bus.(transport.TPMCloser); ok {
		_ = c.Close() // it is broken already
	}
	t.bus = nil
	bus, err := t.dial(ctx)
	if err != nil {
		e := reason.Wrap(err, CodeOpen, "see `sledvault doctor`: does the device exist, may this user open it, does another program hold it?", "tpm: open")
		e.Remedy = reason.Retry
		return e
	}
	t.bus, t.dirty = bus, t.raw
	return nil
}

// start brings a freshly opened TPM to a known state and reads what it says about itself.
func (t *TPM) start(ctx context.Context) error {
	t.dirty, t.opening = t.raw, t.dial != nil
	defer func() { t.opening = false }()
	return t.Do(ctx, func(s *Session) error {
		p, err := s.properties()
		if err != nil {
			return err
		}
		t.props = p
		t.handles, err = s.list(persistentFirst)
		return err
	})
}

// Close closes the transport, once the call in progress is done.
func (t *TPM) Close() error {
	if t.closed.Swap(true) {
		return nil
	}
	<-t.turn
	defer func() { t.turn <- struct{}{} }()
	if c, ok := t.bus.(transport.TPMCloser); ok {
		return c.Close()
	}
	return nil
}

// Do runs f with the TPM to itself. Everything loaded through the session is flushed when f returns. Do must not be
// called from inside f. If the context ends, a caller that waits gives up at once; a command that runs is given up at the
// context's deadline, and its late answer is dropped. Inside [TPM.Turn] it takes part in that turn.
func (t *TPM) Do(ctx context.Context, f func(*Session) error) error {
	if s, ok := ctx.Value(turn{}).(*Session); ok && s.t == t && !s.ended {
		return s.share(ctx, f)
	}
	select {
	case <-t.turn:
	case <-ctx.Done():
		e := reason.Wrap(ctx.Err(), CodeBusy, "the TPM serves one caller at a time: retry", "tpm: wait for a turn")
		e.Remedy = reason.Retry
		return e
	}
	defer func() { t.turn <- struct{}{} }()
	if t.closed.Load() {
		return errClosed()
	}
	if t.bus == nil {
		if t.dial == nil {
			return errClosed()
		}
		if err := t.reopen(ctx); err != nil {
			return err
		}
	}
	t.lost = false
	s := &Session{t: t, ctx: ctx}
	clean := false // also when f panics
	defer func() { s.end(clean) }()
	if err := s.begin(); err != nil {
		return err
	}
	err := f(s)
	clean = err == nil
	return err
}

// turn is the key of a context's session.
type turn struct{}

// Turn gives the TPM to one caller for several calls: each Do under the context that f gets runs in the same session, so
// that keys and the kept session are made once for all of them. F calls one Do after the other, never two at a time, and
// lets nobody keep the context.
func (t *TPM) Turn(ctx context.Context, f func(context.Context) error) error {
	return t.Do(ctx, func(s *Session) error { return f(context.WithValue(ctx, turn{}, s)) })
}

// share runs one call of a turn. A call that fails leaves nothing behind for the next.
func (s *Session) share(ctx context.Context, f func(*Session) error) error {
	outer, before := s.ctx, slices.Clone(s.loaded)
	s.ctx = ctx
	defer func() { s.ctx = outer }()
	err := f(s)
	if err == nil {
		return nil
	}
	s.Drop() // its nonces may be out of step
	s.t.found = [keyKinds]Key{}
	for _, h := range slices.Backward(slices.Clone(s.loaded)) {
		if !slices.Contains(before, h) && !s.t.lost {
			_ = s.Flush(h) // what cannot be flushed now is flushed at the end
		}
	}
	return err
}

func errClosed() error { return reason.New(CodeClosed, "", "tpm: closed") }
