// Package ledger keeps what a sled must not forget: its shares, configurations, commits and disks, encrypted under a
// sealed key, in two copies on two media, with a counter in the TPM that makes old copies useless.
//
// It owns the file formats, the order of writing, and the choice at start. It refuses to overwrite what it cannot read
// when nothing else is left, to go on after a failed save, and to take a damaged ledger for an absent one. What the
// plaintext means is vault/wire and vault/quorum; what opens the key is an interface that package sealing satisfies.
//
// Begin with [Open] and [Ledger.Save]; read on in vault/driver.go. Implements ledger.md.
package ledger

import (
	"context"
	"io"
	"sync"
	"sync/atomic"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
	"github.com/sledvault/sledvault/vault/wire"
)

// Names of the files in each state folder.
const (
	LedgerFile    = "ledger.sv"
	ObservedFile  = "observed.sv"
	NetworkFile   = "network.sv"
	EnrolmentFile = "enrolment.cbor"
	PreviousFile  = "enrolment-before.cbor" // the set before the last change of keys
)

// Sealer is an unsealed key with the counter that guards it. *sealing.Unsealed satisfies it.
type Sealer interface {
	Key() secret.SealKey // 32 bytes; stays the sealer's
	Blob() []byte        // the sealed form of the key, stored in clear in each copy
	// Approve signs the platform states that may open the blob while the counter is at most sequence.
	Approve(ctx context.Context, sequence uint64) ([][]byte, error)
	// WithTickets spares the next start work with these approvals, where that is possible.
	WithTickets(ctx context.Context, approvals [][]byte) [][]byte
	// Approves reports whether approvals that stand in a file are what Approve would sign now.
	Approves(ctx context.Context, sequence uint64, have [][]byte) (bool, error)
	// Opened is what the counter read, authenticated, when the blob was opened.
	Opened() uint64
	// Counter reads the counter, authenticated.
	Counter(ctx context.Context) (uint64, error)
	// Increment moves the counter by one if it still has the value from, and returns what it has then. It re-reads before
	// it increments, so that a lost answer never counts twice.
	Increment(ctx context.Context, from uint64) (uint64, error)
	Destroy()
}

// Unseal opens a blob with whichever approval fits the running platform.
type Unseal func(ctx context.Context, blob []byte, approvals [][]byte) (Sealer, error)

// Config says where the copies lie and whose they are.
type Config struct {
	Dirs      [2]string // absolute, on different media; copy A and copy B
	Rack      ident.RackID
	Baseboard ident.Baseboard
	Alloc     secret.Allocator
	Rand      io.Reader   // nonces
	Reasons   *reason.Log // counts damage, repairs and degraded saves; may be nil
	// Steps is called after each step of a start or a save, with its name; an error stops everything right there, as a
	// power cut would. For tests; nil otherwise.
	Steps func(step string) error

	open func(path string, how access) (folder, error) // nil: the operating system's folders
}

func (c *Config) validate() error {
	for _, d := range c.Dirs {
		if d == "" {
			return reason.New(CodeFolder, hintFolder, "ledger: two state folders are needed: have %q and %q", c.Dirs[0], c.Dirs[1])
		}
	}
	if c.Dirs[0] == c.Dirs[1] {
		return reason.New(CodeFolder, hintFolder, "ledger: both copies in one folder %q", c.Dirs[0])
	}
	if c.Rack.IsZero() || c.Alloc == nil || c.Rand == nil {
		return reason.New(CodeFolder, "", "ledger: config lacks rack, allocator or randomness")
	}
	return c.Baseboard.Validate()
}

func (c *Config) step(name string) error {
	if c.Steps == nil {
		return nil
	}
	if err := c.Steps(name); err != nil {
		return &abortError{err}
	}
	return nil
}

func (c *Config) folder(i int, how access) (folder, error) {
	if c.open != nil {
		return c.open(c.Dirs[i], how)
	}
	f, err := openFolder(c.Dirs[i], how)
	if err != nil {
		return nil, err // not a nil *osFolder in an interface
	}
	return f, nil
}

func (c *Config) count(code reason.Code, i int, err error) {
	if c.Reasons != nil && err != nil {
		c.Reasons.Count(code, "copy "+copyName(i), err.Error())
	}
}

// Ledger is the open ledger of one sled. It is safe for concurrent use; saves happen one after the other.
type Ledger struct {
	cfg    Config
	sealer Sealer

	mu         sync.Mutex
	folders    [2]folder // nil while the medium is missing
	copies     [2]CopyReport
	counter    uint64 // of the TPM; we are its only writer
	sequence   uint64
	generation uint64
	epoch      ident.Epoch
	skip       bool // the next save leaves out a number
	single     bool // the newest file stands on one medium only
	stopped    bool
	saves      uint64
	newest     *File // what stands on the media
	observed   Observed
	obsNumber  uint64
	network    Network
	netNumber  uint64

	status atomic.Pointer[Status]
}

// Status is the state of the ledger, without secrets.
type Status struct {
	Sequence   uint64        `json:"sequence"`
	Generation uint64        `json:"generation"`
	Counter    uint64        `json:"counter"`
	Epoch      ident.Epoch   `json:"epoch"`
	Copies     [2]CopyReport `json:"copies"`
	Degraded   bool          `json:"degraded"` // a copy is missing, damaged or could not be written
	Single     bool          `json:"single"`   // the newest state stands on one medium only
	Stopped    bool          `json:"stopped"`  // a save failed; nothing more is saved
	Saves      uint64        `json:"saves"`    // protected saves since start: each costs the TPM's memory one write or two
}

// Status returns the state after the last save. It never waits.
func (l *Ledger) Status() Status { return *l.status.Load() }

// publish sets what Status returns.
func (l *Ledger) publish() {
	l.status.Store(&Status{
		Sequence: l.sequence, Generation: l.generation, Counter: l.counter, Epoch: l.epoch, Copies: l.copies,
		Degraded: l.copies[0].State != CopyOK || l.copies[1].State != CopyOK,
		Single:   l.single, Stopped: l.stopped, Saves: l.saves,
	})
}

// Close releases the folders and destroys the sealer.
func (l *Ledger) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stopped = true
	l.sealer.Destroy()
	l.publish()
	return closeAll(&l.folders)
}

func closeAll(folders *[2]folder) (err error) {
	for i, f := range folders {
		if f == nil {
			continue
		}
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		folders[i] = nil
	}
	return err
}

// Create writes the first state of a newly enrolled sled: both copies, then the counter (ledger.md §5). Both media must
// take it. A ledger that lies in either folder is never overwritten: ledger-exists. The sealer becomes the ledger's.
func Create(ctx context.Context, cfg Config, s Sealer, first wire.LedgerState) (*Ledger, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	l := &Ledger{cfg: cfg, sealer: s}
	if err := l.create(ctx, first); err != nil {
		_ = closeAll(&l.folders) // the first error says more
		return nil, err
	}
	return l, nil
}

func (l *Ledger) create(ctx context.Context, first wire.LedgerState) (err error) {
	for i := range l.folders {
		if l.folders[i], err = l.cfg.folder(i, creating); err != nil {
			return folderError(err)
		}
		if c := l.cfg.read(l.folders[i]); c.State != CopyAbsent {
			return reason.New(CodeExists, hintExists, "ledger: copy %s exists (%s)", copyName(i), c.State)
		}
	}
	if l.counter, err = l.sealer.Counter(ctx); err != nil {
		return err
	}
	l.sequence = l.counter
	if err := l.save(ctx, first); err != nil {
		return err
	}
	if st := l.Status(); st.Degraded {
		return reason.New(CodeDegraded, hintFolder, "ledger: a new ledger needs both media: copy A %s, copy B %s", st.Copies[0], st.Copies[1])
	}
	return nil
}

func folderError(err error) error {
	return reason.Wrap(err, CodeFolder, hintFolder, "ledger: open folder")
}
