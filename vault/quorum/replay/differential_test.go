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
	rules := map[replay.Rule]int{}
	events := 0
	for seed := range *runs {
		log, want, n := generate(seed, 300+int(seed%16)*150)
		events += n
		res, err := replay.Run("generated", bytes.NewReader(log))
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		for rule, n := range res.Rules {
			rules[rule] += n
		}
		if len(res.Differences) > 0 {
			d := res.Differences[0]
			t.Errorf("seed %d: event %d, %s:\nhave %v\nwant %v", seed, d.Event, d.What, plain(t, d.Have), plain(t, d.Want))
		}
		if d := cmp.Diff(plain(t, want), plain(t, res.Final)); d != "" {
			t.Errorf("seed %d: (-want +have)\n%.2000s", seed, d)
		}
	}
	for _, rule := range []replay.Rule{replay.RuleGetShareUnanswered, replay.RuleLoadWhileExpunged} {
		if rules[rule] == 0 {
			t.Errorf("no log came to the case %s", rule)
		}
	}
	t.Logf("%d events; cases of deviations: %v", events, rules)
}
