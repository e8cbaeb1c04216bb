package ledger

import (
	"errors"
	"io"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/sledvault/sledvault/vault/secret"
)

// Flags are the first byte of the plaintext, so that they are authenticated with it.
const flagSingle = 1 // the other medium could not be written in the same save

var errOpen = errors.New("ledger: ciphertext does not open: altered, or made under another key, sled, rack or sequence")

// encrypt fills nonce and ciphertext from flags and state.
func (f *File) encrypt(a secret.Allocator, rand io.Reader, key secret.SealKey, flags byte, state secret.Plaintext) error {
	if _, err := io.ReadFull(rand, f.Nonce[:]); err != nil {
		return err
	}
	plain, err := secret.New[secret.PlaintextKind](a, 1+state.Len(), func(b []byte) error {
		b[0] = flags
		return state.Use(func(s []byte) error { copy(b[1:], s); return nil })
	})
	if err != nil {
		return err
	}
	defer plain.Destroy()
	return key.Use(func(k []byte) error {
		aead, err := chacha20poly1305.NewX(k)
		if err != nil {
			return err
		}
		return plain.Use(func(p []byte) error {
			f.Ciphertext = aead.Seal(make([]byte, 0, len(p)+tagLen), f.Nonce[:], p, f.associatedData())
			return nil
		})
	})
}

// decrypt opens the ciphertext straight into a secret: flags, then state.
func (f *File) decrypt(a secret.Allocator, key secret.SealKey) (plain secret.Plaintext, err error) {
	err = key.Use(func(k []byte) error {
		aead, err := chacha20poly1305.NewX(k)
		if err != nil {
			return err
		}
		plain, err = secret.New[secret.PlaintextKind](a, len(f.Ciphertext)-tagLen, func(b []byte) error {
			if _, err := aead.Open(b[:0], f.Nonce[:], f.Ciphertext, f.associatedData()); err != nil {
				return errOpen
			}
			return nil
		})
		return err
	})
	return plain, err
}
