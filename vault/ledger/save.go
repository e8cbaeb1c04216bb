package ledger

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
	"github.com/sledvault/sledvault/vault/wire"
)

// Save is the protected save (ledger.md §5): when it returns nil, the state stands on at least one medium, every older
// state is dead, and effects may happen. Sequence and generation of the argument are set by the ledger. After an error
// the caller must stop: the ledger refuses everything further, and the next start finds the old state or the new one.
// Only a context that had ended before is an error without consequences.
func (l *Ledger) Save(ctx context.Context, st wire.LedgerState) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stopped {
		return errStopped
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return l.save(ctx, st)
}

func (l *Ledger) save(ctx context.Context, st wire.LedgerState) error {
	ctx = context.WithoutCancel(ctx) // what was begun is brought to its end; the TPM has deadlines of its own
	l.stopped = true                 // until the counter has moved
	defer l.publish()
	if err := l.protected(ctx, st); err != nil {
		if aborted(err) {
			return err
		}
		return reason.Wrap(err, CodeSave, hintSave, "ledger: save")
	}
	l.stopped = false
	l.saves++
	return nil
}

func (l *Ledger) protected(ctx context.Context, st wire.LedgerState) error {
	st.Sequence, st.Generation = l.sequence+1, l.generation+1
	if l.skip {
		// A copy that was not there may hold the next number already, with another content.
		st.Sequence++
	}
	file, err := l.approved(ctx, st)
	if err != nil {
		return err
	}
	plain, err := wire.EncodeState(l.cfg.Alloc, st)
	if err != nil {
		return err
	}
	defer plain.Destroy()
	single, err := l.writeBoth(file, plain)
	if err != nil {
		return err
	}
	if err := l.raise(ctx, st.Sequence); err != nil {
		return err
	}
	l.sequence, l.generation, l.epoch = st.Sequence, st.Generation, file.Epoch
	l.skip, l.single, l.newest = single, single, file
	return nil
}

// Refresh signs the platform states anew and stores the approvals with the state that stands there, without moving the
// counter: after a state was staged for an update, or when the running system has gone on measuring. If both copies hold
// the same approvals already, as after most boots, nothing is written. One medium is enough; if both fail the old approvals
// stand, and the ledger goes on.
func (l *Ledger) Refresh(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stopped {
		return errStopped
	}
	if l.copies[0].State == CopyOK && l.copies[1].State == CopyOK {
		if same, err := l.sealer.Approves(ctx, l.sequence, l.newest.Approvals); err != nil || same {
			return err
		}
	}
	defer l.publish()
	approvals, err := l.sealer.Approve(ctx, l.sequence)
	if err != nil {
		return err
	}
	file := *l.newest
	file.Approvals = l.sealer.WithTickets(ctx, approvals)
	data, err := file.AppendTo(nil)
	if err != nil {
		return err
	}
	errA, errB := l.writeCopy(0, &file, data), l.writeCopy(1, &file, data)
	if aborted(errA) || aborted(errB) || (errA != nil && errB != nil) {
		return reason.Wrap(errors.Join(errA, errB), CodeDegraded, hintFolder, "ledger: approvals not refreshed")
	}
	l.newest = &file
	return nil
}

// Rekey is a protected save under another key: of the same seed and counter, see package sealing. The old sealer is
// destroyed, the new one becomes the ledger's. The observations follow; a power cut right in between loses them.
func (l *Ledger) Rekey(ctx context.Context, fresh Sealer, st wire.LedgerState) error {
	l.mu.Lock()
	if l.stopped {
		l.mu.Unlock()
		fresh.Destroy()
		return errStopped
	}
	l.sealer.Destroy()
	l.sealer = fresh
	err := l.save(ctx, st)
	o := l.observed.clone()
	l.mu.Unlock()
	if err != nil {
		return err
	}
	return l.SaveObserved(ctx, o)
}

// approved makes the outside of a copy.
func (l *Ledger) approved(ctx context.Context, st wire.LedgerState) (*File, error) {
	approvals, err := l.sealer.Approve(ctx, st.Sequence)
	if err != nil {
		return nil, fmt.Errorf("ledger: approve sequence %d: %w", st.Sequence, err)
	}
	epoch, _ := st.Quorum.LatestCommitted() // 0 before the first
	return &File{
		Rack: l.cfg.Rack, Baseboard: l.cfg.Baseboard, Epoch: epoch, Sequence: st.Sequence, Generation: st.Generation,
		Blob: bytes.Clone(l.sealer.Blob()), Approvals: l.sealer.WithTickets(ctx, approvals),
	}, l.cfg.step("save/approve")
}

// writeBoth writes copy A, then copy B. If one medium fails, what stands on the other is marked single; if both fail,
// that is an error.
func (l *Ledger) writeBoth(file *File, plain secret.Plaintext) (single bool, err error) {
	data, err := l.seal(file, plain, 0)
	if err != nil {
		return false, err
	}
	errA := l.writeCopy(0, file, data)
	if aborted(errA) {
		return false, errA
	}
	if errA != nil {
		if data, err = l.seal(file, plain, flagSingle); err != nil {
			return false, err
		}
	}
	errB := l.writeCopy(1, file, data)
	switch {
	case aborted(errB):
		return false, errB
	case errA != nil && errB != nil:
		return false, errors.Join(errA, errB)
	case errA == nil && errB != nil:
		if data, err = l.seal(file, plain, flagSingle); err != nil {
			return false, err
		}
		if err := l.writeCopy(0, file, data); err != nil {
			return false, errors.Join(err, errB)
		}
	}
	return errA != nil || errB != nil, nil //nolint:nilerr // one copy stands, and says that it is single
}

func (l *Ledger) seal(file *File, plain secret.Plaintext, flags byte) ([]byte, error) {
	if err := file.encrypt(l.cfg.Alloc, l.cfg.Rand, l.sealer.Key(), flags, plain); err != nil {
		return nil, err
	}
	return file.AppendTo(nil)
}

// writeCopy writes one copy and notes how it went.
func (l *Ledger) writeCopy(i int, file *File, data []byte) error {
	err := l.reach(i)
	if err == nil {
		err = replace(l.folders[i], LedgerFile, data, func(step string) error { return l.cfg.hook("save/" + copyName(i) + "/" + step) })
	}
	if aborted(err) {
		return err
	}
	if err != nil {
		l.cfg.count(CodeDegraded, i, err)
		if l.copies[i].State != CopyNoMedium {
			l.copies[i].State = CopyFailed
		}
		l.copies[i].Reason = err.Error()
		return err
	}
	l.copies[i] = CopyReport{State: CopyOK, Sequence: file.Sequence, Generation: file.Generation, Epoch: file.Epoch}
	return nil
}

// hook calls the step hook without wrapping its error.
func (c *Config) hook(step string) error {
	if c.Steps == nil {
		return nil
	}
	return c.Steps(step)
}

// reach opens a medium that was missing, if it is there by now. Another sled's copy on it is kept.
func (l *Ledger) reach(i int) error {
	if l.folders[i] != nil {
		return nil
	}
	dir, err := l.cfg.folder(i, writing)
	if err != nil {
		return folderError(err)
	}
	if f := l.cfg.read(dir); f.State == CopyForeign {
		if err := setAside(dir, f); err != nil {
			_ = dir.Close() // the first error says more
			return err
		}
	}
	l.folders[i], l.copies[i].State = dir, CopyStale
	return nil
}

// raise moves the counter up to a value. The sealer re-reads it before every step.
func (l *Ledger) raise(ctx context.Context, to uint64) error {
	for l.counter < to {
		now, err := l.sealer.Increment(ctx, l.counter)
		if err != nil {
			return fmt.Errorf("ledger: raise counter to %d: %w", to, err)
		}
		if now != l.counter+1 {
			return fmt.Errorf("ledger: raise counter to %d: moved from %d to %d", to, l.counter, now)
		}
		l.counter = now
		if err := l.cfg.step("increment"); err != nil {
			return err
		}
	}
	return nil
}
