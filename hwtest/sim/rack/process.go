//go:build linux

package simrack

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// grace is how long a process may take to end after SIGTERM.
const grace = 10 * time.Second

// process is a child that dies with this program, however that one ends.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // of Wait; valid after done
}

// spawn starts a child in a process group of its own, so that an interrupt typed at the terminal reaches this program
// alone. The kernel ties a child's death signal to the thread that started it: that thread waits for it.
func spawn(cmd *exec.Cmd) (*process, error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	p := &process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		p.err = cmd.Wait()
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("simrack: start: %w", err)
	}
	return p, nil
}

// stop asks a process to end and waits; it kills one that does not.
func (p *process) stop() error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may be gone already
	select {
	case <-p.done:
		p.orphans()
		return nil
	case <-time.After(grace):
		p.kill()
		return fmt.Errorf("simrack: process %d did not end within %v of SIGTERM", p.cmd.Process.Pid, grace)
	}
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may be gone already
	<-p.done
	p.orphans()
}

// orphans kills what a process that has ended left running in its group: a cryptsetup in the middle of a disk.
func (p *process) orphans() { _ = unix.Kill(-p.cmd.Process.Pid, unix.SIGKILL) } // mostly there are none

// ordered reports whether a process that has ended was asked to: it ended well, or died of SIGTERM.
func (p *process) ordered() bool {
	st := p.cmd.ProcessState
	ws, ok := st.Sys().(syscall.WaitStatus)
	return st.Success() || ok && ws.Signaled() && ws.Signal() == syscall.SIGTERM
}

// CommandError is a command that did not exit with 0.
type CommandError struct {
	Args   []string
	Code   int    // -1 if a signal ended it
	Stderr string // what it said
}

func (e *CommandError) Error() string {
	return fmt.Sprintf("simrack: sledvault %s: exit code %d: %.1000s", strings.Join(e.Args, " "), e.Code, strings.TrimSpace(e.Stderr))
}

// Run runs a sledvault command as an operator would and returns its stdout. An exit code other than 0 is a *CommandError.
func (r *Rack) Run(ctx context.Context, args ...string) ([]byte, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(r.o.Command, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	p, err := spawn(cmd)
	if err != nil {
		return nil, err
	}
	select {
	case <-p.done:
	case <-ctx.Done():
		_ = p.stop()
		return nil, fmt.Errorf("simrack: sledvault %s: %w", strings.Join(args, " "), context.Cause(ctx))
	}
	if p.err != nil {
		return stdout.Bytes(), &CommandError{args, cmd.ProcessState.ExitCode(), stderr.String()}
	}
	return stdout.Bytes(), nil
}

// On runs a sledvault command at one sled.
func (r *Rack) On(ctx context.Context, s *Sled, args ...string) ([]byte, error) {
	return r.Run(ctx, append([]string{"--socket", s.API}, args...)...)
}
