package swtpm

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sledvault/sledvault/tpm"
)

// Pair is a swtpm joined to this process by two socket pairs. It is the TPM's only client and implements go-tpm's
// transport.TPMCloser. When this process dies, the child sees its socket close and exits.
type Pair struct {
	dir string

	mu   sync.Mutex
	cmd  *exec.Cmd // nil while it does not run
	data *tpm.Conn
	ctl  net.Conn
}

// StartPair starts a TPM on the state folder.
func StartPair(dir string) (*Pair, error) {
	p := &Pair{dir: dir}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p, p.start()
}

func (p *Pair) start() error {
	// "--server type=unixio,fd=" never answers and burns a core; a connected descriptor works.
	cmd, err := command(p.dir, "", "--fd", "3", "--ctrl", "type=unixio,clientfd=4")
	if err != nil {
		return err
	}
	data, childData, err := socketPair()
	if err != nil {
		return err
	}
	defer func() { _ = childData.Close() }() // the child has its own copy
	ctl, childCtl, err := socketPair()
	if err != nil {
		_ = data.Close()
		return err
	}
	defer func() { _ = childCtl.Close() }()
	cmd.ExtraFiles = []*os.File{childData, childCtl}
	if err := cmd.Start(); err != nil {
		_ = data.Close()
		_ = ctl.Close()
		return fmt.Errorf("swtpm: start: %w", err)
	}
	p.cmd, p.data, p.ctl = cmd, tpm.NewConn(data, 0), ctl
	return nil
}

func socketPair() (net.Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("swtpm: socket pair: %w", err)
	}
	ours, child := os.NewFile(uintptr(fds[0]), "swtpm"), os.NewFile(uintptr(fds[1]), "swtpm")
	conn, err := net.FileConn(ours)
	_ = ours.Close() // FileConn holds its own copy
	if err != nil {
		_ = child.Close()
		return nil, nil, fmt.Errorf("swtpm: socket pair: %w", err)
	}
	return conn, child, nil
}

// Send runs one TPM command.
func (p *Pair) Send(cmd []byte) ([]byte, error) {
	conn := p.conn()
	if conn == nil {
		return nil, ErrStopped
	}
	return conn.Send(cmd)
}

// SetDeadline bounds the commands that follow.
func (p *Pair) SetDeadline(t time.Time) error {
	conn := p.conn()
	if conn == nil {
		return ErrStopped
	}
	return conn.SetDeadline(t)
}

func (p *Pair) conn() *tpm.Conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return nil
	}
	return p.data
}

// Dir is the state folder.
func (p *Pair) Dir() string { return p.dir }

// PowerCycle resets the TPM as a power cut does and starts it up again, as firmware does.
func (p *Pair) PowerCycle() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return ErrStopped
	}
	if err := powerCycle(p.ctl); err != nil {
		return err
	}
	return Startup(p.data)
}

// Kill ends the TPM at once, as if the power had failed. NV that was acknowledged is kept.
func (p *Pair) Kill() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.end(true)
}

// Restart starts a TPM that was killed or closed on the same state.
func (p *Pair) Restart() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.end(true); err != nil {
		return err
	}
	return p.start()
}

// Close ends the TPM in an orderly way.
func (p *Pair) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.end(false)
}

func (p *Pair) end(kill bool) error {
	if p.cmd == nil {
		return nil
	}
	cmd := p.cmd
	p.cmd = nil
	var asked error
	if !kill {
		asked = order(p.ctl, ctlShutdown, nil)
	}
	if kill || asked != nil {
		_ = cmd.Process.Kill() // it may be gone already
	}
	_ = p.data.Close() // swtpm exits when this socket closes
	_ = p.ctl.Close()
	err := cmd.Wait()
	if exit := (*exec.ExitError)(nil); kill && errors.As(err, &exit) {
		err = nil // killed is how it should end
	}
	return err
}

// Pid is the process id, 0 while the TPM does not run.
func (p *Pair) Pid() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return 0
	}
	return p.cmd.Process.Pid
}
