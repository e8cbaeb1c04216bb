package vault

import (
	"context"
	"fmt"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/keys"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/unlock"
	"github.com/sledvault/sledvault/vault/wire"
)

// Reasons of disks without a record.
const (
	CodeDiskAdopted    reason.Code = "disk-adopted"     // a disk of this rack was taken over as it was found
	CodeDiskNotAdopted reason.Code = "disk-not-adopted" // a disk says that it is of this rack, but does not open with its key
)

// orphan is a configured disk without a record whose header says that it is of this rack: its record went with a lost
// seal, or it comes from another sled, or the daemon died between its encryption and the save.
type orphan struct {
	disk  DiskConfig
	epoch ident.Epoch
}

// orphans looks at the headers. What they say decides only which key is tried.
func (s *disks) orphans(ctx context.Context, st *store) (out []orphan) {
	rack, _ := s.d.rack()
	last, ok := st.snapshot().Quorum.LatestCommitted()
	if !ok && s.d.lrtqServer() != nil {
		last, ok = quorum.LRTQEpoch, true
	}
	if !ok {
		return nil
	}
	for _, c := range s.d.cfg.Disks {
		if _, ok := st.disk(c.ID); ok {
			continue
		}
		h, err := s.backend.Inspect(ctx, c.disk())
		if err == nil && h.Rack == rack && h.Epoch != 0 && h.Epoch <= last {
			out = append(out, orphan{c, h.Epoch})
		}
	}
	return out
}

// adopt takes over disks of this rack that have no record. What is pinned of a header from then on is what was found, so
// it is counted and shown. An error says that shares are missing; a disk that cannot be adopted stays as it is.
func (s *disks) adopt(ctx context.Context, st *store) error {
	for _, o := range s.orphans(ctx, st) {
		rec, err := s.adoptOne(ctx, o)
		if reason.RemedyOf(err) == reason.Retry {
			return err
		}
		if err != nil {
			err = reason.Wrap(err, CodeDiskNotAdopted, "look at the disk: sledvault disks", "vault: disk %s says that it is of this rack, epoch %d", o.disk.ID, o.epoch)
			s.d.reasons.CountError(CodeDiskNotAdopted, o.disk.ID, err)
			s.set(failure(o.disk.ID, o.epoch, err))
			continue
		}
		if err := st.update(ctx, func(l *wire.LedgerState) { l.Disks = append(l.Disks, diskRecord(o.disk, rec)) }); err != nil {
			return err
		}
		text := fmt.Sprintf("disk %s of epoch %d had no record; its header was taken over as it was found", o.disk.ID, o.epoch)
		s.d.reasons.Count(CodeDiskAdopted, o.disk.ID, text)
		s.d.log.Warn("disk adopted", "disk", o.disk.ID, "epoch", o.epoch)
	}
	return nil
}

func (s *disks) adoptOne(ctx context.Context, o orphan) (unlock.Record, error) {
	prks, err := s.derive(ctx, []ident.Epoch{o.epoch})
	defer destroyAll(prks)
	if err != nil {
		return unlock.Record{}, err
	}
	key, err := keys.DiskKey(s.d.alloc, prks[o.epoch], o.disk.identity())
	if err != nil {
		return unlock.Record{}, err
	}
	defer key.Destroy()
	return s.backend.Adopt(ctx, o.disk.disk(), key, o.epoch)
}
