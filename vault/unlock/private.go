package unlock

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/sledvault/sledvault/vault/reason"
)

// privateCopy writes the header anew into a sealed, memory-backed file that only this process and its child can reach:
// the metadata as we understood it, reduced to the given key slots, one digest and one segment, and those slots' areas.
// cryptsetup never sees the disk's own header, so no second reading of it can differ from what was checked.
func (m *metadata) privateCopy(r io.ReaderAt, id string, slots ...int) (*os.File, error) {
	f, err := m.writeCopy(r, slots)
	if err != nil {
		return nil, reason.Wrap(err, CodeIO, hintIO, "unlock: disk %s: private copy of the header", id)
	}
	return f, nil
}

func (m *metadata) writeCopy(r io.ReaderAt, slots []int) (f *os.File, err error) {
	area, err := m.reduced(slots)
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("sledvault-header", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("memory-backed file: %w", err)
	}
	f = os.NewFile(uintptr(fd), "sledvault-header")
	defer func() {
		if err != nil {
			_ = f.Close()
		}
	}()
	if err := unix.Fchmod(fd, 0o600); err != nil {
		return nil, err
	}
	if err := f.Truncate(int64(2*m.raw.size + m.keyslotsSize)); err != nil {
		return nil, err
	}
	for i, magic := range []string{magicFirst, magicSecond} {
		at := uint64(i) * m.raw.size
		if _, err := f.WriteAt(m.copyAt(at, magic, area), int64(at)); err != nil {
			return nil, err
		}
	}
	for _, n := range slots {
		s := m.slots[n]
		buf := make([]byte, s.size)
		if _, err := r.ReadAt(buf, int64(s.offset)); err != nil {
			return nil, fmt.Errorf("key slot %d: %w", n, err)
		}
		if _, err := f.WriteAt(buf, int64(s.offset)); err != nil {
			return nil, err
		}
	}
	_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_WRITE|unix.F_SEAL_GROW|unix.F_SEAL_SHRINK)
	return f, err
}

// reduced is the JSON area of the copy, padded with zeros.
func (m *metadata) reduced(slots []int) ([]byte, error) {
	keyslots, names := object{}, []any{}
	for _, n := range slots {
		name := strconv.Itoa(n)
		keyslots[name] = m.slots[n].object
		names = append(names, name)
	}
	digest := object{}
	maps.Copy(digest, m.digest)
	digest["keyslots"] = names
	config := object{
		"json_size":     strconv.FormatUint(m.jsonSize, 10),
		"keyslots_size": strconv.FormatUint(m.keyslotsSize, 10),
	}
	if len(m.flags) > 0 {
		config["flags"] = m.flags
	}
	text, err := json.Marshal(object{
		"keyslots": keyslots, "tokens": object{}, "segments": object{"0": m.segment}, "digests": object{"0": digest}, "config": config,
	})
	if err != nil {
		return nil, err
	}
	if uint64(len(text)) >= m.jsonSize {
		return nil, fmt.Errorf("metadata: have %d bytes, want less than %d", len(text), m.jsonSize)
	}
	return append(text, make([]byte, m.jsonSize-uint64(len(text)))...), nil
}

// copyAt is one whole copy for the given offset. Label and subsystem are left out: they are shown to people only.
func (m *metadata) copyAt(at uint64, magic string, area []byte) []byte {
	b := make([]byte, binarySize, binarySize+len(area))
	copy(b, magic)
	binary.BigEndian.PutUint16(b[offVersion:], 2)
	binary.BigEndian.PutUint64(b[offSize:], m.raw.size)
	binary.BigEndian.PutUint64(b[offSeq:], 1)
	copy(b[offAlg:], "sha256")
	copy(b[offUUID:offUUID+39], m.raw.uuid)
	binary.BigEndian.PutUint64(b[offSelf:], at)
	sum := checksum(b, area)
	copy(b[offSum:], sum[:])
	return append(b, area...)
}
