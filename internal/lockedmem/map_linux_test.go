package lockedmem

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"unsafe"
)

// flags returns the kernel's flags of the mapping that holds b.
func flags(t *testing.T, b []byte) map[string]bool {
	t.Helper()
	raw, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	at, inside := uintptr(unsafe.Pointer(&b[0])), false
	for line := range strings.Lines(string(raw)) {
		var from, to uintptr
		if n, _ := fmt.Sscanf(line, "%x-%x ", &from, &to); n == 2 {
			inside = from <= at && at < to
		}
		if rest, ok := strings.CutPrefix(line, "VmFlags:"); ok && inside {
			out := map[string]bool{}
			for f := range strings.FieldsSeq(rest) {
				out[f] = true
			}
			return out
		}
	}
	t.Fatal("mapping not found")
	return nil
}

func TestAnonymousPagesAreMarked(t *testing.T) {
	t.Parallel()
	m, err := mapAnonymous(slabSize)
	if err != nil {
		t.Fatal(err)
	}
	f := flags(t, m.b)
	if !f["dd"] || !f["wf"] || f["lo"] != m.locked {
		t.Errorf("have %v, locked %v; want dd (not dumped), wf (wiped on fork), lo (locked) as reported", f, m.locked)
	}
	if err := m.unmap(); err != nil {
		t.Error(err)
	}
}

// Where the kernel has memfd_secret, its pages are locked, not dumped, not inherited, and unreadable from outside.
func TestSecretPages(t *testing.T) {
	t.Parallel()
	m, err := mapSecret(slabSize)
	if err != nil {
		t.Logf("memfd_secret: %v; the fallback is tested", err)
		if m, err = platformMapper()(slabSize); err != nil || m.kind != Mapped {
			t.Errorf("fallback: %v, %v", m.kind, err)
		}
		return
	}
	defer func() { _ = m.unmap() }()
	if f := flags(t, m.b); !f["dd"] || !f["lo"] || !f["dc"] {
		t.Errorf("have %v, want dd (not dumped), lo (locked), dc (not copied on fork)", f)
	}
	copy(m.b, "visible?")
	mem, err := os.Open("/proc/self/mem")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = mem.Close() }()
	got := make([]byte, 8)
	if _, err := mem.ReadAt(got, int64(uintptr(unsafe.Pointer(&m.b[0])))); err == nil || bytes.Equal(got, m.b[:8]) {
		t.Errorf("readable through /proc/self/mem: %q, %v", got, err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	if _, err := w.Write(m.b[:8]); err != nil || w.Close() != nil {
		t.Errorf("write from secret pages to a pipe: %v", err)
	}
	if _, err := r.Read(m.b[8:16]); err != nil || string(m.b[8:16]) != "visible?" {
		t.Errorf("read into secret pages: %v", err)
	}
}

// hardened makes the child process of TestHarden do the work, because it cannot be undone.
const hardened = "LOCKEDMEM_TEST_HARDEN"

func TestHarden(t *testing.T) {
	if os.Getenv(hardened) != "" {
		if err := Harden(); err != nil {
			t.Fatal(err)
		}
		for _, s := range Hardening() {
			fmt.Printf("step %s %v\n", s.Name, s.InForce)
		}
		return
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "-test.run=^TestHarden$", "-test.v")
	cmd.Env = append(os.Environ(), hardened+"=1")
	out, err := cmd.CombinedOutput()
	for _, want := range []string{"step no-core-files true", "step not-dumpable true"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("have %q (%v), want %q", out, err, want)
		}
	}
	for _, s := range Hardening() {
		if s.Name == "not-dumpable" && s.InForce {
			t.Error("the parent was hardened too, or the check is always true")
		}
		if s.Detail == "" {
			t.Errorf("%s: no detail", s.Name)
		}
	}
}
