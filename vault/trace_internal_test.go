package vault

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/reason"
)

func missed(l *reason.Log) uint64 { return l.Total(CodeTraceMarker) }

// TestMarker: one line per event, after what the file held.
func TestMarker(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "trace")
	if err := os.WriteFile(path, []byte("before\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	reasons := reason.NewLog()
	m := openMarker(path, reasons)
	m.saveBegin(saveQuorum)
	m.saveDone(saveQuorum, 42)
	m.frame(ident.Baseboard{Part: "P", Serial: "S"}, quorum.PrepareAck{Epoch: 7})
	m.saveFailed(saveDisks)
	m.close()
	have, err := os.ReadFile(path)
	const want = "before\nsave begin of=quorum\nsave done sequence=42 of=quorum\nframe prepare_ack epoch=7 to=P:S\nsave failed of=disks\n"
	if err != nil || string(have) != want || missed(reasons) != 0 {
		t.Errorf("have %q, %v, %d missed, want %q", have, err, missed(reasons), want)
	}
	m.saveBegin(saveQuorum) // after its end
	if n := missed(reasons); n != 1 {
		t.Errorf("have %d missed, want 1", n)
	}
}

// TestMarkerFails: whatever the marker is, the daemon goes on at once, and counts what is missing.
func TestMarkerFails(t *testing.T) {
	t.Parallel()
	reasons := reason.NewLog()
	if m := openMarker("", reasons); m != nil || missed(reasons) != 0 {
		t.Errorf("none: have %v, %d missed", m, missed(reasons))
	}
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for i, path := range []string{filepath.Join(dir, "absent"), dir, pipe} {
		m := openMarker(path, reasons)
		m.saveBegin(saveQuorum) // a nil marker may be used
		m.frame(ident.Baseboard{}, quorum.GetLRTQShare{})
		m.close()
		if n := missed(reasons); m != nil || n != uint64(i+1) {
			t.Errorf("%s: have %v, %d missed, want %d", path, m, n, i+1)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "absent")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file was made: %v", err)
	}
	full := reason.NewLog()
	m := openMarker("/dev/full", full)
	m.saveBegin(saveQuorum)
	m.close()
	if n := missed(full); n != 1 {
		t.Errorf("full: have %d missed, want 1", n)
	}
	testFullPipe(t, pipe)
}

// testFullPipe: a pipe that nobody reads loses lines, whole ones.
func testFullPipe(t *testing.T, pipe string) {
	r, err := os.OpenFile(pipe, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	reasons := reason.NewLog()
	m := openMarker(pipe, reasons)
	for missed(reasons) == 0 {
		m.saveBegin(saveQuorum)
	}
	m.close()
	have, err := io.ReadAll(r)
	if err != nil || len(have) == 0 || strings.ReplaceAll(string(have), "save begin of=quorum\n", "") != "" {
		t.Errorf("have %d bytes, %v, want whole lines", len(have), err)
	}
}

// TestEpochOf: every kind says its epoch, but for the scheme that has none.
func TestEpochOf(t *testing.T) {
	t.Parallel()
	for _, k := range []quorum.MessageKind{
		quorum.Prepare{Config: &quorum.Configuration{Epoch: 3}},
		quorum.PrepareAck{Epoch: 3},
		quorum.GetShare{Epoch: 3},
		quorum.ShareReply{Epoch: 3},
		quorum.ExpungedNotice{Epoch: 3},
		quorum.CommitAdvance{Config: &quorum.Configuration{Epoch: 3}},
		quorum.GrantNotice{Grant: &quorum.Grant{Epoch: 3}},
		quorum.CommitProof{Certificate: &quorum.Certificate{Epoch: 3}},
		quorum.NoSuchShare{Epoch: 3},
	} {
		if e := epochOf(k); e != 3 {
			t.Errorf("%s: have %d, want 3", quorum.KindOf(k), e)
		}
	}
	for _, k := range []quorum.MessageKind{quorum.GetLRTQShare{}, quorum.LRTQShare{}} {
		if e := epochOf(k); e != 0 {
			t.Errorf("%s: have %d, want 0", quorum.KindOf(k), e)
		}
	}
}
