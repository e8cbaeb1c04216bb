package ledger

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"testing"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/secret"
	"github.com/sledvault/sledvault/vault/wire"
)

var (
	testRack = ident.RackID{0xaa, 15: 0x55}
	testID   = ident.Baseboard{Part: "913-0000019", Serial: "BRM42220031"}
)

// fakeTPM is a TPM as far as the ledger can tell: a counter and one sealed key, which survive every restart.
type fakeTPM struct {
	tb      testing.TB
	key     [32]byte
	counter uint64
	raised  int

	measured bool // something was measured since the start
}

func newFakeTPM(tb testing.TB) *fakeTPM {
	tb.Helper()
	t := &fakeTPM{tb: tb, counter: 41}
	if _, err := rand.Read(t.key[:]); err != nil {
		tb.Fatal(err)
	}
	return t
}

var fakeBlob = []byte("blob of the fake TPM")

// fakeSealer is an unsealed fake: approvals hold the sequence up to which they are good.
type fakeSealer struct {
	t   *fakeTPM
	key secret.SealKey
}

func (t *fakeTPM) sealer() *fakeSealer {
	t.tb.Helper()
	k, err := secret.New[secret.SealKeyKind](secret.Heap{}, 32, func(b []byte) error { copy(b, t.key[:]); return nil })
	if err != nil {
		t.tb.Fatal(err)
	}
	return &fakeSealer{t, k}
}

var errFakePolicy = errors.New("fake: policy failed")

func (t *fakeTPM) unseal(_ context.Context, blob []byte, approvals [][]byte) (Sealer, error) {
	for _, a := range approvals {
		if bytes.Equal(blob, fakeBlob) && len(a) == 8 && binary.BigEndian.Uint64(a) >= t.counter {
			return t.sealer(), nil
		}
	}
	return nil, errFakePolicy
}

func (s *fakeSealer) Key() secret.SealKey { return s.key }
func (s *fakeSealer) Blob() []byte        { return fakeBlob }
func (s *fakeSealer) Destroy()            { s.key.Destroy() }

func (s *fakeSealer) Approve(_ context.Context, sequence uint64) ([][]byte, error) {
	return [][]byte{binary.BigEndian.AppendUint64(nil, sequence)}, nil
}

func (s *fakeSealer) Approves(_ context.Context, sequence uint64, have [][]byte) (bool, error) {
	if s.t.measured { // more, so other approvals are needed
		return false, nil
	}
	want, err := s.Approve(context.Background(), sequence)
	return err == nil && slices.EqualFunc(want, have, bytes.Equal), err
}

func (s *fakeSealer) WithTickets(_ context.Context, approvals [][]byte) [][]byte { return approvals }

func (s *fakeSealer) Opened() uint64 { return s.t.counter }

func (s *fakeSealer) Counter(context.Context) (uint64, error) { return s.t.counter, nil }

func (s *fakeSealer) Increment(_ context.Context, from uint64) (uint64, error) {
	if s.t.counter != from {
		return s.t.counter, fmt.Errorf("fake: counter at %d, want %d", s.t.counter, from)
	}
	s.t.counter++
	s.t.raised++
	return s.t.counter, nil
}

// node is one sled of the tests: what stays when the process dies.
type node struct {
	tb    testing.TB
	cfg   Config
	disks [2]*disk // nil: the operating system's folders
	// life makes and opens seals; the fake and the real one satisfy it.
	life interface {
		first() Sealer
		unseal(ctx context.Context, blob []byte, approvals [][]byte) (Sealer, error)
		value() uint64
	}
}

func (t *fakeTPM) first() Sealer { return t.sealer() }
func (t *fakeTPM) value() uint64 { return t.counter }

func newNode(tb testing.TB) *node {
	tb.Helper()
	return &node{tb: tb, life: newFakeTPM(tb), cfg: Config{
		Dirs: [2]string{tb.TempDir(), tb.TempDir()}, Rack: testRack, Baseboard: testID, Alloc: secret.Heap{}, Rand: rand.Reader,
	}}
}

// onDisks puts the node on simulated media.
func (n *node) onDisks() *node {
	n.disks = [2]*disk{newDisk(), newDisk()}
	n.cfg.open = func(path string, _ access) (folder, error) {
		for i, d := range n.disks {
			if n.cfg.Dirs[i] == path && d.gone {
				return nil, fs.ErrNotExist
			} else if n.cfg.Dirs[i] == path {
				return d, nil
			}
		}
		return nil, fs.ErrInvalid
	}
	return n
}

func (n *node) create(value uint64) *Ledger {
	n.tb.Helper()
	l, err := Create(context.Background(), n.cfg, n.life.first(), state(value))
	if err != nil {
		n.tb.Fatal(err)
	}
	n.tb.Cleanup(func() { _ = l.Close() })
	return l
}

func (n *node) open() (*Ledger, wire.LedgerState, Report, error) {
	l, st, r, err := Open(context.Background(), n.cfg, n.life.unseal)
	if err == nil {
		n.tb.Cleanup(func() { _ = l.Close() })
	}
	return l, st, r, err
}

func (n *node) mustOpen(want uint64) (*Ledger, Report) {
	n.tb.Helper()
	l, st, r, err := n.open()
	if err != nil {
		n.tb.Fatal(err)
	}
	if got := value(st); got != want {
		n.tb.Fatalf("opened state %d, want %d", got, want)
	}
	return l, r
}

// state is a state that can be told from others.
func state(value uint64) wire.LedgerState {
	return wire.LedgerState{SetGeneration: value, Quorum: quorum.State{Commits: map[ident.Epoch]bool{}}}
}

func value(st wire.LedgerState) uint64 { return st.SetGeneration }

func save(tb testing.TB, l *Ledger, value uint64) {
	tb.Helper()
	if err := l.Save(tb.Context(), state(value)); err != nil {
		tb.Fatal(err)
	}
}

// disk is a simulated medium: what is not forced to it is lost in a power cut, and it fails on demand.
type disk struct {
	files  map[string][]byte // as the running system sees them
	stable map[string][]byte // after a power cut
	forced map[string]bool   // contents that were forced; a rename of others may lose them
	gone   bool
	// fail is asked before each operation, by name: write, rename, sync, read. torn cuts a write in half, silently.
	fail  func(op, name string) error
	torn  bool
	lying bool // accepts fsync and does nothing
}

func newDisk() *disk {
	return &disk{files: map[string][]byte{}, stable: map[string][]byte{}, forced: map[string]bool{}}
}

// powerCut forgets what was not forced.
func (d *disk) powerCut() {
	d.files = maps.Clone(d.stable)
}

func (d *disk) ask(op, name string) error {
	if d.fail == nil {
		return nil
	}
	return d.fail(op, name)
}

func (d *disk) Read(name string, limit int) ([]byte, error) {
	if err := d.ask("read", name); err != nil {
		return nil, err
	}
	b, ok := d.files[name]
	if !ok {
		return nil, fs.ErrNotExist
	}
	if len(b) > limit {
		return nil, errors.New("disk: file too large")
	}
	return bytes.Clone(b), nil
}

func (d *disk) Put(name string, data []byte) error {
	if err := d.ask("write", name); err != nil {
		d.files[name] = bytes.Clone(data[:len(data)/3])
		return err
	}
	data = bytes.Clone(data)
	if d.torn {
		data = data[:len(data)/2]
	}
	d.files[name], d.forced[name] = data, !d.lying
	return nil
}

func (d *disk) Rename(from, to string) error {
	if err := d.ask("rename", to); err != nil {
		return err
	}
	b, ok := d.files[from]
	if !ok {
		return fs.ErrNotExist
	}
	delete(d.files, from)
	d.files[to], d.forced[to] = b, d.forced[from]
	return nil
}

func (d *disk) SyncDir() error {
	if err := d.ask("sync", "."); err != nil {
		return err
	}
	if d.lying {
		return nil
	}
	d.stable = map[string][]byte{}
	for name, b := range d.files {
		if d.forced[name] {
			d.stable[name] = b
		} else {
			d.stable[name] = nil // the name is there, the content is not
		}
	}
	return nil
}

func (d *disk) Close() error { return nil }
