package unlock

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
)

// Config of a [LUKS2].
type Config struct {
	Cryptsetup string        // absolute path; "" looks in the usual folders
	Mapper     string        // folder of device-mapper; "" means /dev/mapper
	Timeout    time.Duration // of one run of cryptsetup; 0 means 60 s. Encrypting in place takes KeepTimeout.
	// KeepTimeout bounds the encryption of existing data; 0 means 24 h.
	KeepTimeout time.Duration
	TempDir     string // for the header while existing data is encrypted; "" means the system's
}

// LUKS2 opens LUKS2 disks through cryptsetup. It holds no state and is safe for concurrent use on different disks.
type LUKS2 struct{ cfg Config }

var _ Backend = (*LUKS2)(nil)

// New makes the back end. A machine without cryptsetup is told so at the first use ([CodeMissing]).
func New(c Config) *LUKS2 {
	c.Mapper = cmp.Or(c.Mapper, "/dev/mapper")
	c.Timeout = cmp.Or(c.Timeout, time.Minute)
	c.KeepTimeout = cmp.Or(c.KeepTimeout, 24*time.Hour)
	return &LUKS2{c}
}

// tool finds cryptsetup. PATH of an ordinary user, and of a service, leaves out the folders where it lies.
func (l *LUKS2) tool() (string, error) {
	places := []string{"/usr/sbin/cryptsetup", "/sbin/cryptsetup", "/usr/local/sbin/cryptsetup", "/usr/bin/cryptsetup"}
	if l.cfg.Cryptsetup != "" {
		places = []string{l.cfg.Cryptsetup}
	}
	for _, p := range places {
		if !filepath.IsAbs(p) {
			continue
		}
		if p, err := exec.LookPath(p); err == nil {
			return p, nil
		}
	}
	return "", reason.New(CodeMissing, hintMissing, "unlock: cryptsetup not found in %s", strings.Join(places, ", "))
}

// CanMap reports whether this process can use device-mapper. Without it keys are only proved. The node alone says
// nothing: cryptsetup makes it on machines whose kernel has no device-mapper.
func (l *LUKS2) CanMap() bool {
	f, err := os.OpenFile(filepath.Join(l.cfg.Mapper, "control"), os.O_RDWR, 0)
	if err != nil {
		return false
	}
	_ = f.Close()
	return true
}

// openDevice opens for reading, and tells absent from forbidden.
func openDevice(d Disk) (*os.File, error) {
	if err := d.Validate(); err != nil {
		return nil, err
	}
	st, err := os.Stat(d.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, reason.Later(CodeAbsent, hintAbsent, "unlock: disk %s: nothing at %q", d.ID, d.Path)
	case err != nil:
		return nil, reason.Wrap(err, CodeIO, hintIO, "unlock: disk %s", d.ID)
	case !st.Mode().IsRegular() && st.Mode()&(fs.ModeDevice|fs.ModeCharDevice) != fs.ModeDevice:
		return nil, reason.New(CodeConfig, hintConfig, "unlock: disk %s: %q is neither a block device nor a file", d.ID, d.Path)
	}
	f, err := os.Open(d.Path)
	if err != nil {
		return nil, reason.Wrap(err, CodeIO, hintIO, "unlock: disk %s", d.ID)
	}
	return f, nil
}

// load reads the header of an open device as far as it can be believed without a record.
func load(f *os.File, d Disk) (*metadata, error) {
	raw, err := readHeader(f, d.ID)
	if err != nil {
		return nil, err
	}
	return parseMetadata(raw, d.ID)
}

// Inspect implements [Backend].
func (l *LUKS2) Inspect(_ context.Context, d Disk) (Header, error) {
	f, err := openDevice(d)
	if err != nil {
		return Header{Slot: -1}, err
	}
	defer f.Close()
	m, err := load(f, d)
	if err != nil {
		return Header{Slot: -1}, err
	}
	return Header{
		UUID: m.raw.uuid, Slots: slices.Sorted(maps.Keys(m.slots)), Pins: m.pins, Rack: m.rack, Epoch: m.epoch, Slot: m.tokenSlot,
	}, nil
}

// Open implements [Backend]: read the header once, compare it with the record, and open the disk by a private copy of
// exactly what was compared. Without device-mapper the key is proved only, and the result says so (docs/disks.md §4).
func (l *LUKS2) Open(ctx context.Context, d Disk, r Record, key secret.DiskKey) (Result, error) {
	start := time.Now()
	res := Result{ID: d.ID, Backend: cmp.Or(d.Backend, BackendLUKS2), Epoch: r.Epoch}
	err := l.open(ctx, d, r, key, &res)
	if err != nil {
		return res.fail(err, time.Since(start)), err
	}
	res.MS = millis(time.Since(start))
	return res, nil
}

func (l *LUKS2) open(ctx context.Context, d Disk, r Record, key secret.DiskKey, res *Result) error {
	f, err := openDevice(d)
	if err != nil {
		return err
	}
	defer f.Close()
	m, err := load(f, d)
	if err != nil {
		return err
	}
	if err := m.compare(r, d.ID); err != nil {
		return err
	}
	header, err := m.privateCopy(f, d.ID, r.KeySlot)
	if err != nil {
		return err
	}
	defer header.Close()
	if !l.CanMap() {
		if err := l.prove(ctx, d, header, r.KeySlot, key); err != nil {
			return err
		}
		res.State, res.Proof = StateKeyProved, ProofTestPassphrase
		res.Note = "no device-mapper on this machine: the key was proved, nothing is mapped"
		return nil
	}
	return l.mapDisk(ctx, d, header, r.KeySlot, key, res)
}

// prove tests a key against one slot of a private header.
func (l *LUKS2) prove(ctx context.Context, d Disk, header *os.File, slot int, key secret.DiskKey) error {
	if key.IsEmpty() {
		return reason.Wrap(errNil, CodeKey, hintKey, "unlock: disk %s", d.ID)
	}
	args := append([]string{"open", "--test-passphrase", "--key-slot", strconv.Itoa(slot)}, openArgs(d)...)
	a, err := l.run(ctx, call{id: d.ID, args: args, key: key, header: header})
	if err != nil {
		return err
	}
	if a.exit != exitOK {
		return a.failed(d.ID, "prove the key")
	}
	return nil
}

func openArgs(d Disk) []string {
	args := []string{"--type", "luks2", "--disable-external-tokens", "--batch-mode", "--header", "/dev/fd/" + strconv.Itoa(headerFD)}
	return append(append(args, keyArgs()...), d.Path)
}

// mapDisk maps the disk. The name may be in use from before a restart of the daemon: then the key is proved and the
// mapping is looked at.
func (l *LUKS2) mapDisk(ctx context.Context, d Disk, header *os.File, slot int, key secret.DiskKey, res *Result) error {
	name := d.MappingName()
	path := filepath.Join(l.cfg.Mapper, name)
	if _, err := os.Lstat(path); err == nil {
		if err := l.prove(ctx, d, header, slot, key); err != nil {
			return err
		}
		if err := l.sameDevice(ctx, d, name); err != nil {
			return err
		}
		res.State, res.Proof, res.Mapping, res.Note = StateUnlocked, ProofMapped, path, "was mapped already"
		return nil
	}
	if key.IsEmpty() {
		return reason.Wrap(errNil, CodeKey, hintKey, "unlock: disk %s", d.ID)
	}
	args := append(append([]string{"open", "--key-slot", strconv.Itoa(slot)}, openArgs(d)...), name)
	a, err := l.run(ctx, call{id: d.ID, args: args, key: key, header: header})
	if err != nil {
		return err
	}
	if a.exit != exitOK {
		return a.failed(d.ID, "open")
	}
	res.State, res.Proof, res.Mapping = StateUnlocked, ProofMapped, path
	return nil
}

// sameDevice checks that an existing mapping is encrypted and lies on this disk.
func (l *LUKS2) sameDevice(ctx context.Context, d Disk, name string) error {
	a, err := l.run(ctx, call{id: d.ID, args: []string{"status", name}})
	if err != nil {
		return err
	}
	var device, cipher string
	for line := range strings.Lines(a.stdout) {
		k, v, _ := strings.Cut(line, ":")
		switch strings.TrimSpace(k) {
		case "device":
			device = strings.TrimSpace(v)
		case "cipher":
			cipher = strings.TrimSpace(v)
		}
	}
	have, err1 := os.Stat(device)
	want, err2 := os.Stat(d.Path)
	if a.exit != exitOK || err1 != nil || err2 != nil || !sameNode(have, want) || cipher != cipherName {
		return reason.New(CodeBusy, hintBusy, "unlock: disk %s: mapping %s belongs to something else: device %.80q, cipher %.40q", d.ID, name, device, cipher)
	}
	return nil
}

// Close implements [Backend].
func (l *LUKS2) Close(ctx context.Context, d Disk) error {
	if err := d.Validate(); err != nil {
		return err
	}
	if _, err := os.Lstat(filepath.Join(l.cfg.Mapper, d.MappingName())); !l.CanMap() || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	a, err := l.run(ctx, call{id: d.ID, args: []string{"close", d.MappingName()}})
	if err != nil {
		return err
	}
	if a.exit != exitOK {
		return a.failed(d.ID, "close")
	}
	return nil
}

// Adopt makes the record of a disk that is encrypted under the key already, for example after a crash between formatting
// and saving the record, or when a disk moves here. The header is accepted as it is found, the key proves itself.
func (l *LUKS2) Adopt(ctx context.Context, d Disk, key secret.DiskKey, epoch ident.Epoch) (Record, error) {
	f, err := openDevice(d)
	if err != nil {
		return Record{}, err
	}
	defer f.Close()
	m, err := load(f, d)
	if err != nil {
		return Record{}, err
	}
	slot, err := l.findSlot(ctx, d, f, m, key)
	if err != nil {
		return Record{}, err
	}
	return Record{Epoch: epoch, KeySlot: slot, Pins: m.pins}, nil
}

// findSlot returns the slot that the key opens, trying the token's first.
func (l *LUKS2) findSlot(ctx context.Context, d Disk, f *os.File, m *metadata, key secret.DiskKey) (int, error) {
	order := slices.Sorted(maps.Keys(m.slots))
	if i := slices.Index(order, m.tokenSlot); i > 0 {
		order = append([]int{m.tokenSlot}, slices.Delete(order, i, i+1)...)
	}
	for _, n := range order {
		header, err := m.privateCopy(f, d.ID, n)
		if err != nil {
			return 0, err
		}
		err = l.prove(ctx, d, header, n, key)
		_ = header.Close()
		if err == nil || reason.CodeOf(err) != CodeKey {
			return n, err
		}
	}
	return 0, reason.New(CodeKey, hintKey, "unlock: disk %s: key opens none of %d slots", d.ID, len(order))
}
