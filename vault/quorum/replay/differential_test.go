package replay_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sledvault/sledvault/vault/quorum/replay"
)

var runs = flag.Uint64("runs", 16, "how many logs TestGenerated makes")

// TestTwin holds the twin against the traces of the recorded logs, so that what it generates is worth something.
func TestTwin(t *testing.T) {
	t.Parallel()
	for _, name := range logs(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rd, r := replay.NewReader(bytes.NewReader(unzip(t, name+".events.json"))), newTwinRack()
			seen := watcher{}
			for _, want := range trace(t, name) {
				e, err := rd.Next()
				ok(t, err)
				if !r.apply(e) {
					t.Fatalf("event %d: have something else, want %+v", want.I, e)
				}
				have := traceLine{want.Event, want.I, seen.changes(t, r.final().Nodes), plain(t, r.load), want.Sent}
				if d := cmp.Diff(want, have); d != "" {
					t.Fatalf("event %d: (-want +have)\n%s", want.I, d)
				}
			}
			var want map[string]any
			ok(t, json.Unmarshal(unzip(t, name+".final.json"), &want))
			for key, have := range plain(t, r.final()).(map[string]any) {
				if d := cmp.Diff(want[key], have); d != "" {
					t.Errorf("%s: (-want +have)\n%s", key, d)
				}
			}
		})
	}
}

// TestGenerated lets our nodes follow logs that the twin makes: more cases than the recorded logs have, and longer runs.
func TestGenerated(t *testing.T) {
	t.Parallel()
	events := 0
	for seed := range *runs {
		res := follow(t, seed, 300+int(seed%16)*150)
		events += res.Events
	}
	t.Logf("%d events", events)
}

// TestGeneratedDeviations: logs with every case in which our nodes under the operator's authority would go another way.
// With the reference's trust they follow there too.
func TestGeneratedDeviations(t *testing.T) {
	t.Parallel()
	rules := map[replay.Rule]int{}
	for _, seed := range []uint64{11, 68, 125, 195} {
		for rule, n := range follow(t, seed, 1500).Rules {
			rules[rule] += n
		}
	}
	for _, rule := range replay.Rules() {
		if rules[rule] == 0 {
			t.Errorf("no log came to the case %s", rule)
		}
	}
}

// follow makes a log and replays it. The nodes must do what the twin did, and end as it did.
func follow(t *testing.T, seed uint64, actions int) *replay.Result {
	t.Helper()
	log, want, _ := generate(seed, actions)
	res, err := replay.Run("generated", bytes.NewReader(log))
	if err != nil {
		t.Fatalf("seed %d: %v", seed, err)
	}
	if len(res.Differences) > 0 {
		d := res.Differences[0]
		t.Errorf("seed %d: event %d, %s:\nhave %v\nwant %v", seed, d.Event, d.What, plain(t, d.Have), plain(t, d.Want))
	}
	if d := cmp.Diff(plain(t, want), plain(t, res.Final)); d != "" {
		t.Errorf("seed %d: (-want +have)\n%.2000s", seed, d)
	}
	return res
}
