// Package sptest is the contract suite of package sp: everything a line to a service processor can do wrong, and what
// must then happen.
//
// It owns the table of faults and the ways to set up a client and a simulated service processor: over an in-memory
// pipe, where time is simulated, and over a real pseudo-terminal with the real serial package. It is for tests only.
package sptest

import (
	"context"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	simsp "github.com/sledvault/sledvault/hwtest/sim/sp"
	"github.com/sledvault/sledvault/sp"
)

// Rig is one simulated service processor and the way for a host to open its line.
type Rig struct {
	SP   *simsp.SP
	Open func() (sp.Port, error)
	// Unplug breaks the line for hosts that have it open; Open then works again. Nil if it cannot be done.
	Unplug func()
}

// Harness makes rigs.
type Harness struct {
	New func(t testing.TB, cfg simsp.Config) Rig
	// Bubble says that the rig may run under simulated time; rows that wait long run only there.
	Bubble bool
}

// in runs a row, under simulated time where that is possible.
func (h Harness) in(t *testing.T, row func(t *testing.T)) {
	t.Helper()
	if h.Bubble {
		synctest.Test(t, row)
		return
	}
	row(t)
}

// Pipe is a harness over in-memory pipes without any buffer.
func Pipe() Harness {
	return Harness{Bubble: true, New: func(t testing.TB, cfg simsp.Config) Rig {
		t.Helper()
		p := &pipes{sp: simsp.New(cfg), ctx: t.Context()}
		t.Cleanup(p.stop)
		return Rig{SP: p.sp, Open: p.open, Unplug: p.stop}
	}}
}

type pipes struct {
	sp  *simsp.SP
	ctx context.Context

	mu     sync.Mutex
	device net.Conn
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// open makes a new pipe and serves its far end, ending an earlier one.
func (p *pipes) open() (sp.Port, error) {
	p.stop()
	p.mu.Lock()
	defer p.mu.Unlock()
	host, device := net.Pipe()
	ctx, cancel := context.WithCancel(context.WithoutCancel(p.ctx))
	p.device, p.cancel = device, cancel
	started := make(chan struct{})
	p.wg.Go(func() {
		close(started)
		_ = p.sp.Serve(ctx, device)
		_ = device.Close()
	})
	<-started
	return pipePort{host}, nil
}

func (p *pipes) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cancel != nil {
		p.cancel()
		_ = p.device.Close()
	}
	p.wg.Wait()
}

// pipePort is a pipe's end as a port: there is nothing to flush.
type pipePort struct{ net.Conn }

func (pipePort) FlushInput() error { return nil }

// Pty is a harness over pseudo-terminals opened through the serial package.
func Pty() Harness {
	return Harness{New: func(t testing.TB, cfg simsp.Config) Rig {
		t.Helper()
		line, err := simsp.OnPty(cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := line.Close(); err != nil {
				t.Error(err)
			}
		})
		return Rig{SP: line.SP, Open: func() (sp.Port, error) { return sp.OpenSerial(line.Path(), 3_000_000, false) }}
	}}
}

// Client opens a client on a rig with a fixed first sequence number.
func Client(t testing.TB, r Rig, cfg sp.Config) *sp.Client {
	t.Helper()
	cfg.Rand = fixed{}
	c, err := sp.NewClient(cfg, r.Open)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// fixed is a random source without surprises.
type fixed struct{}

func (fixed) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 0x11
	}
	return len(p), nil
}

// within bounds a test that would otherwise hang.
func within(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}
