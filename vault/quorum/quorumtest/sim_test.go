package quorumtest

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"
)

var (
	simActions = flag.Float64("sim.actions", 100_000, "actions to simulate, also as 1e9")
	simSeed    = flag.Uint64("sim.seed", 0, "seed of one run to repeat; 0 = the fixed sequence of runs")
	simFrom    = flag.Uint64("sim.from", 20, "where the sequence of runs begins")
	simReplay  = flag.String("sim.replay", "", "failure file to play again")
	simTrace   = flag.Bool("sim.trace", false, "print every event of the run of -sim.seed or -sim.replay")
	simOut     = flag.String("sim.out", "", "folder for failure files; none are written without it")
)

const actionsPerRun = 600

// TestSimulation plays many racks with every fault and checks every invariant after every event. A failure prints the
// seed of its run, which -sim.seed repeats, and the fewest actions that still fail. A full run fails too if a cell of the
// table stays empty, or if something that must be met was not.
func TestSimulation(t *testing.T) {
	t.Parallel()
	switch {
	case *simReplay != "":
		replayFile(t, *simReplay)
		return
	case *simSeed != 0:
		one(t, *simSeed, NewTable())
		return
	}
	runs := int((*simActions + actionsPerRun - 1) / actionsPerRun)
	start := time.Now()
	total := campaign(t, runs)
	took := time.Since(start)
	t.Logf("%d actions, %.1f s, %.0f actions/s\n%s\n%s", total.actions, took.Seconds(), float64(total.actions)/took.Seconds(), total, total.Seen())
	for _, h := range total.Holes() {
		if total.actions >= FullRun && !t.Failed() {
			t.Errorf("hole: %s", h)
		} else {
			t.Logf("hole: %s", h)
		}
	}
}

// campaign plays independent runs on every core.
func campaign(t *testing.T, runs int) *Table {
	seeds := rand.New(rand.NewPCG(*simFrom, 26))
	work := make(chan uint64)
	total := NewTable()
	var wg sync.WaitGroup
	var mu sync.Mutex
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			table := NewTable()
			for seed := range work {
				one(t, seed, table)
			}
			mu.Lock()
			defer mu.Unlock()
			total.Add(table)
		})
	}
	said := time.Now()
	for i := range runs {
		if t.Failed() {
			break
		}
		work <- seeds.Uint64()
		if now := time.Now(); now.Sub(said) > 10*time.Second {
			said = now
			fmt.Fprintf(os.Stderr, "simulation: %d %% of %.3g actions\n", 100*i/runs, float64(runs*actionsPerRun))
		}
	}
	close(work)
	wg.Wait()
	return total
}

func one(t *testing.T, seed uint64, table *Table) {
	t.Helper()
	f := Play(seed, Options{}, actionsPerRun, table)
	if f == nil {
		return
	}
	if *simTrace {
		_ = f.Replay(func(s *Sim) { s.Watch = printEvent }, printAction)
	}
	t.Errorf("again: go test ./vault/quorum/quorumtest -run 'Simulation$' -args -sim.seed=%d\n%s", seed, f)
	if *simOut != "" {
		path := filepath.Join(*simOut, fmt.Sprintf("%d.json", seed))
		file, err := os.Create(path)
		if err == nil {
			err = f.Write(file)
		}
		if err != nil {
			t.Fatal(err)
		}
		_ = file.Close()
		t.Logf("written to %s", path)
	}
}

func replayFile(t *testing.T, path string) {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	f, err := ReadFailure(file)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	begin, step := func(*Sim) {}, func(int, Action, *Sim) {}
	if *simTrace {
		begin, step = func(s *Sim) { s.Watch = printEvent }, printAction
	}
	if err := f.Replay(begin, step); err != nil {
		t.Errorf("%s: %v", path, err)
	}
}

// TestRegressions plays the runs that failed once.
func TestRegressions(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no failure files: %v", err)
	}
	for _, path := range files {
		t.Run(filepath.Base(path), func(t *testing.T) { replayFile(t, path) })
	}
}

// TestSimulationRepeats shows that a seed says everything.
func TestSimulationRepeats(t *testing.T) {
	t.Parallel()
	trace := func() (uint64, string) {
		s := NewSim(42, Options{}, NewTable())
		if err := s.Run(Generate(42, actionsPerRun)); err != nil {
			t.Fatal(err)
		}
		return s.Trace(), s.table.String() + s.table.Seen()
	}
	hash, table := trace()
	for range 3 {
		if h, tb := trace(); h != hash || tb != table {
			t.Fatal("two runs of one seed differ")
		}
	}
}

// TestWatch: a watcher hears of everything, in order, and sees what it led to.
func TestWatch(t *testing.T) {
	t.Parallel()
	s := NewSim(42, Options{}, NewTable())
	kinds, seq := map[EventKind]int{}, uint64(0)
	s.Watch = func(e Event) {
		kinds[e.Kind]++
		if seq++; e.Seq != seq {
			t.Fatalf("event %d comes as number %d", e.Seq, seq)
		}
		v := s.View()
		switch e.Kind {
		case EventStart, EventCrash:
			if v.Nodes[e.Sled.Index].Up != (e.Kind == EventStart) {
				t.Errorf("event %d: %s of %s, up: %t", e.Seq, e.Kind, e.Sled.ID, v.Nodes[e.Sled.Index].Up)
			}
		case EventStep:
			if e.Effects != nil && e.Effects.Committed != 0 && !slices.Contains(v.Nodes[e.Sled.Index].Commits, e.Effects.Committed) {
				t.Errorf("event %d: %s committed %d, the view has %v", e.Seq, e.Sled.ID, e.Effects.Committed, v.Nodes[e.Sled.Index].Commits)
			}
		case EventController:
			if v.Controller.Epoch > v.Controller.Highest {
				t.Errorf("event %d: %s: %+v", e.Seq, e.Text, v.Controller)
			}
		}
	}
	if err := s.Run(Generate(42, actionsPerRun)); err != nil {
		t.Fatal(err)
	}
	for _, k := range []EventKind{EventStep, EventStart, EventCrash, EventController} {
		if kinds[k] == 0 {
			t.Errorf("no %s in a whole run", k)
		}
	}
}

func printEvent(e Event)                  { fmt.Println(e) }
func printAction(i int, a Action, _ *Sim) { fmt.Printf("after action %d: %s\n", i, a) }
