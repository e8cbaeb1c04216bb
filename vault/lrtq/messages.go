package lrtq

import (
	"fmt"

	"github.com/google/uuid"

	"github.com/sledvault/sledvault/vault/ident"
)

// RequestID ties an answer to its request. A question to several peers has one id for all of them.
type RequestID [16]byte

// String is the id as a UUID.
func (r RequestID) String() string { return uuid.UUID(r).String() }

// Message is a [Request] or a [Response].
type Message interface{ message() }

// Request asks a peer for something.
type Request struct {
	ID   RequestID
	Kind RequestKind
}

// Response answers a request.
type Response struct {
	Request RequestID
	Kind    ResponseKind
}

func (Request) message()  {}
func (Response) message() {}

// RequestKind is one of Init, GetShare, Learn.
type RequestKind interface{ requestKind() Kind }

// ResponseKind is one of InitAck, ShareReply, LearnReply, Refusal.
type ResponseKind interface{ responseKind() Kind }

// Kind names a message in logs, notes and transcripts.
type Kind string

// The message kinds.
const (
	KindInit     Kind = "init"
	KindGetShare Kind = "get_share"
	KindLearn    Kind = "learn"
	KindInitAck  Kind = "init_ack"
	KindShare    Kind = "share"
	KindLearnPkg Kind = "learn_pkg"
	KindError    Kind = "error"
)

type (
	// Init hands a founding member its package.
	Init struct{ Package SharePackage }
	// GetShare asks for the receiver's own share.
	GetShare struct{ RackID ident.RackID }
	// Learn asks a founding member for a package with a spare share.
	Learn struct{}
	// InitAck says that the package of Init is stored.
	InitAck struct{}
	// ShareReply answers GetShare.
	ShareReply struct{ Share Share }
	// LearnReply answers Learn.
	LearnReply struct{ Package Package }
	// Refusal answers any request. The rack ids are those of [RackMismatch] only.
	Refusal struct {
		Why           Why
		Expected, Got ident.RackID
	}
)

func (Init) requestKind() Kind        { return KindInit }
func (GetShare) requestKind() Kind    { return KindGetShare }
func (Learn) requestKind() Kind       { return KindLearn }
func (InitAck) responseKind() Kind    { return KindInitAck }
func (ShareReply) responseKind() Kind { return KindShare }
func (LearnReply) responseKind() Kind { return KindLearnPkg }
func (Refusal) responseKind() Kind    { return KindError }

// Why is the reason of a refusal, by its name on the wire.
type Why string

// The reasons.
const (
	AlreadyInitialized Why = "AlreadyInitialized"
	NotInitialized     Why = "NotInitialized"
	StillLearning      Why = "StillLearning"
	CannotSpareAShare  Why = "CannotSpareAShare"
	RackMismatch       Why = "RackUuidMismatch"
)

func (r Refusal) String() string {
	if r.Why == RackMismatch {
		return fmt.Sprintf("%s: expected %s, got %s", r.Why, r.Expected, r.Got)
	}
	return string(r.Why)
}

// KindOf names a message's kind; "" if it is malformed.
func KindOf(m Message) Kind {
	switch m := m.(type) {
	case Request:
		if m.Kind != nil {
			return m.Kind.requestKind()
		}
	case Response:
		if m.Kind != nil {
			return m.Kind.responseKind()
		}
	}
	return ""
}

// Destroy wipes the share that a message carries, if any.
func Destroy(m Message) {
	switch m := m.(type) {
	case Request:
		if k, ok := m.Kind.(Init); ok {
			k.Package.Destroy()
		}
	case Response:
		switch k := m.Kind.(type) {
		case ShareReply:
			k.Share.Destroy()
		case LearnReply:
			k.Package.Destroy()
		case InitAck, Refusal:
		}
	}
}
