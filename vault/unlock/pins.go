package unlock

import (
	"slices"
	"strconv"
	"strings"

	"github.com/sledvault/sledvault/vault/reason"
)

// cipherName is the only encryption of data and key slots that we make and accept.
const cipherName = "aes-xts-plain64"

// PinNames lists what is recorded of a header, in the order of [Record.Pins]. The digest is cryptsetup's own, of the
// volume key: nobody can make another volume key with the same digest, so data keys cannot be exchanged (docs/disks.md §3).
func PinNames() []string {
	return []string{
		"luks-uuid", "segment-type", "segment-offset", "segment-size", "segment-iv-tweak", "cipher", "sector-size", "key-size",
		"digest-type", "digest-hash", "digest-iterations", "digest-salt", "volume-key-digest", "flags",
	}
}

// oneSegment accepts exactly one plain encrypted segment, number 0.
func (m *metadata) oneSegment(o object, err *error) {
	p := pick(o, "segments", err)
	m.segment = p.obj("0")
	p.rest()
	s := pick(m.segment, "segment 0", err)
	typ, size, tweak := s.str("type"), s.str("size"), s.num("iv_tweak", true, 1<<62)
	m.segmentOffset = s.num("offset", true, 1<<62)
	cipher, sector := s.str("encryption"), s.num("sector_size", false, 4096)
	if typ != "crypt" || cipher != cipherName {
		s.fail("have %.16q with %.40q, want crypt with %s", typ, cipher, cipherName)
	}
	if sector != 512 && sector != 1024 && sector != 2048 && sector != 4096 {
		s.fail("sector_size: have %d, want 512 to 4096", sector)
	}
	if n, e := strconv.ParseUint(size, 10, 62); size != "dynamic" && (e != nil || n == 0) {
		s.fail("size: have %.24q", size)
	}
	// Data over the header would let a write to the plain disk rewrite what we check.
	if end := 2*m.raw.size + m.keyslotsSize; m.segmentOffset < end {
		s.fail("offset: have %d, want at least %d", m.segmentOffset, end)
	}
	s.rest()
	m.pins = append(m.pins, Pin{"luks-uuid", m.raw.uuid}, Pin{"segment-type", typ},
		Pin{"segment-offset", strconv.FormatUint(m.segmentOffset, 10)}, Pin{"segment-size", size},
		Pin{"segment-iv-tweak", strconv.FormatUint(tweak, 10)}, Pin{"cipher", cipher},
		Pin{"sector-size", strconv.FormatUint(sector, 10)}, Pin{"key-size", "64"})
}

// oneDigest accepts exactly one digest, number 0, that covers segment 0 and every key slot.
func (m *metadata) oneDigest(o object, err *error) {
	p := pick(o, "digests", err)
	m.digest = p.obj("0")
	p.rest()
	d := pick(m.digest, "digest 0", err)
	typ, hash := d.str("type"), d.str("hash")
	iterations := d.num("iterations", false, maxIterations)
	salt, sum := d.base64("salt"), d.base64("digest")
	slots, segments := d.strs("keyslots"), d.strs("segments")
	d.rest()
	if typ != "pbkdf2" || !hashOK(hash) {
		d.fail("have %.16q with %.16q, want pbkdf2 with sha256 or sha512", typ, hash)
	}
	if !slices.Equal(segments, []string{"0"}) {
		d.fail("segments: have %.40q, want 0", segments)
	}
	for n := range m.slots {
		if !slices.Contains(slots, strconv.Itoa(n)) {
			d.fail("key slot %d belongs to no digest", n)
		}
	}
	if len(slots) != len(m.slots) {
		d.fail("keyslots: have %d, want %d", len(slots), len(m.slots))
	}
	flags := slices.Sorted(slices.Values(m.flags))
	m.pins = append(m.pins, Pin{"digest-type", typ}, Pin{"digest-hash", hash},
		Pin{"digest-iterations", strconv.FormatUint(iterations, 10)}, Pin{"digest-salt", salt},
		Pin{"volume-key-digest", sum}, Pin{"flags", strings.Join(flags, ",")})
}

// compare refuses a header that differs from its record, naming the first pin that does.
func (m *metadata) compare(r Record, id string) error {
	names := PinNames()
	if len(r.Pins) != len(names) {
		return reason.New(CodeChanged, hintChanged, "unlock: disk %s: record: have %d pins, want %d", id, len(r.Pins), len(names))
	}
	for i, name := range names {
		want, have := r.Pins[i], m.pins[i]
		if want.Name != name {
			return reason.New(CodeChanged, hintChanged, "unlock: disk %s: record: pin %d: have %.40q, want %q", id, i, want.Name, name)
		}
		if want.Value != have.Value {
			return reason.New(CodeChanged, hintChanged, "unlock: disk %s: header changed: %s: have %.100q, want %.100q", id, name, have.Value, want.Value)
		}
	}
	if _, ok := m.slots[r.KeySlot]; !ok {
		return reason.New(CodeChanged, hintChanged, "unlock: disk %s: header changed: key slot %d is gone", id, r.KeySlot)
	}
	return nil
}
