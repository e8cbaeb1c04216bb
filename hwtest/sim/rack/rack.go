//go:build linux

// Package simrack runs a whole rack on one machine: real sledvaultd processes, each with a software TPM that a simulated
// firmware has measured into, a simulated service processor, an address, state folders and disks of its own.
//
// It owns the hardware and the operator's hands: power, copies of disks, commands typed. It holds no protocol logic: what
// it asks of a rack it asks through the sledvault command and the public API client. It serves the demo and tests alike
// and has no dependency on package testing.
//
// Read next: scenes.go for what is played, sled.go for the hardware, supervise.go for the lives of a daemon.
package simrack

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/sledvault/sledvault/vault/reason"
)

// Limits of a simulated rack. The protocol allows 32 members; one more can be added.
const (
	MinSleds = 3
	MaxSleds = 31
)

// Ports that every sled listens on, each on an address of its own.
const (
	peerPort     = 12349
	underlayPort = 12350
)

// guardHost is the last byte of the address that a rack holds for as long as it lives, so that no other picks its net.
const guardHost = 254

// diskSize is the default size of a disk. 32 MiB of it are needed to encrypt in place.
const diskSize = 48 << 20

// maxDir keeps the paths of sockets below the 108 bytes that unix sockets allow.
const maxDir = 70

// patience bounds every single wait for a sled.
const patience = 60 * time.Second

// CodeRack marks a simulated rack that cannot be built, or is too small for a scene.
const CodeRack reason.Code = "simrack"

// Options describes a simulated rack.
type Options struct {
	Sleds    int           // MinSleds to MaxSleds
	Dir      string        // where the rack's folder is made; "" means os.TempDir
	Daemon   string        // path of sledvaultd
	Command  string        // path of sledvault
	DiskSize int64         // bytes per disk, a multiple of 4096; 0 means 48 MiB
	LogLevel string        // of the daemons; "" means info
	Deadline time.Duration // [unlock] deadline of the daemons; 0 means their default
	Keep     bool          // Close leaves the folder
	// Tell is told what happens, from several goroutines at once; it may be nil.
	Tell func(Event)
}

// Event is something that happened to a sled, or to the rack as a whole.
type Event struct {
	Sled string // name; "" for the rack
	Text string
}

// Rack is a simulated rack.
type Rack struct {
	Dir  string // holds everything of this rack, 0700
	File string // the operator's rack file; "" before Init

	o     Options
	net   [2]byte // sleds live at 127.net[0].net[1].1 and up
	guard net.Listener
	hosts int // last byte of the newest sled's address

	fingerprint string
	boots       []Boot

	making sync.Mutex         // one new machine at a time
	cancel context.CancelFunc // ends supervisors
	life   context.Context    // of the supervisors
	wg     sync.WaitGroup

	mu     sync.Mutex // guards what follows; one goroutine, that of Play, changes sleds
	sleds  []*Sled    // members; replaced as a whole, never changed in place
	extra  []*Sled    // machines that are no members: new ones, strangers, thieves
	closed bool
}

// New builds the hardware of a rack: TPMs with a measured boot, service processors, disks with their patterns. No daemon
// runs yet. After an error nothing is left behind; otherwise the caller must Close.
func New(ctx context.Context, o Options) (*Rack, error) {
	if o.Sleds < MinSleds || o.Sleds > MaxSleds {
		return nil, &reason.Error{Code: CodeRack, Text: fmt.Sprintf("simrack: sleds: have %d, want %d to %d", o.Sleds, MinSleds, MaxSleds), Remedy: reason.Usage}
	}
	if o.DiskSize == 0 {
		o.DiskSize = diskSize
	}
	if o.LogLevel == "" {
		o.LogLevel = "info"
	}
	if o.Tell == nil {
		o.Tell = func(Event) {}
	}
	dir, err := newFolder(o.Dir)
	if err != nil {
		return nil, err
	}
	r := &Rack{Dir: dir, o: o}
	r.life, r.cancel = context.WithCancel(context.Background())
	if err := r.build(ctx); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// newFolder makes the rack's folder. Where the temporary folder's own path is too long for sockets it takes /tmp.
func newFolder(parent string) (string, error) {
	if parent == "" {
		parent = os.TempDir()
	}
	parent, err := filepath.Abs(parent)
	if err != nil {
		return "", err
	}
	if len(parent) > maxDir {
		parent = "/tmp"
	}
	dir, err := os.MkdirTemp(parent, "sledvault-")
	if err != nil {
		return "", reason.Wrap(err, CodeRack, "set TMPDIR to a folder that can be written to", "simrack: make folder")
	}
	return dir, nil
}

func (r *Rack) build(ctx context.Context) error {
	if err := r.pickNet(); err != nil {
		return err
	}
	for range r.o.Sleds {
		r.sleds = append(r.sleds, r.nextSled())
	}
	return r.each(ctx, r.sleds, func(ctx context.Context, s *Sled) error {
		if err := s.build(ctx); err != nil {
			return err
		}
		return s.makeDisks()
	})
}

// nextSled is a sled with a name, a serial number and an address that none had before.
func (r *Rack) nextSled() *Sled {
	r.hosts++
	return r.newSled(fmt.Sprintf("sled-%d", r.hosts), r.hosts, fmt.Sprintf("BRM4222%04d", r.hosts))
}

// pickNet chooses a /24 of loopback addresses by chance and keeps others from choosing it.
func (r *Rack) pickNet() error {
	var last error
	for range 50 {
		n, err := rand.Int(rand.Reader, big.NewInt(254*256))
		if err != nil {
			return err
		}
		r.net = [2]byte{byte(1 + n.Int64()/256), byte(n.Int64() % 256)}
		if r.guard, last = net.Listen("tcp", r.addr(guardHost, peerPort)); last != nil {
			continue
		}
		if last = r.portsFree(); last == nil {
			return nil
		}
		_ = r.guard.Close()
		r.guard = nil
	}
	return reason.Wrap(last, CodeRack, "stop what listens on 127.0.0.0/8, ports 12349 and 12350", "simrack: no free loopback addresses")
}

// portsFree looks for listeners on all addresses, which would be in the way.
func (r *Rack) portsFree() error {
	for _, port := range []int{peerPort, underlayPort} {
		l, err := net.Listen("tcp", r.addr(1, port))
		if err != nil {
			return err
		}
		if err := l.Close(); err != nil {
			return err
		}
	}
	return nil
}

func (r *Rack) addr(host, port int) string {
	return fmt.Sprintf("127.%d.%d.%d:%d", r.net[0], r.net[1], host, port)
}

// Sleds are the rack's members, oldest first. The caller must not change the list.
func (r *Rack) Sleds() []*Sled {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sleds
}

// Sled is member number i, counted from 0.
func (r *Rack) Sled(i int) *Sled { return r.Sleds()[i] }

// Find returns the sled of that name.
func (r *Rack) Find(name string) (*Sled, error) {
	for _, s := range r.Sleds() {
		if s.Name == name {
			return s, nil
		}
	}
	return nil, &reason.Error{Code: CodeRack, Text: fmt.Sprintf("simrack: no sled %.40q", name), Hint: "names are sled-1, sled-2 and so on", Remedy: reason.Usage}
}

// Threshold is how many sleds must be together: the default of the rack file.
func (r *Rack) Threshold() int { return len(r.Sleds())/2 + 1 }

// SledError is an error with one sled.
type SledError struct {
	Sled *Sled
	Err  error
}

func (e *SledError) Error() string { return e.Sled.Name + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *SledError) Unwrap() error { return e.Err }

// all runs f for every sled at the same time. The first error counts and ends the others.
func (r *Rack) all(ctx context.Context, sleds []*Sled, f func(context.Context, *Sled) error) error {
	return fan(ctx, sleds, len(sleds), f)
}

// each is all with as many at a time as there are processors.
func (r *Rack) each(ctx context.Context, sleds []*Sled, f func(context.Context, *Sled) error) error {
	return fan(ctx, sleds, runtime.NumCPU(), f)
}

func fan(ctx context.Context, sleds []*Sled, width int, f func(context.Context, *Sled) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	slots := make(chan struct{}, max(width, 1))
	for _, s := range sleds {
		wg.Go(func() {
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return
			}
			defer func() { <-slots }()
			if err := f(ctx, s); err != nil {
				if _, named := errors.AsType[*SledError](err); !named {
					err = &SledError{s, err}
				}
				cancel(err)
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

func (r *Rack) tell(sled, format string, args ...any) {
	r.o.Tell(Event{Sled: sled, Text: fmt.Sprintf(format, args...)})
}

// Close ends every process and removes the folder. It may be called again.
func (r *Rack) Close() error {
	r.mu.Lock()
	closed, extra := r.closed, r.extra
	r.closed, r.extra = true, nil
	r.mu.Unlock()
	if closed {
		return nil
	}
	r.cancel()
	r.wg.Wait()
	var errs []error
	for _, s := range append(extra, r.Sleds()...) {
		errs = append(errs, s.dismantle())
	}
	if r.guard != nil {
		errs = append(errs, r.guard.Close())
	}
	if !r.o.Keep {
		errs = append(errs, os.RemoveAll(r.Dir))
	}
	return errors.Join(errs...)
}
