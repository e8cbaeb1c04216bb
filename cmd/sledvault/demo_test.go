package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	simrack "github.com/sledvault/sledvault/hwtest/sim/rack"
)

func TestDemoUsage(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		{"--sleds", "2"},
		{"--sleds", "32"},
		{"--sleds", "x"},
		{"--scenes", "add"},
		{"--scenes", "cold-boot,nothing"},
		{"--hold", "--scenes", "cold-boot"},
		{"--sleds", "3", "--scenes", "remove-sled"},
		{"extra"},
		{"--unknown"},
	} {
		var out, errw bytes.Buffer
		if code := run(t.Context(), append([]string{"demo"}, args...), strings.NewReader(""), &out, &errw); code != 2 || out.Len() > 0 {
			t.Errorf("%q: have exit code %d, stdout %q; want 2 and nothing", args, code, out.String())
		}
	}
}

func TestDemoChoose(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		o    demoOptions
		want string
	}{
		{demoOptions{sleds: 5}, strings.Join(simrack.Scenes(), " ")},
		{demoOptions{sleds: 3, hold: true}, "init cold-boot"},
		{demoOptions{sleds: 31, scenes: []string{"below-threshold", "cold-boot"}}, "init cold-boot below-threshold"},
		{demoOptions{sleds: 3, scenes: []string{"remove-sled", "add-sled"}}, "init add-sled remove-sled"},
		{demoOptions{sleds: 4, scenes: []string{"remove-sled"}}, "init remove-sled"},
		{demoOptions{sleds: 5, scenes: []string{"init"}}, "init"},
	} {
		have, err := c.o.choose()
		if err != nil || strings.Join(have, " ") != c.want {
			t.Errorf("%+v: have %v (%v), want %s", c.o, have, err, c.want)
		}
	}
}

// TestDemoReport: scripts look at the end of the line, and lists are never null.
func TestDemoReport(t *testing.T) {
	t.Parallel()
	r, err := simrackReport()
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(r, `"ok":true}`) || strings.Contains(r, "null") {
		t.Errorf("have %s", r)
	}
}

func simrackReport() (string, error) {
	rep := demoReport{Sleds: 5, Threshold: 3, Epochs: nil, OK: true}
	rep.normalize()
	b, err := json.Marshal(rep)
	return string(b), err
}

func TestSourceTree(t *testing.T) {
	t.Parallel()
	cwd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	if have, want := sourceTree(cwd), filepath.Dir(filepath.Dir(cwd)); have != want {
		t.Errorf("have %q, want %q", have, want)
	}
	other := t.TempDir()
	if err := os.WriteFile(filepath.Join(other, "go.mod"), []byte("module example.com/other\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if have := sourceTree(other); have != "" {
		t.Errorf("foreign module: have %q", have)
	}
}

// TestDemoBuildFails: what the compiler says reaches the operator, and no folder stays.
func TestDemoBuildFails(t *testing.T) {
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "go.mod"), []byte(modulePath+"\n\ngo 1.26\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	b, err := buildDaemon(t.Context(), &bytes.Buffer{}, "self", root)
	if err == nil || b != nil {
		t.Fatalf("have %+v, want an error", b)
	}
	left, err := os.ReadDir(tmp)
	if err != nil || slices.ContainsFunc(left, func(e os.DirEntry) bool { return strings.HasPrefix(e.Name(), "sledvault-bin") }) {
		t.Errorf("left behind: %v (%v)", left, err)
	}
}

func TestDemoViewLines(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	v := newDemoView(&out, simrack.Scenes())
	v.begin("init")
	v.event(simrack.Event{Sled: "sled-1", Text: "something"})
	v.finish(sceneResult{Name: "init", OK: true, MS: 1234, Detail: "fine"}, nil)
	v.begin("cold-boot")
	v.finish(sceneResult{Name: "cold-boot", MS: 10, Error: "boom"}, errors.New("boom"))
	v.close()
	want := "ok    init                1.2 s  fine\nFAIL  cold-boot           0.0 s  boom\nsledvault: error: scene cold-boot: boom\n"
	if out.String() != want {
		t.Errorf("have\n%s\nwant\n%s", out.String(), want)
	}
}

func TestDemoInterrupted(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	if err := interrupted(ctx, reported{}); !errors.Is(err, reported{}) {
		t.Errorf("have %v", err)
	}
	cancel()
	if err := interrupted(ctx, reported{}); err == nil || err.Error() != "demo: interrupted" {
		t.Errorf("have %v", err)
	}
}
