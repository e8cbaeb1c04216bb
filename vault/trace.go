package vault

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/reason"
)

// CodeTraceMarker marks a trace marker that cannot be opened or written.
const CodeTraceMarker reason.Code = "trace-marker" // marks are missing from the trace; the daemon goes on without

// What a protected save is made for. A frame depends on saves of the first only.
const (
	saveQuorum    = "quorum"    // the node's state
	saveDisks     = "disks"     // records of disks
	saveSet       = "set"       // another enrolment set
	saveEnrolment = "enrolment" // the first state of a sled
)

// marker tells whoever traces the daemon's system calls where a save begins and ends, and that a frame follows: one line,
// one write(2) each (ledger.md §10). A nil marker writes nothing.
type marker struct {
	file    *os.File
	raw     syscall.RawConn
	reasons *reason.Log
}

// openMarker opens a file that exists; "" is no marker. It comes before the process is confined, which then needs no
// rule for it. A trace is never worth a sled that does not open its disks: what fails is counted, and there is no marker.
func openMarker(path string, reasons *reason.Log) *marker {
	if path == "" {
		return nil
	}
	// Not blocking: a pipe that nobody reads must not hold up the node.
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|syscall.O_NONBLOCK, 0)
	if err == nil {
		var raw syscall.RawConn
		if raw, err = f.SyscallConn(); err == nil {
			return &marker{f, raw, reasons}
		}
		_ = f.Close()
	}
	reasons.CountError(CodeTraceMarker, "", reason.Wrap(err, CodeTraceMarker, "let [log] trace_marker name a file that exists and that the daemon may write", "vault: open the trace marker"))
	return nil
}

func (m *marker) saveBegin(what string) { m.printf("save begin of=%s", what) }

func (m *marker) saveFailed(what string) { m.printf("save failed of=%s", what) }

// saveDone comes when the counter has moved.
func (m *marker) saveDone(what string, sequence uint64) {
	m.printf("save done sequence=%d of=%s", sequence, what)
}

// frame comes before a message is handed to its connection, which may turn out not to be there.
func (m *marker) frame(to ident.Baseboard, k quorum.MessageKind) {
	if m != nil {
		m.printf("frame %s epoch=%d to=%s", quorum.KindOf(k), epochOf(k), to)
	}
}

// printf writes one line with one system call. What does not fit into a pipe is lost.
func (m *marker) printf(format string, args ...any) {
	if m == nil {
		return
	}
	line := fmt.Appendf(nil, format+"\n", args...)
	var n int
	var err error
	cerr := m.raw.Write(func(fd uintptr) bool {
		n, err = syscall.Write(int(fd), line)
		return true
	})
	if err == nil && cerr == nil && n < len(line) {
		err = fmt.Errorf("have %d bytes written, want %d", n, len(line))
	}
	if err = errors.Join(cerr, err); err != nil {
		m.reasons.Count(CodeTraceMarker, "", "vault: write the trace marker: "+err.Error())
	}
}

// close ends marking.
func (m *marker) close() {
	if m != nil {
		_ = m.file.Close() // nothing is buffered
	}
}

// epochOf is the epoch that a message is about; 0 for the older scheme, which has none.
func epochOf(k quorum.MessageKind) ident.Epoch {
	switch k := k.(type) {
	case quorum.Prepare:
		return k.Config.Epoch
	case quorum.PrepareAck:
		return k.Epoch
	case quorum.GetShare:
		return k.Epoch
	case quorum.ShareReply:
		return k.Epoch
	case quorum.ExpungedNotice:
		return k.Epoch
	case quorum.CommitAdvance:
		return k.Config.Epoch
	case quorum.GrantNotice:
		return k.Grant.Epoch
	case quorum.CommitProof:
		return k.Certificate.Epoch
	case quorum.NoSuchShare:
		return k.Epoch
	}
	return 0
}
