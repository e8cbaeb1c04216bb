package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/sledvault/sledvault/vault/reason"
)

// MaxPayload is the largest payload of a frame in bytes: with its length it fills the reference's buffer of 1 MiB.
const MaxPayload = 1<<20 - headerSize

const (
	headerSize = 4
	// firstRead is how much memory a length alone can make us take; the rest follows as bytes arrive.
	firstRead = 64 << 10
)

func tooLarge(n uint64) error {
	return reason.New(CodeTooLarge, hintPeer, "wire: frame: have %d bytes, want at most %d", n, MaxPayload)
}

// AppendFrame appends a complete frame: length (4 bytes, big-endian, of the payload only), payload. The frame of a
// Prepare or of a share holds secret bytes: the caller wipes it after writing.
func AppendFrame(dst []byte, m Msg) ([]byte, error) {
	start := len(dst)
	return build(dst, headerSize+MaxPayload, func(w *writer) {
		w.raw([]byte{0, 0, 0, 0})
		w.msg(m)
		if !w.counting {
			binary.BigEndian.PutUint32(w.b[start:], uint32(len(w.b)-start-headerSize))
		}
	})
}

// ReadFrame reads one frame and returns its payload, which lies in buf if it fits. The end of the stream between two
// frames is io.EOF; other read errors are wrapped. A payload may hold secret bytes: the caller wipes buf and payload.
func ReadFrame(r io.Reader, buf []byte) ([]byte, error) { return readFrame(r, buf, MaxPayload) }

// ReadLRTQFrame is [ReadFrame] for a connection of the older scheme, whose frames are smaller.
func ReadLRTQFrame(r io.Reader, buf []byte) ([]byte, error) { return readFrame(r, buf, MaxLRTQPayload) }

func readFrame(r io.Reader, buf []byte, limit uint32) ([]byte, error) {
	var head [headerSize]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		if err == io.EOF {
			return nil, io.EOF
		}
		return nil, readError("length", err)
	}
	n := binary.BigEndian.Uint32(head[:])
	switch {
	case n == 0:
		return nil, reason.New(CodeEmptyFrame, hintPeer, "wire: frame: have 0 bytes, want at least 1")
	case n > limit:
		return nil, reason.New(CodeTooLarge, hintPeer, "wire: frame: have %d bytes, want at most %d", n, limit)
	}
	return readPayload(r, buf, int(n))
}

// readPayload grows its memory as bytes arrive, so that a length alone costs little, and wipes what it leaves behind.
func readPayload(r io.Reader, buf []byte, n int) ([]byte, error) {
	p := buf[:0]
	for len(p) < n {
		if len(p) == cap(p) {
			grown := append(make([]byte, 0, min(n, max(firstRead, 2*cap(p)))), p...)
			clear(p)
			p = grown
		}
		have := len(p)
		p = p[:min(n, cap(p))]
		if _, err := io.ReadFull(r, p[have:]); err != nil {
			clear(p)
			return nil, readError("payload", err)
		}
	}
	return p, nil
}

func readError(part string, err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return reason.Wrap(io.ErrUnexpectedEOF, CodeShort, "", "wire: frame: the stream ends inside a %s", part)
	}
	return fmt.Errorf("wire: frame: read %s: %w", part, err)
}
