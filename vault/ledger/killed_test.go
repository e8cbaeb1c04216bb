//go:build linux && !race

// The victims are processes of their own, in which no race detector would see anything.

package ledger

import (
	"bufio"
	"crypto/sha256"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"golang.org/x/sys/unix"

	"github.com/sledvault/sledvault/hwtest/ptrace"
	"github.com/sledvault/sledvault/hwtest/sim/swtpm"
	"github.com/sledvault/sledvault/internal/rig"
	"github.com/sledvault/sledvault/sealing"
	"github.com/sledvault/sledvault/tpm"
	"github.com/sledvault/sledvault/tpm/tpmtest"
)

// killEvery has the victims killed before every system call that a file, a socket or a process can notice, reads and all
// commands to the TPM included, and with every loss at each. Otherwise it is the calls that change a file or the counter.
var killEvery = flag.Bool("kill.every", false, "kill before every system call (make kill)")

// prey is a sled whose process is killed: what stays is its folders and its TPM.
type prey struct {
	t    *testing.T
	base string
	dirs [2]string
	tpm  *swtpm.Daemon
	pins sealing.Pins
	// floor is the highest value that was acknowledged or shown, top the highest that was tried.
	floor, top uint64
	points     map[string]int // system calls before which it was killed
}

func newPrey(t *testing.T) *prey {
	t.Helper()
	rig.Need(t, "swtpm")
	dir, err := os.MkdirTemp("", "sv-kill-") // the test's own folder has too long a path for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	d, err := swtpm.StartUnix(t.Context(), swtpm.Config{Dir: filepath.Join(dir, "tpm"), Socket: filepath.Join(dir, "tpm.sock")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Kill() })
	p := &prey{t: t, base: dir, dirs: [2]string{filepath.Join(dir, "a"), filepath.Join(dir, "b")}, tpm: d, points: map[string]int{}}
	for _, f := range p.dirs {
		if err := os.Mkdir(f, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	p.firmware()
	return p
}

// firmware boots, and lets go of the TPM, which serves one client.
func (p *prey) firmware() {
	p.t.Helper()
	bus, err := tpm.Open(p.t.Context(), tpm.Config{Device: p.tpm.Device()})
	if err != nil {
		p.t.Fatal(err)
	}
	for _, n := range sealing.DefaultPCRs() {
		tpmtest.Do(p.t, bus, func(t *tpm.Session) error { return t.ExtendPCR(n, sha256.Sum256([]byte("firmware"))) })
	}
	if err := bus.Close(); err != nil {
		p.t.Fatal(err)
	}
}

// enrolledPrey is a prey with a first state.
func enrolledPrey(t *testing.T) *prey {
	t.Helper()
	p := newPrey(t)
	if s, done := p.run("enrol", 0); !done || s.Lost == "" {
		t.Fatalf("not enrolled: %+v", s)
	}
	p.look()
	return p
}

// run has a victim do something with the next value and kills it before the n-th call that counts; 0 lets it live. It
// returns what the victim found, nil if it did not come so far, and whether it was done.
func (p *prey) run(op string, n int) (found *saw, done bool) {
	p.t.Helper()
	if op != "look" {
		p.top++
	}
	line, err := json.Marshal(job{op, p.top, p.dirs, p.tpm.Device(), p.pins})
	if err != nil {
		p.t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), victimEnv+"=1")
	var complaint strings.Builder
	cmd.Stderr = &complaint
	in, err := cmd.StdinPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	defer func() { _ = cmd.Wait() }()
	defer func() { _ = in.Close() }()
	lines := bufio.NewScanner(out)
	if !lines.Scan() { // it is there, and waits
		p.t.Fatalf("%s: the victim did not start: %s", op, complaint.String())
	}
	if n > 0 {
		tracer, err := ptrace.Attach(cmd.Process.Pid, p.killer(n), nil)
		if err != nil {
			_ = cmd.Process.Kill()
			p.t.Fatal(err)
		}
		defer func() {
			if _, err := tracer.Wait(); err != nil {
				p.t.Errorf("%s: %v", op, err)
			}
		}()
	}
	if _, err := fmt.Fprintf(in, "%s\n", line); err != nil {
		p.t.Fatal(err)
	}
	found, done = p.hear(lines)
	if !done && n == 0 {
		p.t.Fatalf("%s: the victim ended by itself: %s", op, complaint.String())
	}
	if !done && complaint.Len() > 0 {
		p.t.Fatalf("%s: the victim failed before call %d: %s", op, n, complaint.String())
	}
	return found, done
}

// hear reads a victim's lines until it is done or dead.
func (p *prey) hear(lines *bufio.Scanner) (found *saw, done bool) {
	for lines.Scan() {
		var s struct {
			saw
			stored
		}
		if err := json.Unmarshal(lines.Bytes(), &s); err != nil {
			p.t.Errorf("the victim says %q: %v", lines.Text(), err)
			continue
		}
		switch {
		case s.Done:
			return found, true
		case s.Pins.CounterName != nil:
			p.pins = s.Pins
		default:
			found = &s.saw
		}
	}
	return found, false
}

// killer kills before the n-th system call that counts.
func (p *prey) killer(n int) func(ptrace.Call) ptrace.Verdict {
	return func(c ptrace.Call) ptrace.Verdict {
		if c.Number == unix.SYS_WRITE && c.Args[0] == 1 { // it speaks
			if strings.HasPrefix(string(c.Memory(c.Args[1], 8)), `{"Done":`) {
				return ptrace.Leave
			}
			return ptrace.Go
		}
		if !p.counts(c) {
			return ptrace.Go
		}
		if n--; n > 0 {
			return ptrace.Go
		}
		p.points[p.point(c)]++
		return ptrace.Kill
	}
}

// counts reports whether a victim may be killed before the call.
func (p *prey) counts(c ptrace.Call) bool {
	to := c.FD(c.Args[0])
	switch {
	case c.Number == unix.SYS_WRITE && strings.HasPrefix(to, "anon_inode:"): // Go's scheduler wakes itself
		return false
	case c.Number == unix.SYS_READ && c.Args[0] == 0: // it waits
		return false
	case *killEvery:
		return c.Visible()
	case c.Number == unix.SYS_WRITE && strings.HasPrefix(to, "socket:"):
		return p.point(c) == "TPM2_NV_Increment"
	}
	return c.Lasting() && c.Number != unix.SYS_CONNECT && c.Number != unix.SYS_FLOCK
}

// point names a call for the record of where victims were killed.
func (p *prey) point(c ptrace.Call) string {
	if strings.HasPrefix(c.FD(c.Args[0]), "socket:") && c.Number == unix.SYS_WRITE {
		if h := c.Memory(c.Args[1], 10); len(h) == 10 && h[0] == 0x80 && tpm2.TPMCC(uint32(h[8])<<8|uint32(h[9])) == tpm2.TPMCCNVIncrement {
			return "TPM2_NV_Increment"
		}
		return "TPM command"
	}
	return strings.ReplaceAll(c.String(), p.base+"/", "")
}

// check holds what a victim found against what it must find.
func (p *prey) check(s *saw, after string) {
	p.t.Helper()
	switch {
	case s == nil:
		return // killed before it had opened its ledger
	case s.Lost != "":
		p.t.Fatalf("%s: %s", after, s.Lost)
	case s.Value < p.floor || s.Value > p.top:
		p.t.Fatalf("%s: have state %d, want %d to %d", after, s.Value, p.floor, p.top)
	}
	p.floor = s.Value
}

// look starts once, with nobody killing, and wants a whole ledger within the bounds.
func (p *prey) look() *saw {
	p.t.Helper()
	s, _ := p.run("look", 0)
	p.check(s, "look")
	if !s.Whole {
		p.t.Fatalf("not whole after a start: %+v", s)
	}
	return s
}

// TestKilledBetweenCalls kills a process of its own with SIGKILL before each system call of a start with a save, a TPM's
// commands included, and starts it again on what is left: the state is never older than what was acknowledged or shown
// before, never damaged, and both copies are repaired.
func TestKilledBetweenCalls(t *testing.T) {
	t.Parallel()
	for _, op := range []string{"save", "rekey", "set", "refresh"} {
		t.Run(op, func(t *testing.T) {
			t.Parallel()
			p := enrolledPrey(t)
			n := 1
			for done := false; !done; n++ {
				p.tidy()
				var s *saw
				s, done = p.run(op, n)
				if op == "refresh" { // stores no value
					p.top--
				}
				p.check(s, fmt.Sprintf("%s killed before call %d", op, n-1))
				if done && op != "refresh" {
					p.floor = p.top
				}
				if op == "set" && s != nil && s.Set < s.Value {
					t.Fatalf("the state names set %d, the folders hold set %d", s.Value, s.Set)
				}
			}
			p.look()
			p.covered(n, op)
		})
	}
}

// covered wants to have killed at every kind of step.
func (p *prey) covered(n int, op string) {
	p.t.Helper()
	want := []string{"openat ledger.sv.tmp", "write a/ledger.sv.tmp", "fsync a/ledger.sv.tmp", "renameat ledger.sv.tmp ledger.sv", "fsync a", "write b/ledger.sv.tmp", "fsync b"}
	if op != "refresh" {
		want = append(want, "TPM2_NV_Increment")
	}
	for _, w := range want {
		if p.points[w] == 0 {
			p.t.Errorf("never killed before %q: have %v", w, p.points)
		}
	}
	p.t.Logf("%s: killed before %d calls: %v", op, n-2, p.points)
}

// TestKilledWhileRepairing: the same, with one copy gone before each start: the start repairs it, and the save after it
// leaves a number out.
func TestKilledWhileRepairing(t *testing.T) {
	t.Parallel()
	p := enrolledPrey(t)
	for n, done := 1, false; !done; n++ {
		p.look() // both are whole
		if err := os.Remove(filepath.Join(p.dirs[n%2], LedgerFile)); err != nil {
			t.Fatal(err)
		}
		var s *saw
		s, done = p.run("save", n)
		p.check(s, "a start with one copy")
		if done {
			p.floor = p.top
		}
	}
	p.look()
	t.Logf("killed before: %v", p.points)
}

// TestKilledWhileObserving: observations are never older than what was stored or shown.
func TestKilledWhileObserving(t *testing.T) {
	t.Parallel()
	p := enrolledPrey(t)
	states := p.floor
	var floor uint64
	for n, done := 1, false; !done; n++ {
		var s *saw
		s, done = p.run("observe", n)
		if s != nil {
			if s.Lost != "" || s.Value != states || s.Release < floor || s.Release > p.top {
				t.Fatalf("killed before call %d: have %+v, want release %d to %d", n-1, s, floor, p.top)
			}
			floor = s.Release
		}
	}
	if s := p.look(); s.Release != p.top {
		t.Errorf("have release %d, want %d", s.Release, p.top)
	}
	if p.points["renameat observed.sv.tmp observed.sv"] < 2 {
		t.Errorf("killed before %v", p.points)
	}
}

// TestKilledBetweenCallsOfEnrolment: a sled that dies while it is enrolled has its first state or can be enrolled again.
func TestKilledBetweenCallsOfEnrolment(t *testing.T) {
	t.Parallel()
	p := newPrey(t)
	for n, done := 1, false; !done; n++ {
		pins := p.pins
		_, done = p.run("enrol", n)
		if !done {
			if s, _ := p.run("look", 0); s.Lost == "" { // its first state stands
				if s.Value != p.top || !s.Whole {
					t.Fatalf("killed before call %d: have %+v, want state %d", n, s, p.top)
				}
				if same(pins, p.pins) {
					t.Fatal("a state under the counter of before")
				}
			}
			p.wipe()
			if !*killEvery {
				continue // the commands to the TPM do not count
			}
			if _, ok := p.run("enrol", 0); !ok { // so that each round begins with a claim and no files
				t.Fatal("cannot be enrolled again")
			}
			p.wipe()
		}
	}
	p.floor = p.top
	p.look()
	if p.points["renameat ledger.sv.tmp ledger.sv"] < 2 || p.points["TPM2_NV_Increment"] == 0 {
		t.Errorf("killed before %v", p.points)
	}
}

// tidy brings the sled to where each round makes the same calls: both copies stand, and no write was cut off.
func (p *prey) tidy() {
	p.t.Helper()
	p.look()
	for _, d := range p.dirs {
		left, err := filepath.Glob(filepath.Join(d, "*.tmp"))
		if err != nil {
			p.t.Fatal(err)
		}
		for _, f := range left {
			if err := os.Remove(f); err != nil {
				p.t.Fatal(err)
			}
		}
	}
}

// wipe takes the state away.
func (p *prey) wipe() {
	p.t.Helper()
	for _, d := range p.dirs {
		if err := os.RemoveAll(d); err != nil {
			p.t.Fatal(err)
		}
		if err := os.Mkdir(d, 0o700); err != nil {
			p.t.Fatal(err)
		}
	}
}

// TestKilledWithLostMedia: after each kill one medium is lost and comes back, both are lost and come back, or old copies
// are put in the place of one or both.
func TestKilledWithLostMedia(t *testing.T) {
	t.Parallel()
	if !*killEvery {
		killedWith(t, losses())
		return
	}
	for _, l := range losses() {
		t.Run(l.name, func(t *testing.T) {
			t.Parallel()
			killedWith(t, []loss{l})
		})
	}
}

// loss is what happens to the media after a kill.
type loss struct {
	name string
	do   func(p *prey)
}

func losses() []loss {
	return []loss{
		{"A lost, back", func(p *prey) { p.returns(0) }},
		{"B lost, back", func(p *prey) { p.returns(1) }},
		{"A old", func(p *prey) { p.aged(0) }},
		{"B old", func(p *prey) { p.aged(1) }},
		{"both lost, back", (*prey).bothLost},
		{"both old", func(p *prey) { p.aged(0, 1) }},
	}
}

// killedWith kills a save before each of its calls, with one loss after the other.
func killedWith(t *testing.T, ls []loss) {
	t.Helper()
	p := enrolledPrey(t)
	for n, done := 1, false; !done; n++ {
		l := ls[n%len(ls)]
		p.keep()
		if _, ok := p.run("save", 0); !ok { // what is kept is older than this
			t.Fatal("not saved")
		}
		p.floor = p.top
		p.tidy()
		var s *saw
		s, done = p.run("save", n)
		p.check(s, l.name)
		if done {
			p.floor = p.top
		}
		l.do(p)
		p.look()
	}
	if p.points["renameat ledger.sv.tmp ledger.sv"] < 2 || p.points["TPM2_NV_Increment"] == 0 {
		t.Errorf("killed before %v", p.points)
	}
}

func (p *prey) kept(i int) string { return p.dirs[i] + ".kept" }

// keep copies both folders.
func (p *prey) keep() {
	p.t.Helper()
	for i, d := range p.dirs {
		if err := os.RemoveAll(p.kept(i)); err != nil {
			p.t.Fatal(err)
		}
		if err := os.CopyFS(p.kept(i), os.DirFS(d)); err != nil {
			p.t.Fatal(err)
		}
		p.modes(p.kept(i))
	}
}

// modes sets what CopyFS does not keep.
func (p *prey) modes(dir string) {
	p.t.Helper()
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.Chmod(path, 0o700)
		}
		return os.Chmod(path, 0o600)
	})
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p *prey) move(from, to string) {
	p.t.Helper()
	if err := os.Rename(from, to); err != nil {
		p.t.Fatal(err)
	}
}

// returns takes one medium away, has a save done without it, and puts it back as it was.
func (p *prey) returns(i int) {
	p.t.Helper()
	p.move(p.dirs[i], p.dirs[i]+".away")
	s, done := p.run("save", 0)
	p.check(s, "one medium lost")
	if !done || s.Whole {
		p.t.Fatalf("without a medium: done %v, %+v", done, s)
	}
	p.floor = p.top
	p.move(p.dirs[i]+".away", p.dirs[i])
}

// bothLost takes both media away: that is a lost seal, never a fresh start or an older state. Then they come back.
func (p *prey) bothLost() {
	p.t.Helper()
	for _, d := range p.dirs {
		p.move(d, d+".away")
	}
	if s, _ := p.run("look", 0); s.Lost == "" {
		p.t.Fatalf("both media lost: have %+v, want a lost seal", s)
	}
	for _, d := range p.dirs {
		p.move(d+".away", d)
	}
}

// aged puts the kept copies in the place of some, and wants them refused; if all are old, the fresh ones come back.
func (p *prey) aged(which ...int) {
	p.t.Helper()
	for _, i := range which {
		p.move(p.dirs[i], p.dirs[i]+".away")
		p.move(p.kept(i), p.dirs[i])
	}
	s, _ := p.run("look", 0)
	if len(which) == 1 {
		p.check(s, "one medium old") // and look repairs it
	} else if s.Lost == "" {
		p.t.Fatalf("both media old: have %+v, want a lost seal", s)
	}
	for _, i := range which {
		if len(which) == 1 {
			if err := os.RemoveAll(p.dirs[i] + ".away"); err != nil {
				p.t.Fatal(err)
			}
			continue
		}
		if err := os.RemoveAll(p.dirs[i]); err != nil {
			p.t.Fatal(err)
		}
		p.move(p.dirs[i]+".away", p.dirs[i])
	}
}
