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

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/keys"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
	"github.com/sledvault/sledvault/vault/unlock"
	"github.com/sledvault/sledvault/vault/wire"
)

// Reasons of rotation.
const (
	CodeRotationWaits  reason.Code = "rotation-waits"  // too few sleds to prove that the new secret can be rebuilt; disks keep their keys
	CodeRotationFailed reason.Code = "rotation-failed" // a disk could not be given its new key; it still opens
)

const (
	hintRotationWaits  = "power on the named sleds or mend their network; the rotation then goes on by itself"
	hintRotationFailed = "mend what the text says, then: sledvault unlock"
)

// The states of a disk's record.
const (
	recordFormatted = "formatted"
	recordRotating  = "rotating" // the record is of the new key; slots of older keys may be left
)

// The steps of a rotation, in their order (disks.md §5). A daemon that dies between any two resumes.
const (
	rotationAgreed   = "agreed"   // one share more than the threshold agrees on the new secret
	rotationAdded    = "added"    // the disks have the new key beside the old one, and it was proved
	rotationRecorded = "recorded" // the ledger names the new key
	rotationRetired  = "retired"  // the disks have no other key
	rotationDone     = "done"     // the ledger says so
)

// rotation moves open disks to the key of the latest committed epoch, after the boot and after every change of the
// rack (disks.md §5). One goroutine; it begins again when the rack, its connections or the disks change.
type rotation struct {
	d     *Daemon
	hooks rotationHooks
	kick  chan struct{} // disks were opened, or the operator asked; holds one

	mu     sync.Mutex
	stuck  error            // why the last attempt did not get as far as the disks
	failed map[string]error // why a disk failed in the last attempt, by id
	news   chan struct{}    // closed and replaced at each change
}

// rotationHooks let tests stop at a step, stand in for the rack, or change what the ledger holds.
type rotationHooks struct {
	loaded  func(wire.LedgerState) wire.LedgerState
	reached func(context.Context, string)
	agree   func(context.Context, ident.Epoch) (secret.RackSecret, error)
}

func newRotation(d *Daemon, h rotationHooks) *rotation {
	r := &rotation{d: d, hooks: h, kick: make(chan struct{}, 1), failed: map[string]error{}, news: make(chan struct{})}
	if r.hooks.agree == nil {
		r.hooks.agree = d.agreement
	}
	return r
}

// nudge makes the rotation look again.
func (r *rotation) nudge() {
	select {
	case r.kick <- struct{}{}:
	default:
	}
}

// unlockAndRotate is the boot from the first share on; then it rotates for as long as the daemon lives.
func (d *Daemon) unlockAndRotate(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { d.rotation.run(ctx) })
	err := d.unlockAtBoot(ctx)
	if err != nil {
		cancel()
	}
	wg.Wait()
	cancel()
	return err
}

// rotateAtBoot shows the rotation that a boot found to do, until it is done. Disks are open meanwhile.
func (d *Daemon) rotateAtBoot(ctx context.Context) error {
	d.boot.begin(StepRotate)
	for {
		_, _, changed := d.driver.Status()
		news := d.rotation.changed()
		what, err := d.rotation.waiting()
		if what == "" {
			d.boot.begin(StepDone)
			return nil
		}
		d.boot.wait(what, err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-news:
		}
	}
}

// run rotates until ctx ends.
func (r *rotation) run(ctx context.Context) {
	for ctx.Err() == nil {
		st, _, _ := r.d.driver.Status()
		before := circumstances(st)
		var again <-chan time.Time
		if target := rotationTarget(st); len(r.d.disks.due(target)) > 0 {
			err := r.attempt(ctx, target)
			if ctx.Err() != nil {
				return
			}
			switch code := reason.CodeOf(err); {
			case code == quorum.CodeOutdated, code == quorum.CodeCleared: // the rack moved on, or somebody dropped the secrets
				continue
			case err != nil && code != CodeRotationWaits && reason.RemedyOf(err) == reason.Retry:
				again = time.After(retryLast)
			}
			r.settle(target, err)
		}
		if !r.d.awaitNews(ctx, before, r.kick, again) {
			return
		}
	}
}

// circumstances is what decides whether an attempt can end differently than the last one.
func circumstances(st quorum.Status) string {
	return fmt.Sprint(rotationTarget(st), st.Peers)
}

// rotationTarget is the epoch that disks should have; 0 if there is none.
func rotationTarget(st quorum.Status) ident.Epoch {
	if st.LatestCommitted == nil || st.Expunged != nil {
		return 0
	}
	return st.LatestCommitted.Epoch
}

// awaitNews waits for a reason to try again: other circumstances, or one of the channels. False when there will be none.
// The node's every step is no reason, since attempts cause some.
func (d *Daemon) awaitNews(ctx context.Context, before string, kick <-chan struct{}, again <-chan time.Time) bool {
	for {
		st, _, changed := d.driver.Status()
		if circumstances(st) != before {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-d.driver.done:
			return false
		case <-kick:
			return true
		case <-again:
			return true
		case <-changed:
		}
	}
}

// attempt moves every disk that is due. The secret and the keys are in memory from the moment when enough sleds agree,
// and until the disks are done or the deadline has passed.
func (r *rotation) attempt(ctx context.Context, target ident.Epoch) error {
	ctx, cancel := context.WithTimeout(ctx, r.d.cfg.Unlock.Deadline.std())
	defer cancel()
	sec, err := r.hooks.agree(ctx, target)
	if err != nil {
		return err
	}
	rack, _ := r.d.rack()
	next, err := keys.NewPRK(r.d.alloc, sec, keys.Salt(rack))
	sec.Destroy()
	if err != nil {
		return err
	}
	defer next.Destroy()
	if err := r.reached(ctx, rotationAgreed, target); err != nil {
		return err
	}
	if err := r.d.disks.begin(ctx); err != nil {
		return err
	}
	defer r.d.disks.end()
	todo, st := r.d.disks.due(target), r.d.getStore()
	epochs := map[ident.Epoch]bool{}
	for _, c := range todo {
		if rec, _ := st.disk(c.ID); rec.Epoch != target {
			epochs[rec.Epoch] = true
		}
	}
	prks := map[ident.Epoch]secret.PRK{}
	if len(epochs) > 0 {
		prks, err = r.d.disks.derive(ctx, slices.Sorted(maps.Keys(epochs)))
	}
	defer destroyAll(prks)
	if err != nil {
		return err
	}
	prks[target] = next
	return r.move(ctx, st, todo, prks, target)
}

// agreement waits until enough sleds agree on the secret of the latest epoch, and returns it.
func (d *Daemon) agreement(ctx context.Context, target ident.Epoch) (secret.RackSecret, error) {
	rep, err := d.driver.do(ctx, func(id quorum.RequestID) quorum.Input { return quorum.CheckAgreement{ID: id, Epoch: target} })
	if errors.Is(err, context.DeadlineExceeded) {
		st, _, _ := d.driver.Status()
		err = rotationWaits(st)
	}
	return rep.Secret, err
}

// reached ends a step: it is logged, tests may stop here, and nothing goes on after the end of ctx.
func (r *rotation) reached(ctx context.Context, step string, target ident.Epoch) error {
	r.d.log.Info("rotation", "step", step, "epoch", target)
	if r.hooks.reached != nil {
		r.hooks.reached(ctx, step)
	}
	if ctx.Err() != nil {
		return reason.Later(CodeRotationFailed, "it goes on by itself", "vault: rotation to epoch %d: out of time after step %s", target, step)
	}
	return nil
}

// move gives the disks their new keys. Disks go side by side; the ledger is saved twice for all of them, since every
// save moves a counter of the TPM. A disk that fails keeps its old key and does not hold up the others.
func (r *rotation) move(ctx context.Context, st *store, todo []DiskConfig, prks map[ident.Epoch]secret.PRK, target ident.Epoch) error {
	m := &mover{r: r, st: st, prks: prks, target: target, failed: map[string]error{}, records: map[string]unlock.Record{}}
	r.starts()
	todo = m.each(todo, func(c DiskConfig) error { return m.addKey(ctx, c) })
	if err := r.reached(ctx, rotationAdded, target); err != nil {
		return err
	}
	if err := m.save(ctx, todo, recordRotating); err != nil {
		return err
	}
	if err := r.reached(ctx, rotationRecorded, target); err != nil {
		return err
	}
	todo = m.each(todo, func(c DiskConfig) error { return m.retire(ctx, c) })
	if err := r.reached(ctx, rotationRetired, target); err != nil {
		return err
	}
	if err := m.save(ctx, todo, recordFormatted); err != nil {
		return err
	}
	r.finish(m.failed)
	return r.reached(ctx, rotationDone, target)
}

// mover is one attempt.
type mover struct {
	r      *rotation
	st     *store
	prks   map[ident.Epoch]secret.PRK
	target ident.Epoch

	mu      sync.Mutex
	failed  map[string]error
	records map[string]unlock.Record
}

// each does a step for every disk at once and returns the disks that came through.
func (m *mover) each(todo []DiskConfig, step func(DiskConfig) error) (done []DiskConfig) {
	errs := make([]error, len(todo))
	var wg sync.WaitGroup
	for i, c := range todo {
		wg.Go(func() { errs[i] = step(c) })
	}
	wg.Wait()
	for i, c := range todo {
		if errs[i] == nil {
			done = append(done, c)
			continue
		}
		m.failed[c.ID] = reason.Wrap(errs[i], CodeRotationFailed, hintRotationFailed, "vault: disk %s: rotation to epoch %d", c.ID, m.target)
	}
	return done
}

// withKey derives a disk's key of an epoch and wipes it after use.
func (m *mover) withKey(c DiskConfig, e ident.Epoch, f func(secret.DiskKey) error) error {
	key, err := keys.DiskKey(m.r.d.alloc, m.prks[e], c.identity())
	if err != nil {
		return err
	}
	defer key.Destroy()
	return f(key)
}

// addKey gives a disk its new key beside the old one. Slots that broken-off rotations left behind are cleared only if
// they leave no room.
func (m *mover) addKey(ctx context.Context, c DiskConfig) error {
	old, _ := m.st.disk(c.ID)
	rec := recordOf(old)
	if old.Epoch != m.target {
		rack, _ := m.r.d.rack()
		err := m.withKey(c, old.Epoch, func(oldKey secret.DiskKey) error {
			return m.withKey(c, m.target, func(newKey secret.DiskKey) (err error) {
				b := m.r.d.disks.backend
				add := func() error {
					rec, err = b.AddKey(ctx, c.disk(), recordOf(old), oldKey, newKey, m.target, rack)
					return err
				}
				if reason.CodeOf(add()) == unlock.CodeNoSlot {
					if err = b.RetireOld(ctx, c.disk(), recordOf(old), oldKey); err == nil {
						_ = add()
					}
				}
				return err
			})
		})
		if err != nil {
			return err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.records[c.ID] = rec
	return nil
}

// retire removes every other key of a disk whose record is saved.
func (m *mover) retire(ctx context.Context, c DiskConfig) error {
	return m.withKey(c, m.target, func(key secret.DiskKey) error {
		return m.r.d.disks.backend.RetireOld(ctx, c.disk(), m.records[c.ID], key)
	})
}

// save writes the records of the disks, and then shows them.
func (m *mover) save(ctx context.Context, done []DiskConfig, state string) error {
	if len(done) == 0 {
		return nil
	}
	err := m.st.update(ctx, func(l *wire.LedgerState) {
		for _, c := range done {
			i := slices.IndexFunc(l.Disks, func(d wire.DiskRecord) bool { return d.ID == c.ID })
			l.Disks[i] = diskRecord(c, m.records[c.ID])
			l.Disks[i].State = state
		}
	})
	if err != nil {
		return err
	}
	for _, c := range done {
		m.r.d.disks.moved(c.ID, m.target)
	}
	return nil
}

// due lists the open disks whose key is not of the target epoch, or that may have older keys besides.
func (s *disks) due(target ident.Epoch) (out []DiskConfig) {
	st := s.d.getStore()
	if st == nil || target == 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.d.cfg.Disks {
		if rec, ok := st.disk(c.ID); ok && s.state[c.ID].State == unlock.StateUnlocked && behind(rec, target) {
			out = append(out, c)
		}
	}
	return out
}

func behind(rec wire.DiskRecord, target ident.Epoch) bool {
	return rec.Epoch < target || rec.State == recordRotating
}

// moved shows the new epoch of an open disk.
func (s *disks) moved(id string, e ident.Epoch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.state[id]
	v.Epoch = e
	s.state[id] = v
}

// starts forgets how the last attempt ended.
func (r *rotation) starts() { r.tell(nil, map[string]error{}) }

// finish takes in which disks failed.
func (r *rotation) finish(failed map[string]error) {
	for id, err := range failed {
		r.d.reasons.CountError(CodeRotationFailed, id, err)
		r.d.log.Error("rotation", "disk", id, "err", err, "hint", reason.HintOf(err))
	}
	r.tell(nil, failed)
}

// settle takes in how an attempt ended that did not come to its end.
func (r *rotation) settle(target ident.Epoch, err error) {
	if err == nil {
		return
	}
	r.d.reasons.CountError(CodeRotationFailed, "", err)
	r.d.log.Warn("rotation", "epoch", target, "err", err, "hint", reason.HintOf(err))
	r.tell(err, map[string]error{})
}

func (r *rotation) tell(stuck error, failed map[string]error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stuck, r.failed = stuck, failed
	close(r.news)
	r.news = make(chan struct{})
	r.d.changes.bump()
}

func (r *rotation) changed() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.news
}

// waiting says for what the disks that are due wait, and why; "" when none is due.
func (r *rotation) waiting() (string, error) {
	st, _, _ := r.d.driver.Status()
	todo := r.d.disks.due(rotationTarget(st))
	if len(todo) == 0 {
		return "", nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range todo {
		if err := r.failed[c.ID]; err != nil {
			return "the operator, or a change of the rack", err
		}
	}
	if r.stuck != nil && reason.RemedyOf(r.stuck) != reason.Retry {
		return "the operator, or a change of the rack", r.stuck
	}
	if names := rotationMissing(st); names != "" {
		return names, rotationWaits(st)
	}
	return "new keys of the disks", r.stuck
}

// text is the rotation of one disk as status shows it; "" when there is nothing to do.
func (r *rotation) text(rec wire.DiskRecord, state string) string {
	drv := r.d.getDriver()
	if drv == nil {
		return ""
	}
	st, _, _ := drv.Status()
	target := rotationTarget(st)
	if target == 0 || !behind(rec, target) {
		return ""
	}
	to := fmt.Sprintf("to epoch %d: ", target)
	if state != unlock.StateUnlocked {
		return to + "waits until the disk is open"
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch err := r.failed[rec.ID]; {
	case err != nil:
		return to + "failed: " + err.Error()
	case r.stuck != nil && reason.RemedyOf(r.stuck) != reason.Retry:
		return to + "refused: " + r.stuck.Error()
	}
	if names := rotationMissing(st); names != "" {
		return to + "waits for " + names
	}
	return to + "under way"
}

// rotationWaits is the error of a rotation that waits for sleds.
func rotationWaits(st quorum.Status) error {
	return reason.Later(CodeRotationWaits, hintRotationWaits, "vault: rotation to epoch %d waits for %s", rotationTarget(st), orNothing(rotationMissing(st)))
}

// rotationMissing names the sleds that a comparison of shares waits for: those without a connection as long as too few
// have one, then those that are silent. "" means that nobody is missing.
func rotationMissing(st quorum.Status) string {
	c := st.LatestCommitted
	if c == nil {
		return ""
	}
	var away []string
	for _, m := range c.Members {
		up := m.ID == st.ID || slices.ContainsFunc(st.Peers, func(p quorum.PeerStatus) bool { return p.ID == m.ID })
		if !up {
			away = append(away, m.ID.String())
		}
	}
	if need := int(c.Threshold) + 1 - (len(c.Members) - len(away)); need > 0 {
		return someOf(need, away)
	}
	if a := st.Agreement; a != nil && a.Have < a.Want {
		var silent []string
		for _, m := range a.MissingConnected {
			silent = append(silent, m.String()+" (connected, silent)")
		}
		return someOf(a.Want-a.Have, silent)
	}
	return ""
}

func someOf(need int, names []string) string {
	list := strings.Join(names, ", ")
	if need < len(names) {
		return fmt.Sprintf("%d of %s", need, list)
	}
	return list
}
