package vault

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sledvault/sledvault/internal/lockedmem"
	"github.com/sledvault/sledvault/rot"
	"github.com/sledvault/sledvault/rot/channel"
	"github.com/sledvault/sledvault/rot/enroll"
	"github.com/sledvault/sledvault/sealing"
	"github.com/sledvault/sledvault/sp"
	"github.com/sledvault/sledvault/tpm"
	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/ledger"
	"github.com/sledvault/sledvault/vault/lrtqnet"
	"github.com/sledvault/sledvault/vault/peer"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/unlock"
)

// Daemon is one sled. Its fields appear as the boot goes on; the APIs answer from what is there.
type Daemon struct {
	cfg     Config
	version string
	log     *slog.Logger
	reasons *reason.Log
	alloc   *lockedmem.Arena
	rand    io.Reader
	boot    *progress
	changes *changes          // of the status
	tls     *channel.Identity // the TLS key of this start
	failed  chan error        // a defect or a failed save: the daemon must stop

	disks    *disks
	rotation *rotation
	enrolled chan struct{}   // signals that a store appeared or the lost reason changed
	claim    *claiming       // enrolment in progress, enroll.go
	confined []api.Hardening // set before anything is served
	trace    *marker         // for whoever traces system calls; may be nil
	removal  removal         // news that this sled was removed, removed.go

	haltBoot  func()      // ends the boot and waits for it
	resetting atomic.Bool // reset.go

	steps func(string) error // of the ledger; tests only

	adopting sync.Mutex // one change of the enrolment set at a time

	seenMu   sync.Mutex
	seenTPMs map[string]rot.Seen // by EK Name in hex
	seenNews chan struct{}       // there is something to write down

	mu       sync.RWMutex // guards everything below
	state    api.State
	lost     error // why the seal is lost
	sp       *sp.Client
	id       ident.Baseboard
	revision uint32 // of the board, for the older scheme
	tpm      *tpm.TPM
	tpmID    api.TPMIdentity
	srk      []byte           // SRK Name at the start
	measured map[int][32]byte // sealing PCRs at the start
	claimed  *sealing.Claim   // what the TPM remembered at the start; nil: nothing
	set      *enroll.Set
	unsealed *sealing.Unsealed
	store    *store
	prover   *rot.Prover
	mesh     *mesh // ends with the daemon
	network  *network
	peers    *peer.Manager
	driver   *driver
	// oldScheme serves the older scheme; nil while it is not served.
	oldScheme *lrtqnet.Server
	// agentPeers is the list of peer addresses that the bootstrap agent gave; nil: the configuration's.
	agentPeers []string
}

// Options are what the command line adds to the configuration.
type Options struct {
	Version string
	Start   time.Time // of the process
	Log     *slog.Logger
	// Confine takes from the whole process, for good, every file that the daemon does not need. For a program that is
	// nothing but the daemon.
	Confine bool

	rotation rotationHooks      // tests only
	started  func(*Daemon)      // tests only
	steps    func(string) error // of the ledger; tests only
}

// Run is one life of the daemon. It returns nil when ctx ends.
func Run(ctx context.Context, cfg Config, o Options) error {
	d := &Daemon{
		cfg: cfg, version: o.Version, log: o.Log, reasons: reason.NewLog(), rand: rand.Reader, boot: newProgress(o.Start, o.Log),
		failed: make(chan error, 1), enrolled: make(chan struct{}, 1), state: api.StateStarting, seenTPMs: map[string]rot.Seen{}, seenNews: make(chan struct{}, 1),
	}
	d.changes = newChanges()
	d.boot.tell = d.changes.bump
	d.reasons.OnCount(d.changes.bump)
	for _, name := range cfg.Relax.Names() {
		o.Log.Warn("RELAXED: this sled accepts less than it should", "relaxation", name)
	}
	if err := d.protect(); err != nil {
		return err
	}
	var err error
	if d.tls, err = channel.NewIdentity(); err != nil {
		return fmt.Errorf("vault: make the TLS key: %w", err)
	}
	d.disks = newDisks(d, unlock.New(unlock.Config{}))
	d.rotation = newRotation(d, o.rotation)
	d.claim = &claiming{}
	d.removal = newRemoval()
	if o.started != nil {
		o.started(d)
	}
	d.trace, d.steps = openMarker(cfg.Log.TraceMarker, d.reasons), o.steps
	defer d.trace.close()
	d.confine(o.Confine)
	return d.serve(ctx)
}

// protect hardens the process and makes the pages for secrets. What cannot be had is shown in status.
func (d *Daemon) protect() (err error) {
	if err := lockedmem.Harden(); err != nil {
		d.reasons.CountError(CodeHarden, "", err)
		d.log.Warn("the process is not fully hardened", "err", err)
	}
	if d.alloc, err = lockedmem.New(); err != nil {
		return reason.Wrap(err, "locked-memory", "raise the limit: LimitMEMLOCK=infinity, or ulimit -l", "vault: pages for secrets")
	}
	return nil
}

// serve runs the APIs and the boot until ctx ends or something must stop the daemon.
func (d *Daemon) serve(parent context.Context) error {
	d.boot.begin(StepAPI)
	lock, err := lockFolders(d.cfg.State.Copies)
	if err != nil {
		return err
	}
	defer lock.release()
	local, err := api.ListenLocal(api.LocalConfig{Socket: d.cfg.API.Socket, Rules: d.cfg.API.Roles, Node: d, Reasons: d.reasons})
	if err != nil {
		return err
	}
	underlay, err := d.listenUnderlay(parent)
	if err != nil {
		return err
	}
	metrics, err := d.listenMetrics()
	if err != nil {
		return err
	}
	Notify("READY=1\nSTATUS=booting")
	ctx, cancel := context.WithCancel(parent)
	var wg sync.WaitGroup
	start := func(f func(context.Context) error) {
		wg.Go(func() {
			if err := f(ctx); err != nil && ctx.Err() == nil {
				d.fail(err)
			}
		})
	}
	bootCtx, stopBoot := context.WithCancel(ctx)
	booted := make(chan struct{})
	d.haltBoot = func() { stopBoot(); <-booted }
	if metrics != nil {
		start(metrics)
	}
	start(local.Serve)
	start(underlay.Serve)
	start(func(context.Context) error {
		defer close(booted)
		if err := d.bootUp(bootCtx); bootCtx.Err() == nil {
			return err
		}
		return nil
	})
	select {
	case <-parent.Done():
	case err = <-d.failed:
		d.log.Error("stopping", "err", err, "hint", reason.HintOf(err))
	}
	cancel()
	wg.Wait()
	d.close()
	return err
}

// fail stops the daemon. The first cause counts.
func (d *Daemon) fail(err error) {
	select {
	case d.failed <- err:
	default:
	}
}

// close ends what the boot started, and wipes what it unsealed. Nothing else runs by then but the peer network.
func (d *Daemon) close() {
	if !d.resetting.Load() { // otherwise it is settled already
		d.disks.settle()
	}
	d.mu.RLock()
	prover, st, t, line := d.prover, d.store, d.tpm, d.sp
	d.mu.RUnlock()
	d.hangUp()
	if prover != nil {
		prover.Close()
	}
	if st != nil {
		_ = st.ledger.Close() // wipes what was unsealed, too
	}
	if t != nil {
		_ = t.Close()
	}
	if line != nil {
		_ = line.Close()
	}
}

func (d *Daemon) sinceBoot() int64 { return time.Since(d.boot.start).Milliseconds() }

func (d *Daemon) notStarted() error {
	b := d.boot.snapshot()
	return reason.Later(api.CodeNotStarted, "see sledvault status", "vault: the boot is at step %s, waiting for %s", b.Step, orNothing(b.Waiting))
}

func orNothing(s string) string {
	if s == "" {
		return "nobody"
	}
	return s
}

func (d *Daemon) setSP(c *sp.Client) { d.mu.Lock(); defer d.mu.Unlock(); d.sp = c }

func (d *Daemon) setIdentity(b ident.Baseboard, revision uint32) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.id, d.revision = b, revision
}

func (d *Daemon) identity() ident.Baseboard { d.mu.RLock(); defer d.mu.RUnlock(); return d.id }

func (d *Daemon) setState(s api.State) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.state != s {
		d.log.Info("state", "from", d.state, "to", s)
		d.state = s
		d.changes.bump()
	}
}

func (d *Daemon) getState() api.State { d.mu.RLock(); defer d.mu.RUnlock(); return d.state }

func (d *Daemon) setSet(s *enroll.Set) { d.mu.Lock(); defer d.mu.Unlock(); d.set = s; d.changes.bump() }

// Set is the current enrolment set, nil while unclaimed.
func (d *Daemon) Set() *enroll.Set { d.mu.RLock(); defer d.mu.RUnlock(); return d.set }

// setUnsealed keeps what was unsealed for the claim index. It belongs to the ledger, which wipes it.
func (d *Daemon) setUnsealed(u *sealing.Unsealed) { d.mu.Lock(); defer d.mu.Unlock(); d.unsealed = u }

func (d *Daemon) getStore() *store { d.mu.RLock(); defer d.mu.RUnlock(); return d.store }

func (d *Daemon) getDriver() *driver { d.mu.RLock(); defer d.mu.RUnlock(); return d.driver }

func (d *Daemon) srkName() []byte { d.mu.RLock(); defer d.mu.RUnlock(); return d.srk }

func (d *Daemon) rack() (ident.RackID, bool) {
	if s := d.Set(); s != nil {
		return s.Rack, true
	}
	return ident.RackID{}, false
}

// loseSeal puts the sled into the state lost-seal: it keeps its files, starts no peers and waits to be enrolled again.
func (d *Daemon) loseSeal(err error) {
	d.reasons.CountError(CodeLostSeal, "", err)
	d.log.Error("lost seal", "err", err, "hint", reason.HintOf(err))
	d.mu.Lock()
	d.lost = err
	d.mu.Unlock()
	d.setState(api.StateLostSeal)
}

func (d *Daemon) lostReason() error { d.mu.RLock(); defer d.mu.RUnlock(); return d.lost }

func (d *Daemon) dirs() [2]string { return [2]string{d.cfg.State.Copies[0], d.cfg.State.Copies[1]} }

func (d *Daemon) sealParams() sealing.Params {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return sealing.Params{
		TPM: d.tpm, Alloc: d.alloc, Rand: d.rand, Baseboard: d.id, PCRs: d.cfg.TPM.PCRs,
		CounterIndex: d.cfg.TPM.CounterIndex, ClaimIndex: d.cfg.TPM.ClaimIndex, AuthDirs: d.dirs(), Measured: d.measured, Reasons: d.reasons,
	}
}

func (d *Daemon) ledgerConfig(rack ident.RackID) ledger.Config {
	return ledger.Config{Dirs: d.dirs(), Rack: rack, Baseboard: d.identity(), Alloc: d.alloc, Rand: d.rand, Reasons: d.reasons, Steps: d.steps}
}

// std converts to the standard type.
func (d Duration) std() time.Duration { return time.Duration(d) }
