package api

import (
	"net"
	"sync"
)

// connTable finds the state of a connection when the server reports that it closed.
type connTable struct {
	mu sync.Mutex
	m  map[net.Conn]*connState
}

func newConnTable() *connTable { return &connTable{m: map[net.Conn]*connState{}} }

func (t *connTable) put(c net.Conn, s *connState) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.m[c] = s
}

func (t *connTable) take(c net.Conn) *connState {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.m[c]
	delete(t.m, c)
	return s
}

// limitListener closes connections beyond a limit at once, so that nobody can hold all descriptors of the daemon.
type limitListener struct {
	net.Listener
	slots chan struct{}
	full  func(net.Conn)
}

func newLimitListener(l net.Listener, n int, full func(net.Conn)) *limitListener {
	return &limitListener{Listener: l, slots: make(chan struct{}, n), full: full}
}

// Accept implements [net.Listener].
func (l *limitListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case l.slots <- struct{}{}:
			return &limitConn{Conn: c, release: sync.OnceFunc(func() { <-l.slots })}, nil
		default:
			l.full(c)
			_ = c.Close()
		}
	}
}

type limitConn struct {
	net.Conn
	release func()
}

// Close implements [net.Conn].
func (c *limitConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}
