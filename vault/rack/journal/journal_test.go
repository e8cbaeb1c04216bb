package journal_test

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/rack"
	"github.com/sledvault/sledvault/vault/rack/journal"
	"github.com/sledvault/sledvault/vault/reason"
)

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// states is one state for each phase of a change.
func states(tb testing.TB) map[string]rack.State {
	tb.Helper()
	begin := func() rack.State {
		s := rack.State{Rack: ident.RackID{1, 2, 3}, Highest: 4}
		var members []ident.Baseboard
		for _, n := range []string{"1", "2", "3"} {
			members = append(members, ident.Baseboard{Part: "913-0000019", Serial: n})
		}
		must(tb, s.BeginInit(members, 2))
		return s
	}
	out := map[string]rack.State{"empty": {}, "preparing": begin()}
	decided := begin()
	cfg := &quorum.Configuration{RackID: decided.Rack, Epoch: 5, Coordinator: decided.Change.Coordinator, Threshold: 2}
	for i, m := range decided.Change.Members {
		cfg.Members = append(cfg.Members, quorum.Member{ID: m, ShareDigest: quorum.Digest{byte(i + 1)}})
	}
	_, err := decided.Change.Prepared(cfg, decided.Change.Members)
	must(tb, err)
	must(tb, decided.Change.Decide(cfg, &quorum.Certificate{RackID: decided.Rack, Epoch: 5, ConfigDigest: quorum.Digest{7}, Signature: quorum.Signature{8}}))
	decided.Change.CommittedBy(decided.Change.Members[1])
	out["decided"] = decided
	aborted := begin()
	must(tb, aborted.Change.Abort())
	out["aborted"] = aborted
	return out
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	for name, want := range states(t) {
		dir := t.TempDir()
		j, st, err := journal.Open(dir)
		must(t, err)
		if !reflect.DeepEqual(st, rack.State{}) {
			t.Errorf("%s: a new folder has state %+v", name, st)
		}
		must(t, j.Save(want))
		must(t, j.Close())
		j, have, err := journal.Open(dir)
		must(t, err)
		must(t, j.Close())
		if !equal(t, have, want) {
			t.Errorf("%s: have %+v, want %+v", name, have, want)
		}
		peeked, err := journal.Peek(dir)
		must(t, err)
		if !equal(t, peeked, want) {
			t.Errorf("%s: peek: have %+v", name, peeked)
		}
		fi, err := os.Stat(filepath.Join(dir, "journal.json"))
		must(t, err)
		if fi.Mode().Perm() != 0o600 {
			t.Errorf("have mode %v", fi.Mode())
		}
	}
}

// equal compares what is written: an empty list and none are the same.
func equal(t *testing.T, a, b rack.State) bool {
	t.Helper()
	ja, err := json.Marshal(a)
	must(t, err)
	jb, err := json.Marshal(b)
	must(t, err)
	if a.Change == nil || b.Change == nil {
		return a.Change == b.Change && a.Highest == b.Highest
	}
	return bytes.Equal(ja, jb) && reflect.DeepEqual(a.Change.Config, b.Change.Config) && reflect.DeepEqual(a.Change.Certificate, b.Change.Certificate)
}

// TestSweep: what a killed command left of a write is gone when the next one begins; other files stay.
func TestSweep(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, name := range []string{".tmp-123", "rack.toml"} {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600))
	}
	j, _, err := journal.Open(dir)
	must(t, err)
	must(t, j.Close())
	if left, err := filepath.Glob(filepath.Join(dir, "*")); err != nil || len(left) != 2 { // with the lock
		t.Errorf("have %q (%v)", left, err)
	}
	if _, err := os.Stat(filepath.Join(dir, ".tmp-123")); err == nil {
		t.Error("a file that was cut off is left")
	}
}

func TestLocked(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	j, _, err := journal.Open(dir)
	must(t, err)
	_, _, err = journal.Open(dir)
	if reason.CodeOf(err) != journal.CodeLocked || reason.RemedyOf(err) != reason.Retry || reason.HintOf(err) == "" {
		t.Errorf("second controller: have %v", err)
	}
	if _, err := journal.Peek(dir); err != nil {
		t.Errorf("status beside a controller: %v", err)
	}
	must(t, j.Close())
	j, _, err = journal.Open(dir)
	must(t, err)
	must(t, j.Close())
}

// TestDamaged: whatever happened to the file, it is refused by name and never taken for an empty journal.
func TestDamaged(t *testing.T) {
	t.Parallel()
	good := saved(t, states(t)["decided"])
	cases := map[string][]byte{
		"empty file":    {},
		"zeroes":        make([]byte, len(good)),
		"garbage":       []byte("}{"),
		"null":          []byte("null"),
		"empty object":  []byte("{}"),
		"version 2":     bytes.Replace(good, []byte(`"version": 1`), []byte(`"version": 2`), 1),
		"unknown field": bytes.Replace(good, []byte(`"version": 1`), []byte(`"version": 1, "x": 1`), 1),
		"epoch changed": bytes.Replace(good, []byte(`"highest_epoch": 5`), []byte(`"highest_epoch": 6`), 1),
		"phase changed": bytes.Replace(good, []byte(`"decided"`), []byte(`"aborted"`), 1),
		"more behind":   append(bytes.Clone(good), good...),
		"oversized":     bytes.Repeat([]byte{' '}, 5<<20),
	}
	for i := range 16 {
		cases["torn at "+string(rune('a'+i))] = good[:len(good)*i/16]
	}
	for name, b := range cases {
		dir := t.TempDir()
		path := filepath.Join(dir, "journal.json")
		must(t, os.WriteFile(path, b, 0o600))
		_, _, err := journal.Open(dir)
		if reason.CodeOf(err) != journal.CodeDamaged || reason.HintOf(err) == "" || !strings.Contains(err.Error(), "journal.json") {
			t.Errorf("%s: have %v", name, err)
		}
		if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, b) {
			t.Errorf("%s: the damaged file was touched", name)
		}
		// The lock is free again: the operator restores a backup and goes on.
		must(t, os.WriteFile(path, good, 0o600))
		j, _, err := journal.Open(dir)
		must(t, err)
		must(t, j.Close())
	}
}

func TestUnreadable(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	must(t, os.Mkdir(filepath.Join(dir, "journal.json"), 0o700))
	if _, _, err := journal.Open(dir); reason.CodeOf(err) != journal.CodeDamaged {
		t.Errorf("a folder in its place: have %v", err)
	}
	if _, _, err := journal.Open(filepath.Join(dir, "absent")); reason.CodeOf(err) != journal.CodeSave {
		t.Errorf("no folder: have %v", err)
	}
}

func saved(t *testing.T, st rack.State) []byte {
	t.Helper()
	dir := t.TempDir()
	j, _, err := journal.Open(dir)
	must(t, err)
	defer func() { must(t, j.Close()) }()
	must(t, j.Save(st))
	b, err := os.ReadFile(filepath.Join(dir, "journal.json"))
	must(t, err)
	return b
}

// recorder keeps the steps of a write in order, and fails one.
type recorder struct {
	steps []string
	fail  string
}

func (r *recorder) note(op string) error {
	r.steps = append(r.steps, op)
	if op == r.fail {
		return fs.ErrInvalid
	}
	return nil
}

// TestDurabilityOrder: written beside, synced, renamed, folder synced; and a failure at any step leaves the old file.
func TestDurabilityOrder(t *testing.T) {
	t.Parallel()
	order := []string{"write", "sync file", "rename", "sync folder"}
	for i, fail := range append([]string{""}, order...) {
		path := filepath.Join(t.TempDir(), "file")
		must(t, os.WriteFile(path, []byte("old"), 0o600))
		r := &recorder{fail: fail}
		err := journal.WriteFileSteps(path, []byte("new"), 0o600, r.note)
		if (err != nil) != (fail != "") {
			t.Errorf("fails at %q: have %v", fail, err)
		}
		want := order
		if fail != "" {
			want = order[:i]
		}
		if strings.Join(r.steps, ",") != strings.Join(want, ",") {
			t.Errorf("fails at %q: have %q, want %q", fail, r.steps, want)
		}
		b, err := os.ReadFile(path)
		must(t, err)
		if content := string(b); content != "old" && (fail == "write" || fail == "sync file" || fail == "rename") || content == "old" && (fail == "" || fail == "sync folder") {
			t.Errorf("fails at %q: file holds %q", fail, content)
		}
		left, err := os.ReadDir(filepath.Dir(path))
		must(t, err)
		if len(left) != 1 {
			t.Errorf("fails at %q: left behind %v", fail, left)
		}
	}
}

func TestSaveFails(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	j, _, err := journal.Open(dir)
	must(t, err)
	defer func() { must(t, j.Close()) }()
	must(t, os.RemoveAll(dir))
	if err := j.Save(rack.State{}); reason.CodeOf(err) != journal.CodeSave || reason.HintOf(err) == "" {
		t.Errorf("have %v", err)
	}
}

func FuzzLoad(f *testing.F) {
	for _, st := range states(f) {
		b, err := journal.Encode(st)
		must(f, err)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		st, err := journal.Decode(b)
		if err != nil {
			return
		}
		again, err := journal.Encode(st)
		must(t, err)
		back, err := journal.Decode(again)
		must(t, err)
		if !equal(t, st, back) {
			t.Errorf("have %+v, then %+v", st, back)
		}
	})
}
