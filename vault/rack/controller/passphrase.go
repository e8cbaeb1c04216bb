package controller

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/sledvault/sledvault/rot/enroll"
	"github.com/sledvault/sledvault/vault/rack/journal"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
)

// otherKeyFile is the key under its new passphrase until it takes the old file's place.
const otherKeyFile = keyFile + ".other"

// KeyUnderPassphrase reports whether the membership key of a rack file's folder is under a passphrase. A folder without a
// key has none that is.
func KeyUnderPassphrase(path string) (bool, error) {
	under, err := enroll.UnderPassphrase(filepath.Join(filepath.Dir(path), keyFile))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return under, err
}

// ChangePassphrase writes the membership key's file anew: under the passphrase that Fresh asks for, or without one if it
// is nil. The key stays the same, and whatever happens one of both files is there. It returns the key's fingerprint.
func (a Access) ChangePassphrase(path string) (string, error) {
	dir := filepath.Dir(path)
	j, _, err := journal.Open(dir) // for its lock
	if err != nil {
		return "", err
	}
	defer func() { _ = j.Close() }()
	key, err := enroll.LoadKey(secret.Heap{}, filepath.Join(dir, keyFile), a.Passphrase)
	if err != nil {
		return "", err
	}
	defer key.Destroy()
	other := filepath.Join(dir, otherKeyFile)
	if err := os.Remove(other); err != nil && !errors.Is(err, fs.ErrNotExist) { // of a run that broke off
		return "", reason.Wrap(err, enroll.CodeKeyFile, "remove it", "rack: old file")
	}
	if err := a.save(other, key); err != nil {
		return "", err
	}
	if err := os.Rename(other, filepath.Join(dir, keyFile)); err != nil {
		return "", reason.Wrap(err, enroll.CodeKeyFile, "run the command again", "rack: put the key file in its place")
	}
	d, err := os.Open(dir)
	if err == nil {
		err = errors.Join(d.Sync(), d.Close())
	}
	if err != nil {
		return "", reason.Wrap(err, enroll.CodeKeyFile, "check the disk, then run the command again", "rack: sync the folder")
	}
	return enroll.Fingerprint(key.PublicKey()), nil
}
