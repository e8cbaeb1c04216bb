package sealing

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/sledvault/sledvault/tpm"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
)

// AuthFile is the name of the auth value's file in each state folder. What it is worth: sealing.md §5.
const AuthFile = "seal.auth"

// newAuth draws an auth value and stores it in both folders, forced to the medium.
func newAuth(p Params) (auth secret.AuthValue, err error) {
	raw, err := tpm.RandomAuth(p.Rand, authLen)
	if err != nil {
		return auth, err
	}
	defer clear(raw)
	for _, dir := range p.AuthDirs {
		if err := writeAuth(dir, raw); err != nil {
			return auth, reason.Wrap(err, CodeAuth, hintAuth, "sealing: write auth value")
		}
	}
	return secret.Take[secret.AuthValueKind](p.Alloc, raw)
}

func writeAuth(dir string, value []byte) (err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	const temp = AuthFile + ".tmp"
	if err := root.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := writeFile(root, temp, value); err != nil {
		return err
	}
	if err := root.Rename(temp, AuthFile); err != nil {
		return err
	}
	folder, err := root.Open(".")
	if err != nil {
		return err
	}
	defer folder.Close()
	return folder.Sync()
}

func writeFile(root *os.Root, name string, data []byte) error {
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

// readAuth returns the auth values found, without duplicates: one, or two if a write was cut off in between.
func readAuth(p Params) ([]secret.AuthValue, error) {
	var found []secret.AuthValue
	var errs []error
	for _, dir := range p.AuthDirs {
		a, err := readAuthFile(p.Alloc, dir)
		if err != nil {
			errs = append(errs, err)
			if p.Reasons != nil {
				p.Reasons.Count(CodeAuth, filepath.Base(dir), err.Error())
			}
			continue
		}
		if slices.ContainsFunc(found, a.Equal) {
			a.Destroy()
			continue
		}
		found = append(found, a)
	}
	if len(found) == 0 {
		return nil, reason.Wrap(errors.Join(errs...), CodeAuth, hintAuth, "sealing: read auth value")
	}
	return found, nil
}

func readAuthFile(a secret.Allocator, dir string) (auth secret.AuthValue, err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return auth, err
	}
	defer root.Close()
	info, err := root.Lstat(AuthFile)
	if err != nil {
		return auth, err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !ok || (int(st.Uid) != os.Geteuid() && st.Uid != 0) {
		return auth, fmt.Errorf("%s has a foreign owner", AuthFile)
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0 || info.Size() != authLen {
		return auth, fmt.Errorf("%s: have %d bytes, mode %v, want %d bytes, mode 0600", AuthFile, info.Size(), info.Mode(), authLen)
	}
	f, err := root.Open(AuthFile)
	if err != nil {
		return auth, err
	}
	defer f.Close()
	return secret.New[secret.AuthValueKind](a, authLen, func(b []byte) error {
		if _, err := io.ReadFull(f, b); err != nil {
			return err
		}
		if bytes.IndexByte(b, 0) >= 0 {
			return fmt.Errorf("%s holds a zero byte", AuthFile)
		}
		return nil
	})
}

// repairAuth puts the auth value that opened the seal into the folders that lack it. A folder that is missing stays so.
func repairAuth(p Params, auth secret.AuthValue) {
	for _, dir := range p.AuthDirs {
		have, err := readAuthFile(p.Alloc, dir)
		same := err == nil && have.Equal(auth)
		have.Destroy()
		if !same {
			_ = auth.Use(func(b []byte) error { return writeAuth(dir, b) }) // the other copy serves until the next start
		}
	}
}
