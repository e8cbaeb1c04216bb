package unlock

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/sledvault/sledvault/vault/reason"
)

// The binary header of LUKS2: 4096 bytes, then JSON up to the header's size, then the same again as second copy.
const (
	binarySize = 4096
	offVersion = 6
	offSize    = 8
	offSeq     = 16
	offAlg     = 72
	offUUID    = 168
	offSelf    = 256
	offSum     = 448
	sumSize    = 64
	// maxCopy bounds one copy. The format allows 4 MiB; cryptsetup makes 16 KiB unless told otherwise.
	maxCopy = 256 << 10
	minCopy = 16 << 10
)

// How each copy begins.
const (
	magicFirst  = "LUKS\xba\xbe"
	magicSecond = "SKUL\xba\xbe"
)

var errNoCopy = errors.New("no header there")

// rawHeader is one sound copy of a header: its checksum holds, nothing else is known yet.
type rawHeader struct {
	size uint64 // of one copy in bytes
	seq  uint64
	uuid string
	bin  []byte // binarySize bytes
	json []byte // up to, not including, the zero padding
}

// readHeader finds the header copies of a device and returns the sound one with the higher sequence number. Both sizes
// and offsets are bounded before anything is read.
func readHeader(r io.ReaderAt, id string) (rawHeader, error) {
	first, err1 := readCopy(r, 0, magicFirst)
	if errors.Is(err1, errNoCopy) && !anySecond(r) {
		return rawHeader{}, describeOther(r, id)
	}
	second, err2 := findSecond(r, first, err1)
	switch {
	case err1 == nil && err2 == nil:
		if second.seq > first.seq {
			return second, nil
		}
		return first, nil
	case err1 == nil:
		return first, nil
	case err2 == nil:
		return second, nil
	}
	return rawHeader{}, reason.Wrap(err1, CodeDamaged, hintDamaged, "unlock: disk %s: neither copy of the header is sound", id)
}

func findSecond(r io.ReaderAt, first rawHeader, err error) (rawHeader, error) {
	if err == nil {
		return readCopy(r, first.size, magicSecond)
	}
	for size := uint64(minCopy); size <= maxCopy; size *= 2 {
		if h, err := readCopy(r, size, magicSecond); err == nil {
			return h, nil
		}
	}
	return rawHeader{}, errNoCopy
}

func anySecond(r io.ReaderAt) bool {
	for size := int64(minCopy); size <= maxCopy; size *= 2 {
		var m [6]byte
		if _, err := r.ReadAt(m[:], size); err == nil && string(m[:]) == magicSecond {
			return true
		}
	}
	return false
}

// readCopy reads and checks the copy at the given offset.
func readCopy(r io.ReaderAt, at uint64, magic string) (rawHeader, error) {
	bin := make([]byte, binarySize)
	if _, err := r.ReadAt(bin, int64(at)); err != nil {
		return rawHeader{}, fmt.Errorf("%w: %v", errNoCopy, err)
	}
	if string(bin[:6]) != magic {
		return rawHeader{}, errNoCopy
	}
	if v := binary.BigEndian.Uint16(bin[offVersion:]); v != 2 {
		return rawHeader{}, fmt.Errorf("%w: LUKS version: have %d, want 2", errNoCopy, v)
	}
	h := rawHeader{size: binary.BigEndian.Uint64(bin[offSize:]), seq: binary.BigEndian.Uint64(bin[offSeq:]), bin: bin}
	if h.size < minCopy || h.size > maxCopy || h.size&(h.size-1) != 0 {
		return rawHeader{}, fmt.Errorf("header size: have %d, want a power of two from %d to %d", h.size, minCopy, maxCopy)
	}
	if self := binary.BigEndian.Uint64(bin[offSelf:]); self != at {
		return rawHeader{}, fmt.Errorf("header offset: have %d, want %d", self, at)
	}
	if alg := text(bin[offAlg : offAlg+32]); alg != "sha256" {
		return rawHeader{}, fmt.Errorf("header checksum: have %.32q, want sha256", alg)
	}
	area := make([]byte, h.size-binarySize)
	if _, err := r.ReadAt(area, int64(at)+binarySize); err != nil {
		return rawHeader{}, fmt.Errorf("header area: %v", err)
	}
	if sum := checksum(bin, area); subtle.ConstantTimeCompare(sum[:], bin[offSum:offSum+sha256.Size]) != 1 {
		return rawHeader{}, errors.New("header checksum mismatch")
	}
	end := bytes.IndexByte(area, 0)
	if end < 0 || slices.ContainsFunc(area[end:], func(b byte) bool { return b != 0 }) {
		return rawHeader{}, errors.New("metadata is not padded with zeros")
	}
	h.json, h.uuid = area[:end], text(bin[offUUID:offUUID+40])
	return h, nil
}

// checksum is SHA-256 over a copy with its checksum field zeroed.
func checksum(bin, area []byte) [sha256.Size]byte {
	var zero [sumSize]byte
	h := sha256.New()
	h.Write(bin[:offSum])
	h.Write(zero[:])
	h.Write(bin[offSum+sumSize:])
	h.Write(area)
	return [sha256.Size]byte(h.Sum(nil))
}

// text reads a zero-padded field.
func text(b []byte) string {
	s, _, _ := bytes.Cut(b, []byte{0})
	return string(s)
}

// describeOther says what is there instead of LUKS2.
func describeOther(r io.ReaderAt, id string) error {
	if name := signature(r); name != "" {
		return reason.New(CodeNotLUKS2, hintNotLUKS2, "unlock: disk %s: not LUKS2: have %s", id, name)
	}
	return reason.New(CodeUnformatted, hintUnformat, "unlock: disk %s: no encryption header", id)
}
