// Package frame turns messages between a host and its service processor into bytes and back.
//
// It owns the packet format of docs/sp-wire.md: the checksum, the zero-free encoding, the header, the command and
// reply numbers, the deframer, and the rules by which each side judges what it received. Host, simulator and fuzzers
// use the same functions, all of which take and return byte slices. It refuses everything that is not exactly one
// well-formed packet, with a typed error, and never holds more than one packet in memory. It does no I/O.
//
// Read next: package sp, which speaks this over a serial line.
package frame

import "fmt"

// Numbers of the packet format (sp-wire.md §2).
const (
	Magic   uint32 = 0x01DE19CC // first four bytes of every message, little endian on the wire
	Version uint32 = 1          // the only header version

	ReplyBit   uint64 = 1 << 63 // set in the sequence number of every reply
	FailureSeq uint64 = 1<<64 - 1

	HeaderLen   = 16 // magic, version, sequence
	ChecksumLen = 2
	MinMessage  = HeaderLen + 1 + ChecksumLen
	MaxMessage  = 4123                    // largest message either side may send
	MaxFrame    = MaxMessage + 17         // largest encoded message, terminator not counted
	MaxBody     = MaxMessage - MinMessage // fixed fields and data together
	SPBuffer    = MaxFrame + 1            // what a service processor keeps of a frame
	Terminator  = byte(0)                 // ends every frame and occurs in none
	maxRun      = 254                     // longest run of non-zero bytes under one code
	bodyAt      = HeaderLen + 1           // where fixed fields begin
	replyBodies = int(ApobReadReply) + 1  // reply numbers in use
	requests    = int(BootStage) + 1      // request numbers in use
)

// Command is the number of a request (host to service processor).
type Command uint8

// The requests (sp-wire.md §4). Number 0 is unused and answered with a DecodeFailure that echoes the sequence.
const (
	Unused Command = iota
	RequestReboot
	RequestPowerOff
	GetBootStorageUnit
	GetIdentity
	GetMacAddresses
	HostBootFailure
	HostPanic
	GetStatus
	AckSpStart
	GetAlert
	RotRequest
	RotAddHostMeasurements
	GetPhase2Data
	KeyLookup
	GetInventoryData
	KeySet
	ApobBegin
	ApobCommit
	ApobData
	ApobRead
	BootStage
)

// request describes one command: its name and the bytes of its fixed fields.
type request struct {
	name  string
	fixed int
}

func requestInfo(c Command) (request, bool) {
	table := [requests]request{
		{"Unused", 0},
		{"RequestReboot", 0},
		{"RequestPowerOff", 0},
		{"GetBootStorageUnit", 0},
		{"GetIdentity", 0},
		{"GetMacAddresses", 0},
		{"HostBootFailure", 1},
		{"HostPanic", 0},
		{"GetStatus", 0},
		{"AckSpStart", 0},
		{"GetAlert", 0},
		{"RotRequest", 0},
		{"RotAddHostMeasurements", 0},
		{"GetPhase2Data", 40},
		{"KeyLookup", 3},
		{"GetInventoryData", 4},
		{"KeySet", 1},
		{"ApobBegin", 9},
		{"ApobCommit", 0},
		{"ApobData", 8},
		{"ApobRead", 16},
		{"BootStage", 16},
	}
	if int(c) >= len(table) {
		return request{}, false
	}
	return table[c], true
}

// String is the command's name, or its number if it has none.
func (c Command) String() string {
	if r, ok := requestInfo(c); ok {
		return r.name
	}
	return fmt.Sprintf("Command(%d)", uint8(c))
}

// FixedLen is the number of bytes of fixed fields; ok is false for a number that is not in use.
func (c Command) FixedLen() (n int, ok bool) {
	r, ok := requestInfo(c)
	return r.fixed, ok
}

// ReplyKind is the number of a reply (service processor to host).
type ReplyKind uint8

// The replies (sp-wire.md §4).
const (
	UnusedReply ReplyKind = iota
	Ack
	DecodeFailure
	BootStorageUnitReply
	IdentityReply
	MacAddressesReply
	StatusReply
	AlertReply
	RotResponse
	Phase2DataReply
	KeyLookupResult
	InventoryDataReply
	KeySetResult
	ApobBeginReply
	ApobCommitReply
	ApobDataReply
	ApobReadReply
)

// String is the reply's name, or its number if it has none.
func (k ReplyKind) String() string {
	names := [replyBodies]string{
		"Unused", "Ack", "DecodeFailure", "BootStorageUnit", "Identity", "MacAddresses", "Status", "Alert", "RotResponse",
		"Phase2Data", "KeyLookupResult", "InventoryData", "KeySetResult", "ApobBegin", "ApobCommit", "ApobData", "ApobRead",
	}
	if int(k) < len(names) {
		return names[k]
	}
	return fmt.Sprintf("Reply(%d)", uint8(k))
}

// Reason says why a service processor could not read a request. Zero means that it could.
type Reason uint8

// The reasons (sp-wire.md §5), in the order of their numbers on the wire.
const (
	Accepted Reason = iota
	BadCOBS
	BadChecksum
	BadDeserialize
	BadMagic
	BadVersion
	BadSequence
	BadLength
)

// String is the reason's name, or its number if it has none.
func (r Reason) String() string {
	names := [...]string{"Accepted", "Cobs", "Crc", "Deserialize", "MagicMismatch", "VersionMismatch", "SequenceInvalid", "DataLengthInvalid"}
	if int(r) < len(names) {
		return names[r]
	}
	return fmt.Sprintf("Reason(%d)", uint8(r))
}
