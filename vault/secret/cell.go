package secret

import (
	"math"
	"runtime"
	"sync/atomic"
)

// cell is what all copies of one secret refer to. Its bytes may be reused by another secret as soon as they are freed,
// so they are freed only when nobody uses them.
type cell struct {
	// state counts the running uses; destroyed is added to it once.
	state   atomic.Int64
	b       []byte
	n       int // len(b), readable without a use
	free    func()
	cleanup runtime.Cleanup
}

// destroyed makes any possible count of uses negative.
const destroyed = math.MinInt64

func newCell(b []byte, free func()) *cell {
	c := &cell{b: b, n: len(b), free: free}
	c.cleanup = runtime.AddCleanup(c, func(free func()) { free() }, free)
	return c
}

func (c *cell) live() bool { return c.state.Load() >= 0 }

func (c *cell) acquire() bool {
	for {
		n := c.state.Load()
		if n < 0 {
			return false
		}
		if c.state.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (c *cell) release() {
	if c.state.Add(-1) == destroyed {
		c.wipe()
	}
}

func (c *cell) destroy() {
	for {
		n := c.state.Load()
		if n < 0 {
			return
		}
		if c.state.CompareAndSwap(n, n+destroyed) {
			if n == 0 {
				c.wipe()
			}
			return
		}
	}
}

// wipe runs once, after the last use.
func (c *cell) wipe() {
	c.cleanup.Stop()
	if wipes {
		clear(c.b)
	}
	free := c.free
	c.b, c.free = nil, nil
	free()
	runtime.KeepAlive(c) // else the cleanup could run beside this
}
