package controller

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/sledvault/sledvault/rot/enroll"
	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/rack"
	"github.com/sledvault/sledvault/vault/rack/journal"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/wire"
)

// Pauses between attempts to reach a sled that does not answer.
const (
	retryFirst = 50 * time.Millisecond
	retryLast  = 2 * time.Second
)

// Init makes the rack's first configuration: all sleds of the rack file, or goes on with one that was begun. It returns
// when every member has acknowledged the commit, or with the reason why it cannot go on before ctx ends. It may be run
// again at any point.
func (c *Controller) Init(ctx context.Context) (*rack.Change, error) { return c.first(ctx, "") }

// UpgradeLRTQ makes the first configuration of a rack that comes from the older scheme: all sleds of the rack file. One of
// them rebuilds that scheme's secret with the others, and the configuration carries it as the secret of epoch 1. As for
// [Controller.Init] every member must acknowledge, and it may be run again at any point.
func (c *Controller) UpgradeLRTQ(ctx context.Context) (*rack.Change, error) {
	return c.first(ctx, rack.Upgrade)
}

func (c *Controller) first(ctx context.Context, kind rack.Kind) (*rack.Change, error) {
	j, st, err := journal.Open(c.file.dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = j.Close() }()
	switch ch := st.Change; {
	case ch == nil || ch.Kind == kind || st.LastCommitted() == 0 && ch.Phase == rack.Aborted:
	case st.LastCommitted() != 0:
		return ch, reason.New(rack.CodeInitialised, "see sledvault rack status", "rack: initialised already; epoch %d is committed", st.LastCommitted())
	default:
		return ch, reason.New(rack.CodeBusy, "finish it by running its command again, or give it up: sledvault rack abort", "rack: epoch %d is being prepared: %s", ch.Epoch, kindText(ch))
	}
	if st.Change == nil || st.Change.Phase == rack.Aborted {
		if err := c.begin(ctx, j, &st, kind); err != nil {
			return nil, err
		}
	}
	if st.Rack != c.set.Rack {
		return nil, reason.New(rack.CodeMismatch, "restore the files of one rack into the folder", "rack: the journal is of rack %s, the enrolment set of rack %s", st.Rack, c.set.Rack)
	}
	if ch := st.Change; ch.Phase == rack.Done {
		return ch, c.beginFirst(&st, kind, ch.Members, ch.Threshold) // says that there is nothing to do
	}
	for st.Change.Phase == rack.Preparing {
		if err := c.prepare(ctx, j, &st); err != nil && !errors.Is(err, errAgain) {
			return st.Change, c.gaveUp(ctx, st.Change, err)
		}
	}
	if err := c.commit(ctx, j, &st); err != nil {
		return st.Change, c.gaveUp(ctx, st.Change, err)
	}
	return st.Change, nil
}

// begin records a first configuration of every sled in the rack file. No epoch that a sled has seen is used again.
func (c *Controller) begin(ctx context.Context, j *journal.Journal, st *rack.State, kind rack.Kind) error {
	if c.set == nil {
		return reason.New(CodeNotEnrolled, "enroll the sleds first: sledvault rack enroll", "rack: no sled is enrolled")
	}
	var members []ident.Baseboard
	for _, s := range c.file.Sleds {
		if _, ok := c.set.Find(s.Baseboard()); !ok {
			return reason.New(CodeNotEnrolled, "enroll it: sledvault rack enroll", "rack: sled %s is not enrolled", s.Label())
		}
		members = append(members, s.Baseboard())
	}
	if err := c.ask(ctx, members, st); err != nil {
		return err
	}
	if st.LastCommitted() != 0 { // the journal was lost, the rack was not
		c.note("epoch %d is committed already; the journal takes it over", st.LastCommitted())
		return j.Save(*st)
	}
	st.Rack = c.set.Rack
	if kind != rack.Upgrade && len(c.lrtq) > 0 {
		return reason.New(quorum.CodeUpgradeRequired, "upgrade it: sledvault rack upgrade-lrtq", "rack: sleds hold packages of the older scheme; a first configuration without its secret would lose their disks")
	}
	if err := c.beginFirst(st, kind, members, ident.Threshold(c.file.Threshold)); err != nil {
		return err
	}
	return j.Save(*st)
}

// beginFirst begins the first configuration. An upgrade is coordinated by the first member that said that it holds a
// package of the older scheme.
func (c *Controller) beginFirst(st *rack.State, kind rack.Kind, members []ident.Baseboard, threshold ident.Threshold) error {
	if kind != rack.Upgrade {
		return st.BeginInit(members, threshold)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range ident.SortBaseboards(members) {
		if c.lrtq[m] {
			return st.BeginUpgrade(members, threshold, m)
		}
	}
	if st.LastCommitted() != 0 && len(members) > 0 {
		return st.BeginUpgrade(members, threshold, members[0]) // says that there is nothing to do
	}
	return reason.New(CodeNoPackage, "name the older scheme's ledgers in every sled's configuration: [lrtq] ledgers; for a rack that never had it: sledvault rack init",
		"rack: no sled holds a package of the older scheme")
}

// CodeNoPackage refuses to upgrade a rack from a scheme that none of its sleds knows.
const CodeNoPackage reason.Code = "rack-no-lrtq-package"

// ask has every member say on a proved connection which epochs it knows, so that none is used twice, and takes over what
// is committed already. Every member must answer: each of them is needed for the first configuration anyway.
func (c *Controller) ask(ctx context.Context, members []ident.Baseboard, st *rack.State) error {
	var mu sync.Mutex // guards st and missing
	var missing []ident.Baseboard
	var wg sync.WaitGroup
	errs := make([]error, len(members))
	for i, m := range members {
		wg.Go(func() {
			errs[i] = c.insist(ctx, m, func(s *Sledlink) error { return c.askOne(ctx, s, &mu, st) })
			if errs[i] != nil {
				mu.Lock()
				defer mu.Unlock()
				missing = append(missing, m)
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil && (reason.RemedyOf(err) != reason.Retry || ctx.Err() == nil) {
			return err
		}
	}
	if len(missing) > 0 {
		return c.waitingForSleds(ident.SortBaseboards(missing), errors.Join(errs...), "rack: waits for sleds to prove themselves")
	}
	return nil
}

func (c *Controller) askOne(ctx context.Context, s *Sledlink, mu *sync.Mutex, st *rack.State) error {
	status, err := s.Status(ctx)
	if err != nil {
		return err
	}
	if status.Quorum == nil {
		return reason.Later("rack-sled-starting", "wait for its boot; see its status", "rack: the sled is still starting (step %s)", status.Boot.Step)
	}
	raw, err := s.Config(ctx)
	if err != nil {
		return err
	}
	if status.Quorum.LRTQ && status.Baseboard != nil {
		c.mu.Lock()
		c.lrtq[*status.Baseboard] = true
		c.mu.Unlock()
	}
	mu.Lock()
	defer mu.Unlock()
	for _, e := range status.Quorum.Configs {
		if err := st.Observe(e); err != nil {
			return err
		}
	}
	return c.adopt(raw, st)
}

// adopt takes over a committed configuration under a certificate of this rack's key.
func (c *Controller) adopt(raw api.PrepareAndCommitRequest, st *rack.State) error {
	if raw.Certificate == nil {
		return nil // nothing is committed
	}
	cfg, err := wire.DecodeConfigurationJSON(raw.Config)
	if err != nil || cfg == nil {
		return reason.New(rack.CodeMismatch, "treat the sled as compromised", "rack: a sled's committed configuration cannot be read: %v", err)
	}
	cert, err := raw.Certificate.ToQuorum()
	if err != nil {
		return err
	}
	err = enroll.NewAuthority(c.set).VerifyCertificate(cfg, cert)
	if err != nil && slices.ContainsFunc(c.former, func(a *enroll.Authority) bool { return a.VerifyCertificate(cfg, cert) == nil }) {
		err = nil
	}
	if err != nil {
		return reason.Wrap(err, rack.CodeMismatch, "treat the sled as compromised", "rack: a sled's committed configuration")
	}
	_, err = st.Adopt(cfg, cert)
	return err
}

// CodeWaiting marks a command that gave up waiting for sleds.
const CodeWaiting reason.Code = "rack-waiting"

func (c *Controller) waitingForSleds(missing []ident.Baseboard, cause error, what string) error {
	for i, m := range missing {
		sep := ", "
		if i == 0 {
			sep = ": "
		}
		what += sep + c.label(m)
	}
	e := reason.Later(CodeWaiting, "power the missing sleds on and run the command again; it goes on where it stopped", "%s", what)
	if cause != nil && !errors.Is(cause, context.DeadlineExceeded) {
		e.Cause = cause
	}
	return e
}

// gaveUp adds to an error who is being waited for.
func (c *Controller) gaveUp(ctx context.Context, ch *rack.Change, err error) error {
	if ctx.Err() == nil || reason.RemedyOf(err) == reason.Usage || reason.CodeOf(err) == CodeWaiting {
		return err
	}
	what := "to acknowledge the prepare"
	if ch.Phase == rack.Decided {
		what = "to acknowledge the commit"
	}
	return c.waitingForSleds(ch.Missing(), err, fmt.Sprintf("rack: epoch %d is %s and waits for members %s", ch.Epoch, ch.Phase, what))
}

// prepare has the coordinator hand out the shares, and records the decision once enough members have acknowledged.
func (c *Controller) prepare(ctx context.Context, j *journal.Journal, st *rack.State) error {
	ch := st.Change
	grant := ch.Grant(st.Rack)
	if err := enroll.SignGrant(c.key, grant); err != nil {
		return err
	}
	return c.insist(ctx, ch.Coordinator, func(s *Sledlink) error {
		if err := s.begin(ctx, st.Rack, ch, api.GrantOf(grant)); err != nil {
			return c.afterRefusal(ctx, s, j, st, err)
		}
		return c.watch(ctx, s, j, st)
	})
}

// begin asks the coordinator to coordinate the change.
func (s *Sledlink) begin(ctx context.Context, id ident.RackID, ch *rack.Change, grant *api.Grant) error {
	if ch.Kind == rack.Upgrade {
		return s.UpgradeLRTQ(ctx, api.UpgradeRequest{RackID: id, Epoch: ch.Epoch, Members: ch.Members, Threshold: ch.Threshold, Grant: grant})
	}
	req := api.ReconfigureRequest{RackID: id, Epoch: ch.Epoch, Members: ch.Members, Threshold: ch.Threshold, Grant: grant}
	if ch.LastCommitted != 0 {
		req.LastCommitted = &ch.LastCommitted
	}
	return s.Reconfigure(ctx, req)
}

// afterRefusal handles a coordinator that lost its memory: it holds the configuration of this epoch, or of a later one, and
// coordinates it no longer. The epoch is given up; the command begins again with one that no sled has seen.
func (c *Controller) afterRefusal(ctx context.Context, s *Sledlink, j *journal.Journal, st *rack.State, err error) error {
	ch := st.Change
	switch reason.CodeOf(err) {
	case quorum.CodePreparedEpochMismatch:
		cs, statusErr := s.Coordinator(ctx, 0)
		if statusErr != nil {
			return statusErr
		}
		if cs.Epoch == ch.Epoch {
			return c.watch(ctx, s, j, st)
		}
	case quorum.CodeLastCommittedMismatch: // the journal is older than the rack
	default:
		return err
	}
	if err := ch.Abort(); err != nil {
		return err
	}
	c.note("epoch %d: coordinator %s coordinates it no longer; beginning again", ch.Epoch, c.label(ch.Coordinator))
	if err := c.ask(ctx, ch.Members, st); err != nil {
		return err
	}
	if st.LastCommitted() == 0 {
		if err := c.beginFirst(st, ch.Kind, ch.Members, ch.Threshold); err != nil {
			return err
		}
	}
	if err := j.Save(*st); err != nil {
		return err
	}
	return errAgain
}

// errAgain says that the change was begun anew with another epoch.
var errAgain = errors.New("controller: again")

// watch follows the coordinator until the change is decided. Each answer comes when something has changed.
func (c *Controller) watch(ctx context.Context, s *Sledlink, j *journal.Journal, st *rack.State) error {
	ch := st.Change
	for after := uint64(0); ; {
		cs, err := s.Coordinator(ctx, after)
		if err != nil {
			return err
		}
		after = cs.Version
		if cs.Epoch != ch.Epoch {
			if cs.Epoch == 0 && after != 0 {
				return c.afterRefusal(ctx, s, j, st, reason.New(quorum.CodePreparedEpochMismatch, "", "rack: %s coordinates no longer", c.label(ch.Coordinator)))
			}
			continue
		}
		cfg, err := wire.DecodeConfigurationJSON(cs.Config)
		if err != nil {
			return reason.Wrap(err, rack.CodeMismatch, "treat the sled as compromised", "rack: coordinator's configuration")
		}
		changed, err := ch.Prepared(cfg, cs.Acked)
		if err != nil {
			return err
		}
		if changed {
			c.progress(ch)
		}
		if !ch.Ready() {
			continue
		}
		cert, err := enroll.SignCertificate(c.key, cfg, ch.KeepFrom)
		if err != nil {
			return err
		}
		if err := ch.Decide(cfg, cert); err != nil {
			return err
		}
		if err := j.Save(*st); err != nil { // before the first commit leaves
			return err
		}
		c.progress(ch)
		return nil
	}
}

// commit sends the decision to every member that has not acknowledged it, at the same time, until all have.
func (c *Controller) commit(ctx context.Context, j *journal.Journal, st *rack.State) error {
	ch := st.Change
	full, err := api.ConfigReply(ch.Config, ch.Certificate)
	if err != nil {
		return err
	}
	var mu sync.Mutex // guards ch and the journal
	var wg sync.WaitGroup
	errs := make(chan error, len(ch.Members))
	for _, m := range ch.Missing() {
		wg.Go(func() {
			if err := c.commitOne(ctx, st.Rack, ch, full, m); err != nil {
				errs <- err
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if ch.CommittedBy(m) {
				c.progress(ch)
				if err := j.Save(*st); err != nil {
					errs <- err
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	return <-errs // nil when empty
}

// commitOne commits at one member: plainly where it has acknowledged the prepare, with the whole configuration where
// it has not or says so.
func (c *Controller) commitOne(ctx context.Context, id ident.RackID, ch *rack.Change, full api.PrepareAndCommitRequest, m ident.Baseboard) error {
	return c.reach(ctx, m, func(ctx context.Context, n node) error {
		st, err := n.Commit(ctx, api.CommitRequest{RackID: id, Epoch: ch.Epoch, Certificate: full.Certificate})
		if reason.CodeOf(err) == quorum.CodeNotPrepared {
			st, err = n.PrepareAndCommit(ctx, full)
		}
		if err == nil && st != quorum.Committed {
			if err := superseded(ctx, n, ch); err != nil {
				return err
			}
			err = reason.Later("rack-commit-pending", "", "rack: %s computes its share", c.label(m))
		}
		return err
	})
}

// insist runs f on a proved connection to the sled, again and again while what fails may succeed later.
func (c *Controller) insist(ctx context.Context, b ident.Baseboard, f func(*Sledlink) error) error {
	return c.again(ctx, b, func() error {
		s, err := c.link(ctx, b)
		if err != nil {
			return err
		}
		defer func() { _ = s.Close() }()
		return f(s)
	})
}

// again runs f until it succeeds, fails for good, or ctx ends. It tells why it waits for the sled.
func (c *Controller) again(ctx context.Context, b ident.Baseboard, f func() error) error {
	for pause := retryFirst; ; pause = min(2*pause, retryLast) {
		err := f()
		if err == nil || reason.RemedyOf(err) != reason.Retry {
			return err
		}
		if ctx.Err() == nil { // otherwise nobody waits any more
			c.waitingFor(b, err)
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause):
		}
	}
}
