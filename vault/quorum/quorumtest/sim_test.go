package quorumtest

import (
	"flag"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"
)

var (
	simActions = flag.Int("sim.actions", 100_000, "actions to simulate")
	simSeed    = flag.Uint64("sim.seed", 0, "seed of one run to repeat; 0 = the fixed sequence of runs")
)

const actionsPerRun = 600

// TestSimulation plays many racks with every fault and checks every invariant after every event. A failure prints the
// seed of its run, which -sim.seed repeats, and the fewest actions that still fail.
func TestSimulation(t *testing.T) {
	t.Parallel()
	if *simSeed != 0 {
		one(t, *simSeed, &Table{})
		return
	}
	seeds := rand.New(rand.NewPCG(20, 26))
	work := make(chan uint64)
	var wg sync.WaitGroup
	var mu sync.Mutex
	total := &Table{}
	start := time.Now()
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			table := &Table{}
			for seed := range work {
				one(t, seed, table)
			}
			mu.Lock()
			defer mu.Unlock()
			total.Add(table)
		})
	}
	runs := (*simActions + actionsPerRun - 1) / actionsPerRun
	for range runs {
		if t.Failed() {
			break
		}
		work <- seeds.Uint64()
	}
	close(work)
	wg.Wait()
	took := time.Since(start)
	t.Logf("%d runs, %d actions, %.1f s, %.0f actions/s, %d messages delivered\n%s", runs, runs*actionsPerRun, took.Seconds(),
		float64(runs*actionsPerRun)/took.Seconds(), total.delivered, total)
}

func one(t *testing.T, seed uint64, table *Table) {
	t.Helper()
	actions := Generate(seed, actionsPerRun)
	err := NewSim(seed, table).Run(actions)
	if err == nil {
		return
	}
	fewest := Shrink(actions, func(some []Action) bool { return NewSim(seed, &Table{}).Run(some) != nil })
	t.Errorf("seed %d: %v\nfewest actions that fail: %v", seed, err, NewSim(seed, &Table{}).Run(fewest))
	for _, a := range fewest {
		t.Logf("  %s", a)
	}
}

// TestSimulationRepeats shows that a seed says everything.
func TestSimulationRepeats(t *testing.T) {
	t.Parallel()
	trace := func() (uint64, string) {
		s := NewSim(42, &Table{})
		if err := s.Run(Generate(42, actionsPerRun)); err != nil {
			t.Fatal(err)
		}
		return s.Trace(), s.table.String()
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
	s := NewSim(42, &Table{})
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
			if v.Controller.Epoch == 0 || v.Controller.Epoch > v.Controller.Highest {
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
