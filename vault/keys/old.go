package keys

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/secret"
)

// OldSecrets are the rack secrets of older committed epochs.
type OldSecrets map[ident.Epoch]secret.RackSecret

// Epochs lists the epochs, oldest first.
func (o OldSecrets) Epochs() []ident.Epoch { return slices.Sorted(maps.Keys(o)) }

// Clone copies all secrets into new pages; if one fails, none remain.
func (o OldSecrets) Clone(a secret.Allocator) (OldSecrets, error) {
	out := make(OldSecrets, len(o))
	for _, e := range o.Epochs() {
		s, err := o[e].Clone(a)
		if err != nil {
			out.Destroy()
			return nil, fmt.Errorf("keys: clone secret of epoch %d: %w", e, err)
		}
		out[e] = s
	}
	return out, nil
}

// Destroy wipes all secrets and empties the map. It may be called again.
func (o OldSecrets) Destroy() {
	for _, s := range o {
		s.Destroy()
	}
	clear(o)
}

// EncryptedSecrets carry older rack secrets inside a configuration. They are public.
type EncryptedSecrets struct {
	Salt [Size]byte
	Data []byte // 40 bytes per record and a tag of 16
}

// DecryptError says why older secrets could not be read. Its value is the stable name that alarms carry.
type DecryptError string

// The reasons of [Decrypt]. The first two are the reference's, the third is what it accepts or dies of and we refuse.
const (
	ErrAEAD          DecryptError = "aead"
	ErrInvalidLength DecryptError = "invalid_length"
	ErrEpochOrder    DecryptError = "epoch_order"
)

// Name is the stable name.
func (e DecryptError) Name() string { return string(e) }

func (e DecryptError) Error() string {
	switch e {
	case ErrAEAD:
		return "keys: decrypt older secrets: not encrypted under this secret, rack and epoch, or changed"
	case ErrInvalidLength:
		return "keys: decrypt older secrets: length is not a whole number of records"
	case ErrEpochOrder:
		return "keys: decrypt older secrets: epochs are not ascending or not older than the configuration's"
	}
	return fmt.Sprintf("keys: decrypt older secrets: unknown reason %.40q", string(e))
}

// What [Encrypt] refuses.
var (
	ErrNoSecrets = errors.New("keys: encrypt older secrets: there are none")
	ErrNotOlder  = errors.New("keys: encrypt older secrets: epoch is not older than the configuration's")
	ErrTooMany   = errors.New("keys: older secrets: too many")
	ErrZeroKey   = errors.New("keys: derived key is all zero")
)

// MaxOldSecrets bounds the records of one configuration: they only grow, by one per membership change.
const MaxOldSecrets = 4096

const (
	recordSize = 8 + Size
	// secretsInfo begins the context of the derivation; the rack id (16 bytes) and the epoch (8, big-endian) follow.
	secretsInfo = "trust-quorum-v1-rack-secrets"
)

// Encrypt encrypts the secrets of older epochs under the secret of a new one, for its configuration (protocol.md §3).
// It reads 32 bytes from rand, the salt. At least one secret, at most [MaxOldSecrets], all of older epochs.
//
// The nonce is constant: a pair of new secret and epoch encrypts under one salt once, so no key is used twice.
func Encrypt(rand io.Reader, newSecret secret.RackSecret, rack ident.RackID, epoch ident.Epoch, old map[ident.Epoch]secret.RackSecret) (EncryptedSecrets, error) {
	switch {
	case len(old) == 0:
		return EncryptedSecrets{}, ErrNoSecrets
	case len(old) > MaxOldSecrets:
		return EncryptedSecrets{}, fmt.Errorf("%w: have %d, want at most %d", ErrTooMany, len(old), MaxOldSecrets)
	}
	for _, e := range OldSecrets(old).Epochs() {
		if e >= epoch {
			return EncryptedSecrets{}, fmt.Errorf("%w: have %d, want less than %d", ErrNotOlder, e, epoch)
		}
	}
	var salt [Size]byte
	if _, err := io.ReadFull(rand, salt[:]); err != nil {
		return EncryptedSecrets{}, fmt.Errorf("keys: encrypt older secrets: read salt: %w", err)
	}
	return encryptDerandomized(salt, newSecret, rack, epoch, old)
}

func encryptDerandomized(salt [Size]byte, newSecret secret.RackSecret, rack ident.RackID, epoch ident.Epoch, old OldSecrets) (out EncryptedSecrets, err error) {
	// The records are encrypted where they are written, so a finished buffer holds no plaintext.
	n := recordSize * len(old)
	data := make([]byte, n, n+chacha20poly1305.Overhead)
	defer func() {
		if err != nil {
			clear(data)
		}
	}()
	for i, e := range old.Epochs() {
		record := data[i*recordSize:][:recordSize]
		binary.BigEndian.PutUint64(record, uint64(e))
		if err := copySecret(record[8:], old[e]); err != nil {
			return EncryptedSecrets{}, fmt.Errorf("keys: encrypt older secrets: epoch %d: %w", e, err)
		}
	}
	err = withKey(salt, newSecret, rack, epoch, func(key []byte) error {
		aead, err := chacha20poly1305.New(key)
		if err != nil {
			return err
		}
		data = aead.Seal(data[:0], make([]byte, chacha20poly1305.NonceSize), data, nil)
		return nil
	})
	if err != nil {
		return EncryptedSecrets{}, err
	}
	return EncryptedSecrets{Salt: salt, Data: data}, nil
}

func copySecret(to []byte, s secret.RackSecret) error {
	return s.Use(func(b []byte) error {
		if len(b) != Size {
			return fmt.Errorf("%w: have %d bytes, want %d", secret.ErrLength, len(b), Size)
		}
		copy(to, b)
		return nil
	})
}

// withKey derives the key of a configuration's older secrets, lends it to f and wipes it.
func withKey(salt [Size]byte, s secret.RackSecret, rack ident.RackID, epoch ident.Epoch, f func([]byte) error) error {
	info := binary.BigEndian.AppendUint64(append([]byte(secretsInfo), rack[:]...), uint64(epoch))
	return lendKey("older secrets", salt, s, info, f)
}

// lendKey derives a key from a rack secret, lends it to f and wipes it.
func lendKey(what string, salt [Size]byte, s secret.RackSecret, info []byte, f func([]byte) error) error {
	return s.Use(func(ikm []byte) error {
		if len(ikm) != Size {
			return fmt.Errorf("keys: %s: %w: have %d bytes, want %d", what, secret.ErrLength, len(ikm), Size)
		}
		prk := extract(ikm, salt[:])
		defer clear(prk)
		key := expand(prk, string(info))
		defer clear(key)
		if isZero(key) {
			return ErrZeroKey
		}
		return f(key)
	})
}

// Decrypt reads the older secrets of a configuration with its own rack id, epoch and secret. No records at all are
// accepted. Errors: [DecryptError], [ErrTooMany], [secret.ErrLength], [secret.ErrEmpty], those of the allocator.
func Decrypt(a secret.Allocator, e EncryptedSecrets, sec secret.RackSecret, rack ident.RackID, epoch ident.Epoch) (OldSecrets, error) {
	n := len(e.Data) - chacha20poly1305.Overhead
	switch {
	case n < 0:
		return nil, ErrAEAD
	case n > MaxOldSecrets*recordSize:
		return nil, fmt.Errorf("%w: have %d bytes, want at most %d", ErrTooMany, n, MaxOldSecrets*recordSize)
	}
	var plain secret.Plaintext
	err := withKey(e.Salt, sec, rack, epoch, func(key []byte) error {
		aead, err := chacha20poly1305.New(key)
		if err != nil {
			return err
		}
		plain, err = secret.New[secret.PlaintextKind](a, n, func(b []byte) error {
			if _, err := aead.Open(b[:0], make([]byte, chacha20poly1305.NonceSize), e.Data, nil); err != nil {
				return ErrAEAD
			}
			return nil
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	defer plain.Destroy()
	out := OldSecrets{}
	if err := plain.Use(func(b []byte) error { return readRecords(a, b, epoch, out) }); err != nil {
		out.Destroy()
		return nil, err
	}
	return out, nil
}

func readRecords(a secret.Allocator, b []byte, own ident.Epoch, out OldSecrets) error {
	if len(b)%recordSize != 0 {
		return ErrInvalidLength
	}
	var next ident.Epoch // the lowest epoch that may follow
	for ; len(b) > 0; b = b[recordSize:] {
		e := ident.Epoch(binary.BigEndian.Uint64(b))
		if e < next || e >= own {
			return ErrEpochOrder
		}
		s, err := secret.New[secret.RackSecretKind](a, Size, func(to []byte) error { copy(to, b[8:recordSize]); return nil })
		if err != nil {
			return fmt.Errorf("keys: decrypt older secrets: epoch %d: %w", e, err)
		}
		out[e], next = s, e+1
	}
	return nil
}
