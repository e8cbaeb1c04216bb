package frame

import (
	"bytes"
	"errors"
)

// ErrCOBS says that a frame's run codes point beyond its end.
var ErrCOBS = errors.New("frame: encoding: run longer than the frame")

// Checksum is Fletcher-16 modulo 255 with both sums reduced to 0..254 (sp-wire.md §2.2). It detects accidents, but
// cannot see a 00 that became ff or the reverse.
func Checksum(p []byte) uint16 {
	var a, b uint32
	for len(p) > 0 {
		// 4096 steps cannot overflow 32 bits, and every message is shorter than two such blocks.
		n := min(len(p), 4096)
		for _, x := range p[:n] {
			a += uint32(x)
			b += a
		}
		a, b = a%255, b%255
		p = p[n:]
	}
	return uint16(b<<8 | a)
}

// AppendCOBS appends the zero-free form of msg, without a terminator (sp-wire.md §2.3). A message that ends with a
// full run ends there, as the service processor writes it.
func AppendCOBS(dst, msg []byte) []byte {
	for {
		run := min(len(msg), maxRun)
		zero := bytes.IndexByte(msg[:run], 0)
		if zero >= 0 {
			run = zero
		}
		dst = append(append(dst, byte(run+1)), msg[:run]...)
		msg = msg[run:]
		switch {
		case zero >= 0:
			msg = msg[1:] // implied by the code; what follows needs a code of its own, even if it is empty
		case len(msg) == 0:
			return dst
		}
	}
}

// DecodeCOBS appends the message in a frame (terminator removed) to dst. Both legal forms of a final full run are
// accepted. The result is never longer than the frame.
func DecodeCOBS(dst, frame []byte) ([]byte, error) {
	for i := 0; i < len(frame); {
		code := int(frame[i])
		if code == 0 || i+code > len(frame) {
			return dst, ErrCOBS
		}
		dst = append(dst, frame[i+1:i+code]...)
		i += code
		if code != maxRun+1 && i < len(frame) {
			dst = append(dst, 0)
		}
	}
	return dst, nil
}
