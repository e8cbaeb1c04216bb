package simsp

import (
	"bytes"
	"math/rand/v2"
	"time"

	"github.com/sledvault/sledvault/sp/frame"
)

// Mode is how a service processor is dead.
type Mode uint8

// The modes.
const (
	Alive Mode = iota
	Mute       // reads, but never answers; idle zeros go on if configured
	Deaf       // does not even read: the line's flow control closes
)

// Faults is what goes wrong. The zero value is a perfect line.
type Faults struct {
	Mode           Mode
	Stale          []byte          // on the line before anything else
	DecodeFailures int             // so many requests are answered with a DecodeFailure
	DecodeReason   frame.Reason    // the reason they give
	Unknown        []frame.Command // commands that this firmware does not know
	Version        uint32          // header version of replies, if not 0
	IdentityGrowth int             // bytes that the identity is longer (or, below 0, shorter)
	RestartAt      int             // the n-th answered request meets a crash; 0 never
	NeverAcks      bool            // AckSpStart does not clear the restarted bit: a crash loop
	Delay          time.Duration   // before each of the first Delayed replies
	Delayed        int
	Filters        []Filter // applied in order to every packet
}

// Filter spoils one packet. n counts packets from 0; wire is the 00, the frame and its terminator. The result is
// written piece by piece. A filter must not keep or change wire.
type Filter func(rng *rand.Rand, n int, wire []byte) [][]byte

// First limits a filter to the first count packets.
func First(count int, f Filter) Filter {
	return func(rng *rand.Rand, n int, wire []byte) [][]byte {
		if n < count {
			return f(rng, n, wire)
		}
		return [][]byte{wire}
	}
}

// Only limits a filter to packet number k.
func Only(k int, f Filter) Filter {
	return func(rng *rand.Rand, n int, wire []byte) [][]byte {
		if n == k {
			return f(rng, n, wire)
		}
		return [][]byte{wire}
	}
}

// Pieces delivers a packet in pieces of 1 to most bytes.
func Pieces(most int) Filter {
	return func(rng *rand.Rand, _ int, wire []byte) (out [][]byte) {
		for len(wire) > 0 {
			k := min(len(wire), 1+rng.IntN(most))
			out, wire = append(out, wire[:k]), wire[k:]
		}
		return out
	}
}

// SplitAt delivers a packet in two pieces.
func SplitAt(i int) Filter {
	return func(_ *rand.Rand, _ int, wire []byte) [][]byte {
		k := min(i, len(wire))
		return [][]byte{wire[:k], wire[k:]}
	}
}

// edit makes a filter from a function that changes a copy; positions wrap around the packet.
func edit(i int, f func(wire []byte, i int) []byte) Filter {
	return func(_ *rand.Rand, _ int, wire []byte) [][]byte {
		return [][]byte{f(bytes.Clone(wire), i%len(wire))}
	}
}

// FlipBit inverts bit number i of a packet.
func FlipBit(i int) Filter {
	return edit(i/8, func(w []byte, k int) []byte { w[k] ^= 1 << (i % 8); return w })
}

// DropByte loses byte i.
func DropByte(i int) Filter {
	return edit(i, func(w []byte, k int) []byte { return append(w[:k], w[k+1:]...) })
}

// DoubleByte repeats byte i.
func DoubleByte(i int) Filter {
	return edit(i, func(w []byte, k int) []byte { return append(w[:k+1], bytes.Clone(w[k:])...) })
}

// InsertZero puts a 00 in front of byte i.
func InsertZero(i int) Filter {
	return edit(i, func(w []byte, k int) []byte { return append(w[:k:k], append([]byte{0}, w[k:]...)...) })
}

// DropTerminator loses the 00 at the end.
func DropTerminator() Filter {
	return func(_ *rand.Rand, _ int, wire []byte) [][]byte { return [][]byte{wire[:len(wire)-1]} }
}

// Lose loses the whole packet.
func Lose() Filter {
	return func(*rand.Rand, int, []byte) [][]byte { return nil }
}

// Noise puts length random bytes in front of a packet. Without zeros they glue together to one broken frame.
func Noise(length int, zeros bool) Filter {
	return func(rng *rand.Rand, _ int, wire []byte) [][]byte {
		return [][]byte{noise(rng, length, zeros), wire}
	}
}

// Overlong puts length bytes without any terminator in front of a packet.
func Overlong(length int) Filter {
	return func(_ *rand.Rand, _ int, wire []byte) [][]byte {
		return [][]byte{bytes.Repeat([]byte{0xaa}, length), wire}
	}
}

func noise(rng *rand.Rand, length int, zeros bool) []byte {
	out := make([]byte, length)
	for i := range out {
		out[i] = byte(rng.Uint32())
		if out[i] == 0 && !zeros {
			out[i] = 1
		}
	}
	return out
}

// wrap encodes a reply and passes it through the filters. The caller holds the lock.
func (s *SP) wrap(r frame.Reply) []unit {
	pieces := [][]byte{s.encode(r)}
	n := s.replies
	s.replies++
	for _, f := range s.cfg.Faults.Filters {
		var next [][]byte
		for i, p := range pieces {
			if len(p) == 0 {
				continue
			}
			if i == len(pieces)-1 { // earlier pieces are noise or already cut
				next = append(next, f(s.rng, n, p)...)
			} else {
				next = append(next, p)
			}
		}
		pieces = next
	}
	var out []unit
	for _, p := range pieces {
		if len(p) > 0 {
			out = append(out, unit{bytes: p})
		}
	}
	if len(out) > 0 && n < s.cfg.Faults.Delayed {
		out[0].wait = s.cfg.Faults.Delay
	}
	return out
}
