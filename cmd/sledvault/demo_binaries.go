package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sledvault/sledvault/vault/reason"
)

const daemonName = "sledvaultd"

// modulePath is the first line of our go.mod.
const modulePath = "module github.com/sledvault/sledvault"

// codeNoDaemon says that there is no sledvaultd to run.
const codeNoDaemon reason.Code = "demo-no-daemon"

// binaries are the programs that a demo runs.
type binaries struct {
	command, daemon string
	temp            string // folder to remove; "" if none
}

func (b *binaries) remove() {
	if b.temp != "" {
		_ = os.RemoveAll(b.temp) // a folder of our own in the temporary folder
	}
}

// findBinaries takes the daemon beside this program. Without one, as under go run, or if that one accepts no software TPM,
// it builds it from the source tree
// around this program or the working folder.
func findBinaries(ctx context.Context, progress io.Writer) (*binaries, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("demo: own program: %w", err)
	}
	beside := filepath.Join(filepath.Dir(self), daemonName)
	packaged := false
	if fi, err := os.Stat(beside); err == nil && fi.Mode().IsRegular() {
		said, err := exec.CommandContext(ctx, beside, "--version").Output()
		if packaged = err == nil && bytes.Contains(said, []byte("(packaged")); !packaged {
			return &binaries{command: self, daemon: beside}, nil
		}
	}
	cwd, err := os.Getwd()
	if err != nil {
		cwd = "/"
	}
	for _, from := range []string{filepath.Dir(self), cwd} {
		if root := sourceTree(from); root != "" {
			return buildDaemon(ctx, progress, self, root)
		}
	}
	if packaged {
		return nil, reason.New(codeNoDaemon, "run it from the source tree: go run ./cmd/sledvault demo",
			"demo: %s was built for real sleds, and refuses the software TPMs of a demo", beside)
	}
	return nil, reason.New(codeNoDaemon, "put sledvaultd beside sledvault, or run from the source tree: go run ./cmd/sledvault demo",
		"demo: no %s beside %s", daemonName, self)
}

// sourceTree finds our go.mod in a folder or above it; "" if there is none.
func sourceTree(dir string) string {
	for {
		if b, err := os.ReadFile(filepath.Join(dir, "go.mod")); err == nil {
			line, _, _ := bytes.Cut(b, []byte("\n"))
			if strings.TrimSpace(string(line)) == modulePath {
				return dir
			}
		}
		up := filepath.Dir(dir)
		if up == dir {
			return ""
		}
		dir = up
	}
}

func buildDaemon(ctx context.Context, progress io.Writer, self, root string) (*binaries, error) {
	dir, err := os.MkdirTemp("", "sledvault-bin-")
	if err != nil {
		return nil, reason.Wrap(err, codeNoDaemon, "set TMPDIR to a folder that can be written to", "demo: folder for %s", daemonName)
	}
	b := &binaries{command: self, daemon: filepath.Join(dir, daemonName), temp: dir}
	_, _ = fmt.Fprintln(progress, "building", daemonName)
	cmd := exec.CommandContext(ctx, "go", "build", "-buildvcs=false", "-o", b.daemon, "./cmd/"+daemonName)
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		b.remove()
		hint := "mend what the compiler says"
		if errors.Is(err, exec.ErrNotFound) {
			hint = "put the go command into PATH"
		}
		return nil, reason.Wrap(err, codeNoDaemon, hint, "demo: build %s: %.2000s", daemonName, strings.TrimSpace(string(out)))
	}
	return b, nil
}

// endWithGoRun ends this program when the go command that runs it is ended: go run passes no SIGTERM on.
func endWithGoRun() {
	parent := os.Getppid()
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", parent))
	if err != nil || strings.TrimSpace(string(name)) != "go" {
		return
	}
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGTERM), 0, 0, 0); err == nil && os.Getppid() != parent {
		_ = unix.Kill(os.Getpid(), unix.SIGTERM)
	}
}
