package swtpm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// Config describes a TPM on a unix socket.
type Config struct {
	Dir     string // state folder, absolute
	Socket  string // data socket, absolute, at most 107 bytes; Device of package tpm is "unix:" and this
	Control string // control socket; empty means Socket and ".ctl"
	LogPath string // swtpm's log; empty means "log" in Dir
}

// Daemon is a swtpm on a unix socket. It serves one data client at a time: a second one waits until the first leaves.
type Daemon struct {
	cfg  Config
	mu   sync.Mutex // one control request at a time
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has ended
	exit error         // valid after done
}

// StartUnix starts a TPM and returns when it answers. The process is killed if this one dies.
func StartUnix(ctx context.Context, cfg Config) (*Daemon, error) {
	if cfg.Control == "" {
		cfg.Control = cfg.Socket + ".ctl"
	}
	for _, p := range []string{cfg.Socket, cfg.Control} {
		if !filepath.IsAbs(p) || len(p) > 107 {
			return nil, fmt.Errorf("swtpm: socket %q: want an absolute path of at most 107 bytes", p)
		}
		if err := os.Remove(p); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("swtpm: old socket: %w", err)
		}
	}
	cmd, err := command(cfg.Dir, cfg.LogPath, "--server", "type=unixio,path="+cfg.Socket+",mode=0600", "--ctrl", "type=unixio,path="+cfg.Control+",mode=0600")
	if err != nil {
		return nil, err
	}
	d := &Daemon{cfg: cfg, cmd: cmd, done: make(chan struct{})}
	if err := d.run(); err != nil {
		return nil, err
	}
	if err := d.ready(ctx); err != nil {
		_ = d.Kill()
		return nil, err
	}
	return d, nil
}

// run starts the process from a thread that stays with it: Pdeathsig goes by the thread that started the child, not by
// the process.
func (d *Daemon) run() error {
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := d.cmd.Start()
		started <- err
		if err != nil {
			return
		}
		d.exit = d.cmd.Wait()
		close(d.done)
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("swtpm: start: %w", err)
	}
	return nil
}

// ready waits until the control channel answers; swtpm binds the data socket before it.
func (d *Daemon) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		err := d.control(func(c net.Conn) error {
			_, err := control(c, ctlCapability, nil, 8)
			return err
		})
		if err == nil {
			return nil
		}
		select {
		case <-d.done:
			return fmt.Errorf("swtpm: ended at start (%w); see %s", d.exit, d.logPath())
		case <-ctx.Done():
			return fmt.Errorf("swtpm: not ready: %w", err)
		case <-time.After(wait):
		}
	}
}

func (d *Daemon) logPath() string {
	if d.cfg.LogPath != "" {
		return d.cfg.LogPath
	}
	return filepath.Join(d.cfg.Dir, "log")
}

func (d *Daemon) control(f func(net.Conn) error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	c, err := net.DialTimeout("unix", d.cfg.Control, patience)
	if err != nil {
		return fmt.Errorf("swtpm: control: %w", err)
	}
	defer func() { _ = c.Close() }()
	return f(c)
}

// Device is the value of tpm.Config.Device for this TPM.
func (d *Daemon) Device() string { return "unix:" + d.cfg.Socket }

// Pid is the process id.
func (d *Daemon) Pid() int { return d.cmd.Process.Pid }

// Done is closed when the process has ended.
func (d *Daemon) Done() <-chan struct{} { return d.done }

// PowerCycle resets the TPM as a power cut does. It then awaits TPM2_Startup from its data client: tpm.Open does that,
// and [Startup] for a client with a connection of its own.
func (d *Daemon) PowerCycle() error { return d.control(powerCycle) }

// Stop ends the TPM in an orderly way and waits for it.
func (d *Daemon) Stop() error {
	select {
	case <-d.done:
		return nil
	default:
	}
	err := d.control(func(c net.Conn) error { return order(c, ctlShutdown, nil) })
	if err != nil {
		return errors.Join(err, d.Kill())
	}
	select {
	case <-d.done:
		return d.exit
	case <-time.After(patience):
		return errors.Join(fmt.Errorf("swtpm: did not stop within %v", patience), d.Kill())
	}
}

// Kill ends the process at once and waits for it.
func (d *Daemon) Kill() error {
	err := d.cmd.Process.Kill()
	<-d.done
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// Freeze stops the process in its tracks: it keeps its sockets and answers nothing.
func (d *Daemon) Freeze() error { return d.cmd.Process.Signal(syscall.SIGSTOP) }

// Thaw lets a frozen process run on.
func (d *Daemon) Thaw() error { return d.cmd.Process.Signal(syscall.SIGCONT) }
