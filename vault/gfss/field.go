package gfss

import "math/bits"

// A word holds eight field elements, one per byte. All arithmetic runs on whole words: the time of an operation
// depends on the number of words and on share numbers, which are public, never on what a byte holds.
//
// The field is GF(2^8) with the polynomial x^8 + x^4 + x^3 + x + 1 (protocol.md §2).
type word = uint64

const (
	ones   word = 0x0101010101010101 // the element 1 in every byte
	tops   word = ones << 7          // the highest bit of every byte
	reduce word = 0x1b               // what x^8 is worth, without the bit that falls off
)

// spread puts the element b into every byte of a word.
func spread(b byte) word { return word(b) * ones }

// double multiplies every byte by x.
func double(a word) word {
	high := a & tops
	return (a^high)<<1 ^ (high>>7)*reduce
}

// mul multiplies byte by byte.
func mul(a, b word) (p word) {
	for range 8 {
		low := b & ones
		p ^= a & (low<<8 - low) // all ones in each byte whose lowest bit in b is set
		a = double(a)
		b >>= 1 // bits that cross a byte border are not looked at before round 8
	}
	return p
}

// scale multiplies every byte of a by the element x, using the lowest n bits of x. n is public.
func scale(a word, x byte, n int) (p word) {
	for i := n - 1; i >= 0; i-- {
		p = double(p) ^ a&-(word(x)>>i&1)
	}
	return p
}

// invert gives the inverse of every byte, a^254; the inverse of 0 is 0.
func invert(a word) word {
	a2 := mul(a, a)
	a4 := mul(a2, a2)
	a8 := mul(a4, a4)
	a9 := mul(a8, a)
	a16 := mul(a8, a8)
	a25 := mul(a16, a9)
	a50 := mul(a25, a25)
	a100 := mul(a50, a50)
	a200 := mul(a100, a100)
	a250 := mul(a200, a50)
	return mul(a250, a4)
}

// width is the number of bits that matter in the public share number x.
func width(x byte) int { return bits.Len8(x) }
