package enroll

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/sledvault/sledvault/vault/secret"
)

// Key is a membership key or a recovery key. It signs, and shows nothing of itself but its public half. It implements
// [crypto.Signer].
type Key struct {
	seed   secret.Seed
	public ed25519.PublicKey
}

var errKeyEncode = errors.New("enroll: refused to encode a private key")

// NewKey makes a key from 32 bytes of randomness.
func NewKey(a secret.Allocator, rand io.Reader) (Key, error) {
	seed, err := secret.Random[secret.SeedKind](a, rand, ed25519.SeedSize)
	if err != nil {
		return Key{}, fmt.Errorf("enroll: new key: %w", err)
	}
	return keyOf(seed)
}

func keyOf(seed secret.Seed) (Key, error) {
	k := Key{seed: seed}
	err := seed.Use(func(b []byte) error {
		priv := ed25519.NewKeyFromSeed(b)
		defer clear(priv)
		k.public = bytes.Clone(priv[ed25519.SeedSize:])
		return nil
	})
	return k, err
}

// Public returns the public half, an [ed25519.PublicKey].
func (k Key) Public() crypto.PublicKey { return k.public }

// PublicKey returns the public half.
func (k Key) PublicKey() ed25519.PublicKey { return k.public }

// Sign implements [crypto.Signer] for messages that are not hashed before.
func (k Key) Sign(_ io.Reader, message []byte, opts crypto.SignerOpts) (sig []byte, err error) {
	if opts != nil && opts.HashFunc() != crypto.Hash(0) {
		return nil, refuse(CodeKey, "", "sign: want a message, not a digest")
	}
	err = k.seed.Use(func(b []byte) error {
		priv := ed25519.NewKeyFromSeed(b)
		defer clear(priv)
		sig = ed25519.Sign(priv, message)
		return nil
	})
	return sig, err
}

// Destroy wipes the private half.
func (k Key) Destroy() { k.seed.Destroy() }

// Format prints the fingerprint, for every verb.
func (k Key) Format(f fmt.State, _ rune) { _, _ = fmt.Fprintf(f, "key %s", Fingerprint(k.public)) }

// MarshalText refuses.
func (k Key) MarshalText() ([]byte, error) { return nil, errKeyEncode }

// MarshalBinary refuses.
func (k Key) MarshalBinary() ([]byte, error) { return nil, errKeyEncode }

const fingerprintPrefix = "sha256:"

// Fingerprint is the text form of a public key's SHA-256: "sha256:" and 64 lower-case hex digits.
func Fingerprint(key ed25519.PublicKey) string { return FingerprintOf(sha256.Sum256(key)) }

// FingerprintOf is the text form of the SHA-256 of a public key.
func FingerprintOf(digest [32]byte) string { return fingerprintPrefix + hex.EncodeToString(digest[:]) }

// ParseFingerprint checks a fingerprint that a person wrote and returns it in the form of [Fingerprint].
func ParseFingerprint(s string) (string, error) {
	digits := strings.ToLower(strings.TrimPrefix(strings.TrimSpace(s), fingerprintPrefix))
	if b, err := hex.DecodeString(digits); err != nil || len(b) != sha256.Size {
		return "", refuse(CodeFingerprint, "copy it from the output of sledvault rack new", "fingerprint: have %.90q, want %q and 64 hex digits", s, fingerprintPrefix)
	}
	return fingerprintPrefix + digits, nil
}
