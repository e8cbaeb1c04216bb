//go:build linux

package ptrace_test

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sledvault/sledvault/hwtest/ptrace"
)

// helper names the folder in which this program, started again, writes its files.
const helper = "PTRACE_TEST_HELPER"

func TestMain(m *testing.M) {
	if dir := os.Getenv(helper); dir != "" {
		work(dir)
		return
	}
	os.Exit(m.Run())
}

// work waits for a line, makes three files from goroutines of their own, one after the other, says so, and waits.
func work(dir string) {
	in := bufio.NewReader(os.Stdin)
	_, _ = in.ReadString('\n')
	for i := range 3 {
		var wg sync.WaitGroup
		wg.Go(func() { _ = os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), []byte("x"), 0o600) })
		wg.Wait()
	}
	fmt.Println("done")
	_, _ = in.ReadString('\n')
}

// child starts the helper.
func child(t *testing.T, dir string) (cmd *exec.Cmd, in io.WriteCloser, out *bufio.Reader) {
	t.Helper()
	cmd = exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), helper+"="+dir)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd, in, bufio.NewReader(pipe)
}

// TestKill: killed before each of its lasting calls in turn, the process leaves what the calls before have made.
func TestKill(t *testing.T) {
	t.Parallel()
	for at := 1; ; at++ {
		dir := t.TempDir()
		cmd, in, _ := child(t, dir)
		var made []string
		tr, err := ptrace.Attach(cmd.Process.Pid, func(c ptrace.Call) ptrace.Verdict {
			if c.Number == unix.SYS_WRITE && strings.HasPrefix(string(c.Memory(c.Args[1], 5)), "done\n") {
				return ptrace.Leave
			}
			if !c.Lasting() || c.Number == unix.SYS_OPENAT && !strings.HasPrefix(c.Text(c.Args[1]), dir) || c.Number == unix.SYS_WRITE && !strings.HasPrefix(c.FD(c.Args[0]), dir) {
				return ptrace.Go
			}
			made = append(made, c.String())
			if len(made) == at {
				return ptrace.Kill
			}
			return ptrace.Go
		}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(in, "go\n"); err != nil {
			t.Fatal(err)
		}
		v, err := tr.Wait()
		if err != nil {
			t.Fatal(err)
		}
		if v == ptrace.Leave {
			if at != 7 { // three times open and write
				t.Errorf("have %d calls: %q", at-1, made)
			}
			_ = in.Close()
			if err := cmd.Wait(); err != nil {
				t.Errorf("left alone, it ended with %v", err)
			}
			return
		}
		err = cmd.Wait()
		if err == nil || v != ptrace.Kill {
			t.Fatalf("call %d: verdict %v, it ended with %v", at, v, err)
		}
		files, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		if want := at / 2; len(files) != want {
			t.Errorf("killed before %q: have %d files, want %d", made[at-1], len(files), want)
		}
		if at%2 == 0 {
			if b, err := os.ReadFile(filepath.Join(dir, files[len(files)-1].Name())); err != nil || len(b) != 0 {
				t.Errorf("killed before %q: have %q, %v", made[at-1], b, err)
			}
		}
	}
}

// TestResults: a call's result is shown after it.
func TestResults(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cmd, in, _ := child(t, dir)
	var wrote []int64
	tr, err := ptrace.Attach(cmd.Process.Pid, func(ptrace.Call) ptrace.Verdict { return ptrace.Go }, func(c ptrace.Call) {
		if c.Number == unix.SYS_WRITE && strings.HasPrefix(c.FD(c.Args[0]), dir) {
			wrote = append(wrote, c.Result)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(in, "go\nend\n"); err != nil {
		t.Fatal(err)
	}
	v, err := tr.Wait()
	if v != ptrace.Go || err != nil {
		t.Errorf("have %v, %v", v, err)
	}
	if !slices.Equal(wrote, []int64{1, 1, 1}) {
		t.Errorf("have results %v, want three times one byte", wrote)
	}
	if _, err := ptrace.Attach(1<<22+1, func(ptrace.Call) ptrace.Verdict { return ptrace.Go }, nil); err == nil {
		t.Error("a process that is not there: have no error")
	}
}
