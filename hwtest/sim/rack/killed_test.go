//go:build linux

package simrack_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"golang.org/x/sys/unix"

	"github.com/sledvault/sledvault/hwtest/ptrace"
	simrack "github.com/sledvault/sledvault/hwtest/sim/rack"
	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/ident"
)

// killStep is how many system calls lie between one kill and the next. With 1 all are tried; make kill does.
var killStep = flag.Int("kill.step", 61, "kill before every n-th system call")

// watch is what a tracer, this program started again, is told in its environment. The supervisor of a daemon waits for it,
// so the tracing must be done elsewhere.
type watch struct {
	Pid  int
	Dir  string   // calls that change something below it count, and commands that change what a TPM keeps
	Skip []string // but not these files
	N    int      // kill before the n-th; 0: never
	// Print is a file for the calls that ledger.md §10 looks at, as strace writes them.
	Print string
}

// watchEnv holds a [watch].
const watchEnv = "SIMRACK_TEST_WATCH"

// watching runs in the tracer: it says "ready", then "killed CALL" or, after the end of its input, "left".
func watching(spec string) {
	var w watch
	err := json.Unmarshal([]byte(spec), &w)
	var over atomic.Bool
	var point string
	var tr *ptrace.Tracer
	var done func(ptrace.Call)
	var p printer
	if err == nil && w.Print != "" {
		p.out, err = os.Create(w.Print)
		done = p.exit
	}
	if err == nil {
		tr, err = ptrace.Attach(w.Pid, func(c ptrace.Call) ptrace.Verdict {
			if p.out != nil {
				p.entry(c)
			}
			switch {
			case over.Load():
				return ptrace.Leave
			case w.N == 0 || !w.lasting(c):
				return ptrace.Go
			}
			if w.N--; w.N > 0 {
				return ptrace.Go
			}
			point = strings.ReplaceAll(c.String(), w.Dir+"/", "")
			return ptrace.Kill
		}, done)
	}
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("ready")
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		over.Store(true)
	}()
	switch v, err := tr.Wait(); {
	case err != nil:
		fmt.Println(err)
	case v == ptrace.Kill:
		fmt.Println("killed", point)
	default:
		fmt.Println("left")
	}
}

// lasting reports whether a call counts.
func (w watch) lasting(c ptrace.Call) bool {
	if !c.Lasting() {
		return false
	}
	switch c.Number {
	case unix.SYS_OPENAT, unix.SYS_UNLINKAT, unix.SYS_MKDIRAT:
		if path := c.Text(c.Args[1]); strings.HasPrefix(path, "/") {
			return strings.HasPrefix(path, w.Dir)
		}
	case unix.SYS_WRITE:
		if h := c.Memory(c.Args[1], 10); len(h) == 10 && binary.BigEndian.Uint16(h) == uint16(tpm2.TPMSTSessions) && keptByTPM(binary.BigEndian.Uint32(h[6:])) {
			return true
		}
	}
	to := c.FD(c.Args[0])
	return strings.HasPrefix(to, w.Dir) && !slices.Contains(w.Skip, to)
}

// keptByTPM tells the commands that change what a TPM keeps without power.
func keptByTPM(code uint32) bool {
	switch tpm2.TPMCC(code) {
	case tpm2.TPMCCNVIncrement, tpm2.TPMCCNVDefineSpace, tpm2.TPMCCNVUndefineSpace, tpm2.TPMCCNVWrite, tpm2.TPMCCEvictControl:
		return true
	}
	return false
}

// tracer is a [watch] at work.
type tracer struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.Closer
	out *bufio.Scanner
}

func (w watch) start(t *testing.T) *tracer {
	t.Helper()
	spec, err := json.Marshal(w)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), watchEnv+"="+string(spec))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	tr := &tracer{t, cmd, in, bufio.NewScanner(out)}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	if !tr.out.Scan() || tr.out.Text() != "ready" {
		t.Fatalf("the tracer says %q", tr.out.Text())
	}
	return tr
}

// end waits until the process is killed, has ended, or is left alone since the input was closed. It says before which call it
// was killed; "" if it was not.
func (tr *tracer) end() (point string) {
	tr.t.Helper()
	if !tr.out.Scan() {
		tr.t.Fatal("the tracer died")
	}
	said := tr.out.Text()
	if err := tr.cmd.Wait(); err != nil {
		tr.t.Errorf("tracer: %v", err)
	}
	if said == "left" {
		return ""
	}
	point, ok := strings.CutPrefix(said, "killed ")
	if !ok {
		tr.t.Fatalf("the tracer says %q", said)
	}
	return point
}

// rotate runs the command until it says that it is done.
func rotate(ctx context.Context, r *simrack.Rack) error {
	_, err := r.Run(ctx, "rack", "rotate", "--rack", r.File, "--timeout", "60s")
	return err
}

// movedTo waits until every disk is open under an epoch.
func movedTo(t *testing.T, r *simrack.Rack, e ident.Epoch) {
	t.Helper()
	for _, s := range r.Sleds() {
		if _, err := s.Await(t.Context(), "rotated", func(st api.Status) bool {
			return len(st.Disks) == 1 && st.Disks[0].State == "unlocked" && st.Disks[0].Rotation == "" && st.Disks[0].Epoch == e
		}); err != nil {
			t.Log(s.LogTail(4096))
			t.Fatal(err)
		}
	}
}

// committed is the newest committed epoch that a sled knows.
func committed(t *testing.T, r *simrack.Rack) ident.Epoch {
	t.Helper()
	e, err := r.Epochs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return slices.Max(e)
}

// TestKilledWhileRotating kills a real daemon, and what it has started, before a system call that changes its state, its
// disk's header or its TPM's counter, while the rack gets a new secret and the disks move to it. The supervisor starts it
// again, and everything comes to its end: nobody does anything but wait.
func TestKilledWhileRotating(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Log("not root: a daemon is closed to us, and to everybody like us")
		return
	}
	r := newRack(t)
	s := r.Sled(1)
	points := map[string]int{}
	for n := 1; ; n += *killStep {
		pid := s.Pid()
		tr := watch{Pid: pid, Dir: s.Dir, Skip: []string{s.Log, s.Trace}, N: n}.start(t)
		if err := rotate(t.Context(), r); err != nil {
			t.Log(s.LogTail(4096))
			t.Fatalf("killed before call %d: %v", n, err)
		}
		movedTo(t, r, committed(t, r))
		_ = tr.in.Close()
		if _, err := s.Client().Status(t.Context()); err != nil { // a daemon that sleeps makes no call
			t.Fatal(err)
		}
		point := tr.end()
		if point == "" {
			t.Logf("a rotation makes fewer than %d calls", n)
			break
		}
		points[point]++
		if s.Pid() == pid {
			t.Fatal("nobody was killed")
		}
	}
	for _, s := range r.Sleds() {
		if err := s.CheckDisks(t.Context()); err != nil {
			t.Errorf("%s: %v", s.Name, err)
		}
	}
	play(t, r, simrack.SceneColdBoot)
	if len(points) < 2 {
		t.Errorf("killed before %v", points)
	}
	t.Logf("killed before %v", points)
}

// TestKilledCommand kills the operator's command before the system calls that change the rack's folder, and runs it again:
// it goes on, and nothing is half-done.
func TestKilledCommand(t *testing.T) {
	t.Parallel()
	r := newRack(t)
	points := map[string]int{}
	step := max(1, *killStep/8)
	for n, killed := 1, true; killed; n += step {
		cmd := exec.Command(filepath.Join(programs.dir, "sledvault"), "rack", "rotate", "--rack", r.File, "--timeout", "60s")
		var said strings.Builder
		cmd.Stderr = &said
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		point := watch{Pid: cmd.Process.Pid, Dir: filepath.Dir(r.File), N: n}.start(t).end()
		err := cmd.Wait()
		if killed = point != ""; !killed && err != nil {
			t.Fatalf("rack rotate: %v: %s", err, said.String())
		}
		points[point]++
		if killed {
			if err := rotate(t.Context(), r); err != nil {
				t.Fatalf("killed before call %d: %v", n, err)
			}
		}
	}
	movedTo(t, r, committed(t, r))
	out, err := r.Run(t.Context(), "rack", "status", "--rack", r.File)
	if err != nil || !strings.Contains(string(out), ": done, 3 members") {
		t.Errorf("rack status: %v, %s", err, out)
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(r.File), ".tmp-*"))
	if err != nil || len(left) > 1 {
		t.Errorf("files are left: %q (%v)", left, err)
	}
	t.Logf("killed before %v", points)
}
