package wire

import (
	"encoding/binary"

	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
)

// The CBOR major types, as the top three bits of an item's first byte.
const (
	majUint   = 0 << 5
	majNeg    = 1 << 5
	majBytes  = 2 << 5
	majText   = 3 << 5
	majArray  = 4 << 5
	majMap    = 5 << 5
	majTag    = 6 << 5
	majSimple = 7 << 5

	cborFalse = 0xf4
	cborTrue  = 0xf5
	cborNull  = 0xf6
	cborBreak = 0xff
	indefinit = 31
)

// writer appends CBOR with the shortest heads. It runs twice over a value: first it counts, then it writes into memory
// of exactly that size, so that no growing slice leaves copies of secrets behind.
type writer struct {
	b        []byte
	n        int
	counting bool
	err      *reason.Error
}

// build appends what emit writes to dst, growing dst at most once.
func build(dst []byte, limit int, emit func(*writer)) ([]byte, error) {
	n, err := measure(limit, emit)
	if err != nil {
		return nil, err
	}
	if cap(dst)-len(dst) < n {
		dst = append(make([]byte, 0, len(dst)+n), dst...)
	}
	w := writer{b: dst}
	emit(&w)
	if w.err != nil {
		clear(w.b[len(dst):])
		return nil, w.err
	}
	return w.b, nil
}

// measure returns the size of what emit writes, or why it cannot be encoded.
func measure(limit int, emit func(*writer)) (int, error) {
	w := writer{counting: true}
	emit(&w)
	switch {
	case w.err != nil:
		return 0, w.err
	case w.n > limit:
		return 0, reason.New(CodeTooLarge, "", "wire: encode: have %d bytes, want at most %d", w.n, limit)
	}
	return w.n, nil
}

func (w *writer) fail(code reason.Code, format string, args ...any) {
	if w.err == nil {
		w.err = reason.New(code, "", "wire: encode: "+format, args...)
	}
}

func (w *writer) raw(p []byte) {
	w.n += len(p)
	if !w.counting {
		w.b = append(w.b, p...)
	}
}

func (w *writer) str(s string) {
	w.n += len(s)
	if !w.counting {
		w.b = append(w.b, s...)
	}
}

func (w *writer) byte(c byte) {
	w.n++
	if !w.counting {
		w.b = append(w.b, c)
	}
}

func (w *writer) head(major byte, v uint64) {
	var b [9]byte
	switch {
	case v < 24:
		w.byte(major | byte(v))
	case v < 1<<8:
		w.byte(major | 24)
		w.byte(byte(v))
	case v < 1<<16:
		b[0] = major | 25
		binary.BigEndian.PutUint16(b[1:], uint16(v))
		w.raw(b[:3])
	case v < 1<<32:
		b[0] = major | 26
		binary.BigEndian.PutUint32(b[1:], uint32(v))
		w.raw(b[:5])
	default:
		b[0] = major | 27
		binary.BigEndian.PutUint64(b[1:], v)
		w.raw(b[:])
	}
}

func (w *writer) uint(v uint64)  { w.head(majUint, v) }
func (w *writer) array(n int)    { w.head(majArray, uint64(n)) }
func (w *writer) mapOf(n int)    { w.head(majMap, uint64(n)) }
func (w *writer) null()          { w.byte(cborNull) }
func (w *writer) text(s string)  { w.head(majText, uint64(len(s))); w.str(s) }
func (w *writer) bytes(p []byte) { w.head(majBytes, uint64(len(p))); w.raw(p) }

// key writes a field name; the value follows.
func (w *writer) key(s string) { w.text(s) }

// variant opens an enum variant with a value; the value follows.
func (w *writer) variant(name string) { w.mapOf(1); w.text(name) }

func (w *writer) int(v int64) {
	if v < 0 {
		w.head(majNeg, uint64(-1-v))
		return
	}
	w.uint(uint64(v))
}

func (w *writer) bool(v bool) {
	if v {
		w.byte(cborTrue)
		return
	}
	w.byte(cborFalse)
}

// ints writes bytes as an array of integers.
func (w *writer) ints(p []byte) {
	w.array(len(p))
	for _, c := range p {
		w.uint(uint64(c))
	}
}

const hexDigits = "0123456789abcdef"

// hex writes bytes as lower-case hex text.
func (w *writer) hex(p []byte) {
	w.head(majText, 2*uint64(len(p)))
	for _, c := range p {
		w.byte(hexDigits[c>>4])
		w.byte(hexDigits[c&15])
	}
}

// revealInts writes the bytes of a share as integers, after the given public ones. It, [writer.revealBytes] and
// [writer.revealJSON] are the only ways by which a secret leaves through this package.
func (w *writer) revealInts(s secret.Share, before ...byte) {
	w.array(s.Len() + len(before))
	for _, c := range before {
		w.uint(uint64(c))
	}
	err := s.Use(func(b []byte) error {
		for _, c := range b {
			w.uint(uint64(c))
		}
		return nil
	})
	if err != nil {
		w.fail(CodeEncode, "share is empty or destroyed")
	}
}

// revealBytes writes the bytes of a share as a byte string.
func (w *writer) revealBytes(s secret.Share) {
	if s.Use(func(b []byte) error { w.bytes(b); return nil }) != nil {
		w.fail(CodeEncode, "share is empty or destroyed")
	}
}
