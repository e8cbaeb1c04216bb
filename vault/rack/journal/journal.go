// Package journal keeps the controller's state on disk: one file, replaced as a whole and synced before the controller
// acts on it, locked against a second controller.
//
// A damaged journal is refused by name, never treated as absent: starting over would let a decided epoch be aborted.
// If the file is lost for good, remove it and let the next change observe the highest epoch that any sled reports.
package journal

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/rack"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/wire"
)

// Names of the files in the controller's folder.
const (
	fileName = "journal.json"
	lockName = "journal.lock"
	tempName = ".tmp-" // and a number: a file that is being written
)

// version of the file's format.
const version = 1

// Reasons of this package.
const (
	CodeLocked  reason.Code = "journal-locked"  // another controller runs on this folder
	CodeDamaged reason.Code = "journal-damaged" // the file cannot be read
	CodeSave    reason.Code = "journal-save"    // the state could not be written; nothing was sent
)

// file is the journal's form on disk.
type file struct {
	Version int             `json:"version"`
	SHA256  string          `json:"sha256"` // of the state's bytes
	State   json.RawMessage `json:"state"`
}

type state struct {
	Rack        ident.RackID     `json:"rack_id"`
	Highest     ident.Epoch      `json:"highest_epoch"`
	Change      *rack.Change     `json:"change"`
	Config      json.RawMessage  `json:"config,omitempty"`
	Certificate *api.Certificate `json:"certificate,omitempty"`

	Base            *rack.Change     `json:"base,omitempty"`
	BaseConfig      json.RawMessage  `json:"base_config,omitempty"`
	BaseCertificate *api.Certificate `json:"base_certificate,omitempty"`
}

// Journal is an open journal. It belongs to one controller at a time.
type Journal struct {
	dir  string
	lock *os.File
}

// Open locks the folder and reads the state. A folder without a journal gives an empty state.
func Open(dir string) (*Journal, rack.State, error) {
	lock, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, rack.State{}, reason.Wrap(err, CodeSave, "check the folder of the rack file", "journal: open lock")
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = lock.Close()
		return nil, rack.State{}, reason.Later(CodeLocked, "wait for the other rack command, or stop it", "journal: another controller works in %s", dir)
	}
	j := &Journal{dir: dir, lock: lock}
	j.sweep()
	st, err := j.load()
	if err != nil {
		_ = j.Close()
		return nil, rack.State{}, err
	}
	return j, st, nil
}

// sweep removes what commands that were killed have left of their writes. Whoever writes here holds the lock.
func (j *Journal) sweep() {
	entries, _ := os.ReadDir(j.dir) // what cannot be listed cannot be read either: load says so
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), tempName) && e.Type().IsRegular() {
			_ = os.Remove(filepath.Join(j.dir, e.Name())) // the next command tries again
		}
	}
}

// Peek reads the state without the lock, for status.
func Peek(dir string) (rack.State, error) { return (&Journal{dir: dir}).load() }

// Close releases the lock, also where a child process that was just started still holds a copy of the descriptor.
func (j *Journal) Close() error {
	return errors.Join(unix.Flock(int(j.lock.Fd()), unix.LOCK_UN), j.lock.Close())
}

func (j *Journal) load() (rack.State, error) {
	b, err := readBounded(filepath.Join(j.dir, fileName))
	if errors.Is(err, fs.ErrNotExist) {
		return rack.State{}, nil
	}
	if err != nil {
		return rack.State{}, damaged(err)
	}
	st, err := parse(b)
	if err != nil {
		return rack.State{}, damaged(err)
	}
	return st, nil
}

// maxSize bounds the file in bytes; a change of 32 members has some 20 KiB.
const maxSize = 4 << 20

func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err == nil && len(b) > maxSize {
		err = fmt.Errorf("more than %d bytes", maxSize)
	}
	return b, err
}

// parse reads the file's bytes: one version, one checksum, nothing unknown, nothing behind.
func parse(b []byte) (rack.State, error) {
	var f file
	if err := strict(b, &f); err != nil {
		return rack.State{}, err
	}
	if f.Version != version {
		return rack.State{}, fmt.Errorf("have version %d, want %d", f.Version, version)
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, f.State); err != nil {
		return rack.State{}, err
	}
	if sum := sha256.Sum256(compact.Bytes()); hex.EncodeToString(sum[:]) != f.SHA256 {
		return rack.State{}, errors.New("checksum mismatch")
	}
	return decode(f.State)
}

func damaged(err error) error {
	return reason.Wrap(err, CodeDamaged, "restore journal.json from a backup; only if there is none remove it: the sleds know the epochs", "journal: read %s", fileName)
}

func strict(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("data behind the end")
	}
	return nil
}

func decode(b []byte) (rack.State, error) {
	var s state
	if err := strict(b, &s); err != nil {
		return rack.State{}, err
	}
	out := rack.State{Rack: s.Rack, Highest: s.Highest, Change: s.Change, Base: s.Base}
	if err := complete(s.Change, s.Config, s.Certificate); err != nil {
		return rack.State{}, err
	}
	if s.Base != nil && !final(s.Base) {
		return rack.State{}, fmt.Errorf("builds on a change that is %.40q", s.Base.Phase)
	}
	return out, complete(s.Base, s.BaseConfig, s.BaseCertificate)
}

func final(c *rack.Change) bool { return c.Phase == rack.Decided || c.Phase == rack.Done }

// complete puts the configuration and its certificate back into a decided change.
func complete(c *rack.Change, config json.RawMessage, certificate *api.Certificate) error {
	if c == nil {
		return nil
	}
	decided := final(c)
	if !decided && c.Phase != rack.Preparing && c.Phase != rack.Aborted {
		return fmt.Errorf("unknown phase %.40q", c.Phase)
	}
	if have := len(config) != 0 && certificate != nil; have != decided {
		return fmt.Errorf("a %s change with a decision: %v, want %v", c.Phase, have, decided)
	}
	if !decided {
		return nil
	}
	cfg, err := wire.DecodeConfigurationJSON(config)
	if err != nil {
		return err
	}
	cert, err := certificate.ToQuorum()
	if err == nil && cfg == nil {
		err = errors.New("a decided change without its configuration")
	}
	c.Config, c.Certificate = cfg, cert
	return err
}

// parts takes configuration and certificate out of a change.
func parts(c *rack.Change) (config json.RawMessage, certificate *api.Certificate, err error) {
	if c == nil || c.Config == nil {
		return nil, nil, nil
	}
	config, err = wire.EncodeConfigurationJSON(c.Config)
	return config, api.CertificateOf(c.Certificate), err
}

func encode(st rack.State) ([]byte, error) {
	s := state{Rack: st.Rack, Highest: st.Highest, Change: st.Change}
	var err, err2 error
	s.Config, s.Certificate, err = parts(st.Change)
	if st.Change != nil && !final(st.Change) {
		s.Base = st.Base
		s.BaseConfig, s.BaseCertificate, err2 = parts(st.Base)
	}
	if err := errors.Join(err, err2); err != nil {
		return nil, err
	}
	b, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(b)
	return json.MarshalIndent(file{Version: version, SHA256: hex.EncodeToString(sum[:]), State: b}, "", " ")
}

// Save makes the state durable. When it returns nil, the state survives a power cut.
func (j *Journal) Save(st rack.State) error {
	b, err := encode(st)
	if err == nil {
		err = WriteFile(filepath.Join(j.dir, fileName), b, 0o600)
	}
	if err != nil {
		return reason.Wrap(err, CodeSave, "free space in the folder of the rack file, then run the command again", "journal: save")
	}
	return nil
}

// WriteFile replaces a file durably: written beside it, synced, renamed, its folder synced.
func WriteFile(path string, b []byte, mode fs.FileMode) error {
	return writeFile(path, b, mode, func(string) error { return nil })
}

// writeFile calls before ahead of each step; an error of it stands for the step's own.
func writeFile(path string, b []byte, mode fs.FileMode, before func(step string) error) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), tempName+"*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(tmp.Name()) }()
	for _, s := range []struct {
		name string
		do   func() error
	}{
		{"write", func() error { _, err := tmp.Write(b); return errors.Join(err, tmp.Chmod(mode)) }},
		{"sync file", tmp.Sync},
		{"rename", func() error { return os.Rename(tmp.Name(), path) }},
		{"sync folder", func() error { return syncFolder(filepath.Dir(path)) }},
	} {
		err := before(s.name)
		if err == nil {
			err = s.do()
		}
		if err != nil {
			return errors.Join(fmt.Errorf("%s: %w", s.name, err), tmp.Close())
		}
	}
	return tmp.Close()
}

func syncFolder(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
