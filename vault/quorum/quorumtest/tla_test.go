package quorumtest

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	simTraces    = flag.String("sim.traces", "", "folder to write runs to, as modules of TLA+: Runs.tla, and spoiled/Runs.tla; one that is dropped again if empty")
	simTraceRuns = flag.Int("sim.trace-runs", 20, "runs to write there")
)

// tracedActions is enough for two or three changes of a small rack, crashes and lies included.
const tracedActions = 400

// traced plays a run that the model knows everything of.
func traced(tb testing.TB, seed uint64) *Traced {
	tb.Helper()
	s := NewSim(seed, Options{Sleds: 5}, NewTable())
	t := Trace(s, seed)
	if err := s.Run(TraceableActions(Generate(seed, tracedActions))); err != nil {
		tb.Fatalf("seed %d: %v", seed, err)
	}
	return t
}

// small says that a run is worth TLC's time: something was decided, and the controller did not begin again and again.
func (t *Traced) small() bool {
	decided := 0
	for _, e := range t.events {
		if strings.HasPrefix(e, `<<"decide"`) {
			decided++
		}
	}
	return decided >= 2 && t.epochs <= 12 && t.InsideModel()
}

// TestTraces writes what .ci/model holds against docs/model.
func TestTraces(t *testing.T) {
	t.Parallel()
	folder, want := *simTraces, *simTraceRuns
	if folder == "" {
		folder, want = t.TempDir(), 2
	}
	var good []*Traced
	for seed := uint64(1); len(good) < want; seed++ {
		if run := traced(t, seed); run.small() {
			good = append(good, run)
		}
	}
	for sub, runs := range map[string][]*Traced{"": good, "spoiled": good[0].Spoil()} {
		dir := filepath.Join(folder, sub)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if err := WriteTraces(&b, runs); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "Runs.tla"), b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// TestTraceForm holds the module's form without TLC: each event is one line of a known shape, a sled's state has its ten
// parts, every kind of event that matters occurs, and one seed gives one text.
func TestTraceForm(t *testing.T) {
	t.Parallel()
	write := func() string {
		var b bytes.Buffer
		if err := WriteTraces(&b, []*Traced{traced(t, 1), traced(t, 2)}); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	text := write()
	if text != write() {
		t.Error("two runs of one seed are written differently")
	}
	const (
		set   = `\{[0-9, ]*\}`
		cfg   = `(?:<<>>|\(\d+ :> \d+\)(?: @@ \(\d+ :> \d+\))*)`
		state = `<<(?:TRUE|FALSE), ` + cfg + `, ` + set + `, ` + set + `, ` + set + `, \d+, <<\d+, \d+, "(?:none|collect|prepare)", ` + set + `, ` + set +
			`>>, <<\d+, ` + set + `>>, <<\d+, ` + set + `, (?:TRUE|FALSE)>>, \d+>>`
	)
	event := regexp.MustCompile(`^<<"([a-z]+)", \d+, \d+, \d+(?:, (?:` + state + `|<<>>|"[a-z]+"|` + set + `(?:(?:, \d+){4})?))?>>,?$`)
	seen := map[string]int{}
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); !strings.HasPrefix(line, `<<"`) {
			continue
		}
		m := event.FindStringSubmatch(line)
		if m == nil {
			t.Fatalf("an event of unknown form: %s", line)
		}
		seen[m[1]]++
	}
	for _, kind := range []string{"begin", "decide", "reconfigure", "prepare", "ack", "get", "share", "commit", "load", "crash", "start"} {
		if seen[kind] == 0 {
			t.Errorf("no %s in two runs: %v", kind, seen)
		}
	}
	if seen["other"] > 0 {
		t.Errorf("%d events changed a sled and have no name", seen["other"])
	}
	for _, part := range []string{"---- MODULE Runs ----\n", "\nRunNodes == 1..5\n", "\nRunEpochs == ", "\nRuns == <<\n", "\n>>\n====\n"} {
		if strings.Count(text, part) != 1 {
			t.Errorf("want %q once", part)
		}
	}
}

// TestTraceSpoiled: spoiled runs differ from the run in one event.
func TestTraceSpoiled(t *testing.T) {
	t.Parallel()
	run := traced(t, 1)
	spoiled := run.Spoil()
	if len(spoiled) < 5 {
		t.Errorf("have %d spoiled runs, want at least 5", len(spoiled))
	}
	for i, s := range spoiled {
		same := 0
		for same < len(s.events) && s.events[same] == run.events[same] {
			same++
		}
		if same == len(run.events) {
			t.Errorf("spoiled run %d is not spoiled", i)
		}
	}
}
