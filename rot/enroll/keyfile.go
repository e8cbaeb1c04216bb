package enroll

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
)

// A key file is three lines of text (enrolment.md §6). The fingerprint is there for people; it is checked all the same.
const (
	keyFileHead    = "sledvault private key v1\nfingerprint "
	keyFileSeed    = "\nseed "
	fingerprintLen = len(fingerprintPrefix) + 64
	keyFileSize    = len(keyFileHead) + fingerprintLen + len(keyFileSeed) + 2*ed25519.SeedSize + 1
)

func keyFileError(cause error, path, hint, text string) error {
	return reason.Wrap(cause, CodeKeyFile, hint, "enroll: key file %s: %s", path, text)
}

// SaveKey writes a key file that only its owner can read. It never overwrites, and returns when file and folder are on
// the disk.
func SaveKey(path string, k Key) error {
	return k.seed.Use(func(seed []byte) error {
		b := make([]byte, 0, keyFileSize)
		defer func() { clear(b[:cap(b)]) }()
		b = append(b, keyFileHead...)
		b = append(b, Fingerprint(k.public)...)
		b = append(b, keyFileSeed...)
		b = hex.AppendEncode(b, seed)
		return saveFile(path, append(b, '\n'))
	})
}

// saveFile writes a key file.
func saveFile(path string, b []byte) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return keyFileError(err, path, "choose another folder: a key is never overwritten", "create")
	}
	if err != nil {
		return keyFileError(err, path, "check that the folder exists and is writable", "create")
	}
	defer func() {
		if err != nil {
			_ = os.Remove(path)
		}
	}()
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		_ = f.Close()
		return keyFileError(err, path, "check the disk", "write")
	}
	if err := f.Close(); err != nil {
		return keyFileError(err, path, "check the disk", "close")
	}
	if err := syncFolder(filepath.Dir(path)); err != nil {
		return keyFileError(err, path, "check the disk", "sync the folder")
	}
	return nil
}

func syncFolder(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }()
	return d.Sync()
}

// LoadKey reads a key file. It refuses links, files that others may read, and files of another owner. A file under a
// passphrase needs one: ask is called for it, and may be nil where there is nobody to ask ([CodePassphrase]).
func LoadKey(a secret.Allocator, path string, ask Passphrase) (Key, error) {
	b, err := readKeyFile(path)
	if err != nil {
		return Key{}, err
	}
	defer clear(b)
	if len(b) == sealedSize {
		return openKey(a, b, path, ask)
	}
	k, err := readKey(a, b)
	if err != nil {
		return Key{}, keyFileError(err, path, "restore the file from its backup", "read")
	}
	return k, nil
}

// UnderPassphrase reports whether a key file asks for a passphrase.
func UnderPassphrase(path string) (bool, error) {
	b, err := readKeyFile(path)
	clear(b)
	return len(b) == sealedSize, err
}

// readKeyFile reads a file that has the owner, mode and size of a key file. The caller wipes it.
func readKeyFile(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, keyFileError(err, path, hintFolder, "open")
	}
	defer func() { _ = f.Close() }()
	size, err := checkKeyFile(f)
	if err != nil {
		return nil, keyFileError(err, path, "make it a plain file of the user who runs this: chmod 600, chown", "refused")
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(f, b); err != nil {
		clear(b)
		return nil, keyFileError(err, path, "restore the file from its backup", "read")
	}
	return b, nil
}

func checkKeyFile(f *os.File) (size int64, err error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	switch {
	case !st.Mode().IsRegular():
		return 0, errors.New("not a plain file")
	case st.Mode().Perm()&0o077 != 0:
		return 0, errors.New("others may use it: mode " + st.Mode().Perm().String())
	case !ok || sys.Uid != uint32(os.Geteuid()): // a user id
		return 0, errors.New("another user owns it")
	case st.Size() != int64(keyFileSize) && st.Size() != int64(sealedSize):
		return 0, errors.New("not a key file of version 1 or 2")
	}
	return st.Size(), nil
}

// readKey reads the bytes of a file of version 1.
func readKey(a secret.Allocator, b []byte) (Key, error) {
	if len(b) != keyFileSize {
		return Key{}, errors.New("not a key file of version 1")
	}
	rest, ok := bytes.CutPrefix(b, []byte(keyFileHead))
	if !ok {
		return Key{}, errors.New("not a key file of version 1")
	}
	fingerprint, rest := string(rest[:fingerprintLen]), rest[fingerprintLen:]
	rest, ok = bytes.CutPrefix(rest, []byte(keyFileSeed))
	if !ok || rest[len(rest)-1] != '\n' {
		return Key{}, errors.New("not a key file of version 1")
	}
	seed, err := secret.New[secret.SeedKind](a, ed25519.SeedSize, func(to []byte) error {
		_, err := hex.Decode(to, rest[:len(rest)-1])
		if err != nil {
			return errors.New("the seed is not hex") // the cause would show a digit of it
		}
		return nil
	})
	if err != nil {
		return Key{}, err
	}
	k, err := keyOf(seed)
	if err == nil && Fingerprint(k.public) != fingerprint {
		err = errors.New("the seed does not fit the fingerprint")
	}
	if err != nil {
		seed.Destroy()
		return Key{}, err
	}
	return k, nil
}
