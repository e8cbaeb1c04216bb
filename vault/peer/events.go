package peer

import (
	"context"
	"sync"

	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/wire"
)

// queue carries events to the driver in order. Its bound: every message and every Up waits for a token, of which there
// are as many as the limit says; a Down needs none, because it follows an Up.
type queue struct {
	out     chan Event
	tokens  chan struct{}
	wake    chan struct{} // holds one token while there is something new to look at
	reasons *reason.Log

	mu    sync.Mutex
	items []item
}

type item struct {
	event Event
	conn  *conn
}

func newQueue(limit int, log *reason.Log) *queue {
	return &queue{out: make(chan Event), tokens: make(chan struct{}, limit), wake: make(chan struct{}, 1), reasons: log}
}

// reserve waits for room for one event.
func (q *queue) reserve(ctx context.Context) error {
	select {
	case q.tokens <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// release gives back a reservation that was not used.
func (q *queue) release() { <-q.tokens }

// push appends an event whose room was reserved. It never blocks.
func (q *queue) push(it item) {
	q.mu.Lock()
	q.items = append(q.items, it)
	q.mu.Unlock()
	q.kick()
}

// kick makes the pump look at the head again: it may have become stale.
func (q *queue) kick() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (q *queue) head() (item, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.items) == 0 {
		return item{}, false
	}
	return q.items[0], true
}

func (q *queue) pop() {
	q.mu.Lock()
	it := q.items[0]
	q.items[0] = item{}
	q.items = q.items[1:]
	if len(q.items) == 0 {
		q.items = nil
	}
	q.mu.Unlock()
	if _, down := it.event.(Down); !down {
		q.release()
	}
}

// pump offers the head until it is taken or has become stale.
func (q *queue) pump(ctx context.Context) {
	defer close(q.out)
	defer q.drain()
	for {
		it, ok := q.head()
		if ok && it.stale() {
			q.drop(it)
			q.pop()
			continue
		}
		var out chan Event
		if ok {
			out = q.out
		}
		select {
		case out <- it.event:
			q.pop()
		case <-q.wake:
		case <-ctx.Done():
			return
		}
	}
}

// stale reports whether an event belongs to a connection that a newer one replaced.
func (it item) stale() bool { return it.conn != nil && it.conn.replaced.Load() }

func (q *queue) drop(it item) {
	if msg, ok := it.event.(Message); ok {
		wire.Destroy(msg.Msg)
		q.reasons.Count(CodeStale, msg.From.String(), "message of a replaced connection")
	}
}

// drain wipes what nobody will read.
func (q *queue) drain() {
	for it, ok := q.head(); ok; it, ok = q.head() {
		if msg, ok := it.event.(Message); ok {
			wire.Destroy(msg.Msg)
		}
		q.pop()
	}
}
