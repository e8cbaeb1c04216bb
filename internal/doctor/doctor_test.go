package doctor

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sledvault/sledvault/vault/reason"
)

// TestFindings: what is missing comes with the command that mends it, what is there without.
func TestFindings(t *testing.T) {
	t.Parallel()
	fs := Examine()
	names := map[string]bool{}
	for _, f := range fs {
		if f.Name == "" || f.For == "" || f.Found == "" || names[f.Name] {
			t.Errorf("have %+v", f)
		}
		names[f.Name] = true
		if f.OK != (f.Remedy == "") {
			t.Errorf("%s: ok %v with remedy %q", f.Name, f.OK, f.Remedy)
		}
	}
	for _, want := range []string{"swtpm", "cryptsetup", "device-mapper", "TPM", "serial line", "lockable memory"} {
		if !names[want] {
			t.Errorf("nobody looked at %s", want)
		}
	}
}

func TestLacking(t *testing.T) {
	t.Parallel()
	fs := []Finding{{Name: "a", OK: true, For: ForDemo}, {Name: "b", For: ForDemo, Package: "pkg"}, {Name: "c", For: ForSled}}
	if l := Lacking(fs, ForDemo); len(l) != 1 || l[0].Name != "b" {
		t.Errorf("have %+v", l)
	}
	err := lacks(fs, ForDemo)
	if reason.CodeOf(err) != CodeLacking || !strings.Contains(err.Error(), "lacks b for demo and tests") || reason.HintOf(err) == "" {
		t.Errorf("have %v", err)
	}
	if err := lacks(fs, ForDisks); err != nil {
		t.Errorf("have %v", err)
	}
}

// TestPath: programs in the folders of root are found by everybody.
func TestPath(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "sledvault-test-tool"), []byte("#!/bin/sh\n"), 0o755); err != nil { // it must be executable
		t.Fatal(err)
	}
	if _, err := Path("sledvault-test-tool"); err == nil {
		t.Error("found without being in PATH")
	}
	t.Setenv("PATH", dir)
	if p, err := Path("sledvault-test-tool"); err != nil || filepath.Dir(p) != dir {
		t.Errorf("have %q %v", p, err)
	}
}

// TestInstall: what is missing is installed in one go, by root only.
func TestInstall(t *testing.T) {
	t.Parallel()
	lack := []Finding{{Name: "a", For: ForDemo, Package: "pkg-a"}, {Name: "b", For: ForDemo, Package: "pkg-b"}}
	var ran []string
	record := func(_ context.Context, args []string) ([]byte, error) {
		ran = append(ran, strings.Join(args, " "))
		return nil, nil
	}
	if err := install(t.Context(), io.Discard, lack, 1000, record); reason.CodeOf(err) != CodeLacking || len(ran) != 0 {
		t.Errorf("as a user: have %v, ran %q", err, ran)
	}
	if err := install(t.Context(), io.Discard, lack, 0, record); err != nil || len(ran) != 2 || ran[0] != "update" || ran[1] != "install -y --no-install-recommends pkg-a pkg-b" {
		t.Errorf("as root: have %v, ran %q", err, ran)
	}
	fails := func(context.Context, []string) ([]byte, error) {
		return []byte("E: no network\n"), os.ErrDeadlineExceeded
	}
	if err := install(t.Context(), io.Discard, lack, 0, fails); err == nil || !strings.Contains(err.Error(), "E: no network") || reason.HintOf(err) == "" {
		t.Errorf("failing: have %v", err)
	}
}
