package tpm

import (
	"errors"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sledvault/sledvault/vault/reason"
)

// device is a kernel TPM device in blocking mode: the write runs the command, one read fetches the whole answer.
// A goroutine per command keeps a chip that hangs from hanging us; the driver gives up by itself after some minutes.
type device struct {
	mu       sync.Mutex
	fd       int
	timeout  time.Duration
	deadline time.Time
	running  chan answer // non-nil while a command that timed out still runs
	closed   bool
}

type answer struct {
	rsp []byte
	err error
}

func openDevice(path string, timeout time.Duration) (*device, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return &device{fd: fd, timeout: timeout}, nil
}

// SetDeadline bounds the commands that follow.
func (d *device) SetDeadline(t time.Time) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.deadline = t
	return nil
}

// Send runs one command.
func (d *device) Send(cmd []byte) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, errClosed()
	}
	if d.running != nil {
		late, err := d.wait(d.running, d.timeout/10)
		if d.running != nil {
			return nil, err
		}
		clear(late)
	}
	done := make(chan answer, 1)
	go func() {
		rsp, err := exchange(d.fd, cmd)
		done <- answer{rsp, err}
	}()
	return d.wait(done, d.timeout)
}

func (d *device) wait(done chan answer, limit time.Duration) ([]byte, error) {
	if !d.deadline.IsZero() {
		limit = min(limit, time.Until(d.deadline))
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case a := <-done:
		d.running = nil
		return a.rsp, a.err
	case <-timer.C:
		d.running = done
		return nil, reason.Later(CodeTimeout, hintHung, "tpm: no answer in time")
	}
}

// Close closes the device, after the command that may still run in it.
func (d *device) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil
	}
	d.closed = true
	if d.running == nil {
		return unix.Close(d.fd)
	}
	go func(fd int, running chan answer) {
		<-running
		_ = unix.Close(fd) // nobody is left to tell
	}(d.fd, d.running)
	return nil
}

func exchange(fd int, cmd []byte) ([]byte, error) {
	n, err := retryEINTR(func() (int, error) { return unix.Write(fd, cmd) })
	if err != nil {
		return nil, broken(err)
	}
	if n != len(cmd) {
		return nil, reason.New(CodeBroken, hintHung, "tpm: driver took %d of %d bytes", n, len(cmd))
	}
	buf := make([]byte, maxFrame)
	n, err = retryEINTR(func() (int, error) { return unix.Read(fd, buf) })
	if err != nil {
		return nil, broken(err)
	}
	return buf[:n], nil
}

func broken(err error) error {
	e := reason.Wrap(err, CodeBroken, hintHung, "tpm: device")
	e.Remedy = reason.Retry
	return e
}

func retryEINTR(f func() (int, error)) (int, error) {
	for {
		if n, err := f(); !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}
