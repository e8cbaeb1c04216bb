package tpm_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/sledvault/sledvault/tpm"
	"github.com/sledvault/sledvault/tpm/tpmtest"
	"github.com/sledvault/sledvault/vault/reason"
)

var someCommand = []byte{0x80, 0x01, 0, 0, 0, 12, 0, 0, 1, 0x7b, 0, 8}

// readCommand is the TPM's end of a connection.
func readCommand(t *testing.T, c net.Conn) []byte {
	t.Helper()
	head := make([]byte, 10)
	if _, err := io.ReadFull(c, head); err != nil {
		t.Error(err)
		return nil
	}
	rest := make([]byte, binary.BigEndian.Uint32(head[2:])-10)
	if _, err := io.ReadFull(c, rest); err != nil {
		t.Error(err)
	}
	return append(head, rest...)
}

func TestConnShortReads(t *testing.T) {
	t.Parallel()
	ours, theirs := net.Pipe()
	conn := tpm.NewConn(ours, 0)
	defer func() { _ = conn.Close() }()
	want := frame([]byte("a body that arrives a byte at a time"))
	go func() {
		readCommand(t, theirs)
		for _, b := range want {
			_, _ = theirs.Write([]byte{b})
		}
	}()
	got, err := conn.Send(someCommand)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("have %x, %v, want %x", got, err, want)
	}
}

func TestConnBadFrames(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		answer []byte
		code   reason.Code
	}{
		"too-long":  {[]byte{0x80, 1, 0, 0, 0x10, 1, 0, 0, 0, 0}, tpm.CodeAnswer},
		"huge":      {[]byte{0x80, 1, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0}, tpm.CodeAnswer},
		"too-short": {[]byte{0x80, 1, 0, 0, 0, 9, 0, 0, 0, 0}, tpm.CodeAnswer},
		"cut":       {frame(make([]byte, 50))[:30], tpm.CodeBroken},
		"nothing":   {nil, tpm.CodeBroken},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ours, theirs := net.Pipe()
			conn := tpm.NewConn(ours, 0)
			go func() {
				readCommand(t, theirs)
				_, _ = theirs.Write(c.answer)
				_ = theirs.Close()
			}()
			for range 2 { // and it stays refused: the stream is out of step
				if _, err := conn.Send(someCommand); reason.CodeOf(err) != c.code {
					t.Errorf("have %v, want %s", err, c.code)
				}
			}
		})
	}
	conn := tpm.NewConn(nil, 0)
	for _, cmd := range [][]byte{nil, make([]byte, 9), make([]byte, 4097)} {
		if _, err := conn.Send(cmd); reason.CodeOf(err) != tpm.CodeUsage {
			t.Errorf("command of %d bytes: %v", len(cmd), err)
		}
	}
}

// TestConnLateAnswer: an answer that comes after its command timed out is never taken for the next command's.
func TestConnLateAnswer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		conn := tpm.NewConn(ours, 0)
		defer func() { _ = conn.Close() }()
		late, next := frame([]byte("late")), frame([]byte("next"))
		release := make(chan struct{})
		go func() {
			readCommand(t, theirs)
			_, _ = theirs.Write(late[:5])
			<-release
			_, _ = theirs.Write(late[5:])
			readCommand(t, theirs)
			_, _ = theirs.Write(next)
		}()
		start := time.Now()
		if _, err := conn.Send(someCommand); !errors.Is(err, tpm.ErrTimeout) {
			t.Errorf("have %v, want a timeout", err)
		}
		if d := time.Since(start); d != tpm.DefaultTimeout {
			t.Errorf("timed out after %v, want %v", d, tpm.DefaultTimeout)
		}
		start = time.Now()
		if _, err := conn.Send(someCommand); !errors.Is(err, tpm.ErrTimeout) || time.Since(start) > tpm.DefaultTimeout/5 {
			t.Errorf("have %v after %v, want a quick timeout", err, time.Since(start))
		}
		close(release)
		got, err := conn.Send(someCommand)
		if err != nil || !bytes.Equal(got, next) {
			t.Errorf("have %q, %v, want %q", got, err, next)
		}
	})
}

// fake answers GetCapability as an empty TPM does and everything else through a function.
type fake func(cmd []byte) ([]byte, error)

func (f fake) Send(cmd []byte) ([]byte, error) {
	if !tpmtest.Is(cmd, tpm2.TPMCCGetCapability) {
		return f(cmd)
	}
	body := append([]byte{0}, cmd[10:14]...)
	return frame(append(body, 0, 0, 0, 0)), nil
}

// TestRetry: the TPM is asked again while it says that it is busy, and not for ever.
func TestRetry(t *testing.T) {
	t.Parallel()
	for _, rc := range []tpm2.TPMRC{tpm2.TPMRCRetry, tpm2.TPMRCYielded, tpm2.TPMRCTesting} {
		synctest.Test(t, func(t *testing.T) {
			left, asked := 6, 0
			dut, err := tpm.New(fake(func([]byte) ([]byte, error) {
				asked++
				if left--; left < 0 {
					return frame(nil), nil
				}
				return tpmtest.ErrorAnswer(rc), nil
			}), true)
			if err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			tpmtest.Do(t, dut, func(s *tpm.Session) error { return s.Startup() })
			if d := time.Since(start); asked != 7 || d != 63*time.Millisecond {
				t.Errorf("asked %d times in %v, want 7 in 63 ms", asked, d)
			}
			left = 1 << 20
			err = dut.Do(t.Context(), func(s *tpm.Session) error { return s.Startup() })
			if !errors.Is(err, tpm.ErrBusy) || time.Since(start) > tpm.DefaultTimeout+time.Second {
				t.Errorf("have %v after %v, want busy", err, time.Since(start))
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
			defer cancel()
			if err := dut.Do(ctx, func(s *tpm.Session) error { return s.Startup() }); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("have %v, want the caller's deadline", err)
			}
		})
	}
}

// TestHints: an error keeps the response code, its own code and a next step; a closed TPM says so.
func TestHints(t *testing.T) {
	t.Parallel()
	dut, err := tpm.New(fake(func([]byte) ([]byte, error) { return tpmtest.ErrorAnswer(tpm2.TPMRCFailure), nil }), true)
	if err != nil {
		t.Fatal(err)
	}
	err = dut.Do(t.Context(), func(s *tpm.Session) error { _, err := s.SRK(nil); return err })
	if !errors.Is(err, tpm.ErrRC) || !errors.Is(err, tpm2.TPMRCFailure) || reason.HintOf(err) == "" {
		t.Errorf("have %v (hint %q)", err, reason.HintOf(err))
	}
	if err := dut.Close(); err != nil {
		t.Error(err)
	}
	if err := dut.Do(t.Context(), func(*tpm.Session) error { return nil }); reason.CodeOf(err) != tpm.CodeClosed {
		t.Errorf("after close: %v", err)
	}
}
