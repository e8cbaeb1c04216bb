//go:build linux

// Package ptrace watches the system calls of a running process and may kill it before any one of them. Tests use it to
// end a daemon between two system calls, and to see their order as an outsider does.
//
// It owns the tracing of all threads and children of a process, present and to come, and the view of a call that is about
// to be made. It decides nothing: a function of the caller's sees each call and says what becomes of the process.
//
// Begin with [Attach]. Needs the right to trace the process: root, or the same user where nothing forbids it.
package ptrace

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Verdict is what becomes of the process before the call is made.
type Verdict int

// The verdicts.
const (
	Go    Verdict = iota // make the call
	Kill                 // SIGKILL for the process and its children; the call is not made
	Leave                // make the call, and stop watching
)

// options of every traced thread: tell system calls from other traps, follow threads and children.
const options = unix.PTRACE_O_TRACESYSGOOD | unix.PTRACE_O_TRACECLONE | unix.PTRACE_O_TRACEFORK | unix.PTRACE_O_TRACEVFORK

// Tracer watches one process.
type Tracer struct {
	pid   int
	see   func(Call) Verdict
	done  func(Call) // may be nil
	tasks map[int]*task
	ended chan struct{} // closed at the end
	end   Verdict
	err   error
}

// task is a traced thread.
type task struct {
	pid  int // of its process
	call Call
	in   bool // between entry and exit of a call
}

// Attach begins to watch a process. From its return on, see is called before each system call of the process and of the
// children that it makes, one call at a time, and done, if given, after each call that was seen, with its result. Both
// run on a thread of the tracer's while the calling thread of the process stands still.
//
// A process that this program has started must not be waited for while it is watched: the kernel would show its stops to
// whoever waits here. It may be waited for after the verdict. A process that others wait for is watched by a program of
// its own.
func Attach(pid int, see func(Call) Verdict, done func(Call)) (*Tracer, error) {
	t := &Tracer{pid: pid, see: see, done: done, tasks: map[int]*task{}, ended: make(chan struct{})}
	attached := make(chan error)
	go t.onThread(attached)
	if err := <-attached; err != nil {
		return nil, err
	}
	return t, nil
}

// Wait returns once watching has ended: how (Go if the process ended by itself), or why it broke off.
func (t *Tracer) Wait() (Verdict, error) {
	<-t.ended
	return t.end, t.err
}

// onThread runs the tracer on a thread that ends with it: the kernel lets go of everything a thread traces when the thread
// ends. The main thread never ends, and a thread that has started children of this program would reap them: both are
// passed over.
func (t *Tracer) onThread(attached chan<- error) {
	runtime.LockOSThread()
	tid := unix.Gettid()
	children, _ := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/children", tid)) // not every kernel has it
	if tid == os.Getpid() || len(strings.TrimSpace(string(children))) > 0 {
		again := make(chan struct{})
		go func() { defer close(again); t.onThread(attached) }()
		<-again
		runtime.UnlockOSThread()
		return
	}
	if err := t.seize(); err != nil {
		attached <- err
		return // with the thread
	}
	attached <- nil
	defer close(t.ended)
	for {
		over, err := t.next()
		if over || err != nil {
			t.err = err
			return
		}
	}
}

// seize takes all threads of the process. New ones may come while it does: those of threads that are taken are traced from
// their start.
func (t *Tracer) seize() error {
	for found := true; found; {
		found = false
		dirs, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/[0-9]*", t.pid))
		if err != nil || len(dirs) == 0 {
			return fmt.Errorf("ptrace: process %d is not there", t.pid)
		}
		for _, d := range dirs {
			tid, err := strconv.Atoi(filepath.Base(d))
			if err != nil || t.tasks[tid] != nil {
				continue
			}
			err = ptrace(unix.PTRACE_SEIZE, tid, 0, options)
			switch {
			case err == nil:
			case statusOf(tid, "TracerPid:") == strconv.Itoa(unix.Gettid()): // made by one that was seized before it
				t.tasks[tid], found = &task{pid: t.pid}, true
				continue
			case errors.Is(err, unix.ESRCH), strings.HasPrefix(statusOf(tid, "State:")+"Z", "Z"): // it has just ended
				continue
			default:
				return fmt.Errorf("ptrace: seize thread %d: %w", tid, err)
			}
			t.tasks[tid], found = &task{pid: t.pid}, true
			if err := ptrace(unix.PTRACE_INTERRUPT, tid, 0, 0); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("ptrace: interrupt thread %d: %w", tid, err)
			}
		}
	}
	return nil
}

// statusOf is a field of /proc/TID/status; "" if the thread is gone.
func statusOf(tid int, field string) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, field); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// next waits for one thread to stop and lets it go on. It reports true when there is nothing left to watch.
func (t *Tracer) next() (over bool, err error) {
	var ws unix.WaitStatus
	tid, err := unix.Wait4(-1, &ws, unix.WALL|unix.WNOTHREAD, nil)
	switch {
	case errors.Is(err, unix.EINTR):
		return false, nil
	case errors.Is(err, unix.ECHILD):
		return true, nil
	case err != nil:
		return false, fmt.Errorf("ptrace: wait: %w", err)
	case !ws.Stopped():
		delete(t.tasks, tid)
		return len(t.tasks) == 0, nil
	}
	k := t.tasks[tid]
	if k == nil {
		pid, err := strconv.Atoi(statusOf(tid, "Tgid:"))
		if err != nil {
			return false, nil //nolint:nilerr // the thread is gone, and its end was waited for
		}
		k = &task{pid: pid}
		t.tasks[tid] = k
	}
	deliver := 0
	switch sig, event := ws.StopSignal(), int(ws)>>16; {
	case sig == unix.SIGTRAP|0x80:
		if verdict := t.syscall(tid, k); verdict != Go {
			return true, t.finish(verdict)
		}
	case event == unix.PTRACE_EVENT_STOP && sig != unix.SIGTRAP: // stopped by job control: it stays so
		return false, ignoreGone(ptrace(unix.PTRACE_LISTEN, tid, 0, 0))
	case event == 0:
		deliver = int(sig)
	}
	return false, ignoreGone(ptrace(unix.PTRACE_SYSCALL, tid, 0, deliver))
}

// ignoreGone forgives that a thread was killed meanwhile: its end is still to be reported.
func ignoreGone(err error) error {
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// syscall shows the call that a thread has stopped at.
func (t *Tracer) syscall(tid int, k *task) Verdict {
	info := syscallInfo{}
	if _, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_GET_SYSCALL_INFO, uintptr(tid), unsafe.Sizeof(info), uintptr(unsafe.Pointer(&info)), 0, 0); errno != 0 {
		return Go // killed meanwhile
	}
	switch info.Op {
	case unix.PTRACE_SYSCALL_INFO_ENTRY:
		k.call, k.in = Call{PID: k.pid, TID: tid, Number: info.Data[0], Args: [6]uint64(info.Data[1:7])}, true
		return t.see(k.call)
	case unix.PTRACE_SYSCALL_INFO_EXIT:
		if k.in && t.done != nil {
			k.call.Result = int64(info.Data[0])
			t.done(k.call)
		}
		k.in = false
	}
	return Go
}

// syscallInfo is the kernel's struct ptrace_syscall_info; Data holds number and arguments at an entry, the result at an
// exit.
type syscallInfo struct {
	Op   uint8
	_    [3]uint8
	Arch uint32
	IP   uint64
	SP   uint64
	Data [8]uint64
}

// finish carries out the last verdict. What it leaves traced, the end of the thread lets go of.
func (t *Tracer) finish(v Verdict) error {
	t.end = v
	if v == Leave {
		return nil
	}
	seen := map[int]bool{}
	for _, k := range t.tasks {
		if !seen[k.pid] {
			seen[k.pid] = true
			if err := unix.Kill(k.pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("ptrace: kill process %d: %w", k.pid, err)
			}
		}
	}
	return nil
}

func ptrace(request, tid int, addr uintptr, data int) error {
	if _, _, errno := unix.Syscall6(unix.SYS_PTRACE, uintptr(request), uintptr(tid), addr, uintptr(data), 0, 0); errno != 0 {
		return errno
	}
	return nil
}
