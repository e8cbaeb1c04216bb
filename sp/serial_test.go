package sp_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/sledvault/sledvault/hwtest/sim/pty"
	simsp "github.com/sledvault/sledvault/hwtest/sim/sp"
	"github.com/sledvault/sledvault/sp"
	"github.com/sledvault/sledvault/vault/reason"
)

func openPty(t testing.TB) (*pty.Pair, *sp.Serial) {
	t.Helper()
	pair, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = pair.Close() })
	port, err := sp.OpenSerial(pair.Path, 3_000_000, true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = port.Close() })
	return pair, port
}

func TestSerialCarriesAllBytes(t *testing.T) {
	t.Parallel()
	pair, port := openPty(t)
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	for _, way := range []struct {
		name     string
		from, to interface {
			Read([]byte) (int, error)
			Write([]byte) (int, error)
		}
	}{{"to host", pair.Dev, port}, {"to device", port, pair.Dev}} {
		if _, err := way.from.Write(all); err != nil {
			t.Fatal(way.name, err)
		}
		var have []byte
		for buf := make([]byte, 512); len(have) < len(all); {
			n, err := way.to.Read(buf)
			if err != nil {
				t.Fatal(way.name, err)
			}
			have = append(have, buf[:n]...)
		}
		if string(have) != string(all) {
			t.Errorf("%s: bytes changed", way.name)
		}
	}
}

func TestSerialDeadlines(t *testing.T) {
	t.Parallel()
	_, port := openPty(t)
	const want = 37 * time.Millisecond
	start := time.Now()
	if err := port.SetDeadline(start.Add(want)); err != nil {
		t.Fatal(err)
	}
	if n, err := port.Read(make([]byte, 8)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("read: have %d, %v", n, err)
	}
	if have := time.Since(start); have < want {
		t.Errorf("read ended after %v, want %v", have, want)
	}
	if err := port.SetDeadline(time.Now().Add(want)); err != nil {
		t.Fatal(err)
	}
	if _, err := port.Write(make([]byte, 1<<20)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("write that nobody drains: have %v", err)
	}
}

func TestSerialCloseEndsRead(t *testing.T) {
	t.Parallel()
	_, port := openPty(t)
	ended := make(chan error)
	go func() {
		_, err := port.Read(make([]byte, 8))
		ended <- err
	}()
	if err := port.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err == nil {
		t.Fatal("read after close succeeded")
	}
}

func TestSerialFlushInput(t *testing.T) {
	t.Parallel()
	pair, port := openPty(t)
	if _, err := pair.Dev.Write([]byte("stale")); err != nil {
		t.Fatal(err)
	}
	first := make([]byte, 1)
	if _, err := port.Read(first); err != nil || first[0] != 's' { // so all of it has arrived
		t.Fatal(string(first), err)
	}
	if err := port.FlushInput(); err != nil {
		t.Fatal(err)
	}
	if _, err := pair.Dev.Write([]byte("new")); err != nil {
		t.Fatal(err)
	}
	if _, err := port.Read(first); err != nil || first[0] != 'n' {
		t.Fatalf("after flush: have %q, %v", first, err)
	}
}

func TestOpenRefusals(t *testing.T) {
	t.Parallel()
	pair, _ := openPty(t)
	plain := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	free, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = free.Close() })
	for _, c := range []struct {
		name, path string
		baud       int
		want       reason.Code
	}{
		{"busy", pair.Path, 0, sp.CodePortBusy},
		{"absent", filepath.Join(t.TempDir(), "absent"), 0, sp.CodeNoPort},
		{"plain file", plain, 0, sp.CodeNoPort},
		{"null device", "/dev/null", 0, sp.CodeNoPort},
		{"rate", free.Path, 74_880, sp.CodeNoPort},
	} {
		client, err := sp.Open(sp.Config{Port: c.path, Baud: c.baud})
		if reason.CodeOf(err) != c.want || reason.HintOf(err) == "" {
			t.Errorf("%s: have %v, want code %q with a hint", c.name, err, c.want)
		}
		if err == nil {
			_ = client.Close()
		}
	}
}

// TestHangUp takes the line away under an open client: a typed error, and no loop that spins. The number of a closed
// pseudo-terminal may be given to somebody else at once, so the path is not tried again.
func TestHangUp(t *testing.T) {
	t.Parallel()
	line, err := simsp.OnPty(simsp.Config{Model: "M", Serial: "S"})
	if err != nil {
		t.Fatal(err)
	}
	path, opens := line.Path(), 0
	c, err := sp.NewClient(sp.Config{Deadline: 200 * time.Millisecond}, func() (sp.Port, error) {
		if opens++; opens > 1 {
			path = filepath.Join(t.TempDir(), "absent")
		}
		return sp.OpenSerial(path, 3_000_000, false)
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if err := c.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := line.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err = c.Identity(t.Context()); reason.CodeOf(err) != sp.CodeNoPort {
		t.Fatalf("have %v, want code %q", err, sp.CodeNoPort)
	}
	if opens < 2 || opens > 20 {
		t.Errorf("opened %d times within 200 ms", opens)
	}
}

// TestInjectPath sends noise through the second pseudo-terminal, as a person would.
func TestInjectPath(t *testing.T) {
	t.Parallel()
	line, err := simsp.OnPty(simsp.Config{Model: "M", Serial: "S", Revision: 3})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = line.Close() })
	c, err := sp.Open(sp.Config{Port: line.Path()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	noise, err := os.OpenFile(line.InjectPath(), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	const size = 1 << 20
	if _, err := noise.Write(make([]byte, size/2)); err != nil { // blocks until nearly all of it went through
		t.Fatal(err)
	}
	burst := make([]byte, size/2)
	for i := range burst {
		burst[i] = byte(i*7 + i>>8)
	}
	if _, err := noise.Write(burst); err != nil {
		t.Fatal(err)
	}
	if err := noise.Close(); err != nil {
		t.Fatal(err)
	}
	id, err := c.Identity(t.Context())
	if err != nil || id.Baseboard.String() != "M:S" || id.Revision != 3 {
		t.Fatalf("have %+v, %v", id, err)
	}
	if s := c.Stats(); s.BytesIn < size/2 {
		t.Errorf("noise did not arrive: %+v", s)
	}
}

// TestOpenFullLine opens a line that noise has filled to the brim while nobody listened.
func TestOpenFullLine(t *testing.T) {
	t.Parallel()
	line, err := simsp.OnPty(simsp.Config{Model: "M", Serial: "S", IdleZeros: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = line.Close() })
	line.SP.Inject(bytes.Repeat([]byte{0x5a}, 300_000))
	c, err := sp.Open(sp.Config{Port: line.Path()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if id, err := c.Identity(t.Context()); err != nil || id.Baseboard.String() != "M:S" {
		t.Fatalf("have %+v, %v", id, err)
	}
}

func BenchmarkIdentity(b *testing.B) {
	line, err := simsp.OnPty(simsp.Config{Model: "M", Serial: "S"})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = line.Close() }()
	c, err := sp.Open(sp.Config{Port: line.Path()})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	for b.Loop() {
		if _, err := c.Identity(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkBoot is what a boot pays: open, start order, identity, close.
func BenchmarkBoot(b *testing.B) {
	line, err := simsp.OnPty(simsp.Config{Model: "M", Serial: "S"})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = line.Close() }()
	for b.Loop() {
		c, err := sp.Open(sp.Config{Port: line.Path()})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := c.Identity(b.Context()); err != nil {
			b.Fatal(err)
		}
		if err := c.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
