//go:build linux

package simrack_test

import (
	"bufio"
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	simrack "github.com/sledvault/sledvault/hwtest/sim/rack"
	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/reason"
)

// segment is a piece of a process's memory.
type segment struct {
	at    uint64
	flags elf.ProgFlag
	data  []byte
}

// block is the unit in which memory is read; blocks of zeros are left out.
const block = 1 << 18

// segments reads what a process has mapped and may read. Pages that nobody may read, those of memfd_secret, are left out.
func segments(pid int) (out []segment, err error) {
	maps, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return nil, err
	}
	defer func() { _ = maps.Close() }()
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return nil, err
	}
	defer func() { _ = mem.Close() }()
	buf := make([]byte, block)
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		var from, to uint64
		var mode string
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x %s", &from, &to, &mode); err != nil || mode[0] != 'r' {
			continue
		}
		flags := elf.PF_R
		if mode[1] == 'w' {
			flags |= elf.PF_W
		}
		if mode[2] == 'x' {
			flags |= elf.PF_X
		}
		more := false // the last segment ends where this block begins
		for ; from < to; from += block {
			n, _ := mem.ReadAt(buf[:min(block, to-from)], int64(from))
			switch {
			case len(bytes.TrimLeft(buf[:n], "\x00")) == 0:
				more = false
			case more: // a key may lie across
				last := &out[len(out)-1]
				last.data = append(last.data, buf[:n]...)
			default:
				out, more = append(out, segment{from, flags, bytes.Clone(buf[:n])}), true
			}
		}
	}
	return out, nil
}

// dump writes a core file of a process that goes on, as gcore does: an ELF file with its memory in segments. It holds more
// than the kernel's own: pages of files, too.
func dump(pid int, path string) error {
	list, err := segments(pid)
	if err != nil {
		return err
	}
	machine := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}[runtime.GOARCH]
	head, entry := uint64(binary.Size(elf.Header64{})), uint64(binary.Size(elf.Prog64{}))
	h := elf.Header64{
		Type: uint16(elf.ET_CORE), Machine: uint16(machine), Version: uint32(elf.EV_CURRENT), Phoff: head,
		Ehsize: uint16(head), Phentsize: uint16(entry), Phnum: uint16(len(list)),
	}
	copy(h.Ident[:], elf.ELFMAG)
	h.Ident[elf.EI_CLASS], h.Ident[elf.EI_DATA], h.Ident[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)
	var file bytes.Buffer
	errs := []error{binary.Write(&file, binary.LittleEndian, h)}
	at := head + entry*uint64(len(list))
	for _, s := range list {
		n := uint64(len(s.data))
		errs = append(errs, binary.Write(&file, binary.LittleEndian, elf.Prog64{
			Type: uint32(elf.PT_LOAD), Flags: uint32(s.flags), Off: at, Vaddr: s.at, Filesz: n, Memsz: n, Align: 1,
		}))
		at += n
	}
	for _, s := range list {
		file.Write(s.data)
		clear(s.data)
	}
	errs = append(errs, os.WriteFile(path, file.Bytes(), 0o600))
	clear(file.Bytes())
	return errors.Join(errs...)
}

// cores writes a core file of a daemon and makes sure that it is one.
func cores(t *testing.T, s *simrack.Sled, dir string) {
	t.Helper()
	path := filepath.Join(dir, s.Name)
	if err := dump(s.Pid(), path); err != nil {
		t.Fatal(err)
	}
	f, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	loads, writable := 0, uint64(0)
	for _, p := range f.Progs {
		if p.Type == elf.PT_LOAD {
			loads++
		}
		if p.Flags&elf.PF_W != 0 {
			writable += p.Filesz
		}
	}
	if f.Type != elf.ET_CORE || loads < 5 || writable < 1<<20 {
		t.Errorf("%s: type %v, %d segments, %d bytes that can be written: no core file", path, f.Type, loads, writable)
	}
}

// abort kills a daemon with the signals that leave a core file where one is allowed. None is: the limit is hard, and the
// process says of itself that it must not be dumped, which also holds where a program is given the core.
func abort(t *testing.T, s *simrack.Sled) {
	t.Helper()
	st, err := s.Client().Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"no-core-files", "not-dumpable"} {
		if i := slices.IndexFunc(st.Hardening, func(h api.Hardening) bool { return h.Name == want }); i < 0 || !st.Hardening[i].OK {
			t.Errorf("%s: %s is not in force: %+v", s.Name, want, st.Hardening)
		}
	}
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", s.Pid()))
	if err != nil {
		t.Fatal(err)
	}
	if i := strings.Index(string(limits), "Max core file size"); i < 0 || !slices.Equal(strings.Fields(string(limits[i:]))[4:6], []string{"0", "0"}) {
		t.Errorf("%s: core files are allowed: %s", s.Name, limits)
	}
	leavesCore(t)
	for _, sig := range []syscall.Signal{syscall.SIGABRT, syscall.SIGSEGV, syscall.SIGQUIT} {
		pid := s.Pid()
		cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
		if err != nil {
			t.Fatal(err)
		}
		before, err := filepath.Glob(filepath.Join(cwd, "core*"))
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(pid, sig); err != nil {
			t.Fatal(err)
		}
		if err := s.AwaitPid(t.Context(), func(now int) bool { return now != 0 && now != pid }); err != nil {
			t.Fatalf("%v: %v", sig, err)
		}
		if _, err := s.Await(t.Context(), "back", func(st api.Status) bool { return st.Boot.Step == "done" }); err != nil {
			t.Fatal(err)
		}
		after, err := filepath.Glob(filepath.Join(cwd, "core*"))
		if err != nil || !slices.Equal(before, after) {
			t.Errorf("%s: %v: core files %q, before %q (%v)", s.Name, sig, after, before, err)
		}
	}
}

// leavesCore is the control: a process that does not mind leaves a core file on such a machine. Where the kernel gives
// cores to a program there is nothing to see.
func leavesCore(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "sh", "-c", "ulimit -c unlimited && kill -SEGV $$")
	cmd.Dir = dir
	err := cmd.Run()
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok {
		t.Fatalf("control: have %v, want a death by SIGSEGV", err)
	}
	pattern, _ := os.ReadFile("/proc/sys/kernel/core_pattern")
	t.Logf("control: a process without our measures: core %v, pattern %q", exit.Sys().(syscall.WaitStatus).CoreDump(), bytes.TrimSpace(pattern))
	if left, err := os.ReadDir(dir); exit.Sys().(syscall.WaitStatus).CoreDump() && strings.HasPrefix(string(pattern), "core") && (err != nil || len(left) == 0) {
		t.Errorf("control: no core file is left in %s (%v)", dir, err)
	}
}

// TestCoreAfterDeadline: a sled one of whose disks is away gives the rack secret up after the deadline. A core file taken
// then holds neither that disk's key nor another's.
func TestCoreAfterDeadline(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Log("not root: a daemon's memory is closed to us, and to everybody like us")
		return
	}
	r := newRackWith(t, simrack.Options{Deadline: 500 * time.Millisecond})
	play(t, r, simrack.SceneInit)
	keys := diskKeys(t, r)
	s := r.Sled(1)
	disk := s.Disks[0].Path
	if err := errors.Join(s.PowerOff(), os.Rename(disk, disk+".away"), s.PowerCycle()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Await(t.Context(), "past its deadline", func(st api.Status) bool {
		return slices.ContainsFunc(st.Reasons, func(e reason.Entry) bool { return e.Code == "disk-locked" }) && st.Boot.SinceMS > 1000
	}); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, o := range r.Sleds() {
		cores(t, o, dir)
	}
	var all [][]byte
	for _, k := range keys {
		all = append(all, k)
	}
	if found := search(t, dir, all); len(found) > 0 {
		t.Errorf("keys in core files after the deadline: %q", found)
	}
	if err := os.WriteFile(filepath.Join(dir, "planted"), keys[s], 0o600); err != nil {
		t.Fatal(err)
	}
	if found := search(t, dir, all); len(found) == 0 {
		t.Error("control: a planted key is not found")
	}
}
