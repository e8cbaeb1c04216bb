package vault

import (
	"context"
	"sync"
)

// changes counts what happens to the status, and wakes whoever waits for the next.
type changes struct {
	mu   sync.Mutex
	n    uint64
	news chan struct{} // closed and replaced at each change
}

func newChanges() *changes { return &changes{n: 1, news: make(chan struct{})} }

func (c *changes) bump() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
	close(c.news)
	c.news = make(chan struct{})
}

func (c *changes) current() (uint64, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n, c.news
}

// AwaitChange returns when the status has another revision than the given one, or when ctx ends.
func (d *Daemon) AwaitChange(ctx context.Context, after uint64) {
	for {
		n, news := d.changes.current()
		if n != after {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-news:
		}
	}
}
