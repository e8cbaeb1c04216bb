//go:build linux

package simrack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"time"

	"github.com/sledvault/sledvault/hwtest/sim/firmware"
)

// A daemon that fails is started again: at once the first time, then after these pauses. One that has run for
// steadyAfter is as good as new.
const (
	restartFirst = 50 * time.Millisecond
	restartLast  = time.Second
	steadyAfter  = 10 * time.Second
)

// ErrClosed says that the rack is being taken down, or was never powered on.
var ErrClosed = errors.New("simrack: the sled has no power")

// order is something that the supervisor must do.
type order struct {
	do    func(*supervisor) error
	reply chan error
}

// supervisor owns the lives of one sled's daemon. One goroutine runs it.
type supervisor struct {
	sled     *Sled
	p        *process // nil while no daemon runs
	since    time.Time
	failures int
	due      <-chan time.Time // next start after a failure; nil without
}

// powerOn starts the sled's supervisor. No daemon runs yet.
func (s *Sled) powerOn() {
	s.ended = make(chan struct{})
	s.rack.wg.Go(func() {
		defer close(s.ended)
		(&supervisor{sled: s}).run(s.rack.life)
	})
}

func (v *supervisor) run(ctx context.Context) {
	for {
		var exited chan struct{}
		if v.p != nil {
			exited = v.p.done
		}
		select {
		case <-ctx.Done():
			_ = v.stop() // it is gone then, one way or the other
			return
		case o := <-v.sled.orders:
			o.reply <- o.do(v)
		case <-exited:
			v.bury()
		case <-v.due:
			v.revive()
		}
	}
}

// start starts a daemon if none runs.
func (v *supervisor) start() error {
	v.due = nil
	if v.p != nil {
		return nil
	}
	s := v.sled
	log, err := os.OpenFile(s.Log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("simrack: open the log: %w", err)
	}
	defer func() { _ = log.Close() }()
	argv := s.Argv()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), "TMPDIR="+s.temp) // what it leaves there goes with the sled
	if v.p, err = spawn(cmd); err != nil {
		return err
	}
	v.since = time.Now()
	s.started.Add(1)
	s.setPid(cmd.Process.Pid)
	return nil
}

// bury looks at how the daemon died. One that was asked to end stays down.
func (v *supervisor) bury() {
	p := v.gone()
	p.orphans()
	if p.ordered() {
		v.sled.rack.tell(v.sled.Name, "daemon ended; it stays down until it is started")
		return
	}
	v.sled.rack.tell(v.sled.Name, "daemon died (%v); starting it again", p.err)
	if time.Since(v.since) > steadyAfter {
		v.failures = 0
	}
	v.failures++
	if v.failures == 1 {
		v.revive()
		return
	}
	v.later()
}

func (v *supervisor) later() {
	v.due = time.After(min(restartFirst<<min(v.failures-1, 10), restartLast))
}

func (v *supervisor) revive() {
	if err := v.start(); err != nil {
		v.sled.rack.tell(v.sled.Name, "%v", err)
		v.failures++
		v.later()
	}
}

// gone forgets a daemon that has ended.
func (v *supervisor) gone() *process {
	p := v.p
	v.p = nil
	v.sled.setPid(0)
	return p
}

func (v *supervisor) stop() error {
	v.due, v.failures = nil, 0
	if v.p == nil {
		return nil
	}
	err := v.p.stop()
	v.gone()
	return err
}

func (v *supervisor) kill() {
	v.due, v.failures = nil, 0
	if v.p != nil {
		v.p.kill()
		v.gone()
	}
}

// powerCycle cuts the power and lets the machine boot again.
func (v *supervisor) powerCycle(o firmware.Options) error {
	v.kill()
	if err := v.sled.unmap(); err != nil {
		return err
	}
	if err := v.sled.tpm.PowerCycle(); err != nil {
		return err
	}
	if err := v.sled.measure(o); err != nil {
		return err
	}
	return v.start()
}

// changes tells waiters that something has changed.
type changes struct {
	mu   sync.Mutex
	next chan struct{} // closed at the next change
}

// wait returns a channel that is closed at the next change.
func (c *changes) wait() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.next == nil {
		c.next = make(chan struct{})
	}
	return c.next
}

func (c *changes) signal() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.next != nil {
		close(c.next)
		c.next = nil
	}
}

func (s *Sled) setPid(pid int) {
	s.pid.Store(int64(pid))
	s.change.signal()
}

// AwaitPid waits until the daemon's process id is as wanted; 0 means that none runs.
func (s *Sled) AwaitPid(ctx context.Context, ok func(pid int) bool) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		next := s.change.wait()
		if ok(s.Pid()) {
			return nil
		}
		select {
		case <-next:
		case <-ctx.Done():
			return fmt.Errorf("simrack: %s: have process %d: %w", s.Name, s.Pid(), ctx.Err())
		}
	}
}

// order hands an order to the supervisor and waits until it is carried out.
func (s *Sled) order(do func(*supervisor) error) error {
	if s.ended == nil {
		return ErrClosed
	}
	o := order{do, make(chan error, 1)}
	select {
	case s.orders <- o:
		return <-o.reply
	case <-s.ended:
		return ErrClosed
	}
}

// Start starts the sled's daemon if it does not run.
func (s *Sled) Start() error { return s.order((*supervisor).start) }

// Stop ends the daemon with SIGTERM and waits for it. It stays down.
func (s *Sled) Stop() error { return s.order((*supervisor).stop) }

// Kill kills the daemon and starts it again, as the supervisor of a real sled does. The TPM notices nothing.
func (s *Sled) Kill() error {
	return s.order(func(v *supervisor) error { v.kill(); return v.start() })
}

// PowerOff cuts the power. The sled stays down until Start or PowerCycle.
func (s *Sled) PowerOff() error {
	return s.order(func(v *supervisor) error { v.kill(); return v.sled.unmap() })
}

// PowerCycle cuts the power and boots the sled again: the TPM's registers are measured anew, disks and files are as they
// were. It returns when the daemon has been started.
func (s *Sled) PowerCycle() error { return s.Boot(firmware.Options{}) }

// Boot is [Sled.PowerCycle] with another firmware, kernel or command line.
func (s *Sled) Boot(o firmware.Options) error {
	return s.order(func(v *supervisor) error { return v.powerCycle(o) })
}
