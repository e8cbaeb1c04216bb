package simsp

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sledvault/sledvault/sp/frame"
)

// ErrServing says that another Serve is running.
var ErrServing = errors.New("simsp: serve: already serving a line")

// deadliner is what files and network connections have; it lets a blocked Read or Write end.
type deadliner interface {
	SetReadDeadline(time.Time) error
	SetWriteDeadline(time.Time) error
}

// Serve answers requests on a line until the context ends (nil) or the line fails. To end a blocked Read it sets a
// deadline if the line has them, else it closes the line if it can. Both of its goroutines have ended on return.
func (s *SP) Serve(ctx context.Context, line io.ReadWriter) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := s.begin(ctx); err != nil {
		return err
	}
	defer s.end()
	l := &session{sp: s, line: line}
	stop := context.AfterFunc(ctx, l.unblock)
	defer stop()
	var wg sync.WaitGroup
	var readErr, writeErr error
	wg.Go(func() { defer cancel(); readErr = l.read(ctx) })
	wg.Go(func() { defer cancel(); writeErr = l.write(ctx) })
	wg.Wait()
	return errors.Join(readErr, writeErr)
}

func (s *SP) begin(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.serving != nil {
		return ErrServing
	}
	s.serving = ctx
	return nil
}

// end forgets the line and what still waited for it.
func (s *SP) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.serving = nil
	for {
		select {
		case <-s.out:
		default:
			return
		}
	}
}

// session is one Serve.
type session struct {
	sp      *SP
	line    io.ReadWriter
	partial atomic.Bool // half a request is held, so no idle zeros
	full    bool        // the last noise found no room; used by the writer only
}

func (l *session) unblock() {
	past := time.Unix(1, 0)
	switch d := l.line.(type) {
	case deadliner:
		_ = d.SetReadDeadline(past)
		_ = d.SetWriteDeadline(past)
	case io.Closer:
		_ = d.Close()
	}
}

func (l *session) read(ctx context.Context) error {
	if l.sp.cfg.Faults.Mode == Deaf {
		<-ctx.Done()
		return nil
	}
	d := frame.NewDeframer(frame.SPBuffer)
	buf := make([]byte, 4096)
	for ctx.Err() == nil {
		n, err := l.line.Read(buf)
		for rest := buf[:n]; len(rest) > 0; {
			var f frame.Frame
			var ok bool
			if rest, f, ok = d.Next(rest); !ok {
				break
			}
			for _, u := range l.sp.judge(f.Bytes) {
				if !l.sp.put(ctx, u) {
					return nil
				}
			}
		}
		l.partial.Store(d.Pending() > 0)
		if err != nil && !l.survive(ctx, err) {
			return ended(ctx, err)
		}
	}
	return nil
}

// survive waits after a line without host (EIO on a pseudo-terminal); other errors end the session.
func (l *session) survive(ctx context.Context, err error) bool {
	if !errors.Is(err, syscall.EIO) {
		return false
	}
	return pause(ctx, retryRead)
}

// pause reports whether the context outlived the time.
func pause(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// ended turns the error that stopping causes into nil.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil || errors.Is(err, io.EOF) || errors.Is(err, os.ErrClosed) || errors.Is(err, io.ErrClosedPipe) {
		return nil //nolint:nilerr // stopping is no error
	}
	return err
}

func (l *session) write(ctx context.Context) error {
	if stale := l.sp.cfg.Faults.Stale; len(stale) > 0 {
		if err := l.send(ctx, unit{bytes: stale, noise: true}); err != nil {
			return ended(ctx, err)
		}
	}
	var idle <-chan time.Time
	if l.sp.cfg.IdleZeros {
		t := time.NewTicker(idlePeriod)
		defer t.Stop()
		idle = t.C
	}
	for {
		var u unit
		select {
		case <-ctx.Done():
			return nil
		case <-idle:
			if l.partial.Load() {
				continue
			}
			u = unit{bytes: []byte{frame.Terminator}, noise: true}
		case u = <-l.sp.out:
		}
		if err := l.send(ctx, u); err != nil {
			return ended(ctx, err)
		}
	}
}

// send writes a unit whole. Noise that does not fit is lost; a packet waits for the host.
func (l *session) send(ctx context.Context, u unit) error {
	if !pause(ctx, u.wait) {
		return nil
	}
	d, timed := l.line.(deadliner)
	if timed && u.noise {
		patience := noiseLoss
		if l.full {
			patience = noiseLost
		}
		_ = d.SetWriteDeadline(time.Now().Add(patience))
		defer func() { _ = d.SetWriteDeadline(time.Time{}) }()
	}
	for {
		_, err := l.line.Write(u.bytes)
		l.full = u.noise && errors.Is(err, os.ErrDeadlineExceeded)
		switch {
		case err == nil, u.noise && errors.Is(err, os.ErrDeadlineExceeded):
			return nil
		case !l.survive(ctx, err):
			return err
		case u.noise:
			return nil
		}
	}
}
