//go:build linux

package simrack_test

import (
	"bytes"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	simrack "github.com/sledvault/sledvault/hwtest/sim/rack"
	"github.com/sledvault/sledvault/internal/rig"
	"github.com/sledvault/sledvault/vault/api"
)

// searchPlaces looks for the keys of disks wherever daemons that opened them could have left them: state folders, logs,
// TPM logs, everything else in the rack's folder, loopback traffic, core files. Copies that are planted in each place are
// found by the same search, and nothing else is.
func searchPlaces(t *testing.T, r *simrack.Rack, lo *loopback, keys map[*simrack.Sled][]byte) {
	t.Helper()
	all := slices.Collect(maps.Values(keys))
	dumps := t.TempDir()
	for _, s := range r.Sleds() {
		if os.Geteuid() == 0 {
			cores(t, s, dumps)
		}
		if s == r.Sled(0) {
			abort(t, s)
		}
		raw, err := s.Client().StatusJSON(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(s.Dir, "status.json"), raw, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, must := range []string{s.Log, s.TPMLog} {
			if fi, err := os.Stat(must); err != nil || fi.Size() == 0 {
				t.Errorf("%s: nothing to search (%v)", must, err)
			}
		}
	}
	places := map[string]string{"the rack's folder": r.Dir, "core files": dumps}
	if dir := lo.stop(t, keys[r.Sled(0)]); dir != "" {
		places["traffic"] = dir
	}
	s, planted := r.Sled(0), map[string]int{}
	for _, dir := range []string{s.State[0], s.State[1], s.Dir, s.TPMDir, dumps} {
		path := filepath.Join(dir, "planted")
		planted[path] = 0
		var b []byte
		for _, n := range needles(keys[s]) {
			b = slices.Concat(b, []byte("key="), n, []byte("\n"))
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for place, dir := range places {
		for _, f := range search(t, dir, all) {
			_, path, _ := strings.Cut(f, " in ")
			if _, ours := planted[path]; ours {
				planted[path]++
			} else {
				t.Errorf("%s: %s", place, f)
			}
		}
	}
	for path, n := range planted {
		if want := len(needles(keys[s])); n != want {
			t.Errorf("control: %s: have %d forms of the key found, want %d", path, n, want)
		}
		if err := os.Remove(path); err != nil {
			t.Error(err)
		}
	}
}

// TestKeysOnHeap: the same search finds the keys in daemons that were built to leave them there. Such a daemon says so
// everywhere, and one that carries a version, as packages do, does not start.
func TestKeysOnHeap(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Log("not root: a daemon's memory is closed to us, and to everybody like us")
		return
	}
	dir := t.TempDir()
	daemon, packaged := filepath.Join(dir, "sledvaultd"), filepath.Join(dir, "packaged")
	heapDaemon(t, daemon, "devel")
	heapDaemon(t, packaged, "1.0")
	r := newRackOf(t, daemon)
	out, err := exec.CommandContext(t.Context(), packaged, "--config", r.Sled(0).Config, "--check-config").CombinedOutput()
	if err == nil || !bytes.Contains(out, []byte("heapsecrets")) {
		t.Errorf("a packaged daemon with secrets on the heap: have %v, %s; want a refusal that names the tag", err, out)
	}
	play(t, r, simrack.SceneInit)
	keys := diskKeys(t, r)
	play(t, r, simrack.SceneColdBoot) // as in TestKeysLeaveMemory
	for _, s := range r.Sleds() {
		st, err := s.Await(t.Context(), "done", func(st api.Status) bool { return st.Boot.Step == "done" })
		if err != nil {
			t.Fatal(err)
		}
		log, err := os.ReadFile(s.Log)
		if err != nil || !bytes.Contains(log, []byte("RELAXED")) || !bytes.Contains(log, []byte("heap-secrets")) || !slices.Contains(st.Relaxed, "heap-secrets") {
			t.Errorf("%s: have relaxations %q (%v), want heap-secrets there and in the log", s.Name, st.Relaxed, err)
		}
		found, err := scan(s.Pid(), needles(keys[s]))
		if err != nil || found["raw, part 1"] == 0 || found["raw, part 2"] == 0 {
			t.Errorf("%s: control: its key is not found in memory: %v, %v", s.Name, found, err)
		}
		cores(t, s, dir)
	}
	for _, s := range r.Sleds() {
		if found := search(t, dir, [][]byte{keys[s]}); !strings.Contains(strings.Join(found, "\n"), filepath.Join(dir, s.Name)) {
			t.Errorf("%s: control: its key is not found in its core file: %q", s.Name, found)
		}
	}
}

// heapDaemon builds a daemon that never wipes a secret.
func heapDaemon(t *testing.T, path, version string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-tags", "heapsecrets", "-ldflags", "-X main.version="+version,
		"-o", path, "../../../cmd/sledvaultd")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v: %s", err, out)
	}
}

// newRackOf makes a rack of three sleds with a daemon of the test's own. Nothing runs yet.
func newRackOf(t *testing.T, daemon string) *simrack.Rack {
	t.Helper()
	return newRackWith(t, simrack.Options{Daemon: daemon})
}

// newRackWith makes a rack of three sleds. Nothing runs yet.
func newRackWith(t *testing.T, o simrack.Options) *simrack.Rack {
	t.Helper()
	rig.Need(t, "swtpm", "cryptsetup")
	programs.build(t)
	o.Sleds, o.Command, o.DiskSize, o.LogLevel = 3, filepath.Join(programs.dir, "sledvault"), 40<<20, "debug"
	if o.Daemon == "" {
		o.Daemon = filepath.Join(programs.dir, "sledvaultd")
	}
	r, err := simrack.New(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeRack(t, r) })
	return r
}

// diskKeys asks every sled for the key of its disk.
func diskKeys(t *testing.T, r *simrack.Rack) map[*simrack.Sled][]byte {
	t.Helper()
	keys := map[*simrack.Sled][]byte{}
	for _, s := range r.Sleds() {
		k, err := s.Key(t.Context(), s.Disks[0].ID)
		if err != nil {
			t.Fatal(err)
		}
		if err := k.Use(func(b []byte) error { keys[s] = bytes.Clone(b); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	return keys
}
