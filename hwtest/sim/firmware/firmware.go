// Package firmware simulates a measured boot: what UEFI firmware, boot loader stub and kernel image write into the
// TCG2 event log, and the same digests extended into PCR registers.
//
// It owns the shape of that log only. It reads no clock and no randomness: equal options give equal logs and equal
// registers. It has no dependency on package testing, because the demo runs it too. What a verifier makes of such a log
// is in docs/evidence.md; read next: log.go, the encoder.
package firmware

import (
	"crypto/sha256"
	"errors"
	"fmt"
)

// Options describes the machine that boots. The zero value boots a sound one; each field that differs changes the
// registers that depend on it.
type Options struct {
	Version     string // firmware version, PCR 0; "" means "sledvault-sim 1.0"
	Image       string // what the boot image contains, PCR 4 and 11; "" means "sledvault-image 1"
	CommandLine string // kernel command line, PCR 12; "" means "quiet"
	Config      string // system extensions and the like, PCR 13; "" means "none"
	MachineKeys string // shim's key list, PCR 14; "" means "vendor"
	// SecureBootOff measures a disabled secure boot, PCR 7.
	SecureBootOff bool
	// Locality is the locality that PCR 0 starts with: 0, 3 or 4.
	Locality byte
	// SHA1 adds a SHA-1 bank to the log. It is never extended here.
	SHA1 bool
	// Fault breaks the log in one way, for tests of verifiers. The registers follow what the log should have said.
	Fault Fault
}

// Fault is one way in which a log can be broken.
type Fault uint8

// The faults.
const (
	NoFault         Fault = iota
	NoSeparator           // PCR 2 lacks its separator, in log and register
	SilentPCR             // PCR 3 is extended, its events are missing from the log
	UnextendedBank        // the log is sound, no register is extended
	WrongType             // the image of PCR 4 is logged as an action, with the right digest
	TwoSeparators         // PCR 1 has two separators
	LateFirmware          // the firmware measures into PCR 0 after the separator
	ErrorSeparator        // PCR 6's separator carries the error mark
	LyingVariable         // the data of SecureBoot says "on" where its digest says "off"
	HiddenEvent           // one extend of PCR 11 is missing from the log
	ReorderedEvents       // two events of PCR 12 are swapped in the log
	TrailingGarbage       // bytes after the last event
)

// Extend puts a digest into a register of the SHA-256 bank.
type Extend func(pcr int, digest [32]byte) error

// ErrOptions says that no firmware behaves so.
var ErrOptions = errors.New("firmware: locality must be 0, 3 or 4")

// Boot measures one start: it extends the registers through extend, in order, and returns the log. The registers must be
// in their state after a power cycle. Locality 3 and 4 need a TPM that was started there.
func Boot(o Options, extend Extend) (log []byte, err error) {
	if o.Locality != 0 && o.Locality != 3 && o.Locality != 4 {
		return nil, ErrOptions
	}
	b := &boot{o: o.defaults(), log: newLog(o.SHA1), extend: extend}
	b.log.locality(o.Locality)
	b.platform()
	b.secureBoot()
	b.separators()
	b.image()
	if b.err != nil {
		return nil, fmt.Errorf("firmware: extend: %w", b.err)
	}
	if o.Fault == TrailingGarbage {
		return append(b.log.bytes, 0xde, 0xad), nil
	}
	return b.log.bytes, nil
}

func (o Options) defaults() Options {
	for _, f := range []struct {
		at   *string
		text string
	}{
		{&o.Version, "sledvault-sim 1.0"},
		{&o.Image, "sledvault-image 1"},
		{&o.CommandLine, "quiet"},
		{&o.Config, "none"},
		{&o.MachineKeys, "vendor"},
	} {
		if *f.at == "" {
			*f.at = f.text
		}
	}
	return o
}

// boot is one start in progress. After the first error it does nothing more.
type boot struct {
	o      Options
	log    *logWriter
	extend Extend
	err    error
}

// measure logs an event and extends its register.
func (b *boot) measure(pcr int, typ uint32, digest [32]byte, data []byte) {
	b.log.event(pcr, typ, digest, data)
	b.into(pcr, digest)
}

// into extends without a log entry.
func (b *boot) into(pcr int, digest [32]byte) {
	if b.err == nil && b.o.Fault != UnextendedBank {
		b.err = b.extend(pcr, digest)
	}
}

// measured logs data whose own digest is extended.
func (b *boot) measured(pcr int, typ uint32, data []byte) {
	b.measure(pcr, typ, sha256.Sum256(data), data)
}

// platform is the firmware's own part: version, blobs, option ROMs, tables, boot order.
func (b *boot) platform() {
	b.measured(0, evSCRTMVersion, utf16z(b.o.Version))
	b.measure(0, evFirmwareBlob2, sha256.Sum256([]byte("volume of "+b.o.Version)), blob("DXE", 0xff000000, 0x400000))
	b.measured(1, evVariableBoot, variable(guidGlobal, "BootOrder", []byte{0, 0}))
	b.measured(1, evVariableBoot, variable(guidGlobal, "Boot0000", []byte("sledvault")))
	b.measure(2, evBootServicesDriver, sha256.Sum256([]byte("option ROM of the network card")), imageLoad("PciRoot(0)"))
	digest := sha256.Sum256([]byte("option ROM settings"))
	if b.o.Fault == SilentPCR {
		b.into(3, digest)
	} else {
		b.measure(3, evNonhostConfig, digest, []byte("option ROM settings"))
	}
	b.measured(6, evCompactHash, []byte("sledvault simulated board"))
}

// secureBoot is PCR 7 up to its separator: the state and the four key lists.
func (b *boot) secureBoot() {
	state := []byte{1}
	if b.o.SecureBootOff {
		state[0] = 0
	}
	data := variable(guidGlobal, "SecureBoot", state)
	digest := sha256.Sum256(data)
	if b.o.Fault == LyingVariable {
		digest = sha256.Sum256(variable(guidGlobal, "SecureBoot", []byte{0}))
	}
	b.measure(7, evVariableDriverConfig, digest, data)
	b.measured(7, evVariableDriverConfig, variable(guidGlobal, "PK", []byte("platform key")))
	b.measured(7, evVariableDriverConfig, variable(guidGlobal, "KEK", []byte("key exchange keys")))
	b.measured(7, evVariableDriverConfig, variable(guidSecurity, "db", []byte("allowed signers")))
	b.measured(7, evVariableDriverConfig, variable(guidSecurity, "dbx", []byte("revoked images")))
}

// separators end the firmware's part in PCR 0 to 7.
func (b *boot) separators() {
	b.measured(4, evEFIAction, []byte("Calling EFI Application from Boot Option"))
	for pcr := range 8 {
		mark := []byte{0, 0, 0, 0}
		switch {
		case b.o.Fault == NoSeparator && pcr == 2, b.o.Fault == SilentPCR && pcr == 3:
			continue
		case b.o.Fault == ErrorSeparator && pcr == 6:
			mark[0] = 1
		}
		b.measured(pcr, evSeparator, mark)
		if b.o.Fault == TwoSeparators && pcr == 1 {
			b.measured(pcr, evSeparator, mark)
		}
	}
	if b.o.Fault == LateFirmware {
		b.measured(0, evPostCode, []byte("late blob"))
	}
}

// image is the boot path: loader, its authority, unified kernel image sections, command line, extensions, keys.
func (b *boot) image() {
	if !b.o.SecureBootOff {
		b.measured(7, evVariableAuthority, variable(guidSecurity, "db", []byte("allowed signers")))
	}
	typ := uint32(evBootServicesApp)
	if b.o.Fault == WrongType {
		typ = evEFIAction
	}
	b.measure(4, typ, sha256.Sum256([]byte("image: "+b.o.Image)), imageLoad(`\EFI\BOOT\BOOTX64.EFI`))
	b.measured(5, evGPT, []byte("EFI PART one system partition"))
	for _, section := range []string{".linux", ".osrel", ".initrd", ".uname"} {
		b.measured(11, evIPL, []byte(section+"\x00"))
		digest := sha256.Sum256([]byte(section + " of " + b.o.Image))
		if b.o.Fault == HiddenEvent && section == ".initrd" {
			b.into(11, digest)
			continue
		}
		b.measure(11, evIPL, digest, []byte(section+"\x00"))
	}
	b.commandLine()
	b.measured(13, evIPL, utf16z("extensions: "+b.o.Config))
	b.measured(14, evIPL, []byte("MokList: "+b.o.MachineKeys))
	b.measured(5, evEFIAction, []byte("Exit Boot Services Invocation"))
	b.measured(5, evEFIAction, []byte("Exit Boot Services Returned with Success"))
}

func (b *boot) commandLine() {
	line, creds := utf16z(b.o.CommandLine), []byte("no credentials")
	if b.o.Fault != ReorderedEvents {
		b.measured(12, evIPL, line)
		b.measured(12, evIPL, creds)
		return
	}
	b.into(12, sha256.Sum256(line))
	b.into(12, sha256.Sum256(creds))
	b.log.event(12, evIPL, sha256.Sum256(creds), creds)
	b.log.event(12, evIPL, sha256.Sum256(line), line)
}
