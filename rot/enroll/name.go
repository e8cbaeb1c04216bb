package enroll

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
)

// PublicName computes the Name of a TPMT_PUBLIC: its name algorithm and the digest of the area (TPM Part 1 §16).
func PublicName(public []byte) ([]byte, error) {
	if len(public) < 10 || len(public) > maxArea {
		return nil, refuse(CodeRecord, "", "public area: have %d bytes, want 10 to %d", len(public), maxArea)
	}
	return nameOf(binary.BigEndian.Uint16(public[2:]), public)
}

// NVName computes the Name of a TPMS_NV_PUBLIC as it is after the first write: the Written bit is set.
func NVName(public []byte) ([]byte, error) {
	const written = 1 << 29
	if len(public) < 14 || len(public) > maxArea {
		return nil, refuse(CodeRecord, "", "index: have %d bytes, want 14 to %d", len(public), maxArea)
	}
	area := append([]byte(nil), public...)
	binary.BigEndian.PutUint32(area[6:], binary.BigEndian.Uint32(area[6:])|written)
	return nameOf(binary.BigEndian.Uint16(area[4:]), area)
}

func nameOf(alg uint16, area []byte) ([]byte, error) {
	name := binary.BigEndian.AppendUint16(nil, alg)
	switch alg {
	case algSHA256:
		d := sha256.Sum256(area)
		return append(name, d[:]...), nil
	case algSHA384:
		d := sha512.Sum384(area)
		return append(name, d[:]...), nil
	case algSHA512:
		d := sha512.Sum512(area)
		return append(name, d[:]...), nil
	}
	return nil, refuse(CodeRecord, "", "public area: have name algorithm %#04x, want SHA-256, SHA-384 or SHA-512", alg)
}
