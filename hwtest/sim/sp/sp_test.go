package simsp

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/sledvault/sledvault/sp/frame"
)

type vectors struct {
	Malformed []struct {
		Name, Input string
		State       string  `json:"sp_state"`
		Wire        *string `json:"reply_wire"`
		Repeat      struct {
			Byte  string
			Count int
		} `json:"input_repeat"`
	} `json:"malformed_host_to_sp"`
	Streams []struct {
		Name   string
		Chunks []string
		Output string
	} `json:"sp_receive_streams"`
}

func load(t *testing.T) (v vectors) {
	t.Helper()
	raw, err := os.ReadFile("../../../sp/frame/testdata/host-sp.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func gimlet() *SP { return New(Config{Model: "913-0000019", Serial: "OXE99990000", Revision: 6}) }

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// respond feeds chunks to a simulator without a line and joins its answers.
func respond(s *SP, chunks ...[]byte) (out []byte) {
	d := frame.NewDeframer(frame.SPBuffer)
	for _, c := range chunks {
		for {
			rest, f, ok := d.Next(c)
			if !ok {
				break
			}
			for _, u := range s.judge(f.Bytes) {
				out = append(out, u.bytes...)
			}
			c = rest
		}
	}
	return out
}

func TestMalformed(t *testing.T) {
	for _, c := range load(t).Malformed {
		if c.State != "idle" {
			continue // the simulator queues replies, it is never found sending
		}
		in := append(bytes.Repeat(unhex(t, c.Repeat.Byte), c.Repeat.Count), unhex(t, c.Input)...)
		if c.Repeat.Count > 0 {
			in = append(in, frame.Terminator)
		}
		want := ""
		if c.Wire != nil {
			want = *c.Wire
		}
		if have := hex.EncodeToString(respond(gimlet(), in)); have != want {
			t.Errorf("%s: have %s, want %s", c.Name, have, want)
		}
	}
}

func TestReceiveStreams(t *testing.T) {
	for _, c := range load(t).Streams {
		var chunks [][]byte
		for _, h := range c.Chunks {
			chunks = append(chunks, unhex(t, h))
		}
		if have := hex.EncodeToString(respond(gimlet(), chunks...)); have != c.Output {
			t.Errorf("%s: have %s, want %s", c.Name, have, c.Output)
		}
	}
}

// TestSeed shows that equal seeds spoil equally.
func TestSeed(t *testing.T) {
	run := func(seed uint64) []byte {
		s := New(Config{Seed: seed, Faults: Faults{Filters: []Filter{Noise(100, true), Pieces(4)}}})
		req, err := frame.AppendRequest(nil, frame.Request{Version: frame.Version, Seq: 1, Command: frame.GetIdentity})
		if err != nil {
			t.Fatal(err)
		}
		return respond(s, req, req)
	}
	if !bytes.Equal(run(1), run(1)) || bytes.Equal(run(1), run(2)) {
		t.Fatal("noise does not follow the seed")
	}
}

func TestExtend(t *testing.T) {
	s := New(Config{Extend: func(r frame.Request) (frame.ReplyKind, []byte, bool) {
		return frame.RotResponse, append([]byte("echo "), r.Body...), r.Command == frame.RotRequest
	}})
	req, err := frame.AppendRequest(nil, frame.Request{Version: frame.Version, Seq: 9, Command: frame.RotRequest, Body: []byte("x")})
	if err != nil {
		t.Fatal(err)
	}
	out := respond(s, req)
	r, err := frame.DecodeReply(out[1 : len(out)-1])
	if err != nil || r.Kind != frame.RotResponse || string(r.Body) != "echo x" || r.Seq != 9|frame.ReplyBit {
		t.Fatalf("have %+v, %v", r, err)
	}
}

func TestServeOnce(t *testing.T) {
	s := gimlet()
	host, dev := net.Pipe()
	done := make(chan error, 1)
	go func() { done <- s.Serve(t.Context(), dev) }()
	if _, err := host.Write([]byte{1, 0}); err != nil { // it reads, so it serves
		t.Fatal(err)
	}
	if err := s.Serve(t.Context(), dev); !errors.Is(err, ErrServing) {
		t.Errorf("second serve: have %v, want %v", err, ErrServing)
	}
	_, _ = io.CopyN(io.Discard, host, 10)
	_ = host.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestIdleCost shows that a simulator whose hosts have gone uses next to no processor time.
func TestIdleCost(t *testing.T) {
	l, err := OnPty(Config{IdleZeros: true})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		host, err := os.OpenFile(l.Path(), os.O_RDWR|syscall.O_NOCTTY, 0)
		if err != nil {
			t.Fatal(err)
		}
		_ = host.Close()
	}
	before := processorTime(t)
	<-time.After(500 * time.Millisecond)
	if used := processorTime(t) - before; used > 100*time.Millisecond {
		t.Errorf("used %v of 500 ms", used)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func processorTime(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
