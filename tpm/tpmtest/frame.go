package tpmtest

import (
	"encoding/binary"

	"github.com/google/go-tpm/tpm2"
)

// Code is the command code of a command, or the response code of an answer.
func Code(frame []byte) uint32 { return code(frame) }

// Is tells whether a command has the given code.
func Is(cmd []byte, cc tpm2.TPMCC) bool { return code(cmd) == uint32(cc) }

// ErrorAnswer is an answer that carries nothing but a response code. Anybody on the bus can make one.
func ErrorAnswer(rc tpm2.TPMRC) []byte {
	b := binary.BigEndian.AppendUint16(nil, uint16(tpm2.TPMSTNoSessions))
	b = binary.BigEndian.AppendUint32(b, 10)
	return binary.BigEndian.AppendUint32(b, uint32(rc))
}

// SessionFlags returns the attribute bytes of a command's sessions, as a list of positions in the frame. Handles is how
// many handles the command has.
func SessionFlags(cmd []byte, handles int) (at []int) {
	if len(cmd) < 10 || binary.BigEndian.Uint16(cmd) != uint16(tpm2.TPMSTSessions) {
		return nil
	}
	pos := 10 + 4*handles
	if len(cmd) < pos+4 {
		return nil
	}
	end := min(len(cmd), pos+4+int(binary.BigEndian.Uint32(cmd[pos:])))
	for pos += 4; pos+6 <= end; {
		flags := pos + 6 + int(binary.BigEndian.Uint16(cmd[pos+4:]))
		if flags+3 > end {
			break
		}
		at = append(at, flags)
		pos = flags + 3 + int(binary.BigEndian.Uint16(cmd[flags+1:]))
	}
	return at
}
