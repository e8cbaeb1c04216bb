package vault

import (
	"context"
	"fmt"
	"strings"

	"github.com/sledvault/sledvault/sealing"
	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/ledger"
	"github.com/sledvault/sledvault/vault/reason"
)

// Reasons of un-claiming a sled.
const (
	CodeReset      reason.Code = "seal-reset"       // this sled was made to forget its rack; the daemon ends for that, with exit code 3
	CodeResetBoard reason.Code = "reset-baseboard"  // the baseboard that the caller typed is not this sled's
	CodeResetRack  reason.Code = "reset-member"     // the sled is a member, or may be one, and the caller did not say that it may leave
	CodeResetBusy  reason.Code = "reset-busy"       // a reset is under way already
	CodeResetState reason.Code = "reset-files-stay" // the TPM forgot the rack, the state folders could not be moved aside
)

const hintResetRack = "take it out of the rack first: sledvault rack remove; or, if what is lost does not matter: sledvault seal reset --baseboard PART:SERIAL --yes-i-know"

// ResetSeal makes this sled forget its rack: counter and claim index go from the TPM, and with the counter every sealed
// copy is useless for ever; the state files are moved aside. It is a local act. From the first step on the daemon has to
// end: end does that, and the next start finds an unclaimed sled (sealing.md §6).
func (d *Daemon) ResetSeal(ctx context.Context, who api.Caller, r api.ResetRequest) (end func(), err error) {
	if err := d.mayReset(r); err != nil {
		return nil, err
	}
	if !d.resetting.CompareAndSwap(false, true) {
		return nil, reason.Later(CodeResetBusy, "wait for it", "vault: a reset is under way")
	}
	d.log.Warn("seal reset", "uid", who.UID, "pid", who.PID, "state", d.getState())
	ctx = context.WithoutCancel(ctx) // half a reset helps nobody; every TPM command has its deadline
	d.quiesce()
	d.claim.mu.Lock()
	defer d.claim.mu.Unlock()
	d.claim.reset()
	if err = sealing.Reset(ctx, d.sealParams()); err == nil {
		if err = ledger.MoveAside(d.dirs()); err != nil {
			err = reason.Wrap(err, CodeResetState, "move the files in both state folders away by hand, then start sledvaultd", "vault: the TPM forgot the rack, the files stay")
		}
	}
	return func() { d.fail(resetError(err)) }, err
}

// resetError is why the daemon ends. It is to be started again.
func resetError(err error) error {
	if err != nil {
		e := reason.Wrap(err, reason.CodeOf(err), "", "vault: reset the seal")
		e.Remedy = reason.Retry
		return e
	}
	return reason.Later(CodeReset, "start sledvaultd again; a service manager does it by itself", "vault: this sled has forgotten its rack")
}

// mayReset refuses what the caller may not have meant.
func (d *Daemon) mayReset(r api.ResetRequest) error {
	me := d.identity()
	d.mu.RLock()
	ready := d.tpm != nil && !me.IsZero()
	d.mu.RUnlock()
	if !ready {
		return d.notStarted()
	}
	if r.Baseboard != me {
		return &reason.Error{
			Code: CodeResetBoard, Text: fmt.Sprintf("vault: this sled is %s, not %s", me, r.Baseboard),
			Hint: "type the baseboard of the sled that is to forget its rack, on that sled", Remedy: reason.Usage,
		}
	}
	switch d.getState() {
	case api.StateMember, api.StateStarting:
		if !r.LeaveRack {
			return reason.New(CodeResetRack, hintResetRack, "vault: sled %s is %s; a reset gives up %s", me, d.getState(), d.stakes())
		}
	case api.StateUnclaimed, api.StateClaimed, api.StateExpunged, api.StateLostSeal:
	}
	return nil
}

// stakes says what a reset gives up.
func (d *Daemon) stakes() string {
	st := d.getStore()
	if st == nil {
		return "what the rack may still need of it: its shares and the records of its disks"
	}
	snap := st.snapshot()
	out := []string{fmt.Sprintf("its %d key shares", len(snap.Quorum.Shares))}
	for _, k := range snap.Disks {
		out = append(out, "the key of disk "+k.ID+" (its data is lost)")
	}
	return strings.Join(out, ", ")
}

// quiesce ends the boot, the peer network and all work on disks, and closes the ledger, so that nothing is saved any more.
func (d *Daemon) quiesce() {
	d.haltBoot()
	d.mu.RLock()
	st := d.store
	d.mu.RUnlock()
	d.hangUp()
	d.disks.settle()
	if st != nil {
		st.close()
	}
}
