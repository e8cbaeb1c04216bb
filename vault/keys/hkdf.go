package keys

import "crypto/sha3"

// HKDF (RFC 5869) over HMAC-SHA3-256, as crypto/hkdf computes it. The library's leaves its last block, which is the key
// itself, on the heap, where it stays until something else is put there: a search of a daemon's memory found it.
// These wipe what they make, on the heap and, as far as Go lets them, on the stack.

// blockSize is what HMAC pads its key to: the rate of SHA3-256.
const blockSize = 136

// burnSize is more stack than the hashing below uses.
const burnSize = 16 << 10

// extract is HKDF-Extract. The caller owns, and wipes, the result.
func extract(ikm, salt []byte) []byte { return derive(salt, ikm, nil) }

// expand is HKDF-Expand for one block of Size bytes. The caller owns, and wipes, the result.
func expand(prk []byte, info string) []byte { return derive(prk, []byte(info), []byte{1}) }

// derive makes room on the stack first, so that what is written there stays where burn finds it.
func derive(key, a, b []byte) []byte {
	out := make([]byte, 0, Size)
	burn()
	out = hmac(out, key, a, b)
	burn()
	return out
}

// hmac appends HMAC-SHA3-256(key, a ‖ b) to out, which must have room for it.
//
//go:noinline
func hmac(out, key, a, b []byte) []byte {
	var pad [blockSize]byte
	var inner [Size]byte
	h := sha3.New256()
	if len(key) > blockSize {
		_, _ = h.Write(key)
		h.Sum(pad[:0])
		h.Reset()
	} else {
		copy(pad[:], key)
	}
	xor(pad[:], 0x36)
	_, _ = h.Write(pad[:])
	_, _ = h.Write(a)
	_, _ = h.Write(b)
	h.Sum(inner[:0])
	h.Reset()
	xor(pad[:], 0x36^0x5c)
	_, _ = h.Write(pad[:])
	_, _ = h.Write(inner[:])
	out = h.Sum(out)
	h.Reset() // zeroes the sponge
	wipe(pad[:])
	wipe(inner[:])
	return out
}

func xor(b []byte, v byte) {
	for i := range b {
		b[i] ^= v
	}
}

// wipe is not inlined, so that the compiler cannot see that nobody reads what it writes.
//
//go:noinline
func wipe(b []byte) { clear(b) }

// burn writes over the stack below its caller.
//
//go:noinline
func burn() {
	var b [burnSize]byte
	wipe(b[:])
}
