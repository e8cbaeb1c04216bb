package lrtq

import "filippo.io/edwards25519"

// What edwards25519 leaves behind on the stack while it computes is not wiped; docs/threat-model.md says what Go
// cannot promise about memory.

// uniform reduces 64 bytes.
func uniform(b []byte) *edwards25519.Scalar {
	s, err := edwards25519.NewScalar().SetUniformBytes(b)
	if err != nil {
		panic("lrtq: uniform: not 64 bytes") // our callers slice exactly
	}
	return s
}

// number is a share number as a scalar. It is public.
func number(x byte) *edwards25519.Scalar {
	b := [Size]byte{x}
	s, err := edwards25519.NewScalar().SetCanonicalBytes(b[:])
	if err != nil {
		panic("lrtq: a byte is a scalar")
	}
	return s
}

// put writes a scalar and wipes the copy on the way.
func put(out []byte, s *edwards25519.Scalar) {
	b := s.Bytes()
	copy(out, b)
	clear(b)
}

func wipe(s *edwards25519.Scalar) { *s = edwards25519.Scalar{} }

func wipeAll(s []edwards25519.Scalar) { clear(s) }
