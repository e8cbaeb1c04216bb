package firmware

import (
	"crypto/sha1" // the other bank of real logs; nothing trusts it
	"encoding/binary"
	"unicode/utf16"
)

// The event types that are used here (TCG PC Client Platform Firmware Profile).
const (
	evPostCode             = 0x1
	evNoAction             = 0x3
	evSeparator            = 0x4
	evSCRTMVersion         = 0x8
	evCompactHash          = 0xc
	evIPL                  = 0xd
	evNonhostConfig        = 0x10
	evVariableDriverConfig = 0x80000001
	evVariableBoot         = 0x80000002
	evBootServicesApp      = 0x80000003
	evBootServicesDriver   = 0x80000004
	evGPT                  = 0x80000006
	evEFIAction            = 0x80000007
	evFirmwareBlob2        = 0x8000000a
	evVariableAuthority    = 0x800000e0
)

const (
	algSHA1   = 0x0004
	algSHA256 = 0x000b
)

// The name spaces of UEFI variables, in their byte order in memory.
var (
	guidGlobal   = [16]byte{0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c}
	guidSecurity = [16]byte{0xcb, 0xb2, 0x19, 0xd7, 0x3a, 0x3d, 0x96, 0x45, 0xa3, 0xbc, 0xda, 0xd0, 0x0e, 0x67, 0x65, 0x6f}
)

// logWriter encodes a log of the TCG2 form. All integers are little endian.
type logWriter struct {
	bytes []byte
	sha1  bool
}

// newLog writes the first record, in the older form, which declares the banks.
func newLog(withSHA1 bool) *logWriter {
	body := append([]byte("Spec ID Event03\x00"), 0, 0, 0, 0) // platform class: client
	body = append(body, 0, 2, 2, 2)                           // version 2.0 errata 2, 64-bit
	if withSHA1 {
		body = u32(body, 2)
		body = u16(u16(body, algSHA1), sha1.Size)
	} else {
		body = u32(body, 1)
	}
	body = u16(u16(body, algSHA256), 32)
	body = append(body, 0) // no vendor data
	out := u32(u32(nil, 0), evNoAction)
	out = append(out, make([]byte, 20)...)
	out = append(u32(out, uint32(len(body))), body...)
	return &logWriter{bytes: out, sha1: withSHA1}
}

func (l *logWriter) locality(locality byte) {
	if locality != 0 {
		l.event(0, evNoAction, [32]byte{}, append([]byte("StartupLocality\x00"), locality))
	}
}

func (l *logWriter) event(pcr int, typ uint32, digest [32]byte, data []byte) {
	l.bytes = u32(u32(l.bytes, uint32(pcr)), typ)
	if l.sha1 {
		other := sha1.Sum(data)
		l.bytes = append(u16(u32(l.bytes, 2), algSHA1), other[:]...)
	} else {
		l.bytes = u32(l.bytes, 1)
	}
	l.bytes = append(u16(l.bytes, algSHA256), digest[:]...)
	l.bytes = append(u32(l.bytes, uint32(len(data))), data...)
}

func u16(b []byte, v uint16) []byte { return binary.LittleEndian.AppendUint16(b, v) }
func u32(b []byte, v uint32) []byte { return binary.LittleEndian.AppendUint32(b, v) }
func u64(b []byte, v uint64) []byte { return binary.LittleEndian.AppendUint64(b, v) }

// utf16z is a text as firmware writes it: UTF-16, ended by a zero.
func utf16z(s string) (out []byte) {
	for _, c := range utf16.Encode([]rune(s + "\x00")) {
		out = u16(out, c)
	}
	return out
}

// variable is a UEFI_VARIABLE_DATA.
func variable(guid [16]byte, name string, data []byte) []byte {
	chars := utf16.Encode([]rune(name))
	out := u64(u64(append([]byte(nil), guid[:]...), uint64(len(chars))), uint64(len(data)))
	for _, c := range chars {
		out = u16(out, c)
	}
	return append(out, data...)
}

// blob is a UEFI_PLATFORM_FIRMWARE_BLOB2: where a firmware volume lies. The digest covers the volume, not this.
func blob(name string, base, size uint64) []byte {
	return u64(u64(append([]byte{byte(len(name))}, name...), base), size)
}

// imageLoad is a UEFI_IMAGE_LOAD_EVENT: where an image came from. The digest covers the image, not this.
func imageLoad(path string) []byte {
	p := utf16z(path)
	node := append(u16([]byte{4, 4}, uint16(4+len(p))), p...) // media device path: file path
	node = append(node, 0x7f, 0xff, 4, 0)                     // end of path
	out := u64(u64(u64(nil, 0x7f000000), 0x100000), 0)
	return append(u64(out, uint64(len(node))), node...)
}
