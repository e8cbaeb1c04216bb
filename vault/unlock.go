package vault

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/keys"
	"github.com/sledvault/sledvault/vault/ledger"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
	"github.com/sledvault/sledvault/vault/unlock"
	"github.com/sledvault/sledvault/vault/wire"
)

// Reasons of unlocking.
const (
	CodeBelowThreshold reason.Code = "below-threshold"  // too few shares; the text names who is missing
	CodeNoRack         reason.Code = "no-rack-secret"   // the rack has no committed configuration yet
	CodeHeaderLost     reason.Code = "disk-header-lost" // a disk that was formatted has no header any more
)

// disks is what the daemon knows of its disks, and the one place where secrets become keys.
type disks struct {
	d       *Daemon
	backend *unlock.LUKS2

	work chan struct{} // holds one token: one opening, formatting or release at a time; the rack secret is in memory once

	mu    sync.Mutex
	state map[string]api.Disk
}

func newDisks(d *Daemon, backend *unlock.LUKS2) *disks {
	s := &disks{d: d, backend: backend, state: map[string]api.Disk{}, work: make(chan struct{}, 1)}
	for _, c := range d.cfg.Disks {
		s.state[c.ID] = api.Disk{ID: c.ID, Backend: c.Backend, Path: c.Path, State: "locked"}
	}
	return s
}

// list returns every configured disk in the configuration's order.
func (s *disks) list() []api.Disk {
	st := s.d.getStore()
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]api.Disk, 0, len(s.d.cfg.Disks))
	for _, c := range s.d.cfg.Disks {
		v := s.state[c.ID]
		if st != nil && v.State == "locked" {
			if rec, ok := st.disk(c.ID); ok {
				v.Epoch = rec.Epoch
			} else {
				v.State = "unformatted"
			}
		}
		if st != nil {
			if rec, ok := st.disk(c.ID); ok {
				v.Rotation = s.d.rotation.text(rec, v.State)
			}
		}
		out = append(out, v)
	}
	return out
}

// set takes in what became of a disk. Where there is no device-mapper a proved key is all that unlocking can mean; the
// proof says so.
func (s *disks) set(r unlock.Result) api.Disk {
	defer s.d.changes.bump()
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.state[r.ID]
	if r.State == unlock.StateKeyProved {
		r.State = unlock.StateUnlocked
	}
	v.State, v.Proof, v.Epoch, v.Mapping, v.MS, v.Error = r.State, r.Proof, r.Epoch, r.Mapping, r.MS, nil
	if r.Error != "" {
		v.Error = &api.Error{Code: r.Code, Text: r.Error, Hint: r.Hint}
	}
	s.state[r.ID] = v
	return v
}

// locked lists the formatted disks that are not open.
func (s *disks) locked(st *store) []DiskConfig {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []DiskConfig
	for _, c := range s.d.cfg.Disks {
		if _, formatted := st.disk(c.ID); formatted && s.state[c.ID].State != unlock.StateUnlocked {
			out = append(out, c)
		}
	}
	return out
}

// begin waits for its turn. The boot holds it for as long as it collects shares, so a caller whose time is over before
// is told who is missing.
func (s *disks) begin(ctx context.Context) error {
	select {
	case s.work <- struct{}{}:
		return nil
	case <-ctx.Done():
		if s.d.getDriver() == nil {
			return s.d.notStarted()
		}
		return s.d.belowThreshold()
	}
}

func (s *disks) end() { <-s.work }

// open opens every locked disk in parallel and drops the secrets. It waits for the threshold as long as ctx allows.
func (s *disks) open(ctx context.Context) error {
	if err := s.begin(ctx); err != nil {
		return err
	}
	defer s.end()
	defer s.d.rotation.nudge()
	st := s.d.getStore()
	if st == nil {
		return s.d.notStarted()
	}
	if err := s.adopt(ctx, st); err != nil {
		return err
	}
	todo := s.locked(st)
	if len(todo) == 0 {
		s.d.boot.open()
		return nil
	}
	epochs := map[ident.Epoch]bool{}
	for _, c := range todo {
		rec, _ := st.disk(c.ID)
		epochs[rec.Epoch] = true
	}
	prks, err := s.derive(ctx, slices.Sorted(maps.Keys(epochs)))
	defer destroyAll(prks)
	if err != nil {
		return err
	}
	s.d.boot.reach(StepShares, StepDisks)
	ctx, cancel := context.WithTimeout(ctx, s.d.cfg.Unlock.Deadline.std())
	defer cancel()
	var wg sync.WaitGroup
	results := make([]api.Disk, len(todo))
	for i, c := range todo {
		wg.Go(func() { results[i] = s.openOne(ctx, st, c, prks) })
	}
	wg.Wait()
	var failed []string
	for _, r := range results {
		if r.State != unlock.StateUnlocked {
			failed = append(failed, r.ID)
		}
	}
	if len(failed) > 0 {
		return reason.New("disk-locked", "see sledvault disks for each disk's reason", "vault: still locked: %s", strings.Join(failed, ", "))
	}
	s.d.boot.open()
	return nil
}

func destroyAll(prks map[ident.Epoch]secret.PRK) {
	for _, p := range prks {
		p.Destroy()
	}
}

func (s *disks) openOne(ctx context.Context, st *store, c DiskConfig, prks map[ident.Epoch]secret.PRK) api.Disk {
	rec, _ := st.disk(c.ID)
	key, err := keys.DiskKey(s.d.alloc, prks[rec.Epoch], c.identity())
	if err != nil {
		return s.set(failure(c.ID, rec.Epoch, err))
	}
	defer key.Destroy()
	res, err := s.backend.Open(ctx, c.disk(), recordOf(rec), key)
	if err != nil {
		if reason.CodeOf(err) == unlock.CodeUnformatted { // a disk with a record had a header
			err = reason.Wrap(err, CodeHeaderLost, "restore the header from a backup; formatting the disk would destroy its data", "vault: disk %s lost its header", c.ID)
		}
		s.d.reasons.CountError(api.CodeInternal, c.ID, err)
		res = failure(c.ID, rec.Epoch, err)
	}
	s.d.log.Info("disk", "disk", c.ID, "state", res.State, "epoch", rec.Epoch, "proof", res.Proof)
	return s.set(res)
}

func failure(id string, e ident.Epoch, err error) unlock.Result {
	r := unlock.Result{ID: id, State: unlock.StateFailed, Epoch: e, Code: api.ErrorOf(err).Code, Error: err.Error(), Hint: reason.HintOf(err)}
	if r.Code == unlock.CodeAbsent {
		r.State = unlock.StateAbsent
	}
	return r
}

// derive turns the rack secrets of the epochs into pseudo-random keys. The secrets are dropped before it returns, at the
// node as well.
func (s *disks) derive(ctx context.Context, epochs []ident.Epoch) (map[ident.Epoch]secret.PRK, error) {
	prks := map[ident.Epoch]secret.PRK{}
	drv := s.d.driver
	if drv == nil {
		return prks, s.d.notStarted()
	}
	defer drv.tell(quorum.ClearSecrets{})
	rack, _ := s.d.rack()
	salt := keys.Salt(rack)
	for _, e := range epochs {
		sec, _, err := s.d.loadSecret(ctx, &e)
		if err != nil {
			return prks, err
		}
		prk, err := keys.NewPRK(s.d.alloc, sec, salt)
		sec.Destroy()
		if err != nil {
			return prks, err
		}
		prks[e] = prk
	}
	return prks, nil
}

// loadSecret asks the node for a rack secret and waits for the threshold. When ctx ends first, the error names who is
// missing.
func (d *Daemon) loadSecret(ctx context.Context, e *ident.Epoch) (secret.RackSecret, ident.Epoch, error) {
	if s := d.lrtqServer(); s != nil && e != nil && *e == quorum.LRTQEpoch {
		sec, err := s.Load(ctx)
		if errors.Is(err, context.DeadlineExceeded) {
			err = reason.Later(CodeBelowThreshold, "power on the missing sleds or mend their network, then: sledvault unlock --wait", "vault: too few shares of the older scheme came in time")
		}
		return sec, *e, err
	}
	rep, err := d.driver.do(ctx, func(id quorum.RequestID) quorum.Input { return quorum.LoadSecret{ID: id, Epoch: e} })
	if errors.Is(err, context.DeadlineExceeded) {
		err = d.belowThreshold()
	}
	return rep.Secret, rep.Epoch, err
}

// belowThreshold says how many shares there are, and whose are missing.
func (d *Daemon) belowThreshold() error {
	st, _, _ := d.driver.Status()
	c := collecting(st)
	if c == nil {
		return reason.Later(api.CodeTimeout, "try again", "vault: the rack secret did not come in time")
	}
	names := make([]string, len(c.Missing))
	for i, m := range c.Missing {
		names[i] = m.Sled.String()
		if !m.Connected {
			names[i] += " (not connected)"
		} else {
			names[i] += " (connected, silent)"
		}
	}
	return reason.Later(CodeBelowThreshold, "power on the missing sleds or mend their network, then: sledvault unlock --wait",
		"vault: below the threshold of epoch %d: have %d, want %d; missing: %s", c.Epoch, c.Have, c.Want, strings.Join(names, ", "))
}

// diskConfig finds a configured disk.
func (s *disks) diskConfig(id string) (DiskConfig, error) {
	i := slices.IndexFunc(s.d.cfg.Disks, func(c DiskConfig) bool { return c.ID == id })
	if i < 0 {
		return DiskConfig{}, &reason.Error{
			Code: api.CodeUnknownDisk, Text: fmt.Sprintf("vault: no disk %.80q is configured", id),
			Hint: "see sledvault disks for the names", Remedy: reason.Usage,
		}
	}
	return s.d.cfg.Disks[i], nil
}

// release records the release of a disk's key, durably, and returns a copy of the key.
func (s *disks) release(ctx context.Context, who api.Caller, id string) (secret.DiskKey, error) {
	ctx, cancel := context.WithTimeout(ctx, s.d.cfg.Unlock.Deadline.std())
	defer cancel()
	if err := s.begin(ctx); err != nil {
		return secret.DiskKey{}, err
	}
	defer s.end()
	c, err := s.diskConfig(id)
	if err != nil {
		return secret.DiskKey{}, err
	}
	st := s.d.getStore()
	if st == nil {
		return secret.DiskKey{}, s.d.notStarted()
	}
	rec, ok := st.disk(id)
	if !ok {
		return secret.DiskKey{}, reason.New("disk-unformatted", "format it first: sledvault disks format "+id, "vault: disk %s has no key yet", id)
	}
	prks, err := s.derive(ctx, []ident.Epoch{rec.Epoch})
	defer destroyAll(prks)
	if err != nil {
		return secret.DiskKey{}, err
	}
	if err := st.observe(ctx, func(o *ledger.Observed) {
		o.AddRelease(ledger.Release{Disk: id, UID: who.UID, PID: who.PID, Role: string(who.Role), BootMS: s.d.sinceBoot()})
	}); err != nil {
		return secret.DiskKey{}, reason.Wrap(err, "release-unrecorded", "check both state folders", "vault: the release could not be recorded, so the key stays")
	}
	s.d.log.Info("key released", "disk", id, "uid", who.UID, "pid", who.PID)
	return keys.DiskKey(s.d.alloc, prks[rec.Epoch], c.identity())
}

// format encrypts a disk under the newest epoch, records what must not change in its header, and opens it.
func (s *disks) format(ctx context.Context, id string, r api.FormatRequest) (api.Disk, error) {
	wait, cancel := context.WithTimeout(ctx, s.d.cfg.Unlock.Deadline.std())
	defer cancel()
	if err := s.begin(wait); err != nil {
		return api.Disk{}, err
	}
	defer s.end()
	c, err := s.diskConfig(id)
	if err != nil {
		return api.Disk{}, err
	}
	st := s.d.getStore()
	if st == nil || s.d.driver == nil {
		return api.Disk{}, s.d.notStarted()
	}
	if _, ok := st.disk(id); ok {
		return api.Disk{}, reason.New("disk-formatted", "nothing to do; see sledvault disks", "vault: disk %s is formatted already", id)
	}
	epoch, ok := st.snapshot().Quorum.LatestCommitted()
	if !ok {
		return api.Disk{}, reason.Later(CodeNoRack, "initialise the rack first: sledvault rack init", "vault: the rack has no secret yet")
	}
	prks, err := s.derive(wait, []ident.Epoch{epoch})
	defer destroyAll(prks)
	if err != nil {
		return api.Disk{}, err
	}
	key, err := keys.DiskKey(s.d.alloc, prks[epoch], c.identity())
	if err != nil {
		return api.Disk{}, err
	}
	defer key.Destroy()
	rack, _ := s.d.rack()
	rec, err := s.makeDisk(ctx, c, r, key, epoch, rack)
	if err != nil {
		return api.Disk{}, err
	}
	if err := st.update(ctx, func(l *wire.LedgerState) { l.Disks = append(l.Disks, diskRecord(c, rec)) }); err != nil {
		return api.Disk{}, err
	}
	return s.openOne(ctx, st, c, prks), nil
}

// makeDisk encrypts a disk, or adopts one that opens with the rack's key already: after a crash between its encryption
// and the ledger's save, or when it comes from another sled's slot.
func (s *disks) makeDisk(ctx context.Context, c DiskConfig, r api.FormatRequest, key secret.DiskKey, epoch ident.Epoch, rack ident.RackID) (unlock.Record, error) {
	h, err := s.backend.Inspect(ctx, c.disk())
	if err == nil && h.Rack == rack && h.Epoch == epoch && !r.Overwrite && !r.Resume {
		return s.backend.Adopt(ctx, c.disk(), key, epoch)
	}
	return s.backend.Format(ctx, c.disk(), unlock.FormatOptions{KeepData: r.KeepData, Resume: r.Resume, Overwrite: r.Overwrite}, key, epoch, rack)
}

// unlockAtBoot collects the shares and opens the disks. Whatever stays locked is tried again when the quorum changes;
// the operator can ask through the API at any time.
func (d *Daemon) unlockAtBoot(ctx context.Context) error {
	d.boot.begin(StepShares)
	for {
		st, _, _ := d.driver.Status()
		before := circumstances(st)
		err := d.openWatching(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err == nil {
			if err := d.getStore().refresh(ctx); err != nil { // what extended the PCRs since the start is approved too
				d.reasons.CountError("approvals-not-refreshed", "", err)
			}
			d.nameTPM(ctx)
			d.log.Info("unlocked", "ms", d.boot.snapshot().MSToUnlocked)
			Notify("STATUS=unlocked")
			return d.rotateAtBoot(ctx)
		}
		d.reasons.CountError(api.CodeInternal, "", err)
		d.log.Error("unlock", "err", err, "hint", reason.HintOf(err))
		d.boot.wait("the operator, or a change of the rack", err)
		if !d.awaitNews(ctx, before, d.boot.changed(), time.After(retryLast)) {
			return ctx.Err()
		}
	}
}

// openWatching opens the disks and shows meanwhile for whom it waits.
func (d *Daemon) openWatching(ctx context.Context) error {
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { d.watchShares(ctx, done) })
	err := d.disks.open(ctx)
	close(done)
	wg.Wait()
	return err
}

func (d *Daemon) watchShares(ctx context.Context, done <-chan struct{}) {
	for {
		st, _, changed := d.driver.Status()
		if c := collecting(st); c != nil {
			d.boot.wait(fmt.Sprintf("shares of epoch %d: have %d, want %d", c.Epoch, c.Have, c.Want), d.shortage(c))
		} else if d.boot.current() == StepShares {
			d.boot.wait("", nil)
		}
		select {
		case <-ctx.Done():
			return
		case <-done:
			return
		case <-changed:
		}
	}
}

// shortage is the below-threshold error while shares are still being collected.
func (d *Daemon) shortage(c *api.Collecting) error {
	if c.Have >= c.Want {
		return nil
	}
	return d.belowThreshold()
}

// diskRecord and recordOf turn a back end's record into the ledger's form and back.
func diskRecord(c DiskConfig, r unlock.Record) wire.DiskRecord {
	out := wire.DiskRecord{ID: c.ID, Backend: c.Backend, Vendor: c.Vendor, Model: c.Model, Serial: c.Serial, Epoch: r.Epoch, KeySlot: r.KeySlot, State: recordFormatted}
	for _, p := range r.Pins {
		out.HeaderPins = append(out.HeaderPins, wire.Pin(p))
	}
	return out
}

func recordOf(d wire.DiskRecord) unlock.Record {
	out := unlock.Record{Epoch: d.Epoch, KeySlot: d.KeySlot}
	for _, p := range d.HeaderPins {
		out.Pins = append(out.Pins, unlock.Pin(p))
	}
	return out
}
