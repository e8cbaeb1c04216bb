//go:build linux

package simsp

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/sledvault/sledvault/hwtest/sim/pty"
)

// Line is a simulated service processor behind a pseudo-terminal. Hosts may open and close it at will.
type Line struct {
	SP *SP

	line, noise *pty.Pair
	cancel      context.CancelFunc
	wg          sync.WaitGroup
	err         error
}

// OnPty starts a simulated service processor on a new pseudo-terminal, and a second one whose bytes become noise.
func OnPty(cfg Config) (*Line, error) {
	line, err := pty.Open()
	if err != nil {
		return nil, err
	}
	noise, err := pty.Open()
	if err != nil {
		return nil, errors.Join(err, line.Close())
	}
	ctx, cancel := context.WithCancel(context.Background())
	l := &Line{SP: New(cfg), line: line, noise: noise, cancel: cancel}
	l.wg.Go(func() { l.err = l.SP.Serve(ctx, line.Dev) })
	l.wg.Go(func() { l.forward(ctx) })
	return l, nil
}

// Path is the serial line for the host.
func (l *Line) Path() string { return l.line.Path }

// InjectPath is the pseudo-terminal whose bytes reach the host as noise.
func (l *Line) InjectPath() string { return l.noise.Path }

func (l *Line) forward(ctx context.Context) {
	stop := context.AfterFunc(ctx, func() { _ = l.noise.Dev.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	buf := make([]byte, noisePiece)
	for ctx.Err() == nil {
		n, err := l.noise.Dev.Read(buf)
		l.SP.Inject(buf[:n])
		if err != nil && !pause(ctx, retryRead) {
			return
		}
	}
}

// Close stops the service processor and removes both pseudo-terminals.
func (l *Line) Close() error {
	l.cancel()
	l.wg.Wait()
	return errors.Join(l.err, l.line.Close(), l.noise.Close())
}
