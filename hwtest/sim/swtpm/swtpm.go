// Package swtpm runs the software TPM swtpm as a child process, in one of two forms: [StartPair] over socket pairs, for
// a TPM that lives and dies with its owner, and [StartUnix] on a unix socket, for a TPM that outlives the daemon using it.
//
// It knows swtpm's control channel and nothing of TPM commands but Startup. State lies in a folder of the caller's, so a
// TPM that is killed and started again there keeps its keys and counters.
package swtpm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// Requests of the control channel: u32 code, payload; the answer begins with u32 result, 0 for success.
const (
	ctlCapability = 1
	ctlInit       = 2
	ctlShutdown   = 3
)

// patience bounds every exchange with a child process.
const patience = 10 * time.Second

// Errors of this package.
var (
	ErrAbsent  = errors.New("swtpm: not installed")
	ErrStopped = errors.New("swtpm: not running")
)

// Find returns the path of the swtpm binary, looking also where an ordinary user's PATH does not.
func Find() (string, error) {
	for _, name := range []string{"swtpm", "/usr/bin/swtpm", "/usr/local/bin/swtpm", "/usr/sbin/swtpm"} {
		if p, err := exec.LookPath(name); err == nil {
			return p, nil
		}
	}
	return "", ErrAbsent
}

// Startup issues TPM2_Startup(CLEAR), which a TPM awaits after a power cycle. A TPM that is running stays as it is.
func Startup(bus transport.TPM) error {
	_, err := tpm2.Startup{StartupType: tpm2.TPMSUClear}.Execute(bus)
	if errors.Is(err, tpm2.TPMRCInitialize) {
		return nil
	}
	return err
}

// control runs one request on a control connection. Size is that of the answer in bytes.
func control(c net.Conn, code uint32, payload []byte, size int) ([]byte, error) {
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return nil, fmt.Errorf("swtpm: control: %w", err)
	}
	if _, err := c.Write(append(binary.BigEndian.AppendUint32(nil, code), payload...)); err != nil {
		return nil, fmt.Errorf("swtpm: control: %w", err)
	}
	rsp := make([]byte, size)
	if _, err := io.ReadFull(c, rsp); err != nil {
		return nil, fmt.Errorf("swtpm: control: %w", err)
	}
	return rsp, nil
}

func order(c net.Conn, code uint32, payload []byte) error {
	rsp, err := control(c, code, payload, 4)
	if err != nil {
		return err
	}
	if rc := binary.BigEndian.Uint32(rsp); rc != 0 {
		return fmt.Errorf("swtpm: control request %d: result 0x%x", code, rc)
	}
	return nil
}

// powerCycle is INIT: PCRs and everything loaded are gone, NV stays.
func powerCycle(c net.Conn) error { return order(c, ctlInit, make([]byte, 4)) }

// command prepares swtpm on a state folder. The folder must be absolute: swtpm changes its own.
func command(dir, logPath string, args ...string) (*exec.Cmd, error) {
	if !filepath.IsAbs(dir) {
		return nil, fmt.Errorf("swtpm: state folder %q: want an absolute path", dir)
	}
	bin, err := Find()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("swtpm: state folder: %w", err)
	}
	if logPath == "" {
		logPath = filepath.Join(dir, "log")
	}
	all := append([]string{
		"socket", "--tpm2", "--tpmstate", "dir=" + dir,
		"--flags", "not-need-init,startup-clear", "--log", "file=" + logPath + ",level=1",
	}, args...)
	return exec.Command(bin, all...), nil
}
