package enroll

import (
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/subtle"

	"github.com/sledvault/sledvault/vault/secret"
)

// The recovery key on paper (enrolment.md §6): 32 bytes and 3 bytes of checksum as 56 characters of Crockford's base 32,
// in groups of four. Digits that look like letters are read as digits.
const (
	recoveryAlphabet = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
	recoveryDomain   = "sledvault/recovery/v1"
	recoverySum      = 3
	recoveryChars    = (ed25519.SeedSize + recoverySum) * 8 / 5
	recoveryGroup    = 4
)

func recoveryChecksum(seed []byte) []byte {
	h := sha256.New()
	h.Write([]byte(recoveryDomain))
	h.Write(seed)
	return h.Sum(nil)[:recoverySum]
}

// RecoveryText writes a key for printing: fourteen groups of four characters with dashes between. The caller shows it
// once and wipes it.
func RecoveryText(k Key) ([]byte, error) {
	out := make([]byte, 0, recoveryChars+recoveryChars/recoveryGroup)
	err := k.seed.Use(func(seed []byte) error {
		var acc uint32
		var bits, n int
		for i := range ed25519.SeedSize + recoverySum {
			var c byte
			if i < ed25519.SeedSize {
				c = seed[i]
			} else {
				c = recoveryChecksum(seed)[i-ed25519.SeedSize]
			}
			acc, bits = acc<<8|uint32(c), bits+8
			for ; bits >= 5; n++ {
				if n > 0 && n%recoveryGroup == 0 {
					out = append(out, '-')
				}
				bits -= 5
				out = append(out, recoveryAlphabet[acc>>bits&31])
			}
		}
		return nil
	})
	return out, err
}

// ParseRecovery reads what a person typed: any case, blanks and dashes anywhere, O for 0, I and L for 1. It does not say
// which character is wrong. The caller wipes the text.
func ParseRecovery(a secret.Allocator, text []byte) (Key, error) {
	var buf [ed25519.SeedSize + recoverySum]byte
	defer clear(buf[:])
	bad := refuse(CodeRecovery, "compare every group of four with the printed key", "recovery key: mistyped")
	var acc uint32
	var bits, n, at int
	for _, c := range text {
		if c == ' ' || c == '-' || c == '\n' || c == '\r' || c == '\t' {
			continue
		}
		v, ok := recoveryDigit(c)
		if !ok || n == recoveryChars {
			return Key{}, bad
		}
		n++
		acc, bits = acc<<5|uint32(v), bits+5
		if bits >= 8 {
			bits -= 8
			buf[at] = byte(acc >> bits)
			at++
		}
	}
	if n != recoveryChars || subtle.ConstantTimeCompare(buf[ed25519.SeedSize:], recoveryChecksum(buf[:ed25519.SeedSize])) != 1 {
		return Key{}, bad
	}
	seed, err := secret.Take[secret.SeedKind](a, buf[:ed25519.SeedSize])
	if err != nil {
		return Key{}, err
	}
	return keyOf(seed)
}

func recoveryDigit(c byte) (byte, bool) {
	if 'a' <= c && c <= 'z' {
		c -= 'a' - 'A'
	}
	switch c {
	case 'O':
		c = '0'
	case 'I', 'L':
		c = '1'
	}
	for i := range len(recoveryAlphabet) {
		if recoveryAlphabet[i] == c {
			return byte(i), true
		}
	}
	return 0, false
}
