package controller

import (
	"context"
	"slices"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/rack"
	"github.com/sledvault/sledvault/vault/reason"
)

// CodeSecretInUse refuses to drop a secret that a disk of the rack still needs.
const CodeSecretInUse reason.Code = "rack-secret-in-use"

// Pruning says what dropping older secrets takes away for good.
type Pruning struct {
	KeepFrom ident.Epoch   `json:"keep_from"`
	Dropped  []ident.Epoch `json:"dropped"` // committed epochs whose secret goes; a disk last unlocked in one of them opens no more
	InUse    []OldDisk     `json:"in_use"`  // disks of members that need one of them
	Lost     []OldDisk     `json:"lost"`    // disks of sleds that were removed, which need one of them: nothing opens them any more
}

// OldDisk is a disk whose key belongs to an older epoch.
type OldDisk struct {
	Sled  string      `json:"sled"`
	Disk  string      `json:"disk"`
	Epoch ident.Epoch `json:"epoch"`
}

// PlanPrune tells what [Controller.Prune] would drop. Every member must answer, because it may hold a disk that needs an
// older secret. Disks that are not in the rack are known to nobody.
func (c *Controller) PlanPrune(ctx context.Context, keepFrom ident.Epoch) (*Pruning, error) {
	r, err := c.openRun()
	if err != nil {
		return nil, err
	}
	defer r.close()
	return r.planPrune(ctx, keepFrom)
}

// Prune gives the same members a new secret and drops those of epochs before keepFrom, which is at most the committed
// epoch. It is refused while a disk of the rack needs one of them. Like the other changes it may be run again at any point.
func (c *Controller) Prune(ctx context.Context, keepFrom ident.Epoch) (*rack.Change, error) {
	r, err := c.openRun()
	if err != nil {
		return nil, err
	}
	defer r.close()
	if ch := r.st.Change; ch == nil || ch.KeepFrom < keepFrom { // otherwise it was looked at before, and is under way or done
		p, err := r.planPrune(ctx, keepFrom)
		if err != nil {
			return nil, err
		}
		if len(p.InUse) > 0 {
			d := p.InUse[0]
			return nil, reason.New(CodeSecretInUse, "let the disk move to the newest epoch first: sledvault disks on that sled says what it waits for",
				"rack: disk %s of sled %s needs the secret of epoch %d, and %d others an older one too", d.Disk, d.Sled, d.Epoch, len(p.InUse)-1)
		}
	}
	r.keepFrom = keepFrom
	return r.change(ctx, rack.Prune, nil)
}

func (r *run) planPrune(ctx context.Context, keepFrom ident.Epoch) (*Pruning, error) {
	base := r.st.Committed()
	if base == nil {
		return nil, reason.New(rack.CodeUninitialised, "initialise the rack: sledvault rack init", "rack: nothing is committed yet")
	}
	out := &Pruning{KeepFrom: keepFrom, Dropped: []ident.Epoch{}, InUse: []OldDisk{}, Lost: []OldDisk{}}
	epochs := map[ident.Epoch]bool{}
	for _, rep := range r.c.Sleds(ctx) {
		switch {
		case rep.Status == nil && slices.Contains(base.Members, rep.Sled.Baseboard()):
			return nil, reason.Later(CodeWaiting, "start it, or remove it from the rack: all members say which secrets their disks need",
				"rack: member %s does not answer", rep.Sled.Label())
		case rep.Status == nil || rep.Status.Quorum == nil:
			continue
		}
		for _, e := range rep.Status.Quorum.Commits {
			epochs[e] = true
		}
		for _, d := range rep.Status.Disks {
			if d.Epoch == 0 || d.Epoch >= keepFrom {
				continue
			}
			list := &out.Lost
			if slices.Contains(base.Members, rep.Sled.Baseboard()) {
				list = &out.InUse
			}
			*list = append(*list, OldDisk{rep.Sled.Label(), d.ID, d.Epoch})
		}
	}
	for e := range epochs {
		if base.KeepFrom <= e && e < keepFrom {
			out.Dropped = append(out.Dropped, e)
		}
	}
	slices.Sort(out.Dropped)
	return out, nil
}
