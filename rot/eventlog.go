package rot

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
)

// EventType is the type of an event of the TCG PC Client log. It is chosen by whoever wrote the log: only digests are
// covered by the quote (evidence.md §7).
type EventType uint32

// The event types of the TCG PC Client Platform Firmware Profile. Others are refused.
const (
	EvPrebootCert           EventType = 0x0
	EvPostCode              EventType = 0x1
	EvNoAction              EventType = 0x3
	EvSeparator             EventType = 0x4
	EvAction                EventType = 0x5
	EvEventTag              EventType = 0x6
	EvSCRTMContents         EventType = 0x7
	EvSCRTMVersion          EventType = 0x8
	EvCPUMicrocode          EventType = 0x9
	EvPlatformConfigFlags   EventType = 0xa
	EvTableOfDevices        EventType = 0xb
	EvCompactHash           EventType = 0xc
	EvIPL                   EventType = 0xd
	EvIPLPartitionData      EventType = 0xe
	EvNonhostCode           EventType = 0xf
	EvNonhostConfig         EventType = 0x10
	EvNonhostInfo           EventType = 0x11
	EvOmitBootDeviceEvents  EventType = 0x12
	EvPostCode2             EventType = 0x13
	EvVariableDriverConfig  EventType = 0x80000001
	EvVariableBoot          EventType = 0x80000002
	EvBootServicesApp       EventType = 0x80000003
	EvBootServicesDriver    EventType = 0x80000004
	EvRuntimeServicesDriver EventType = 0x80000005
	EvGPT                   EventType = 0x80000006
	EvEFIAction             EventType = 0x80000007
	EvFirmwareBlob          EventType = 0x80000008
	EvHandoffTables         EventType = 0x80000009
	EvFirmwareBlob2         EventType = 0x8000000a
	EvHandoffTables2        EventType = 0x8000000b
	EvVariableBoot2         EventType = 0x8000000c
	EvGPT2                  EventType = 0x8000000d
	EvHCRTM                 EventType = 0x80000010
	EvVariableAuthority     EventType = 0x800000e0
	EvSPDMFirmwareBlob      EventType = 0x800000e1
	EvSPDMFirmwareConfig    EventType = 0x800000e2
	EvSPDMDevicePolicy      EventType = 0x800000e3
	EvSPDMDeviceAuthority   EventType = 0x800000e4
)

// String is the type's number in hexadecimal.
func (t EventType) String() string { return "0x" + strconv.FormatUint(uint64(t), 16) }

func (t EventType) known() bool {
	switch {
	case t <= EvPostCode2 && t != 2: // 2 is reserved
		return true
	case t >= EvVariableDriverConfig && t <= EvGPT2, t == EvHCRTM, t >= EvVariableAuthority && t <= EvSPDMDeviceAuthority:
		return true
	}
	return false
}

// Event is one measurement: an extend of one register.
type Event struct {
	PCR    int
	Type   EventType
	Digest [32]byte // SHA-256 bank
	Data   []byte   // trust it only where DigestVerified is set
	// DigestVerified says that Digest is the digest of Data. Image loads, among others, measure something else.
	DigestVerified bool
}

// EventLog is a parsed log: every event that extended a register, in order.
type EventLog struct {
	Events   []Event
	Locality byte // start value of PCR 0
	started  bool // the locality is settled: named, or PCR 0 was extended
}

// The bounds of a log's header.
const (
	maxBanks      = 8
	maxDigestSize = 64
	maxEvents     = 16384
)

var (
	errLogShort   = errors.New("log is cut short")
	specSignature = [16]byte{'S', 'p', 'e', 'c', ' ', 'I', 'D', ' ', 'E', 'v', 'e', 'n', 't', '0', '3'}
	localityMark  = [16]byte{'S', 't', 'a', 'r', 't', 'u', 'p', 'L', 'o', 'c', 'a', 'l', 'i', 't', 'y'}
)

// logReader walks a log. All integers are little endian.
type logReader struct {
	b     []byte
	banks map[uint16]int // digest size per algorithm
}

func (r *logReader) take(n uint64) ([]byte, error) {
	if n > uint64(len(r.b)) {
		return nil, errLogShort
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out, nil
}

func (r *logReader) u32() (uint32, error) {
	b, err := r.take(4)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint32(b), nil
}

func (r *logReader) u16() (uint16, error) {
	b, err := r.take(2)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint16(b), nil
}

// ParseEventLog reads a TCG2 binary log with a SHA-256 bank. Unknown event types, undeclared or repeated algorithms,
// registers that do not exist, misplaced localities and trailing bytes are refused. The result refers to b.
func ParseEventLog(b []byte) (*EventLog, error) {
	if len(b) > MaxEventLog {
		return nil, refuse(CodeEventLog, "event log refused: have %d bytes, want at most %d", len(b), MaxEventLog)
	}
	r := &logReader{b: b}
	if err := r.header(); err != nil {
		return nil, refuseBecause(err, CodeEventLog, "event log refused: header")
	}
	log := &EventLog{}
	for n := 1; len(r.b) > 0; n++ {
		if n > maxEvents {
			return nil, refuse(CodeEventLog, "event log refused: more than %d events", maxEvents)
		}
		if err := r.event(log); err != nil {
			return nil, refuseBecause(err, CodeEventLog, "event log refused: event %d", n)
		}
	}
	return log, nil
}

// header reads the first record, in the older form, which says what the others look like.
func (r *logReader) header() error {
	head, err := r.take(4 + 4 + 20 + 4)
	if err != nil {
		return err
	}
	if binary.LittleEndian.Uint32(head) != 0 || EventType(binary.LittleEndian.Uint32(head[4:])) != EvNoAction ||
		!bytes.Equal(head[8:28], make([]byte, 20)) {
		return errors.New("not a specification record")
	}
	body, err := r.take(uint64(binary.LittleEndian.Uint32(head[28:])))
	if err != nil {
		return err
	}
	spec := &logReader{b: body}
	fixed, err := spec.take(16 + 4 + 4)
	if err != nil || [16]byte(fixed) != specSignature {
		return errors.New("want a log of the TCG2 form, Spec ID Event03")
	}
	banks, err := spec.u32()
	if err != nil || banks == 0 || banks > maxBanks {
		return fmt.Errorf("number of banks: have %d, want 1 to %d", banks, maxBanks)
	}
	r.banks = make(map[uint16]int, banks)
	for range banks {
		if err := r.bank(spec); err != nil {
			return err
		}
	}
	if r.banks[algSHA256] == 0 {
		return errors.New("no SHA-256 bank")
	}
	vendor, err := spec.take(1)
	if err != nil {
		return err
	}
	if len(spec.b) != int(vendor[0]) {
		return fmt.Errorf("vendor data: have %d bytes, want %d", len(spec.b), vendor[0])
	}
	return nil
}

func (r *logReader) bank(spec *logReader) error {
	alg, err := spec.u16()
	if err != nil {
		return err
	}
	size, err := spec.u16()
	if err != nil {
		return err
	}
	if _, again := r.banks[alg]; again || size == 0 || size > maxDigestSize || alg == algSHA256 && size != sha256.Size {
		return fmt.Errorf("bank %#x: repeated, or %d bytes is not its size", alg, size)
	}
	r.banks[alg] = int(size)
	return nil
}

// event reads one record and appends it to the log, unless it extends nothing.
func (r *logReader) event(log *EventLog) error {
	pcr, err := r.u32()
	if err != nil {
		return err
	}
	typ, err := r.u32()
	if err != nil {
		return err
	}
	digest, err := r.digests()
	if err != nil {
		return err
	}
	size, err := r.u32()
	if err != nil {
		return err
	}
	data, err := r.take(uint64(size))
	if err != nil {
		return err
	}
	e := Event{Type: EventType(typ), Digest: digest, Data: data}
	if !e.Type.known() {
		return fmt.Errorf("unknown event type %v", e.Type)
	}
	if e.Type == EvNoAction {
		return log.noAction(pcr, data)
	}
	if pcr > maxPCR {
		return fmt.Errorf("register: have %d, want at most %d", pcr, maxPCR)
	}
	e.PCR = int(pcr)
	e.DigestVerified = sha256.Sum256(data) == digest
	if e.Type == EvHCRTM {
		if e.PCR != 0 || log.started {
			return errors.New("H-CRTM event out of place")
		}
		log.Locality = 4
	}
	log.started = log.started || e.PCR == 0
	log.Events = append(log.Events, e)
	return nil
}

// digests reads the list of digests: each of a declared bank, none twice, SHA-256 among them.
func (r *logReader) digests() (out [32]byte, err error) {
	count, err := r.u32()
	if err != nil {
		return out, err
	}
	if int64(count) != int64(len(r.banks)) {
		return out, fmt.Errorf("number of digests: have %d, want one per bank, %d", count, len(r.banks))
	}
	seen := make(map[uint16]bool, count)
	for range count {
		alg, err := r.u16()
		if err != nil {
			return out, err
		}
		size, declared := r.banks[alg]
		if !declared || seen[alg] {
			return out, fmt.Errorf("digest of bank %#x is undeclared or repeated", alg)
		}
		seen[alg] = true
		d, err := r.take(uint64(size))
		if err != nil {
			return out, err
		}
		if alg == algSHA256 {
			out = [32]byte(d)
		}
	}
	return out, nil
}

// noAction handles a record that extends nothing. Only the startup locality means something to us: it must come before
// anything was extended into PCR 0, and once.
func (l *EventLog) noAction(pcr uint32, data []byte) error {
	if len(data) < len(localityMark) || [16]byte(data) != localityMark {
		return nil
	}
	if len(data) != len(localityMark)+1 || pcr != 0 {
		return errors.New("malformed startup locality")
	}
	locality := data[len(localityMark)]
	if locality != 0 && locality != 3 && locality != 4 {
		return fmt.Errorf("startup locality: have %d, want 0, 3 or 4", locality)
	}
	if l.started {
		return errors.New("startup locality out of place")
	}
	l.Locality, l.started = locality, true
	return nil
}
