package unlock

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
)

// Exit codes of cryptsetup(8).
const (
	exitOK     = 0
	exitKey    = 2
	exitDevice = 4
	exitBusy   = 5
)

// keySize is the length of disk keys in bytes.
const keySize = 32

// maxQuote bounds what is kept of the tool's output, in bytes.
const maxQuote = 1024

// killAfter is how long an interrupted cryptsetup may tidy up before it is killed.
const killAfter = 2 * time.Second

// call is one run of cryptsetup.
type call struct {
	id     string // of the disk, for errors
	args   []string
	key    secret.DiskKey // goes to standard input; may be empty
	newKey secret.DiskKey // goes to descriptor newKeyFD; may be empty
	input  []byte         // standard input if there is no key; not secret
	header *os.File       // descriptor headerFD; may be nil
	dir    string         // working folder; "" means /
}

// The descriptors of a child beside the standard three.
const (
	headerFD = 3
	newKeyFD = 4
)

// answer is what a run ended with.
type answer struct {
	exit   int
	stdout string
	stderr string
}

// run starts cryptsetup and waits for it. An error means that it could not run to its end; its exit code is the caller's.
func (l *LUKS2) run(ctx context.Context, c call) (answer, error) {
	path, err := l.tool()
	if err != nil {
		return answer{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, c.args...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	cmd.Dir = cmp.Or(c.dir, "/")
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = killAfter
	var stdout, stderr quote
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	files, err := c.wire(cmd)
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
	}()
	if err != nil {
		return answer{}, reason.Wrap(err, CodeTool, hintTool, "unlock: disk %s: hand over the key", c.id)
	}
	err = cmd.Run()
	a := answer{exit: cmd.ProcessState.ExitCode(), stdout: string(stdout), stderr: stderr.line()}
	if ctx.Err() != nil {
		e := reason.Wrap(ctx.Err(), CodeTimeout, hintTimeout, "unlock: disk %s: cryptsetup %s", c.id, c.args[0])
		e.Remedy = reason.Retry
		return a, e
	}
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		return a, reason.Wrap(err, CodeTool, hintTool, "unlock: disk %s: run cryptsetup %s", c.id, c.args[0])
	}
	return a, nil
}

// wire connects the child's descriptors. It returns what must be closed after the run.
func (c call) wire(cmd *exec.Cmd) (files []*os.File, err error) {
	switch {
	case !c.key.IsEmpty():
		in, err := keyPipe(c.key)
		if err != nil {
			return nil, err
		}
		files = append(files, in)
		cmd.Stdin = in
	case c.input != nil:
		cmd.Stdin = strings.NewReader(string(c.input))
	}
	if c.header != nil || !c.newKey.IsEmpty() {
		header := c.header
		if header == nil { // keeps the numbers of the descriptors fixed
			if header, err = os.Open(os.DevNull); err != nil {
				return files, err
			}
			files = append(files, header)
		}
		cmd.ExtraFiles = append(cmd.ExtraFiles, header)
	}
	if !c.newKey.IsEmpty() {
		in, err := keyPipe(c.newKey)
		if err != nil {
			return files, err
		}
		files = append(files, in)
		cmd.ExtraFiles = append(cmd.ExtraFiles, in)
	}
	return files, nil
}

// keyPipe puts a key into a pipe: one write from the locked pages into the kernel, never through a buffer of ours. The
// pipe's own buffer takes a whole key at once, so nothing blocks and the writing end can be closed before the child starts.
func keyPipe(key secret.DiskKey) (*os.File, error) {
	if key.Len() != keySize {
		return nil, fmt.Errorf("%w: have %d bytes, want %d", secret.ErrLength, key.Len(), keySize)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	err = key.Use(func(b []byte) error {
		_, err := w.Write(b)
		return err
	})
	if err := errors.Join(err, w.Close()); err != nil {
		_ = r.Close()
		return nil, err
	}
	return r, nil
}

// quote keeps the beginning of a tool's output and drops the rest.
type quote []byte

func (q *quote) Write(b []byte) (int, error) {
	if room := maxQuote - len(*q); room > 0 {
		*q = append(*q, b[:min(len(b), room)]...)
	}
	return len(b), nil
}

// line is the output on one printable line.
func (q *quote) line() string {
	return strings.Join(strings.FieldsFunc(string(*q), func(r rune) bool { return r < ' ' || r > '~' }), "; ")
}

// failed turns an unexpected exit code into an error that quotes the tool.
func (a answer) failed(id, doing string) error {
	switch a.exit {
	case exitKey:
		return reason.New(CodeKey, hintKey, "unlock: disk %s: %s: key refused", id, doing)
	case exitDevice:
		return reason.New(CodeIO, hintIO, "unlock: disk %s: %s: device refused: %q", id, doing, a.stderr)
	case exitBusy:
		return reason.New(CodeBusy, hintBusy, "unlock: disk %s: %s: device or mapping in use: %q", id, doing, a.stderr)
	}
	return reason.New(CodeTool, hintTool, "unlock: disk %s: %s: cryptsetup exit code %d: %q", id, doing, a.exit, a.stderr)
}
