//go:build linux

package sp

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/tarm/serial"
	"golang.org/x/sys/unix"
)

// Serial is a serial device as a [Port].
//
// The serial package opens the line and sets it up, but its reads have no deadline finer than 0.1 s, its writes none
// at all, and its Close waits for a blocked read. The settings belong to the device and not to a descriptor, so a
// second, non-blocking descriptor carries the bytes under the runtime's poller: a reply is handed over when it
// arrives, deadlines are exact, and nothing wakes up while the line is idle.
type Serial struct {
	file *os.File     // carries bytes, lock and deadlines
	line *serial.Port // keeps the settings; never read or written
}

// readTimeout must not be zero: with a zero time an idle non-blocking read would look like a hang-up.
const readTimeout = 100 * time.Millisecond

// OpenSerial locks a serial device and makes it raw, 8N1, with RTS/CTS only if asked for.
// The lock is advisory and ends with the process. Errors: sp-no-port, sp-port-busy.
func OpenSerial(path string, baud int, flowControl bool) (*Serial, error) {
	file, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.EBUSY) {
		return nil, errPortBusy(path)
	}
	if err != nil {
		return nil, errNoPort(path, err)
	}
	s := &Serial{file: file}
	if err := s.claim(path, baud, flowControl); err != nil {
		_ = s.Close()
		return nil, err
	}
	return s, nil
}

// claim takes the lock before any setting is touched, so that a second process cannot disturb the first.
func (s *Serial) claim(path string, baud int, flowControl bool) error {
	err := s.control(func(fd int) error {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFCHR {
			return errors.New("not a character device")
		}
		return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
	})
	if errors.Is(err, unix.EWOULDBLOCK) {
		return errPortBusy(path)
	}
	if err == nil {
		s.line, err = serial.OpenPort(&serial.Config{Name: path, Baud: baud, ReadTimeout: readTimeout})
	}
	if err == nil && flowControl {
		err = s.control(enableFlowControl)
	}
	if err != nil {
		return errNoPort(path, fmt.Errorf("at %d bit/s: %w", baud, err))
	}
	return nil
}

func enableFlowControl(fd int) error {
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return err
	}
	t.Cflag |= unix.CRTSCTS
	return unix.IoctlSetTermios(fd, unix.TCSETS, t)
}

// control runs f on the descriptor without taking the file from the runtime's poller.
func (s *Serial) control(f func(fd int) error) error {
	raw, err := s.file.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil {
		return err
	}
	return inner
}

// Read returns what has arrived. End of file and EIO mean that the line is gone.
func (s *Serial) Read(p []byte) (int, error) { return s.file.Read(p) }

// Write sends p within the deadline.
func (s *Serial) Write(p []byte) (int, error) { return s.file.Write(p) }

// SetDeadline bounds reads and writes.
func (s *Serial) SetDeadline(t time.Time) error { return s.file.SetDeadline(t) }

// FlushInput drops what has arrived; unsent output stays.
func (s *Serial) FlushInput() error {
	return s.control(func(fd int) error { return unix.IoctlSetInt(fd, unix.TCFLSH, unix.TCIFLUSH) })
}

// Close gives the line back and ends blocked calls.
func (s *Serial) Close() error {
	err := s.file.Close()
	if s.line != nil {
		err = errors.Join(err, s.line.Close())
	}
	return err
}
