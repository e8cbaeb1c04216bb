package swtpm_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"golang.org/x/sys/unix"

	"github.com/sledvault/sledvault/hwtest/sim/swtpm"
	"github.com/sledvault/sledvault/internal/rig"
)

// parentOf, set in the environment, makes this test binary a parent that starts a swtpm and waits to be killed.
const parentOf = "SWTPM_TEST_PARENT"

func TestMain(m *testing.M) {
	if form := os.Getenv(parentOf); form != "" {
		parent(form, os.Args[len(os.Args)-1])
	}
	os.Exit(m.Run())
}

func parent(form, dir string) {
	pid := 0
	switch form {
	case "pair":
		p, err := swtpm.StartPair(dir)
		if err != nil {
			panic(err)
		}
		pid = p.Pid()
	case "unix":
		d, err := swtpm.StartUnix(context.Background(), swtpm.Config{Dir: dir, Socket: filepath.Join(dir, "s")})
		if err != nil {
			panic(err)
		}
		pid = d.Pid()
	}
	fmt.Println(pid)
	select {} // until killed
}

// TestDiesWithParent: no software TPM outlives the process that started it, however that one ends.
func TestDiesWithParent(t *testing.T) {
	t.Parallel()
	rig.Need(t, "swtpm")
	for _, form := range []string{"pair", "unix"} {
		t.Run(form, func(t *testing.T) {
			t.Parallel()
			cmd := exec.Command(os.Args[0], t.TempDir())
			cmd.Env = append(os.Environ(), parentOf+"="+form)
			cmd.Stderr = os.Stderr
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			line, err := bufio.NewReader(out).ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			pid, err := strconv.Atoi(strings.TrimSpace(line))
			if err != nil {
				t.Fatal(err)
			}
			fd, err := unix.PidfdOpen(pid, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = unix.Close(fd) }()
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait() // killed
			if !exited(fd, 5*time.Second) {
				_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
				t.Error("swtpm outlived its parent")
			}
		})
	}
}

// exited waits until the process of a pidfd has ended.
func exited(fd int, patience time.Duration) bool {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(patience.Milliseconds()))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return n == 1
	}
}

func TestPair(t *testing.T) {
	t.Parallel()
	rig.Need(t, "swtpm")
	p, err := swtpm.StartPair(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	selfTest := func() error {
		_, err := tpm2.GetRandom{BytesRequested: 8}.Execute(p)
		return err
	}
	if err := selfTest(); err != nil {
		t.Error(err)
	}
	if err := p.PowerCycle(); err != nil {
		t.Error(err)
	}
	if err := selfTest(); err != nil {
		t.Error(err)
	}
	if err := p.Kill(); err != nil {
		t.Error(err)
	}
	if err := selfTest(); !errors.Is(err, swtpm.ErrStopped) {
		t.Errorf("killed: %v", err)
	}
	if err := p.PowerCycle(); !errors.Is(err, swtpm.ErrStopped) {
		t.Errorf("killed: %v", err)
	}
	for range 2 { // also a running one
		if err := p.Restart(); err != nil {
			t.Error(err)
		}
		if err := selfTest(); err != nil {
			t.Error(err)
		}
	}
	for range 2 {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestStartErrors(t *testing.T) {
	t.Parallel()
	rig.Need(t, "swtpm")
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := swtpm.StartPair("relative"); err == nil {
		t.Error("relative state folder")
	}
	for name, cfg := range map[string]swtpm.Config{
		"relative folder":   {Dir: "relative", Socket: filepath.Join(dir, "a")},
		"relative socket":   {Dir: dir, Socket: "a"},
		"long socket":       {Dir: dir, Socket: filepath.Join(dir, strings.Repeat("x", 120))},
		"folder is a file":  {Dir: file, Socket: filepath.Join(dir, "b")},
		"no folder for log": {Dir: dir, Socket: filepath.Join(dir, "c"), LogPath: "/nonexistent/log"},
	} {
		d, err := swtpm.StartUnix(t.Context(), cfg)
		if err == nil {
			_ = d.Kill()
			t.Errorf("%s: started", name)
		}
	}
}

// TestUnix: stop and start again on the same paths, with the old sockets still lying there.
func TestUnix(t *testing.T) {
	t.Parallel()
	rig.Need(t, "swtpm")
	dir := t.TempDir()
	cfg := swtpm.Config{Dir: filepath.Join(dir, "state"), Socket: filepath.Join(dir, "tpm"), LogPath: filepath.Join(dir, "tpm.log")}
	for _, end := range []func(*swtpm.Daemon) error{(*swtpm.Daemon).Kill, (*swtpm.Daemon).Stop, (*swtpm.Daemon).Kill} {
		d, err := swtpm.StartUnix(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		if err := d.PowerCycle(); err != nil {
			t.Error(err)
		}
		if err := end(d); err != nil {
			t.Error(err)
		}
		<-d.Done()
		if err := d.Stop(); err != nil {
			t.Errorf("stopped twice: %v", err)
		}
		if err := d.Kill(); err != nil {
			t.Errorf("killed twice: %v", err)
		}
	}
}
