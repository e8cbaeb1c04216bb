package wire

import (
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
)

// RequestID ties a proxied answer to its request; random.
type RequestID [16]byte

// ProxyRequest asks a peer to carry out what the controller asked of the sender (wire.md §4.4). Commit and
// PrepareAndCommit need a certificate: a CommitProof goes ahead on the same connection.
type ProxyRequest struct {
	ID RequestID
	Op ProxyOp
}

// ProxyOp is one of ProxyCommit, ProxyPrepareAndCommit, ProxyStatus.
type ProxyOp interface{ proxyOp() }

// The proxied operations.
type (
	ProxyCommit struct {
		RackID ident.RackID
		Epoch  ident.Epoch
	}
	ProxyPrepareAndCommit struct{ Config *quorum.Configuration }
	ProxyStatus           struct{}
)

func (ProxyCommit) proxyOp()           {}
func (ProxyPrepareAndCommit) proxyOp() {}
func (ProxyStatus) proxyOp()           {}

// ProxyResponse answers a ProxyRequest.
type ProxyResponse struct {
	ID     RequestID
	Result ProxyResult
}

// ProxyResult is one of ProxyCommitted (to Commit and PrepareAndCommit), NodeStatus (to Status), ProxyError.
type ProxyResult interface{ proxyResult() }

// ProxyCommitted is the outcome of a commit request. Pending is a success.
type ProxyCommitted struct{ Status quorum.CommitStatus }

// ProxyErrorKind names a remote refusal as on the wire.
type ProxyErrorKind string

// The remote refusals.
const (
	ProxyInvalidRackID ProxyErrorKind = "InvalidRackId" // Expected, Got
	ProxyNotPrepared   ProxyErrorKind = "NotPrepared"   // Epoch; for Commit only
	ProxyExpunged      ProxyErrorKind = "Expunged"      // Epoch, From
	ProxyNoInnerError  ProxyErrorKind = "NoInnerError"
)

// ProxyError is a remote refusal.
type ProxyError struct {
	Kind          ProxyErrorKind
	Prepare       bool // the refused request was a PrepareAndCommit, not a Commit
	Expected, Got ident.RackID
	Epoch         ident.Epoch
	From          ident.Baseboard
}

func (e *ProxyError) Error() string {
	return "wire: the peer refused a proxied request: " + string(e.Kind)
}

func (ProxyRequest) wireMsg()       {}
func (ProxyResponse) wireMsg()      {}
func (ProxyCommitted) proxyResult() {}
func (NodeStatus) proxyResult()     {}
func (*ProxyError) proxyResult()    {}

func (w *writer) proxyRequest(m ProxyRequest) {
	w.mapOf(2)
	w.key("request_id")
	w.bytes(m.ID[:])
	w.key("op")
	switch op := m.Op.(type) {
	case ProxyCommit:
		w.variant("Commit")
		w.mapOf(2)
		w.key("rack_id")
		w.bytes(op.RackID[:])
		w.key("epoch")
		w.uint(uint64(op.Epoch))
	case ProxyPrepareAndCommit:
		w.variant("PrepareAndCommit")
		w.mapOf(1)
		w.key("config")
		w.configuration(op.Config)
	case ProxyStatus:
		w.text("Status")
	default:
		w.fail(CodeEncode, "proxied operation of type %T", op)
	}
}

func (r *reader) proxyRequest() (m ProxyRequest) {
	r.fields(
		field{name: "request_id", read: func() { r.fixed(m.ID[:]) }},
		field{name: "op", read: func() { m.Op = r.proxyOp() }},
	)
	return m
}

func (r *reader) proxyOp() (op ProxyOp) {
	r.oneOf(
		option{"Commit", func() {
			var c ProxyCommit
			r.fields(
				field{name: "rack_id", read: func() { c.RackID = r.rackID() }},
				field{name: "epoch", read: func() { c.Epoch = r.epoch() }},
			)
			op = c
		}},
		option{"PrepareAndCommit", func() {
			var c ProxyPrepareAndCommit
			r.fields(field{name: "config", read: func() { c.Config = r.configuration() }})
			op = c
		}},
		option{"Status", nil},
	)
	if op == nil {
		op = ProxyStatus{}
	}
	return op
}

func (w *writer) proxyResponse(m ProxyResponse) {
	w.mapOf(2)
	w.key("request_id")
	w.bytes(m.ID[:])
	w.key("result")
	switch v := m.Result.(type) {
	case ProxyCommitted:
		w.variant("Ok")
		w.variant("Commit")
		w.commitStatus(v.Status)
	case NodeStatus:
		w.variant("Ok")
		w.variant("Status")
		w.nodeStatus(v)
	case *ProxyError:
		w.variant("Err")
		w.proxyError(v)
	default:
		w.fail(CodeEncode, "proxied result of type %T", v)
	}
}

func (w *writer) commitStatus(s quorum.CommitStatus) {
	if s != quorum.Committed && s != quorum.Pending {
		w.fail(CodeEncode, "commit status %.20q", string(s))
	}
	w.text(string(s))
}

func (w *writer) proxyError(e *ProxyError) {
	if e.Kind == ProxyNoInnerError {
		w.variant(string(e.Kind))
		w.null()
		return
	}
	if e.Prepare {
		w.variant("PrepareAndCommit")
	} else {
		w.variant("Commit")
	}
	w.variant(string(e.Kind))
	switch {
	case e.Kind == ProxyInvalidRackID:
		w.mapOf(2)
		w.key("expected")
		w.bytes(e.Expected[:])
		w.key("got")
		w.bytes(e.Got[:])
	case e.Kind == ProxyNotPrepared && !e.Prepare:
		w.uint(uint64(e.Epoch))
	case e.Kind == ProxyExpunged:
		w.expunged(e.Epoch, e.From)
	default:
		w.fail(CodeEncode, "proxied error %.40q", string(e.Kind))
	}
}

func (r *reader) proxyResponse() (m ProxyResponse) {
	r.fields(
		field{name: "request_id", read: func() { r.fixed(m.ID[:]) }},
		field{name: "result", read: func() {
			r.oneOf(
				option{"Ok", func() { m.Result = r.proxyValue() }},
				option{"Err", func() { m.Result = r.proxyError() }},
			)
		}},
	)
	return m
}

func (r *reader) proxyValue() (v ProxyResult) {
	r.oneOf(
		option{"Commit", func() {
			at := r.oneOf(option{string(quorum.Committed), nil}, option{string(quorum.Pending), nil})
			v = ProxyCommitted{[]quorum.CommitStatus{quorum.Committed, quorum.Pending}[at]}
		}},
		option{"Status", func() { v = r.nodeStatus() }},
	)
	return v
}

func (r *reader) proxyError() *ProxyError {
	e := &ProxyError{}
	rack := option{string(ProxyInvalidRackID), func() {
		e.Kind = ProxyInvalidRackID
		r.fields(
			field{name: "expected", read: func() { e.Expected = r.rackID() }},
			field{name: "got", read: func() { e.Got = r.rackID() }},
		)
	}}
	expunged := option{string(ProxyExpunged), func() {
		e.Kind = ProxyExpunged
		e.Epoch, e.From = r.expunged()
	}}
	notPrepared := option{string(ProxyNotPrepared), func() { e.Kind, e.Epoch = ProxyNotPrepared, r.epoch() }}
	r.oneOf(
		option{"Commit", func() { r.oneOf(rack, notPrepared, expunged) }},
		option{"PrepareAndCommit", func() { e.Prepare = true; r.oneOf(rack, expunged) }},
		option{string(ProxyNoInnerError), func() { e.Kind = ProxyNoInnerError; r.null() }},
	)
	return e
}

func (w *writer) expunged(e ident.Epoch, from ident.Baseboard) {
	w.mapOf(2)
	w.key("epoch")
	w.uint(uint64(e))
	w.key("from")
	w.baseboard(from)
}

func (r *reader) expunged() (e ident.Epoch, from ident.Baseboard) {
	r.fields(
		field{name: "epoch", read: func() { e = r.epoch() }},
		field{name: "from", read: func() { from = r.baseboard() }},
	)
	return e, from
}
