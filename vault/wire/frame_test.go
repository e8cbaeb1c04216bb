package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	"github.com/sledvault/sledvault/vault/reason"
)

func frameOf(n uint32, payload []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, n), payload...)
}

func TestReadFrame(t *testing.T) {
	t.Parallel()
	large := bytes.Repeat([]byte{7}, MaxPayload)
	for _, c := range []struct {
		name string
		in   []byte
		size int
		code reason.Code
		eof  bool
	}{
		{"small", frameOf(3, []byte("abc")), 3, "", false},
		{"largest", frameOf(MaxPayload, large), MaxPayload, "", false},
		{"too large", frameOf(MaxPayload+1, append(large, 0)), 0, CodeTooLarge, false},
		{"huge", frameOf(1<<32-1, nil), 0, CodeTooLarge, false},
		{"empty", frameOf(0, nil), 0, CodeEmptyFrame, false},
		{"end", nil, 0, "", true},
		{"half a length", []byte{0, 0}, 0, CodeShort, false},
		{"half a payload", frameOf(3, []byte("ab")), 0, CodeShort, false},
		{"no payload", frameOf(3, nil), 0, CodeShort, false},
		{"much missing", frameOf(MaxPayload, large[:100<<10]), 0, CodeShort, false},
	} {
		for _, buf := range [][]byte{nil, make([]byte, 2), make([]byte, MaxPayload)} {
			for _, r := range []io.Reader{bytes.NewReader(c.in), iotest.HalfReader(bytes.NewReader(c.in))} {
				p, err := ReadFrame(r, buf)
				if len(p) != c.size || reason.CodeOf(err) != c.code || errors.Is(err, io.EOF) != c.eof {
					t.Errorf("%s: have %d bytes, %v; want %d, %q", c.name, len(p), err, c.size, c.code)
				}
				if c.code == "" && !c.eof && !bytes.Equal(p, c.in[4:]) {
					t.Errorf("%s: payload differs", c.name)
				}
			}
		}
	}
	cause := errors.New("deadline")
	if _, err := ReadFrame(iotest.ErrReader(cause), nil); !errors.Is(err, cause) {
		t.Errorf("have %v, want the reader's error", err)
	}
}

// greedy notes the largest piece that it is asked for.
type greedy struct {
	r    io.Reader
	most int
}

func (g *greedy) Read(p []byte) (int, error) {
	g.most = max(g.most, len(p))
	return g.r.Read(p)
}

// TestFrameMemory checks that a length alone makes nobody allocate.
func TestFrameMemory(t *testing.T) {
	t.Parallel()
	r := &greedy{r: bytes.NewReader(frameOf(MaxPayload, nil))}
	if _, err := ReadFrame(r, nil); reason.CodeOf(err) != CodeShort || r.most > firstRead {
		t.Errorf("have %v and a piece of %d bytes, want at most %d", err, r.most, firstRead)
	}
}
