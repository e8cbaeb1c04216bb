package frame

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// What a host can find wrong with a reply (sp-wire.md §6). [ErrCOBS] and [*VersionError] belong to them.
var (
	ErrShort    = errors.New("frame: message: shorter than header, command and checksum")
	ErrLong     = errors.New("frame: message: longer than the largest packet")
	ErrChecksum = errors.New("frame: message: checksum mismatch")
	ErrMagic    = errors.New("frame: message: wrong magic")
	ErrReplyBit = errors.New("frame: message: reply bit is clear")
)

// VersionError says that a well-formed message has another header version.
type VersionError struct{ Have uint32 }

func (e *VersionError) Error() string {
	return fmt.Sprintf("frame: message: header version: have %d, want %d", e.Have, Version)
}

// Request is a message from the host.
type Request struct {
	Version uint32
	Seq     uint64 // bit 63 clear
	Command Command
	Body    []byte // fixed fields, then data
}

// Reply is a message from the service processor.
type Reply struct {
	Version uint32
	Seq     uint64 // that of the request with [ReplyBit] set, or [FailureSeq]
	Kind    ReplyKind
	Body    []byte // fixed fields, then data
}

// AppendRequest appends the frame of a request, terminator included. It refuses a body over [MaxBody].
func AppendRequest(dst []byte, r Request) ([]byte, error) {
	msg, err := r.Message()
	if err != nil {
		return dst, err
	}
	return append(AppendCOBS(dst, msg), Terminator), nil
}

// AppendReply appends the frame of a reply, terminator included. It refuses a body over [MaxBody].
func AppendReply(dst []byte, r Reply) ([]byte, error) {
	msg, err := r.Message()
	if err != nil {
		return dst, err
	}
	return append(AppendCOBS(dst, msg), Terminator), nil
}

// Message is the unframed form.
func (r Request) Message() ([]byte, error) {
	return message(r.Version, r.Seq, byte(r.Command), r.Body)
}

// Message is the unframed form.
func (r Reply) Message() ([]byte, error) { return message(r.Version, r.Seq, byte(r.Kind), r.Body) }

func message(version uint32, seq uint64, number byte, body []byte) ([]byte, error) {
	if len(body) > MaxBody {
		return nil, fmt.Errorf("%w: have %d, want at most %d body bytes", ErrLong, len(body), MaxBody)
	}
	m := make([]byte, 0, MinMessage+len(body))
	m = binary.LittleEndian.AppendUint32(m, Magic)
	m = binary.LittleEndian.AppendUint32(m, version)
	m = binary.LittleEndian.AppendUint64(m, seq)
	m = append(append(m, number), body...)
	return binary.LittleEndian.AppendUint16(m, Checksum(m)), nil
}

// DecodeReply reads a frame (terminator removed) as a host does: encoding, length, checksum, magic, version, reply
// bit, in this order. The body is a copy.
func DecodeReply(f []byte) (Reply, error) {
	if len(f) > MaxFrame {
		return Reply{}, ErrLong
	}
	msg, err := DecodeCOBS(make([]byte, 0, len(f)), f)
	if err != nil {
		return Reply{}, err
	}
	return ParseReply(msg)
}

// ParseReply reads an unframed reply; the body aliases msg.
func ParseReply(msg []byte) (Reply, error) {
	if len(msg) < MinMessage {
		return Reply{}, ErrShort
	}
	end := len(msg) - ChecksumLen
	if binary.LittleEndian.Uint16(msg[end:]) != Checksum(msg[:end]) {
		return Reply{}, ErrChecksum
	}
	if binary.LittleEndian.Uint32(msg) != Magic {
		return Reply{}, ErrMagic
	}
	r := Reply{
		Version: binary.LittleEndian.Uint32(msg[4:]),
		Seq:     binary.LittleEndian.Uint64(msg[8:]),
		Kind:    ReplyKind(msg[HeaderLen]),
		Body:    msg[bodyAt:end],
	}
	if r.Version != Version {
		return r, &VersionError{Have: r.Version}
	}
	if r.Seq&ReplyBit == 0 {
		return r, ErrReplyBit
	}
	return r, nil
}

// JudgeRequest reads a frame (terminator removed) as a service processor does; the first check that fails is the
// reason (sp-wire.md §5). A request with command [Unused] is accepted here and refused by the answer.
func JudgeRequest(f []byte) (Request, Reason) {
	msg, err := DecodeCOBS(make([]byte, 0, min(len(f), SPBuffer)), f)
	if err != nil {
		return Request{}, BadCOBS
	}
	return judge(msg)
}

func judge(msg []byte) (Request, Reason) {
	if len(msg) < bodyAt {
		return Request{}, BadDeserialize
	}
	command := Command(msg[HeaderLen])
	fixed, known := command.FixedLen()
	rest := len(msg) - bodyAt - fixed
	if !known || rest < 0 {
		return Request{}, BadDeserialize
	}
	if rest < ChecksumLen {
		return Request{}, BadLength
	}
	end := len(msg) - ChecksumLen
	r := Request{
		Version: binary.LittleEndian.Uint32(msg[4:]),
		Seq:     binary.LittleEndian.Uint64(msg[8:]),
		Command: command,
		Body:    msg[bodyAt:end],
	}
	switch {
	case binary.LittleEndian.Uint16(msg[end:]) != Checksum(msg[:end]):
		return r, BadChecksum
	case binary.LittleEndian.Uint32(msg) != Magic:
		return r, BadMagic
	case r.Version != Version:
		return r, BadVersion
	case r.Seq&ReplyBit != 0:
		return r, BadSequence
	}
	return r, Accepted
}
