package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"

	"github.com/sledvault/sledvault/hwtest/sim/pty"
	"github.com/sledvault/sledvault/internal/cli"
	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
)

func TestMain(m *testing.M) { testscript.Main(m, map[string]func(){"sledvault": main}) }

// TestStories runs testdata/*.txt: each is one story, with the command line as people see it. $SLED is the socket of a
// daemon that is there, $NOBODY one of a daemon that is not. $LOGS holds event logs of the
// reference, $RUNS failed runs of the simulation.
func TestStories(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{Dir: "testdata", RequireExplicitExec: true, RequireUniqueNames: true, Setup: func(env *testscript.Env) error {
		dir, err := os.MkdirTemp("", "sv") // short: unix sockets have short names
		if err != nil {
			return err
		}
		l, err := api.ListenLocal(api.LocalConfig{Socket: filepath.Join(dir, "api.sock"), Node: fakeSled{}, Reasons: reason.NewLog()})
		if err != nil {
			return err
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- l.Serve(ctx) }()
		env.Defer(func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
			_ = os.RemoveAll(dir)
		})
		recorded, err := filepath.Abs("../../vault/quorum/replay/testdata/reference")
		if err != nil {
			return err
		}
		runs, err := filepath.Abs("../../vault/quorum/quorumtest/testdata")
		if err != nil {
			return err
		}
		env.Setenv("LOGS", recorded)
		env.Setenv("RUNS", runs)
		env.Setenv("SLED", filepath.Join(dir, "api.sock"))
		env.Setenv("NOBODY", filepath.Join(dir, "nobody.sock"))
		return nil
	}, Cmds: map[string]func(*testscript.TestScript, bool, []string){
		// code N PROGRAM ARGS...: runs a program that must end with exit code N.
		"code": func(ts *testscript.TestScript, neg bool, args []string) {
			if neg || len(args) < 2 {
				ts.Fatalf("usage: code N PROGRAM ARGS")
			}
			have := "0"
			if err := ts.Exec(args[1], args[2:]...); err != nil {
				have = strings.TrimPrefix(err.Error(), "exit status ")
			}
			if have != args[0] {
				ts.Fatalf("have exit code %s, want %s", have, args[0])
			}
		},
	}})
}

// fakeSled is a daemon of a sled that is below its threshold.
type fakeSled struct{ api.Node }

var board = ident.Baseboard{Part: "913-0000019", Serial: "CLI1"}

// Status implements [api.Node].
func (fakeSled) Status(ctx context.Context) api.Status {
	other := ident.Baseboard{Part: "913-0000019", Serial: "CLI2"}
	return api.Status{
		Version: "fake", Baseboard: &board, State: api.StateMember, NextStep: "power sled 913-0000019:CLI2 on",
		Boot:    api.Boot{Step: "collect", SinceMS: 1500, Waiting: "913-0000019:CLI2", Error: &api.Error{Code: "below-threshold", Text: "have 1, want 2"}},
		Quorum:  &api.Quorum{Commits: []ident.Epoch{3}, Threshold: 2, Members: []ident.Baseboard{board, other}, Collecting: &api.Collecting{Purpose: "rack secret", Epoch: 3, Have: 1, Want: 2}},
		Disks:   fakeSled{}.Disks(ctx),
		Relaxed: []string{"software-tpm"},
		Seal:    &api.Seal{PCRs: []int{0, 2}, Ledger: map[string]any{"copies": []any{map[string]string{"state": "ok"}, map[string]string{"state": "failed", "reason": "no space left"}}}},
		Alarms:  []api.Alarm{{Kind: "invented", Text: "for the test"}},
		Reasons: []reason.Entry{{Code: "peer-refused", Peer: "10.0.0.1", Count: 4, Last: "no certificate"}},
	}
}

// Disks implements [api.Node].
func (fakeSled) Disks(context.Context) []api.Disk {
	return []api.Disk{{ID: "data0", Backend: "luks2", Path: "/dev/null", State: "locked", Epoch: 3}}
}

// Unlock implements [api.Node].
func (fakeSled) Unlock(context.Context, api.UnlockRequest) ([]api.Disk, error) {
	return nil, reason.Later("below-threshold", "power the missing sleds on", "have 1 share, want 2: missing 913-0000019:CLI2 (not connected)")
}

// ReleaseKey implements [api.Node].
func (fakeSled) ReleaseKey(_ context.Context, _ api.Caller, disk string) (secret.DiskKey, error) {
	if disk != "data0" {
		return secret.DiskKey{}, reason.New(api.CodeUnknownDisk, "see sledvault disks", "no disk %q is configured", disk)
	}
	return secret.Take[secret.DiskKeyKind](secret.Heap{}, []byte(strings.Repeat("K", 32)))
}

// NetworkConfig implements [api.Node].
func (fakeSled) NetworkConfig(_ context.Context, after uint64) (api.NetworkConfig, error) {
	return api.NetworkConfig{Generation: 7 + after, SHA256: "beef", Blob: []byte("routes\n")}, nil
}

// SetNetworkConfig implements [api.Node].
func (fakeSled) SetNetworkConfig(_ context.Context, generation uint64, blob []byte) (api.NetworkConfig, error) {
	if generation < 8 {
		return api.NetworkConfig{}, reason.New("network-config-stale", "use a higher one", "have generation %d, want more than 7", generation)
	}
	return api.NetworkConfig{Generation: generation, SHA256: fmt.Sprintf("%x", blob)}, nil
}

// ProxyStatus implements [api.Node].
func (fakeSled) ProxyStatus(_ context.Context, to ident.Baseboard) (api.NodeStatus, error) {
	if to == board {
		return api.NodeStatus{}, &reason.Error{Code: "proxy-self", Text: "this one", Remedy: reason.Usage}
	}
	return api.NodeStatus{ConnectedPeers: []ident.Baseboard{board}, PersistentState: api.PersistentState{Commits: []ident.Epoch{3}}}, nil
}

// FormatDisk implements [api.Node].
func (fakeSled) FormatDisk(_ context.Context, _ api.Caller, disk string, _ api.FormatRequest) (api.Disk, error) {
	return api.Disk{ID: disk, Backend: "luks2", State: "unlocked", Epoch: 3}, nil
}

// TPMIdentity implements [api.Node].
func (fakeSled) TPMIdentity(context.Context) (api.TPMIdentity, error) {
	return api.TPMIdentity{EKName: "000bfeed"}, nil
}

// SPIdentity implements [api.Node].
func (fakeSled) SPIdentity(context.Context) (api.SPIdentity, error) {
	return api.SPIdentity{Baseboard: board, Revision: 6}, nil
}

// TestNoKeyOnTerminal: a key that would appear on a screen is not even asked for.
func TestNoKeyOnTerminal(t *testing.T) {
	t.Parallel()
	p, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Close() }()
	screen, err := os.OpenFile(p.Path, os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = screen.Close() }()
	var errs bytes.Buffer
	code := run(t.Context(), []string{"disks", "key", "data0", "--socket", "/nonexistent"}, nil, screen, &errs)
	if code != cli.Usage || !strings.Contains(errs.String(), "a key is not printed to a terminal") {
		t.Errorf("have exit code %d, %s", code, errs.String())
	}
}

// walk visits every command that people see.
func walk(c *cobra.Command, f func(*cobra.Command)) {
	f(c)
	for _, sub := range c.Commands() {
		if !sub.Hidden && sub.Name() != "help" && sub.Name() != "completion" {
			walk(sub, f)
		}
	}
}

// TestEveryCommandIsExplained: what it is for, and an example that names it.
func TestEveryCommandIsExplained(t *testing.T) {
	t.Parallel()
	walk((&app{}).root(), func(c *cobra.Command) {
		if c.Short == "" || !strings.Contains(c.Example, c.CommandPath()) && !strings.Contains(c.Example, "sledvault ") {
			t.Errorf("%s: wants a short text and an example", c.CommandPath())
		}
		for line := range strings.Lines(c.Example) {
			words := strings.Fields(line)
			if len(words) == 0 || words[0] != "sledvault" {
				t.Errorf("%s: example %q does not begin with the command", c.CommandPath(), line)
				continue
			}
			found, _, err := c.Root().Find(words[1:])
			if err != nil || found == c.Root() {
				t.Errorf("%s: example %q names no command", c.CommandPath(), line)
			}
		}
	})
}

// TestDocsAreUpToDate: man pages and completions are checked in as the commands are now.
func TestDocsAreUpToDate(t *testing.T) {
	t.Parallel()
	for where, write := range map[string]func(*cobra.Command, string) error{"../../docs/man": writeManPages, "../../packaging/completions": writeCompletions} {
		dir := t.TempDir()
		if err := write((&app{}).root(), dir); err != nil {
			t.Fatal(err)
		}
		want, have := readDir(t, dir), readDir(t, where)
		for name, b := range want {
			if !bytes.Equal(b, have[name]) {
				t.Errorf("%s/%s is not up to date; go run ./cmd/sledvault docs docs/man packaging/completions rewrites it", where, name)
			}
		}
		for name := range have {
			if want[name] == nil {
				t.Errorf("%s/%s describes nothing that exists; remove it", where, name)
			}
		}
	}
}

func readDir(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	for _, e := range entries {
		if out[e.Name()], err = os.ReadFile(filepath.Join(dir, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	return out
}
