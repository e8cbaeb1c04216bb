//go:build linux

package simrack_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sledvault/sledvault/hwtest/ptrace"
	simrack "github.com/sledvault/sledvault/hwtest/sim/rack"
)

// TestTraceFromOutside follows the recipe of ledger.md §10 to the letter on a held rack, and holds what it prints against
// what that section says. Where strace or jq is absent, a tracer of our own writes the same lines.
func TestTraceFromOutside(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Log("not root: a daemon is closed to us, and to everybody like us")
		return
	}
	r := newRack(t)
	m, err := r.Manifest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "rack.json"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	script := recipe(t)
	_, noStrace := exec.LookPath("strace")
	_, noJQ := exec.LookPath("jq")
	if noStrace != nil || noJQ != nil {
		t.Log("without strace and jq")
		script = ownTrace(t, r, dir, script)
	}
	cmd := exec.CommandContext(t.Context(), "bash", "-c", script)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "PATH="+programs.dir+":"+os.Getenv("PATH"))
	cmd.WaitDelay = time.Minute
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	calls := parseTrace(string(out))
	if err := checkOrder(calls); err != nil {
		t.Errorf("%v in\n%.20000s", err, out)
	}
	for name, spoil := range spoilers {
		if err := checkOrder(spoil(slices.Clone(calls))); err == nil {
			t.Errorf("control: %s: not noticed", name)
		}
	}
}

// recipe is the second command block of the section.
func recipe(t *testing.T) string {
	t.Helper()
	doc, err := os.ReadFile("../../../docs/ledger.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(doc), "\n## 10 ")
	blocks := strings.Split(section, "\n```\n")
	if len(blocks) < 4 || !strings.Contains(blocks[3], "strace") {
		t.Fatalf("ledger.md §10 has no recipe: %d blocks", len(blocks))
	}
	return blocks[3]
}

// ownTrace traces with a tracer of our own while the recipe's command runs, and returns what is left of the recipe: its
// last line, which chooses what to show.
func ownTrace(t *testing.T, r *simrack.Rack, dir, script string) string {
	t.Helper()
	s := r.Sled(1)
	tr := watch{Pid: s.Pid(), Dir: s.Dir, Print: filepath.Join(dir, "sled-2.strace")}.start(t)
	if err := rotate(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	movedTo(t, r, committed(t, r))
	_ = tr.in.Close()
	if _, err := s.Client().Status(t.Context()); err != nil {
		t.Fatal(err)
	}
	tr.end()
	lines := strings.Split(strings.TrimSpace(script), "\n")
	return lines[len(lines)-1]
}

// printer writes calls as strace does, each in two lines.
type printer struct{ out *os.File }

func (p printer) traced(c ptrace.Call) bool {
	return slices.Contains([]uint64{unix.SYS_FSYNC, unix.SYS_WRITE, unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2}, c.Number)
}

func (p printer) entry(c ptrace.Call) {
	if !p.traced(c) {
		return
	}
	fd := func(i int) string { return fmt.Sprintf("%d<%s>", c.Args[i], c.FD(c.Args[i])) }
	var args string
	switch c.Number {
	case unix.SYS_WRITE:
		to, n := fd(0), int(c.Args[2])
		data := c.Memory(c.Args[1], min(n, 64))
		switch {
		case !strings.Contains(to, "<socket:"):
		case len(data) > 0 && data[0] == 0x80: // of the TPM
			to = strings.Replace(to, "socket:", "UNIX-STREAM:", 1)
		default:
			to = strings.Replace(to, "socket:", "TCP:", 1)
		}
		args = fmt.Sprintf("%s, \"%s\"..., %d", to, escape(data), n)
	case unix.SYS_FSYNC:
		args = fd(0)
	default:
		args = fmt.Sprintf("%s, %q, %s, %q", fd(0), c.Text(c.Args[1]), fd(2), c.Text(c.Args[3]))
	}
	_, _ = fmt.Fprintf(p.out, "%d 00:00:00.0 %s(%s <unfinished ...>\n", c.TID, c.Name(), args)
}

func (p printer) exit(c ptrace.Call) {
	if p.traced(c) {
		_, _ = fmt.Fprintf(p.out, "%d 00:00:00.0 <... %s resumed>) = %d\n", c.TID, c.Name(), c.Result)
	}
}

// escape writes bytes as C does, in the shortest form.
func escape(b []byte) string {
	var out strings.Builder
	for i, c := range b {
		switch {
		case c == '\n':
			out.WriteString(`\n`)
		case c == '"' || c == '\\':
			out.WriteString("\\" + string(c))
		case c >= ' ' && c <= '~':
			out.WriteByte(c)
		case i+1 < len(b) && b[i+1] >= '0' && b[i+1] <= '9':
			_, _ = fmt.Fprintf(&out, `\%03o`, c)
		default:
			_, _ = fmt.Fprintf(&out, `\%o`, c)
		}
	}
	return out.String()
}

// step is one call of a trace: what it does, and the lines at which it began and ended.
type step struct {
	what        string // "mark", "write A", "sync A", "rename A", "folder A" (of copy A, or B), "count", "send"
	text        string // of a mark
	begin, over int
}

var (
	callLine    = regexp.MustCompile(`^(?:\[pid +)?(\d+)\]?\s+[\d:.]+ (\w+)\((.*)$`)
	resumedLine = regexp.MustCompile(`^(?:\[pid +)?(\d+)\]?\s+[\d:.]+ <\.\.\. (\w+) resumed>`)
	markText    = regexp.MustCompile(`/trace>, "((?:save|frame) [^"\\]*)`)
)

// parseTrace reads what the recipe prints.
func parseTrace(text string) (out []step) {
	open := map[string]int{} // by thread: index in out of what has not ended
	for i, line := range strings.Split(text, "\n") {
		if m := resumedLine.FindStringSubmatch(line); m != nil {
			if k, ok := open[m[1]]; ok {
				out[k].over = i
				delete(open, m[1])
			}
			continue
		}
		m := callLine.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		s := step{begin: i, over: i}
		s.what, s.text = classify(m[2], m[3])
		if s.what == "" {
			continue
		}
		out = append(out, s)
		if strings.Contains(line, "<unfinished") {
			open[m[1]] = len(out) - 1
		}
	}
	return out
}

func classify(call, args string) (what, text string) {
	side := ""
	switch {
	case strings.Contains(args, "/state-a"):
		side = " A"
	case strings.Contains(args, "/state-b"):
		side = " B"
	}
	ledger := strings.Contains(args, "ledger.sv")
	switch {
	case markText.MatchString(args):
		return "mark", markText.FindStringSubmatch(args)[1]
	case strings.HasPrefix(call, "rename") && ledger && side != "":
		return "rename" + side, ""
	case call == "fsync" && ledger:
		return "sync" + side, ""
	case call == "fsync" && side != "" && !strings.Contains(args, ".tmp"):
		return "folder" + side, ""
	case call == "write" && ledger:
		return "write" + side, ""
	case strings.Contains(args, "<UNIX") && strings.Contains(args, `\0\0\0014\1\200`):
		return "count", ""
	case strings.Contains(args, "<TCP") && strings.Contains(args, `"\27\3\3`):
		return "send", ""
	}
	return "", ""
}

// saveOrder is what one save consists of, each step after the end of the one before.
func saveOrder() []string {
	return []string{"write A", "sync A", "rename A", "folder A", "write B", "sync B", "rename B", "folder B", "count"}
}

// checkOrder reports the first thing in a trace that is not as ledger.md says: a save that lacks a step or has it too
// early, a frame during a save of the node's state, a first acknowledgement or share without a save before it.
func checkOrder(calls []step) error {
	var saves int // of the node's state, done
	var of string // what is being saved
	var next int  // index in saveOrder
	var last int  // line at which the step before was over
	seen := map[string]bool{}
	for i, s := range calls {
		bad := func(format string, args ...any) error {
			return fmt.Errorf("line %d: %s", s.begin+1, fmt.Sprintf(format, args...))
		}
		order := saveOrder()
		var frame, epoch string
		switch {
		case s.what == "mark" && strings.HasPrefix(s.text, "save begin of="):
			of, next, last = strings.TrimPrefix(s.text, "save begin of="), 0, s.over
		case s.what == "mark" && strings.HasPrefix(s.text, "save done"):
			if next != len(order) {
				return bad("a save of %s is done without %q", of, order[next:])
			}
			if of == "quorum" {
				saves++
			}
			of = ""
		case s.what == "mark":
			if n, _ := fmt.Sscanf(s.text, "frame %s epoch=%s", &frame, &epoch); n != 2 {
				return bad("mark %q", s.text)
			}
			if of == "quorum" {
				return bad("frame %s during a save", frame)
			}
			if want := map[string]int{"prepare_ack": 1, "share": 1, "get_share": 2}[frame]; epoch == "2" && saves < want {
				return bad("frame %s after %d saves, want %d", frame, saves, want)
			}
			if !slices.ContainsFunc(calls[i:], func(n step) bool { return n.what == "send" }) {
				return bad("nothing is sent after the mark of %s", frame)
			}
			if epoch == "2" {
				seen[frame] = true
			}
		case of != "" && next < len(order) && s.what == order[next]:
			if s.begin <= last {
				return bad("%s begins before the step ahead of it is over", s.what)
			}
			next, last = next+1, s.over
		}
	}
	if !seen["prepare_ack"] && !seen["prepare"] || saves < 2 {
		return fmt.Errorf("have frames %v after %d saves, want prepare_ack (or the coordinator's prepare) and 2", seen, saves)
	}
	return nil
}

// spoilers make traces of daemons that do something too early, or not at all.
var spoilers = map[string]func([]step) []step{
	"no counter step":   func(c []step) []step { return slices.DeleteFunc(c, func(s step) bool { return s.what == "count" }) },
	"file not forced":   func(c []step) []step { return slices.DeleteFunc(c, func(s step) bool { return s.what == "sync A" }) },
	"folder not forced": func(c []step) []step { return slices.DeleteFunc(c, func(s step) bool { return s.what == "folder B" }) },
	"frame before its save": func(c []step) []step {
		i := slices.IndexFunc(c, func(s step) bool { return strings.HasPrefix(s.text, "frame prepare") })
		if i < 0 {
			return nil
		}
		frame := c[i]
		frame.text = strings.Replace(frame.text, "frame prepare ", "frame prepare_ack ", 1)
		return append([]step{frame}, c...)
	},
}
