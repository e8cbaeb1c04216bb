package vault

import (
	"context"
	"slices"
	"time"

	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
)

// Disks lists the sled's disks.
func (d *Daemon) Disks(context.Context) []api.Disk { return d.disks.list() }

// Unlock opens every locked disk. Below the threshold it waits as asked, then names who is missing.
func (d *Daemon) Unlock(ctx context.Context, r api.UnlockRequest) ([]api.Disk, error) {
	ctx, cancel := context.WithTimeout(ctx, max(time.Duration(r.WaitMS)*time.Millisecond, unlockAtOnce))
	defer cancel()
	if err := d.awaitBoot(ctx); err != nil {
		return d.disks.list(), err
	}
	err := d.disks.open(ctx)
	return d.disks.list(), err
}

// unlockAtOnce is how long an unlock without waiting looks for shares: one round trip to peers that are connected.
const unlockAtOnce = 250 * time.Millisecond

// awaitBoot waits until the boot has reached the quorum, or says why it has not.
func (d *Daemon) awaitBoot(ctx context.Context) error {
	for {
		if d.getState() == api.StateExpunged {
			return errRemoved()
		}
		if d.hasSecrets() {
			return nil
		}
		changed := d.boot.changed()
		if d.hasSecrets() {
			return nil
		}
		if b := d.boot.snapshot(); b.Error != nil && !b.Error.Retry {
			return d.stuck(b)
		}
		select {
		case <-ctx.Done():
			return d.stuck(d.boot.snapshot())
		case <-changed:
		}
	}
}

// hasSecrets reports whether the sled has a scheme to ask for rack secrets: as a member, or by the older one.
func (d *Daemon) hasSecrets() bool {
	return d.getDriver() != nil && (d.getState() == api.StateMember || d.lrtqServer() != nil)
}

// stuck is the reason why the boot does not go on, as an error for a caller.
func (d *Daemon) stuck(b api.Boot) error {
	if b.Error == nil {
		return d.notStarted()
	}
	e := &reason.Error{Code: b.Error.Code, Text: b.Error.Text, Hint: b.Error.Hint}
	if b.Error.Retry {
		e.Remedy = reason.Retry
	}
	return e
}

// ReleaseKey hands out the key of one disk.
func (d *Daemon) ReleaseKey(ctx context.Context, who api.Caller, disk string) (secret.DiskKey, error) {
	return d.disks.release(ctx, who, disk)
}

// FormatDisk encrypts a disk under the rack's newest epoch.
func (d *Daemon) FormatDisk(ctx context.Context, _ api.Caller, disk string, r api.FormatRequest) (api.Disk, error) {
	return d.disks.format(ctx, disk, r)
}

// ask sends one request to the node.
func (d *Daemon) ask(ctx context.Context, in func(quorum.RequestID) quorum.Input) (quorum.Reply, error) {
	drv := d.getDriver()
	if drv == nil {
		return quorum.Reply{}, d.notStarted()
	}
	return drv.do(ctx, in)
}

// Reconfigure asks the node to coordinate a configuration.
func (d *Daemon) Reconfigure(ctx context.Context, r quorum.Reconfigure) error {
	_, err := d.ask(ctx, func(id quorum.RequestID) quorum.Input { r.ID = id; return r })
	return err
}

// UpgradeLRTQ asks the node to coordinate the first configuration after the older scheme.
func (d *Daemon) UpgradeLRTQ(ctx context.Context, r quorum.UpgradeLRTQ) error {
	_, err := d.ask(ctx, func(id quorum.RequestID) quorum.Input { r.ID = id; return r })
	return err
}

// Commit asks the node to commit a prepared epoch.
func (d *Daemon) Commit(ctx context.Context, r quorum.Commit) (quorum.CommitStatus, error) {
	rep, err := d.ask(ctx, func(id quorum.RequestID) quorum.Input { r.ID = id; return r })
	return rep.Status, err
}

// PrepareAndCommit hands a committed configuration to the node. A node that must first compute its share answers when it
// has committed, or "pending" when ctx ends.
func (d *Daemon) PrepareAndCommit(ctx context.Context, r quorum.PrepareAndCommit) (quorum.CommitStatus, error) {
	rep, err := d.ask(ctx, func(id quorum.RequestID) quorum.Input { r.ID = id; return r })
	if err != nil || rep.Status == quorum.Committed {
		return rep.Status, err
	}
	for drv := d.getDriver(); ; {
		st, _, changed := drv.Status()
		if slices.Contains(st.Commits, r.Config.Epoch) {
			return quorum.Committed, nil
		}
		if ctx.Err() != nil || st.KeyShare == nil || st.KeyShare.Epoch != r.Config.Epoch {
			return quorum.Pending, nil //nolint:nilerr // it changes nothing, or not in time
		}
		select {
		case <-ctx.Done():
		case <-drv.done:
			return quorum.Pending, nil
		case <-changed:
		}
	}
}

// Coordinator returns the progress of the coordination once its version exceeds after, or when ctx ends.
func (d *Daemon) Coordinator(ctx context.Context, after uint64) (api.Coordination, error) {
	drv := d.getDriver()
	if drv == nil {
		return api.Coordination{}, d.notStarted()
	}
	for {
		st, version, changed := drv.Status()
		if version > after || ctx.Err() != nil {
			out := api.Coordination{Version: version}
			if c := st.Coordinator; c != nil {
				out.Config, out.Acked = c.Config, c.Acked
			}
			return out, nil
		}
		select {
		case <-ctx.Done():
		case <-changed:
		}
	}
}

// LatestCommitted returns the latest committed configuration and its certificate.
func (d *Daemon) LatestCommitted(context.Context) (*quorum.Configuration, *quorum.Certificate, error) {
	s := d.getStore()
	if s == nil {
		return nil, nil, d.notStarted()
	}
	st := s.snapshot().Quorum
	cfg := st.LatestCommittedConfig()
	if cfg == nil {
		return nil, nil, nil
	}
	return cfg, st.Certificates[cfg.Epoch], nil
}
