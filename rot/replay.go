package rot

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"unicode/utf16"
)

// Replay computes what the log says the registers hold: only those that the log touches.
func (l *EventLog) Replay() map[int][32]byte {
	out := make(map[int][32]byte)
	for i := range l.Events {
		e := &l.Events[i]
		value, touched := out[e.PCR]
		switch {
		case touched:
		case e.PCR == 0:
			value[31] = l.Locality
		case e.PCR >= 17 && e.PCR <= 22:
			value = allOnes() // dynamic launch registers start so; a selection of ours never holds them
		}
		out[e.PCR] = sha256.Sum256(append(value[:], e.Digest[:]...))
	}
	return out
}

// Explains checks that the log accounts for every quoted register (evidence.md §7): its replay gives the value, and
// PCR 0 to 7 each hold exactly one valid separator with nothing of the firmware's own after it. Registers from 8 up
// that the caller pins by value may be named in pinned: user space extends some of them without writing to this log.
func (l *EventLog) Explains(quoted map[int][32]byte, pinned func(pcr int) bool) error {
	replayed := l.Replay()
	for _, pcr := range slices.Sorted(maps.Keys(quoted)) {
		have, touched := replayed[pcr]
		if pcr < firmwarePCRs && !touched {
			return refuse(CodeEventLog, "event log refused: no event for PCR %d", pcr)
		}
		if have != quoted[pcr] && (pcr < firmwarePCRs || pinned == nil || !pinned(pcr)) {
			return refuse(CodeEventLog, "event log refused: its replay does not give the quoted value of PCR %d", pcr)
		}
	}
	for pcr := range firmwarePCRs {
		if err := l.separator(pcr); err != nil {
			return refuseBecause(err, CodeEventLog, "event log refused: PCR %d", pcr)
		}
	}
	return nil
}

// separator checks the border between firmware and boot in one register. After it nothing is measured into PCR 0, 2, 3
// and 6. PCR 4, 5 and 7 go on with the boot path and its authorities, and real boards measure boot variables and tables
// into PCR 1 late.
func (l *EventLog) separator(pcr int) error {
	found := false
	for i := range l.Events {
		e := &l.Events[i]
		if e.PCR != pcr {
			continue
		}
		if e.Type != EvSeparator {
			if found && (pcr == 0 || pcr == 2 || pcr == 3 || pcr == 6) {
				return fmt.Errorf("event of type %v after the separator", e.Type)
			}
			continue
		}
		if found {
			return errors.New("more than one separator")
		}
		if !validSeparator(e) {
			return errors.New("separator with an error mark or another digest")
		}
		found = true
	}
	if !found {
		return errors.New("no separator")
	}
	return nil
}

func validSeparator(e *Event) bool {
	return e.DigestVerified && (bytes.Equal(e.Data, []byte{0, 0, 0, 0}) || bytes.Equal(e.Data, []byte{0xff, 0xff, 0xff, 0xff}))
}

// SecureBoot is the secure-boot state that PCR 7 proves.
type SecureBoot struct {
	Enabled          bool
	PK, KEK, DB, DBX [32]byte // SHA-256 of each variable's content
	Authorities      int      // images that were admitted by a measured authority
}

// Variable is the UEFI variable of a verified event.
type Variable struct {
	GUID [16]byte
	Name string
	Data []byte
}

// The name spaces of the secure-boot variables, in the byte order of UEFI.
var (
	guidGlobal   = [16]byte{0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c}
	guidSecurity = [16]byte{0xcb, 0xb2, 0x19, 0xd7, 0x3a, 0x3d, 0x96, 0x45, 0xa3, 0xbc, 0xda, 0xd0, 0x0e, 0x67, 0x65, 0x6f}
)

// Variable reads the UEFI_VARIABLE_DATA of a variable event, only where the digest covers it.
func (e *Event) Variable() (Variable, error) {
	switch e.Type {
	case EvVariableDriverConfig, EvVariableBoot, EvVariableBoot2, EvVariableAuthority:
	default:
		return Variable{}, fmt.Errorf("event type %v holds no variable", e.Type)
	}
	if !e.DigestVerified {
		return Variable{}, errors.New("digest does not cover the variable")
	}
	if len(e.Data) < 32 {
		return Variable{}, errors.New("variable is cut short")
	}
	chars, size, rest := binary.LittleEndian.Uint64(e.Data[16:]), binary.LittleEndian.Uint64(e.Data[24:]), e.Data[32:]
	if chars > uint64(len(rest))/2 || size != uint64(len(rest))-2*chars {
		return Variable{}, errors.New("variable lengths do not add up")
	}
	name := make([]uint16, chars)
	for i := range name {
		name[i] = binary.LittleEndian.Uint16(rest[2*i:])
	}
	return Variable{GUID: [16]byte(e.Data[:16]), Name: string(utf16.Decode(name)), Data: rest[2*chars:]}, nil
}

// SecureBoot reads the secure-boot state from the variable events of PCR 7 before the separator: each of the five
// variables exactly once, in its own name space, covered by its digest.
func (l *EventLog) SecureBoot() (SecureBoot, error) {
	var s SecureBoot
	found := map[string][]byte{}
	separated := false
	for i := range l.Events {
		e := &l.Events[i]
		if e.PCR != 7 {
			continue
		}
		switch {
		case e.Type == EvSeparator:
			separated = true
		case e.Type == EvVariableAuthority && separated:
			s.Authorities++
		case e.Type == EvVariableDriverConfig && !separated:
			if err := collectVariable(e, found); err != nil {
				return s, refuseBecause(err, CodeEventLog, "secure-boot state refused")
			}
		}
	}
	if len(found) != 5 {
		return s, refuse(CodeEventLog, "secure-boot state refused: have %d of its 5 variables", len(found))
	}
	s.Enabled = bytes.Equal(found["SecureBoot"], []byte{1})
	s.PK, s.KEK = sha256.Sum256(found["PK"]), sha256.Sum256(found["KEK"])
	s.DB, s.DBX = sha256.Sum256(found["db"]), sha256.Sum256(found["dbx"])
	return s, nil
}

func collectVariable(e *Event, into map[string][]byte) error {
	v, err := e.Variable()
	if err != nil {
		return err
	}
	space := guidGlobal
	switch v.Name {
	case "SecureBoot", "PK", "KEK":
	case "db", "dbx":
		space = guidSecurity
	default:
		return nil
	}
	if v.GUID != space {
		return fmt.Errorf("variable %q in a foreign name space", v.Name)
	}
	if _, again := into[v.Name]; again {
		return fmt.Errorf("variable %q measured twice", v.Name)
	}
	into[v.Name] = v.Data
	return nil
}
