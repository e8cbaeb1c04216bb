package ledger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
	"github.com/sledvault/sledvault/vault/wire"
)

// Report says what a start found and did.
type Report struct {
	Copies   [2]CopyReport // as found, before any repair
	Repaired [2]bool       // written anew from the other copy
	Raised   uint64        // how far the counter was behind the newest copy
	Skip     bool          // the next save leaves out a number
	Notes    []error       // what an operator should know, each with a code
}

// aheadMax is how far a copy may be ahead of the counter: a save that skipped a number and was cut off before both of
// its increments.
const aheadMax = 2

// Open reads both copies, unseals, and loads the newest state that the counter admits (ledger.md §6). The other copy is
// repaired from it, durably, before the counter follows. The sealer that unseal returns becomes the ledger's.
//
// Errors: ledger-absent if both folders are there and empty (the TPM's claim index tells whether the sled is new);
// lost-seal with a [*LostSealError] if there was a ledger and no copy can be used. In both cases nothing was written.
func Open(ctx context.Context, cfg Config, unseal Unseal) (*Ledger, wire.LedgerState, Report, error) {
	if err := cfg.validate(); err != nil {
		return nil, wire.LedgerState{}, Report{}, err
	}
	s := &start{Ledger: &Ledger{cfg: cfg}, unseal: unseal}
	st, err := s.run(ctx)
	if err != nil {
		if s.sealer != nil {
			s.sealer.Destroy()
		}
		_ = closeAll(&s.folders) // the first error says more
		return nil, wire.LedgerState{}, s.report, err
	}
	s.publish()
	return s.Ledger, st, s.report, nil
}

// start is one start in progress.
type start struct {
	*Ledger
	unseal Unseal
	found  [2]found
	report Report

	refused []byte // a blob that did not open, and why
	cause   error
}

// usable is a copy that has been opened and that the counter admits.
type usable struct {
	at     int
	state  wire.LedgerState
	single bool
}

func (s *start) run(ctx context.Context) (wire.LedgerState, error) {
	if err := s.look(); err != nil {
		return wire.LedgerState{}, err
	}
	if err := s.cfg.step("start/read"); err != nil {
		return wire.LedgerState{}, err
	}
	best, err := s.choose(ctx)
	if err != nil {
		return wire.LedgerState{}, err
	}
	for i := range s.found {
		s.report.Copies[i] = s.found[i].CopyReport
		s.copies[i] = s.found[i].CopyReport
	}
	if best == nil {
		return wire.LedgerState{}, failed(s.report.Copies, s.counter)
	}
	if err := s.cfg.step("start/choose"); err != nil {
		return wire.LedgerState{}, err
	}
	return best.state, s.settle(ctx, best)
}

// look reads both copies from outside.
func (s *start) look() error {
	for i := range s.folders {
		dir, err := s.cfg.folder(i, writing)
		if errors.Is(err, errLocked) {
			return folderError(err)
		}
		if err != nil {
			s.found[i].refuse(CopyNoMedium, err)
			continue
		}
		s.folders[i] = dir
		s.found[i] = s.cfg.read(dir)
	}
	return nil
}

// choose opens what can be opened and returns the copy with the highest sequence, nil if there is none.
func (s *start) choose(ctx context.Context) (best *usable, err error) {
	order := []int{0, 1}
	slices.SortStableFunc(order, func(a, b int) int { // the newer one first: its approvals are the likelier ones
		if s.found[a].Sequence >= s.found[b].Sequence {
			return -1
		}
		return 1
	})
	for _, i := range order {
		u, err := s.try(ctx, i)
		if err != nil {
			return nil, err
		}
		// Equal sequences have equal contents; if not all is well, the one marked single was the only one written.
		if u != nil && (best == nil || u.state.Sequence > best.state.Sequence || (u.state.Sequence == best.state.Sequence && u.single && !best.single)) {
			best = u
		}
	}
	return best, nil
}

// try opens one copy. A copy that cannot be used gives nil, and its report says why; an error ends the start.
func (s *start) try(ctx context.Context, i int) (*usable, error) {
	f := &s.found[i]
	if f.file == nil {
		return nil, nil
	}
	if err := s.key(ctx, f); err != nil {
		if aborted(err) || ctx.Err() != nil || reason.RemedyOf(err) == reason.Retry {
			return nil, err // a TPM that is busy or hangs says nothing about the copy
		}
		f.refuse(CopySealed, err)
		return nil, nil
	}
	plain, err := f.file.decrypt(s.cfg.Alloc, s.sealer.Key())
	if err != nil {
		f.refuse(CopyAltered, err)
		return nil, nil
	}
	defer plain.Destroy()
	u := &usable{at: i}
	if u.state, u.single, err = s.decode(plain); err != nil {
		f.refuse(CopyAltered, err)
		return nil, nil
	}
	if u.state.Sequence != f.Sequence || u.state.Generation != f.Generation {
		f.refuse(CopyAltered, fmt.Errorf("inside is sequence %d generation %d, outside %d and %d", u.state.Sequence, u.state.Generation, f.Sequence, f.Generation))
		return nil, nil
	}
	switch {
	case f.Sequence < s.counter:
		f.refuse(CopyStale, fmt.Errorf("have sequence %d, want at least the counter's %d", f.Sequence, s.counter))
		return nil, nil
	case f.Sequence-s.counter > aheadMax:
		f.refuse(CopyFuture, fmt.Errorf("have sequence %d, want at most %d above the counter's %d", f.Sequence, aheadMax, s.counter))
		return nil, nil
	}
	f.State = CopyOK
	return u, nil
}

func (s *start) decode(plain secret.Plaintext) (st wire.LedgerState, single bool, err error) {
	err = plain.Use(func(b []byte) error {
		if b[0]&^flagSingle != 0 {
			return formatError("unknown flags 0x%02x", b[0])
		}
		single = b[0]&flagSingle != 0
		st, err = wire.DecodeStateBytes(s.cfg.Alloc, b[1:])
		return err
	})
	return st, single, err
}

// key makes sure that the sealer is the one of this copy's blob. A blob is unsealed once, with the approvals of all its
// copies: which of them is the newest is not known yet.
func (s *start) key(ctx context.Context, f *found) error {
	if s.sealer != nil && bytes.Equal(s.sealer.Blob(), f.file.Blob) {
		return nil
	}
	if s.refused != nil && bytes.Equal(s.refused, f.file.Blob) {
		return s.cause
	}
	if s.sealer != nil {
		return errors.New("ledger: sealed under another key than the newer copy")
	}
	sealer, counter, err := s.open(ctx, f.file.Blob)
	if err != nil {
		s.refused, s.cause = f.file.Blob, err
		return err
	}
	s.sealer, s.counter = sealer, counter
	return s.cfg.step("start/unseal")
}

func (s *start) open(ctx context.Context, blob []byte) (Sealer, uint64, error) {
	var approvals [][]byte
	for _, f := range s.found {
		if f.file == nil || !bytes.Equal(f.file.Blob, blob) {
			continue
		}
		for _, a := range f.file.Approvals {
			if !slices.ContainsFunc(approvals, func(b []byte) bool { return bytes.Equal(a, b) }) {
				approvals = append(approvals, a)
			}
		}
	}
	sealer, err := s.unseal(ctx, blob, approvals)
	if err != nil {
		return nil, 0, err
	}
	return sealer, sealer.Opened(), nil
}

// settle makes both copies and the counter agree with the best copy.
func (s *start) settle(ctx context.Context, best *usable) error {
	file := s.found[best.at].file
	s.sequence, s.generation, s.epoch = best.state.Sequence, best.state.Generation, file.Epoch
	s.skip, s.single, s.newest = best.single, best.single, file
	other := 1 - best.at
	switch s.found[other].State {
	case CopyOK, CopyStale:
	default: // it may hold the next number already
		s.skip = true
	}
	if err := s.repair(best.at, other); err != nil {
		return err
	}
	s.report.Raised = s.sequence - s.counter
	s.report.Skip = s.skip
	if err := s.raise(ctx, s.sequence); err != nil {
		return err
	}
	if err := s.loadObserved(); err != nil {
		return err
	}
	return s.loadNetwork()
}

// repair writes the best copy over the other one. If that fails the sled runs on one copy.
func (s *start) repair(from, to int) error {
	if bytes.Equal(s.found[from].raw, s.found[to].raw) {
		return nil
	}
	if st := s.found[to].State; st != CopyOK && st != CopyStale { // those two an interrupted save leaves
		s.note(reason.New(CodeDamaged, hintFolder, "ledger: copy %s %s", copyName(to), s.found[to]))
	}
	err := s.rewrite(from, to)
	if aborted(err) {
		return err
	}
	if err != nil {
		s.note(reason.Wrap(err, CodeDegraded, hintFolder, "ledger: copy %s not repaired", copyName(to)))
		s.copies[to].Reason, s.skip, s.single = err.Error(), true, true
		if s.copies[to].State == CopyOK {
			s.copies[to].State = CopyFailed
		}
		return nil
	}
	s.report.Repaired[to] = true
	s.copies[to] = s.copies[from]
	s.note(reason.New(CodeRepaired, "", "ledger: copy %s written anew", copyName(to)))
	return nil
}

// note reports something and counts it.
func (s *start) note(err *reason.Error) {
	s.report.Notes = append(s.report.Notes, err)
	if s.cfg.Reasons != nil {
		s.cfg.Reasons.CountError(err.Code, "", err)
	}
}

func (s *start) rewrite(from, to int) error {
	if s.folders[to] == nil {
		return errors.New(s.found[to].Reason)
	}
	if st := s.found[to].State; st == CopyDamaged || st == CopyForeign {
		if err := setAside(s.folders[to], s.found[to]); err != nil {
			return err
		}
	}
	return replace(s.folders[to], LedgerFile, s.found[from].raw, func(step string) error { return s.cfg.hook("repair/" + step) })
}
