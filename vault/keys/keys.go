// Package keys goes from rack secrets to the keys of disks.
//
// It makes rack secrets, carries older ones encrypted under a newer one (protocol.md §3), and derives one key per disk
// and epoch (protocol.md §4, disk.go). It refuses records that are out of order or doubled, epochs that are not older
// than the configuration's own, and disks that name themselves with nothing.
//
// It stores nothing. Temporaries are wiped as far as the standard library lets go of them; the state inside HMAC and
// ChaCha20-Poly1305 stays until the heap is reused. Next: vault/quorum, which decides when a secret may exist.
package keys

import (
	"crypto/sha3"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/secret"
)

// Size is the length in bytes of rack secrets, salts, pseudo-random keys and disk keys.
const Size = 32

// ErrRandom says that the source of randomness gave only zeros.
var ErrRandom = errors.New("keys: rack secret: the source of randomness gives zeros only")

// maxDraws bounds the redraws of a rack secret. A second draw happens once in 2^256 if the source is sound.
const maxDraws = 4

// NewRackSecret draws the secret of a new epoch: 32 bytes from rand, drawn again while all of them are zero.
func NewRackSecret(a secret.Allocator, rand io.Reader) (secret.RackSecret, error) {
	return secret.New[secret.RackSecretKind](a, Size, func(b []byte) error {
		for range maxDraws {
			if _, err := io.ReadFull(rand, b); err != nil {
				return fmt.Errorf("keys: rack secret: %w", err)
			}
			if !isZero(b) {
				return nil
			}
		}
		return ErrRandom
	})
}

// isZero looks at all bytes whatever they hold.
func isZero(b []byte) bool {
	var or byte
	for _, v := range b {
		or |= v
	}
	return subtle.ConstantTimeByteEq(or, 0) == 1
}

// Salt is the salt of all disk keys of a rack: SHA3-256 of the 16 bytes of its id, so that disks can move between sleds.
func Salt(rack ident.RackID) [Size]byte { return sha3.Sum256(rack[:]) }

// NewPRK extracts the pseudo-random key of an epoch from its rack secret. A rack secret has 32 bytes ([secret.ErrLength]).
func NewPRK(a secret.Allocator, s secret.RackSecret, salt [Size]byte) (out secret.PRK, err error) {
	err = s.Use(func(ikm []byte) error {
		if len(ikm) != Size {
			return fmt.Errorf("keys: extract: %w: have %d bytes, want %d", secret.ErrLength, len(ikm), Size)
		}
		out, err = secret.Take[secret.PRKKind](a, extract(ikm, salt[:]))
		return err
	})
	return out, err
}
