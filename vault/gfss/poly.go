package gfss

import (
	"encoding/binary"

	"github.com/sledvault/sledvault/vault/secret"
)

// block is how many words are worked on together: 32 bytes, a whole rack secret.
const block = 4

// evaluate writes the values at x of the polynomials whose constant terms are sec and whose other coefficients are co,
// degree by degree (Horner's rule). out, sec and each degree in co have one length.
func evaluate(out, sec, co []byte, x byte, k int) {
	length, bits := len(sec), width(x)
	for at := 0; at < length; at += 8 * block {
		var acc [block]word
		for degree := k - 1; degree >= 0; degree-- {
			term := sec
			if degree > 0 {
				term = co[(degree-1)*length : degree*length]
			}
			for i, t := range load(term[at:]) {
				acc[i] = scale(acc[i], x, bits) ^ t
			}
		}
		store(out[at:], acc)
	}
}

// interpolate gives the value at x of the polynomials of least degree through all shares. The shares were checked.
func interpolate[K secret.Kind](a secret.Allocator, shares []Share, x byte) (secret.Bytes[K], error) {
	weights := basis(shares, x)
	return secret.New[K](a, shares[0].Y.Len(), func(out []byte) error {
		for i, s := range shares {
			if err := s.Y.Use(func(y []byte) error { accumulate(out, y, weights[i]); return nil }); err != nil {
				return err
			}
		}
		return nil
	})
}

// accumulate adds weight·y to out.
func accumulate(out, y []byte, weight byte) {
	for at := 0; at < len(y); at += 8 * block {
		sum, in := load(out[at:]), load(y[at:])
		for i, w := range in {
			sum[i] ^= scale(w, weight, 8)
		}
		store(out[at:], sum)
	}
}

// basis gives Lagrange's weight of each share for the target x. It depends on share numbers only, eight per word.
func basis(shares []Share, x byte) []byte {
	weights := make([]byte, 0, len(shares)+7)
	for from := 0; from < len(shares); from += 8 {
		own, num, den := word(0), ones, ones
		for lane, s := range shares[from:min(from+8, len(shares))] {
			own |= word(s.X) << (8 * lane)
		}
		for j, s := range shares {
			above, below := spread(x^s.X), own^spread(s.X)
			if lane := j - from; lane >= 0 && lane < 8 { // a share takes no part in its own weight
				mask := word(0xff) << (8 * lane)
				above, below = above&^mask|ones&mask, below&^mask|ones&mask
			}
			num, den = mul(num, above), mul(den, below)
		}
		weights = binary.LittleEndian.AppendUint64(weights, mul(num, invert(den)))
	}
	return weights[:len(shares)]
}

// load reads up to 32 bytes as words; what is missing is 0.
func load(b []byte) (w [block]word) {
	if len(b) >= 8*block {
		for i := range w {
			w[i] = binary.LittleEndian.Uint64(b[8*i:])
		}
		return w
	}
	for i, v := range b {
		w[i/8] |= word(v) << (8 * (i % 8))
	}
	return w
}

// store writes words to up to 32 bytes.
func store(b []byte, w [block]word) {
	if len(b) >= 8*block {
		for i := range w {
			binary.LittleEndian.PutUint64(b[8*i:], w[i])
		}
		return
	}
	for i := range b {
		b[i] = byte(w[i/8] >> (8 * (i % 8)))
	}
}
