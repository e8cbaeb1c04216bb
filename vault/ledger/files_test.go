package ledger

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/reason"
)

func TestForeignCopyIsKept(t *testing.T) {
	t.Parallel()
	other := newNode(t)
	other.cfg.Baseboard = ident.Baseboard{Part: "913-0000019", Serial: "OTHER"}
	if err := other.create(7).Close(); err != nil {
		t.Fatal(err)
	}
	theirs, err := os.ReadFile(filepath.Join(other.cfg.Dirs[0], LedgerFile))
	if err != nil {
		t.Fatal(err)
	}
	n := newNode(t)
	if err := n.create(1).Close(); err != nil {
		t.Fatal(err)
	}
	swapped := filepath.Join(n.cfg.Dirs[1], LedgerFile)
	if err := os.WriteFile(swapped, theirs, 0o600); err != nil {
		t.Fatal(err)
	}
	l, r := n.mustOpen(1)
	if r.Copies[1].State != CopyForeign || !r.Repaired[1] || !r.Skip {
		t.Errorf("report %+v", r)
	}
	kept, err := filepath.Glob(swapped + ".foreign-*")
	if err != nil || len(kept) != 1 {
		t.Fatalf("kept %v, %v", kept, err)
	}
	if b, err := os.ReadFile(kept[0]); err != nil || !bytes.Equal(b, theirs) {
		t.Errorf("another sled's copy was changed: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for _, d := range n.cfg.Dirs { // both swapped: not ours, and not new either
		if err := os.WriteFile(filepath.Join(d, LedgerFile), theirs, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, _, err := n.open(); !errors.Is(err, ErrLostSeal) || !strings.Contains(err.Error(), "OTHER") {
		t.Errorf("both foreign: %v", err)
	}
}

func TestFolderRefusals(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	l := n.create(1)
	if _, _, _, err := n.open(); reason.CodeOf(err) != CodeFolder || !errors.Is(err, errLocked) {
		t.Errorf("two processes: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	dir, file := n.cfg.Dirs[0], filepath.Join(n.cfg.Dirs[0], LedgerFile)
	elsewhere := filepath.Join(t.TempDir(), "copy")
	for name, c := range map[string]struct {
		do   func() error
		want CopyState
	}{
		"file writable by all":   {func() error { return os.Chmod(file, 0o666) }, CopyDamaged},
		"folder writable by all": {func() error { return os.Chmod(dir, 0o777) }, CopyNoMedium},
		"symbolic link":          {func() error { return errors.Join(os.Rename(file, elsewhere), os.Symlink(elsewhere, file)) }, CopyDamaged},
		"a folder as file":       {func() error { return errors.Join(os.Remove(file), os.Mkdir(file, 0o700)) }, CopyDamaged},
		"folder is a link":       {func() error { return errors.Join(os.RemoveAll(dir), os.Symlink(t.TempDir(), dir)) }, CopyNoMedium},
	} {
		if err := errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o700)); err != nil {
			t.Fatal(err)
		}
		if l, _ := n.mustOpen(1); l.Close() != nil {
			t.Fatal("close")
		}
		if err := c.do(); err != nil {
			t.Fatal(err)
		}
		l, _, r, err := n.open()
		if err != nil || r.Copies[0].State != c.want {
			t.Fatalf("%s: %v, report %+v", name, err, r)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		_ = os.Chmod(dir, 0o700)
	}
	for _, c := range []Config{{}, {Dirs: [2]string{"/a", "/a"}}, {Dirs: [2]string{"/a", "/b"}}} {
		if _, _, _, err := Open(t.Context(), c, nil); err == nil {
			t.Errorf("config %+v was taken", c.Dirs)
		}
	}
}

func TestEnrolmentFiles(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	set := func(generation byte) []byte { return []byte{0xa2, 0x00, 0x61, 'x', 0x02, generation} } // {0: "x", 2: generation}
	if _, err := ReadEnrolment(n.cfg.Dirs); !errors.Is(err, ErrAbsent) {
		t.Errorf("none: %v", err)
	}
	if err := WriteEnrolment(n.cfg.Dirs, set(1)); err != nil {
		t.Fatal(err)
	}
	l := n.create(1)
	if err := l.SaveSet(t.Context(), set(2), state(2)); err != nil {
		t.Fatal(err)
	}
	if b, err := ReadEnrolment(n.cfg.Dirs); err != nil || !bytes.Equal(b, set(2)) {
		t.Errorf("%x, %v", b, err)
	}
	if err := os.WriteFile(filepath.Join(n.cfg.Dirs[0], EnrolmentFile), set(1), 0o600); err != nil {
		t.Fatal(err)
	}
	all, err := ReadEnrolments(n.cfg.Dirs)
	if err != nil || len(all) != 2 || !bytes.Equal(all[0], set(2)) {
		t.Errorf("the newer is not the first: %x, %v", all, err)
	}
	if err := os.WriteFile(filepath.Join(n.cfg.Dirs[0], EnrolmentFile), []byte("damage"), 0o600); err != nil {
		t.Fatal(err)
	}
	if b, err := ReadEnrolment(n.cfg.Dirs); err != nil || !bytes.Equal(b, set(2)) {
		t.Errorf("beside damage: %x, %v", b, err)
	}
	missing := [2]string{filepath.Join(n.cfg.Dirs[0], "x"), filepath.Join(n.cfg.Dirs[1], "x")}
	if _, err := ReadEnrolment(missing); reason.CodeOf(err) != CodeEnrolment {
		t.Errorf("no media: %v", err)
	}
	if err := l.SaveSet(t.Context(), nil, state(3)); err == nil {
		t.Error("an empty set was saved")
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	n.mustOpen(2)
}

func TestRefresh(t *testing.T) {
	t.Parallel()
	n := newNode(t).onDisks()
	l := n.create(1)
	life, count := n.life.(*fakeTPM), n.life.value()
	writes := 0
	n.disks[0].fail = func(op, _ string) error {
		if op == "write" {
			writes++
		}
		return nil
	}
	for i, measured := range []bool{false, true} {
		life.measured = measured
		if err := l.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		if writes != i {
			t.Errorf("measured %v: %d writes, want %d", measured, writes, i)
		}
	}
	n.disks[0].fail = nil
	if n.life.value() != count || l.Status().Sequence != count {
		t.Errorf("a refresh moved the counter to %d", n.life.value())
	}
	n.powerCut(l)
	l, r := n.mustOpen(1)
	if len(r.Notes) != 0 {
		t.Errorf("report %+v", r)
	}
	for i, d := range n.disks { // one medium is enough
		d.fail = func(op, _ string) error {
			if op == "write" {
				return errors.New("broken")
			}
			return nil
		}
		err := l.Refresh(t.Context())
		if (i == 0) != (err == nil) {
			t.Errorf("%d broken media: %v", i+1, err)
		}
	}
}

func TestObserved(t *testing.T) {
	t.Parallel()
	n := newNode(t).onDisks()
	l := n.create(1)
	counter := n.life.value()
	var o Observed
	for i := range maxReleases + 5 {
		o.AddRelease(Release{Disk: fmt.Sprint("disk ", i), UID: 7, PID: 8, Role: "unlock", BootMS: int64(i)})
	}
	o.AddAlarm(Alarm{Code: "some-code", Text: strings.Repeat("ü", maxText), BootMS: 5})
	o.See("aa", Seen{Sequence: 5, Generation: 4, ResetCount: 3, RestartCount: 2})
	o.See("aa", Seen{Sequence: 4, Generation: 9, ResetCount: 2, RestartCount: 8})
	o.See("aa", Seen{ResetCount: 4, RestartCount: 1})
	if want := (Seen{Sequence: 5, Generation: 9, ResetCount: 4, RestartCount: 1}); o.Peers["aa"] != want {
		t.Errorf("seen %+v, want %+v", o.Peers["aa"], want)
	}
	o.Reasons = []Reason{{Code: "x", Peer: "p", Count: 3, Last: "why"}}
	if err := l.SaveObserved(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if n.life.value() != counter || l.Status().Sequence != counter {
		t.Error("observations moved the counter")
	}
	n.powerCut(l)
	l, _ = n.mustOpen(1)
	got := l.Observed()
	if len(got.Releases) != maxReleases || got.Releases[0].Disk != "disk 5" || got.Peers["aa"] != o.Peers["aa"] || len(got.Alarms) != 1 || !slices.Equal(got.Reasons, o.Reasons) {
		t.Errorf("have %d releases, peers %v, alarms %d, reasons %v", len(got.Releases), got.Peers, len(got.Alarms), got.Reasons)
	}
	if len(got.Alarms[0].Text) > maxText || strings.ContainsRune(got.Alarms[0].Text, 0xfffd) {
		t.Errorf("text of %d bytes", len(got.Alarms[0].Text))
	}
	// The newer of two files counts; a damaged one is passed over; none at all starts empty, and is no reason to stop.
	got.AddAlarm(Alarm{Code: "newer"})
	n.disks[0].fail = func(op, name string) error {
		if op == "write" && strings.HasPrefix(name, ObservedFile) {
			return errors.New("broken")
		}
		return nil
	}
	if err := l.SaveObserved(t.Context(), got); err != nil {
		t.Fatal(err)
	}
	n.disks[0].fail = nil
	n.powerCut(l)
	l, _ = n.mustOpen(1)
	if a := l.Observed().Alarms; len(a) != 2 || a[1].Code != "newer" {
		t.Errorf("alarms %+v", a)
	}
	n.powerCut(l)
	n.cfg.Reasons = reason.NewLog()
	for _, d := range n.disks {
		d.files[ObservedFile][len(d.files[ObservedFile])-1] ^= 1
	}
	l, _ = n.mustOpen(1)
	if o := l.Observed(); len(o.Alarms) != 0 || n.cfg.Reasons.Total(CodeObserved) != 2 {
		t.Errorf("damage: %d alarms, %+v", len(o.Alarms), n.cfg.Reasons.Entries())
	}
	for _, d := range n.disks {
		d.fail = func(string, string) error { return errors.New("broken") }
	}
	if err := l.SaveObserved(t.Context(), o); reason.CodeOf(err) != CodeObserved {
		t.Errorf("both media broken: %v", err)
	}
}
