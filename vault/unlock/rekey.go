package unlock

import (
	"context"
	"maps"
	"slices"
	"strconv"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
)

// AddKey is the first half of a rotation: it gives the disk a second key, of a newer epoch, and returns the record under
// that key. Both keys open the disk until [LUKS2.RetireOld]. It can be repeated after a crash at any point: a slot that
// the new key opens already is used. The caller saves the record before it retires anything (docs/disks.md §5).
func (l *LUKS2) AddKey(ctx context.Context, d Disk, r Record, old, next secret.DiskKey, epoch ident.Epoch, rack ident.RackID) (Record, error) {
	m, err := l.proveRecorded(ctx, d, r, old)
	if err != nil {
		return Record{}, err
	}
	slot, err := l.ensureKey(ctx, d, m, old, next)
	if err != nil {
		return Record{}, err
	}
	out := Record{Epoch: epoch, KeySlot: slot, Pins: r.Pins}
	if _, err := l.proveRecorded(ctx, d, out, next); err != nil {
		return Record{}, err
	}
	return out, l.setToken(ctx, d, slot, epoch, rack, m.tokenID != "")
}

// proveRecorded compares the header with the record and the key with the recorded slot.
func (l *LUKS2) proveRecorded(ctx context.Context, d Disk, r Record, key secret.DiskKey) (*metadata, error) {
	f, err := openDevice(d)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	m, err := load(f, d)
	if err != nil {
		return nil, err
	}
	if err := m.compare(r, d.ID); err != nil {
		return nil, err
	}
	header, err := m.privateCopy(f, d.ID, r.KeySlot)
	if err != nil {
		return nil, err
	}
	defer header.Close()
	return m, l.prove(ctx, d, header, r.KeySlot, key)
}

// slotArea is what cryptsetup sets aside for one key slot of ours, in bytes.
const slotArea = 258048

// ensureKey returns the slot of the new key, adding it if no slot has it.
func (l *LUKS2) ensureKey(ctx context.Context, d Disk, m *metadata, old, next secret.DiskKey) (int, error) {
	f, err := openDevice(d)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if slot, err := l.findSlot(ctx, d, f, m, next); err == nil || reason.CodeOf(err) != CodeKey {
		return slot, err
	}
	free := 0
	for _, used := m.slots[free]; used; _, used = m.slots[free] {
		free++
	}
	if free >= min(maxSlots, int(m.keyslotsSize/slotArea)) {
		return 0, reason.New(CodeNoSlot, hintNoSlot, "unlock: disk %s: new key: no free slot: have %d in use", d.ID, len(m.slots))
	}
	args := []string{
		"luksAddKey", "--batch-mode", "--hash", "sha256", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", iterations,
		"--disable-external-tokens", "--key-slot", strconv.Itoa(free), "--key-file", "-", "--keyfile-size", strconv.Itoa(keySize),
		"--new-keyfile-size", strconv.Itoa(keySize), d.Path, "/dev/fd/" + strconv.Itoa(newKeyFD),
	}
	a, err := l.run(ctx, call{id: d.ID, args: args, key: old, newKey: next})
	if err != nil {
		return 0, err
	}
	if a.exit != exitOK {
		return 0, a.failed(d.ID, "add a key")
	}
	return free, nil
}

// RetireOld is the second half of a rotation: it removes every key slot but the record's. It proves the record's key
// first, and is done at once if no other slot is left. The caller has saved the record, and knows that enough shares of
// the new secret exist (docs/disks.md §5).
func (l *LUKS2) RetireOld(ctx context.Context, d Disk, r Record, key secret.DiskKey) error {
	m, err := l.proveRecorded(ctx, d, r, key)
	if err != nil {
		return err
	}
	for _, n := range slices.Sorted(maps.Keys(m.slots)) {
		if n == r.KeySlot {
			continue
		}
		args := []string{
			"luksKillSlot", "--batch-mode", "--key-file", "-", "--keyfile-size", strconv.Itoa(keySize), d.Path, strconv.Itoa(n),
		}
		a, err := l.run(ctx, call{id: d.ID, args: args, key: key})
		if err != nil {
			return err
		}
		if a.exit != exitOK {
			return a.failed(d.ID, "retire key slot "+strconv.Itoa(n))
		}
	}
	return nil
}
