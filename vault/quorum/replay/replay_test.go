package replay_test

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum/replay"
)

func ok(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// logs names the recorded logs in testdata/reference: NAME.events.json.gz, with final state and trace beside it.
func logs(tb testing.TB) (out []string) {
	tb.Helper()
	files, err := filepath.Glob("testdata/reference/*.events.json.gz")
	ok(tb, err)
	if len(files) == 0 {
		tb.Fatal("no logs")
	}
	for _, f := range files {
		out = append(out, strings.TrimSuffix(filepath.Base(f), ".events.json.gz"))
	}
	return out
}

func unzip(tb testing.TB, name string) []byte {
	tb.Helper()
	f, err := os.Open(filepath.Join("testdata/reference", name+".gz"))
	ok(tb, err)
	defer f.Close()
	z, err := gzip.NewReader(f)
	ok(tb, err)
	b, err := io.ReadAll(z)
	ok(tb, err)
	return b
}

// plain turns a value into what JSON makes of it.
func plain(tb testing.TB, v any) (out any) {
	tb.Helper()
	b, err := json.Marshal(v)
	ok(tb, err)
	ok(tb, json.Unmarshal(b, &out))
	return out
}

// TestReferenceLogs replays logs of the reference: our nodes must send the same messages to the same sleds in the same
// order, answer the same, and end in the same state.
func TestReferenceLogs(t *testing.T) {
	t.Parallel()
	for _, name := range logs(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			res, err := replay.Run(name, bytes.NewReader(unzip(t, name+".events.json")))
			ok(t, err)
			for i, d := range res.Differences {
				if i < 5 {
					t.Errorf("event %d, %s:\nhave %v\nwant %v", d.Event, d.What, plain(t, d.Have), plain(t, d.Want))
				}
			}
			var want map[string]any
			ok(t, json.Unmarshal(unzip(t, name+".final.json"), &want))
			for key, have := range plain(t, res.Final).(map[string]any) {
				if d := cmp.Diff(want[key], have); d != "" {
					t.Errorf("%s: (-want +have)\n%s", key, d)
				}
			}
		})
	}
}

// traceLine is what the reference has written about one event.
type traceLine struct {
	Event  string
	I      int
	Nodes  map[string]map[string]any
	Result any
	Sent   map[string][]any
}

func trace(t *testing.T, name string) (out []traceLine) {
	t.Helper()
	for b := range bytes.Lines(unzip(t, name+".trace.jsonl")) {
		var l traceLine
		ok(t, json.Unmarshal(b, &l))
		out = append(out, l)
	}
	return out
}

// TestReferenceTraces compares after every event: what was sent, what a load answered, and which fields of which node have
// changed to what.
func TestReferenceTraces(t *testing.T) {
	t.Parallel()
	for _, name := range logs(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rd, rack := replay.NewReader(bytes.NewReader(unzip(t, name+".events.json"))), replay.NewRack()
			seen := watcher{}
			for _, want := range trace(t, name) {
				e, err := rd.Next()
				ok(t, err)
				s, err := rack.Apply(e)
				ok(t, err)
				have := traceLine{s.Name, s.Event, seen.changes(t, rack.Final().Nodes), plain(t, s.Load), sent(t, s)}
				if d := cmp.Diff(want, have); d != "" {
					t.Fatalf("event %d: (-want +have)\n%s", want.I, d)
				}
			}
			if _, err := rd.Next(); !errors.Is(err, io.EOF) {
				t.Errorf("the log goes on after the trace: %v", err)
			}
		})
	}
}

// watcher remembers what nodes looked like.
type watcher map[ident.Baseboard][]byte

// changes lists the fields of nodes that differ from what the watcher has seen last.
func (w watcher) changes(t *testing.T, nodes map[ident.Baseboard]replay.NodeView) map[string]map[string]any {
	t.Helper()
	out := map[string]map[string]any{}
	for id, n := range nodes {
		b, err := json.Marshal(n)
		ok(t, err)
		if bytes.Equal(b, w[id]) {
			continue
		}
		now, was := map[string]any{}, map[string]any{}
		ok(t, json.Unmarshal(b, &now))
		if w[id] != nil {
			ok(t, json.Unmarshal(w[id], &was))
		}
		maps.DeleteFunc(now, func(field string, v any) bool {
			old, had := was[field]
			return had && reflect.DeepEqual(old, v)
		})
		w[id], out[id.String()] = b, now
	}
	return out
}

// sent lists what an event sent, by destination.
func sent(t *testing.T, s replay.Step) map[string][]any {
	t.Helper()
	out := map[string][]any{}
	for _, m := range s.Sent {
		if m.Lost {
			continue
		}
		msg := plain(t, m.Message()).(map[string]any)
		if c, has := msg["config"].(map[string]any); has {
			delete(c, "rack_id")
		}
		delete(msg, "rack_id")
		out[m.To.String()] = append(out[m.To.String()], map[string]any{"from": m.From.String(), "msg": msg})
	}
	return out
}
