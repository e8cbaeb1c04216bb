package controller

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/sledvault/sledvault/rot/enroll"
	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/rack"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/wire"
)

const (
	// patience is how long a coordinator may be out of reach before another one takes over. A coordination lives in the
	// coordinator's memory, so there is little to wait for.
	patience = time.Second
	// maxUnfit is how often one sled may give a coordination up before it is no longer chosen.
	maxUnfit = 3
)

// errEnded says that the coordinator coordinates this epoch no longer: it restarted, or could not go on.
var errEnded = errors.New("controller: the coordination ended")

// prepare has the coordinator hand out the shares, and records the decision once enough members have acknowledged. A
// coordinator that is lost before the decision is replaced, under an epoch of its own.
func (r *run) prepare(ctx context.Context) error {
	var since time.Time // of the first failure in a row
	pause := retryFirst
	for {
		err := r.coordinate(ctx)
		if err == nil || ctx.Err() != nil || r.st.Change.Phase != rack.Preparing { // decided, but perhaps not recorded
			return err
		}
		who := r.st.Change.Coordinator
		r.c.waitingFor(who, err)
		lost := errors.Is(err, errEnded) || reason.RemedyOf(err) != reason.Retry
		switch {
		case reason.CodeOf(err) == rack.CodeIncomplete || reason.CodeOf(err) == rack.CodeMismatch:
			r.fail(who, maxUnfit) // it lies
		case lost:
			r.fail(who, 1)
		case since.IsZero():
			since = time.Now()
		case time.Since(since) > patience:
			lost = true
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause):
		}
		pause = min(2*pause, retryLast)
		if !lost {
			continue
		}
		if err := r.another(ctx, err); err != nil {
			return err
		}
		since, pause = time.Time{}, retryFirst
	}
}

func (r *run) fail(b ident.Baseboard, n int) {
	if r.unfit == nil {
		r.unfit = map[ident.Baseboard]int{}
	}
	r.unfit[b] += n
}

// another aborts the epoch and begins the change again under the first sled that answers and may coordinate. The lost
// coordinator may be that sled, if it is back.
func (r *run) another(ctx context.Context, cause error) error {
	was := r.st.Change
	var fit []ident.Baseboard
	for _, b := range was.Members {
		if r.st.Base != nil && slices.Contains(r.st.Base.Members, b) && r.unfit[b] < maxUnfit {
			fit = append(fit, b)
		}
	}
	if len(fit) == 0 {
		return cause
	}
	var next ident.Baseboard
	err := r.survey(ctx, fit, func(reached []ident.Baseboard) bool {
		next = r.candidate(fit, reached)
		return next != ident.Baseboard{}
	})
	if err != nil {
		return err
	}
	if r.st.Change != was { // the sleds know of a later commit than the journal
		if err := r.save(); err != nil {
			return err
		}
		return errAgain
	}
	if err := r.st.Again(next); err != nil {
		return err
	}
	r.c.note("epoch %d: aborted, its coordinator %s is lost", was.Epoch, r.c.label(was.Coordinator))
	r.c.note("epoch %d: %s, coordinator %s", r.st.Change.Epoch, kindText(r.st.Change), r.c.label(next))
	return r.save()
}

// coordinate asks the coordinator once and follows it to the decision.
func (r *run) coordinate(ctx context.Context) error {
	ch := r.st.Change
	grant := ch.Grant(r.st.Rack)
	if err := enroll.SignGrant(r.c.key, grant); err != nil {
		return err
	}
	s, err := r.c.link(ctx, ch.Coordinator)
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }()
	err = s.begin(ctx, r.st.Rack, ch, api.GrantOf(grant))
	switch reason.CodeOf(err) {
	case "":
	case quorum.CodePreparedEpochMismatch, quorum.CodeReconfigurationRunning, quorum.CodeReconfigurationConflict, quorum.CodeLastCommittedMismatch:
		return errors.Join(errEnded, err)
	}
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { r.explain(ctx, ch) })
	return r.follow(ctx, s)
}

// follow waits for the acknowledgements. Each answer of the coordinator comes when something has changed, and carries the
// configuration as it is then: what is decided is never older than the last acknowledgement.
func (r *run) follow(ctx context.Context, s *Sledlink) error {
	ch := r.st.Change
	for after := uint64(0); ; {
		cs, err := s.Coordinator(ctx, after)
		if err != nil {
			return err
		}
		after = cs.Version
		if cs.Epoch != ch.Epoch {
			return errEnded
		}
		cfg, err := wire.DecodeConfigurationJSON(cs.Config)
		if err != nil {
			return reason.Wrap(err, rack.CodeMismatch, "treat the sled as compromised", "rack: coordinator's configuration")
		}
		before := slices.Clone(ch.Acked)
		r.mu.Lock() // explain looks on
		_, err = ch.Prepared(cfg, cs.Acked)
		r.mu.Unlock()
		if err != nil {
			return err
		}
		for _, m := range ch.Acked {
			if !slices.Contains(before, m) {
				r.c.say(m, "epoch %d: prepared", ch.Epoch)
			}
		}
		if !ch.Ready() {
			continue
		}
		return r.decide(cfg)
	}
}

// decide records the decision. No commit has left before this returns.
func (r *run) decide(cfg *quorum.Configuration) error {
	ch := r.st.Change
	cert, err := enroll.SignCertificate(r.c.key, cfg, ch.KeepFrom)
	if err != nil {
		return err
	}
	r.mu.Lock()
	err = ch.Decide(cfg, cert)
	r.mu.Unlock()
	if err != nil {
		return err
	}
	if err := r.save(); err != nil {
		return err
	}
	r.c.progress(ch)
	return nil
}

// commit sends the decision to every member that has not acknowledged it, at the same time. Once a threshold of them has,
// so that the others can catch up by themselves, the sleds that the change removes are marked. It returns when enough
// says so, or all is done.
func (r *run) commit(parent context.Context, enough func() bool) error {
	ch := r.st.Change
	full, err := api.ConfigReply(ch.Config, ch.Certificate)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(parent)
	defer cancel()
	var wg sync.WaitGroup
	var marking sync.Once
	errs := make(chan error, len(ch.Members)+1)
	var unsaved error
	news := func(err error) { // r.mu is held; err is what the journal says
		if err != nil {
			unsaved = err
		}
		if err != nil || enough() {
			cancel()
			return
		}
		if len(ch.Committed) >= int(ch.Threshold) && !ch.Marks() {
			marking.Do(func() {
				wg.Go(func() {
					err := r.mark(ctx, ch)
					r.mu.Lock()
					defer r.mu.Unlock()
					if err != nil || enough() {
						cancel()
					}
					errs <- err
				})
			})
		}
	}
	for _, m := range ch.Missing() {
		wg.Go(func() {
			if err := r.commitAt(ctx, ch, full, m); err != nil {
				errs <- err
				return
			}
			r.mu.Lock()
			defer r.mu.Unlock()
			news(r.committed(ch, m))
		})
	}
	r.mu.Lock()
	news(nil)
	r.mu.Unlock()
	wg.Wait()
	close(errs)
	r.takeMarked()
	if unsaved != nil || enough() {
		return unsaved
	}
	for e := range errs {
		if e != nil && (err == nil || reason.RemedyOf(err) == reason.Retry) {
			err = e
		}
	}
	return err
}

// commitAt commits at one member. A decision that an earlier command made may be old: then the member is asked first
// whether the rack has gone on since.
func (r *run) commitAt(ctx context.Context, ch *rack.Change, full api.PrepareAndCommitRequest, m ident.Baseboard) error {
	if r.earlier == ch {
		if err := r.c.reach(ctx, m, func(ctx context.Context, n node) error { return superseded(ctx, n, ch) }); err != nil {
			return err
		}
	}
	return r.c.commitOne(ctx, r.st.Rack, ch, full, m)
}

// committed notes an acknowledged commit.
func (r *run) committed(ch *rack.Change, m ident.Baseboard) error {
	if !ch.CommittedBy(m) {
		return nil
	}
	r.c.say(m, "epoch %d: committed", ch.Epoch)
	r.c.progress(ch)
	return r.save()
}
