package sp

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/sledvault/sledvault/sp/frame"
	"github.com/sledvault/sledvault/vault/reason"
)

// TestIdentityRules drives the identity vectors through our rules.
func TestIdentityRules(t *testing.T) {
	raw, err := os.ReadFile("frame/testdata/host-sp.json")
	if err != nil {
		t.Fatal(err)
	}
	var v struct {
		Identity []struct{ Name, Payload, Display, Error string }
	}
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatal(err)
	}
	if len(v.Identity) == 0 {
		t.Fatal("no vectors")
	}
	for _, c := range v.Identity {
		body, err := hex.DecodeString(c.Payload)
		if err != nil {
			t.Fatal(err)
		}
		id, err := parseIdentity(body)
		switch {
		case c.Error != "":
			if reason.CodeOf(err) != CodeNoIdentity || id != (Identity{}) {
				t.Errorf("%s: have %+v, %v, want code %q", c.Name, id, err, CodeNoIdentity)
			}
		case err != nil:
			t.Errorf("%s: %v", c.Name, err)
		case c.Display != "" && id.Baseboard.String() != c.Display:
			t.Errorf("%s: have %v, want %v", c.Name, id.Baseboard, c.Display)
		case id.Irregular != (c.Name == "bytes_after_first_nul_ignored"):
			t.Errorf("%s: irregular is %v", c.Name, id.Irregular)
		}
	}
}

// TestFullWidth reads fields without any NUL: all 51 bytes count, and somebody should look.
func TestFullWidth(t *testing.T) {
	wide := strings.Repeat("M", frame.TextLen)
	raw, err := frame.NewIdentity(wide, 1, wide)
	if err != nil {
		t.Fatal(err)
	}
	id, err := parseIdentity(raw.Append(nil))
	if err != nil || id.Baseboard.Part != wide || !id.Irregular {
		t.Fatalf("have %+v, %v", id, err)
	}
}

func TestSequence(t *testing.T) {
	host, dev := net.Pipe()
	defer func() { _ = dev.Close() }()
	l, err := NewLink(pipe{host}, DefaultTiming(), bytes.NewReader(bytes.Repeat([]byte{0xff}, 8)), &counters{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if first := l.next(); first > maxStart {
		t.Errorf("first sequence number %d, want at most 2^62", first)
	}
	l.seq = frame.ReplyBit - 1
	if have := l.next(); have != 1 {
		t.Errorf("after the last sequence number: have %d, want 1", have)
	}
}

type pipe struct{ net.Conn }

func (pipe) FlushInput() error { return nil }

// TestNoRandomness refuses a link rather than start with a number that can be guessed, and closes the port.
func TestNoRandomness(t *testing.T) {
	host, dev := net.Pipe()
	if _, err := NewLink(pipe{host}, DefaultTiming(), bytes.NewReader(nil), &counters{}); err == nil {
		t.Fatal("link without randomness")
	}
	if _, err := dev.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("port left open: %v", err)
	}
}
