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

// limitListener closes connections beyond a limit at once, so that nobody can hold all descriptors of the daemon, and
// beyond a share of it for each caller, so that nobody can hold all places.
type limitListener struct {
	net.Listener
	total, each int
	who         func(net.Conn) string // names the caller whom the share is counted for
	full        func(who string)

	mu   sync.Mutex
	open map[string]int
	n    int
}

func newLimitListener(l net.Listener, total, each int, who func(net.Conn) string, full func(string)) *limitListener {
	return &limitListener{Listener: l, total: total, each: each, who: who, full: full, open: map[string]int{}}
}

// Accept implements [net.Listener].
func (l *limitListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		who := l.who(c)
		if l.take(who) {
			return &limitConn{Conn: c, release: sync.OnceFunc(func() { l.give(who) })}, nil
		}
		l.full(who)
		_ = c.Close()
	}
}

func (l *limitListener) take(who string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.n >= l.total || l.open[who] >= l.each {
		return false
	}
	l.n++
	l.open[who]++
	return true
}

func (l *limitListener) give(who string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.n--
	if l.open[who]--; l.open[who] == 0 {
		delete(l.open, who)
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
