package ledger

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// Modes of what the ledger makes. Folders and files that others may write are refused.
const (
	folderMode = 0o700
	fileMode   = 0o600
)

// folder is one place for one copy, on one medium. Tests wrap it to make a medium fail.
type folder interface {
	// Read returns a whole file of at most limit bytes, or an error that matches fs.ErrNotExist.
	Read(name string, limit int) ([]byte, error)
	// Put creates a new file with this content and forces it to the medium. An older file of that name is replaced.
	Put(name string, data []byte) error
	// Rename replaces to by from; SyncDir forces the folder itself to the medium.
	Rename(from, to string) error
	SyncDir() error
	Close() error
}

// osFolder is a folder of the operating system. All names are single elements below it.
type osFolder struct {
	root *os.Root
	dir  *os.File // the folder itself, for fsync and the lock
	uid  uint32
}

// How a folder is opened. Reading takes no lock; writing does; creating also makes the last element of the path, which
// only an enrolment may do: at every later start a missing folder is a missing medium.
type access int

const (
	reading access = iota
	writing
	creating
)

// openFolder opens a state folder.
func openFolder(path string, how access) (_ *osFolder, err error) {
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("ledger: folder %q: want an absolute path", path)
	}
	if how == creating {
		if err := os.Mkdir(path, folderMode); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
	}
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	f := &osFolder{uid: uint32(os.Geteuid())}
	if err := f.checkFolder(path, info); err != nil {
		return nil, err
	}
	if f.root, err = os.OpenRoot(path); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
		}
	}()
	if f.dir, err = f.root.Open("."); err != nil {
		return nil, err
	}
	opened, err := f.dir.Stat()
	if err != nil {
		return nil, err
	}
	if !os.SameFile(info, opened) {
		return nil, fmt.Errorf("ledger: folder %q was replaced while it was opened", path)
	}
	if how == reading {
		return f, nil
	}
	if err = syscall.Flock(int(f.dir.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, fmt.Errorf("ledger: folder %q: %w", path, errLocked)
	}
	return f, nil
}

func (f *osFolder) checkFolder(path string, info fs.FileInfo) error {
	if !info.IsDir() { // a symbolic link too: it could lead to the other medium, or to a stranger's folder
		return fmt.Errorf("ledger: %q is no folder: have %v", path, info.Mode().Type())
	}
	return f.checkOwner(path, info)
}

func (f *osFolder) checkOwner(path string, info fs.FileInfo) error {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || (st.Uid != f.uid && st.Uid != 0) {
		return fmt.Errorf("ledger: %q has a foreign owner: want uid %d or 0", path, f.uid)
	}
	if info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("ledger: %q may be written by others: have mode %04o, want %04o", path, info.Mode().Perm(), folderMode)
	}
	return nil
}

// Read implements folder.
func (f *osFolder) Read(name string, limit int) ([]byte, error) {
	info, err := f.root.Lstat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("ledger: %q is no regular file: have %v", name, info.Mode().Type())
	}
	if err := f.checkOwner(name, info); err != nil {
		return nil, err
	}
	if info.Size() > int64(limit) {
		return nil, fmt.Errorf("ledger: %q has %d bytes, want at most %d", name, info.Size(), limit)
	}
	file, err := f.root.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if opened, err := file.Stat(); err != nil || !os.SameFile(info, opened) {
		return nil, fmt.Errorf("ledger: %q was replaced while it was opened", name)
	}
	data := make([]byte, info.Size())
	if _, err := io.ReadFull(file, data); err != nil {
		return nil, fmt.Errorf("ledger: read %q: %w", name, err)
	}
	return data, nil
}

// Put implements folder.
func (f *osFolder) Put(name string, data []byte) (err error) {
	if err := f.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	file, err := f.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fileMode)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := file.Close(); err == nil {
			err = cerr
		}
	}()
	if _, err = file.Write(data); err != nil {
		return err
	}
	return file.Sync()
}

// Rename implements folder.
func (f *osFolder) Rename(from, to string) error { return f.root.Rename(from, to) }

// SyncDir implements folder.
func (f *osFolder) SyncDir() error { return f.dir.Sync() }

// Close releases the lock and the folder.
func (f *osFolder) Close() error {
	var err error
	if f.dir != nil {
		// A child that is being started right now holds a duplicate until it executes; unlocking does not wait for it.
		_ = syscall.Flock(int(f.dir.Fd()), syscall.LOCK_UN) // closing unlocks too
		err = f.dir.Close()
	}
	if f.root != nil {
		err = errors.Join(err, f.root.Close())
	}
	return err
}

// errReadBack says that a medium did not give back what was written to it.
var errReadBack = errors.New("ledger: read back differs from what was written")

// replace puts a file in place so that a power cut leaves the old one or the new one, and reads it back. The hook is
// called after each step with the step's name.
func replace(f folder, name string, data []byte, hook func(step string) error) error {
	temp := name + ".tmp"
	steps := []struct {
		name string
		do   func() error
	}{
		{"write", func() error { return f.Put(temp, data) }},
		{"check", func() error { return readBack(f, temp, data) }}, // a torn write must not replace a whole file
		{"rename", func() error { return f.Rename(temp, name) }},
		{"sync", f.SyncDir},
		{"verify", func() error { return readBack(f, name, data) }},
	}
	for _, s := range steps {
		if err := s.do(); err != nil {
			return fmt.Errorf("ledger: %s %s: %w", s.name, name, err)
		}
		if err := hook(s.name); err != nil {
			return &abortError{err}
		}
	}
	return nil
}

func readBack(f folder, name string, want []byte) error {
	have, err := f.Read(name, len(want))
	if err != nil {
		return err
	}
	if !bytes.Equal(have, want) {
		return errReadBack
	}
	return nil
}
