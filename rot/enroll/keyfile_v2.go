package enroll

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"io"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/chacha20poly1305"

	"github.com/sledvault/sledvault/vault/secret"
)

// Passphrase asks for the passphrase of a key file. What it returns is wiped.
type Passphrase func() ([]byte, error)

// A key file of version 2 is four lines of text (enrolment.md §6): the seed is encrypted under a key that is derived from a
// passphrase. Its version fixes the cost of that: RFC 9106's second choice, for machines without 2 GiB to spare.
const (
	sealedHead = "sledvault private key v2\nfingerprint "
	sealedSalt = "\nargon2id "
	sealedSeed = "\nsealed "

	saltLen     = 16
	argonPasses = 3
	argonMemory = 64 << 10 // KiB
	argonLanes  = 4

	sealedLen  = chacha20poly1305.NonceSizeX + ed25519.SeedSize + chacha20poly1305.Overhead
	sealedAt   = len(sealedHead) + fingerprintLen + len(sealedSalt) + 2*saltLen // of the line that holds the seed
	sealedSize = sealedAt + len(sealedSeed) + 2*sealedLen + 1
)

// MaxPassphrase bounds a passphrase in bytes.
const MaxPassphrase = 1024

func checkPassphrase(pass []byte) error {
	if len(pass) == 0 || len(pass) > MaxPassphrase {
		return refuse(CodePassphrase, "choose a passphrase of 1 to 1024 bytes", "passphrase: have %d bytes, want 1 to %d", len(pass), MaxPassphrase)
	}
	return nil
}

// SaveKeyUnder is [SaveKey] for a file that nobody can use without the passphrase. The passphrase stays the caller's.
func SaveKeyUnder(path string, k Key, pass []byte, rand io.Reader) error {
	if err := checkPassphrase(pass); err != nil {
		return err
	}
	var salt [saltLen + chacha20poly1305.NonceSizeX]byte
	if _, err := io.ReadFull(rand, salt[:]); err != nil {
		return keyFileError(err, path, "", "randomness")
	}
	b, err := sealKey(k, pass, salt[:saltLen], salt[saltLen:])
	if err != nil {
		return keyFileError(err, path, "", "encrypt")
	}
	return saveFile(path, b)
}

func passphraseKey(pass, salt []byte) []byte {
	return argon2.IDKey(pass, salt, argonPasses, argonMemory, argonLanes, chacha20poly1305.KeySize)
}

// sealKey makes the bytes of a file. All lines before the last are authenticated with the seed.
func sealKey(k Key, pass, salt, nonce []byte) ([]byte, error) {
	key := passphraseKey(pass, salt)
	defer clear(key)
	aead, err := chacha20poly1305.NewX(key)
	if err != nil {
		return nil, err
	}
	b := make([]byte, 0, sealedSize)
	b = append(b, sealedHead...)
	b = append(b, Fingerprint(k.public)...)
	b = append(b, sealedSalt...)
	b = hex.AppendEncode(b, salt)
	err = k.seed.Use(func(seed []byte) error {
		sealed := aead.Seal(bytes.Clone(nonce), nonce, seed, b)
		b = append(b, sealedSeed...)
		b = append(hex.AppendEncode(b, sealed), '\n')
		return nil
	})
	return b, err
}

// openKey reads the bytes of a file.
func openKey(a secret.Allocator, b []byte, path string, ask Passphrase) (Key, error) {
	salt, sealed, err := parseSealed(b)
	if err != nil {
		return Key{}, keyFileError(err, path, "restore the file from its backup", "read")
	}
	if ask == nil {
		return Key{}, refuse(CodePassphrase, "run the command at a terminal, or give the passphrase with --passphrase-fd", "key file %s is under a passphrase", path)
	}
	pass, err := ask()
	defer clear(pass)
	if err == nil {
		err = checkPassphrase(pass)
	}
	if err != nil {
		return Key{}, err
	}
	key := passphraseKey(pass, salt)
	defer clear(key)
	aead, err := chacha20poly1305.NewX(key)
	if err != nil {
		return Key{}, err
	}
	nonce, text := sealed[:chacha20poly1305.NonceSizeX], sealed[chacha20poly1305.NonceSizeX:]
	seed, err := secret.New[secret.SeedKind](a, ed25519.SeedSize, func(to []byte) error {
		_, err := aead.Open(to[:0], nonce, text, b[:sealedAt])
		return err
	})
	if err != nil {
		return Key{}, refuse(CodePassphrase, "type it again; without it only the recovery key helps: sledvault rack recover", "key file %s does not open with this passphrase", path)
	}
	k, err := keyOf(seed)
	if err == nil && Fingerprint(k.public) != string(b[len(sealedHead):len(sealedHead)+fingerprintLen]) {
		err = keyFileError(errors.New("the seed does not fit the fingerprint"), path, "restore the file from its backup", "read")
	}
	if err != nil {
		seed.Destroy()
		return Key{}, err
	}
	return k, nil
}

func parseSealed(b []byte) (salt, sealed []byte, err error) {
	bad := errors.New("not a key file of version 2")
	if len(b) != sealedSize || !bytes.HasPrefix(b, []byte(sealedHead)) || b[len(b)-1] != '\n' {
		return nil, nil, bad
	}
	rest, ok := bytes.CutPrefix(b[len(sealedHead)+fingerprintLen:], []byte(sealedSalt))
	if !ok || !bytes.HasPrefix(b[sealedAt:], []byte(sealedSeed)) {
		return nil, nil, bad
	}
	salt, sealed = make([]byte, saltLen), make([]byte, sealedLen)
	if _, err := hex.Decode(salt, rest[:2*saltLen]); err != nil {
		return nil, nil, bad
	}
	if _, err := hex.Decode(sealed, b[sealedAt+len(sealedSeed):len(b)-1]); err != nil {
		return nil, nil, bad
	}
	return salt, sealed, nil
}
