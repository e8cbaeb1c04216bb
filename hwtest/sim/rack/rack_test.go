//go:build linux

package simrack_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	simrack "github.com/sledvault/sledvault/hwtest/sim/rack"
	"github.com/sledvault/sledvault/internal/rig"
	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/ident"
)

// bin holds the programs under test; they are built when the first test needs them.
type bin struct {
	once sync.Once
	dir  string
	err  error
}

var programs bin

func TestMain(m *testing.M) {
	if spec := os.Getenv(watchEnv); spec != "" {
		watching(spec)
		return
	}
	code := m.Run()
	if programs.dir != "" {
		_ = os.RemoveAll(programs.dir)
	}
	os.Exit(code)
}

// build builds both programs once.
func (b *bin) build(t *testing.T) {
	t.Helper()
	b.once.Do(func() {
		if b.dir, b.err = os.MkdirTemp("", "sledvault-bin-"); b.err != nil {
			return
		}
		cmd := exec.Command("go", "build", "-buildvcs=false", "-o", b.dir+"/", "../../../cmd/sledvault", "../../../cmd/sledvaultd")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			b.err = fmt.Errorf("build: %w: %s", err, out)
		}
	})
	if b.err != nil {
		t.Fatal(b.err)
	}
}

// newRack makes a rack of three sleds and sets it up.
func newRack(t *testing.T) *simrack.Rack {
	t.Helper()
	r := newHardware(t, func(e simrack.Event) { t.Logf("%s %s", e.Sled, e.Text) })
	play(t, r, simrack.SceneInit)
	return r
}

// newHardware makes a rack of three sleds on which nothing runs yet.
func newHardware(t *testing.T, tell func(simrack.Event)) *simrack.Rack {
	t.Helper()
	rig.Need(t, "swtpm", "cryptsetup")
	programs.build(t)
	r, err := simrack.New(t.Context(), simrack.Options{
		Sleds: 3, Daemon: filepath.Join(programs.dir, "sledvaultd"),
		Command: filepath.Join(programs.dir, "sledvault"), DiskSize: 40 << 20, LogLevel: "debug", Tell: tell,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeRack(t, r) })
	return r
}

// TestBrokenOff: a scene that is interrupted leaves nothing behind either, neither while disks are being encrypted nor
// while a new sled is there that is no member yet.
func TestBrokenOff(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ scene, when string }{{simrack.SceneInit, "encrypted"}, {simrack.SceneAddSled, "rack add done"}} {
		t.Run(c.scene, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			r := newHardware(t, func(e simrack.Event) {
				if strings.Contains(e.Text, c.when) { // more is under way
					cancel()
				}
			})
			if c.scene != simrack.SceneInit {
				play(t, r, simrack.SceneInit)
			}
			if _, err := r.Play(ctx, c.scene); !errors.Is(err, context.Canceled) {
				t.Errorf("have %v, want %v", err, context.Canceled)
			}
		})
	}
}

// closeRack takes the rack down and makes sure that nothing is left.
func closeRack(t *testing.T, r *simrack.Rack) {
	t.Helper()
	var pids []int
	for _, s := range r.Sleds() {
		pids = append(pids, s.Pid(), s.TPMPid())
	}
	if err := r.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	if _, err := os.Lstat(r.Dir); !os.IsNotExist(err) {
		t.Errorf("folder %s is left behind (%v)", r.Dir, err)
	}
	for _, pid := range pids {
		if pid != 0 && unix.Kill(pid, 0) == nil {
			t.Errorf("process %d is left behind", pid)
		}
	}
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range lines { // machines that are no members, and what daemons start
		if line, err := os.ReadFile(path); err == nil && strings.Contains(string(line), r.Dir) {
			t.Errorf("left behind: %s: %q", path, line)
		}
	}
}

func play(t *testing.T, r *simrack.Rack, scene string) {
	t.Helper()
	detail, err := r.Play(t.Context(), scene)
	if err != nil {
		if e, ok := errors.AsType[*simrack.SledError](err); ok {
			t.Logf("end of %s:\n%s", e.Sled.Log, e.Sled.LogTail(4096))
		}
		t.Fatalf("%s: %v", scene, err)
	}
	t.Logf("%s: %s", scene, detail)
}

// TestScenes plays every scene once, then looks at the supervisor and the control socket.
func TestScenes(t *testing.T) {
	t.Parallel()
	r := newRack(t)
	for _, scene := range simrack.Scenes()[1:] {
		play(t, r, scene)
	}
	if b := r.Boots(); len(b) != 3 || b[0].MSToUnlocked <= 0 || len(b[0].Disks) != 1 || b[0].Disks[0].State != "unlocked" {
		t.Errorf("boots: have %+v", b)
	}
	if e, err := r.Epochs(t.Context()); err != nil || !slices.Equal(e, []ident.Epoch{1, 2, 3, 4, 5}) {
		t.Errorf("epochs: have %v (%v), want 1 to 5", e, err)
	}
	testMembers(t, r)
	t.Run("supervisor", func(t *testing.T) { testSupervisor(t, r) })
	t.Run("control", func(t *testing.T) { testControl(t, r) })
	t.Run("many power cuts", func(t *testing.T) { testPowerCuts(t, r) })
}

// testMembers: one came, one went, and the rack file names whom the rack has.
func testMembers(t *testing.T, r *simrack.Rack) {
	t.Helper()
	file, err := os.ReadFile(r.File)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range r.Sleds() {
		names = append(names, s.Name)
		if n := len(status(t, s).Quorum.Members); n != 3 || !strings.Contains(string(file), s.Board.Serial) {
			t.Errorf("%s: have %d members, want 3 that the rack file names:\n%s", s.Name, n, file)
		}
	}
	if have := strings.Join(names, " "); have != "sled-1 sled-3 sled-4" || strings.Contains(string(file), "sled-2") {
		t.Errorf("members: have %s; rack file:\n%s", have, file)
	}
	if _, err := os.Lstat(filepath.Join(r.Dir, "sled-2")); !os.IsNotExist(err) {
		t.Errorf("the removed sled's folder is left behind (%v)", err)
	}
}

// testSupervisor: killed from outside a daemon comes back, ended by SIGTERM it stays down.
func testSupervisor(t *testing.T, r *simrack.Rack) {
	s := r.Sled(1)
	unlocked := func() int {
		t.Helper()
		if _, err := s.Unlock(t.Context()); err != nil {
			t.Fatal(err)
		}
		return s.Pid()
	}
	old := s.Pid()
	if err := unix.Kill(old, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	awaitPid(t, s, func(pid int) bool { return pid != 0 && pid != old })
	if pid := unlocked(); pid == old {
		t.Errorf("pid %d did not change", pid)
	}
	if err := unix.Kill(s.Pid(), unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	awaitPid(t, s, func(pid int) bool { return pid == 0 })
	if err := s.Stop(); err != nil {
		t.Errorf("stop a stopped sled: %v", err)
	}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	first := unlocked()
	if err := s.Start(); err != nil || s.Pid() != first {
		t.Errorf("start a running sled: %v, pid %d, want %d", err, s.Pid(), first)
	}
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	if second := unlocked(); second == first || second == 0 {
		t.Errorf("killed: have pid %d, want a new one", second)
	}
}

// awaitPid waits for the supervisor's next word.
func awaitPid(t *testing.T, s *simrack.Sled, ok func(int) bool) {
	t.Helper()
	if err := s.AwaitPid(t.Context(), ok); err != nil {
		t.Fatal(err)
	}
}

func testControl(t *testing.T, r *simrack.Rack) {
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	ready := make(chan struct{})
	go func() { ended <- r.Control(ctx, func() { close(ready) }) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("control: %v", err)
		}
	}()
	select {
	case <-ready:
	case err := <-ended:
		ended <- nil
		t.Fatal(err)
	}
	m, err := r.Manifest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("unix", m.Control)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	in := bufio.NewScanner(c)
	say := func(line string) string {
		t.Helper()
		if _, err := fmt.Fprintln(c, line); err != nil || !in.Scan() {
			t.Fatalf("%s: no answer (%v, %v)", line, err, in.Err())
		}
		return in.Text()
	}
	name := r.Sled(2).Name
	for _, verb := range []string{"stop", "stop", "start", "power-cycle", "power-cycle"} {
		line := verb + " " + name
		if have := say(line); have != "ok" {
			t.Errorf("%s: have %q", line, have)
		}
	}
	for _, line := range []string{"", "stop", "stop sled-9", "burn sled-1", "stop sled-1 sled-2"} {
		if have := say(line); !strings.HasPrefix(have, "error: ") {
			t.Errorf("%q: have %q, want an error", line, have)
		}
	}
	var st struct {
		Sleds []struct {
			Name string
			Pid  int
		}
	}
	if err := json.Unmarshal([]byte(say("status")), &st); err != nil || len(st.Sleds) != 3 || st.Sleds[2].Pid != r.Sled(2).Pid() {
		t.Errorf("status: have %+v (%v)", st, err)
	}
	if _, err := r.Sled(2).Unlock(t.Context()); err != nil {
		t.Error(err)
	}
}

// testPowerCuts: a TPM that loses power often without being shut down must not count that as guessing.
func testPowerCuts(t *testing.T, r *simrack.Rack) {
	s := r.Sled(0)
	for range 8 {
		if err := s.PowerCycle(); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Unlock(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.CheckDisks(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	for _, n := range []int{-1, 0, 2, 32} {
		if r, err := simrack.New(t.Context(), simrack.Options{Sleds: n}); err == nil {
			t.Errorf("%d sleds: have a rack", n)
			_ = r.Close()
		}
	}
	dir := t.TempDir()
	rig.Need(t, "swtpm")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if r, err := simrack.New(ctx, simrack.Options{Sleds: 3, Dir: dir}); err == nil {
		t.Error("a rack although the context had ended")
		_ = r.Close()
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v (%v)", left, err)
	}
}

// TestDies: whatever ends the program that holds a rack, its processes end too; an interrupt also removes the folder.
func TestDies(t *testing.T) {
	t.Parallel()
	rig.Need(t, "swtpm", "cryptsetup")
	programs.build(t)
	for _, c := range []struct {
		sig   syscall.Signal
		clean bool
	}{{syscall.SIGTERM, true}, {syscall.SIGHUP, true}, {syscall.SIGKILL, false}} {
		t.Run(c.sig.String(), func(t *testing.T) {
			cmd := exec.Command(filepath.Join(programs.dir, "sledvault"), "demo", "--hold", "--sleds", "3")
			cmd.Stderr = os.Stderr
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			var m simrack.Manifest
			if err := json.NewDecoder(out).Decode(&m); err != nil {
				_ = cmd.Process.Kill()
				t.Fatalf("manifest: %v (%v)", err, cmd.Wait())
			}
			t.Cleanup(func() { _ = os.RemoveAll(m.Dir) })
			checkManifest(t, m)
			fds := pidfds(t, m)
			if err := cmd.Process.Signal(c.sig); err != nil {
				t.Fatal(err)
			}
			err = cmd.Wait()
			if c.clean && err != nil {
				t.Errorf("exit: %v, want 0", err)
			}
			awaitEnd(t, fds)
			if _, err := os.Lstat(m.Dir); c.clean && !os.IsNotExist(err) {
				t.Errorf("folder %s is left behind (%v)", m.Dir, err)
			}
		})
	}
}

func checkManifest(t *testing.T, m simrack.Manifest) {
	t.Helper()
	if len(m.Sleds) != 3 || m.Rack.IsZero() || m.RackFile == "" {
		t.Fatalf("manifest: have %+v", m)
	}
	for _, s := range m.Sleds {
		paths := []string{s.Config, s.State[0], s.State[1], s.Log, s.Trace, s.API, s.SP, s.SPInject, s.TPM, s.TPMDir, s.TPMLog, s.Start[0], m.Control, s.Disks[0].Path}
		for _, p := range paths {
			if _, err := os.Stat(p); err != nil {
				t.Errorf("manifest of %s: %v", s.Name, err)
			}
		}
	}
}

// pidfds opens every process of the rack: daemons, and the TPMs that the kernel finds behind their sockets.
func pidfds(t *testing.T, m simrack.Manifest) (fds []int) {
	t.Helper()
	for _, s := range m.Sleds {
		for _, pid := range []int{s.Pid, peerPid(t, s.TPM+".ctl")} {
			fd, err := unix.PidfdOpen(pid, 0)
			if err != nil {
				t.Fatalf("process %d: %v", pid, err)
			}
			fds = append(fds, fd)
		}
	}
	return fds
}

func peerPid(t *testing.T, socket string) int {
	t.Helper()
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	pid := 0
	if err := raw.Control(func(fd uintptr) {
		cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err != nil {
			t.Error(err)
			return
		}
		pid = int(cred.Pid)
	}); err != nil {
		t.Fatal(err)
	}
	return pid
}

func awaitEnd(t *testing.T, fds []int) {
	t.Helper()
	for _, fd := range fds {
		for {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 5000)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if n != 1 {
				t.Errorf("a process outlived the rack (%v)", err)
			}
			break
		}
		_ = unix.Close(fd)
	}
}

// member reports whether a status shows a member of the rack.
func member(st api.Status) bool { return st.State == api.StateMember }
