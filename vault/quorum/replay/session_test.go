package replay_test

import (
	"bytes"
	"errors"
	"io"
	"regexp"
	"strings"
	"testing"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/quorum/replay"
	"github.com/sledvault/sledvault/vault/reason"
)

// session opens a log and runs commands, which must succeed; it returns what was said.
func session(tb testing.TB, log []byte, commands ...string) string {
	tb.Helper()
	var out bytes.Buffer
	s := replay.NewSession(&out, func(string) (replay.Machine, error) { return replay.NewLogMachine("log", bytes.NewReader(log)) })
	ok(tb, s.Open("log"))
	for _, c := range commands {
		if err := s.Do(c); err != nil {
			tb.Fatalf("%s: %v", c, err)
		}
	}
	return out.String()
}

// TestSessionRepeats: after rewind, everything happens again, down to the content of shares and configurations.
func TestSessionRepeats(t *testing.T) {
	t.Parallel()
	log := unzip(t, "log-19.events.json")
	said := session(t, log, "snapshot 0", "snapshot 300", "snapshot 635", "run", "rewind", "diff 0", "step 300", "diff 300", "run", "diff 635", "snapshot-list-pending")
	if n := strings.Count(said, "no changes"); n != 3 {
		t.Errorf("have %d times no changes, want 3:\n%.3000s", n, said)
	}
	if !strings.Contains(said, "at the end: 635 events, 0 differences") || !strings.HasSuffix(said, "no snapshots to take\n") {
		t.Errorf("have %.2000s", said)
	}
}

// TestSessionStops: run stops before an event with a breakpoint, goes on from there, and step does not stop.
func TestSessionStops(t *testing.T) {
	t.Parallel()
	log := unzip(t, "log-01.events.json")
	said := session(t, log, "b 0", "b 5", "b 9", "run", "run", "rewind", "step 7", "show", "b 5", "rewind", "run")
	for _, want := range []string{"\nbreakpoint 5\n", "\nbreakpoint 9\n", "events: 7 of 62 have happened", "breakpoint 5 removed"} {
		if !strings.Contains(said, want) {
			t.Errorf("want %q in\n%s", want, said)
		}
	}
	if n := strings.Count(said, "\nbreakpoint 9\n"); n != 2 || strings.Contains(said, "\nbreakpoint 0\n") {
		t.Errorf("stopped at 9 %d times, want 2:\n%s", n, said)
	}
}

// TestSessionSaysDifferences: run shows events that differ from the log, and counts them.
func TestSessionSaysDifferences(t *testing.T) {
	t.Parallel()
	log := lines(setup, `{"CommitConfiguration":`+sled1+`}`, `{"CrashNode":`+sled1+`}`)
	said := session(t, []byte(log), "run", "show")
	for _, want := range []string{
		"1 CommitConfiguration test:1\n  DIFFERENCE in commit: want test:1 commits epoch 1, have quorum: commit epoch 1: not prepared",
		"at the end: 3 events, 1 differences", "3 of 3 have happened, with 1 differences",
	} {
		if !strings.Contains(said, want) {
			t.Errorf("want %q in\n%s", want, said)
		}
	}
}

// TestSessionKeepsSecrets: nothing that a session can say contains the value of a share, a digest or a secret.
func TestSessionKeepsSecrets(t *testing.T) {
	t.Parallel()
	commands := []string{"step 588", "snapshot", "events all", "snapshot-show 588", "summary"}
	for i := range 16 {
		commands = append(commands, "node-show "+ident.Baseboard{Part: "test", Serial: itoa(i)}.String())
	}
	commands = append(commands, "rewind", "diff 588")
	said := session(t, unzip(t, "log-20.events.json"), commands...)
	said = strings.ReplaceAll(said, ident.RackID{}.String(), "RACK")
	if m := regexp.MustCompile(`[0-9a-f]{16,}|(\d+[, ]+){8,}`).FindString(said); m != "" {
		t.Errorf("a session said %q", m)
	}
}

// TestSessionRefuses: what cannot be done is said with a code and a hint, and changes nothing.
func TestSessionRefuses(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	broken := false
	s := replay.NewSession(&out, func(string) (replay.Machine, error) {
		if broken {
			return nil, errors.New("broken")
		}
		return replay.NewLogMachine("log", strings.NewReader(lines(setup, `{"CrashNode":{"part_number":"test","serial_number":"9"}}`)))
	})
	for _, c := range []struct {
		line string
		code reason.Code
	}{
		{"run", replay.CodeNoLog},
		{"frob", replay.CodeCommand},
		{"open", replay.CodeCommand},
		{"", ""},
		{"# open", ""},
		{"show", ""},
		{"open log", ""},
		{"step x", replay.CodeCommand},
		{"step -1", replay.CodeCommand},
		{"step 2", replay.CodeImpossible},
		{"run", replay.CodeImpossible},
		{"b 2", replay.CodeCommand},
		{"b 1 2", replay.CodeCommand},
		{"ss 0", replay.CodeCommand},
		{"d 0", replay.CodeCommand},
		{"sn 1", ""},
		{"sn 0", replay.CodeCommand},
		{"e", replay.CodeCommand},
		{"e next", replay.CodeCommand},
		{"e range 2 1", replay.CodeCommand},
		{"e range 0 99", replay.CodeCommand},
		{"n 9", replay.CodeCommand},
		{"step 99999999999999999999", replay.CodeCommand},
	} {
		err := s.Do(c.line)
		if reason.CodeOf(err) != c.code || (err != nil && reason.HintOf(err) == "") {
			t.Errorf("%q: have %v (%s), want %s", c.line, err, reason.CodeOf(err), c.code)
		}
	}
	broken = true
	if err := s.Do("open log"); err == nil {
		t.Error("open: no error")
	}
	if err := s.Do("quit"); !errors.Is(err, replay.ErrQuit) {
		t.Errorf("quit: %v", err)
	}
}

// TestDiffSeesContent: a configuration or share that is not what it was is seen although it looks the same.
func TestDiffSeesContent(t *testing.T) {
	t.Parallel()
	id := ident.Baseboard{Part: "test", Serial: "0"}
	snap := func(digest byte) *replay.Snapshot {
		c := &quorum.Configuration{Epoch: 1, Coordinator: id, Members: []quorum.Member{{ID: id, ShareDigest: quorum.Digest{digest}}}}
		st := quorum.State{Configs: map[ident.Epoch]*quorum.Configuration{1: c}}
		return &replay.Snapshot{Nodes: map[ident.Baseboard]replay.NodeSnapshot{id: replay.SnapshotNode(replay.NodeView{}, st)}}
	}
	if d := snap(1).Diff(snap(1)); len(d) != 0 {
		t.Errorf("have %q", d)
	}
	if d := strings.Join(snap(1).Diff(snap(2)), "\n"); d != "test:0\n  configuration 1: other content" {
		t.Errorf("have %q", d)
	}
	if d := strings.Join((&replay.Snapshot{}).Diff(snap(1)), "\n"); !strings.HasPrefix(d, "test:0\n  + the sled exists") {
		t.Errorf("have %q", d)
	}
}

// FuzzSession: no command line panics.
func FuzzSession(f *testing.F) {
	for _, seed := range []string{"step\nsn\nd 1\nrw\nrun", "b 1\nr\ne all\ne next 3\ne range 0 2\nsu", "sn 2\nslp\nr\nss 2\nd 2 2\nn 0\nsh\nh\nq"} {
		f.Add(seed)
	}
	log := lines(setup, `{"CrashNode":`+sled1+`}`, `{"CommitConfiguration":`+sled0+`}`)
	f.Fuzz(func(_ *testing.T, script string) {
		s := replay.NewSession(io.Discard, func(string) (replay.Machine, error) { return replay.NewLogMachine("", strings.NewReader(log)) })
		_ = s.Open("")
		for line := range strings.Lines(script) {
			_ = s.Do(line)
		}
	})
}
