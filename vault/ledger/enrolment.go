package ledger

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/fxamacker/cbor/v2"

	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/wire"
)

// MaxEnrolment is the size limit of an enrolment set in bytes.
const MaxEnrolment = 512 << 10

// ReadEnrolments returns the enrolment sets that lie in the state folders, without duplicates, the one that states the
// highest generation first. They are in clear and not checked here: the caller verifies the signatures and holds the
// generation against that of the TPM's claim index. None at all and no error means that both folders are there and hold
// none; a missing folder or an unreadable file is an error beside whatever was found on the other medium.
func ReadEnrolments(dirs [2]string) ([][]byte, error) {
	var sets [][]byte
	var errs []error
	for i, path := range dirs {
		b, err := readEnrolment(path, EnrolmentFile)
		switch {
		case errors.Is(err, errNone):
		case err != nil:
			errs = append(errs, fmt.Errorf("copy %s: %w", copyName(i), err))
		case len(sets) == 0 || !bytes.Equal(sets[0], b):
			sets = append(sets, b)
		}
	}
	slices.SortStableFunc(sets, func(a, b []byte) int { return cmp.Compare(stated(b), stated(a)) })
	if len(errs) > 0 {
		return sets, reason.Wrap(errors.Join(errs...), CodeEnrolment, hintFolder, "ledger: read enrolment set")
	}
	return sets, nil
}

// ReadEnrolment returns the newer enrolment set of [ReadEnrolments]. Errors: ledger-absent if both folders are there and
// hold none, ledger-enrolment if there is none and that may be the fault of a medium.
func ReadEnrolment(dirs [2]string) ([]byte, error) {
	sets, err := ReadEnrolments(dirs)
	switch {
	case len(sets) > 0:
		return sets[0], nil
	case err != nil:
		return nil, err
	}
	return nil, reason.New(CodeAbsent, hintClaim, "ledger: both folders hold no enrolment set")
}

// stated is the generation that a set claims to have, for the order only; 0 if it states none.
func stated(set []byte) uint64 {
	var head struct {
		Generation uint64 `cbor:"2,keyasint"`
	}
	if err := cbor.Unmarshal(set, &head); err != nil {
		return 0
	}
	return head.Generation
}

var errNone = errors.New("ledger: no enrolment set")

func readEnrolment(path, name string) ([]byte, error) {
	dir, err := openFolder(path, reading)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	b, err := dir.Read(name, MaxEnrolment)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errNone
	}
	return b, err
}

// WriteEnrolment stores the first enrolment set of a sled that has no open ledger, on both media, each atomically. With
// an open ledger use [Ledger.SaveSet].
func WriteEnrolment(dirs [2]string, set []byte) error {
	for i, path := range dirs {
		if err := writeEnrolment(path, set); err != nil {
			return reason.Wrap(err, CodeEnrolment, hintFolder, "ledger: write enrolment set: copy %s", copyName(i))
		}
	}
	return nil
}

func writeEnrolment(path string, set []byte) error {
	if len(set) == 0 || len(set) > MaxEnrolment {
		return formatError("enrolment set of %d bytes, want 1 to %d", len(set), MaxEnrolment)
	}
	dir, err := openFolder(path, creating)
	if err != nil {
		return err
	}
	defer dir.Close()
	return replace(dir, EnrolmentFile, set, func(string) error { return nil })
}

// KeepPrevious stores, on both media, the set that is about to be replaced by one that names another membership key. The
// TPM's claim vouches for the replaced one until it is moved, and that one's recovery key for the new. One copy is enough.
func (l *Ledger) KeepPrevious(set []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stopped {
		return errStopped
	}
	if len(set) == 0 || len(set) > MaxEnrolment {
		return formatError("enrolment set of %d bytes, want 1 to %d", len(set), MaxEnrolment)
	}
	var errs [2]error
	for i := range l.folders {
		if errs[i] = l.reach(i); errs[i] == nil {
			errs[i] = replace(l.folders[i], PreviousFile, set, func(string) error { return nil })
		}
	}
	if errs[0] != nil && errs[1] != nil {
		return reason.Wrap(errors.Join(errs[:]...), CodeEnrolment, hintFolder, "ledger: keep the enrolment set before")
	}
	return nil
}

// ReadPrevious returns what [Ledger.KeepPrevious] stored, whatever of it can be read. It is not checked here.
func ReadPrevious(dirs [2]string) (sets [][]byte) {
	for _, path := range dirs {
		if b, err := readEnrolment(path, PreviousFile); err == nil {
			sets = append(sets, b)
		}
	}
	return sets
}

// SaveSet changes the enrolment set: the file on both media, then a protected save of the state that names it. A power
// cut in between leaves a set that is newer than the state, which its signature makes good; never the other way round.
func (l *Ledger) SaveSet(ctx context.Context, set []byte, st wire.LedgerState) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stopped {
		return errStopped
	}
	if len(set) == 0 || len(set) > MaxEnrolment {
		return formatError("enrolment set of %d bytes, want 1 to %d", len(set), MaxEnrolment)
	}
	if err := l.writeSet(set); err != nil {
		l.stopped = true
		l.publish()
		return err
	}
	return l.save(ctx, st)
}

func (l *Ledger) writeSet(set []byte) error {
	var errs [2]error
	for i := range l.folders {
		if errs[i] = l.reach(i); errs[i] == nil {
			errs[i] = replace(l.folders[i], EnrolmentFile, set, func(step string) error { return l.cfg.hook("set/" + copyName(i) + "/" + step) })
		}
		if aborted(errs[i]) {
			return errs[i]
		}
		l.cfg.count(CodeDegraded, i, errs[i])
	}
	if errs[0] != nil && errs[1] != nil {
		return reason.Wrap(errors.Join(errs[0], errs[1]), CodeEnrolment, hintSave, "ledger: write enrolment set")
	}
	return nil
}

// maxAside is how many sets of old files a folder keeps.
const maxAside = 1000

// aside names the files of one life of a sled.
func aside() []string {
	return []string{LedgerFile, ObservedFile, NetworkFile, EnrolmentFile, PreviousFile}
}

// MoveAside renames ledger, observations, network configuration and enrolment set in both folders, for the re-enrolment of a sled that lost its
// seal. Nothing is deleted. Files that are not there are passed over; a missing folder is an error.
func MoveAside(dirs [2]string) error {
	for i, path := range dirs {
		if err := moveAside(path); err != nil {
			return reason.Wrap(err, CodeFolder, hintFolder, "ledger: move copy %s aside", copyName(i))
		}
	}
	return nil
}

func moveAside(path string) error {
	dir, err := openFolder(path, writing)
	if err != nil {
		return err
	}
	defer dir.Close()
	suffix, err := freeSuffix(dir)
	if err != nil {
		return err
	}
	for _, name := range aside() {
		if err := dir.Rename(name, name+suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return dir.SyncDir()
}

func freeSuffix(dir *osFolder) (string, error) {
	for n := 1; n <= maxAside; n++ {
		suffix := fmt.Sprintf(".old-%d", n)
		free := true
		for _, name := range aside() {
			if _, err := dir.root.Lstat(name + suffix); err == nil {
				free = false
			}
		}
		if free {
			return suffix, nil
		}
	}
	return "", fmt.Errorf("ledger: %d sets of old files are enough: remove some", maxAside)
}
