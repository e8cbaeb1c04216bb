package api

import (
	"net"
	"testing"
	"time"
)

// TestServerLimits: no caller can hold a connection for ever by being slow, whatever it is slow with.
func TestServerLimits(t *testing.T) {
	t.Parallel()
	l := httpServer(nil, nil, "", localName, nil, nil)
	if l.ReadHeaderTimeout != 10*time.Second || l.IdleTimeout != 5*time.Minute || l.MaxHeaderBytes != 16<<10 {
		t.Errorf("have %v %v %d", l.ReadHeaderTimeout, l.IdleTimeout, l.MaxHeaderBytes)
	}
	if l.WriteTimeout != 0 || l.ReadTimeout != 0 {
		t.Error("a limit over the whole request would break requests that wait; bodies and answers have their own")
	}
}

// TestListenerCounts: places are taken per caller and given back once, however often a connection is closed.
func TestListenerCounts(t *testing.T) {
	t.Parallel()
	in := make(chan net.Conn, 8)
	var refused []string
	names := map[net.Conn]string{}
	l := newLimitListener(pipes(in), 3, 2, func(c net.Conn) string { return names[c] }, func(who string) { refused = append(refused, who) })
	for _, who := range []string{"a", "a", "a", "b", "b", "c"} {
		c, _ := net.Pipe()
		names[c] = who
		in <- c
	}
	close(in)
	var open []net.Conn
	for {
		c, err := l.Accept()
		if err != nil {
			break
		}
		open = append(open, c)
	}
	if len(open) != 3 || len(refused) != 3 || refused[0] != "a" || refused[1] != "b" || refused[2] != "c" {
		t.Fatalf("have %d open, refused %v", len(open), refused)
	}
	for _, c := range open {
		_ = c.Close()
		_ = c.Close()
	}
	if l.n != 0 || len(l.open) != 0 {
		t.Errorf("have %d places taken, %v", l.n, l.open)
	}
}

// pipes is a listener over a channel.
type pipes chan net.Conn

func (p pipes) Accept() (net.Conn, error) {
	if c, ok := <-p; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}

func (p pipes) Close() error   { return nil }
func (p pipes) Addr() net.Addr { return nil }
