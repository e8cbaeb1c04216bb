package tpm

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestDevice drives the device transport over a packet socket, which like the kernel's device takes and gives whole
// frames.
func TestDevice(t *testing.T) {
	t.Parallel()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	d := &device{fd: fds[0], timeout: DefaultTimeout}
	chip := func(answer string) {
		buf := make([]byte, maxFrame)
		if n, err := unix.Read(fds[1], buf); err != nil || string(buf[:n]) != "command" {
			t.Errorf("chip got %q, %v", buf[:n], err)
		}
		if _, err := unix.Write(fds[1], []byte(answer)); err != nil {
			t.Error(err)
		}
	}
	go chip("answer")
	got, err := d.Send([]byte("command"))
	if err != nil || !bytes.Equal(got, []byte("answer")) {
		t.Errorf("have %q, %v", got, err)
	}

	// A chip that hangs: the caller gets away, and the late answer is not taken for the next one.
	_ = d.SetDeadline(time.Now().Add(time.Millisecond))
	if _, err := d.Send([]byte("command")); !errors.Is(err, ErrTimeout) {
		t.Errorf("have %v, want a timeout", err)
	}
	if _, err := d.Send([]byte("command")); !errors.Is(err, ErrTimeout) {
		t.Errorf("have %v, want a timeout", err)
	}
	_ = d.SetDeadline(time.Time{})
	go func() { chip("late"); chip("answer") }()
	if got, err := d.Send([]byte("command")); err != nil || string(got) != "answer" {
		t.Errorf("have %q, %v", got, err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if _, err := d.Send([]byte("command")); err == nil {
		t.Error("a closed device took a command")
	}
	_ = unix.Close(fds[1])
}
