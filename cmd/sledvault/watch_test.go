package main

import (
	"bufio"
	"context"
	"io"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/sledvault/sledvault/internal/cli"
	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/reason"
)

// ResetSeal refuses as a member does.
func (fakeSled) ResetSeal(_ context.Context, _ api.Caller, r api.ResetRequest) (func(), error) {
	switch {
	case r.Baseboard.Serial != "CLI1":
		return nil, &reason.Error{Code: "reset-baseboard", Text: "fake: not this sled", Remedy: reason.Usage}
	case !r.LeaveRack:
		return nil, reason.New("reset-member", "add --yes-i-know", "fake: a member")
	}
	return func() {}, nil
}

// changingSled goes from one status to the next when it is told to.
type changingSled struct {
	api.Node
	mu   sync.Mutex
	now  api.Status
	news chan struct{}
}

func (c *changingSled) set(f func(*api.Status)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f(&c.now)
	c.now.Revision++
	close(c.news)
	c.news = make(chan struct{})
}

func (c *changingSled) Status(context.Context) api.Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *changingSled) AwaitChange(ctx context.Context, after uint64) {
	for {
		c.mu.Lock()
		n, news := c.now.Revision, c.news
		c.mu.Unlock()
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

// TestWatch: one line for each change that shows, none for the others; an interrupt is a good end, the daemon's is not.
func TestWatch(t *testing.T) {
	t.Parallel()
	sled := &changingSled{news: make(chan struct{}), now: api.Status{State: api.StateMember, Boot: api.Boot{Step: "shares", Waiting: "CLI2"}}}
	socket := filepath.Join(t.TempDir(), "s")
	l, err := api.ListenLocal(api.LocalConfig{Socket: socket, Node: sled, Reasons: reason.NewLog()})
	if err != nil {
		t.Fatal(err)
	}
	serve, stop := context.WithCancel(t.Context())
	defer stop()
	served := make(chan error, 1)
	go func() { served <- l.Serve(serve) }()

	watch := func(ctx context.Context, args ...string) (lines *bufio.Scanner, code chan int) {
		r, w := io.Pipe()
		code = make(chan int, 1)
		go func() {
			code <- run(ctx, append([]string{"watch", "--socket", socket}, args...), strings.NewReader(""), w, io.Discard)
			_ = w.Close()
		}()
		return bufio.NewScanner(r), code
	}
	want := func(lines *bufio.Scanner, text string) {
		t.Helper()
		if !lines.Scan() || lines.Text() != text {
			t.Fatalf("have %q, want %q", lines.Text(), text)
		}
	}
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	lines, code := watch(ctx)
	want(lines, "member; boot at shares, waiting for CLI2")
	sled.set(func(s *api.Status) { s.Reasons = []reason.Entry{{Code: "peer-refused", Count: 1}} }) // does not show
	sled.set(func(s *api.Status) {
		s.Boot = api.Boot{Step: "done"}
		s.Disks = []api.Disk{{ID: "data0", State: "unlocked"}}
	})
	want(lines, "member; boot done; data0 unlocked")
	interrupt()
	if c := <-code; c != cli.Done {
		t.Errorf("interrupted: have exit code %d, want %d", c, cli.Done)
	}

	lines, code = watch(t.Context(), "--json")
	if !lines.Scan() || !strings.HasPrefix(lines.Text(), `{"version":"","baseboard":null,"state":"member"`) {
		t.Fatalf("have %q", lines.Text())
	}
	stop()
	if err := <-served; err != nil {
		t.Error(err)
	}
	if c := <-code; c != cli.NotYet {
		t.Errorf("daemon gone: have exit code %d, want %d", c, cli.NotYet)
	}
}
